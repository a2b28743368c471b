/* Products with 4-bit and 8-bit blocks, for `kernels.c`. */

#pragma once

#include "numbers.h"

enum { GROUP = 32, MOST_ROWS = 8, MOST_TILES = 4, MOST_TOGETHER = 64 };

/* Bytes of 16 outputs' numbers of one group. */
#define BLOCK(bits) (GROUP * TILE / 8 * (bits))

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

/* Up to MOST_TOGETHER rows and tiles `tile` to `end`: a few tiles for all rows, then the next, so that
   what rows beyond the first MOST_ROWS multiply lies in the cache. */
static void rows_together(const struct matrix *m, const bf16 *x, long rows, bf16 *y, long tile, long end)
{
    const long groups = m->inputs / GROUP;
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3F80);
    float x_sums[rows * groups];
    for (long i = 0; i < rows * groups; i++) {
        __m512bh group = (__m512bh)_mm512_loadu_si512(x + i * GROUP);
        x_sums[i] = _mm512_reduce_add_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), group, ones));
    }
    const long few = rows > MOST_ROWS ? MOST_TILES : end - tile;
    for (long stop; tile < end; tile = stop) {
        stop = tile + few < end ? tile + few : end;
        for (long row = 0; row < rows; row += MOST_ROWS) {
            const long some = rows - row < MOST_ROWS ? rows - row : MOST_ROWS;
            const struct product p = {m, x + row * m->inputs, x_sums + row * groups,
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
