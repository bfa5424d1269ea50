// Converts the parameters of a distribution to the constants of a fill. Only this file evaluates
// the normal distribution function, in a fixed sequence of double operations without libm. The
// caller has checked the arguments. The results are part of the stream contract. Does not depend on
// torch.
#pragma once

#include "request.h"

namespace paraminit {

KeySchedule make_key_schedule(Key key);
Key fold_in(Key key, uint64_t data);

// A planned fill: either a request for the kernels or one value for every element.
struct Plan {
  bool is_constant;
  double value;  // if is_constant
  FillRequest request;
};

Plan plan_uniform(ElementType type, double a, double b);
Plan plan_normal(ElementType type, double mean, double std);
Plan plan_trunc_normal(ElementType type, double mean, double std, double a, double b);
Plan plan_words();

// The nearer bound of a one-sided truncated normal must be within this many standard deviations of
// the mean. Beyond this limit, the mass of the interval is negligible.
constexpr double kFarthestBound = 37.0;

// The mass of the standard normal above x, and -2 ln of this mass, for x >= 0. Exposed for tests.
double upper_tail(double x);
double minus_two_log_upper_tail(double x);

}  // namespace paraminit
