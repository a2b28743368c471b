/* Products with 4-bit and 8-bit blocks, for `kernels.c`: a row of x is rounded to bytes, each group of
   32 numbers by its own range, and whole numbers are multiplied. */

#pragma once

#include "numbers.h"

enum { GROUP = 32, MOST_ROWS = 8, ABREAST = 2, MOST_TILES = 4, MOST_TOGETHER = 64 };

/* Has the compiler hold an array in memory. */
#define KEEP(array) __asm__ volatile("" : : "r"(array) : "memory")

/* Numbers below it count as zero: 127 over them would be infinite. */
#define LEAST 1e-36f

/* Bytes of 16 outputs' numbers of one group. */
#define BLOCK(bits) (GROUP * TILE / 8 * (bits))

struct matrix {
    const uint8_t *packed; /* see `pack` */
    const bf16 *scales;    /* (tiles, groups, 2 or 3, 16): scale, sum of the packed numbers (int16), zero */
    int64_t bits, outputs, inputs;
    int64_t affine; /* whether there are zeros */
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

/* T tiles of 16 outputs for all rows, R of them. The sums stay in memory: registers are for the parts. */
INLINE void outputs_of(const struct product *p, long tile, const int T, const int R, const int bits,
                       const int affine)
{
    const long inputs = p->m->inputs, groups = inputs / GROUP, block = BLOCK(bits);
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512 sum[ABREAST * MOST_ROWS];
    for (int i = 0; i < T * R; i++) sum[i] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++) {
        const uint8_t *from = p->m->packed + (tile * groups + g) * block;
        const int8_t *x = p->x.q + g * GROUP;
        __m512i part[ABREAST * MOST_ROWS];
        EACH for (int r = 0; r < R; r++) EACH for (int t = 0; t < T; t++)
            part[r * T + t] = _mm512_set1_epi32(p->x.starts[r * groups + g]);
        EACH for (int four = 0; four < GROUP / 4; four++)
        {
            __m512i w[ABREAST];
            EACH for (int t = 0; t < T; t++)
            {
                const uint8_t *line = from + t * groups * block + (bits == 8 ? four : four / 2) * 64;
                w[t] = _mm512_loadu_si512(line);
                if (bits == 8 || four % 2) __builtin_prefetch(line + T * groups * block, 0, 2);
                if (bits == 4)
                    w[t] = _mm512_and_si512(four % 2 ? _mm512_srli_epi16(w[t], 4) : w[t], low_half);
            }
            EACH for (int r = 0; r < R; r++)
            {
                int numbers;
                __builtin_memcpy(&numbers, x + r * inputs + four * 4, 4);
                const __m512i some = _mm512_set1_epi32(numbers);
                EACH for (int t = 0; t < T; t++)
                    part[r * T + t] = _mm512_dpbusd_epi32(part[r * T + t], w[t], some);
            }
        }
        EACH for (int t = 0; t < T; t++)
        {
            const bf16 *scales = p->m->scales + ((tile + t) * groups + g) * (2 + affine) * TILE;
            const bf16 *later = scales + T * groups * (2 + affine) * TILE;
            __builtin_prefetch(later, 0, 2), __builtin_prefetch(later + 2 * TILE, 0, 2);
            const __m512 scale = wide16(scales);
            const __m512i total = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(scales + TILE)));
            EACH for (int r = 0; r < R; r++)
            {
                const __m512 steps = _mm512_mul_ps(scale, _mm512_set1_ps(p->x.scales[r * groups + g]));
                const __m512i middle = _mm512_set1_epi32(p->x.middles[r * groups + g]);
                const __m512i whole = _mm512_dpwssd_epi32(part[r * T + t], total, middle);
                __m512 more = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), steps, sum[r * T + t]);
                if (affine)
                    more = _mm512_fmadd_ps(wide16(scales + 2 * TILE),
                                           _mm512_set1_ps(p->x.sums[r * groups + g]), more);
                sum[r * T + t] = more;
            }
        }
        KEEP(sum);
    }
    EACH for (int r = 0; r < R; r++) EACH for (int t = 0; t < T; t++)
        narrow16(p->y + r * p->m->outputs + (tile + t) * TILE, sum[r * T + t]);
}

/* Tiles from `tile` to `end`. */
INLINE void some_outputs(const struct product *p, long rows, long tile, long end, const int bits,
                         const int affine)
{
#define WALK(R)                                                           \
    case R:                                                               \
        for (; tile + ABREAST <= end; tile += ABREAST)                    \
            outputs_of(p, tile, ABREAST, R, bits, affine);          \
        if (tile < end) outputs_of(p, tile, 1, R, bits, affine);    \
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
