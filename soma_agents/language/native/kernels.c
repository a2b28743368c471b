/* The arithmetic of a decoding step for x86-64 with AVX512-BF16 and AVX512-VNNI: bf16 numbers in and
   out, sums in fp32. Each row of a batch is computed the same whatever the other rows are. `__init__.py` says
   what the shapes are and checks them; `build.py` compiles this. */

#include "low_rank.h"
#include "product.h"

#include <cpuid.h>

int supported(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

/* Whether it multiplies tiles (AMX). */
int multiplies_tiles(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1;
}

/* --- attention ------------------------------------------------------------------------------- */

/* x · cos + (x, its halves exchanged) · sin over the first `turned` of `size` numbers. */
static void turn(bf16 *to, const bf16 *x, const bf16 *cos, const bf16 *sin, long turned, long size)
{
    const long half = turned / 2;
    long i = 0;
    for (; i + TILE <= half; i += TILE) {
        const __m512 low = wide16(x + i), high = wide16(x + half + i);
        __m512 first = _mm512_mul_ps(high, wide16(sin + i));
        __m512 second = _mm512_mul_ps(low, wide16(sin + half + i));
        narrow16(to + i, _mm512_fmadd_ps(low, wide16(cos + i), first));
        narrow16(to + half + i, _mm512_fmadd_ps(high, wide16(cos + half + i), second));
    }
    for (; i < half; i++) {
        const float low = wide(x[i]), high = wide(x[half + i]);
        to[i] = narrow(__builtin_fmaf(low, wide(cos[i]), high * wide(sin[i])));
        to[half + i] = narrow(__builtin_fmaf(high, wide(cos[half + i]), low * wide(sin[half + i])));
    }
    __builtin_memcpy(to + turned, x + turned, (size - turned) * sizeof(bf16));
}

/* Scores of a query with `count` keys become weights; returns one over their sum. */
static float weights_of(float *weights, const bf16 *query, const bf16 *keys, long count, long size,
                        float scale)
{
    __m512 most = _mm512_set1_ps(-__builtin_inff()), total = _mm512_setzero_ps();
    for (long j = 0; j < count; j += 16) {
        const __mmask16 real = count - j < 16 ? (1u << (count - j)) - 1 : 0xFFFF;
        const __m512 sums = dots(query, keys + j * size, count - j, size);
        const __m512 scores = _mm512_mul_ps(sums, _mm512_set1_ps(scale));
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
    bf16 query[size];
    float weights[count + TILE];
    turn(query, a->qkv + (row * (a->heads + 2 * a->kv_heads) + head) * size, cos, sin, a->turned, size);
    const float share = weights_of(weights, query, keys, count, size, 1.f / __builtin_sqrtf((float)size));
    for (long i = 0; i < size; i += 32)
        mix(a->y + (row * a->heads + head) * size + i, weights, share, values + i, count, size);
}

/* The calling thread's share of both, once all are stored: several rows may be of one slot. */
static void share_of_attention(const struct attention *a, struct meeting *all)
{
#pragma omp for schedule(static) nowait
    for (long task = 0; task < a->rows * a->kv_heads; task++)
        store(a, task / a->kv_heads, task % a->kv_heads);
    meet(all);
#pragma omp for schedule(static) nowait
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
    struct meeting all = {0, 0};
#pragma omp parallel if (seen * heads > WORTHWHILE)
    share_of_attention(&a, &all);
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

enum { QKV, OUT, GATE_UP, DOWN, SITES };

struct block {
    const bf16 *attention_norm, *mlp_norm;
    struct matrix products[SITES];
};

struct stack {
    const struct block *blocks;
    int64_t layers, width, inner;
    float eps;
};

/* A step's rows, and who corrects them. */
struct step {
    const struct stack *stack;
    const struct site *sites; /* as in `block` */
    struct corrections corrections;
    long rows;
    struct meeting *all;
};

/* The calling thread's share of a product and of its corrections. */
static void share_of_site(const struct step *s, long layer, long site, const bf16 *x, bf16 *y)
{
    const struct block *b = s->stack->blocks + layer;
    if (s->corrections.ranks) share_of_down(&s->corrections, s->sites + site, layer, x, s->rows);
    share_of_product(b->products + site, x, s->rows, y);
    if (s->corrections.ranks) {
        meet(s->all);
        share_of_up(&s->corrections, s->sites + site, layer, y, s->rows);
    }
}

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
   without ending and waking the threads between them. `scratch` has room for what is between;
   `adapters` correct the rows, with `ranks` at most, a multiple of TILE, 0 if there are none. */
void through_blocks(const struct stack *s, bf16 *x, bf16 *const *stored, bf16 *scratch,
                    const int64_t *slots, const int64_t *positions, const bf16 *cos, const bf16 *sin,
                    const struct adapter *const *adapters, long ranks, long rows, long heads,
                    long kv_heads, long size, long turned, long capacity)
{
    const long width = s->width, inner = s->inner, asking = heads * size, known = kv_heads * size;
    bf16 *normed = scratch, *qkv = normed + rows * width, *seen = qkv + rows * (asking + 2 * known);
    bf16 *y = seen + rows * asking, *hidden = y + rows * width;
    bf16 *active = hidden + rows * 2 * inner, *between = active + rows * inner;
    const struct site sites[] = {{width, asking + 2 * known, 0, 3, {asking, known, known}},
                                 {asking, width, 3, 1, {width}},
                                 {width, 2 * inner, 4, 2, {inner, inner}},
                                 {inner, width, 6, 1, {width}}};
    struct meeting all = {0, 0};
    const struct step step = {s, sites, {adapters, ranks, between}, rows, &all};
#pragma omp parallel
    for (long layer = 0; layer < s->layers; layer++) {
        const struct block *b = s->blocks + layer;
        const struct attention a = {qkv,  stored[layer], slots,    positions, cos,    sin,      seen,
                                    rows, heads,         kv_heads, size,      turned, capacity, 0};
#pragma omp for schedule(static) nowait
        for (long row = 0; row < rows; row++)
            rms_norm(x + row * width, b->attention_norm, s->eps, normed + row * width, 1, width);
        meet(&all);
        share_of_site(&step, layer, QKV, normed, qkv);
        meet(&all);
        share_of_attention(&a, &all);
        meet(&all);
        share_of_site(&step, layer, OUT, seen, y);
        share_of_sum(x, y, rows, width);
        meet(&all);
#pragma omp for schedule(static) nowait
        for (long row = 0; row < rows; row++)
            rms_norm(x + row * width, b->mlp_norm, s->eps, normed + row * width, 1, width);
        meet(&all);
        share_of_site(&step, layer, GATE_UP, normed, hidden);
        meet(&all);
#pragma omp for schedule(static) nowait
        for (long row = 0; row < rows; row++)
            gated_silu(hidden + row * 2 * inner, active + row * inner, 1, inner);
        meet(&all);
        share_of_site(&step, layer, DOWN, active, y);
        share_of_sum(x, y, rows, width);
        meet(&all);
    }
}
