// Replaces <immintrin.h> for csrc/cpu/lane_avx512.h on processors without AVX-512. Implements each
// intrinsic that the lane calls element by element in plain C++, as Intel's Software Developer's
// Manual (volume 2) describes its instruction. Other intrinsics do not compile.
#pragma once

#include <xmmintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#define STAND_IN static inline

template <class T, int n>
struct Elements {
  T at[n];
};
// Distinct types, like the real registers, so that floats and integers need a cast.
struct __m512i {
  uint32_t at[16];
};
struct __m256i {
  uint32_t at[8];
};
using __m512 = Elements<float, 16>;
using __m512d = Elements<double, 8>;
using __mmask16 = uint16_t;
using __mmask8 = uint8_t;

template <class To, class From>
STAND_IN To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Returns R(f(0), f(1), ...).
template <class R, class F>
STAND_IN R each(F f) {
  R r;
  for (int i = 0; i < static_cast<int>(sizeof(r.at) / sizeof(r.at[0])); ++i) r.at[i] = f(i);
  return r;
}
using Words = Elements<uint32_t, 16>;
using Words64 = Elements<uint64_t, 8>;
STAND_IN Words words(__m512i a) { return bits_as<Words>(a); }
STAND_IN Words64 words64(__m512i a) { return bits_as<Words64>(a); }
template <class F>
STAND_IN __m512i each32(F f) {
  return bits_as<__m512i>(each<Words>(f));
}
template <class F>
STAND_IN __m512i each64(F f) {
  return bits_as<__m512i>(each<Words64>(f));
}
// Returns a mask with bit i set if f(i) is true.
template <class Mask, class F>
STAND_IN Mask mask_of(F f) {
  unsigned mask = 0;
  for (unsigned i = 0; i < 8 * sizeof(Mask); ++i) mask |= (f(i) ? 1u : 0u) << i;
  return static_cast<Mask>(mask);
}
STAND_IN bool bit(unsigned mask, int i) { return (mask >> i & 1) != 0; }

