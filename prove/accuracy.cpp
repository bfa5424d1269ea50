// Compares float32 values with exact values: errors, checksums, and the law of 2^32 equally likely
// words. The caller passes the values and their places in the sweep; no code of csrc/ is used.
// Neighbouring words often give equal values, so expensive computations run once per run of equal
// values. Exact values are computed in double, 2^29 times finer than float32.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kRootHalf = 0.70710678118654752440;
constexpr double kInverseRootTwoPi = 0.39894228040143267794;

// Returns the mass of the standard normal above x, with a small relative error.
double above(double x) { return 0.5 * std::erfc(x * kRootHalf); }

double ulp32(double exact) { return std::ldexp(1.0, std::ilogb(exact) - 23); }

// Returns the place of the n-th value in the sweep. A sweep covers all places, or one of every
// 2^shift, with varying low bits.
uint64_t place(uint64_t n, int shift) {
  return shift == 0 ? n : n << shift | ((n * 619) & ((uint64_t(1) << shift) - 1));
}

}  // namespace

// The results of one block of values. Mirrored in accuracy.py.
struct Tally {
  double worst;       // greatest |got - exact|
  double worst_ulp;   // greatest error in ulps of the exact value
  uint64_t worst_at;  // its place
  uint64_t worst_ulp_at;
  double worst_value;  // the value there
  double worst_ulp_value;
  double least, greatest;
  double moments[8];  // sums of powers 1 to 8
  double distance;    // greatest |share of words up to a value - its law's mass below it|
};

namespace {

// --- exact values -----------------------------------------------------------------------------
// error(v, i): v minus the exact value at place i. position(v): the fraction of the law at places
// before the place whose exact value is v. kSign: +1 if values grow with the place, -1 if they
// fall.

// sqrt(-2 ln((i + 1/2) 2^-32)), which has a Rayleigh distribution.
struct Radius {
  static constexpr int kSign = -1;
  void prepare(double) {}
  double error(double v, uint64_t i) const {
    const double below = (static_cast<double>(i) + 0.5) * 0x1p-32;
    const double over = (4294967295.5 - static_cast<double>(i)) * 0x1p-32;
    return v - std::sqrt(-2.0 * (i < (uint64_t(1) << 31) ? std::log(below) : std::log1p(-over)));
  }
  double position(double v) const { return std::exp(-0.5 * v * v); }
};

// cos (quarter = 0) or sin (quarter = 1) of T = 2 pi (i + 1/2) 2^-32. The angle is reduced exactly
// to within an eighth of a turn of the nearest multiple of pi/2.
struct Angle {
  static constexpr int kSign = -1;
  int quarter;
  void prepare(double) {}
  double error(double v, uint64_t i) const {
    const int64_t halves = static_cast<int64_t>(2 * i + 1) + (int64_t(1) << 30);
    const double rest = static_cast<double>((halves & 0x7FFFFFFF) - (int64_t(1) << 30));
    const double eighth = rest * (kPi * 0x1p-32);
    // cos(T - quarter pi/2).
    switch (((halves >> 31) - quarter) & 3) {
      case 0:
        return v - std::cos(eighth);
      case 1:
        return v + std::sin(eighth);
      case 2:
        return v + std::cos(eighth);
      default:
        return v - std::sin(eighth);
    }
  }
  // For the half turn that begins at 0 (for the sine: at pi/2).
  double position(double v) const { return std::acos(v) / kPi; }
};

// a + (i mod 2^24) 2^-24 (b - a), with the width b - a rounded to float32.
struct Uniform {
  static constexpr int kSign = 1;
  double a, width;
  void prepare(double) {}
  double error(double v, uint64_t i) const {
    const double u = static_cast<double>(i & 0xFFFFFF) * 0x1p-24;
    return (v - a) - u * width;
  }
  double position(double v) const { return (v - a) / width; }
};

// The quantile of the normal on [a, b] at p = (i + 1/2) 2^-32. The error of z follows from the
// difference between p and the mass below z, computed from the smaller tail.
struct Truncated {
  static constexpr int kSign = 1;
  double a, b, mass, above_b, below_a;
  bool upper = false;
  double share = 0, slope = 0;  // mass beyond the value on its side; mass / density there

