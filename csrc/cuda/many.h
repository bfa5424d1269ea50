// Fills of many tensors on a CUDA device, on the current stream of that device.
#pragma once

#include <c10/core/Device.h>

#include <vector>

#include "../many_request.h"

namespace paraminit {

// One launch for each distribution and element type among the items, none of which overlaps
// another.
void fill_many_cuda(const std::vector<ManyItem>& items, c10::Device device);

}  // namespace paraminit
