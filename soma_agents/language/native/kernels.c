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
enum { TILE = 16, GROUP = 32, PLANE = GROUP * TILE / 2, MOST_ROWS = 8 };

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

struct product {
    const bf16 *x;         /* (rows, inputs) */
    const float *x_sums;   /* (rows, groups) */
    const uint8_t *packed; /* (tiles, groups, planes, 256) */
    const bf16 *scales;    /* (tiles, groups, 2, 16): scale, then zero */
    bf16 *y;               /* (rows, outputs) */
    long inputs, outputs, planes;
};

/* (outputs, inputs) numbers below 16 → plane `plane` of (tiles, groups, planes, 4, 16 outputs, 2):
   four neighbouring pairs of inputs in the half bytes of a word. */
void pack(const uint8_t *q, long outputs, long inputs, long plane, long planes, uint16_t *packed)
{
    const long groups = inputs / GROUP;
#pragma omp parallel for schedule(static)
    for (long tile = 0; tile < outputs / TILE; tile++)
        for (long i = 0; i < groups * PLANE / 2; i++) {
            const long group = i / (PLANE / 2), word = i % (PLANE / 2), output = word % 32 / 2;
            const uint8_t *from = q + (tile * TILE + output) * inputs + group * GROUP +
                                  word / 32 * 8 + word % 2;
            packed[((tile * groups + group) * planes + plane) * (PLANE / 2) + word] =
                (uint16_t)(from[0] | from[2] << 4 | from[4] << 8 | from[6] << 12);
        }
}

/* What the sixteen values of a half byte stand for, twice: the fifth bit of an index is noise. */
INLINE __m512i meanings(int first, int step)
{
    bf16 table[32];
    for (int i = 0; i < 32; i++) {
        float value = (float)(first + step * (i & 15));
        uint32_t bits;
        __builtin_memcpy(&bits, &value, 4);
        table[i] = (bf16)(bits >> 16);
    }
    return _mm512_loadu_si512(table);
}

/* R rows from `row` on, T tiles of 16 outputs from `tile` on. */
INLINE void outputs_of(const struct product *p, long row, long tile, const int R, const int T)
{
    const long groups = p->inputs / GROUP;
    const __m512i table[2] = {p->planes == 1 ? meanings(-8, 1) : meanings(-128, 16), meanings(0, 1)};
    __m512 sum[8][4];
    EACH for (int r = 0; r < R; r++)
        EACH for (int t = 0; t < T; t++) sum[r][t] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++) {
        __m512 part[8][4];
        EACH for (int r = 0; r < R; r++)
            EACH for (int t = 0; t < T; t++) part[r][t] = _mm512_setzero_ps();
        for (long plane = 0; plane < p->planes; plane++)
            for (long eight = 0; eight < 4; eight++) {
                const bf16 *x = p->x + row * p->inputs + g * GROUP + eight * 8;
                EACH for (int t = 0; t < T; t++) {
                    long place = ((tile + t) * groups + g) * p->planes + plane;
                    __m512i four = _mm512_loadu_si512(p->packed + place * PLANE + eight * 64);
                    EACH for (int i = 0; i < 4; i++) {
                        __m512i w = _mm512_permutexvar_epi16(four, table[plane]);
                        four = _mm512_srli_epi16(four, 4);
                        EACH for (int r = 0; r < R; r++) {
                            int pair;
                            __builtin_memcpy(&pair, x + r * p->inputs + 2 * i, 4);
                            part[r][t] = _mm512_dpbf16_ps(part[r][t], (__m512bh)w,
                                                          (__m512bh)_mm512_set1_epi32(pair));
                        }
                    }
                }
            }
        EACH for (int t = 0; t < T; t++) {
            const bf16 *scales = p->scales + ((tile + t) * groups + g) * 2 * TILE;
            __m512 scale = wide16(scales), zero = wide16(scales + TILE);
            EACH for (int r = 0; r < R; r++) {
                __m512 x_sum = _mm512_set1_ps(p->x_sums[(row + r) * groups + g]);
                sum[r][t] = _mm512_fmadd_ps(part[r][t], scale, sum[r][t]);
                sum[r][t] = _mm512_fmadd_ps(zero, x_sum, sum[r][t]);
            }
        }
    }
    EACH for (int r = 0; r < R; r++)
        EACH for (int t = 0; t < T; t++)
            narrow16(p->y + (row + r) * p->outputs + (tile + t) * TILE, sum[r][t]);
}

