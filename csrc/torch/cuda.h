// What the functions of the library of the CUDA kernels share: torch's current stream, its guard of
// the current device.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <vector>

#include "../cuda/backend.h"
#include "../cuda/launch.h"
#include "tensors.h"

namespace paraminit {

using torch::stable::accelerator::DeviceGuard;

cudaStream_t current_stream(int device);
int multiprocessors(int device);
// From torch's allocator, in the order of the current stream.
Tensor device_memory(int64_t bytes, int device);

void fill_cuda(const FillRequest& request, const Geometry& geometry, void* data, Key key,
               const uint64_t* device_key, int device);
void fill_many_cuda(const std::vector<ManyItem>& items, int device);

}  // namespace paraminit
