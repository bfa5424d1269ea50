// The kernels as fill.cu calls them: one function a family, each in a translation unit of its own
// so that they compile side by side, none of which reads a torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "../geometry.h"
#include "../request.h"

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

}  // namespace paraminit
