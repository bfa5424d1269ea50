// The scalar lane: plain C++ for any CPU. It is the reference with which the vector lanes are
// compared. fma() is one instruction if the target has it, otherwise a call of libm's fma, which is
// exact.
#pragma once

#include "request.h"

namespace paraminit::PARAMINIT_ISA {

struct Lane {
  static constexpr int kGroups = 1;           // counters per U64
  static constexpr int kCalls = 2;            // pairs of U32 for the words of kGroups groups
  static constexpr int kUnroll = 2;           // U64s in flight
  static constexpr int kInterleaveLimit = 0;  // see Elementwise
  static constexpr bool kStreams = false;     // has non-temporal stores
  static constexpr bool kFuses = false;  // fma is an instruction; here it may be a library call

  using U32 = uint32_t;
  using U64 = uint64_t;
  using F32 = float;
  using F64 = double;
  using M32 = bool;
  using M64 = bool;

  // --- words
  template <class T>
  PARAMINIT_FN U64 counters(uint64_t first, const T*) {
    return first;
  }
  PARAMINIT_FN U64 splat_word(uint32_t w) { return w; }
  PARAMINIT_FN U64 splat64(uint64_t v) { return v; }
  PARAMINIT_FN U64 add64(U64 a, U64 b) { return a + b; }
  PARAMINIT_FN U64 mul_low32(U64 a, uint32_t b) { return (a & 0xFFFFFFFFu) * b; }
  PARAMINIT_FN U64 high32(U64 a) { return a >> 32; }
  PARAMINIT_FN U64 to_high(U64 low) { return low << 32; }
  PARAMINIT_FN U64 xor2(U64 a, U64 b) { return a ^ b; }
  PARAMINIT_FN U64 xor3(U64 a, U64 b, U64 c) { return a ^ b ^ c; }

  // --- words in memory, kWords at a time
  static constexpr int kWords = 1;
  PARAMINIT_FN U32 load(const uint32_t* from) { return *from; }
  PARAMINIT_FN void save(uint32_t* to, U32 w) { *to = w; }
  PARAMINIT_FN U32 minus(U32 a, U32 b) { return a - b; }
  // Comparisons are unsigned. Masks have one bit per word.
  PARAMINIT_FN uint32_t mask_at_most(U32 a, U32 b) { return a <= b; }
  PARAMINIT_FN U32 add_if_at_most(U32 sum, U32 a, U32 b) { return sum + (a <= b); }
  // min(least, w) if a <= b, otherwise least.
  PARAMINIT_FN U32 min_if_at_most(U32 a, U32 b, U32 w, U32 least) {
    return a <= b && w < least ? w : least;
  }

  // --- 32-bit integers to float
  PARAMINIT_FN U32 low24(U32 w) { return w & 0xFFFFFFu; }
  // 2 w + 1 plus half a turn, modulo 2^32: the angle word that sine and cosine take.
  PARAMINIT_FN U32 twice_plus_half_turn(U32 w) { return (w << 1) + 0x80000001u; }
  PARAMINIT_FN U32 flip_bits(U32 w, uint32_t mask) { return w ^ mask; }
  // The distance of w, as a signed integer, from INT32_MIN if w < 0, otherwise from INT32_MAX.
  PARAMINIT_FN U32 fold31(U32 w) { return (w >> 31 ? w : ~w) & 0x7FFFFFFFu; }
  PARAMINIT_FN F32 from_int32(U32 w) { return static_cast<float>(static_cast<int32_t>(w)); }
  PARAMINIT_FN F32 from_uint32(U32 w) { return static_cast<float>(w); }

  // --- float32
  PARAMINIT_FN F32 splat(float v) { return v; }
  PARAMINIT_FN F32 add(F32 a, F32 b) { return a + b; }
  PARAMINIT_FN F32 sub(F32 a, F32 b) { return a - b; }
  PARAMINIT_FN F32 mul(F32 a, F32 b) { return a * b; }
  PARAMINIT_FN F32 fma(F32 a, F32 b, F32 c) { return __builtin_fmaf(a, b, c); }
  PARAMINIT_FN F32 sqrt(F32 a) { return __builtin_sqrtf(a); }
  PARAMINIT_FN F32 negate(F32 a) { return -a; }
  PARAMINIT_FN F32 minimum(F32 a, F32 bound) { return a < bound ? a : bound; }
  PARAMINIT_FN F32 maximum(F32 a, F32 bound) { return a > bound ? a : bound; }
  PARAMINIT_FN M32 greater(F32 a, F32 b) { return a > b; }
  PARAMINIT_FN F32 select(M32 m, F32 a, F32 b) { return m ? a : b; }
  PARAMINIT_FN bool any(bool m) { return m; }
  PARAMINIT_FN uint32_t bits(F32 a) {
    uint32_t b;
    __builtin_memcpy(&b, &a, 4);
    return b;
  }
  PARAMINIT_FN F32 from_bits(uint32_t b) {
    float a;
    __builtin_memcpy(&a, &b, 4);
    return a;
  }
  PARAMINIT_FN F32 flip_sign(F32 a, U32 w) { return from_bits(bits(a) ^ (w & 0x80000000u)); }
  PARAMINIT_FN F32 select_sign(U32 w, F32 set, F32 clear) { return w >> 31 ? set : clear; }
  // s = (1 + f) 2^exponent with f in [-1/2, 0), for positive normal s.
  PARAMINIT_FN void split(F32 s, F32& f, F32& exponent) {
    const uint32_t b = bits(s);
    f = from_bits((b & 0x7FFFFFu) | 0x3F000000u) - 1.0f;
    exponent = static_cast<float>(static_cast<int32_t>(b >> 23) - 126);
  }
  // As split() for v >= 0. For negative v, f = v and exponent = 0.
  PARAMINIT_FN void split_signed(F32 v, F32& f, F32& exponent) {
    split(v, f, exponent);
    if (v < 0) {
      f = v;
      exponent = 0.0f;
    }
  }

