/* Products with 4-bit and 8-bit blocks, for `kernels.c`: a row of x is rounded to bytes, each group of
   32 numbers by its own range, and whole numbers are multiplied. */

#pragma once

#include "numbers.h"

/* AHEAD: bytes of weights between those multiplied and those fetched. As many sums and parts of sums as
   MOST_ROWS stay in registers. */
enum { GROUP = 32, MOST_ROWS = 8, MOST_TILES = 4, MOST_TOGETHER = 64, AHEAD = 8192 };

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
INLINE uint16_t largest(__m512i x)
{
    const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    const __m128i few = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return (uint16_t)~_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(few, _mm_set1_epi16(-1))), 0);
}

/* `groups` of 32 numbers, rounded; `half` of the range of the weights they will meet. bf16 without their
   signs are ordered as whole numbers, NaN last: a group with one, or with an infinite number, gets such a
   scale, so that its products are no numbers either. */
static void to_bytes(const bf16 *x, long groups, uint32_t half, const struct rounded *to)
{
    for (long g = 0; g < groups; g++, x += GROUP) {
        const __m512i sizes = _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi16(0x7FFF));
        const float most = wide(largest(sizes));
        const __m512 steps = _mm512_set1_ps(most > LEAST ? 127.f / most : 0.f);
        const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(wide16(x), steps));
        const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(wide16(x + 16), steps));
        const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
        __m128i *q = (void *)(to->q + g * GROUP);
        _mm_storeu_si128(q, _mm512_cvtsepi32_epi8(first));
        _mm_storeu_si128(q + 1, _mm512_cvtsepi32_epi8(second));
        to->scales[g] = most / 127.f;
        to->sums[g] = (float)sum * to->scales[g];
        to->starts[g] = (int32_t)(-half * (uint32_t)sum); /* wraps where x is no number */
    }
}

/* A tile of 16 outputs for all rows, R of them. */
INLINE void outputs_of(const struct product *p, long tile, const int R, const int bits, const int affine)
{
    const long inputs = p->m->inputs, groups = inputs / GROUP, block = BLOCK(bits);
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512 sum[MOST_ROWS];
    EACH for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++) {
        const uint8_t *from = p->m->packed + (tile * groups + g) * block;
        const bf16 *scales = p->m->scales + (tile * groups + g) * (1 + affine) * TILE;
        const int8_t *x = p->x.q + g * GROUP;
        __m512i part[MOST_ROWS];
        EACH for (int r = 0; r < R; r++) part[r] = _mm512_set1_epi32(p->x.starts[r * groups + g]);
        EACH for (int four = 0; four < GROUP / 4; four++)
        {
            const uint8_t *line = from + (bits == 8 ? four : four / 2) * 64;
            __m512i w = _mm512_loadu_si512(line);
            if (bits == 8 || four % 2) __builtin_prefetch(line + AHEAD, 0, 2);
            if (bits == 4) w = _mm512_and_si512(four % 2 ? _mm512_srli_epi16(w, 4) : w, low_half);
            EACH for (int r = 0; r < R; r++)
            {
                int numbers;
                __builtin_memcpy(&numbers, x + r * inputs + four * 4, 4);
                part[r] = _mm512_dpbusd_epi32(part[r], w, _mm512_set1_epi32(numbers));
            }
        }
        __builtin_prefetch(scales + AHEAD / 2 / (bits * 2), 0, 2);
        const __m512 scale = wide16(scales), zero = affine ? wide16(scales + TILE) : scale;
        EACH for (int r = 0; r < R; r++)
        {
            const __m512 steps = _mm512_mul_ps(scale, _mm512_set1_ps(p->x.scales[r * groups + g]));
            if (affine) sum[r] = _mm512_fmadd_ps(zero, _mm512_set1_ps(p->x.sums[r * groups + g]), sum[r]);
            sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r]), steps, sum[r]);
        }
    }
    EACH for (int r = 0; r < R; r++) narrow16(p->y + r * p->m->outputs + tile * TILE, sum[r]);
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
        WALK(1) WALK(2) WALK(3) WALK(4) WALK(5) WALK(6) WALK(7) WALK(8)
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
    const struct rounded all = {q, scales, sums, starts};
    to_bytes(x, rows * groups, 1u << (m->bits - 1), &all);
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
