// A sparse fill on the CPU: the normal fill, with so many zeros in each column of the whole matrix.
#pragma once

#include "../stream/sparse_request.h"

namespace paraminit {

// `strides` are those of the elements held here, in real numbers.
void sparse_cpu(const SparseRequest& request, const int64_t (&strides)[2], void* data);

}  // namespace paraminit
