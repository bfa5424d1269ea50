// The operator that computes the statistics of a tensor of any numeric dtype and any strides.
#pragma once

#include "tensors.h"

namespace paraminit {

// Returns the fields of Statistics as a float64 tensor on the device of `self`. The result is on
// the CPU if the device has no kernels or the tensor is empty.
Tensor statistics(const Tensor& self);

}  // namespace paraminit
