// Uniform fills of many tensors, and constants, on a CUDA device.
#include "many_kernels.cuh"

namespace paraminit {

cudaError_t launch_many_uniform(const ManyLaunch& launch) {
  const bool wide = launch.type == ElementType::kFloat64;
  switch (launch.distribution) {
    case Distribution::kUniform:
      return wide ? cuda::launch_chunks(cuda::many_kernel<cuda::UniformD<false>, double>, launch)
                  : cuda::launch_many32<cuda::UniformF<false>>(launch);
    case Distribution::kUniformClamped:
      return wide ? cuda::launch_chunks(cuda::many_kernel<cuda::UniformD<true>, double>, launch)
                  : cuda::launch_many32<cuda::UniformF<true>>(launch);
    default:
      return wide ? cuda::launch_chunks(cuda::many_kernel<cuda::UniformTinyD, double>, launch)
                  : cuda::launch_many32<cuda::UniformTinyF>(launch);
  }
}

cudaError_t launch_many_constant(const ManyLaunch& launch, int64_t size) {
  switch (size) {
    case 2:
      return cuda::launch_chunks(cuda::many_constant_kernel<uint16_t>, launch);
    case 4:
      return cuda::launch_chunks(cuda::many_constant_kernel<uint32_t>, launch);
    default:
      return cuda::launch_chunks(cuda::many_constant_kernel<uint64_t>, launch);
  }
}

}  // namespace paraminit
