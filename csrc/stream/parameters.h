// The parameters of each distribution, their checks, and the plan of a fill for an element type.
// Does not depend on torch.
#pragma once

#include "constants.h"

namespace paraminit {

struct Uniform {
  static constexpr const char* name = "uniform_";
  static constexpr bool takes_complex = true;
  double a, b;
  void check(ElementType type) const;
  Plan plan(ElementType type, bool complex) const;
};

struct Normal {
  static constexpr const char* name = "normal_";
  static constexpr bool takes_complex = true;
  double mean, std;
  void check(ElementType type) const;
  Plan plan(ElementType type, bool complex) const;
};

struct TruncNormal {
  static constexpr const char* name = "trunc_normal_";
  static constexpr bool takes_complex = false;
  double mean, std, a, b;
  void check(ElementType type) const;
  Plan plan(ElementType type, bool complex) const;
};

struct Sparse {
  static constexpr const char* name = "sparse_";
  static constexpr bool takes_complex = true;
  double std;
  int64_t zeros;  // per column
  void check(ElementType type) const;
};

struct Orthogonal {
  static constexpr const char* name = "orthogonal_";
  static constexpr bool takes_complex = false;
  double gain;
  void check(ElementType type) const;
};

// The raw words of the stream.
struct RawWords {
  static constexpr const char* name = "words_";
  static constexpr bool takes_complex = false;
  void check(ElementType) const {}
};

// Returns the bits of an element with this value, in memory order. A finite value must be in the
// range of the type.
uint64_t bits_of(ElementType type, double value);

}  // namespace paraminit
