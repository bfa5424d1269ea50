// Uniform fills and raw words on a CUDA device.
#include "kernels.cuh"

namespace paraminit {

cudaError_t launch_uniform(const Launch& launch) {
  const bool tiny = launch.request.distribution == Distribution::kUniformTiny;
  if (launch.request.type == ElementType::kFloat64) {
    return tiny ? cuda::launch_fill<cuda::UniformTinyD, double>(launch)
                : cuda::launch_fill<cuda::UniformD, double>(launch);
  }
  return tiny ? cuda::launch_fill32<cuda::UniformTinyF>(launch)
              : cuda::launch_fill32<cuda::UniformF>(launch);
}

cudaError_t launch_words(const Launch& launch) {
  return cuda::launch_scattered<cuda::Words, int64_t>(launch);
}

}  // namespace paraminit
