// Stand-ins for what the fill kernels take from CUDA: a thread is a call that reads its place from
// globals, an intrinsic is the same rounding in plain C++, and an instruction that approximates is
// as wrong as its documentation allows. Stands in place of CUDA's headers and
// cuda/instructions.cuh.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// --- launches

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
using cudaStream_t = void*;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

// Few, so that small tensors go several rounds.
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, int) {
  *blocks = 2;
  return cudaSuccess;
}

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;

namespace paraminit::cuda {
struct DenseRun;
}
// Sees each launch, with the run and the memory of one that has a run, and says whether to run it.
bool look(int blocks, const paraminit::cuda::DenseRun* run, const void* out);

template <class Argument>
const paraminit::cuda::DenseRun* as_run(const Argument& argument) {
  if constexpr (std::is_same_v<Argument, paraminit::cuda::DenseRun>) return &argument;
  return nullptr;
}

// Of a launch's last argument, which is where it writes if it is a pointer.
template <class Argument>
const void* as_memory(const Argument& argument) {
  if constexpr (std::is_pointer_v<Argument>) return argument;
  return nullptr;
}

// kernel<<<blocks, threads, 0, stream>>>(...) is rewritten to launched(kernel, blocks, ...)(...).
template <class Kernel>
auto launched(Kernel kernel, int blocks, int threads, int, cudaStream_t) {
  return [=](const auto&... arguments) {
    const paraminit::cuda::DenseRun* run = nullptr;
    ((run = run == nullptr ? as_run(arguments) : run), ...);
    if (!look(blocks, run, as_memory((arguments, ...)))) return;
    gridDim.x = static_cast<unsigned>(blocks);
    for (int b = 0; b < blocks; ++b) {
      for (int t = 0; t < threads; ++t) {
        blockIdx.x = static_cast<unsigned>(b);
        threadIdx.x = static_cast<unsigned>(t);
        kernel(arguments...);
      }
    }
  };
}

// --- intrinsics

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
inline double __int2double_rn(int a) { return a; }
inline double __ll2double_rn(long long a) { return static_cast<double>(a); }
inline double __ull2double_rn(unsigned long long a) { return static_cast<double>(a); }
inline unsigned __float_as_uint(float a) { return bits_as<unsigned>(a); }
inline int __float_as_int(float a) { return bits_as<int>(a); }
inline float __uint_as_float(unsigned a) { return bits_as<float>(a); }
inline float __int_as_float(int a) { return bits_as<float>(a); }
inline long long __double_as_longlong(double a) { return bits_as<long long>(a); }
inline double __longlong_as_double(long long a) { return bits_as<double>(a); }
inline int __vimax3_s32(int a, int b, int c) {
  const int most = a > b ? a : b;
  return most > c ? most : c;
}

// --- 16-bit floats, by the compiler's own half and a rounding of its own

using __half = _Float16;
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half2 {
  __half low, high;
};
struct __nv_bfloat162 {
  __nv_bfloat16 low, high;
};
inline __half __float2half_rn(float a) { return static_cast<__half>(a); }
inline __nv_bfloat16 __float2bfloat16_rn(float a) {
  // The nearer of the two neighbours, and the even one between them.
  const uint32_t b = bits_as<uint32_t>(a), down = b & 0xFFFF0000u, rest = b & 0xFFFFu;
  const bool up = rest > 0x8000u || (rest == 0x8000u && (down & 0x10000u) != 0);
  return {static_cast<uint16_t>((down >> 16) + up)};
}
inline unsigned short __half_as_ushort(__half a) { return bits_as<unsigned short>(a); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.bits; }
inline __half2 __floats2half2_rn(float low, float high) {
  return {__float2half_rn(low), __float2half_rn(high)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}

// --- 16-byte stores, which fault where they are not aligned: here, they count as a failure

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) ulonglong2 {
  uint64_t x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline ulonglong2 make_ulonglong2(uint64_t x, uint64_t y) { return {x, y}; }

// --- cuda/instructions.cuh

namespace paraminit::cuda {

inline uint64_t wide_product(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }

constexpr double kRsqrtError = 0x1.1255p-23;  // 2^-22.9, rounded up
inline bool allowed(float a, float r) {
  return std::fabs(r * std::sqrt(static_cast<double>(a)) - 1.0) <= kRsqrtError;
}
inline float rsqrt_beside(float a, int ulps) {
  const float nearest = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)));
  return bits_as<float>(bits_as<int>(nearest) + ulps);
}
// How many ulps off the nearest float; or from 2 below to 2 above as a hash of a says, if allowed.
constexpr int kByHash = 99;
inline int rsqrt_ulps = kByHash;
inline float approximate_rsqrt(float a) {
  if (rsqrt_ulps != kByHash) return rsqrt_beside(a, rsqrt_ulps);
  int ulps = static_cast<int>((bits_as<uint32_t>(a) * 0x9E3779B9u >> 16) % 5) - 2;
  while (!allowed(a, rsqrt_beside(a, ulps))) ulps -= ulps > 0 ? 1 : -1;
  return rsqrt_beside(a, ulps);
}

inline float one_where_not_negative(float a) { return a >= 0 ? 1.0f : 0.0f; }
template <auto bits>
inline decltype(bits) held_constant = bits;
inline uint64_t opaque(uint64_t v) { return v; }

}  // namespace paraminit::cuda
