/* bf16 numbers, LANES of them at once, and where the threads of a step meet. */

#pragma once

#include <immintrin.h>
#include <omp.h>
#include <sched.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define EACH _Pragma("GCC unroll 16")

/* Scores below which waking another core takes longer than the work. */
enum { WORTHWHILE = 4096 };
enum { TILE = 16, PATIENCE = 500 };

typedef uint16_t bf16;

#ifdef __AVX512BF16__
#include "avx512.h"
#else
#include "avx2.h"
#endif

enum { PARTS = TILE / LANES };

INLINE float wide(bf16 x)
{
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)x << 16)));
}

/* e to the x: 2 to the whole part by scaling, to the rest by its Taylor series, to 1e-7. */
INLINE floats exp_of(floats x)
{
    /* Beyond these it is 0 or infinite anyway. */
    x = larger(all(-170), smaller(all(100), x));
    floats power = times(x, all(1.44269504f));
    floats integer = nearest(power);
    floats rest = times(minus(power, integer), all(0.69314718f));
    static const float factors[] = {1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f};
    floats sum = all(1.f / 720);
    EACH for (int i = 0; i < 6; i++)
        sum = times_plus(sum, rest, all(factors[i]));
    return scaled(sum, integer);
}

/* x · each of TILE rows of as many numbers, a multiple of 32; from `count` on the last one again. */
INLINE void dots(floats to[PARTS], const bf16 *x, const bf16 *rows, long count, long size)
{
    EACH for (int part = 0; part < PARTS; part++)
    {
        floats sums[LANES];
        const bf16 *row[LANES];
        EACH for (long k = 0; k < LANES; k++) {
            const long at = part * LANES + k;
            sums[k] = all(0);
            row[k] = rows + (at < count ? at : count - 1) * size;
        }
        for (long i = 0; i < size; i += 2 * LANES) {
            const halves some = get_halves(x + i);
            EACH for (long k = 0; k < LANES; k++)
                sums[k] = plus_pairs(sums[k], get_halves(row[k] + i), some);
        }
        to[part] = sums_of(sums);
    }
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
