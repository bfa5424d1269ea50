// The fills as the operators ask for them: what each draws from, its checks, its work on a tensor.
// Every check comes before the first write, so that an error leaves the tensor as it was.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../stream/constants.h"
#include "../stream/geometry.h"

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
  int64_t zeros;  // of each column
  void check(ElementType type) const;
};

struct Orthogonal {
  static constexpr const char* name = "orthogonal_";
  static constexpr bool takes_complex = false;
  double gain;
  void check(ElementType type) const;
};

// The stream's words themselves.
struct RawWords {
  static constexpr const char* name = "words_";
};

// A key by value, or on the device.
struct KeySource {
  Key value{};
  const at::Tensor* tensor = nullptr;
};

// Raises what a fill raises for these parameters and a tensor of this dtype and layout; a tensor
// may be a meta one, of symbolic sizes.
void check_fill(const Uniform& law, const at::Tensor& self);
void check_fill(const Normal& law, const at::Tensor& self);
void check_fill(const TruncNormal& law, const at::Tensor& self);
void check_fill(const Sparse& law, const at::Tensor& self);
void check_fill(const Orthogonal& law, const at::Tensor& self);
void check_fill(const RawWords& law, const at::Tensor& self);

// Fills `self`, the part at `start` of a tensor of shape `whole` (both empty: all of it). Where the
// device has no kernels it is done by pieces through the host's memory; tests ask for pieces of at
// most `staging_bytes` where it has.
void fill(const Uniform& law, const at::Tensor& self, KeySource key, at::IntArrayRef whole,
          at::IntArrayRef start, int64_t staging_bytes = 0);
void fill(const Normal& law, const at::Tensor& self, KeySource key, at::IntArrayRef whole,
          at::IntArrayRef start, int64_t staging_bytes = 0);
void fill(const TruncNormal& law, const at::Tensor& self, KeySource key, at::IntArrayRef whole,
          at::IntArrayRef start, int64_t staging_bytes = 0);
void fill(const Sparse& law, const at::Tensor& self, KeySource key, at::IntArrayRef whole,
          at::IntArrayRef start, int64_t staging_bytes = 0);
void fill(const RawWords& law, const at::Tensor& self, KeySource key, at::IntArrayRef whole,
          at::IntArrayRef start, int64_t staging_bytes = 0);
void fill(const Orthogonal& law, const at::Tensor& self, KeySource key, at::IntArrayRef whole,
          at::IntArrayRef start);

// Whether there are kernels for the tensor's device in this build.
bool has_kernels(const at::Tensor& tensor);

// The plan of the elementwise fill of that name; raises what check_fill() raises.
// Raises what the elementwise fill of that name raises for these parameters.
void check_parameters(const std::string& name, at::ArrayRef<double> parameters,
                      at::ScalarType type);
Plan plan_of(const std::string& name, at::ArrayRef<double> parameters, const at::Tensor& self);

// Where the elements of a tensor that has some lie, or with `parts` those of a complex one's real
// and imaginary parts; raises what the fill raises for its shape and strides.
Geometry geometry_for(const char* name, const at::Tensor& self, bool parts, at::IntArrayRef whole,
                      at::IntArrayRef start);

// For tests: the fill of that name by way of pieces, on a tensor that does not need it.
void fill_staged(const std::string& name, at::ArrayRef<double> parameters, const at::Tensor& self,
                 Key key, at::IntArrayRef whole, at::IntArrayRef start, int64_t bytes);

}  // namespace paraminit
