/* The arithmetic of a decoding step for x86-64 with AVX512-BF16: bf16 numbers in and out, sums in
   fp32. Each row of a batch is computed the same whatever the other rows are. `__init__.py` says
   what the shapes are and checks them; `build.py` compiles this. */

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define EACH _Pragma("GCC unroll 8")

/* Scores below which waking another core takes longer than the work. */
enum { WORTHWHILE = 4096 };
enum { TILE = 16, GROUP = 32, MOST_ROWS = 8 };

/* Bytes of 16 outputs' numbers of one group. */
#define BLOCK(bits) (GROUP * TILE / 8 * (bits))

typedef uint16_t bf16;

INLINE float wide(bf16 x)
{
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)x << 16)));
}

INLINE __m512 wide16(const bf16 *x)
{
    __m256i halves = _mm256_loadu_si256((const void *)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

INLINE void narrow16(bf16 *to, __m512 x)
{
    _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* e to the x: 2 to the whole part by scaling, to the rest by its Taylor series, to 1e-7. */
INLINE __m512 exp16(__m512 x)
{
    /* Beyond these it is 0 or infinite anyway; NaN, as the second operand, stays. */
    x = _mm512_max_ps(_mm512_set1_ps(-200), _mm512_min_ps(_mm512_set1_ps(100), x));
    __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(power, 0);
    __m512 rest = _mm512_mul_ps(_mm512_sub_ps(power, whole), _mm512_set1_ps(0.69314718f));
    static const float factors[] = {1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f};
    __m512 sum = _mm512_set1_ps(1.f / 720);
    EACH for (int i = 0; i < 6; i++)
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(sum, whole);
}

int supported(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

/* --- products with 4-bit and 8-bit blocks ---------------------------------------------------- */

struct matrix {
    const uint8_t *packed; /* see `pack` */
    const bf16 *scales;    /* (tiles, groups, 2, 16): scale, then zero */
    int64_t bits, outputs, inputs;
};

struct product {
    const struct matrix *m;
    const bf16 *x;       /* (rows, inputs) */
    const float *x_sums; /* (rows, groups) */
    bf16 *y;             /* (rows, outputs) */
};

/* Whole numbers (outputs, inputs) → (tiles, groups, 16 pairs of inputs, 16 outputs, 2), as bytes,
   or four neighbouring pairs in the half bytes of a 16-bit word, where they are -8 … 7. */
void pack(const int8_t *q, long outputs, long inputs, long bits, uint8_t *packed)
{
    const long groups = inputs / GROUP;
#pragma omp parallel for schedule(static)
    for (long block = 0; block < outputs / TILE * groups; block++) {
        const int8_t *from = q + block / groups * TILE * inputs + block % groups * GROUP;
        uint8_t *to = packed + block * BLOCK(bits);
        for (long i = 0; i < TILE * GROUP; i++) {
            const long pair = i / 32, output = i % 32 / 2;
            const int value = from[output * inputs + 2 * pair + i % 2];
            if (bits == 8) to[i] = (uint8_t)value;
            else {
                uint16_t *word = (uint16_t *)to + pair / 4 * 32 + i % 32;
                *word = (uint16_t)((pair % 4 ? *word : 0) | (value + 8) << pair % 4 * 4);
            }
        }
    }
}

/* -8 … 7 in bf16, twice: of an index five bits count, and a half byte has four. */
INLINE __m512i half_bytes(void)
{
    bf16 table[32];
    for (int i = 0; i < 32; i++) {
        float value = (float)((i & 15) - 8);
        uint32_t bits;
        __builtin_memcpy(&bits, &value, 4);
        table[i] = (bf16)(bits >> 16);
    }
    return _mm512_loadu_si512(table);
}

INLINE __m512i whole_bytes(const uint8_t *from)
{
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(from + 16))));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* All rows, R of them, and T tiles of 16 outputs from `tile` on. */
INLINE void outputs_of(const struct product *p, long tile, const int R, const int T, const int bits)
{
    const long groups = p->m->inputs / GROUP;
    const __m512i table = half_bytes();
    __m512 sum[8][4];
    EACH for (int r = 0; r < R; r++)
        EACH for (int t = 0; t < T; t++) sum[r][t] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++) {
        __m512 part[8][4];
        EACH for (int r = 0; r < R; r++)
            EACH for (int t = 0; t < T; t++) part[r][t] = _mm512_setzero_ps();
        for (long four = 0; four < 4; four++) {
            const bf16 *x = p->x + g * GROUP + four * 8;
            EACH for (int t = 0; t < T; t++) {
                const uint8_t *from = p->m->packed + ((tile + t) * groups + g) * BLOCK(bits);
                __m512i words = _mm512_loadu_si512(from + four * 64);
                EACH for (int i = 0; i < 4; i++) {
                    __m512i w = bits == 8 ? whole_bytes(from + (four * 4 + i) * 32)
                                          : _mm512_permutexvar_epi16(words, table);
                    words = _mm512_srli_epi16(words, 4);
                    EACH for (int r = 0; r < R; r++) {
                        int pair;
                        __builtin_memcpy(&pair, x + r * p->m->inputs + 2 * i, 4);
                        part[r][t] = _mm512_dpbf16_ps(part[r][t], (__m512bh)w,
                                                      (__m512bh)_mm512_set1_epi32(pair));
                    }
                }
            }
        }
        EACH for (int t = 0; t < T; t++) {
            const bf16 *scales = p->m->scales + ((tile + t) * groups + g) * 2 * TILE;
            __m512 scale = wide16(scales), zero = wide16(scales + TILE);
            EACH for (int r = 0; r < R; r++) {
                __m512 x_sum = _mm512_set1_ps(p->x_sums[r * groups + g]);
                sum[r][t] = _mm512_fmadd_ps(part[r][t], scale, sum[r][t]);
                sum[r][t] = _mm512_fmadd_ps(zero, x_sum, sum[r][t]);
            }
        }
    }
    EACH for (int r = 0; r < R; r++)
        EACH for (int t = 0; t < T; t++)
            narrow16(p->y + r * p->m->outputs + (tile + t) * TILE, sum[r][t]);
}

/* Tiles from `tile` to `end`, as many at once as registers hold. */
INLINE void some_outputs(const struct product *p, long rows, long tile, long end, const int bits)
{
#define WALK(R, T)                                                          \
    case R:                                                                 \
        for (; tile + T <= end; tile += T) outputs_of(p, tile, R, T, bits); \
        for (; tile < end; tile++) outputs_of(p, tile, R, 1, bits);         \
        break;
    switch (rows) {
        WALK(1, 4) WALK(2, 4) WALK(3, 2) WALK(4, 2) WALK(5, 1) WALK(6, 1) WALK(7, 1) WALK(8, 1)
    }
}

/* The calling thread's share of the outputs of a product. */
static void share_of_product(const struct matrix *m, const bf16 *x, long rows, bf16 *y)
{
    const long groups = m->inputs / GROUP, tiles = m->outputs / TILE;
    const long part = omp_get_thread_num(), parts = omp_get_num_threads();
    const long tile = tiles * part / parts, end = tiles * (part + 1) / parts;
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3F80);
    for (long row = 0; row < rows; row += MOST_ROWS) {
        const long some = rows - row < MOST_ROWS ? rows - row : MOST_ROWS;
        const bf16 *from = x + row * m->inputs;
        float x_sums[some * groups];
        for (long i = 0; i < some * groups; i++) {
            __m512bh group = (__m512bh)_mm512_loadu_si512(from + i * GROUP);
            x_sums[i] = _mm512_reduce_add_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), group, ones));
        }
        const struct product p = {m, from, x_sums, y + row * m->outputs};
        if (m->bits == 8) some_outputs(&p, some, tile, end, 8);
        else some_outputs(&p, some, tile, end, 4);
    }
}

