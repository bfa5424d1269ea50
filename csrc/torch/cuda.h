// Shared by the host code of the CUDA kernel library: the device guard, torch's current stream and
// memory from torch's allocators.
#pragma once

#include <torch/csrc/stable/macros.h>

#include <vector>

#include "../cuda/backend.h"
#include "../cuda/launch.h"
#include "tensors.h"

namespace paraminit {

// Sets the current CUDA device, and restores the previous one when destroyed.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    STD_CUDA_CHECK(cudaGetDevice(&before_));
    if (device != before_) STD_CUDA_CHECK(cudaSetDevice(device));
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

cudaStream_t current_stream(int device);
bool is_being_captured(cudaStream_t stream);
int multiprocessors(int device);
// Allocate memory from torch's allocators. Device memory is ordered on the device's current stream.
// Raise OutOfMemoryError if the allocation fails.
Tensor device_memory(int64_t bytes, int device);
Tensor pinned_memory(int64_t bytes);

void fill_cuda(const FillRequest& request, const Geometry& geometry, void* data, Key key,
               const uint64_t* device_key, int device);
void fill_many_cuda(const std::vector<ManyItem>& items, int device);

}  // namespace paraminit
