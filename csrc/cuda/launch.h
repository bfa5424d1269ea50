// The host interface of the CUDA kernels. Each family of distributions has one launch function, in
// its own translation unit, so that the families compile in parallel. Must not include torch
// headers.
#pragma once

#include <cuda_runtime_api.h>

#include "../stream/geometry.h"
#include "../stream/request.h"
#include "../stream/sparse_request.h"
#include "../stream/statistics.h"
#include "backend.h"

namespace paraminit {

struct Launch {
  FillRequest request;
  Geometry geometry;
  void* data;
  // A key (seed, offset) in device memory that replaces the key schedule of the request, or null.
  const uint64_t* device_key;
  cudaStream_t stream;
  int device;
  int multiprocessors;
};

cudaError_t launch_uniform(const Launch& launch);
cudaError_t launch_normal(const Launch& launch);
cudaError_t launch_trunc_normal(const Launch& launch);
cudaError_t launch_words(const Launch& launch);

// Calls the launch function of the request's distribution.
inline cudaError_t dispatch(const Launch& launch) {
  switch (family_of(launch.request.distribution)) {
    case Family::kUniform:
      return launch_uniform(launch);
    case Family::kNormal:
      return launch_normal(launch);
    case Family::kTruncNormal:
      return launch_trunc_normal(launch);
    case Family::kWords:
      break;
  }
  return launch_words(launch);
}

// For tests: applies the distribution of a float32 request to given words, four per group.
cudaError_t launch_apply(const FillRequest& request, const uint32_t* words, int64_t groups,
                         float* out, cudaStream_t stream);

// A sparse fill of columns [first, first + width) of the global matrix. `data` is the first element
// of the shard in these columns.
struct SparseLaunch {
  SparseRequest request;
  int64_t first, width;
  void* data;
  // Keys in device memory that replace the key schedules of the request, or null.
  const uint64_t* device_key;
  const uint64_t* device_word_key;
  // Workspace: thresholds[width], counters[2 width], found[width * capacity].
  uint64_t* thresholds;
  uint32_t* counters;
  uint64_t* found;
  int64_t capacity;
  cudaStream_t stream;
  int device;
  int multiprocessors;
};

int64_t sparse_capacity(const SparseRequest& request);
cudaError_t launch_sparse(const SparseLaunch& launch, const Geometry& geometry);

// Compute the key of a draw, and a key derived from another key. The keys are in device memory.
cudaError_t launch_draw_key(const PhiloxState& state, uint64_t* key, cudaStream_t stream);
cudaError_t launch_fold_in(const uint64_t* key, uint64_t data, uint64_t* folded,
                           cudaStream_t stream);

// Compute the statistics of each unit of consecutive elements, and merge the statistics of units
// into kStatistics numbers.
cudaError_t launch_statistics(ElementType type, bool is_complex, const void* data, int64_t count,
                              Statistics* units, cudaStream_t stream);
cudaError_t launch_merge(const Statistics* units, int64_t count, double* out, cudaStream_t stream);

}  // namespace paraminit
