// Whether a tensor's elements share memory, decided exactly: torch's own test gives up on strides
// that interleave, and its fills then write what the last thread left.
#pragma once

#include <ATen/core/Tensor.h>

namespace paraminit {

// An undecided search (one of more than 2^16 steps) counts as an overlap.
bool overlaps_itself(const at::Tensor& tensor);

}  // namespace paraminit
