/* Products with 4-bit and 8-bit blocks, for `kernels.c`: a row of x is rounded to bytes, each group of
   32 numbers by its own range, and whole numbers are multiplied. */

#pragma once

#include "numbers.h"

enum { GROUP = 32, MOST_ROWS = 8, MOST_TILES = 4, MOST_TOGETHER = 64 };

/* Numbers below it count as zero: 127 over them would be infinite. */
#define LEAST 1e-36f

/* Bytes of 16 outputs' numbers of one group. */
#define BLOCK(bits) (GROUP * TILE / 8 * (bits))

struct matrix {
    const uint8_t *packed; /* see `pack` */
    const bf16 *scales;    /* (tiles, groups, 2, 16): scale, then zero */
    int64_t bits, outputs, inputs;
};

/* Rows of x in whole numbers: x = (q + middle) · scale. */
struct rounded {
    int8_t *q;            /* (rows, inputs) */
    float *scales, *sums; /* (rows, groups); sums of the rounded numbers */
    int32_t *middles;     /* (rows, groups), in 16 bits */
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

/* The range of 32 numbers and zero: bf16 are ordered as whole numbers, those below zero backwards and
   behind the others, NaN outermost. */
INLINE void range_of(const bf16 *x, float *low, float *high)
{
    const __m512i all = _mm512_loadu_si512(x);
    const uint16_t last = largest(all);
    *low = last >> 15 ? wide(last) : 0.f;
    *high = wide(largest(_mm512_max_epi16(all, _mm512_setzero_si512())));
}

/* `groups` of 32 numbers, rounded; `half` of the range of the weights they will meet. A group with an
   infinite number or NaN gets such a scale, so that its products are no numbers either. */
static void to_bytes(const bf16 *x, long groups, uint32_t half, const struct rounded *to)
{
    for (long g = 0; g < groups; g++, x += GROUP) {
        float low, high;
        range_of(x, &low, &high);
        /* 254, so that both ends, rounded, are 255 apart at most. */
        const float scale = (high - low) / 254.f, steps = high - low > LEAST ? 254.f / (high - low) : 0.f;
        const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(wide16(x), _mm512_set1_ps(steps)));
        const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(wide16(x + 16), _mm512_set1_ps(steps)));
        const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
        const int middle = 128 + _mm_cvtss_si32(_mm_set_ss(low * steps));
        const __m512i back = _mm512_set1_epi32(middle);
        __m128i *q = (void *)(to->q + g * GROUP);
        _mm_storeu_si128(q, _mm512_cvtsepi32_epi8(_mm512_sub_epi32(first, back)));
        _mm_storeu_si128(q + 1, _mm512_cvtsepi32_epi8(_mm512_sub_epi32(second, back)));
        to->scales[g] = scale;
        to->sums[g] = (float)sum * scale;
        to->middles[g] = middle & 0xFFFF;
        to->starts[g] = (int32_t)(-half * (uint32_t)sum);
    }
}

/* One tile of 16 outputs for all rows, R of them. */
INLINE void outputs_of(const struct product *p, long tile, const int R, const int bits)
{
    const long groups = p->m->inputs / GROUP;
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512 sum[MOST_ROWS];
    EACH for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++) {
        const uint8_t *from = p->m->packed + (tile * groups + g) * BLOCK(bits);
        const int8_t *x = p->x.q + g * GROUP;
        __m512i part[MOST_ROWS], total = _mm512_setzero_si512();
        EACH for (int r = 0; r < R; r++) part[r] = _mm512_set1_epi32(p->x.starts[r * groups + g]);
        EACH for (int four = 0; four < 8; four++) {
            __m512i w = _mm512_loadu_si512(from + (bits == 8 ? four : four / 2) * 64);
            if (bits == 4) w = _mm512_and_si512(four % 2 ? _mm512_srli_epi16(w, 4) : w, low_half);
            total = _mm512_dpbusd_epi32(total, w, _mm512_set1_epi8(1));
            EACH for (int r = 0; r < R; r++) {
                int numbers;
                __builtin_memcpy(&numbers, x + r * p->m->inputs + four * 4, 4);
                part[r] = _mm512_dpbusd_epi32(part[r], w, _mm512_set1_epi32(numbers));
            }
        }
        const bf16 *scales = p->m->scales + (tile * groups + g) * 2 * TILE;
        const __m512 scale = wide16(scales), zero = wide16(scales + TILE);
        EACH for (int r = 0; r < R; r++) {
            const __m512 steps = _mm512_mul_ps(scale, _mm512_set1_ps(p->x.scales[r * groups + g]));
            const __m512 x_sum = _mm512_set1_ps(p->x.sums[r * groups + g]);
            const __m512i middle = _mm512_set1_epi32(p->x.middles[r * groups + g]);
            part[r] = _mm512_dpwssd_epi32(part[r], total, middle);
            sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r]), steps, sum[r]);
            sum[r] = _mm512_fmadd_ps(zero, x_sum, sum[r]);
        }
    }
    EACH for (int r = 0; r < R; r++) narrow16(p->y + r * p->m->outputs + tile * TILE, sum[r]);
}

/* Tiles from `tile` to `end`. */
INLINE void some_outputs(const struct product *p, long rows, long tile, long end, const int bits)
{
#define WALK(R)                                                   \
    case R:                                                       \
        for (; tile < end; tile++) outputs_of(p, tile, R, bits); \
        break;
    switch (rows) {
        WALK(1) WALK(2) WALK(3) WALK(4) WALK(5) WALK(6) WALK(7) WALK(8)
    }
}

/* Up to MOST_TOGETHER rows and tiles `tile` to `end`: a few tiles for all rows, then the next, so that
   what rows beyond the first MOST_ROWS multiply lies in the cache. */
static void rows_together(const struct matrix *m, const bf16 *x, long rows, bf16 *y, long tile, long end)
{
    const long groups = m->inputs / GROUP;
    int8_t q[rows * m->inputs];
    float scales[rows * groups], sums[rows * groups];
    int32_t middles[rows * groups], starts[rows * groups];
    const struct rounded all = {q, scales, sums, middles, starts};
    to_bytes(x, rows * groups, 1u << (m->bits - 1), &all);
    const long few = rows > MOST_ROWS ? MOST_TILES : end - tile;
    for (long stop; tile < end; tile = stop) {
        stop = tile + few < end ? tile + few : end;
        for (long row = 0; row < rows; row += MOST_ROWS) {
            const long some = rows - row < MOST_ROWS ? rows - row : MOST_ROWS, at = row * groups;
            const struct product p = {
                m,
                {q + row * m->inputs, scales + at, sums + at, middles + at, starts + at},
                y + row * m->outputs};
            if (m->bits == 8) some_outputs(&p, some, tile, stop, 8);
            else some_outputs(&p, some, tile, stop, 4);
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
