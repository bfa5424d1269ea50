// From the parameters of a distribution to the constants of a fill: the only place that evaluates
// the normal distribution function, in a fixed sequence of double operations without libm.
// Arguments have been checked (ops.cpp); the results belong to the stream contract. No torch.
#pragma once

#include "request.h"

namespace paraminit {

KeySchedule make_key_schedule(Key key);
Key fold_in(Key key, uint64_t data);

// What a fill turns out to be: a request for the kernels, or one value for every element.
struct Plan {
  bool is_constant;
  double value;  // where is_constant
  FillRequest request;
};

Plan plan_uniform(ElementType type, double a, double b);
Plan plan_normal(ElementType type, double mean, double std);
Plan plan_trunc_normal(ElementType type, double mean, double std, double a, double b);
Plan plan_words();

// Bounds of a truncated normal further than this on the wrong side have no mass to speak of.
constexpr double kFarthestBound = 37.0;

// Standard-normal upper tail mass and -2 ln of it, for x >= 0. Exposed for tests.
double upper_tail(double x);
double minus_two_log_upper_tail(double x);

}  // namespace paraminit
