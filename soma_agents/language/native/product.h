/* Products with 4-bit and 8-bit blocks, for `kernels.c`: a row of x is rounded to bytes, each group of
   32 numbers by its own range, and whole numbers are multiplied. */

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
    const uint8_t *packed; /* see `pack` */
    const bf16 *scales;    /* (tiles, groups, 1 or 2, 16): scale, zero */
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
    struct rounded x;
    bf16 *y; /* (rows, outputs) */
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

/* A tile of outputs for all rows, R of them. */
INLINE void outputs_of(const struct product *p, long tile, const int R, const int bits, const int affine)
{
    const long inputs = p->m->inputs, groups = inputs / GROUP, block = BLOCK(bits);
    floats sum[MOST_ROWS * PARTS];
    EACH for (int i = 0; i < R * PARTS; i++) sum[i] = all(0);
    for (long g = 0; g < groups; g++) {
        const uint8_t *from = p->m->packed + (tile * groups + g) * block;
        const bf16 *scales = p->m->scales + (tile * groups + g) * (1 + affine) * TILE;
        const int8_t *x = p->x.q + g * GROUP;
        const int32_t *starts = p->x.starts + g;
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
            const long row = i / PARTS * groups + g;
            const bf16 *lanes = scales + i % PARTS * LANES;
            const floats steps = times(widen(lanes), all(p->x.scales[row]));
            if (affine) sum[i] = times_plus(widen(lanes + TILE), all(p->x.sums[row]), sum[i]);
            sum[i] = times_plus(counted(count[i], starts[row - g], bits), steps, sum[i]);
        }
    }
    EACH for (int i = 0; i < R * PARTS; i++)
        narrow(p->y + i / PARTS * p->m->outputs + tile * TILE + i % PARTS * LANES, sum[i]);
}

/* Tiles from `tile` to `end`. */
INLINE void some_outputs(const struct product *p, long rows, long tile, long end, const int bits,
                         const int affine)
{
#define WALK(R)                                                          \
    case R:                                                              \
        for (; tile < end; tile++) outputs_of(p, tile, R, bits, affine); \
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
    if (p->m->bits == 4) some_outputs(p, rows, tile, end, 4, 1);
    else if (p->m->affine) some_outputs(p, rows, tile, end, 8, 1);
    else some_outputs(p, rows, tile, end, 8, 0);
}

/* Up to MOST_TOGETHER rows and tiles `tile` to `end`: a few tiles for all rows, then the next, so that
   what rows beyond the first MOST_ROWS multiply lies in the cache. */
static void rows_together(const struct matrix *m, const bf16 *x, long rows, bf16 *y, long tile, long end)
{
    const long groups = m->inputs / GROUP;
    int8_t q[rows * m->inputs];
    float scales[rows * groups], sums[rows * groups];
    int32_t starts[rows * groups];
    const struct rounded every = {q, scales, sums, starts};
    to_bytes(x, rows * groups, m->bits == 8 && BYTES_HAVE_SIGNS ? 0 : 1u << (m->bits - 1), &every);
    const long few = rows > MOST_ROWS ? MOST_TILES : end - tile;
    for (long stop; tile < end; tile = stop) {
        stop = tile + few < end ? tile + few : end;
        for (long row = 0; row < rows; row += MOST_ROWS) {
            const long some = rows - row < MOST_ROWS ? rows - row : MOST_ROWS, at = row * groups;
            const struct product p = {
                m,
                {q + row * m->inputs, scales + at, sums + at, starts + at},
                y + row * m->outputs};
            outputs_by_kind(&p, some, tile, stop);
        }
    }
}

/* The calling thread's share of the outputs of a product. */
static void share_of_product(const struct matrix *m, const bf16 *x, long rows, bf16 *y)
{
    long tile, end;
    share_of_tiles(m->outputs, &tile, &end);
    for (long row = 0; row < rows; row += MOST_TOGETHER)
        rows_together(m, x + row * m->inputs, rows - row < MOST_TOGETHER ? rows - row : MOST_TOGETHER,
                      y + row * m->outputs, tile, end);
}

void block_product(const struct matrix *m, const bf16 *x, long rows, bf16 *y)
{
#pragma omp parallel
    share_of_product(m, x, rows, y);
}
