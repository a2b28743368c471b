/* Products for `kernels.c`. With 4-bit and 8-bit blocks a row of x is rounded to bytes, each group of 32
   numbers by its own range, and whole numbers are multiplied; bf16 matrices are multiplied as they are. */

#pragma once

#include "numbers.h"

/* AHEAD: bytes of weights between those multiplied and those fetched. As many sums and parts of sums as
   MOST_ROWS stay in registers. */
enum { GROUP = 32, MOST_ROWS = 8 / PARTS, MOST_TILES = 4, MOST_TOGETHER = 64, AHEAD = 8192 };

/* Numbers below it count as zero: 127 over them would be infinite. */
#define LEAST 1e-36f

/* Bytes of 16 outputs' numbers of one group. */
#define BLOCK(bits) (GROUP * TILE / 8 * (bits))

struct matrix {
    const uint8_t *packed; /* see `pack`; with 16 bits (tiles, pairs of inputs, 16 outputs, 2) of bf16 */
    const bf16 *scales;    /* (tiles, groups, 1 or 2, 16): scale, zero; none with 16 bits */
    int64_t bits, outputs, inputs;
    int64_t affine; /* whether there are zeros */
};

/* Rows of x in whole numbers: x = q · scale. */
struct rounded {
    int8_t *q;            /* (rows, inputs) */
    float *scales, *sums; /* (rows, groups); sums of the rounded numbers */
    int32_t *starts;      /* (rows, groups): what makes up for weights stored without a sign */
};

struct product {
    const struct matrix *m;
    const bf16 *x;         /* (rows, inputs) */
    struct rounded blocks; /* the same in whole numbers, for blocks */
    bf16 *y;               /* (rows, outputs) */
    long row;              /* the first that is computed together */
};

/* Whole numbers (outputs, inputs) → (tiles, groups, 8 fours of inputs, 16 outputs, 4), half of their
   range added, as bytes, or two neighbouring fours in the half bytes of one, where they are 0 … 15. */
void pack(const int8_t *q, long outputs, long inputs, long bits, uint8_t *packed)
{
    const long groups = inputs / GROUP, half = 1 << (bits - 1);
#pragma omp parallel for schedule(static)
    for (long block = 0; block < outputs / TILE * groups; block++) {
        const int8_t *from = q + block / groups * TILE * inputs + block % groups * GROUP;
        uint8_t *to = packed + block * BLOCK(bits);
        for (long i = 0; i < TILE * GROUP; i++) {
            const long four = i / 64, output = i % 64 / 4;
            const int value = from[output * inputs + four * 4 + i % 4] + half;
            if (bits == 8) to[i] = (uint8_t)value;
            else {
                uint8_t *byte = to + four / 2 * 64 + i % 64;
                *byte = (uint8_t)((four % 2 ? *byte : 0) | value << four % 2 * 4);
            }
        }
    }
}

/* The largest of 32 whole numbers without a sign. */
INLINE uint16_t largest(const uint16_t *x)
{
    __m128i few = _mm_setzero_si128();
    EACH for (int i = 0; i < GROUP; i += 8)
        few = _mm_max_epu16(few, _mm_and_si128(_mm_loadu_si128((const void *)(x + i)), _mm_set1_epi16(0x7FFF)));
    return (uint16_t)~_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(few, _mm_set1_epi16(-1))), 0);
}

/* `groups` of 32 numbers, rounded; `half` is what the weights they will meet have been raised by. bf16
   without their signs are ordered as whole numbers, NaN last: a group with one, or with an infinite number,
   gets such a scale, so that its products are no numbers either. */
static void to_bytes(const bf16 *x, long groups, uint32_t half, const struct rounded *to)
{
    for (long g = 0; g < groups; g++, x += GROUP) {
        const float most = wide(largest(x));
        const floats steps = all(most > LEAST ? 127.f / most : 0.f);
        whole lanes = nothing();
        EACH for (int i = 0; i < GROUP; i += LANES)
            lanes = to_whole(to->q + g * GROUP + i, times(widen(x + i), steps), lanes);
        const int32_t sum = total(lanes);
        to->scales[g] = most / 127.f;
        to->sums[g] = (float)sum * to->scales[g];
        to->starts[g] = (int32_t)(-half * (uint32_t)sum); /* wraps where x is no number */
    }
}

INLINE void put_outputs(const struct product *p, long tile, const floats *sum, const int R)
{
    EACH for (int i = 0; i < R * PARTS; i++)
        narrow(p->y + (p->row + i / PARTS) * p->m->outputs + tile * TILE + i % PARTS * LANES, sum[i]);
}

