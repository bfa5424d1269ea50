// Maps integer words to reals: logarithm, radius and angle of Box-Muller, normal quantile function.
// Every function is one fixed sequence of IEEE add, mul, fma, sqrt, div and exact integer or
// conversion operations, so that all lanes agree bit for bit. No libm, no lookup tables.
// Polynomials are minimax fits of this project. tests/test_numbers.py checks the stated error
// bounds.
#pragma once

#include "request.h"

namespace paraminit::PARAMINIT_ISA {

// Returns sum c[k] x^k by Horner's rule with one fma per term.
template <class L, class V, class Real, int terms>
PARAMINIT_FN V polynomial(V x, const Real (&c)[terms]) {
  V sum = L::splat(c[terms - 1]);
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int k = terms - 2; k >= 0; --k) sum = L::fma(sum, x, L::splat(c[k]));
  return sum;
}

// The bits of a number, for use as a template argument: Clang before 18 accepts no floating-point
// template arguments.
constexpr uint32_t bits_of(float v) { return std::bit_cast<uint32_t>(v); }
constexpr uint64_t bits_of(double v) { return std::bit_cast<uint64_t>(v); }

// Returns the number with these bits in every lane. For an instruction with two
// constants, of which only one can be an immediate: a lane may choose where the other is stored.
template <class L, auto bits>
PARAMINIT_FN auto splat_bits() {
  if constexpr (requires { L::template splat_bits<bits>(); }) {
    return L::template splat_bits<bits>();
  } else if constexpr (sizeof(bits) == 4) {
    return L::splat(std::bit_cast<float>(bits));
  } else {
    return L::splat(std::bit_cast<double>(bits));
  }
}

// The same sum, with the highest coefficient passed as a template argument.
template <class L, uint32_t highest, class V, int terms>
PARAMINIT_FN V polynomial(V x, const float (&c)[terms]) {
  V sum = splat_bits<L, highest>();
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int k = terms - 1; k >= 0; --k) sum = L::fma(sum, x, L::splat(c[k]));
  return sum;
}

// ---------------------------------------------------------------------------------------------
// float32

constexpr float kTwoLn2F = 0x1.62e43p+0f;  // 2 ln 2, relative error 2^-28

// Powers of two by which a lane may scale the float32 exponents that it returns and the operand of
// split_signed(). Multiplication by a power of two is exact, so values do not depend on these
// units.
template <class L>
constexpr float exponent_unit() {
  if constexpr (requires { L::kExponentUnit; }) return L::kExponentUnit;
  return 1.0f;
}
template <class L>
constexpr float signed_unit() {
  if constexpr (requires { L::kSignedUnit; }) return L::kSignedUnit;
  return 1.0f;
}
// A lane may compute r = -2 ln s, for s in [1/16, 1] only, divided by this power of two. The
// quotient is at most 1.
constexpr float kInteriorUnit = 8.0f;
template <class L>
constexpr float interior_unit() {
  if constexpr (requires { L::kInteriorExponentUnit; }) return kInteriorUnit;
  return 1.0f;
}

// -2 ln(1 + f) / f on [-1/2, 0], relative error 2^-25.3, divided by `unit`, a power of two.
template <class L, uint32_t unit = bits_of(1.0f)>
PARAMINIT_FN typename L::F32 log_quotient(typename L::F32 f) {
  constexpr float v = 1.0f / std::bit_cast<float>(unit);
  constexpr float c[] = {-0x1p+1f * v,        0x1.fffecp-1f * v,   -0x1.55a384p-1f * v,
                         0x1.f313e4p-2f * v,  -0x1.0df6dep-1f * v, -0x1.722976p-2f * v,
                         -0x1.355066p+1f * v, -0x1.a399d8p+1f * v};
  return polynomial<L, bits_of(-0x1.6a0fa8p+1f * v)>(f, c);
}

