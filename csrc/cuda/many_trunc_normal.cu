// Truncated normal fills of many tensors on a CUDA device.
#include "many_kernels.cuh"

namespace paraminit {

cudaError_t launch_many_trunc_normal(const ManyLaunch& launch) {
  if (launch.type == ElementType::kFloat64) {
    return launch.distribution == Distribution::kTruncOneSided
               ? cuda::launch_chunks(cuda::many_kernel<cuda::TruncOneSidedD, double>, launch)
               : cuda::launch_chunks(cuda::many_kernel<cuda::TruncTwoSidedD, double>, launch);
  }
  switch (launch.distribution) {
    case Distribution::kTruncInterior:
      return cuda::launch_many32<cuda::TruncInteriorF>(launch);
    case Distribution::kTruncTwoSided:
      return cuda::launch_many32<cuda::TruncTwoSidedF>(launch);
    default:
      return cuda::launch_many32<cuda::TruncOneSidedF>(launch);
  }
}

}  // namespace paraminit