// --- integers
STAND_IN __m512i _mm512_set1_epi32(int a) {
  return each32([&](int) { return static_cast<uint32_t>(a); });
}
STAND_IN __m512i _mm512_set1_epi64(long long a) {
  return each64([&](int) { return static_cast<uint64_t>(a); });
}
STAND_IN __m512i _mm512_setr_epi64(long long a, long long b, long long c, long long d, long long e,
                                   long long f, long long g, long long h) {
  const long long all[] = {a, b, c, d, e, f, g, h};
  return each64([&](int i) { return static_cast<uint64_t>(all[i]); });
}
STAND_IN __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return each32([&](int i) { return words(a).at[i] + words(b).at[i]; });
}
STAND_IN __m512i _mm512_add_epi64(__m512i a, __m512i b) {
  return each64([&](int i) { return words64(a).at[i] + words64(b).at[i]; });
}
STAND_IN __m512i _mm512_sub_epi32(__m512i a, __m512i b) {
  return each32([&](int i) { return words(a).at[i] - words(b).at[i]; });
}
STAND_IN __m512i _mm512_mul_epu32(__m512i a, __m512i b) {
  return each64(
      [&](int i) { return (words64(a).at[i] & 0xFFFFFFFFu) * (words64(b).at[i] & 0xFFFFFFFFu); });
}
STAND_IN __m512i _mm512_and_si512(__m512i a, __m512i b) {
  return each32([&](int i) { return words(a).at[i] & words(b).at[i]; });
}
STAND_IN __m512i _mm512_xor_si512(__m512i a, __m512i b) {
  return each32([&](int i) { return words(a).at[i] ^ words(b).at[i]; });
}
// For each bit position, the bits of a, b and c form the index (0 to 7) of a bit of `table`, which
// is the result.
STAND_IN __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
  return each32([&](int i) {
    const uint32_t x = words(a).at[i], y = words(b).at[i], z = words(c).at[i];
    uint32_t result = 0;
    for (int number = 0; number < 8; ++number) {
      if (!bit(static_cast<unsigned>(table), number)) continue;
      result |= (number & 4 ? x : ~x) & (number & 2 ? y : ~y) & (number & 1 ? z : ~z);
    }
    return result;
  });
}
STAND_IN __m512i _mm512_ternarylogic_epi64(__m512i a, __m512i b, __m512i c, int table) {
  return _mm512_ternarylogic_epi32(a, b, c, table);  // they differ only in their masked forms
}
STAND_IN __m512i _mm512_srli_epi32(__m512i a, unsigned by) {
  return each32([&](int i) { return words(a).at[i] >> by; });
}
STAND_IN __m512i _mm512_srli_epi64(__m512i a, unsigned by) {
  return each64([&](int i) { return words64(a).at[i] >> by; });
}
STAND_IN __m512i _mm512_srai_epi32(__m512i a, unsigned by) {
  return each32(
      [&](int i) { return static_cast<uint32_t>(static_cast<int32_t>(words(a).at[i]) >> by); });
}
STAND_IN __m512i _mm512_srai_epi64(__m512i a, unsigned by) {
  return each64(
      [&](int i) { return static_cast<uint64_t>(static_cast<int64_t>(words64(a).at[i]) >> by); });
}
enum _MM_PERM_ENUM : int {};
// Within each group of four, bits 2j and 2j + 1 of `order` are the index of the new element j.
STAND_IN __m512i _mm512_shuffle_epi32(__m512i a, _MM_PERM_ENUM order) {
  return each32([&](int i) { return words(a).at[(i & ~3) + (order >> 2 * (i & 3) & 3)]; });
}
STAND_IN __m512i _mm512_mask_shuffle_epi32(__m512i kept, __mmask16 mask, __m512i a,
                                           _MM_PERM_ENUM order) {
  const __m512i moved = _mm512_shuffle_epi32(a, order);
  return each32([&](int i) { return bit(mask, i) ? words(moved).at[i] : words(kept).at[i]; });
}
STAND_IN __m512i _mm512_maskz_shuffle_epi32(__mmask16 mask, __m512i a, _MM_PERM_ENUM order) {
  return _mm512_mask_shuffle_epi32(_mm512_set1_epi32(0), mask, a, order);
}
STAND_IN __m512i _mm512_maskz_compress_epi32(__mmask16 mask, __m512i a) {
  uint32_t front[16] = {};
  int n = 0;
  for (int i = 0; i < 16; ++i) {
    if (bit(mask, i)) front[n++] = words(a).at[i];
  }
  return each32([&](int i) { return front[i]; });
}
STAND_IN __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i,
                                   int j, int k, int l, int m, int n, int o, int p) {
  const int all[] = {a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
  return each32([&](int at) { return static_cast<uint32_t>(all[at]); });
}
STAND_IN __m512i _mm512_mask_add_epi32(__m512i kept, __mmask16 mask, __m512i a, __m512i b) {
  return each32(
      [&](int i) { return bit(mask, i) ? words(a).at[i] + words(b).at[i] : words(kept).at[i]; });
}
STAND_IN __m512i _mm512_mask_min_epu32(__m512i kept, __mmask16 mask, __m512i a, __m512i b) {
  return each32([&](int i) {
    const uint32_t x = words(a).at[i], y = words(b).at[i];
    return !bit(mask, i) ? words(kept).at[i] : x < y ? x : y;
  });
}
STAND_IN __mmask16 _mm512_cmple_epu32_mask(__m512i a, __m512i b) {
  return mask_of<__mmask16>([&](int i) { return words(a).at[i] <= words(b).at[i]; });
}
STAND_IN __mmask16 _mm512_movepi32_mask(__m512i a) {
  return mask_of<__mmask16>([&](int i) { return words(a).at[i] >> 31; });
}
STAND_IN __mmask8 _mm512_movepi64_mask(__m512i a) {
  return mask_of<__mmask8>([&](int i) { return words64(a).at[i] >> 63; });
}
STAND_IN __mmask16 _mm512_cmpgt_epi32_mask(__m512i a, __m512i b) {
  return mask_of<__mmask16>([&](int i) {
    return static_cast<int32_t>(words(a).at[i]) > static_cast<int32_t>(words(b).at[i]);
  });
}
STAND_IN __mmask8 _mm512_cmpgt_epi64_mask(__m512i a, __m512i b) {
  return mask_of<__mmask8>([&](int i) {
    return static_cast<int64_t>(words64(a).at[i]) > static_cast<int64_t>(words64(b).at[i]);
  });
}
STAND_IN __mmask16 _mm512_test_epi32_mask(__m512i a, __m512i b) {
  return mask_of<__mmask16>([&](int i) { return (words(a).at[i] & words(b).at[i]) != 0; });
}
// Interleaves the low (first = 0) or high (first = 1) halves of each 128 bits of a and b.
template <class R>
STAND_IN R unpacked(const R& a, const R& b, int first) {
  constexpr int per_128 = 16 / sizeof(a.at[0]);
  return each<R>([&](int i) {
    const int from = i / per_128 * per_128 + i % per_128 / 2 + first * per_128 / 2;
    return i % 2 == 0 ? a.at[from] : b.at[from];
  });
}
STAND_IN __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
  return bits_as<__m512i>(unpacked(words(a), words(b), 0));
}
STAND_IN __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
  return bits_as<__m512i>(unpacked(words(a), words(b), 1));
}
STAND_IN __m256i _mm512_extracti64x4_epi64(__m512i a, int half) {
  return each<__m256i>([&](int i) { return a.at[i + 8 * half]; });
}
STAND_IN __m256i _mm512_castsi512_si256(__m512i a) { return _mm512_extracti64x4_epi64(a, 0); }
STAND_IN __m512i _mm512_cvtepu32_epi64(__m256i a) {
  return each64([&](int i) { return uint64_t(a.at[i]); });
}