  // --- float64
  PARAMINIT_FN F64 splat(double v) { return v; }
  PARAMINIT_FN F64 add(F64 a, F64 b) { return a + b; }
  PARAMINIT_FN F64 sub(F64 a, F64 b) { return a - b; }
  PARAMINIT_FN F64 mul(F64 a, F64 b) { return a * b; }
  PARAMINIT_FN F64 div(F64 a, F64 b) { return a / b; }
  PARAMINIT_FN F64 fma(F64 a, F64 b, F64 c) { return __builtin_fma(a, b, c); }
  PARAMINIT_FN F64 sqrt(F64 a) { return __builtin_sqrt(a); }
  PARAMINIT_FN F64 negate(F64 a) { return -a; }
  PARAMINIT_FN F64 minimum(F64 a, F64 bound) { return a < bound ? a : bound; }
  PARAMINIT_FN F64 maximum(F64 a, F64 bound) { return a > bound ? a : bound; }
  PARAMINIT_FN M64 greater(F64 a, F64 b) { return a > b; }
  PARAMINIT_FN F64 select(M64 m, F64 a, F64 b) { return m ? a : b; }
  PARAMINIT_FN uint64_t bits(F64 a) {
    uint64_t b;
    __builtin_memcpy(&b, &a, 8);
    return b;
  }
  PARAMINIT_FN F64 from_bits64(uint64_t b) {
    double a;
    __builtin_memcpy(&a, &b, 8);
    return a;
  }
  PARAMINIT_FN U64 flip_bits64(U64 x, uint64_t mask) { return x ^ mask; }
  // Unlike fold31(), the distance of the unsigned x from 0 if bit 63 is clear, otherwise from 2^64
  // - 1.
  PARAMINIT_FN U64 fold63(U64 x) { return (x >> 63 ? ~x : x) & 0x7FFFFFFFFFFFFFFFu; }
  PARAMINIT_FN F64 from_low53(U64 x) { return static_cast<double>(x & 0x1FFFFFFFFFFFFFu); }
  PARAMINIT_FN F64 from_high53(U64 x) { return static_cast<double>(x >> 11); }
  PARAMINIT_FN F64 from_high53_signed(U64 x) {
    return static_cast<double>(static_cast<int64_t>(x) >> 11);
  }
  PARAMINIT_FN F64 fraction52(U64 x) {
    return from_bits64((x >> 11 & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u);
  }
  PARAMINIT_FN F64 flip_sign64(F64 a, U64 x) {
    return from_bits64(bits(a) ^ (x & 0x8000000000000000u));
  }
  PARAMINIT_FN F64 select_sign64(U64 x, F64 set, F64 clear) { return x >> 63 ? set : clear; }
  PARAMINIT_FN void split(F64 s, F64& f, F64& exponent) {
    const uint64_t b = bits(s);
    f = from_bits64((b & 0xFFFFFFFFFFFFFu) | 0x3FE0000000000000u) - 1.0;
    exponent = static_cast<double>(static_cast<int64_t>(b >> 52) - 1022);
  }
  PARAMINIT_FN void split_signed(F64 v, F64& f, F64& exponent) {
    split(v, f, exponent);
    if (v < 0) {
      f = v;
      exponent = 0.0;
    }
  }

  // --- stores of elements 2n and 2n + 1 of a run
  template <bool streaming>
  PARAMINIT_FN void store(float* out, F32 even, F32 odd) {
    out[0] = even;
    out[1] = odd;
  }
  template <bool streaming>
  PARAMINIT_FN void store(double* out, F64 even, F64 odd) {
    out[0] = even;
    out[1] = odd;
  }
  template <bool streaming>
  PARAMINIT_FN void store(BFloat16* out, F32 even, F32 odd) {
    out[0].bits = to_bfloat16(even);
    out[1].bits = to_bfloat16(odd);
  }
  template <bool streaming>
  PARAMINIT_FN void store(Half* out, F32 even, F32 odd) {
    out[0].bits = to_half(even);
    out[1].bits = to_half(odd);
  }
  template <bool streaming>
  PARAMINIT_FN void store(uint32_t* out, U32 even, U32 odd) {
    out[0] = even;
    out[1] = odd;
  }
  template <bool streaming>
  PARAMINIT_FN void store(int64_t* out, U32 even, U32 odd) {
    out[0] = even;
    out[1] = odd;
  }
  // Rounds to nearest even. A fill never has a NaN value.
  PARAMINIT_FN uint16_t to_bfloat16(F32 a) {
    const uint32_t b = bits(a);
    return static_cast<uint16_t>((b + 0x7FFFu + (b >> 16 & 1u)) >> 16);
  }
  PARAMINIT_FN uint16_t to_half(F32 a) {
    const uint32_t b = bits(a), sign = b >> 16 & 0x8000u, magnitude = b & 0x7FFFFFFFu;
    if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and up
    if (magnitude < 0x38800000u) {
      // Subnormal: adding 1/2 aligns the last bit of the half with the last bit of the float, so
      // that the addition rounds correctly.
      return static_cast<uint16_t>(sign | (bits(from_bits(magnitude) + 0.5f) - 0x3F000000u));
    }
    const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
    return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
  }
};

}  // namespace paraminit::PARAMINIT_ISA