// -2 ln U, where v = U, or v = U - 1 if v is negative, so that the relative error stays small near
// U = 1. v is passed multiplied by signed_unit().
template <class L>
PARAMINIT_FN typename L::F32 minus_two_log_signed(typename L::F32 v) {
  typename L::F32 f, exponent;
  L::split_signed(v, f, exponent);
  const typename L::F32 t = L::mul(f, log_quotient<L>(f));
  return L::fma(exponent, L::splat(-kTwoLn2F / exponent_unit<L>()), t);
}

// -2 ln s for s in (0, 1]. Near s = 1 the absolute error is small, the relative error is not.
template <class L>
PARAMINIT_FN typename L::F32 minus_two_log(typename L::F32 s) {
  typename L::F32 f, exponent;
  L::split(s, f, exponent);
  const typename L::F32 t = L::mul(f, log_quotient<L>(f));
  return L::fma(exponent, L::splat(-kTwoLn2F / exponent_unit<L>()), t);
}

// -2 ln s for s in [1/16, 1], divided by interior_unit().
template <class L>
PARAMINIT_FN typename L::F32 minus_two_log_interior(typename L::F32 s) {
  if constexpr (requires { L::kInteriorExponentUnit; }) {
    constexpr float unit = kInteriorUnit;
    typename L::F32 f, exponent;
    L::split_interior(s, f, exponent);
    const typename L::F32 t = L::mul(f, log_quotient<L, bits_of(unit)>(f));
    return L::fma_interior(exponent, L::splat(-kTwoLn2F / L::kInteriorExponentUnit / unit), t);
  } else {
    return minus_two_log<L>(s);
  }
}

// sqrt(-2 ln U) for U = (w + 1/2) 2^-32, within 2 ulp. Converting w as a signed integer gives U if
// w < 2^31 and U - 1 otherwise, with one rounding.
template <class L>
PARAMINIT_FN typename L::F32 radius(typename L::U32 w) {
  constexpr float unit = signed_unit<L>();
  const typename L::F32 v = L::fma(L::from_int32(w), splat_bits<L, bits_of(0x1p-32f * unit)>(),
                                   L::splat(0x1p-33f * unit));
  return L::sqrt(minus_two_log_signed<L>(v));
}

// -a 2^-31 for 1 <= |a| <= 2^31.
template <class L>
PARAMINIT_FN typename L::F32 minus_fraction31(typename L::F32 a) {
  if constexpr (requires { L::plus_bits(a, 0u); }) {
    // Subtract 31 from the exponent and flip the sign with one integer addition. On Zen 4 a
    // multiplication would wait for the multiplier that Philox keeps busy.
    return L::plus_bits(a, 0x80000000u - (31u << 23));
  } else {
    return L::mul(a, L::splat(-0x1p-31f));
  }
}

// (R cos T, R sin T) for T = 2 pi (w + 1/2) 2^-32. With s = 2 w + 2^31 + 1 as a signed integer and
// x = -s 2^-31 in (-1, 1), T is pi/2 - pi x/2, plus pi if bit 31 of w is set. Adding pi flips the
// sign of the radius. cos(pi x/2) is zero only at h = 1 - x^2 = 0 and sin(pi x/2) only at x = 0, so
// polynomials in h give both within 2^-23 without octant reduction.
template <class L>
PARAMINIT_FN void rotate(typename L::F32 r, typename L::U32 w, typename L::F32& cosine,
                         typename L::F32& sine) {
  // cos(pi x/2) / h - 1 within 2^-31.5 of cos; (sin(pi x/2) / x - 1) / h within 2^-27.9 of sin.
  constexpr float c[] = {-0x1.b7812ap-3f, 0x1.921fa4p-3f, 0x1.1d925cp-6f, 0x1.a2c208p-11f};
  constexpr float s[] = {0x1.fffff6p-2f, 0x1.10b28ep-4f, 0x1.0aad94p-8f};
  const typename L::F32 x = minus_fraction31<L>(L::from_int32(L::twice_plus_half_turn(w)));
  const typename L::F32 h = L::fma(L::negate(x), x, L::splat(1.0f));
  const typename L::F32 signed_r = L::flip_sign(r, w);
  const typename L::F32 cos_x = L::fma(h, polynomial<L, bits_of(0x1.8f0eb4p-16f)>(h, c), h);
  const typename L::F32 sin_x =
      L::fma(x, L::mul(h, polynomial<L, bits_of(0x1.3c18cap-13f)>(h, s)), x);
  cosine = L::mul(signed_r, sin_x);
  // For the 128 words nearest to a multiple of pi, x rounds to +-1. Adding 2^-100 makes their sine
  // nonzero, and is far below half an ulp of every other sine.
  sine = L::fma(signed_r, cos_x, L::splat(0x1p-100f));
}

