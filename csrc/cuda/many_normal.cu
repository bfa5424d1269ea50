// Normal fills of many tensors on a CUDA device.
#include "many_kernels.cuh"

namespace paraminit {

cudaError_t launch_many_normal(const ManyLaunch& launch) {
  const bool clamped = launch.distribution == Distribution::kNormalClamped;
  if (launch.type == ElementType::kFloat64) {
    return clamped ? cuda::launch_chunks(cuda::many_kernel<cuda::NormalD<true>, double>, launch)
                   : cuda::launch_chunks(cuda::many_kernel<cuda::NormalD<false>, double>, launch);
  }
  return clamped ? cuda::launch_many32<cuda::NormalF<true>>(launch)
                 : cuda::launch_many32<cuda::NormalF<false>>(launch);
}

}  // namespace paraminit
