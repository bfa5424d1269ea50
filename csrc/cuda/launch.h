// The kernels as the outside calls them: one function a family, each in a translation unit of its
// own so that they compile side by side, none of which reads a torch header.
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
  // Two words on the device that replace the key schedule of the request, or null.
  const uint64_t* device_key;
  cudaStream_t stream;
  int device;
  int multiprocessors;
};

cudaError_t launch_uniform(const Launch& launch);
cudaError_t launch_normal(const Launch& launch);
cudaError_t launch_trunc_normal(const Launch& launch);
cudaError_t launch_words(const Launch& launch);

// By the request's distribution.
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

// The distribution of a float32 request on given words, four a group: for tests.
cudaError_t launch_apply(const FillRequest& request, const uint32_t* words, int64_t groups,
                         float* out, cudaStream_t stream);

// `width` columns of the whole from `first` on; `data` is their first element held here.
struct SparseLaunch {
  SparseRequest request;
  int64_t first, width;
  void* data;
  // Keys on the device, which replace those of the request, or null.
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

// The key of a draw, and one derived of another; all of them on the device.
cudaError_t launch_draw_key(const PhiloxState& state, uint64_t* key, cudaStream_t stream);
cudaError_t launch_fold_in(const uint64_t* key, uint64_t data, uint64_t* folded,
                           cudaStream_t stream);

// The statistics of consecutive elements, one for each unit of them; those of units merged, as
// kStatistics numbers.
cudaError_t launch_statistics(ElementType type, bool is_complex, const void* data, int64_t count,
                              Statistics* units, cudaStream_t stream);
cudaError_t launch_merge(const Statistics* units, int64_t count, double* out, cudaStream_t stream);

}  // namespace paraminit