// z / u for erf(z / sqrt 2) = u, as a polynomial in r = -2 ln(1 - u^2), for r up to 5.45
// (|z| = 2.128). The absolute error of z is 2^-25.3. r is passed divided by interior_unit().
template <class L>
PARAMINIT_FN typename L::F32 quantile_interior(typename L::F32 r) {
  constexpr float u = interior_unit<L>(), u2 = u * u, u4 = u2 * u2;
  constexpr float c[] = {0x1.40d92ep+0f,        0x1.4ffeecp-3f * u,
                         0x1.0b4938p-8f * u2,   -0x1.ab661cp-12f * u2 * u,
                         -0x1.dd66a0p-17f * u4, 0x1.8e221ap-19f * u4 * u};
  return polynomial<L, bits_of(-0x1.d10630p-24f * u4 * u2)>(r, c);
}

// z / u for r up to 10 (|z| = 2.93). The absolute error of z is 2^-26.1.
constexpr float kCentralLimit = 10.0f;
template <class L>
PARAMINIT_FN typename L::F32 quantile_central(typename L::F32 r) {
  constexpr float c[] = {0x1.40d930p+0f,   0x1.4ffe4ap-3f,   0x1.0b8152p-8f,
                         -0x1.af9946p-12f, -0x1.89ce7cp-17f, 0x1.18e3fap-19f,
                         0x1.25f0e4p-24f,  -0x1.577406p-26f, 0x1.3586b4p-30f};
  return polynomial<L, bits_of(-0x1.8702e6p-36f)>(r, c);
}

// z as a polynomial in sqrt(r) - 5, from r = 10 to 49 (z = 6.8), within 2^-22.2.
template <class L>
PARAMINIT_FN typename L::F32 quantile_tail(typename L::F32 root_r) {
  constexpr float c[] = {0x1.312224p+2f,   0x1.01f46cp+0f,  0x1.0f4e44p-9f,
                         -0x1.ab0582p-11f, 0x1.ac3f54p-13f, -0x1.76abc8p-15f,
                         0x1.b15cf4p-18f,  0x1.1b7f64p-20f, -0x1.0bf6b4p-21f};
  return polynomial<L>(L::sub(root_r, L::splat(5.0f)), c);
}

// ---------------------------------------------------------------------------------------------
// float64

// Coefficients as a template argument, so that a lane can choose where each one is stored. On CUDA
// this is constant memory. Otherwise ptxas moves both halves of a coefficient into registers first,
// unless it fits into an instruction. The sum is recursive because GCC does not unroll a loop of so
// many terms.
template <int terms>
struct Table {
  uint64_t bits[terms];
};
template <int terms>
constexpr Table<terms> table(const double (&c)[terms]) {
  Table<terms> copy{};
  for (int k = 0; k < terms; ++k) copy.bits[k] = bits_of(c[k]);
  return copy;
}
template <class L, auto table, int k = 0, class V>
PARAMINIT_FN V polynomial(V x) {
  if constexpr (k + 1 == sizeof(table.bits) / sizeof(uint64_t)) {
    return splat_bits<L, table.bits[k]>();
  } else {
    return L::fma(polynomial<L, table, k + 1>(x), x, splat_bits<L, table.bits[k]>());
  }
}

constexpr double kTwoLn2 = 0x1.62e42fefa39efp+0;

