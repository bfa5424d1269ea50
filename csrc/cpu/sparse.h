// A sparse fill on the CPU: a normal fill with a fixed number of zeros in each column of the global
// matrix.
#pragma once

#include "../stream/sparse_request.h"

namespace paraminit {

// Writes the request's shard to `data`. `strides` are in real numbers (2 per complex element).
void sparse_cpu(const SparseRequest& request, const int64_t (&strides)[2], void* data);

}  // namespace paraminit
