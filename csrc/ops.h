// What other files need of the operators: devices, and the checks and plans of the elementwise
// ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "constants.h"
#include "geometry.h"

namespace paraminit {

// Whether there are kernels for the tensor's device in this build.
bool has_kernels(const at::Tensor& tensor);

// Raises what the operator called `fill` raises for these parameters and a tensor of this dtype.
Plan plan_of(const std::string& fill, at::ArrayRef<double> parameters, const at::Tensor& self);

// Where the elements of a tensor that has some lie, or with `parts` those of a complex one's real
// and imaginary parts; raises what the operator raises for its shape and strides.
Geometry geometry_for(const char* fill, const at::Tensor& self, bool parts, at::IntArrayRef whole,
                      at::IntArrayRef start);

// For tests: the operator by way of pieces of at most so many bytes, on a tensor that does not need
// it.
void fill_staged(const std::string& fill, at::ArrayRef<double> parameters, const at::Tensor& self,
                 Key key, at::IntArrayRef whole, at::IntArrayRef start, int64_t bytes);

}  // namespace paraminit