// --- casts keep the bits, conversions use the rounding mode
STAND_IN __m512i _mm512_castps_si512(__m512 a) { return bits_as<__m512i>(a); }
STAND_IN __m512i _mm512_castpd_si512(__m512d a) { return bits_as<__m512i>(a); }
STAND_IN __m512 _mm512_castsi512_ps(__m512i a) { return bits_as<__m512>(a); }
STAND_IN __m512d _mm512_castsi512_pd(__m512i a) { return bits_as<__m512d>(a); }
STAND_IN __m512 _mm512_cvtepi32_ps(__m512i a) {
  return each<__m512>(
      [&](int i) { return static_cast<float>(static_cast<int32_t>(words(a).at[i])); });
}
STAND_IN __m512 _mm512_cvtepu32_ps(__m512i a) {
  return each<__m512>([&](int i) { return static_cast<float>(words(a).at[i]); });
}
STAND_IN __m512d _mm512_cvtepi64_pd(__m512i a) {
  return each<__m512d>(
      [&](int i) { return static_cast<double>(static_cast<int64_t>(words64(a).at[i])); });
}
#define _MM_FROUND_TO_NEAREST_INT 0
#define _MM_FROUND_NO_EXC 8
// Rounds to nearest even in any rounding mode. Halves are 2^-24 apart up to 2^-14, and above that
// 2^-10 times the start of their binade.
STAND_IN uint32_t half_bits(float a) {
  const uint32_t sign = bits_as<uint32_t>(a) >> 16 & 0x8000;
  const double size = std::fabs(static_cast<double>(a));
  if (!(size < 65520.0)) return sign | (size == size ? 0x7C00 : 0x7E00);
  int exponent = -13;  // of the half's binade, [2^(exponent - 1), 2^exponent)
  if (size >= 0x1p-14) std::frexp(size, &exponent);
  const double steps = std::ldexp(size, 11 - exponent);  // exact, below 2^11
  const double down = std::floor(steps), rest = steps - down;
  const uint32_t even = static_cast<uint32_t>(down);
  const uint32_t near = even + (rest > 0.5 || (rest == 0.5 && even % 2 == 1) ? 1 : 0);
  // The leading bit of a normal half's 11 bits adds 1 to the exponent field, as does a carry.
  return sign | ((static_cast<uint32_t>(exponent + 13) << 10) + near);
}
STAND_IN __m256i _mm512_cvtps_ph(__m512 a, int rounding) {
  if (rounding != (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) std::abort();
  return each<__m256i>(
      [&](int i) { return half_bits(a.at[2 * i]) | half_bits(a.at[2 * i + 1]) << 16; });
}

// --- float32 and float64; R is the register type
#define STAND_IN_REALS(ps, R, Mask, T)                                                    \
  STAND_IN R _mm512_set1_##ps(T a) {                                                      \
    return each<R>([&](int) { return a; });                                               \
  }                                                                                       \
  STAND_IN R _mm512_add_##ps(R a, R b) {                                                  \
    return each<R>([&](int i) { return a.at[i] + b.at[i]; });                             \
  }                                                                                       \
  STAND_IN R _mm512_sub_##ps(R a, R b) {                                                  \
    return each<R>([&](int i) { return a.at[i] - b.at[i]; });                             \
  }                                                                                       \
  STAND_IN R _mm512_mul_##ps(R a, R b) {                                                  \
    return each<R>([&](int i) { return a.at[i] * b.at[i]; });                             \
  }                                                                                       \
  STAND_IN R _mm512_fmadd_##ps(R a, R b, R c) {                                           \
    return each<R>([&](int i) { return std::fma(a.at[i], b.at[i], c.at[i]); });           \
  }                                                                                       \
  STAND_IN R _mm512_sqrt_##ps(R a) {                                                      \
    return each<R>([&](int i) { return std::sqrt(a.at[i]); });                            \
  }                                                                                       \
  /* Returns b if neither operand is less than the other or one is NaN. */                \
  STAND_IN R _mm512_min_##ps(R a, R b) {                                                  \
    return each<R>([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });         \
  }                                                                                       \
  STAND_IN R _mm512_max_##ps(R a, R b) {                                                  \
    return each<R>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });         \
  }                                                                                       \
  STAND_IN Mask _mm512_cmp_##ps##_mask(R a, R b, int predicate) {                         \
    if (predicate != _CMP_GT_OQ) std::abort();                                            \
    return mask_of<Mask>([&](int i) { return a.at[i] > b.at[i]; });                       \
  }                                                                                       \
  STAND_IN R _mm512_mask_blend_##ps(Mask mask, R clear, R set) {                          \
    return each<R>([&](int i) { return bit(mask, i) ? set.at[i] : clear.at[i]; });        \
  }                                                                                       \
  STAND_IN R _mm512_mask_sub_##ps(R kept, Mask mask, R a, R b) {                          \
    return each<R>([&](int i) { return bit(mask, i) ? a.at[i] - b.at[i] : kept.at[i]; }); \
  }                                                                                       \
  STAND_IN R _mm512_maskz_add_##ps(Mask mask, R a, R b) {                                 \
    return each<R>([&](int i) { return bit(mask, i) ? a.at[i] + b.at[i] : T(0); });       \
  }                                                                                       \
  STAND_IN R _mm512_getmant_##ps(R a, int interval, int sign) {                           \
    if (interval != _MM_MANT_NORM_p5_1 || sign != _MM_MANT_SIGN_src) std::abort();        \
    return each<R>([&](int i) { return mantissa(a.at[i]); });                             \
  }                                                                                       \
  STAND_IN R _mm512_getexp_##ps(R a) {                                                    \
    return each<R>([&](int i) { return std::logb(a.at[i]); });                            \
  }                                                                                       \
  STAND_IN R _mm512_unpacklo_##ps(R a, R b) { return unpacked(a, b, 0); }                 \
  STAND_IN R _mm512_unpackhi_##ps(R a, R b) { return unpacked(a, b, 1); }