void block_product(const struct matrix *m, const bf16 *x, long rows, bf16 *y)
{
#pragma omp parallel
    share_of_product(m, x, rows, y);
}

/* --- attention ------------------------------------------------------------------------------- */

/* x · cos + (x, its halves exchanged) · sin over the first `turned` of `size` numbers. */
static void turn(bf16 *to, const bf16 *x, const bf16 *cos, const bf16 *sin, long turned, long size)
{
    float y[turned + TILE];
    for (long i = 0; i < turned; i++) {
        long other = i < turned / 2 ? i + turned / 2 : i - turned / 2;
        y[i] = wide(x[i]) * wide(cos[i]) + wide(x[other]) * wide(sin[i]);
    }
    for (long i = 0; i < turned; i += TILE) narrow16(to + i, _mm512_loadu_ps(y + i));
    __builtin_memcpy(to + turned, x + turned, (size - turned) * sizeof(bf16));
}

/* Lane j is the sum of the lanes of x[j]: each step adds halves and brings two vectors together. */
INLINE __m512 sums_of(__m512 x[16])
{
    EACH for (int i = 0; i < 8; i++)
        x[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]),
                             _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
    EACH for (int i = 0; i < 4; i++) {
        __m512d even = _mm512_castps_pd(x[2 * i]), odd = _mm512_castps_pd(x[2 * i + 1]);
        x[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(even, odd)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd)));
    }
    EACH for (int i = 0; i < 2; i++)
        x[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0x44),
                             _mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0xEE));
    return _mm512_add_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x88),
                         _mm512_shuffle_f32x4(x[0], x[1], 0xDD));
}