/* A tile of outputs for R rows. */
INLINE void block_outputs(const struct product *p, long tile, const int R, const int bits, const int affine)
{
    const long inputs = p->m->inputs, groups = inputs / GROUP, block = BLOCK(bits);
    floats sum[MOST_ROWS * PARTS];
    EACH for (int i = 0; i < R * PARTS; i++) sum[i] = all(0);
    for (long g = 0; g < groups; g++) {
        const uint8_t *from = p->m->packed + (tile * groups + g) * block;
        const bf16 *scales = p->m->scales + (tile * groups + g) * (1 + affine) * TILE;
        const int8_t *x = p->blocks.q + p->row * inputs + g * GROUP;
        const int32_t *starts = p->blocks.starts + p->row * groups + g;
        const float *steps = p->blocks.scales + p->row * groups + g, *totals = p->blocks.sums + p->row * groups + g;
        whole count[MOST_ROWS * PARTS];
        EACH for (int i = 0; i < R * PARTS; i++) count[i] = begun(starts[i / PARTS * groups]);
        EACH for (int four = 0; four < GROUP / 4; four++)
        {
            const uint8_t *line = from + (bits == 8 ? four : four / 2) * 64;
            whole w[PARTS];
            EACH for (int part = 0; part < PARTS; part++)
                w[part] = weights_at(line + part * LANES * 4, bits, four % 2);
            if (bits == 8 || four % 2) __builtin_prefetch(line + AHEAD, 0, 2);
            EACH for (int r = 0; r < R; r++)
            {
                const whole numbers = all_fours(x + r * inputs + four * 4);
                EACH for (int part = 0; part < PARTS; part++)
                    count[r * PARTS + part] = plus_fours(count[r * PARTS + part], w[part], numbers, bits);
            }
        }
        __builtin_prefetch(scales + AHEAD / 2 / (bits * 2), 0, 2);
        EACH for (int i = 0; i < R * PARTS; i++)
        {
            const long row = i / PARTS * groups;
            const bf16 *lanes = scales + i % PARTS * LANES;
            const floats step = times(widen(lanes), all(steps[row]));
            if (affine) sum[i] = times_plus(widen(lanes + TILE), all(totals[row]), sum[i]);
            sum[i] = times_plus(counted(count[i], starts[row], bits), step, sum[i]);
        }
    }
    put_outputs(p, tile, sum, R);
}

/* The same of a bf16 matrix. */
INLINE void dense_outputs(const struct product *p, long tile, const int R)
{
    const long inputs = p->m->inputs;
    const bf16 *from = (const bf16 *)p->m->packed + tile * TILE * inputs, *x = p->x + p->row * inputs;
    floats sum[MOST_ROWS * PARTS];
    EACH for (int i = 0; i < R * PARTS; i++) sum[i] = all(0);
    for (long i = 0; i < inputs; i += 2) {
        halves w[PARTS];
        EACH for (int part = 0; part < PARTS; part++) w[part] = get_halves(from + i * TILE + part * 2 * LANES);
        __builtin_prefetch((const char *)(from + i * TILE) + AHEAD, 0, 2);
        EACH for (int r = 0; r < R; r++)
        {
            const halves pair = all_pairs(x + r * inputs + i);
            EACH for (int part = 0; part < PARTS; part++)
                sum[r * PARTS + part] = plus_pairs(sum[r * PARTS + part], w[part], pair);
        }
    }
    put_outputs(p, tile, sum, R);
}

/* Tiles from `tile` to `end`. */
INLINE void some_outputs(const struct product *p, long rows, long tile, long end, const int bits,
                         const int affine)
{
#define WALK(R)                                               \
    case R:                                                   \
        for (; tile < end; tile++)                            \
            if (bits == 16) dense_outputs(p, tile, R);        \
            else block_outputs(p, tile, R, bits, affine);     \
        break;
    switch (rows) {
        WALK(1) WALK(2) WALK(3) WALK(4)
#ifdef __AVX512BF16__
        WALK(5) WALK(6) WALK(7) WALK(8)
#endif
    }
}

/* The same for each kind of matrix. */
static void outputs_by_kind(const struct product *p, long rows, long tile, long end)
{
    if (p->m->bits == 16) some_outputs(p, rows, tile, end, 16, 0);
    else if (p->m->bits == 4) some_outputs(p, rows, tile, end, 4, 1);
    else if (p->m->affine) some_outputs(p, rows, tile, end, 8, 1);
    else some_outputs(p, rows, tile, end, 8, 0);
}

/* Tiles from `tile` to `end` for all rows: a few tiles for all of them, then the next, so that what rows
   beyond the first MOST_ROWS multiply lies in the cache. */
static void outputs_of_rows(struct product *p, long rows, long tile, long end)
{
    const long few = rows > MOST_ROWS ? MOST_TILES : end - tile;
    for (long stop; tile < end; tile = stop) {
        stop = tile + few < end ? tile + few : end;
        for (p->row = 0; p->row < rows; p->row += MOST_ROWS)
            outputs_by_kind(p, rows - p->row < MOST_ROWS ? rows - p->row : MOST_ROWS, tile, stop);
    }
}

/* The same with x rounded first, up to MOST_TOGETHER rows. */
static void outputs_of_rounded(struct product *p, long rows, long tile, long end)
{
    const long inputs = p->m->inputs, groups = inputs / GROUP, bits = p->m->bits;
    int8_t q[rows * inputs];
    float scales[rows * groups], sums[rows * groups];
    int32_t starts[rows * groups];
    p->blocks = (struct rounded){q, scales, sums, starts};
    to_bytes(p->x, rows * groups, bits == 8 && BYTES_HAVE_SIGNS ? 0 : 1u << (bits - 1), &p->blocks);
    outputs_of_rows(p, rows, tile, end);
}

/* The calling thread's share of the outputs of a product. */
static void share_of_product(const struct matrix *m, const bf16 *x, long rows, bf16 *y)
{
    long tile, end;
    share_of_tiles(m->outputs, &tile, &end);
    for (long row = 0; row < rows; row += MOST_TOGETHER) {
        const long some = rows - row < MOST_TOGETHER ? rows - row : MOST_TOGETHER;
        struct product p = {.m = m, .x = x + row * m->inputs, .y = y + row * m->outputs};
        if (m->bits == 16) outputs_of_rows(&p, some, tile, end);
        else outputs_of_rounded(&p, some, tile, end);
    }
}

void product(const struct matrix *m, const bf16 *x, long rows, bf16 *y)
{
#pragma omp parallel
    share_of_product(m, x, rows, y);
}
