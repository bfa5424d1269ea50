// Eight floats or four doubles with AVX2, FMA and F16C.
// Counters are in the order 0 2 1 3, for the reason given in lane_avx512.h.
// Every instruction rounds and handles subnormals exactly as the scalar lane does.
#pragma once

#include "../stream/request.h"

namespace paraminit::PARAMINIT_ISA {

struct Lane {
  static constexpr int kGroups = 4;
  static constexpr int kCalls = 1;
  static constexpr int kUnroll = 4;           // 2 leaves execution units idle, 6 is no faster
  static constexpr int kInterleaveLimit = 5;  // saves 8 to 15 % of the time of truncated normals
  static constexpr bool kStreams = true;
  static constexpr bool kFuses = true;

  using U32 = __m256i;
  using U64 = __m256i;
  using F32 = __m256;
  using F64 = __m256d;
  using M32 = __m256;
  using M64 = __m256d;

  // --- words
  template <class T>
  PARAMINIT_FN U64 counters(uint64_t first, const T*) {
    return _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(first)),
                            _mm256_setr_epi64x(0, 2, 1, 3));
  }
  PARAMINIT_FN U64 counters(uint64_t first, const BFloat16*) {
    return _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(first)),
                            _mm256_setr_epi64x(0, 1, 2, 3));
  }
  PARAMINIT_FN U64 splat_word(uint32_t w) { return _mm256_set1_epi32(static_cast<int>(w)); }
  PARAMINIT_FN U64 splat64(uint64_t v) { return _mm256_set1_epi64x(static_cast<long long>(v)); }
  PARAMINIT_FN U64 add64(U64 a, U64 b) { return _mm256_add_epi64(a, b); }
  PARAMINIT_FN U64 mul_low32(U64 a, uint32_t b) { return _mm256_mul_epu32(a, splat_word(b)); }
  PARAMINIT_FN U64 high32(U64 a) { return _mm256_srli_epi64(a, 32); }
  PARAMINIT_FN U64 to_high(U64 low) { return _mm256_slli_epi64(low, 32); }
  PARAMINIT_FN U64 xor2(U64 a, U64 b) { return _mm256_xor_si256(a, b); }
  PARAMINIT_FN U64 xor3(U64 a, U64 b, U64 c) { return xor2(xor2(a, c), b); }
  // Packs the low halves (join) or the high halves (join_high) of `low` and `high` side by side.
  PARAMINIT_FN U32 join(U64 low, U64 high) { return _mm256_blend_epi32(low, to_high(high), 0xAA); }
  PARAMINIT_FN U32 join_high(U64 low, U64 high) {
    return _mm256_blend_epi32(high32(low), high, 0xAA);
  }

  // --- words in memory, kWords at a time
  static constexpr int kWords = 8;
  PARAMINIT_FN U32 load(const uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  PARAMINIT_FN void save(uint32_t* to, U32 w) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), w);
  }
  PARAMINIT_FN U32 minus(U32 a, U32 b) { return _mm256_sub_epi32(a, b); }
  // Comparisons are unsigned. Masks have one bit per word.
  PARAMINIT_FN U32 at_most(U32 a, U32 b) { return _mm256_cmpeq_epi32(_mm256_min_epu32(a, b), a); }
  PARAMINIT_FN uint32_t mask_at_most(U32 a, U32 b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(at_most(a, b))));
  }
  PARAMINIT_FN U32 add_if_at_most(U32 sum, U32 a, U32 b) {
    return _mm256_sub_epi32(sum, at_most(a, b));
  }
  // min(least, w) if a <= b, otherwise least.
  PARAMINIT_FN U32 min_if_at_most(U32 a, U32 b, U32 w, U32 least) {
    return _mm256_blendv_epi8(least, _mm256_min_epu32(least, w), at_most(a, b));
  }

  // --- 32-bit integers to float
  PARAMINIT_FN U32 low24(U32 w) { return _mm256_and_si256(w, _mm256_set1_epi32(0xFFFFFF)); }
  PARAMINIT_FN U32 twice_plus_half_turn(U32 w) {
    return _mm256_add_epi32(_mm256_add_epi32(w, w),
                            _mm256_set1_epi32(static_cast<int>(0x80000001u)));
  }
  PARAMINIT_FN U32 flip_bits(U32 w, uint32_t mask) { return xor2(w, splat_word(mask)); }
  PARAMINIT_FN U32 fold31(U32 w) {
    const U32 inverted = _mm256_xor_si256(w, _mm256_srai_epi32(w, 31));  // ~ of the result
    return _mm256_andnot_si256(inverted, _mm256_set1_epi32(0x7FFFFFFF));
  }
  PARAMINIT_FN F32 from_int32(U32 w) { return _mm256_cvtepi32_ps(w); }
  // Both halves are exact, so the result is rounded only once, as by a single conversion.
  PARAMINIT_FN F32 from_uint32(U32 w) {
    const F32 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(w, 16));
    const F32 low = _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32(0xFFFF)));
    return _mm256_fmadd_ps(high, splat(65536.0f), low);
  }

  // --- float32
  PARAMINIT_FN F32 splat(float v) { return _mm256_set1_ps(v); }
  PARAMINIT_FN F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
  PARAMINIT_FN F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
  PARAMINIT_FN F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
  PARAMINIT_FN F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
  PARAMINIT_FN F32 sqrt(F32 a) { return _mm256_sqrt_ps(a); }
  PARAMINIT_FN F32 negate(F32 a) { return -a; }
  PARAMINIT_FN F32 plus_bits(F32 a, uint32_t n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), splat_word(n)));
  }
  PARAMINIT_FN F32 minimum(F32 a, F32 bound) { return _mm256_min_ps(a, bound); }
  PARAMINIT_FN F32 maximum(F32 a, F32 bound) { return _mm256_max_ps(a, bound); }
  PARAMINIT_FN M32 greater(F32 a, F32 b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  PARAMINIT_FN F32 select(M32 m, F32 a, F32 b) { return _mm256_blendv_ps(b, a, m); }
  PARAMINIT_FN bool any(M32 m) { return _mm256_movemask_ps(m) != 0; }
  PARAMINIT_FN F32 flip_sign(F32 a, U32 w) {
    return _mm256_xor_ps(a, _mm256_and_ps(_mm256_castsi256_ps(w), _mm256_set1_ps(-0.0f)));
  }
  PARAMINIT_FN F32 select_sign(U32 w, F32 set, F32 clear) {
    return _mm256_blendv_ps(clear, set, _mm256_castsi256_ps(w));
  }
  PARAMINIT_FN void split(F32 s, F32& f, F32& exponent) {
    const U32 b = _mm256_castps_si256(s);
    const U32 mantissa = _mm256_or_si256(_mm256_and_si256(b, _mm256_set1_epi32(0x7FFFFF)),
                                         _mm256_set1_epi32(0x3F000000));
    f = _mm256_sub_ps(_mm256_castsi256_ps(mantissa), splat(1.0f));
    exponent =
        _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(b, 23), _mm256_set1_epi32(126)));
  }
  PARAMINIT_FN void split_signed(F32 v, F32& f, F32& exponent) {
    F32 positive_f, positive_exponent;
    split(v, positive_f, positive_exponent);
    f = _mm256_blendv_ps(positive_f, v, v);
    exponent = _mm256_blendv_ps(positive_exponent, _mm256_setzero_ps(), v);
  }

  // --- float64
  PARAMINIT_FN F64 splat(double v) { return _mm256_set1_pd(v); }
  PARAMINIT_FN F64 add(F64 a, F64 b) { return _mm256_add_pd(a, b); }
  PARAMINIT_FN F64 sub(F64 a, F64 b) { return _mm256_sub_pd(a, b); }
  PARAMINIT_FN F64 mul(F64 a, F64 b) { return _mm256_mul_pd(a, b); }
  PARAMINIT_FN F64 div(F64 a, F64 b) { return _mm256_div_pd(a, b); }
  PARAMINIT_FN F64 fma(F64 a, F64 b, F64 c) { return _mm256_fmadd_pd(a, b, c); }
  PARAMINIT_FN F64 sqrt(F64 a) { return _mm256_sqrt_pd(a); }
  PARAMINIT_FN F64 negate(F64 a) { return -a; }
  PARAMINIT_FN F64 minimum(F64 a, F64 bound) { return _mm256_min_pd(a, bound); }
  PARAMINIT_FN F64 maximum(F64 a, F64 bound) { return _mm256_max_pd(a, bound); }
  PARAMINIT_FN M64 greater(F64 a, F64 b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
  PARAMINIT_FN F64 select(M64 m, F64 a, F64 b) { return _mm256_blendv_pd(b, a, m); }
  PARAMINIT_FN bool any(M64 m) { return _mm256_movemask_pd(m) != 0; }
  PARAMINIT_FN U64 flip_bits64(U64 x, uint64_t mask) { return xor2(x, splat64(mask)); }
  PARAMINIT_FN U64 fold63(U64 x) {
    // Copy the sign of each 64-bit element to all of its bits.
    const U64 sign = _mm256_shuffle_epi32(_mm256_srai_epi32(x, 31), 0xF5);
    return _mm256_and_si256(xor2(x, sign), splat64(0x7FFFFFFFFFFFFFFF));
  }
  // For n < 2^53. The halves of n become the fractions of 2^84 and 2^52. Every operation is exact.
  PARAMINIT_FN F64 from_integer(U64 n) {
    const U64 high = _mm256_or_si256(_mm256_srli_epi64(n, 32), splat64(0x4530000000000000));
    const U64 low = _mm256_blend_epi32(n, splat64(0x4330000000000000), 0xAA);
    return _mm256_add_pd(_mm256_sub_pd(_mm256_castsi256_pd(high), splat(0x1.00000001p+84)),
                         _mm256_castsi256_pd(low));
  }
  PARAMINIT_FN F64 from_low53(U64 x) {
    return from_integer(_mm256_and_si256(x, splat64(0x1FFFFFFFFFFFFF)));
  }
  PARAMINIT_FN F64 from_high53(U64 x) { return from_integer(_mm256_srli_epi64(x, 11)); }
  PARAMINIT_FN F64 from_high53_signed(U64 x) {
    const F64 wrap = _mm256_and_pd(
        _mm256_castsi256_pd(_mm256_shuffle_epi32(_mm256_srai_epi32(x, 31), 0xF5)), splat(0x1p+53));
    return _mm256_sub_pd(from_high53(x), wrap);
  }
  PARAMINIT_FN F64 fraction52(U64 x) {
    return _mm256_castsi256_pd(
        _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi64(x, 11), splat64(0xFFFFFFFFFFFFF)),
                        splat64(0x3FF0000000000000)));
  }
  PARAMINIT_FN F64 flip_sign64(F64 a, U64 x) {
    return _mm256_xor_pd(a, _mm256_and_pd(_mm256_castsi256_pd(x), _mm256_set1_pd(-0.0)));
  }
  PARAMINIT_FN F64 select_sign64(U64 x, F64 set, F64 clear) {
    return _mm256_blendv_pd(clear, set, _mm256_castsi256_pd(x));
  }
  PARAMINIT_FN void split(F64 s, F64& f, F64& exponent) {
    const U64 b = _mm256_castpd_si256(s);
    const U64 mantissa =
        _mm256_or_si256(_mm256_and_si256(b, splat64(0xFFFFFFFFFFFFF)), splat64(0x3FE0000000000000));
    f = _mm256_sub_pd(_mm256_castsi256_pd(mantissa), splat(1.0));
    // Convert the biased exponent to double by placing it in the fraction of 2^52.
    const U64 biased = _mm256_or_si256(_mm256_srli_epi64(b, 52), splat64(0x4330000000000000));
    exponent = _mm256_sub_pd(_mm256_castsi256_pd(biased), splat(0x1p+52 + 1022.0));
  }
  PARAMINIT_FN void split_signed(F64 v, F64& f, F64& exponent) {
    F64 positive_f, positive_exponent;
    split(v, positive_f, positive_exponent);
    f = _mm256_blendv_pd(positive_f, v, v);
    exponent = _mm256_blendv_pd(positive_exponent, _mm256_setzero_pd(), v);
  }

  // --- stores; a non-temporal store requires alignment to its own size
  template <bool streaming, class T>
  PARAMINIT_FN void put(T* out, __m256i v) {
    __m256i* to = reinterpret_cast<__m256i*>(out);
    if constexpr (streaming) {
      _mm256_stream_si256(to, v);
    } else {
      _mm256_storeu_si256(to, v);
    }
  }
  template <bool streaming, class T>
  PARAMINIT_FN void put(T* out, __m128i v) {
    __m128i* to = reinterpret_cast<__m128i*>(out);
    if constexpr (streaming) {
      _mm_stream_si128(to, v);
    } else {
      _mm_storeu_si128(to, v);
    }
  }
  template <bool streaming>
  PARAMINIT_FN void store(float* out, F32 even, F32 odd) {
    put<streaming>(out, _mm256_castps_si256(_mm256_unpacklo_ps(even, odd)));
    put<streaming>(out + 8, _mm256_castps_si256(_mm256_unpackhi_ps(even, odd)));
  }
  template <bool streaming>
  PARAMINIT_FN void store(double* out, F64 even, F64 odd) {
    put<streaming>(out, _mm256_castpd_si256(_mm256_unpacklo_pd(even, odd)));
    put<streaming>(out + 4, _mm256_castpd_si256(_mm256_unpackhi_pd(even, odd)));
  }
  template <bool streaming>
  PARAMINIT_FN void store(Half* out, F32 even, F32 odd) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    put<streaming>(out, _mm256_cvtps_ph(_mm256_unpacklo_ps(even, odd), nearest));
    put<streaming>(out + 8, _mm256_cvtps_ph(_mm256_unpackhi_ps(even, odd), nearest));
  }
  PARAMINIT_FN U32 rounded_bfloat16(F32 a) {
    const U32 b = _mm256_castps_si256(a);
    const U32 last = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7FFF)), last);
  }
  template <bool streaming>
  PARAMINIT_FN void store(BFloat16* out, F32 even, F32 odd) {
    put<streaming>(out, _mm256_blend_epi16(_mm256_srli_epi32(rounded_bfloat16(even), 16),
                                           rounded_bfloat16(odd), 0xAA));
  }
  template <bool streaming>
  PARAMINIT_FN void store(uint32_t* out, U32 even, U32 odd) {
    put<streaming>(out, _mm256_unpacklo_epi32(even, odd));
    put<streaming>(out + 8, _mm256_unpackhi_epi32(even, odd));
  }
  template <bool streaming>
  PARAMINIT_FN void store(int64_t* out, U32 even, U32 odd) {
    const U32 low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
    put<streaming>(out, _mm256_cvtepu32_epi64(_mm256_castsi256_si128(low)));
    put<streaming>(out + 4, _mm256_cvtepu32_epi64(_mm256_extracti128_si256(low, 1)));
    put<streaming>(out + 8, _mm256_cvtepu32_epi64(_mm256_castsi256_si128(high)));
    put<streaming>(out + 12, _mm256_cvtepu32_epi64(_mm256_extracti128_si256(high, 1)));
  }
};

}  // namespace paraminit::PARAMINIT_ISA
