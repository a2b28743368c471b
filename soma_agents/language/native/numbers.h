/* bf16 numbers, sixteen of them at once, and where the threads of a step meet. */

#pragma once

#include <immintrin.h>
#include <omp.h>
#include <sched.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define EACH _Pragma("GCC unroll 8")

/* Scores below which waking another core takes longer than the work. */
enum { WORTHWHILE = 4096 };
enum { TILE = 16, PATIENCE = 500 };

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

INLINE bf16 narrow(float x)
{
    return (bf16)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(x)), 0);
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

/* x · each of 16 rows of as many numbers, a multiple of 32; from `count` on the last one again. */
INLINE __m512 dots(const bf16 *x, const bf16 *rows, long count, long size)
{
    __m512 sums[16];
    const bf16 *row[16];
    _Pragma("GCC unroll 16") for (long k = 0; k < 16; k++) {
        sums[k] = _mm512_setzero_ps();
        row[k] = rows + (k < count ? k : count - 1) * size;
    }
    for (long i = 0; i < size; i += 32) {
        const __m512bh some = (__m512bh)_mm512_loadu_si512(x + i);
        _Pragma("GCC unroll 16") for (long k = 0; k < 16; k++)
            sums[k] = _mm512_dpbf16_ps(sums[k], some, (__m512bh)_mm512_loadu_si512(row[k] + i));
    }
    return sums_of(sums);
}

/* The calling thread's share of a product's outputs, in tiles. */
INLINE void share_of_tiles(long outputs, long *tile, long *end)
{
    const long part = omp_get_thread_num(), parts = omp_get_num_threads(), tiles = outputs / TILE;
    *tile = tiles * part / parts, *end = tiles * (part + 1) / parts;
}

/* Where the threads of a step wait for each other. OpenMP's own barrier puts them to sleep at once
   where a process has more threads than cores, and waking takes longer than the work between. */
struct meeting {
    long arrived, round;
};

static void meet(struct meeting *m)
{
    const long round = __atomic_load_n(&m->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&m->arrived, 1, __ATOMIC_ACQ_REL) == omp_get_num_threads()) {
        __atomic_store_n(&m->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&m->round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (long turns = 0; __atomic_load_n(&m->round, __ATOMIC_ACQUIRE) == round; turns++)
        if (turns < PATIENCE) _mm_pause();
        else sched_yield(); /* the other may need this core */
}
