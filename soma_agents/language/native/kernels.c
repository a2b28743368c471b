/* The arithmetic of a decoding step for x86-64: bf16 numbers in and out, sums in fp32. Each row of a batch is computed the same whatever the other rows are. `__init__.py` says
   what the shapes are and checks them; `build.py` compiles this. */

#include "low_rank.h"
#include "product.h"

#include <cpuid.h>

int supported(void)
{
    __builtin_cpu_init();
    return runs_here();
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
    for (; i + LANES <= half; i += LANES) {
        const floats low = widen(x + i), high = widen(x + half + i);
        const floats first = times(high, widen(sin + i)), second = times(low, widen(sin + half + i));
        narrow(to + i, times_plus(low, widen(cos + i), first));
        narrow(to + half + i, times_plus(high, widen(cos + half + i), second));
    }
    for (; i < half; i++) {
        const float low = wide(x[i]), high = wide(x[half + i]);
        to[i] = narrow_one(__builtin_fmaf(low, wide(cos[i]), high * wide(sin[i])));
        to[half + i] = narrow_one(__builtin_fmaf(high, wide(cos[half + i]), low * wide(sin[half + i])));
    }
    __builtin_memcpy(to + turned, x + turned, (size - turned) * sizeof(bf16));
}

/* Heads that share keys looked at together; pieces of their values whose sums fit in registers, and the
   numbers of these. */
enum { MOST_HEADS = 3, PIECES = LANES / 8, WIDE = 2 * LANES * PIECES };

struct later {
    const bf16 *keys, *values;
};

/* Fetches what is looked at `later`, from number `i` to `end`. */
INLINE void fetch(const bf16 *later, long i, long end)
{
    for (; i < end; i += GROUP) __builtin_prefetch(later + i, 0, 2);
}

/* Scores of H queries with `count` keys become weights, `stride` apart, and none behind them; `shares` is
   one over their sums. Meanwhile the keys that are looked at `later` are fetched. */
INLINE void weights_of(bf16 *weights, float *shares, long stride, const bf16 *queries, const bf16 *keys,
                       long count, long size, const struct later *later, const int H)
{
    const floats scale = all(1.f / __builtin_sqrtf((float)size));
    floats most[MOST_HEADS];
    float scores[H * stride];
    EACH for (int h = 0; h < H; h++) most[h] = all(-__builtin_inff());
    for (long j = 0; j < count; j += TILE) {
        fetch(later->keys, j * size, (j + TILE) * size);
        EACH for (int h = 0; h < H; h++)
        {
            floats some[PARTS];
            dots(some, queries + h * size, keys + j * size, count - j, size);
            EACH for (int part = 0; part < PARTS; part++)
            {
                const floats seen = first_lanes(times(some[part], scale), count - j - part * LANES);
                most[h] = larger(most[h], seen);
                put(scores + h * stride + j + part * LANES, seen);
            }
        }
    }
    EACH for (int h = 0; h < H; h++)
    {
        const floats top = all(largest_of(most[h]));
        floats total = all(0);
        for (long j = h * stride; j < h * stride + count; j += LANES) {
            narrow(weights + j, exp_of(minus(get(scores + j), top)));
            total = plus(total, widen(weights + j));
        }
        shares[h] = 1.f / sum_of(total);
    }
}

/* 2 · LANES · W numbers of H weighted sums of values, `size` apart, two of them at once; the values that
   are looked at `later` are fetched. */
