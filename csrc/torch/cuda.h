// What the functions of the library of the CUDA kernels share: torch's current stream, its guard of
// the current device.
#pragma once

#include <torch/csrc/stable/macros.h>

#include <vector>

#include "../cuda/backend.h"
#include "../cuda/launch.h"
#include "tensors.h"

namespace paraminit {

// The current device, for as long as it lives.
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
// From torch's allocators; that of a device in the order of its current stream. Raise
// OutOfMemoryError.
Tensor device_memory(int64_t bytes, int device);
Tensor pinned_memory(int64_t bytes);

void fill_cuda(const FillRequest& request, const Geometry& geometry, void* data, Key key,
               const uint64_t* device_key, int device);
void fill_many_cuda(const std::vector<ManyItem>& items, int device);

}  // namespace paraminit