// -2 ln(1 + f) / f on [-1/2, 0], relative error 2^-57.
template <class L>
PARAMINIT_FN typename L::F64 log_quotient64(typename L::F64 f) {
  constexpr double c[] = {-0x1.0000000000000p+1, 0x1.fffffffffff30p-1,  -0x1.5555555564030p-1,
                          0x1.fffffff2d9e6ep-2,  -0x1.99999cb6c7e58p-2, 0x1.5554e1f961420p-2,
                          -0x1.249d673f8bd48p-2, 0x1.fe7d98ed5e5f0p-3,  -0x1.da4edca5b105cp-3,
                          0x1.c424b9f69e6cdp-4,  -0x1.acf8c8590df3cp-1, -0x1.c71b7b1837302p+1,
                          -0x1.0a23b47bfab7fp+4, -0x1.c71ba49be8f7bp+5, -0x1.33aed00f612c3p+7,
                          -0x1.3f4b404bbafa8p+8, -0x1.f67e28000ffa6p+8, -0x1.219098c9e5d45p+9,
                          -0x1.cf370ba4b4ffbp+8, -0x1.ccbf4e7b02002p+7, -0x1.b3343953cb7d2p+5};
  return polynomial<L, table(c)>(f);
}

template <class L>
PARAMINIT_FN typename L::F64 minus_two_log_signed(typename L::F64 v) {
  typename L::F64 f, exponent;
  L::split_signed(v, f, exponent);
  const typename L::F64 t = L::mul(f, log_quotient64<L>(f));
  return L::fma(exponent, L::splat(-kTwoLn2), t);
}

template <class L>
PARAMINIT_FN typename L::F64 minus_two_log(typename L::F64 s) {
  typename L::F64 f, exponent;
  L::split(s, f, exponent);
  const typename L::F64 t = L::mul(f, log_quotient64<L>(f));
  return L::fma(exponent, L::splat(-kTwoLn2), t);
}

// sqrt(-2 ln((m + 1/2) 2^-53)) for the upper 53 bits m of x. m + 1/2 is exact if m < 2^52, and
// m - 2^53 + 1/2 is exact otherwise.
template <class L>
PARAMINIT_FN typename L::F64 radius64(typename L::U64 x) {
  const typename L::F64 m = L::from_high53_signed(x);
  return L::sqrt(minus_two_log_signed<L>(L::mul(L::add(m, L::splat(0.5)), L::splat(0x1p-53))));
}

// As rotate(), with T = 2 pi (m + 1/2) 2^-53. Here x is exact, so h is never zero.
template <class L>
PARAMINIT_FN void rotate64(typename L::F64 r, typename L::U64 word, typename L::F64& cosine,
                           typename L::F64& sine) {
  constexpr double c[] = {-0x1.b7812aeef4baep-3, 0x1.921fb54442f07p-3,  0x1.1d8f9b8790efap-6,
                          0x1.a37b4079a40b0p-11, 0x1.7996a19896a5dp-16, 0x1.cbc144e2100a1p-22,
                          0x1.93c7be5f4770fp-28, 0x1.166423e8e85e9p-34};
  constexpr double s[] = {0x1.000000000004fp-1,  0x1.10b0cd906a26ap-4,  0x1.0b0cd90982639p-8,
                          0x1.2c79ae36b36f5p-13, 0x1.b7085e4613cafp-19, 0x1.c1e3c7cd49f79p-25,
                          0x1.61a3c25fb3f5bp-31};
  // Bits 11 to 62 of the word are the fraction of a number in [1, 2). All operations up to x are
  // exact.
  const typename L::F64 fraction = L::fraction52(word);
  const typename L::F64 x =
      L::fma(L::sub(fraction, L::splat(1.5)), L::splat(-2.0), L::splat(-0x1p-52));
  const typename L::F64 h = L::fma(L::negate(x), x, L::splat(1.0));
  const typename L::F64 signed_r = L::flip_sign64(r, word);
  const typename L::F64 cos_x = L::fma(h, polynomial<L, table(c)>(h), h);
  const typename L::F64 sin_x = L::fma(x, L::mul(h, polynomial<L, table(s)>(h)), x);
  cosine = L::mul(signed_r, sin_x);
  sine = L::mul(signed_r, cos_x);
}

