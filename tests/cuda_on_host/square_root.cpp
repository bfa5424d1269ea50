// Checks the square root of cuda/lane_cuda.cuh for every float in [1, 4) and every reciprocal root
// that the hardware may return. Prints one line for each result that is not correctly rounded. All
// steps scale with powers of 4, so this covers all operands far from underflow and overflow.
#include <cstdio>

#define PARAMINIT_ISA cuda
#define PARAMINIT_FN static inline
#include "csrc/cuda/lane_cuda.cuh"

using namespace paraminit;

int main() {
  long long checked = 0;
  for (uint32_t bits = 0x3F800000u; bits < 0x40800000u; ++bits) {
    const float a = bits_as<float>(bits), root = std::sqrt(a);
    for (int ulps = -4; ulps <= 4; ++ulps) {
      if (!cuda::allowed(a, cuda::rsqrt_neighbour(a, ulps))) continue;
      cuda::rsqrt_ulps = ulps;
      ++checked;
      if (cuda::Lane::sqrt(a) != root) std::printf("%a %+d\n", static_cast<double>(a), ulps);
    }
  }
  std::printf("%lld checked\n", checked);
  return 0;
}
