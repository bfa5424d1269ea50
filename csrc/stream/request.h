// A fill as plain data: key, distribution with its constants, element type.
// Every layer from ops.cpp down to the kernels passes these structs by value or by const reference.
// Depends on nothing except <bit> and <cstdint>, so that the host, the device and every instruction
// set use the same layout.
#pragma once

#include <bit>
#include <cstdint>

// GCC and Clang define the first macro, nvcc the second.
#if defined(__FAST_MATH__) || defined(__USE_FAST_MATH__)
#error "paraminit_ext cannot be compiled with fast-math: the stream fixes every rounding."
#endif

namespace paraminit {

// Any change of the values of a fill requires a new version.
constexpr int kStreamVersion = 1;

constexpr int kPhiloxRounds = 10;

struct Key {
  uint64_t seed;
  uint64_t offset;  // counts 128-bit counters
};

// The ten round keys of Philox4x32-10 and the counter of group 0.
struct KeySchedule {
  uint32_t k0[kPhiloxRounds];
  uint32_t k1[kPhiloxRounds];
  uint64_t offset;
};

// 16-bit floats are passed as their bits. Only the store functions of the lanes interpret them.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// kWord stores a raw word as int64, kWord32 as uint32.
enum class ElementType : int { kFloat32, kFloat64, kFloat16, kBFloat16, kWord, kWord32 };

inline int64_t element_size(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
    case ElementType::kWord32:
      return 4;
    case ElementType::kFloat16:
    case ElementType::kBFloat16:
      return 2;
    default:
      return 8;
  }
}

enum class Distribution : int {
  kUniform,         // start + u * range, if rounding cannot produce a value out of bounds
  kUniformClamped,  // start + u * range, clamped
  kUniformTiny,     // clamped; if range * 2^-24 (2^-53) would lose bits to underflow
  kNormal,          // mean + z * std
  kNormalClamped,   // truncated normal; z is always within the bounds, a rounded value may not be
  kTruncInterior,   // float32 only: both bounds within 2.125 standard deviations
  kTruncTwoSided,   // bounds on both sides of 0, or near it
  kTruncOneSided,   // both bounds well on one side of 0
  kWords,           // raw 32-bit words
};

// Distributions that share a kernel launch.
enum class Family { kUniform, kNormal, kTruncNormal, kWords };

constexpr Family family_of(Distribution distribution) {
  switch (distribution) {
    case Distribution::kUniform:
    case Distribution::kUniformClamped:
    case Distribution::kUniformTiny:
      return Family::kUniform;
    case Distribution::kNormal:
    case Distribution::kNormalClamped:
      return Family::kNormal;
    case Distribution::kTruncInterior:
    case Distribution::kTruncTwoSided:
    case Distribution::kTruncOneSided:
      return Family::kTruncNormal;
    case Distribution::kWords:
      break;
  }
  return Family::kWords;
}

// Degree of the polynomial that is fitted for each fill of a one-sided truncated normal.
constexpr int kTailDegree = 11;

// The constants of one fill, in the precision in which its values are computed. Fields that the
// distribution does not read are zero.
template <class Real>
struct Constants {
  Real scale;  // uniform: range * 2^-24 (2^-53), or range itself for kUniformTiny
  Real shift;  // uniform: lower bound; normal: mean
  Real std;    // normal: standard deviation; negative if a one-sided interval is below 0
  Real low;    // smallest value of the element type that the fill may write
  Real high;   // largest value of the element type that the fill may write
  // Truncated normal: the distributions in distributions.h define the meaning.
  Real slope;
  Real lower;
  Real upper;
  Real log_tail;
  Real middle;
  // float32: if r = -2 ln(1 - u^2) is at most this limit, the value needs neither a clamp nor the
  // tail polynomial. For kTruncInterior the limit is divided by kInteriorUnit.
  Real unclamped_limit;
  Real tail[kTailDegree + 1];
  uint64_t flip;  // XORed with the word: reverses the order of a one-sided interval above 0
};

struct FillRequest {
  Distribution distribution;
  ElementType type;
  KeySchedule keys;
  Constants<float> c32;   // float32, float16, bfloat16
  Constants<double> c64;  // float64
  bool streaming;         // stores may be non-temporal; does not affect values
  // Uniform: `scale` is a power of two, so that multiplication by it is exact, and no value is
  // below `low`.
  bool round_range;
};

}  // namespace paraminit
