// The kernels of fills of many tensors as the outside calls them. Knows no torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "../stream/geometry.h"
#include "../stream/request.h"

namespace paraminit {

constexpr int kManyThreads = 256;
// Groups (or, of a constant, 16-byte packets) that a thread of one chunk fills: enough to pay for
// finding the chunk's tensor, and few enough that tensors of a million elements go round.
constexpr int kManyGroups = 8;

// One tensor, in the device's memory.
struct DeviceItem {
  union {
    Constants<float> c32;
    Constants<double> c64;
    uint64_t value[2];  // of a constant: the bits of one element
  };
  Key key;
  // Where `geometry` is null: elements [head, end) of a run of whole packets of 16 bytes, whose
  // first one, at `data`, holds the group `first_group`.
  uint64_t first_group;
  int64_t head, end;
  void* data;
  const Geometry* geometry;
};

// Items of one distribution and element type. Chunks [first_chunk[i], first_chunk[i + 1]) of the
// launch are those of item i; the arrays lie in the device's memory.
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
// Constants of elements of 2, 4 or 8 bytes.
cudaError_t launch_many_constant(const ManyLaunch& launch, int64_t size);

}  // namespace paraminit
