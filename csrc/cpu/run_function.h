// How one instruction set's fill of a run is called: the only thing its translation unit exports.
#pragma once

#include "../request.h"

namespace paraminit {

// Writes the values of elements index .. index + count - 1 to consecutive memory.
using RunFunction = void (*)(const FillRequest& request, uint64_t index, int64_t count, void* out);

namespace baseline {
RunFunction run_function(Distribution distribution, ElementType type);
}
namespace avx2 {
RunFunction run_function(Distribution distribution, ElementType type);
}
namespace avx512 {
RunFunction run_function(Distribution distribution, ElementType type);
}

}  // namespace paraminit
