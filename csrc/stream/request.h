// What a fill is, as plain data: key, distribution with its constants, element type.
// Every layer from ops.cpp down to the kernels passes these structs by value or by const reference.
// Depends on nothing but <bit> and <cstdint>, so that host, device and every instruction set read
// the same bytes.
#pragma once

#include <bit>
#include <cstdint>

// GCC and Clang define the first macro, nvcc the second.
#if defined(__FAST_MATH__) || defined(__USE_FAST_MATH__)
#error "paraminit_ext cannot be compiled with fast-math: the stream fixes every rounding."
#endif

namespace paraminit {

// The numbers of a fill change only together with this version.
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

// 16-bit floats travel as their bits: no instruction set but the store needs to know them.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// kWord is a raw word in an int64, kWord32 the word alone.
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
  kUniform,         // start + u * range, where no rounding can take it to or past a bound
  kUniformClamped,  // the same, clamped
  kUniformTiny,     // the same, clamped, where range * 2^-24 (2^-53) would lose bits to underflow
  kNormal,          // mean + z * std
  kNormalClamped,   // truncated normal whose bounds z does not reach, but a rounded value may
  kTruncInterior,   // float32 only: both bounds within 2.125 standard deviations
  kTruncTwoSided,   // bounds on both sides of 0, or near it
  kTruncOneSided,   // both bounds well on one side of 0
  kWords,           // raw 32-bit words
};

// Distributions that share their launches.
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

// Degree of the polynomial that a fill of a one-sided truncated normal fits for itself.
constexpr int kTailDegree = 11;

// The constants of one fill, in the precision in which its values are computed. A field that a
// distribution does not read is zero.
template <class Real>
struct Constants {
  Real scale;  // uniform: range * 2^-24 (2^-53), or range itself for kUniformTiny
  Real shift;  // uniform: lower bound; normal: mean
  Real std;    // normal: standard deviation, negative where a one-sided interval lies below 0
  Real low;    // least value of the element type that the fill may write
  Real high;   // greatest such value
  // Truncated normal; the distribution that reads them says what they mean.
  Real slope;
  Real lower;
  Real upper;
  Real log_tail;
  Real middle;
  // float32: at most this -2 ln(1 - u^2), no bound can bind and no tail is reached; of
  // kTruncInterior in units of kInteriorUnit.
  Real calm;
  Real tail[kTailDegree + 1];
  uint64_t flip;  // xor on the word: all ones where a one-sided interval counts from its far end
};

struct FillRequest {
  Distribution distribution;
  ElementType type;
  KeySchedule keys;
  Constants<float> c32;   // float32, float16, bfloat16
  Constants<double> c64;  // float64
  bool streaming;         // stores may pass by the caches; says nothing about values
  // Uniform: `scale` is a power of two, so that its products are exact, and no value is below
  // `low`.
  bool round_range;
};

}  // namespace paraminit
