// How one instruction set's fill of a run is called: all that its translation unit exports.
#pragma once

#include "../request.h"

namespace paraminit {

struct RunFunctions {
  // Writes the values of elements index .. index + count - 1 to consecutive memory.
  void (*fill)(const FillRequest& request, uint64_t index, int64_t count, void* out);
  // The same from given words, four a group.
  void (*apply)(const FillRequest& request, const uint32_t* words, int64_t groups, void* out);
};

namespace baseline {
RunFunctions run_functions(Distribution distribution, ElementType type);
}
namespace avx2 {
RunFunctions run_functions(Distribution distribution, ElementType type);
}
namespace avx512 {
RunFunctions run_functions(Distribution distribution, ElementType type);
}

}  // namespace paraminit
