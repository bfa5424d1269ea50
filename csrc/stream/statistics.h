// What a tensor holds, in a few numbers, and how those of two parts become those of both.
// The same parts merged in the same order give the same bits on every device and instruction set.
// Plain data for host and device. Knows no torch.
#pragma once

#include "request.h"

namespace paraminit {

// Of a complex tensor, `mean` and `mean_imag` are the parts of the mean, `squares` belongs to both
// parts together, and `least` and `greatest` are over the parts of its elements; an element is
// subnormal, infinite or no number if one of its parts is (NaN before infinite), zero if both are.
struct Statistics {
  int64_t finite;  // elements; what follows the counts is over these
  int64_t zeros;
  int64_t subnormals;
  int64_t nans;
  int64_t infinities;
  double mean;
  double mean_imag;
  double squares;  // sum of squared distances from the mean
  double least;    // +inf where nothing is finite
  double greatest;
};

constexpr int kStatistics = 10;

constexpr Statistics no_statistics() {
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
  const double apart = b.mean - a.mean, apart_imag = b.mean_imag - a.mean_imag;
  both.mean = a.mean + apart * share;
  both.mean_imag = a.mean_imag + apart_imag * share;
  both.squares =
      a.squares + b.squares +
      (apart * apart + apart_imag * apart_imag) * (static_cast<double>(a.finite) * share);
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
  // The exponent of a half in the place of a float's, which is 112 more; that of inf and NaN too.
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

// What an element of one or two numbers is.
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

// Of sums of distances from k, and of their squares, over count > 0 finite elements.
constexpr void set_moments(Statistics& s, const double (&k)[2], const double (&sums)[2],
                           double squares) {
  const auto count = static_cast<double>(s.finite);
  s.mean = k[0] + sums[0] / count;
  s.mean_imag = k[1] + sums[1] / count;
  s.squares = squares - (sums[0] * sums[0] + sums[1] * sums[1]) / count;
  if (s.squares < 0.0) s.squares = 0.0;
  // Of squares that are too large for a double.
  if (s.squares != s.squares) s.squares = __builtin_huge_val();
}

// As numbers, in the order of the fields.
constexpr void store(const Statistics& s, double* out) {
  const int64_t counts[] = {s.finite, s.zeros, s.subnormals, s.nans, s.infinities};
  const double values[] = {s.mean, s.mean_imag, s.squares, s.least, s.greatest};
  for (int i = 0; i < 5; ++i) {
    out[i] = static_cast<double>(counts[i]);
    out[5 + i] = values[i];
  }
}

// What is read together, and cut no further: elements.
constexpr int64_t kStatisticsUnit = int64_t{1} << 16;

}  // namespace paraminit
