// Stand-ins for CUDA's headers and cuda/instructions.cuh. A thread is a function call that reads
// its index from globals. Threads run one after another; in kernels with barriers, from barrier to
// barrier. An intrinsic is plain C++ with the same rounding. An approximate instruction has the
// error that its documentation allows.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __shared__ static
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
inline cudaError_t last_error = cudaSuccess;
inline cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t size, cudaStream_t) {
  std::memset(memory, value, size);
  return cudaSuccess;
}

// Resident blocks per multiprocessor, by kernel, as set by a test. A query that would return 0
// fails.
inline std::map<const void*, int> occupancy;

// The default is low, so that small tensors need several rounds.
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel kernel, int, int) {
  const auto entry = occupancy.find(reinterpret_cast<const void*>(kernel));
  *blocks = entry == occupancy.end() ? 2 : entry->second;
  if (*blocks == 0) last_error = cudaErrorInvalidConfiguration;
  return last_error;
}

struct dim3 {
  unsigned x, y;
  dim3(unsigned columns = 0, unsigned rows = 1) : x(columns), y(rows) {}
};
inline dim3 threadIdx, blockIdx, gridDim;

namespace paraminit::cuda {
struct DenseRun;
}
// Called for each launch, with its run and its output if it has them. Returns whether to run it.
bool on_launch(int blocks, const paraminit::cuda::DenseRun* run, const void* out);

template <class Argument>
const paraminit::cuda::DenseRun* as_run(const Argument& argument) {
  if constexpr (std::is_same_v<Argument, paraminit::cuda::DenseRun>) return &argument;
  return nullptr;
}

// Returns the last argument of a launch, its output, if it is a pointer.
template <class Argument>
const void* as_memory(const Argument& argument) {
  if constexpr (std::is_pointer_v<Argument>) return argument;
  return nullptr;
}

// Set if kernels have barriers. Then each thread of a block has its own stack.
inline bool threads_wait = false;

// A block whose threads wait for each other. Between two barriers they run in ascending or
// descending order, chosen pseudo-randomly, so that a missing barrier gives wrong results.
class WaitingBlock {
 public:
  void run(unsigned threads, const std::function<void()>& kernel) {
    threads_.resize(threads);
    kernel_ = &kernel;
    for (Thread& thread : threads_) {
      thread.stack.resize(kStack);
      thread.ended = false;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = &outside_;
      makecontext(&thread.context, enter, 0);
    }
    unsigned ended = 0;
    while (ended == 0) {
      const bool ascending = (++phase_ * 0x9E3779B9u >> 31) == 0;
      for (unsigned n = 0; n < threads; ++n) {
        threadIdx.x = ascending ? n : threads - 1 - n;
        swapcontext(&outside_, &threads_[threadIdx.x].context);
        ended += threads_[threadIdx.x].ended;
      }
    }
    if (ended == threads) return;
    std::puts("some threads of a block have ended while others wait at a barrier");
    std::exit(2);
  }
  void wait() { swapcontext(&threads_[threadIdx.x].context, &outside_); }

 private:
  static constexpr size_t kStack = 1 << 16;
  struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool ended;
  };
  static void enter();

  std::vector<Thread> threads_;
  const std::function<void()>* kernel_ = nullptr;
  ucontext_t outside_;
  uint32_t phase_ = 0;
};
inline WaitingBlock waiting_block;
inline void WaitingBlock::enter() {
  (*waiting_block.kernel_)();
  waiting_block.threads_[threadIdx.x].ended = true;
}
inline void __syncthreads() { waiting_block.wait(); }

// Needs no atomic instruction, because threads run one after another.
template <class T, class U>
T atomicAdd(T* to, U more) {
  const T before = *to;
  *to += more;
  return before;
}
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// kernel<<<blocks, threads, 0, stream>>>(...) is rewritten to launched(kernel, blocks, ...)(...).
template <class Kernel>
auto launched(Kernel kernel, dim3 blocks, unsigned threads, int, cudaStream_t) {
  return [=](const auto&... arguments) {
    const paraminit::cuda::DenseRun* run = nullptr;
    ((run = run == nullptr ? as_run(arguments) : run), ...);
    if (!on_launch(static_cast<int>(blocks.x), run, as_memory((arguments, ...)))) return;
    gridDim = blocks;
    for (unsigned b = 0; b < blocks.x * blocks.y; ++b) {
      blockIdx = dim3(b % blocks.x, b / blocks.x);
      if (threads_wait) {
        waiting_block.run(threads, [&] { kernel(arguments...); });
        continue;
      }
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(arguments...);
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
inline int __viaddmin_s32(int a, int b, int c) {
  const int sum = static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
  return sum < c ? sum : c;
}
inline int __vimax3_s32(int a, int b, int c) {
  const int most = a > b ? a : b;
  return most > c ? most : c;
}

// --- 16-bit floats: the compiler's half type, and a separate rounding to bfloat16

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
  // Round to nearest, ties to even.
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

// --- 16-byte stores, which fault if they are not aligned

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
inline float rsqrt_neighbour(float a, int ulps) {
  const float nearest = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)));
  return bits_as<float>(bits_as<int>(nearest) + ulps);
}
// The error of approximate_rsqrt() in ulps of the nearest float. kByHash selects an allowed error
// from -2 to 2 by a hash of the operand.
constexpr int kByHash = 99;
inline int rsqrt_ulps = kByHash;
inline float approximate_rsqrt(float a) {
  if (rsqrt_ulps != kByHash) return rsqrt_neighbour(a, rsqrt_ulps);
  int ulps = static_cast<int>((bits_as<uint32_t>(a) * 0x9E3779B9u >> 16) % 5) - 2;
  while (!allowed(a, rsqrt_neighbour(a, ulps))) ulps -= ulps > 0 ? 1 : -1;
  return rsqrt_neighbour(a, ulps);
}

// Returns 0 for NaN.
inline float saturated_fma(float a, float b, float c) {
  const float v = std::fma(a, b, c);
  return v > 0 ? (v < 1 ? v : 1.0f) : 0.0f;
}
inline float one_where_not_negative(float a) { return a >= 0 ? 1.0f : 0.0f; }
template <auto bits>
inline decltype(bits) register_constant = bits;
inline uint64_t opaque(uint64_t v) { return v; }

}  // namespace paraminit::cuda
