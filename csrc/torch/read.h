// The operator that reads a tensor: tensors of any dtype and layout become runs of numbers.
#pragma once

#include <ATen/core/Tensor.h>

namespace paraminit {

// The fields of Statistics as float64, on the tensor's device (on the CPU where it has no kernels).
at::Tensor statistics(const at::Tensor& self);

}  // namespace paraminit