/* Scores of a query with `count` keys become weights; returns one over their sum. */
static float weights_of(float *weights, const bf16 *query, const bf16 *keys, long count, long size,
                        float scale)
{
    __m512 most = _mm512_set1_ps(-__builtin_inff()), total = _mm512_setzero_ps();
    for (long j = 0; j < count; j += 16) {
        const __mmask16 real = count - j < 16 ? (1u << (count - j)) - 1 : 0xFFFF;
        __m512 sums[16];
        _Pragma("GCC unroll 16") for (long k = 0; k < 16; k++) {
            const bf16 *key = keys + (j + k < count ? j + k : count - 1) * size;
            sums[k] = _mm512_setzero_ps();
            for (long i = 0; i < size; i += 32)
                sums[k] = _mm512_dpbf16_ps(sums[k], (__m512bh)_mm512_loadu_si512(query + i),
                                           (__m512bh)_mm512_loadu_si512(key + i));
        }
        const __m512 scores = _mm512_mul_ps(sums_of(sums), _mm512_set1_ps(scale));
        most = _mm512_mask_max_ps(most, real, most, scores);
        _mm512_storeu_ps(weights + j, scores);
    }
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (long j = 0; j < count; j += 16) {
        const __mmask16 real = count - j < 16 ? (1u << (count - j)) - 1 : 0xFFFF;
        const __m512 weight = exp16(_mm512_sub_ps(_mm512_loadu_ps(weights + j), most));
        total = _mm512_mask_add_ps(total, real, total, weight);
        _mm512_storeu_ps(weights + j, weight);
    }
    return 1.f / _mm512_reduce_add_ps(total);
}

