// The lane of one CUDA thread. Uses intrinsics with explicit rounding, so that no compiler flag can
// fuse them. The only approximate instruction is the first step of the correctly rounded square
// root. Names and meanings are those of stream/lane_scalar.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../stream/request.h"
#include "instructions.cuh"

namespace paraminit::PARAMINIT_ISA {

struct Lane {
  static constexpr int kGroups = 1;
  static constexpr int kCalls = 2;

  using U32 = uint32_t;
  using U64 = uint64_t;
  using F32 = float;
  using F64 = double;
  using M32 = bool;
  using M64 = bool;

  // --- words
  PARAMINIT_FN U64 mul_low32(U64 a, uint32_t b) {
    return wide_product(static_cast<uint32_t>(a), b);
  }
  PARAMINIT_FN U64 splat_word(uint32_t w) { return w; }
  PARAMINIT_FN U64 high32(U64 a) { return a >> 32; }
  // 32-bit operations suffice, because only the low halves are read.
  PARAMINIT_FN U64 xor2(U64 a, U64 b) {
    return static_cast<uint32_t>(a) ^ static_cast<uint32_t>(b);
  }
  PARAMINIT_FN U64 xor3(U64 a, U64 b, U64 c) {
    return static_cast<uint32_t>(a) ^ static_cast<uint32_t>(b) ^ static_cast<uint32_t>(c);
  }
  PARAMINIT_FN void pairs(const U64 (&x)[4], U32 (&even)[kCalls], U32 (&odd)[kCalls]) {
    even[0] = static_cast<U32>(x[0]);
    odd[0] = static_cast<U32>(x[1]);
    even[1] = static_cast<U32>(x[2]);
    odd[1] = static_cast<U32>(x[3]);
  }
  PARAMINIT_FN void pair64(const U64 (&x)[4], U64& even, U64& odd) {
    even = x[0] << 32 | static_cast<uint32_t>(x[1]);
    odd = x[2] << 32 | static_cast<uint32_t>(x[3]);
  }

  // --- 32-bit integers to float
  PARAMINIT_FN U32 low24(U32 w) { return w & 0xFFFFFFu; }
  PARAMINIT_FN U32 twice_plus_half_turn(U32 w) { return (w << 1) + 0x80000001u; }
  PARAMINIT_FN U32 flip_bits(U32 w, uint32_t mask) { return w ^ mask; }
  PARAMINIT_FN U32 fold31(U32 w) {
    return (w ^ ~static_cast<uint32_t>(static_cast<int32_t>(w) >> 31)) & 0x7FFFFFFFu;
  }
  PARAMINIT_FN F32 from_int32(U32 w) { return __int2float_rn(static_cast<int>(w)); }
  PARAMINIT_FN F32 from_uint32(U32 w) { return __uint2float_rn(w); }

  // --- float32
  PARAMINIT_FN F32 splat(float v) { return v; }
  template <auto bits>
  PARAMINIT_FN auto splat_bits() {
    if constexpr (sizeof(bits) == 4) {
      return __uint_as_float(register_constant<bits>);
    } else {
      return __longlong_as_double(static_cast<long long>(register_constant<bits>));
    }
  }
  PARAMINIT_FN F32 add(F32 a, F32 b) { return __fadd_rn(a, b); }
  PARAMINIT_FN F32 sub(F32 a, F32 b) { return __fsub_rn(a, b); }
  PARAMINIT_FN F32 mul(F32 a, F32 b) { return __fmul_rn(a, b); }
  PARAMINIT_FN F32 fma(F32 a, F32 b, F32 c) { return __fmaf_rn(a, b, c); }
  // For 2^-100 <= a <= 2^100. These are the steps of sqrt.rn, without its branch for values outside
  // this range.
  PARAMINIT_FN F32 sqrt(F32 a) {
    const float r = approximate_rsqrt(a);
    const float root = __fmul_rn(a, r), half = __fmul_rn(r, 0.5f);
    return __fmaf_rn(__fmaf_rn(-root, root, a), half, root);
  }
  PARAMINIT_FN F32 negate(F32 a) { return -a; }
  PARAMINIT_FN F32 minimum(F32 a, F32 bound) { return fminf(a, bound); }
  PARAMINIT_FN F32 maximum(F32 a, F32 bound) { return fmaxf(a, bound); }
  PARAMINIT_FN M32 greater(F32 a, F32 b) { return a > b; }
  PARAMINIT_FN F32 select(M32 m, F32 a, F32 b) { return m ? a : b; }
  PARAMINIT_FN bool any(bool m) { return m; }
  PARAMINIT_FN F32 flip_sign(F32 a, U32 w) {
    return __uint_as_float(__float_as_uint(a) ^ (w & 0x80000000u));
  }
  PARAMINIT_FN F32 select_sign(U32 w, F32 set, F32 clear) {
    const uint32_t mask = static_cast<uint32_t>(static_cast<int32_t>(w) >> 31);
    return __uint_as_float((__float_as_uint(set) & mask) | (__float_as_uint(clear) & ~mask));
  }
  // split() returns exponents as differences of float bit patterns, that is, in this unit.
  static constexpr float kExponentUnit = 0x1p23f;
  PARAMINIT_FN void split(F32 s, F32& f, F32& exponent) {
    const uint32_t b = __float_as_uint(s);
    const uint32_t m = (b & 0x7FFFFFu) | register_constant<0x3F000000u>;
    f = __fsub_rn(__uint_as_float(m), 1.0f);
    exponent = __int2float_rn(static_cast<int>(b - m));
  }
  // For s in [1/16, 1]. The negated exponent, 0 to 3, times 2^23 is a difference of two float bit
  // patterns. Read as a float, this difference is the negated exponent times 2^-126, except that 3
  // reads as 4 and is clamped. This avoids an integer conversion. For s = 1 the exponent is 1 and
  // the difference reads as -infinity, for which fma_interior() returns 0, which is -2 ln 1.
  static constexpr float kInteriorExponentUnit = -0x1p-126f;
  PARAMINIT_FN void split_interior(F32 s, F32& f, F32& exponent) {
    const uint32_t b = __float_as_uint(s);
    const uint32_t m = (b & 0x7FFFFFu) | register_constant<0x3F000000u>;
    f = __fsub_rn(__uint_as_float(m), 1.0f);
    constexpr int three = 0x01400000;  // 3 * 2^-126
    exponent = __int_as_float(__viaddmin_s32(static_cast<int>(m), -static_cast<int>(b), three));
  }
  // Clamps the result to [0, 1], the range of -2 ln s in its unit.
  PARAMINIT_FN F32 fma_interior(F32 a, F32 b, F32 c) { return saturated_fma(a, b, c); }
  // The argument is 2 v. If v is negative, f = v and the exponent is 0. Otherwise `m` is 2 v with
  // the exponent bits of 1, and f = m / 2 - 1. Without a branch, `m` takes the bits outside of
  // `one` from b, and the other bits from `one`, or from b if v is negative.
  static constexpr float kSignedUnit = 2.0f;
  PARAMINIT_FN void split_signed(F32 twice_v, F32& f, F32& exponent) {
    const uint32_t one = 0x3F800000u;
    const uint32_t b = __float_as_uint(twice_v), low = b < one ? b : one;
    const uint32_t m = (b & ~one) | (~(b ^ low) & one);
    f = __fmaf_rn(__uint_as_float(m), 0.5f, -one_where_not_negative(twice_v));
    exponent = __int2float_rn(static_cast<int>(b - m));
  }

