// Statistics of a tensor, and how to merge the statistics of two parts.
// Merging the same parts in the same order gives the same bits on every device and instruction set.
// Plain data for host and device. Does not depend on torch.
#pragma once

#include "request.h"

namespace paraminit {

// For a complex tensor, `mean` and `mean_imag` are the real and imaginary part of the mean,
// `squares` is the sum over both parts, and `least` and `greatest` are over all real and imaginary
// parts. A complex element counts as NaN, otherwise infinite, otherwise subnormal, if one of its
// parts is, and as zero if both parts are zero.
struct Statistics {
  int64_t finite;  // number of finite elements; the fields after the counts refer to them
  int64_t zeros;
  int64_t subnormals;
  int64_t nans;
  int64_t infinities;
  double mean;  // may be inf or NaN if the sum of the elements overflows a double
  double mean_imag;
  double squares;   // sum of squared deviations from the mean
  double least;     // +inf if no element is finite
  double greatest;  // -inf if no element is finite
};

constexpr int kStatistics = 10;

constexpr Statistics empty_statistics() {
  return {0, 0, 0, 0, 0, 0.0, 0.0, 0.0, __builtin_huge_val(), -__builtin_huge_val()};
}

// Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances" (1979), equations 2.1.
constexpr Statistics merged(const Statistics& a, const Statistics& b) {
  Statistics both = a.finite == 0 ? b : a;
  both.finite = a.finite + b.finite;
  both.zeros = a.zeros + b.zeros;
  both.subnormals = a.subnormals + b.subnormals;
  both.nans = a.nans + b.nans;
  both.infinities = a.infinities + b.infinities;
  if (a.finite == 0 || b.finite == 0) return both;
  const double share = static_cast<double>(b.finite) / static_cast<double>(both.finite);
  const double delta = b.mean - a.mean, delta_imag = b.mean_imag - a.mean_imag;
  both.mean = a.mean + delta * share;
  both.mean_imag = a.mean_imag + delta_imag * share;
  both.squares =
      a.squares + b.squares +
      (delta * delta + delta_imag * delta_imag) * (static_cast<double>(a.finite) * share);
  both.least = b.least < a.least ? b.least : a.least;
  both.greatest = b.greatest > a.greatest ? b.greatest : a.greatest;
  return both;
}

// --- one number ------------------------------------------------------------------------------

constexpr double number(float x) { return x; }
constexpr double number(double x) { return x; }
constexpr double number(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
constexpr double number(Half x) {
  const uint32_t magnitude = x.bits & 0x7FFFu, sign = (x.bits & 0x8000u) << 16;
  // Move exponent and fraction to their place in a float, then multiply by 2^112 because the
  // exponent biases differ by 112. For inf and NaN, set all exponent bits.
  if (magnitude >= 0x7C00u) return std::bit_cast<float>(sign | magnitude << 13 | 0x7F800000u);
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return sign == 0 ? value : -value;
}

template <class T>
inline constexpr double kLeastNormal = 0x1p-126;
template <>
inline constexpr double kLeastNormal<double> = 0x1p-1022;
template <>
inline constexpr double kLeastNormal<Half> = 0x1p-14;

// The class of a real or complex element.
enum class NumberKind { kNan, kInfinite, kZero, kSubnormal, kNormal };

template <class T>
constexpr NumberKind kind_of(const double (&v)[2]) {
  const double real = v[0] < 0.0 ? -v[0] : v[0], imag = v[1] < 0.0 ? -v[1] : v[1];
  if (real != real || imag != imag) return NumberKind::kNan;
  if (real == __builtin_huge_val() || imag == __builtin_huge_val()) return NumberKind::kInfinite;
  if (real == 0.0 && imag == 0.0) return NumberKind::kZero;
  const bool tiny =
      (real != 0.0 && real < kLeastNormal<T>) || (imag != 0.0 && imag < kLeastNormal<T>);
  return tiny ? NumberKind::kSubnormal : NumberKind::kNormal;
}

// Sets mean and squares from the sums of the differences from k and of their squares. Requires
// s.finite > 0.
constexpr void set_moments(Statistics& s, const double (&k)[2], const double (&sums)[2],
                           double squares) {
  const auto count = static_cast<double>(s.finite);
  s.mean = k[0] + sums[0] / count;
  s.mean_imag = k[1] + sums[1] / count;
  s.squares = squares - (sums[0] * sums[0] + sums[1] * sums[1]) / count;
  if (s.squares < 0.0) s.squares = 0.0;
  // The squares overflowed a double.
  if (s.squares != s.squares) s.squares = __builtin_huge_val();
}

// Stores the fields as doubles, in their order of declaration.
constexpr void store(const Statistics& s, double* out) {
  const int64_t counts[] = {s.finite, s.zeros, s.subnormals, s.nans, s.infinities};
  const double values[] = {s.mean, s.mean_imag, s.squares, s.least, s.greatest};
  for (int i = 0; i < 5; ++i) {
    out[i] = static_cast<double>(counts[i]);
    out[5 + i] = values[i];
  }
}

// Elements in a unit of work. The division into units fixes the order in which parts are merged.
constexpr int64_t kStatisticsUnit = int64_t{1} << 16;

}  // namespace paraminit