INLINE void mix(bf16 *to, const bf16 *weights, const float *shares, long stride, const bf16 *values,
                long count, long size, const bf16 *later, const int W, const int H)
{
    floats some[PIECES * MOST_HEADS], others[PIECES * MOST_HEADS];
    EACH for (int i = 0; i < W * H; i++) some[i] = others[i] = all(0);
    for (long j = 0; j < count; j += 2) {
        const bf16 *value = values + j * size, *second = j + 1 < count ? value + size : value;
        EACH for (int w = 0; w < W; w++)
        {
            const long at = w * 2 * LANES;
            const halves one = get_halves(value + at), other = get_halves(second + at);
            const halves pairs = some_pairs(one, other), rest = other_pairs(one, other);
            if (at % GROUP == 0) {
                __builtin_prefetch(later + j * size + at, 0, 2);
                __builtin_prefetch(later + (j + 1) * size + at, 0, 2);
            }
            EACH for (int h = 0; h < H; h++)
            {
                const halves both = all_pairs(weights + h * stride + j);
                some[h * W + w] = plus_pairs(some[h * W + w], pairs, both);
                others[h * W + w] = plus_pairs(others[h * W + w], rest, both);
            }
        }
    }
    EACH for (int h = 0; h < H; h++) EACH for (int w = 0; w < W; w++)
    {
        const floats share = all(shares[h]), low = times(some[h * W + w], share);
        put_columns(to + h * size + w * 2 * LANES, low, times(others[h * W + w], share));
    }
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

/* The first token that a row sees. */
INLINE long first_of(const struct attention *a, long row)
{
    const long last = a->positions[row];
    return a->window && last >= a->window ? last - a->window + 1 : 0;
}

/* The keys that a row's head sees, from the first on. */
INLINE const bf16 *keys_of(const struct attention *a, long row, long head)
{
    const long shared = a->slots[row] * 2 * a->kv_heads + head / (a->heads / a->kv_heads);
    return a->stored + (shared * a->capacity + first_of(a, row)) * a->size;
}

/* Turns a row's queries of H heads that share their keys and attends to all up to where the row stands. */
INLINE void look(const struct attention *a, long row, long head, const struct later *later, const int H)
{
    const long size = a->size, count = a->positions[row] + 1 - first_of(a, row), stride = count + TILE;
    const bf16 *keys = keys_of(a, row, head), *values = keys + a->kv_heads * a->capacity * size;
    const bf16 *cos = a->cos + row * a->turned, *sin = a->sin + row * a->turned;
    const bf16 *asking = a->qkv + (row * (a->heads + 2 * a->kv_heads) + head) * size;
    bf16 queries[H * size], weights[H * stride];
    float shares[H];
    for (int h = 0; h < H; h++) turn(queries + h * size, asking + h * size, cos, sin, a->turned, size);
    weights_of(weights, shares, stride, queries, keys, count, size, later, H);
    bf16 *to = a->y + (row * a->heads + head) * size;
    long i = 0;
    for (; i + WIDE <= size; i += WIDE)
        mix(to + i, weights, shares, stride, values + i, count, size, later->values + i, PIECES, H);
    for (; i < size; i += WIDE / 2)
        mix(to + i, weights, shares, stride, values + i, count, size, later->values + i, 1, H);
}

/* All of one task: `heads` heads of a row that share their keys. */
static void look_together(const struct attention *a, long task, long heads)
{
    const long tasks = a->heads / heads, next = task + 1 < a->rows * tasks ? task + 1 : task;
    const bf16 *keys = keys_of(a, next / tasks, next % tasks * heads);
    const struct later later = {keys, keys + a->kv_heads * a->capacity * a->size};
    const long row = task / tasks, begin = task % tasks * heads, end = begin + heads;
    for (long head = begin; head < end;) switch (end - head) {
            case 1: look(a, row, head, &later, 1), head += 1; break;
            case 2: look(a, row, head, &later, 2), head += 2; break;
            default: look(a, row, head, &later, MOST_HEADS), head += MOST_HEADS;
        }
}

/* The calling thread's share of both, once all are stored: several rows may be of one slot. */
static void share_of_attention(const struct attention *a, struct meeting *everyone)
{
#pragma omp for schedule(static) nowait
    for (long task = 0; task < a->rows * a->kv_heads; task++)
        store(a, task / a->kv_heads, task % a->kv_heads);
    meet(everyone);
    /* Heads that share keys read them together; of one row all threads need some. */
    const long together = a->rows > 1 ? a->heads / a->kv_heads : 1, tasks = a->heads / together;
#pragma omp for schedule(static) nowait
    for (long task = 0; task < a->rows * tasks; task++)
        look_together(a, task, together);
}

void attend(const bf16 *qkv, bf16 *stored, const int64_t *slots, const int64_t *positions,
            const bf16 *cos, const bf16 *sin, bf16 *y, long rows, long heads, long kv_heads, long size,
            long turned, long capacity, long window)
{
    const struct attention a = {qkv, stored, slots, positions, cos,    sin,      y,
                                rows, heads, kv_heads, size, turned, capacity, window};
    long seen = 0;
    for (long row = 0; row < rows; row++) seen += positions[row] + 1;
    struct meeting everyone = {0, 0};
#pragma omp parallel if (seen * heads > WORTHWHILE)
    share_of_attention(&a, &everyone);
}

/* --- element by element ---------------------------------------------------------------------- */

void rms_norm(const bf16 *x, const bf16 *weight, float eps, bf16 *y, long rows, long size)
{
    for (long row = 0; row < rows; row++, x += size, y += size) {
        floats squares = all(0);
        for (long i = 0; i < size; i += LANES) squares = times_plus(widen(x + i), widen(x + i), squares);
        const float mean = sum_of(squares) / (float)size;
        const floats scale = all(1.f / __builtin_sqrtf(mean + eps));
        for (long i = 0; i < size; i += LANES)
            narrow(y + i, times(times(widen(x + i), scale), widen(weight + i)));
    }
}

/* silu(first half) · second half of each row; `size` numbers come out. */
void gated_silu(const bf16 *x, bf16 *y, long rows, long size)
{
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < size; i += LANES) {
            const floats gate = widen(x + row * 2 * size + i), up = widen(x + row * 2 * size + size + i);
            const floats below = plus(all(1), exp_of(minus(all(0), gate)));
            narrow(y + row * size + i, times(over(gate, below), up));
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
        for (long i = tiles * part / parts * TILE; i < tiles * (part + 1) / parts * TILE; i += LANES) {
            bf16 *to = x + row * size + i;
            narrow(to, plus(widen(to), widen(y + row * size + i)));
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
    struct meeting everyone = {0, 0};
    const struct step step = {s, sites, {adapters, ranks, between}, rows, &everyone};
#pragma omp parallel
    for (long layer = 0; layer < s->layers; layer++) {
        const struct block *b = s->blocks + layer;
        const struct attention a = {qkv,  stored[layer], slots,    positions, cos,    sin,      seen,
                                    rows, heads,         kv_heads, size,      turned, capacity, 0};
#pragma omp for schedule(static) nowait
        for (long row = 0; row < rows; row++)
            rms_norm(x + row * width, b->attention_norm, s->eps, normed + row * width, 1, width);
        meet(&everyone);
        share_of_site(&step, layer, QKV, normed, qkv);
        meet(&everyone);
        share_of_attention(&a, &everyone);
        meet(&everyone);
        share_of_site(&step, layer, OUT, seen, y);
        share_of_sum(x, y, rows, width);
        meet(&everyone);
#pragma omp for schedule(static) nowait
        for (long row = 0; row < rows; row++)
            rms_norm(x + row * width, b->mlp_norm, s->eps, normed + row * width, 1, width);
        meet(&everyone);
        share_of_site(&step, layer, GATE_UP, normed, hidden);
        meet(&everyone);
#pragma omp for schedule(static) nowait
        for (long row = 0; row < rows; row++)
            gated_silu(hidden + row * 2 * inner, active + row * inner, 1, inner);
        meet(&everyone);
        share_of_site(&step, layer, DOWN, active, y);
        share_of_sum(x, y, rows, width);
        meet(&everyone);
    }
}
