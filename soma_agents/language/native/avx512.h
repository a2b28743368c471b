/* Sixteen numbers at once, for processors with AVX512-BF16 and AVX512-VNNI. `avx2.h` has the same names. */

#pragma once

#include <immintrin.h>

enum { LANES = 16 };

typedef __m512 floats;  /* LANES of fp32 */
typedef __m512i halves; /* 2 · LANES of bf16 */
typedef __m512i whole;  /* LANES whole numbers of 32 bits, or 4 · LANES of 8 */

static int runs_here(void)
{
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

INLINE floats all(float x) { return _mm512_set1_ps(x); }
INLINE floats get(const float *x) { return _mm512_loadu_ps(x); }
INLINE void put(float *to, floats x) { _mm512_storeu_ps(to, x); }
INLINE floats plus(floats a, floats b) { return _mm512_add_ps(a, b); }
INLINE floats minus(floats a, floats b) { return _mm512_sub_ps(a, b); }
INLINE floats times(floats a, floats b) { return _mm512_mul_ps(a, b); }
INLINE floats over(floats a, floats b) { return _mm512_div_ps(a, b); }
INLINE floats times_plus(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
/* NaN, as the second operand, stays. */
INLINE floats larger(floats a, floats b) { return _mm512_max_ps(a, b); }
INLINE floats smaller(floats a, floats b) { return _mm512_min_ps(a, b); }
INLINE float sum_of(floats x) { return _mm512_reduce_add_ps(x); }
INLINE float largest_of(floats x) { return _mm512_reduce_max_ps(x); }
INLINE floats nearest(floats x) { return _mm512_roundscale_ps(x, 0); }
/* x · 2 to the power of whole numbers. */
INLINE floats scaled(floats x, floats power) { return _mm512_scalef_ps(x, power); }

/* The first `count` lanes, minus infinity in the others. */
INLINE floats first_lanes(floats x, long count)
{
    const __mmask16 real = count < LANES ? count < 0 ? 0 : (1u << count) - 1 : 0xFFFF;
    return _mm512_mask_mov_ps(all(-__builtin_inff()), real, x);
}

INLINE floats widen(const bf16 *x)
{
    __m256i some = _mm256_loadu_si256((const void *)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(some), 16));
}

INLINE void narrow(bf16 *to, floats x) { _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

INLINE bf16 narrow_one(float x) { return (bf16)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(x)), 0); }

INLINE halves get_halves(const bf16 *x) { return _mm512_loadu_si512(x); }

/* The same two bf16 numbers everywhere. */
INLINE halves all_pairs(const bf16 *x)
{
    int pair;
    __builtin_memcpy(&pair, x, 4);
    return _mm512_set1_epi32(pair);
}

/* sum + products of neighbouring bf16 numbers, two a lane. */
INLINE floats plus_pairs(floats sum, halves a, halves b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

/* Numbers of two rows side by side: pairs of some columns, then of the others (see `put_columns`). */
INLINE halves some_pairs(halves one, halves other) { return _mm512_unpacklo_epi16(one, other); }
INLINE halves other_pairs(halves one, halves other) { return _mm512_unpackhi_epi16(one, other); }

/* Sums of those columns, 2 · LANES of them, in order. */
INLINE void put_columns(bf16 *to, floats some, floats others)
{
    const __m512i order = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i a = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(some));
    const __m512i b = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(others));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(a, order, b));
}

/* Lane j is the sum of the lanes of x[j]: each step adds halves and brings two vectors together. */
INLINE floats sums_of(floats x[LANES])
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

/* --- products of whole numbers: bytes without a sign times bytes with one, four a lane ---------- */

/* What is added to stored numbers of 8 bits, so that they have no sign, is taken off the sums again. */
enum { BYTES_HAVE_SIGNS = 0 };

/* Four numbers of each of LANES outputs, of 8 bits, or the first or second of two fours of 4 bits. */
INLINE whole weights_at(const uint8_t *line, const int bits, const int second)
{
    const whole w = _mm512_loadu_si512(line);
    if (bits == 8) return w;
    return _mm512_and_si512(second ? _mm512_srli_epi16(w, 4) : w, _mm512_set1_epi8(15));
}

/* The same four numbers everywhere. */
INLINE whole all_fours(const int8_t *x)
{
    int four;
    __builtin_memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

INLINE whole begun(int32_t start) { return _mm512_set1_epi32(start); }
INLINE whole plus_fours(whole sum, whole w, whole x, const int bits)
{
    (void)bits;
    return _mm512_dpbusd_epi32(sum, w, x);
}
INLINE floats counted(whole sum, int32_t start, const int bits)
{
    (void)start, (void)bits;
    return _mm512_cvtepi32_ps(sum);
}

/* LANES numbers rounded to bytes, which are stored; the sum of their lanes and others. */
INLINE whole to_whole(int8_t *to, floats x, whole sum)
{
    const __m512i rounded = _mm512_cvtps_epi32(x);
    _mm_storeu_si128((void *)to, _mm512_cvtsepi32_epi8(rounded));
    return _mm512_add_epi32(sum, rounded);
}
INLINE whole nothing(void) { return _mm512_setzero_si512(); }
INLINE int32_t total(whole x) { return _mm512_reduce_add_epi32(x); }
