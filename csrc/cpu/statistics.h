// The statistics of consecutive elements in memory, on all threads. Knows no torch.
#pragma once

#include "../stream/statistics.h"

namespace paraminit {

// `type` is a floating-point one, of a complex tensor that of its parts. The result depends neither
// on the threads nor on the instruction set.
Statistics statistics_cpu(ElementType type, bool is_complex, const void* data, int64_t count);

// The same of bytes, each of which stands for a number: of the dtypes of 8 bits.
Statistics statistics_of_bytes_cpu(const float (&numbers)[256], const void* data, int64_t count);

// Of one unit or less, on this thread: what each instruction set has.
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
