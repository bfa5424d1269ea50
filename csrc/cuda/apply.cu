// Applies distributions to given words instead of Philox's, so that tests can reach every word on a
// CUDA device. Uses the functors and the lane of the fills; only the loop is separate.
#include "launch.h"

#define PARAMINIT_ISA cuda
#define PARAMINIT_FN static __device__ __forceinline__
#include "lane_cuda.cuh"
#include "../stream/distributions.h"

namespace paraminit {
namespace {

constexpr int kThreads = 256;

template <class Dist>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(const __grid_constant__ Constants<float> c, const uint32_t* words, int64_t pairs,
                 float* out) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pair >= pairs) return;
  Dist::template pair<cuda::Lane>(c, words[2 * pair], words[2 * pair + 1], out[2 * pair],
                                  out[2 * pair + 1]);
}

template <class Dist>
cudaError_t launch(const FillRequest& request, const uint32_t* words, int64_t groups, float* out,
                   cudaStream_t stream) {
  const int64_t pairs = 2 * groups;
  if (pairs == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((pairs + kThreads - 1) / kThreads);
  apply_kernel<Dist><<<blocks, kThreads, 0, stream>>>(request.c32, words, pairs, out);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_apply(const FillRequest& request, const uint32_t* words, int64_t groups,
                         float* out, cudaStream_t stream) {
  switch (request.distribution) {
    case Distribution::kUniform:
      return launch<cuda::UniformF<false>>(request, words, groups, out, stream);
    case Distribution::kUniformClamped:
      return launch<cuda::UniformF<true>>(request, words, groups, out, stream);
    case Distribution::kUniformTiny:
      return launch<cuda::UniformTinyF>(request, words, groups, out, stream);
    case Distribution::kNormal:
      return launch<cuda::NormalF<false>>(request, words, groups, out, stream);
    case Distribution::kNormalClamped:
      return launch<cuda::NormalF<true>>(request, words, groups, out, stream);
    case Distribution::kTruncInterior:
      return launch<cuda::TruncInteriorF>(request, words, groups, out, stream);
    case Distribution::kTruncTwoSided:
      return launch<cuda::TruncTwoSidedF>(request, words, groups, out, stream);
    case Distribution::kTruncOneSided:
      return launch<cuda::TruncOneSidedF>(request, words, groups, out, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace paraminit
