// Sixteen floats or eight doubles with AVX-512 F, DQ, BW and VL.
// Counters are in the order 0 4 1 5 2 6 3 7. With this order, unpacking the even and odd values of
// the sixteen pairs gives two registers of consecutive elements without crossing 128-bit lanes.
// Every instruction rounds and handles subnormals exactly as the scalar lane does.
#pragma once

#include "../stream/request.h"

namespace paraminit::PARAMINIT_ISA {

struct Lane {
  static constexpr int kGroups = 8;
  static constexpr int kCalls = 1;
  static constexpr int kUnroll = 6;  // 4 leaves execution units idle (4 % on Zen 4), 8 spills
  static constexpr int kInterleaveLimit =
      4;  // saves 5 to 9 %; with more live values, spills cost as much
  static constexpr bool kStreams = true;
  static constexpr bool kFuses = true;

  using U32 = __m512i;
  using U64 = __m512i;
  using F32 = __m512;
  using F64 = __m512d;
  using M32 = __mmask16;
  using M64 = __mmask8;

  // --- words
  template <class T>
  PARAMINIT_FN U64 counters(uint64_t first, const T*) {
    return _mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(first)),
                            _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
  }
  // Pairs of bfloat16 are combined in place, so their counters are in natural order.
  PARAMINIT_FN U64 counters(uint64_t first, const BFloat16*) {
    return _mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(first)),
                            _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  }
  PARAMINIT_FN U64 splat_word(uint32_t w) { return _mm512_set1_epi32(static_cast<int>(w)); }
  PARAMINIT_FN U64 splat64(uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }
  PARAMINIT_FN U64 add64(U64 a, U64 b) { return _mm512_add_epi64(a, b); }
  PARAMINIT_FN U64 mul_low32(U64 a, uint32_t b) { return _mm512_mul_epu32(a, splat_word(b)); }
  // A shuffle instead of a shift: on Intel a shift competes with multiplications for a port, which
  // costs 3 % of a fill.
  PARAMINIT_FN U64 high32(U64 a) {
    return _mm512_shuffle_epi32(a, static_cast<_MM_PERM_ENUM>(0xF5));
  }
  PARAMINIT_FN U64 xor2(U64 a, U64 b) { return _mm512_xor_si512(a, b); }
  PARAMINIT_FN U64 xor3(U64 a, U64 b, U64 c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  // Packs the low halves (join) or the high halves (join_high) of `low` and `high` side by side.
  PARAMINIT_FN U32 join(U64 low, U64 high) {
    return _mm512_mask_shuffle_epi32(low, 0xAAAA, high, static_cast<_MM_PERM_ENUM>(0xA0));
  }
  PARAMINIT_FN U32 join_high(U64 low, U64 high) {
    return _mm512_mask_shuffle_epi32(high, 0x5555, low, static_cast<_MM_PERM_ENUM>(0xF5));
  }
  PARAMINIT_FN U64 to_high(U64 low) {
    return _mm512_maskz_shuffle_epi32(0xAAAA, low, static_cast<_MM_PERM_ENUM>(0xA0));
  }

  // --- words in memory, kWords at a time
  static constexpr int kWords = 16;
  PARAMINIT_FN U32 load(const uint32_t* from) { return _mm512_loadu_si512(from); }
  PARAMINIT_FN void save(uint32_t* to, U32 w) { _mm512_storeu_si512(to, w); }
  PARAMINIT_FN U32 minus(U32 a, U32 b) { return _mm512_sub_epi32(a, b); }
  // Comparisons are unsigned. Masks have one bit per word.
  PARAMINIT_FN uint32_t mask_at_most(U32 a, U32 b) { return _mm512_cmple_epu32_mask(a, b); }
  PARAMINIT_FN U32 add_if_at_most(U32 sum, U32 a, U32 b) {
    return _mm512_mask_add_epi32(sum, _mm512_cmple_epu32_mask(a, b), sum, _mm512_set1_epi32(1));
  }
  // min(least, w) if a <= b, otherwise least.
  PARAMINIT_FN U32 min_if_at_most(U32 a, U32 b, U32 w, U32 least) {
    return _mm512_mask_min_epu32(least, _mm512_cmple_epu32_mask(a, b), least, w);
  }

  // Moves the words of the mask to the front; the others are zero.
  PARAMINIT_FN U32 compress(uint32_t mask, U32 w) {
    return _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), w);
  }
  PARAMINIT_FN U32 iota() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  PARAMINIT_FN U32 plus(U32 a, U32 b) { return _mm512_add_epi32(a, b); }

  // --- 32-bit integers to float
  PARAMINIT_FN U32 low24(U32 w) { return _mm512_and_si512(w, _mm512_set1_epi32(0xFFFFFF)); }
  PARAMINIT_FN U32 twice_plus_half_turn(U32 w) {
    return _mm512_add_epi32(_mm512_add_epi32(w, w),
                            _mm512_set1_epi32(static_cast<int>(0x80000001u)));
  }
  PARAMINIT_FN U32 flip_bits(U32 w, uint32_t mask) { return _mm512_xor_si512(w, splat_word(mask)); }
  PARAMINIT_FN U32 fold31(U32 w) {
    // (w ^ ~(w >> 31)) & 0x7FFFFFFF
    return _mm512_ternarylogic_epi32(w, _mm512_srai_epi32(w, 31), _mm512_set1_epi32(0x7FFFFFFF),
                                     0x82);
  }
  PARAMINIT_FN F32 from_int32(U32 w) { return _mm512_cvtepi32_ps(w); }
  PARAMINIT_FN F32 from_uint32(U32 w) { return _mm512_cvtepu32_ps(w); }

  // --- float32
  PARAMINIT_FN F32 splat(float v) { return _mm512_set1_ps(v); }
  PARAMINIT_FN F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  PARAMINIT_FN F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  PARAMINIT_FN F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  PARAMINIT_FN F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  PARAMINIT_FN F32 sqrt(F32 a) { return _mm512_sqrt_ps(a); }
  PARAMINIT_FN F32 negate(F32 a) { return -a; }
  PARAMINIT_FN F32 plus_bits(F32 a, uint32_t n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), splat_word(n)));
  }
  PARAMINIT_FN F32 minimum(F32 a, F32 bound) { return _mm512_min_ps(a, bound); }
  PARAMINIT_FN F32 maximum(F32 a, F32 bound) { return _mm512_max_ps(a, bound); }
  PARAMINIT_FN M32 greater(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  PARAMINIT_FN F32 select(M32 m, F32 a, F32 b) { return _mm512_mask_blend_ps(m, b, a); }
  PARAMINIT_FN bool any(M32 m) { return m != 0; }
  PARAMINIT_FN F32 flip_sign(F32 a, U32 w) {
    // a ^ (w & 0x80000000)
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(a), w, _mm512_set1_epi32(static_cast<int>(0x80000000u)), 0x78));
  }
  PARAMINIT_FN F32 select_sign(U32 w, F32 set, F32 clear) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(w), clear, set);
  }
  PARAMINIT_FN void split(F32 s, F32& f, F32& exponent) {
    f = _mm512_sub_ps(_mm512_getmant_ps(s, _MM_MANT_NORM_p5_1, _MM_MANT_SIGN_src), splat(1.0f));
    exponent = _mm512_add_ps(_mm512_getexp_ps(s), splat(1.0f));
  }
  PARAMINIT_FN void split_signed(F32 v, F32& f, F32& exponent) {
    const M32 positive = _mm512_cmpgt_epi32_mask(_mm512_castps_si512(v), splat_word(~0u));
    f = _mm512_mask_sub_ps(v, positive, _mm512_getmant_ps(v, _MM_MANT_NORM_p5_1, _MM_MANT_SIGN_src),
                           splat(1.0f));
    exponent = _mm512_maskz_add_ps(positive, _mm512_getexp_ps(v), splat(1.0f));
  }

  // --- float64
  PARAMINIT_FN F64 splat(double v) { return _mm512_set1_pd(v); }
  PARAMINIT_FN F64 add(F64 a, F64 b) { return _mm512_add_pd(a, b); }
  PARAMINIT_FN F64 sub(F64 a, F64 b) { return _mm512_sub_pd(a, b); }
  PARAMINIT_FN F64 mul(F64 a, F64 b) { return _mm512_mul_pd(a, b); }
  PARAMINIT_FN F64 div(F64 a, F64 b) { return _mm512_div_pd(a, b); }
  PARAMINIT_FN F64 fma(F64 a, F64 b, F64 c) { return _mm512_fmadd_pd(a, b, c); }
  PARAMINIT_FN F64 sqrt(F64 a) { return _mm512_sqrt_pd(a); }
  PARAMINIT_FN F64 negate(F64 a) { return -a; }
  PARAMINIT_FN F64 minimum(F64 a, F64 bound) { return _mm512_min_pd(a, bound); }
  PARAMINIT_FN F64 maximum(F64 a, F64 bound) { return _mm512_max_pd(a, bound); }
  PARAMINIT_FN M64 greater(F64 a, F64 b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  PARAMINIT_FN F64 select(M64 m, F64 a, F64 b) { return _mm512_mask_blend_pd(m, b, a); }
  PARAMINIT_FN bool any(M64 m) { return m != 0; }
  PARAMINIT_FN U64 flip_bits64(U64 x, uint64_t mask) { return xor2(x, splat64(mask)); }
  PARAMINIT_FN U64 fold63(U64 x) {
    // (x ^ (x >> 63)) & 0x7FF...
    return _mm512_ternarylogic_epi64(x, _mm512_srai_epi64(x, 63),
                                     _mm512_set1_epi64(0x7FFFFFFFFFFFFFFF), 0x28);
  }
  PARAMINIT_FN F64 from_low53(U64 x) {
    return _mm512_cvtepi64_pd(_mm512_and_si512(x, _mm512_set1_epi64(0x1FFFFFFFFFFFFF)));
  }
  PARAMINIT_FN F64 from_high53(U64 x) { return _mm512_cvtepi64_pd(_mm512_srli_epi64(x, 11)); }
  PARAMINIT_FN F64 from_high53_signed(U64 x) {
    return _mm512_cvtepi64_pd(_mm512_srai_epi64(x, 11));
  }
  PARAMINIT_FN F64 fraction52(U64 x) {
    // ((x >> 11) & fraction) | exponent of 1
    return _mm512_castsi512_pd(
        _mm512_ternarylogic_epi64(_mm512_srli_epi64(x, 11), _mm512_set1_epi64(0xFFFFFFFFFFFFF),
                                  _mm512_set1_epi64(0x3FF0000000000000), 0xEA));
  }
  PARAMINIT_FN F64 flip_sign64(F64 a, U64 x) {
    return _mm512_castsi512_pd(_mm512_ternarylogic_epi64(
        _mm512_castpd_si512(a), x, _mm512_set1_epi64(static_cast<long long>(0x8000000000000000u)),
        0x78));
  }
  PARAMINIT_FN F64 select_sign64(U64 x, F64 set, F64 clear) {
    return _mm512_mask_blend_pd(_mm512_movepi64_mask(x), clear, set);
  }
  PARAMINIT_FN void split(F64 s, F64& f, F64& exponent) {
    f = _mm512_sub_pd(_mm512_getmant_pd(s, _MM_MANT_NORM_p5_1, _MM_MANT_SIGN_src), splat(1.0));
    exponent = _mm512_add_pd(_mm512_getexp_pd(s), splat(1.0));
  }
  PARAMINIT_FN void split_signed(F64 v, F64& f, F64& exponent) {
    const M64 positive = _mm512_cmpgt_epi64_mask(_mm512_castpd_si512(v), splat_word(~0u));
    f = _mm512_mask_sub_pd(v, positive, _mm512_getmant_pd(v, _MM_MANT_NORM_p5_1, _MM_MANT_SIGN_src),
                           splat(1.0));
    exponent = _mm512_maskz_add_pd(positive, _mm512_getexp_pd(v), splat(1.0));
  }

  // --- stores; a non-temporal store requires alignment to its own size
  template <bool streaming, class T>
  PARAMINIT_FN void put(T* out, __m512i v) {
    __m512i* to = reinterpret_cast<__m512i*>(out);
    if constexpr (streaming) {
      _mm512_stream_si512(to, v);
    } else {
      _mm512_storeu_si512(to, v);
    }
  }
  template <bool streaming, class T>
  PARAMINIT_FN void put(T* out, __m256i v) {
    __m256i* to = reinterpret_cast<__m256i*>(out);
    if constexpr (streaming) {
      _mm256_stream_si256(to, v);
    } else {
      _mm256_storeu_si256(to, v);
    }
  }
  template <bool streaming>
  PARAMINIT_FN void store(float* out, F32 even, F32 odd) {
    put<streaming>(out, _mm512_castps_si512(_mm512_unpacklo_ps(even, odd)));
    put<streaming>(out + 16, _mm512_castps_si512(_mm512_unpackhi_ps(even, odd)));
  }
  template <bool streaming>
  PARAMINIT_FN void store(double* out, F64 even, F64 odd) {
    put<streaming>(out, _mm512_castpd_si512(_mm512_unpacklo_pd(even, odd)));
    put<streaming>(out + 8, _mm512_castpd_si512(_mm512_unpackhi_pd(even, odd)));
  }
  template <bool streaming>
  PARAMINIT_FN void store(Half* out, F32 even, F32 odd) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    put<streaming>(out, _mm512_cvtps_ph(_mm512_unpacklo_ps(even, odd), nearest));
    put<streaming>(out + 16, _mm512_cvtps_ph(_mm512_unpackhi_ps(even, odd), nearest));
  }
  // Rounds to nearest even by integer addition, because vcvtne2ps2bf16 flushes subnormals.
  PARAMINIT_FN U32 rounded_bfloat16(F32 a) {
    const U32 b = _mm512_castps_si512(a);
    const M32 odd = _mm512_test_epi32_mask(b, _mm512_set1_epi32(0x10000));
    const U32 even_rounded = _mm512_add_epi32(b, _mm512_set1_epi32(0x7FFF));
    return _mm512_mask_add_epi32(even_rounded, odd, b, _mm512_set1_epi32(0x8000));
  }
  template <bool streaming>
  PARAMINIT_FN void store(BFloat16* out, F32 even, F32 odd) {
    // (rounded(even) >> 16) | (rounded(odd) & 0xFFFF0000)
    put<streaming>(out, _mm512_ternarylogic_epi32(
                            _mm512_srli_epi32(rounded_bfloat16(even), 16), rounded_bfloat16(odd),
                            _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)), 0xF8));
  }
  template <bool streaming>
  PARAMINIT_FN void store(uint32_t* out, U32 even, U32 odd) {
    put<streaming>(out, _mm512_unpacklo_epi32(even, odd));
    put<streaming>(out + 16, _mm512_unpackhi_epi32(even, odd));
  }
  template <bool streaming>
  PARAMINIT_FN void store(int64_t* out, U32 even, U32 odd) {
    const U32 low = _mm512_unpacklo_epi32(even, odd), high = _mm512_unpackhi_epi32(even, odd);
    put<streaming>(out, _mm512_cvtepu32_epi64(_mm512_castsi512_si256(low)));
    put<streaming>(out + 8, _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(low, 1)));
    put<streaming>(out + 16, _mm512_cvtepu32_epi64(_mm512_castsi512_si256(high)));
    put<streaming>(out + 24, _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(high, 1)));
  }
};

}  // namespace paraminit::PARAMINIT_ISA
