// Fills of many tensors on the CPU.
#pragma once

#include <vector>

#include "../stream/many_request.h"

namespace paraminit {

// The units of all tensors together are spread over the threads; no two items may overlap.
void fill_many_cpu(const std::vector<ManyItem>& items);

}  // namespace paraminit
