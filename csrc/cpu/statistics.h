// Statistics of contiguous elements, computed on all threads. Does not depend on torch.
#pragma once

#include "../stream/statistics.h"

namespace paraminit {

// `type` is a floating-point type. For complex tensors it is the type of the real and imaginary
// parts. The result does not depend on the number of threads or the instruction set.
Statistics statistics_cpu(ElementType type, bool is_complex, const void* data, int64_t count);

// The statistics of a tensor with an 8-bit dtype. A byte b has the value numbers[b].
Statistics statistics_of_bytes_cpu(const float (&numbers)[256], const void* data, int64_t count);

// Computes the statistics of at most one unit on the calling thread. One per instruction set.
using StatisticsFunction = Statistics (*)(const void* data, int64_t count);

namespace baseline {
StatisticsFunction statistics_function(ElementType type, bool is_complex);
}
namespace avx2 {
StatisticsFunction statistics_function(ElementType type, bool is_complex);
}
namespace avx512 {
StatisticsFunction statistics_function(ElementType type, bool is_complex);
}

}  // namespace paraminit