/* 32 numbers of the weighted sum of values. */
static void mix(bf16 *to, const float *weights, float scale, const bf16 *values, long count, long size)
{
    __m512 even[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, odd[2] = {even[0], even[1]};
    long j = 0;
    for (; j + 2 <= count; j += 2)
        EACH for (int i = 0; i < 2; i++) {
            const bf16 *value = values + j * size + i * 16;
            even[i] = _mm512_fmadd_ps(_mm512_set1_ps(weights[j]), wide16(value), even[i]);
            odd[i] = _mm512_fmadd_ps(_mm512_set1_ps(weights[j + 1]), wide16(value + size), odd[i]);
        }
    if (j < count)
        EACH for (int i = 0; i < 2; i++)
            even[i] = _mm512_fmadd_ps(_mm512_set1_ps(weights[j]),
                                      wide16(values + j * size + i * 16), even[i]);
    EACH for (int i = 0; i < 2; i++)
        narrow16(to + i * 16, _mm512_mul_ps(_mm512_add_ps(even[i], odd[i]), _mm512_set1_ps(scale)));
}

struct attention {
    const bf16 *qkv; /* (rows, heads + 2 kv_heads, size) */
    bf16 *stored;    /* (slots, 2 kv_heads, capacity, size) */
    const int64_t *slots, *positions;
    const bf16 *cos, *sin; /* (rows, turned) */
    bf16 *y;               /* (rows, heads, size) */
    long rows, heads, kv_heads, size, turned, capacity, window;
};

/* Turns a row's key of one head and stores it, and the value, where the row stands. */
static void store(const struct attention *a, long row, long k)
{
    const bf16 *key = a->qkv + (row * (a->heads + 2 * a->kv_heads) + a->heads + k) * a->size;
    const long head = a->slots[row] * 2 * a->kv_heads + k, half = a->kv_heads * a->size;
    bf16 *to = a->stored + (head * a->capacity + a->positions[row]) * a->size;
    turn(to, key, a->cos + row * a->turned, a->sin + row * a->turned, a->turned, a->size);
    __builtin_memcpy(to + half * a->capacity, key + half, a->size * sizeof(bf16));
}

/* Turns a row's query of one head and attends to all up to where the row stands. */
static void look(const struct attention *a, long row, long head)
{
    const long size = a->size, last = a->positions[row], group = a->heads / a->kv_heads;
    const long first = a->window && last >= a->window ? last - a->window + 1 : 0;
    const long count = last + 1 - first, slot = a->slots[row] * 2 * a->kv_heads;
    const bf16 *keys = a->stored + ((slot + head / group) * a->capacity + first) * size;
    const bf16 *values = keys + a->kv_heads * a->capacity * size;
    const bf16 *cos = a->cos + row * a->turned, *sin = a->sin + row * a->turned;
    bf16 query[size + TILE];
    float weights[count + TILE];
    turn(query, a->qkv + (row * (a->heads + 2 * a->kv_heads) + head) * size, cos, sin, a->turned, size);
    const float share = weights_of(weights, query, keys, count, size, 1.f / __builtin_sqrtf((float)size));
    for (long i = 0; i < size; i += 32)
        mix(a->y + (row * a->heads + head) * size + i, weights, share, values + i, count, size);
}

/* The calling thread's share of both, once all are stored: several rows may be of one slot. */
static void share_of_attention(const struct attention *a)
{
#pragma omp for schedule(static)
    for (long task = 0; task < a->rows * a->kv_heads; task++)
        store(a, task / a->kv_heads, task % a->kv_heads);
#pragma omp for schedule(static)
    for (long task = 0; task < a->rows * a->heads; task++) look(a, task / a->heads, task % a->heads);
}

void attend(const bf16 *qkv, bf16 *stored, const int64_t *slots, const int64_t *positions,
            const bf16 *cos, const bf16 *sin, bf16 *y, long rows, long heads, long kv_heads, long size,
            long turned, long capacity, long window)
{
    const struct attention a = {qkv, stored, slots, positions, cos,    sin,      y,
                                rows, heads, kv_heads, size, turned, capacity, window};
    long seen = 0;
    for (long row = 0; row < rows; row++) seen += positions[row] + 1;
#pragma omp parallel if (seen * heads > WORTHWHILE)
    share_of_attention(&a);
}

/* --- element by element ---------------------------------------------------------------------- */

void rms_norm(const bf16 *x, const bf16 *weight, float eps, bf16 *y, long rows, long size)
{
    for (long row = 0; row < rows; row++, x += size, y += size) {
        __m512 squares = _mm512_setzero_ps();
        for (long i = 0; i < size; i += TILE)
            squares = _mm512_fmadd_ps(wide16(x + i), wide16(x + i), squares);
        const float mean = _mm512_reduce_add_ps(squares) / (float)size;
        const __m512 scale = _mm512_set1_ps(1.f / __builtin_sqrtf(mean + eps));
        for (long i = 0; i < size; i += TILE)
            narrow16(y + i, _mm512_mul_ps(_mm512_mul_ps(wide16(x + i), scale), wide16(weight + i)));
    }
}

/* silu(first half) · second half of each row; `size` numbers come out. */
void gated_silu(const bf16 *x, bf16 *y, long rows, long size)
{
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < size; i += TILE) {
            const __m512 gate = wide16(x + row * 2 * size + i), one = _mm512_set1_ps(1.f);
            const __m512 below = _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
            const __m512 up = wide16(x + row * 2 * size + size + i);
            narrow16(y + row * size + i, _mm512_mul_ps(_mm512_div_ps(gate, below), up));
        }
}

