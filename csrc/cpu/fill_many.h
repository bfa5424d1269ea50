// Fills of many tensors on the CPU.
#pragma once

#include <vector>

#include "../stream/many_request.h"

namespace paraminit {

// Distributes the units of all tensors over the threads. Items must not overlap in memory.
void fill_many_cpu(const std::vector<ManyItem>& items);

}  // namespace paraminit
