// The operator that reads a tensor: tensors of any dtype and layout become runs of numbers.
#pragma once

#include "tensors.h"

namespace paraminit {

// The fields of Statistics as float64, on the tensor's device (on the CPU where it has no kernels).
Tensor statistics(const Tensor& self);

}  // namespace paraminit
