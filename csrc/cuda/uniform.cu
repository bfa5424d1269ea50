// Uniform fills and raw words on a CUDA device.
#include "kernels.cuh"

namespace paraminit {

cudaError_t launch_uniform(const Launch& launch) {
  const bool wide = launch.request.type == ElementType::kFloat64;
  switch (launch.request.distribution) {
    case Distribution::kUniform:
      return wide ? cuda::launch_fill<cuda::UniformD<false>, double>(launch)
                  : cuda::launch_fill32<cuda::UniformF<false>>(launch);
    case Distribution::kUniformClamped:
      return wide ? cuda::launch_fill<cuda::UniformD<true>, double>(launch)
                  : cuda::launch_fill32<cuda::UniformF<true>>(launch);
    default:
      return wide ? cuda::launch_fill<cuda::UniformTinyD, double>(launch)
                  : cuda::launch_fill32<cuda::UniformTinyF>(launch);
  }
}

cudaError_t launch_words(const Launch& launch) {
  return cuda::launch_scattered<cuda::Words, int64_t>(launch);
}

}  // namespace paraminit