  Truncated(double lower_bound, double upper_bound) : a(lower_bound), b(upper_bound) {
    const auto tail = [](double x) {
      return 0.5L * std::erfc(static_cast<long double>(x) * 0.70710678118654752440084436210484904L);
    };
    mass = static_cast<double>(a > 0   ? tail(a) - tail(b)
                               : b < 0 ? tail(-b) - tail(-a)
                                       : 1.0L - tail(b) - tail(-a));
    above_b = static_cast<double>(tail(b));
    below_a = static_cast<double>(tail(-a));
  }
  void prepare(double z) {
    upper = z > 0;
    share = (upper ? above(z) - above_b : above(-z) - below_a) / mass;
    slope = mass / (kInverseRootTwoPi * std::exp(-0.5 * z * z));
  }
  double error(double z, uint64_t i) const {
    const double k = static_cast<double>(i) + 0.5;
    // Second order, because 1 / density grows like exp(z^2 / 2).
    const double d = (share - (upper ? 4294967296.0 - k : k) * 0x1p-32) * slope;
    return upper ? -(d + 0.5 * z * d * d) : d - 0.5 * z * d * d;
  }
  double position(double z) {
    prepare(z);
    return upper ? 1.0 - share : share;
  }
};

// --- runs -------------------------------------------------------------------------------------

struct Run {
  double key;
  uint64_t count;
};

// Calls f(value, first, last) for each run of equal values.
template <class F>
void each_run(const float* values, int64_t step, int64_t count, F&& f) {
  for (int64_t n = 0; n < count;) {
    const float v = values[n * step];
    uint32_t bits, other;
    std::memcpy(&bits, &v, 4);
    int64_t end = n + 1;
    for (; end < count; ++end) {
      std::memcpy(&other, &values[end * step], 4);
      if (other != bits) break;
    }
    f(v, n, end - 1);
    n = end;
  }
}

// Computes the errors of the `count` values of a block, which begins at the `first`-th value of the
// sweep. Within a run of equal values, the exact value is monotone (blocks end at the extrema of
// sine and cosine), so the error is greatest at the ends of the run.
template <class Exact>
void judge_errors(Exact exact, const float* values, int64_t step, int64_t count, uint64_t first,
                  int shift, Tally* t) {
  t->worst = t->worst_ulp = -1.0;
  t->least = INFINITY;
  t->greatest = -INFINITY;
  each_run(values, step, count, [&](float v, int64_t begin, int64_t last) {
    exact.prepare(v);
    for (int64_t n = begin; n <= last; n += std::max<int64_t>(1, last - begin)) {
      const uint64_t at = place(first + static_cast<uint64_t>(n), shift);
      const double error = exact.error(v, at);
      // NaN counts as an infinite error.
      const double size = std::isnan(error) ? INFINITY : std::fabs(error);
      if (size > t->worst) {
        t->worst = size;
        t->worst_at = at;
        t->worst_value = v;
      }
      const double ulps = size == 0 || std::isinf(size) ? size : size / ulp32(v - error);
      if (ulps > t->worst_ulp) {
        t->worst_ulp = ulps;
        t->worst_ulp_at = at;
        t->worst_ulp_value = v;
      }
    }
    t->least = std::min(t->least, static_cast<double>(v));
    t->greatest = std::max(t->greatest, static_cast<double>(v));
  });
}

// Computes a block's moments and its distance from the law. The law has `law_size` places, from
// `law_first` on. The `before` values in front of `values` and the `after` values behind the block
// also belong to the law. In the order of the law, all values further in front must be at most
// those of the block, and all values further behind must be greater. The caller checks this.
template <class Exact>
void judge_law(Exact exact, const float* values, int64_t step, int64_t before, int64_t count,
               int64_t after, uint64_t first, uint64_t law_first, uint64_t law_size, Tally* t) {
  long double sums[8] = {};
  double least = INFINITY, greatest = -INFINITY;
  each_run(values, step, count, [&](float v, int64_t begin, int64_t last) {
    long double power = static_cast<long double>(last - begin + 1);
    for (long double& sum : sums) sum += power *= v;
    least = std::min(least, Exact::kSign * static_cast<double>(v));
    greatest = std::max(greatest, Exact::kSign * static_cast<double>(v));
  });
  for (int k = 0; k < 8; ++k) t->moments[k] = static_cast<double>(sums[k]);

  std::vector<Run> runs;
  each_run(values - before * step, step, before + count + after,
           [&](float v, int64_t begin, int64_t last) {
             runs.push_back(
                 {Exact::kSign * static_cast<double>(v), static_cast<uint64_t>(last - begin + 1)});
           });
  std::sort(runs.begin(), runs.end(), [](const Run& x, const Run& y) { return x.key < y.key; });
  uint64_t words = first - static_cast<uint64_t>(before) - law_first;
  t->distance = 0;
  for (size_t n = 0; n < runs.size();) {
    const double key = runs[n].key;
    const double lower = static_cast<double>(words) / static_cast<double>(law_size);
    for (; n < runs.size() && runs[n].key == key; ++n) words += runs[n].count;
    const double upper = static_cast<double>(words) / static_cast<double>(law_size);
    if (key < least || key > greatest) continue;
    const double ideal = exact.position(Exact::kSign * key);
    t->distance = std::max({t->distance, ideal - lower, upper - ideal});
  }
}

}  // namespace

