// Normal fills on a CUDA device.
#include "kernels.cuh"

namespace paraminit {

cudaError_t launch_normal(const Launch& launch) {
  const bool clamped = launch.request.distribution == Distribution::kNormalClamped;
  if (launch.request.type == ElementType::kFloat64) {
    return clamped ? cuda::launch_fill<cuda::NormalD<true>, double>(launch)
                   : cuda::launch_fill<cuda::NormalD<false>, double>(launch);
  }
  return clamped ? cuda::launch_fill32<cuda::NormalF<true>>(launch)
                 : cuda::launch_fill32<cuda::NormalF<false>>(launch);
}

}  // namespace paraminit
