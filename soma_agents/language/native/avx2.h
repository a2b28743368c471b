/* Eight numbers at once, for processors with AVX2 alone. `avx512.h` has the same names. */

#pragma once

#include <immintrin.h>

enum { LANES = 8 };

typedef __m256 floats;  /* LANES of fp32 */
typedef __m256i halves; /* 2 · LANES of bf16 */
typedef __m256i whole;  /* LANES whole numbers of 32 bits, 2 · LANES of 16, or 4 · LANES of 8 */

static int runs_here(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

INLINE floats all(float x) { return _mm256_set1_ps(x); }
INLINE floats get(const float *x) { return _mm256_loadu_ps(x); }
INLINE void put(float *to, floats x) { _mm256_storeu_ps(to, x); }
INLINE floats plus(floats a, floats b) { return _mm256_add_ps(a, b); }
INLINE floats minus(floats a, floats b) { return _mm256_sub_ps(a, b); }
INLINE floats times(floats a, floats b) { return _mm256_mul_ps(a, b); }
INLINE floats over(floats a, floats b) { return _mm256_div_ps(a, b); }
INLINE floats times_plus(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
/* NaN, as the second operand, stays. */
INLINE floats larger(floats a, floats b) { return _mm256_max_ps(a, b); }
INLINE floats smaller(floats a, floats b) { return _mm256_min_ps(a, b); }
INLINE floats nearest(floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

INLINE float sum_of(floats x)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

INLINE float largest_of(floats x)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

INLINE floats power_of_two(whole x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(127)), 23));
}

/* x · 2 to the power of whole numbers, by two factors that an exponent has room for. */
INLINE floats scaled(floats x, floats power)
{
    const whole both = _mm256_cvtps_epi32(power), one = _mm256_srai_epi32(both, 1);
    return times(times(x, power_of_two(one)), power_of_two(_mm256_sub_epi32(both, one)));
}

/* The first `count` lanes, minus infinity in the others. */
INLINE floats first_lanes(floats x, long count)
{
    const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_blendv_ps(all(-__builtin_inff()), x, _mm256_cmp_ps(lane, all((float)count), _CMP_LT_OQ));
}

INLINE floats widen(const bf16 *x)
{
    __m128i some = _mm_loadu_si128((const void *)x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(some), 16));
}

/* bf16 nearest to each, even ones where two are as near, in the lower half of each lane. */
INLINE whole rounded_to_bf16(floats x)
{
    const whole bits = _mm256_castps_si256(x);
    const whole odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const whole near = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    const floats none = _mm256_cmp_ps(x, x, _CMP_UNORD_Q), nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
    return _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(near), nan, none)), 16);
}

INLINE __m128i narrowed(floats x)
{
    const whole some = rounded_to_bf16(x);
    return _mm_packus_epi32(_mm256_castsi256_si128(some), _mm256_extracti128_si256(some, 1));
}

INLINE void narrow(bf16 *to, floats x) { _mm_storeu_si128((void *)to, narrowed(x)); }

INLINE bf16 narrow_one(float x) { return (bf16)_mm_extract_epi16(narrowed(all(x)), 0); }

INLINE halves get_halves(const bf16 *x) { return _mm256_loadu_si256((const void *)x); }

/* The same two bf16 numbers everywhere. */
INLINE halves all_pairs(const bf16 *x)
{
    int pair;
    __builtin_memcpy(&pair, x, 4);
    return _mm256_set1_epi32(pair);
}

INLINE floats evens(halves x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
INLINE floats odds(halves x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xFFFF0000))); }

/* sum + products of neighbouring bf16 numbers, two a lane. */
INLINE floats plus_pairs(floats sum, halves a, halves b)
{
    return times_plus(odds(a), odds(b), times_plus(evens(a), evens(b), sum));
}

/* Numbers of two rows side by side: pairs of some columns, then of the others (see `put_columns`). */
INLINE halves some_pairs(halves one, halves other) { return _mm256_unpacklo_epi16(one, other); }
INLINE halves other_pairs(halves one, halves other) { return _mm256_unpackhi_epi16(one, other); }

/* Sums of those columns, 2 · LANES of them, in order. */
INLINE void put_columns(bf16 *to, floats some, floats others)
{
    const __m128i a = narrowed(some), b = narrowed(others);
    _mm_storeu_si128((void *)to, _mm_unpacklo_epi64(a, b));
    _mm_storeu_si128((void *)(to + LANES), _mm_unpackhi_epi64(a, b));
}

/* Lane j is the sum of the lanes of x[j]. */
INLINE floats sums_of(floats x[LANES])
{
    const floats first = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const floats second = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return plus(_mm256_permute2f128_ps(first, second, 0x20), _mm256_permute2f128_ps(first, second, 0x31));
}

/* --- products of whole numbers, four a lane ---------------------------------------------------- */

/* Bytes keep their signs: two products of 255 · 127 would not fit in 16 bits, of 128 · 127 they do. */
enum { BYTES_HAVE_SIGNS = 1 };

/* Four numbers of each of LANES outputs, of 8 bits, or the first or second of two fours of 4 bits. */
INLINE whole weights_at(const uint8_t *line, const int bits, const int second)
{
    const whole w = _mm256_loadu_si256((const void *)line);
    if (bits == 8) return _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    return _mm256_and_si256(second ? _mm256_srli_epi16(w, 4) : w, _mm256_set1_epi8(15));
}

/* The same four numbers everywhere. */
INLINE whole all_fours(const int8_t *x)
{
    int four;
    __builtin_memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

/* Of numbers of 4 bits a group's sums have 16 bits, two a lane: 8 fours · 2 · 15 · 127 is less than 2¹⁵. */
INLINE whole begun(int32_t start)
{
    (void)start;
    return _mm256_setzero_si256();
}

INLINE whole plus_fours(whole sum, whole w, whole x, const int bits)
{
    if (bits == 4) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
    else {
        const whole pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    __asm__("" : "+x"(sum));
    return sum;
}

INLINE floats counted(whole sum, int32_t start, const int bits)
{
    if (bits == 4) sum = _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), _mm256_set1_epi32(start));
    return _mm256_cvtepi32_ps(sum);
}

/* LANES numbers rounded to bytes, which are stored; the sum of their lanes and others. */
INLINE whole to_whole(int8_t *to, floats x, whole sum)
{
    const whole rounded = _mm256_cvtps_epi32(x);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storel_epi64((void *)to, _mm_packs_epi16(words, words));
    return _mm256_add_epi32(sum, rounded);
}

INLINE whole nothing(void) { return _mm256_setzero_si256(); }

INLINE int32_t total(whole x)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    four = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 1)));
}
