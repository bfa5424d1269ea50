// Instructions that C++ cannot express, or that ptxas would rewrite. A host stand-in only has to
// replace this file and CUDA's own intrinsics. Does not depend on lanes.
#pragma once

#include <cstdint>

namespace paraminit::cuda {

// Computes a 64-bit product with one wide multiply. For a plain 64-bit product, ptxas also adds up
// the cross terms, which are zero.
__device__ __forceinline__ uint64_t wide_product(uint32_t a, uint32_t b) {
  uint64_t p;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a), "r"(b));
  return p;
}

// Returns 1 / sqrt(a) for normal a, with a relative error of at most 2^-22.9.
__device__ __forceinline__ float approximate_rsqrt(float a) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}

// Returns 1 if a >= 0, otherwise 0.
__device__ __forceinline__ float one_where_not_negative(float a) {
  float one;
  asm("set.ge.f32.f32 %0, %1, 0f00000000;" : "=f"(one) : "f"(a));
  return one;
}

// Returns fma(a, b, c) clamped to [0, 1].
__device__ __forceinline__ float saturated_fma(float a, float b, float c) {
  float d;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
}

// A constant that stays in a register. If an immediate does not fit into an instruction, ptxas
// rebuilds it in every iteration of a loop.
template <auto bits>
__constant__ decltype(bits) register_constant = bits;

// Returns v, but hides its definition from ptxas, which would otherwise recompute it in a loop. All
// threads of the warp must call this function.
__device__ __forceinline__ uint64_t opaque(uint64_t v) { return __shfl_xor_sync(~0u, v, 0); }

}  // namespace paraminit::cuda
