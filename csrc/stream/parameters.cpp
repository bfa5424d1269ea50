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

// Returns the type in which the values are computed.
ElementType computed(ElementType type) {
  return type == ElementType::kFloat64 ? type : ElementType::kFloat32;
}

const char* name_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kBFloat16:
      return "bfloat16";
    case ElementType::kFloat32:
      return "float32";
    default:
      return "float64";
  }
}

}  // namespace

void Uniform::check(ElementType type) const {
  using Error = std::runtime_error;
  const double most = largest(type);
  if (!(std::abs(a) <= most && std::abs(b) <= most)) {
    refuse<Error>(name, "expected finite bounds that ", name_of(type), " can hold, got a=", a,
                  ", b=", b, ".");
  }
  if (!(a <= b)) refuse<Error>(name, "expected a <= b, got a=", a, " > b=", b, ". Exchange them.");
  if (!(b - a <= most)) {
    refuse<Error>(name, "expected bounds whose distance ", name_of(type), " can hold, got a=", a,
                  ", b=", b, ".");
  }
}

Plan Uniform::plan(ElementType type, bool) const { return plan_uniform(type, a, b); }

namespace {

template <class Error>
void check_mean(const char* op, ElementType type, double mean) {
  if (std::abs(mean) <= largest(computed(type))) return;
  refuse<Error>(op, "expected a finite mean that ", name_of(computed(type)),
                " can hold, got mean=", mean, ".");
}

void check_std(const char* op, ElementType type, double std) {
  if (std >= 0 && std <= largest(computed(type))) return;
  refuse<std::runtime_error>(op, "expected a finite std >= 0 that ", name_of(computed(type)),
                             " can hold, got std=", std, ".");
}

}  // namespace

void Normal::check(ElementType type) const {
  check_mean<std::runtime_error>(name, type, mean);
  check_std(name, type, std);
}

// The variance of a complex normal is the sum of the variances of its real and imaginary part.
Plan Normal::plan(ElementType type, bool complex) const {
  return plan_normal(type, mean, complex ? std / std::sqrt(2.0) : std);
}

void TruncNormal::check(ElementType type) const {
  const double most = largest(computed(type));
  check_mean<ValueError>(name, type, mean);
  if (!(std > 0 && std <= most && (type == ElementType::kFloat64 || float(std) > 0))) {
    refuse<ValueError>(name, "expected a finite std > 0 that ", name_of(computed(type)),
                       " can hold, got std=", std, ". Use constant_ to fill a single value.");
  }
  if (!(a <= b)) {
    refuse<ValueError>(name, "expected a <= b, got a=", a, ", b=", b, ". Exchange them.");
  }
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

void Sparse::check(ElementType type) const { check_std(name, type, std); }

void Orthogonal::check(ElementType type) const {
  if (std::abs(gain) <= largest(computed(type))) return;
  refuse<ValueError>(name, "expected a finite gain that ", name_of(computed(type)),
                     " can hold, got gain=", gain, ".");
}

uint64_t bits_of(ElementType type, double value) {
  using L = baseline::Lane;
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