  // --- float64
  PARAMINIT_FN F64 splat(double v) { return v; }
  PARAMINIT_FN F64 add(F64 a, F64 b) { return __dadd_rn(a, b); }
  PARAMINIT_FN F64 sub(F64 a, F64 b) { return __dsub_rn(a, b); }
  PARAMINIT_FN F64 mul(F64 a, F64 b) { return __dmul_rn(a, b); }
  PARAMINIT_FN F64 div(F64 a, F64 b) { return __ddiv_rn(a, b); }
  PARAMINIT_FN F64 fma(F64 a, F64 b, F64 c) { return __fma_rn(a, b, c); }
  PARAMINIT_FN F64 sqrt(F64 a) { return __dsqrt_rn(a); }
  PARAMINIT_FN F64 negate(F64 a) { return -a; }
  PARAMINIT_FN F64 minimum(F64 a, F64 bound) { return ::fmin(a, bound); }
  PARAMINIT_FN F64 maximum(F64 a, F64 bound) { return ::fmax(a, bound); }
  PARAMINIT_FN M64 greater(F64 a, F64 b) { return a > b; }
  PARAMINIT_FN F64 select(M64 m, F64 a, F64 b) { return m ? a : b; }
  PARAMINIT_FN U64 bits(F64 a) { return static_cast<uint64_t>(__double_as_longlong(a)); }
  PARAMINIT_FN F64 from_bits64(U64 b) { return __longlong_as_double(static_cast<long long>(b)); }
  PARAMINIT_FN U64 flip_bits64(U64 x, uint64_t mask) { return x ^ mask; }
  PARAMINIT_FN U64 fold63(U64 x) {
    return (x ^ static_cast<uint64_t>(static_cast<int64_t>(x) >> 63)) & 0x7FFFFFFFFFFFFFFFu;
  }
  PARAMINIT_FN F64 from_low53(U64 x) { return __ull2double_rn(x & 0x1FFFFFFFFFFFFFu); }
  PARAMINIT_FN F64 from_high53(U64 x) { return __ull2double_rn(x >> 11); }
  PARAMINIT_FN F64 from_high53_signed(U64 x) {
    return __ll2double_rn(static_cast<long long>(x) >> 11);
  }
  PARAMINIT_FN F64 fraction52(U64 x) {
    return from_bits64((x >> 11 & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u);
  }
  PARAMINIT_FN F64 flip_sign64(F64 a, U64 x) {
    return from_bits64(bits(a) ^ (x & 0x8000000000000000u));
  }
  PARAMINIT_FN F64 select_sign64(U64 x, F64 set, F64 clear) {
    return static_cast<int64_t>(x) < 0 ? set : clear;
  }
  PARAMINIT_FN void split(F64 s, F64& f, F64& exponent) {
    const uint64_t b = bits(s);
    f = __dsub_rn(from_bits64((b & 0xFFFFFFFFFFFFFu) | 0x3FE0000000000000u), 1.0);
    exponent = __int2double_rn(static_cast<int>(b >> 52) - 1022);
  }
  PARAMINIT_FN void split_signed(F64 v, F64& f, F64& exponent) {
    split(v, f, exponent);
    f = v < 0 ? v : f;
    exponent = v < 0 ? 0.0 : exponent;
  }
};

}  // namespace paraminit::PARAMINIT_ISA
