// Computes the constants of a fill. The order of the double operations is part of the stream
// contract. -ffp-contract=off prevents the compiler from fusing them. The caller must round to
// nearest.
#include "constants.h"

#define PARAMINIT_ISA baseline
#define PARAMINIT_FN static inline __attribute__((always_inline))
#include "lane_scalar.h"
#include "philox.h"
#include "transforms.h"

namespace paraminit {
namespace {

using L = baseline::Lane;

// If both bounds are within this limit, computing z from u = 2 Phi(z) - 1 in float32 keeps |dz|
// below 2^-19.5.
constexpr double kInteriorLimit = 2.125;
constexpr double kInteriorMost = 5.45;  // upper bound of -2 ln(1 - u^2) within kInteriorLimit
// If the nearer bound is at least this far from 0, a one-sided interval is evaluated relative to
// the mass beyond that bound. The limit follows in float32 from the accuracy of the fit of degree
// kTailDegree, and in float64 from the range of quantile_central64.
constexpr double kOneSidedLimit32 = 1.5;
constexpr double kOneSidedLimit64 = 1.0;
// Upper bounds of |z| in the stream's normal fills: sqrt(66 ln 2) and sqrt(108 ln 2), rounded up.
constexpr double kNormalReach32 = 6.77;
constexpr double kNormalReach64 = 8.66;

constexpr double kLn2High = 0x1.62e42fefa39efp-1;
constexpr double kLn2Low = 0x1.abc9e3b39803fp-56;
constexpr double kLogTwoPi = 0x1.d67f1c864beb5p+0;
constexpr double kInverseRootTwoPi = 0x1.9884533d43651p-2;

double power_of_two(int exponent) { return L::from_bits64(uint64_t(1023 + exponent) << 52); }

// Returns false for subnormal powers of two.
bool is_power_of_two(double x) {
  return x > 0 && x <= 0x1p1023 && (L::bits(x) & 0xFFFFFFFFFFFFFu) == 0;
}

// Returns exp(-y) for 0 <= y <= 700.
double exp_minus(double y) {
  const int n = static_cast<int>(y * 0x1.71547652b82fep+0 + 0.5);
  const double r = L::fma(n, kLn2Low, L::fma(n, kLn2High, -y));  // |r| <= ln 2 / 2
  double sum = 1.0;
  for (int k = 15; k >= 1; --k) sum = L::fma(sum, r / k, 1.0);
  return n < 1000 ? sum * power_of_two(-n) : sum * power_of_two(-1000) * power_of_two(1000 - n);
}

// Returns (1 - Phi(x)) / phi(x) for x >= 2.5, from Laplace's continued fraction
// 1/(x + 1/(x + 2/(x + 3/...))). With 64 terms the truncation error is below 2^-60.
double mills_ratio(double x) {
  double sum = x;
  for (int k = 64; k >= 1; --k) sum = x + k / sum;
  return 1.0 / sum;
}

// Returns Phi(x) - 1/2 = phi(x) (x + x^3/3 + x^5/15 + ...) for 0 <= x < 2.5 (Marsaglia 2004).
double central_mass(double x) {
  double term = x, sum = x;
  for (int k = 3; k <= 101; k += 2) {
    term = term * (x * x) / k;
    sum += term;
  }
  return sum * (kInverseRootTwoPi * exp_minus(0.5 * x * x));
}

}  // namespace

double upper_tail(double x) {
  if (x < 2.5) return 0.5 - central_mass(x);
  if (x > 37.4) return 0.0;
  return kInverseRootTwoPi * exp_minus(0.5 * x * x) * mills_ratio(x);
}

double minus_two_log_upper_tail(double x) {
  if (x < 2.5) return baseline::minus_two_log<L>(upper_tail(x));
  return x * x + (kLogTwoPi + baseline::minus_two_log<L>(mills_ratio(x)));
}

namespace {

double lower_mass(double x) { return x <= 0 ? upper_tail(-x) : 1.0 - upper_tail(x); }

// --- values of the element types -------------------------------------------------------------

double decode_half(uint16_t h) {
  const uint32_t exponent = h >> 10 & 31, fraction = h & 1023;
  double v;
  if (exponent == 31) {
    v = L::from_bits64(0x7FF0000000000000u);
  } else if (exponent == 0) {
    v = fraction * 0x1p-24;
  } else {
    v = (1024 + fraction) * power_of_two(static_cast<int>(exponent) - 25);
  }
  return h >> 15 ? -v : v;
}

// Returns the bits of the next larger (`up`) or next smaller floating-point number. `b` has the
// bits of a finite or infinite number in sign-magnitude format.
template <class Bits>
Bits step_bits(Bits b, bool up) {
  const Bits sign = Bits(1) << (8 * sizeof(Bits) - 1);
  if ((b & static_cast<Bits>(~sign)) == 0) return static_cast<Bits>(up ? 1 : sign | 1);
  return static_cast<Bits>((b & sign) != 0 ? (up ? b - 1 : b + 1) : (up ? b + 1 : b - 1));
}

double nearest(ElementType type, double x) {
  switch (type) {
    case ElementType::kFloat16:
      return decode_half(L::to_half(static_cast<float>(x)));
    case ElementType::kBFloat16:
      return L::from_bits(uint32_t(L::to_bfloat16(static_cast<float>(x))) << 16);
    case ElementType::kFloat32:
      return static_cast<float>(x);
    default:
      return x;
  }
}

double neighbour(ElementType type, double x, bool up) {
  switch (type) {
    case ElementType::kFloat16:
      return decode_half(step_bits(L::to_half(static_cast<float>(x)), up));
    case ElementType::kBFloat16: {
      const uint16_t b = step_bits(L::to_bfloat16(static_cast<float>(x)), up);
      return L::from_bits(uint32_t(b) << 16);
    }
    case ElementType::kFloat32:
      return L::from_bits(step_bits(L::bits(static_cast<float>(x)), up));
    default:
      return L::from_bits64(step_bits(L::bits(x), up));
  }
}

double smallest_not_below(ElementType type, double x) {
  const double v = nearest(type, x);
  return v >= x ? v : neighbour(type, v, true);
}
double largest_not_above(ElementType type, double x) {
  const double v = nearest(type, x);
  return v <= x ? v : neighbour(type, v, false);
}
double largest_below(ElementType type, double x) {
  const double v = nearest(type, x);
  return v < x ? v : neighbour(type, v, false);
}

// Return the bounds to which values are clamped before they are rounded to 16 bits. This is
// `bound`, the extreme value of the element type within `limit`. If `bound` is zero, it is `limit`
// instead, so that values between the two keep their sign. If the limit is zero too, its sign is
// chosen so that min and max return the same zero, whichever way they order -0 and +0.
double lower_clamp(double limit, double bound) {
  return bound != 0 ? bound : limit < 0 ? limit : 0.0;
}
double upper_clamp(double limit, double bound) {
  return bound != 0 ? bound : limit > 0 ? limit : -0.0;
}

// --- plans -----------------------------------------------------------------------------------

Plan constant_plan(ElementType type, double x) {
  Plan plan{};
  plan.is_constant = true;
  plan.value = nearest(type, x);
  return plan;
}

Constants<float> to_float(const Constants<double>& c) {
  Constants<float> f{};
  f.scale = static_cast<float>(c.scale);
  f.shift = static_cast<float>(c.shift);
  f.std = static_cast<float>(c.std);
  f.low = static_cast<float>(c.low);
  f.high = static_cast<float>(c.high);
  f.slope = static_cast<float>(c.slope);
  f.lower = static_cast<float>(c.lower);
  f.upper = static_cast<float>(c.upper);
  f.log_tail = static_cast<float>(c.log_tail);
  f.middle = static_cast<float>(c.middle);
  f.unclamped_limit = static_cast<float>(c.unclamped_limit);
  for (int k = 0; k <= kTailDegree; ++k) f.tail[k] = static_cast<float>(c.tail[k]);
  f.flip = c.flip;
  return f;
}

Plan make_plan(ElementType type, Distribution distribution, const Constants<double>& c) {
  Plan plan{};
  plan.request.type = type;
  plan.request.distribution = distribution;
  plan.request.c64 = c;
  if (type != ElementType::kFloat64) plan.request.c32 = to_float(c);
  return plan;
}

// Rounds a bound or parameter to the precision of the computation: double for float64, otherwise
// float.
double round_to_computed(ElementType type, double x) {
  return type == ElementType::kFloat64 ? x : static_cast<double>(static_cast<float>(x));
}

// Interpolates quantile_tail64 at the Chebyshev nodes of [middle - half, middle + half] and
// rewrites the polynomial in powers of s - middle.
void fit_tail(double middle, double half, double (&tail)[kTailDegree + 1]) {
  constexpr int n = kTailDegree + 1;
  // cos(pi (2 j + 1) / 24) for j = 0..5; the other six are their negatives.
  constexpr double cosines[n / 2] = {0x1.fb9ea92ec689bp-1, 0x1.d906bcf328d46p-1,
                                     0x1.963268b572492p-1, 0x1.37af93f9513eap-1,
                                     0x1.87de2a6aea964p-2, 0x1.0b5150f6da2d5p-3};
  double node[n], value[n], previous[n], current[n];
  for (int j = 0; j < n; ++j) {
    node[j] = j < n / 2 ? cosines[j] : -cosines[n - 1 - j];
    value[j] = baseline::quantile_tail64<L>(middle + half * node[j]);
    previous[j] = 1.0;
    current[j] = node[j];
  }
  // chebyshev[k] = 2/n sum_j f(x_j) T_k(x_j), halved for k = 0.
  double chebyshev[n];
  for (int k = 0; k < n; ++k) {
    double sum = 0.0;
    for (int j = 0; j < n; ++j) sum += value[j] * previous[j];
    chebyshev[k] = sum * (k == 0 ? 1.0 : 2.0) / n;
    for (int j = 0; j < n; ++j) {
      const double next = 2.0 * node[j] * current[j] - previous[j];
      previous[j] = current[j];
      current[j] = next;
    }
  }
  // T_k in powers of t = (s - middle) / half, by the same recurrence on coefficients.
  double t_previous[n] = {1.0}, t_current[n] = {0.0, 1.0};
  for (int i = 0; i < n; ++i) tail[i] = 0.0;
  for (int k = 0; k < n; ++k) {
    for (int i = 0; i < n; ++i) tail[i] += chebyshev[k] * t_previous[i];
    double next[n];
    for (int i = 0; i < n; ++i) {
      next[i] = 2.0 * (i > 0 ? t_current[i - 1] : 0.0) - t_previous[i];
      t_previous[i] = t_current[i];
    }
    for (int i = 0; i < n; ++i) t_current[i] = next[i];
  }
  double scale = 1.0;
  for (int i = 0; i < n; ++i) {
    tail[i] *= scale;
    scale /= half;
  }
}

// Returns Constants::unclamped_limit for bounds on both sides of 0, at most `most`. The margin of
// 2^-14 far exceeds the error of z as computed from r = -2 ln(1 - u^2), if r is not much below 1.
double find_unclamped_limit(const Constants<double>& c, double most) {
  // Use the parameters as rounded for the fill: rounding can move a mean far from 0 by more than
  // the margin.
  const double shift = static_cast<float>(c.shift), std = static_cast<float>(c.std);
  const double below = (shift - c.low) / std, above = (c.high - shift) / std;
  const double reach = (below < above ? below : above) - 0x1p-14;
  if (!(reach >= 0.5)) return -1.0;  // r is never negative, so every value is clamped
  if (reach >= kNormalReach32) return most;
  const double t = upper_tail(reach);
  const double r = baseline::minus_two_log<L>(4.0 * t * (1.0 - t));
  return r < most ? r : most;
}

// Requires alpha and beta on the same side of 0, both at least 1 away from it.
Distribution plan_one_sided(ElementType type, double alpha, double beta, Constants<double>& c) {
  const bool wide = type == ElementType::kFloat64;
  const bool mirrored = beta < 0;
  const double nearer = mirrored ? -beta : alpha;
  const double farther = mirrored ? -alpha : beta;
  c.log_tail = minus_two_log_upper_tail(nearer);
  // `beyond` is the mass beyond the farther bound divided by the mass beyond the nearer bound.
  const double distance = farther > 100.0 ? 1400.0 : minus_two_log_upper_tail(farther) - c.log_tail;
  const double beyond = distance >= 1400.0 ? 0.0 : exp_minus(0.5 * distance);
  const double within = 1.0 - beyond;
  c.slope = within * (wide ? 0x1p-53 : 0x1p-32);
  c.lower = wide ? beyond : beyond + within * 0x1p-33;
  if (mirrored) c.std = -c.std;
  // If the interval is above 0, the share must decrease as p increases. Flipping the bits of the
  // word gives 1 - p.
  if (wide) {
    c.flip = mirrored ? 0 : ~uint64_t(0);
  } else {
    c.flip = mirrored ? 0x80000000u : 0x7FFFFFFFu;
    const double least = L::sqrt(c.log_tail);
    const double most = L::sqrt(c.log_tail + baseline::minus_two_log<L>(c.lower));
    c.middle = static_cast<float>(0.5 * (least + most));
    const double half = 0.5 * (most - least);
    fit_tail(c.middle, half > 0x1p-5 ? half : 0x1p-5, c.tail);
  }
  return Distribution::kTruncOneSided;
}

}  // namespace

KeySchedule make_key_schedule(Key key) { return baseline::key_schedule(key); }

Key fold_in(Key key, uint64_t data) { return baseline::folded<L>(key, data); }

Plan plan_uniform(ElementType type, double a, double b) {
  const bool wide = type == ElementType::kFloat64;
  const double start = round_to_computed(type, a), end = round_to_computed(type, b);
  if (a == b) return constant_plan(type, start);
  const double least = smallest_not_below(type, start), most = largest_below(type, end);
  if (least > most) return constant_plan(type, start);
  Constants<double> c{};
  c.shift = start;
  c.low = lower_clamp(start, least);
  c.high = most;  // if this is a zero, it is +0, and no sum of the fill is -0
  const double range = round_to_computed(type, end - start);
  if (range < (wide ? 0x1p-960 : 0x1p-100)) {
    c.scale = range;
    return make_plan(type, Distribution::kUniformTiny, c);
  }
  c.scale = range * (wide ? 0x1p-53 : 0x1p-24);
  // Values increase with u. The first value is the rounded lower bound, and the last value
  // determines whether any value reaches the upper bound.
  const double last = round_to_computed(
      type, round_to_computed(type, range * (wide ? 1 - 0x1p-53 : 1 - 0x1p-24)) + start);
  const bool starts_in_bounds = nearest(type, start) >= least;
  const bool in_bounds = nearest(type, last) <= most && starts_in_bounds;
  Plan plan =
      make_plan(type, in_bounds ? Distribution::kUniform : Distribution::kUniformClamped, c);
  plan.request.round_range = starts_in_bounds && is_power_of_two(range);
  return plan;
}

Plan plan_normal(ElementType type, double mean, double std) {
  if (round_to_computed(type, std) == 0) return constant_plan(type, round_to_computed(type, mean));
  Constants<double> c{};
  c.shift = mean;
  c.std = std;
  return make_plan(type, Distribution::kNormal, c);
}

Plan plan_trunc_normal(ElementType type, double mean, double std, double a, double b) {
  const bool wide = type == ElementType::kFloat64;
  const double lower = round_to_computed(type, a), upper = round_to_computed(type, b);
  const double least = smallest_not_below(type, lower), most = largest_not_above(type, upper);
  if (a == b || least > most) return constant_plan(type, lower);
  Constants<double> c{};
  c.low = lower_clamp(lower, least);
  c.high = upper_clamp(upper, most);
  c.shift = mean;
  c.std = std;
  const double alpha = (lower - mean) / std, beta = (upper - mean) / std;
  const double reach = wide ? kNormalReach64 : kNormalReach32;
  if (alpha < -reach && beta > reach) {
    // Compute the extreme values with the roundings of the fill. Rounding is monotonic, so they
    // bound every value.
    const double shift = round_to_computed(type, mean),
                 scaled = reach * round_to_computed(type, std);
    // If a bound is zero, the clamp is needed because it sets the sign of zeros.
    const bool in_bounds = c.low != 0 && c.high != 0 &&
                           nearest(type, round_to_computed(type, shift - scaled)) >= c.low &&
                           nearest(type, round_to_computed(type, shift + scaled)) <= c.high;
    return make_plan(type, in_bounds ? Distribution::kNormal : Distribution::kNormalClamped, c);
  }
  const double one_sided = wide ? kOneSidedLimit64 : kOneSidedLimit32;
  if (alpha >= one_sided || beta <= -one_sided) {
    return make_plan(type, plan_one_sided(type, alpha, beta, c), c);
  }
  const double below = lower_mass(alpha), above = lower_mass(-beta);
  const double within = (1.0 - below) - above;
  if (!wide && alpha >= -kInteriorLimit && beta <= kInteriorLimit) {
    c.slope = within * 0x1p-31;
    c.lower = (below - above) + within * 0x1p-32;
    c.unclamped_limit = find_unclamped_limit(c, kInteriorMost) / baseline::kInteriorUnit;
    return make_plan(type, Distribution::kTruncInterior, c);
  }
  c.slope = within * (wide ? 0x1p-53 : 0x1p-32);
  c.lower = wide ? below : below + within * 0x1p-33;
  c.upper = wide ? above : above + within * 0x1p-33;
  if (!wide) c.unclamped_limit = find_unclamped_limit(c, baseline::kCentralLimit);
  return make_plan(type, Distribution::kTruncTwoSided, c);
}

Plan plan_words() { return make_plan(ElementType::kWord, Distribution::kWords, {}); }

}  // namespace paraminit
