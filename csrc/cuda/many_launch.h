// The host interface of the kernels that fill many tensors. Must not include torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include "../stream/geometry.h"
#include "../stream/request.h"

namespace paraminit {

constexpr int kManyThreads = 256;
// The number of groups (for constants: 16-byte packets) that a thread fills in a chunk. Large
// enough to amortise the search for the tensor. Small enough that a tensor of a million elements
// has chunks for all multiprocessors.
constexpr int kManyGroups = 8;

// Describes one tensor to the kernels. Stored in device memory.
struct DeviceItem {
  union {
    Constants<float> c32;
    Constants<double> c64;
    uint64_t value[2];  // constants: the bits of one element
  };
  Key key;
  // If `geometry` is null, the tensor is elements [head, end) of a run of 16-byte packets. The
  // first packet is at `data` and begins with group `first_group`.
  uint64_t first_group;
  int64_t head, end;
  void* data;
  const Geometry* geometry;
};

// Items of one distribution and element type. Item i consists of chunks
// [first_chunk[i], first_chunk[i + 1]) of the launch. Both arrays are in device memory.
struct ManyLaunch {
  Distribution distribution;
  ElementType type;
  const DeviceItem* items;
  const int64_t* first_chunk;
  int count;
  int64_t chunks;
  cudaStream_t stream;
};

cudaError_t launch_many_uniform(const ManyLaunch& launch);
cudaError_t launch_many_normal(const ManyLaunch& launch);
cudaError_t launch_many_trunc_normal(const ManyLaunch& launch);
// Fills with constants of `size` bytes, which is 2, 4 or 8.
cudaError_t launch_many_constant(const ManyLaunch& launch, int64_t size);

}  // namespace paraminit
