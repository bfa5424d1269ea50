// The instructions that C++ has no expression for, or none that ptxas leaves alone. All that a host
// stand-in has to replace, apart from CUDA's own intrinsics. Knows no lanes.
#pragma once

#include <cstdint>

namespace paraminit::cuda {

// One wide multiply for both halves of a product; of a plain 64-bit product, ptxas adds up the
// cross terms that are zero.
__device__ __forceinline__ uint64_t wide_product(uint32_t a, uint32_t b) {
  uint64_t p;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a), "r"(b));
  return p;
}

// 1 / sqrt(a) for normal a, within a relative error of 2^-22.9.
__device__ __forceinline__ float approximate_rsqrt(float a) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}

// 1 where a >= 0, else 0.
__device__ __forceinline__ float one_where_not_negative(float a) {
  float one;
  asm("set.ge.f32.f32 %0, %1, 0f00000000;" : "=f"(one) : "f"(a));
  return one;
}

// fma(a, b, c) clamped to [0, 1].
__device__ __forceinline__ float saturated_fma(float a, float b, float c) {
  float d;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
}

// A constant that is kept in a register: an immediate that an instruction has no room for, ptxas
// builds anew in every round of a loop.
template <auto bits>
__constant__ decltype(bits) held_constant = bits;

// v, of which ptxas cannot tell how it was made, and so does not make it anew in a loop. All
// threads of the warp must come by.
__device__ __forceinline__ uint64_t opaque(uint64_t v) { return __shfl_xor_sync(~0u, v, 0); }

}  // namespace paraminit::cuda
