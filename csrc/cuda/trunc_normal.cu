// Truncated normal fills on a CUDA device.
#include "kernels.cuh"

namespace paraminit {

cudaError_t launch_trunc_normal(const Launch& launch) {
  const Distribution distribution = launch.request.distribution;
  if (launch.request.type == ElementType::kFloat64) {
    return distribution == Distribution::kTruncOneSided
               ? cuda::launch_fill<cuda::TruncOneSidedD, double>(launch)
               : cuda::launch_fill<cuda::TruncTwoSidedD, double>(launch);
  }
  switch (distribution) {
    case Distribution::kTruncInterior:
      return cuda::launch_fill32<cuda::TruncInteriorF>(launch);
    case Distribution::kTruncTwoSided:
      return cuda::launch_fill32<cuda::TruncTwoSidedF>(launch);
    default:
      return cuda::launch_fill32<cuda::TruncOneSidedF>(launch);
  }
}

}  // namespace paraminit