// z with Phi(z) = 1/2 + q for |q| <= 0.425: q times a rational function of 0.425^2 - q^2, relative
// error 2^-53.4. In this variable, from Wichura (1988), all terms are positive.
constexpr double kCentralHalfWidth = 0.425;
template <class L>
PARAMINIT_FN typename L::F64 quantile_central64(typename L::F64 q) {
  constexpr double p[] = {0x1.b18d91e9eef75p+1,  0x1.0a6c9b3cfb013p+7,  0x1.ed789397a3f1ap+10,
                          0x1.adf1034b6250bp+13, 0x1.67c8a0a66af1cp+15, 0x1.07c9add6f33d1p+16,
                          0x1.0687da27e6469p+15, 0x1.3bb5b4838c03bp+11};
  constexpr double d[] = {0x1.0000000000000p+0,  0x1.52ac4cf7bcc4dp+5,  0x1.57f697da028b1p+9,
                          0x1.51bc37481abeep+12, 0x1.4c5437cb72804p+14, 0x1.3431ca86db513p+15,
                          0x1.c3038c9b4f7d4p+14, 0x1.489eca731ac63p+12};
  const typename L::F64 x = L::fma(L::negate(q), q, L::splat(0.180625));
  return L::mul(q, L::div(polynomial<L, table(p)>(x), polynomial<L, table(d)>(x)));
}

// z > 0 with 1 - Phi(z) = exp(-s^2 / 2), from s = 1.875 to 39. One rational function below s = 8
// and another above it, with relative errors of 2^-53.9 and 2^-60.
constexpr double kTailSplit = 8.0;
template <class L>
PARAMINIT_FN typename L::F64 quantile_tail64(typename L::F64 s) {
  constexpr double near_p[] = {0x1.e3a7b68d6f79cp-1, 0x1.64f84fe752df0p+1,  0x1.760d411b90232p+1,
                               0x1.82f0ddb88cc3ap+0, 0x1.be2525541ce84p-2,  0x1.2c5a86a0b4ac3p-4,
                               0x1.cf341fb4410f3p-8, 0x1.66852ff326512p-12, 0x1.7f5dac9311177p-18};
  constexpr double near_d[] = {0x1.0000000000000p+0,  0x1.9cad0b54d7108p+0, 0x1.07da0b658bfe9p+0,
                               0x1.5b4aa2bd5dbb0p-2,  0x1.00444ec0497a1p-4, 0x1.a8a9a7f41532cp-8,
                               0x1.5b5968ebb6027p-12, 0x1.7f59988e63fc3p-18};
  constexpr double far_p[] = {0x1.e7b15a9b9d30ep+2,  0x1.068107795faa5p+2,  0x1.c9ea1fed0c5bap-1,
                              0x1.a06178a80c7c7p-4,  0x1.a7135ec0e5fc1p-8,  0x1.de784d0cb6adfp-13,
                              0x1.1b0ed79c06f11p-18, 0x1.2f8e0da66722ap-25, 0x1.a12494a098248p-34};
  constexpr double far_d[] = {0x1.0000000000000p+0,  0x1.9c6955806f948p-2,  0x1.02e9b890c2026p-4,
                              0x1.412379c3dc027p-8,  0x1.9cc5103de6851p-13, 0x1.088ab05a9171cp-18,
                              0x1.2909ce2e49dd8p-25, 0x1.a1247976cd1fdp-34};
  const typename L::F64 x = L::sub(s, L::splat(1.875));
  const typename L::F64 near_z =
      L::div(polynomial<L, table(near_p)>(x), polynomial<L, table(near_d)>(x));
  const typename L::M64 far = L::greater(s, L::splat(kTailSplit));
  if (!L::any(far)) return near_z;
  const typename L::F64 y = L::sub(s, L::splat(kTailSplit));
  return L::select(far, L::div(polynomial<L, table(far_p)>(y), polynomial<L, table(far_d)>(y)),
                   near_z);
}

}  // namespace paraminit::PARAMINIT_ISA