#define _CMP_GT_OQ 30
enum { _MM_MANT_NORM_p5_1 = 2, _MM_MANT_SIGN_src = 0 };
// Returns the mantissa in [1/2, 1) with the sign of a. For zeros and infinities, returns 1 with the
// sign of a.
template <class T>
STAND_IN T mantissa(T a) {
  int exponent = 0;
  if (a == 0 || std::isinf(a)) return std::copysign(T(1), a);
  return std::frexp(a, &exponent);
}
STAND_IN_REALS(ps, __m512, __mmask16, float)
STAND_IN_REALS(pd, __m512d, __mmask8, double)
#undef STAND_IN_REALS
STAND_IN __m512d _mm512_div_pd(__m512d a, __m512d b) {
  return each<__m512d>([&](int i) { return a.at[i] / b.at[i]; });
}
// GCC and Clang support unary minus on the real types.
STAND_IN __m512 operator-(__m512 a) {
  return each<__m512>([&](int i) { return -a.at[i]; });
}
STAND_IN __m512d operator-(__m512d a) {
  return each<__m512d>([&](int i) { return -a.at[i]; });
}

// --- memory; a misaligned non-temporal store is a fault
STAND_IN __m512i _mm512_loadu_si512(const void* from) {
  __m512i a;
  std::memcpy(&a, from, sizeof(a));
  return a;
}
template <class R>
STAND_IN void store_aligned(void* to, const R& a) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(a) != 0) {
    std::fputs("a misaligned non-temporal store\n", stderr);
    std::abort();
  }
  std::memcpy(to, &a, sizeof(a));
}
STAND_IN void _mm512_storeu_si512(void* to, __m512i a) { std::memcpy(to, &a, sizeof(a)); }
STAND_IN void _mm256_storeu_si256(__m256i* to, __m256i a) { std::memcpy(to, &a, sizeof(a)); }
STAND_IN void _mm512_stream_si512(__m512i* to, __m512i a) { store_aligned(to, a); }
STAND_IN void _mm256_stream_si256(__m256i* to, __m256i a) { store_aligned(to, a); }
