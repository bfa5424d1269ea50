// Fills of many tensors on a CUDA device, on the current stream of that device.
#pragma once

#include <c10/core/Device.h>

#include <vector>

#include "../stream/many_request.h"

namespace paraminit {

// One launch for each distribution and element type among the items, and one for each item that is
// strided or not aligned to 16 bytes; no two items may overlap.
void fill_many_cuda(const std::vector<ManyItem>& items, c10::Device device);

}  // namespace paraminit
