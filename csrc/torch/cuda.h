// Shared by the host code of the CUDA kernel library: the device guard, torch's current stream and
// memory from torch's allocators.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <vector>

#include "../cuda/backend.h"
#include "../cuda/launch.h"
#include "tensors.h"

namespace paraminit {

// torch's guard creates no context on the previous device when it restores it. cudaSetDevice would.
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

cudaStream_t current_stream(int device);
bool is_being_captured(cudaStream_t stream);
int multiprocessors(int device);
// Device memory is ordered on the device's current stream.
Tensor device_memory(int64_t bytes, int device);
Tensor pinned_memory(int64_t bytes);

void fill_cuda(const FillRequest& request, const Geometry& geometry, void* data, Key key,
               const uint64_t* device_key, int device);
void fill_many_cuda(const std::vector<ManyItem>& items, int device);

}  // namespace paraminit