/* As many rows and tiles at once as registers hold. */
static void some_outputs(const struct product *p, long rows, long row, long tile, long end)
{
#define WALK(R, T)                                                  \
    case R:                                                         \
        for (; tile + T <= end; tile += T) outputs_of(p, row, tile, R, T); \
        for (; tile < end; tile++) outputs_of(p, row, tile, R, 1);  \
        break;
    switch (rows) {
        WALK(1, 4) WALK(2, 4) WALK(3, 2) WALK(4, 2) WALK(5, 1) WALK(6, 1) WALK(7, 1) WALK(8, 1)
    }
}

void block_product(const bf16 *x, long rows, long inputs, const uint8_t *packed, const bf16 *scales,
                   long planes, long outputs, bf16 *y)
{
    const long groups = inputs / GROUP, tiles = outputs / TILE;
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3F80);
    for (long row = 0; row < rows; row += MOST_ROWS) {
        const long some = rows - row < MOST_ROWS ? rows - row : MOST_ROWS;
        const bf16 *from = x + row * inputs;
        float x_sums[some * groups];
        for (long i = 0; i < some * groups; i++) {
            __m512bh group = (__m512bh)_mm512_loadu_si512(from + i * GROUP);
            x_sums[i] = _mm512_reduce_add_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), group, ones));
        }
        const struct product p = {from,   x_sums,  packed, scales, y + row * outputs,
                                  inputs, outputs, planes};
#pragma omp parallel
        {
            const long part = omp_get_thread_num(), parts = omp_get_num_threads();
            some_outputs(&p, some, 0, tiles * part / parts, tiles * (part + 1) / parts);
        }
    }
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

/* Scores of a query with `count` keys become weights; returns one over their sum. */
static float weights_of(float *weights, const bf16 *query, const bf16 *keys, long count, long size,
                        float scale)
{
    float most = -__builtin_inff();
    for (long j = 0; j < count; j++) {
        __m512 sum = _mm512_setzero_ps();
        for (long i = 0; i < size; i += 32)
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(query + i),
                                   (__m512bh)_mm512_loadu_si512(keys + j * size + i));
        weights[j] = _mm512_reduce_add_ps(sum) * scale;
        most = weights[j] > most ? weights[j] : most;
    }
    __m512 total = _mm512_setzero_ps();
    for (long j = 0; j < count; j += 16) {
        __mmask16 real = count - j < 16 ? (1u << (count - j)) - 1 : 0xFFFF;
        __m512 score = _mm512_maskz_loadu_ps(real, weights + j);
        __m512 weight = exp16(_mm512_sub_ps(score, _mm512_set1_ps(most)));
        total = _mm512_mask_add_ps(total, real, total, weight);
        _mm512_mask_storeu_ps(weights + j, real, weight);
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

/* Turns queries and keys, stores keys and values at `positions`, and attends to all up to there. */
void attend(const bf16 *qkv, bf16 *stored, const int64_t *positions, const bf16 *cos, const bf16 *sin,
            bf16 *y, long rows, long heads, long kv_heads, long size, long turned, long capacity,
            long window)
{
    const long all = heads + 2 * kv_heads, row_size = 2 * kv_heads * capacity * size;
    const float scale = 1.f / __builtin_sqrtf((float)size);
    for (long row = 0; row < rows; row++)
        for (long k = 0; k < kv_heads; k++) {
            const bf16 *key = qkv + (row * all + heads + k) * size;
            bf16 *to = stored + row * row_size + (k * capacity + positions[row]) * size;
            turn(to, key, cos + row * turned, sin + row * turned, turned, size);
            __builtin_memcpy(to + kv_heads * capacity * size, key + kv_heads * size,
                             size * sizeof(bf16));
        }
    long seen = 0;
    for (long row = 0; row < rows; row++) seen += positions[row] + 1;
#pragma omp parallel for schedule(static) if (seen * heads > WORTHWHILE)
    for (long task = 0; task < rows * heads; task++) {
        const long row = task / heads, head = task % heads, last = positions[row];
        const long first = window && last >= window ? last - window + 1 : 0, count = last + 1 - first;
        const bf16 *keys = stored + row * row_size +
                           (head / (heads / kv_heads) * capacity + first) * size;
        const bf16 *values = keys + kv_heads * capacity * size;
        bf16 query[size + TILE];
        float weights[count + TILE];
        turn(query, qkv + (row * all + head) * size, cos + row * turned, sin + row * turned, turned,
             size);
        const float share = weights_of(weights, query, keys, count, size, scale);
        for (long i = 0; i < size; i += 32)
            mix(y + task * size + i, weights, share, values + i, count, size);
    }
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