/* --- all blocks of a model of the LLaMA family ------------------------------------------------ */

struct block {
    const bf16 *attention_norm, *mlp_norm;
    struct matrix qkv, out, gate_up, down;
};

struct stack {
    const struct block *blocks;
    int64_t layers, width, inner;
    float eps;
};

/* x += y, each thread where it computed y itself. */
static void share_of_sum(bf16 *x, const bf16 *y, long rows, long size)
{
    const long part = omp_get_thread_num(), parts = omp_get_num_threads(), tiles = size / TILE;
    for (long row = 0; row < rows; row++)
        for (long i = tiles * part / parts * TILE; i < tiles * (part + 1) / parts * TILE; i += TILE) {
            bf16 *to = x + row * size + i;
            narrow16(to, _mm512_add_ps(wide16(to), wide16(y + row * size + i)));
        }
}

/* The residual stream x (rows, width) through all blocks: what the functions above do one by one,
   without ending and waking the threads between them. `scratch` has room for what is between. */
void through_blocks(const struct stack *s, bf16 *x, bf16 *const *stored, bf16 *scratch,
                    const int64_t *slots, const int64_t *positions, const bf16 *cos, const bf16 *sin,
                    long rows, long heads, long kv_heads, long size, long turned, long capacity)
{
    const long width = s->width, inner = s->inner;
    bf16 *normed = scratch, *qkv = normed + rows * width;
    bf16 *seen = qkv + rows * (heads + 2 * kv_heads) * size, *y = seen + rows * heads * size;
    bf16 *hidden = y + rows * width, *active = hidden + rows * 2 * inner;
#pragma omp parallel
    for (long layer = 0; layer < s->layers; layer++) {
        const struct block *b = s->blocks + layer;
        const struct attention a = {qkv,  stored[layer], slots,    positions, cos,    sin,      seen,
                                    rows, heads,         kv_heads, size,      turned, capacity, 0};
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++)
            rms_norm(x + row * width, b->attention_norm, s->eps, normed + row * width, 1, width);
        share_of_product(&b->qkv, normed, rows, qkv);
#pragma omp barrier
        share_of_attention(&a);
        share_of_product(&b->out, seen, rows, y);
        share_of_sum(x, y, rows, width);
#pragma omp barrier
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++)
            rms_norm(x + row * width, b->mlp_norm, s->eps, normed + row * width, 1, width);
        share_of_product(&b->gate_up, normed, rows, hidden);
#pragma omp barrier
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++)
            gated_silu(hidden + row * 2 * inner, active + row * inner, 1, inner);
        share_of_product(&b->down, active, rows, y);
        share_of_sum(x, y, rows, width);
#pragma omp barrier
    }
}
