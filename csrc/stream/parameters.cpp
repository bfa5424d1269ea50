// See parameters.h.
#include "parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "errors.h"

#define PARAMINIT_ISA baseline
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "lane_scalar.h"

namespace paraminit {
namespace {

double largest(ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
      return 65504.0;
    case ElementType::kBFloat16:
      return 0x1.FEp+127;
    case ElementType::kFloat32:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

// Returns the largest finite value of the type in which the values are computed.
double largest_computed(ElementType type) {
  return largest(type == ElementType::kFloat64 ? type : ElementType::kFloat32);
}

}  // namespace

void Uniform::check(ElementType type) const {
  using Error = std::runtime_error;
  const double most = largest(type);
  if (!(std::abs(a) <= most && std::abs(b) <= most)) {
    refuse<Error>(name, "expected bounds within +-", most, " (the dtype's range), got a=", a,
                  ", b=", b, ".");
  }
  if (!(a <= b)) refuse<Error>(name, "expected a <= b, got a=", a, " > b=", b, ".");
  if (!(b - a <= most)) {
    refuse<Error>(name, "expected b - a <= ", most, " (the dtype's range), got a=", a, ", b=", b,
                  ".");
  }
}

Plan Uniform::plan(ElementType type, bool) const { return plan_uniform(type, a, b); }

void Normal::check(ElementType type) const {
  using Error = std::runtime_error;
  const double most = largest_computed(type);
  if (!(std::abs(mean) <= most)) {
    refuse<Error>(name, "expected a finite mean, got mean=", mean, ".");
  }
  if (!(std >= 0 && std <= most)) {
    refuse<Error>(name, "expected a finite std >= 0, got std=", std, ".");
  }
}

// The variance of a complex normal is the sum of the variances of its real and imaginary part.
Plan Normal::plan(ElementType type, bool complex) const {
  return plan_normal(type, mean, complex ? std / std::sqrt(2.0) : std);
}

void TruncNormal::check(ElementType type) const {
  const double most = largest_computed(type);
  if (!(std::abs(mean) <= most)) {
    refuse<ValueError>(name, "expected a finite mean, got mean=", mean, ".");
  }
  if (!(std > 0 && std <= most && (type == ElementType::kFloat64 || float(std) > 0))) {
    refuse<ValueError>(name, "expected a finite std > 0, got std=", std,
                       ". Use constant_ to fill a single value.");
  }
  if (!(a <= b)) refuse<ValueError>(name, "expected a <= b, got a=", a, ", b=", b, ".");
  if (!(a <= most && b >= -most)) {
    refuse<ValueError>(name, "expected an interval that contains a finite value, got a=", a,
                       ", b=", b, ".");
  }
  const double nearest = std::max((a - mean) / std, (mean - b) / std);
  if (!(a == b || nearest <= kFarthestBound)) {
    refuse<ValueError>(name, "expected the nearer bound within ", kFarthestBound,
                       " standard deviations of the mean, got ", nearest, " (a=", a, ", b=", b,
                       ", mean=", mean, ", std=", std, "). Use uniform_ or constant_.");
  }
}

Plan TruncNormal::plan(ElementType type, bool) const {
  return plan_trunc_normal(type, mean, std, a, b);
}

void Sparse::check(ElementType type) const {
  if (!(std >= 0 && std <= largest_computed(type))) {
    refuse<std::runtime_error>(name, "expected a finite std >= 0, got std=", std, ".");
  }
}

void Orthogonal::check(ElementType type) const {
  const double most = largest_computed(type);
  if (!(std::abs(gain) <= most)) {
    refuse<ValueError>(name, "expected a gain within +-", most, " for this dtype, got gain=", gain,
                       ".");
  }
}

uint64_t bits_of(const char* op, ElementType type, double value) {
  using L = baseline::Lane;
  if (std::isfinite(value) && std::abs(value) > largest(type)) {
    refuse<std::runtime_error>(op, "expected a value within +-", largest(type),
                               " (the dtype's range), got ", value, ".");
  }
  uint64_t bits = 0;
  const auto single = static_cast<float>(value);
  switch (type) {
    case ElementType::kFloat16:
      bits = L::to_half(single);
      break;
    case ElementType::kBFloat16:
      bits = L::to_bfloat16(single);
      break;
    case ElementType::kFloat32:
      std::memcpy(&bits, &single, sizeof(single));
      break;
    default:
      std::memcpy(&bits, &value, sizeof(value));
  }
  return bits;
}

}  // namespace paraminit
