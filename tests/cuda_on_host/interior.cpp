// Checks the logarithm that TruncInteriorF uses on CUDA, for every float in [1/16, 1]. Prints one
// line for each float where, apart from its unit, it differs from the logarithm of all other lanes.
#include <cstdio>

#define PARAMINIT_ISA cuda
#define PARAMINIT_FN static inline
#include "csrc/cuda/lane_cuda.cuh"
#include "csrc/stream/transforms.h"

using namespace paraminit;

int main() {
  long long checked = 0;
  for (uint32_t bits = 0x3D800000u; bits <= 0x3F800000u; ++bits) {
    const float s = bits_as<float>(bits), r = cuda::minus_two_log<cuda::Lane>(s);
    const float in_units = cuda::minus_two_log_interior<cuda::Lane>(s);
    ++checked;
    if (bits_as<uint32_t>(in_units * cuda::kInteriorUnit) == bits_as<uint32_t>(r)) continue;
    std::printf("%a: %a instead of %a\n", static_cast<double>(s),
                static_cast<double>(in_units * cuda::kInteriorUnit), static_cast<double>(r));
  }
  std::printf("%lld checked\n", checked);
  return 0;
}