enum Kind { kRadius, kCosine, kSine, kUniform, kTruncated };

// Computes the errors of a block, and its part of the law if `law_size` is not 0. `a` and `b` are
// the bounds, or the lower bound and width of the uniform.
EXPORTED void compare(int kind, double a, double b, const float* values, int64_t step,
                      int64_t before, int64_t count, int64_t after, uint64_t first, int shift,
                      uint64_t law_first, uint64_t law_size, Tally* tally) {
  const auto with = [&](auto exact) {
    judge_errors(exact, values, step, count, first, shift, tally);
    if (law_size != 0) {
      judge_law(exact, values, step, before, count, after, first, law_first, law_size, tally);
    }
  };
  switch (kind) {
    case kRadius:
      return with(Radius{});
    case kCosine:
      return with(Angle{0});
    case kSine:
      return with(Angle{1});
    case kUniform:
      return with(Uniform{a, b});
    default:
      return with(Truncated(a, b));
  }
}

// Returns the sum, modulo 2^64, of a hash of each value's place and bits. Checksums of blocks may
// be added in any order, and a changed or exchanged value changes the sum. checksum() of sweeps.py
// computes the same with torch.
EXPORTED uint64_t checksum(const uint32_t* bits, int64_t step, int64_t count, uint64_t first) {
  uint64_t sum = 0;
  for (int64_t n = 0; n < count; ++n) {
    uint64_t x = (first + static_cast<uint64_t>(n)) << 32 | bits[n * step];
    x *= 0x9E3779B97F4A7C15u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    x ^= x >> 32;
    sum += x;
  }
  return sum;
}

// The bits of the floats 2^-6 and 1.
constexpr uint32_t kLeast = 0x3C800000u, kOne = 0x3F800000u;

// Adds the number of occurrences of each float from 2^-6 to 1 to counts[bits - kLeast].
EXPORTED void count_values(const float* values, int64_t step, int64_t count, uint32_t* counts) {
  each_run(values, step, count, [&](float v, int64_t begin, int64_t last) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    if (bits < kLeast || bits > kOne) return;
    __atomic_fetch_add(&counts[bits - kLeast], static_cast<uint32_t>(last - begin + 1),
                       __ATOMIC_RELAXED);
  });
}

// Returns how many pairs of one of these radii and one cosine or sine give |value| > t. `t` must be
// at least 2^-6 times the greatest radius. at_least[k] is the number of angles whose value is at
// least the k-th float from kLeast on; equally many have the corresponding negative values. `tiny`
// is the number that the transform adds to a product.
EXPORTED uint64_t count_beyond(const float* radii, int64_t step, int64_t count,
                               const uint32_t* at_least, float t, float tiny) {
  uint64_t pairs = 0;
  uint32_t first[2] = {kOne, kOne};  // the least float beyond t, by sign; radii change slowly
  each_run(radii, step, count, [&](float r, int64_t begin, int64_t last) {
    const auto beyond = [&](uint32_t bits, bool negative) {
      float c;
      std::memcpy(&c, &bits, 4);
      return negative ? std::fma(r, -c, tiny) < -t : std::fma(r, c, tiny) > t;
    };
    uint64_t angles = 0;
    for (const bool negative : {false, true}) {
      if (!beyond(kOne, negative)) continue;
      uint32_t& at = first[negative];
      // Steps double until they enclose the limit; then bisection.
      uint32_t low = at, high = at;
      for (uint32_t d = 1; low >= kLeast && beyond(low, negative); d *= 2) {
        high = low;
        low = low - kLeast >= d ? low - d : kLeast - 1;
      }
      for (uint32_t d = 1; !beyond(high, negative); d *= 2) {
        low = high;
        high = kOne - high >= d ? high + d : kOne;
      }
      while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        (beyond(middle, negative) ? high : low) = middle;
      }
      at = high;
      angles += at_least[high - kLeast];
    }
    pairs += angles * static_cast<uint64_t>(last - begin + 1);
  });
  return pairs;
}
