// Measures the limits of a GPU with kernels that do only one thing: 16-byte stores, or the
// multiplies and logical operations of Philox. Compiled and called by ceilings.py. Every function
// queues its work on the stream and returns the CUDA error code. Does not depend on torch.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 256;
constexpr int kChains = 8;  // independent chains per thread, more than needed to hide any latency

template <bool streaming>
__global__ void __launch_bounds__(kThreads) store(uint4* out, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const uint4 value = {1u, 2u, 3u, 4u};
#pragma unroll 4
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    if constexpr (streaming) {
      __stcs(out + i, value);
    } else {
      out[i] = value;
    }
  }
}

// Written in assembly, so that the compiler cannot simplify it.
template <bool wide, bool logical>
__global__ void __launch_bounds__(kThreads) issue(int rounds, uint32_t mask, uint32_t* sink) {
  uint64_t x[kChains];
  uint32_t y[kChains];
  for (int n = 0; n < kChains; ++n) {
    x[n] = threadIdx.x + n;
    y[n] = threadIdx.x * 3 + n;
  }
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int n = 0; n < kChains; ++n) {
      if constexpr (wide) {
        asm volatile("mul.wide.u32 %0, %1, %2;"
                     : "=l"(x[n])
                     : "r"(static_cast<uint32_t>(x[n])), "r"(mask));
      }
      if constexpr (logical) {
        asm volatile("lop3.b32 %0, %0, %1, %2, 0x96;" : "+r"(y[n]) : "r"(mask), "r"(round));
      }
    }
  }
  uint32_t all = 0;
  for (int n = 0; n < kChains; ++n) all ^= static_cast<uint32_t>(x[n]) ^ y[n];
  if (all == 0x9E3779B9u) *sink = all;  // keeps the chains alive, and almost never writes
}

// Returns the number of blocks that fill the current device.
int grid_of(const void* kernel) {
  int device = 0, processors = 0, blocks = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0);
  return processors * blocks;
}

template <bool streaming>
int run_store(void* out, int64_t bytes, cudaStream_t stream) {
  store<streaming>
      <<<grid_of(reinterpret_cast<const void*>(store<streaming>)), kThreads, 0, stream>>>(
          static_cast<uint4*>(out), bytes / 16);
  return cudaGetLastError();
}

template <bool wide, bool logical>
int run_issue(int rounds, void* sink, int64_t* instructions, cudaStream_t stream) {
  const int blocks = grid_of(reinterpret_cast<const void*>(issue<wide, logical>));
  *instructions = static_cast<int64_t>(blocks) * kThreads * kChains * rounds * (wide + logical);
  issue<wide, logical>
      <<<blocks, kThreads, 0, stream>>>(rounds, 0xD2511F53u, static_cast<uint32_t*>(sink));
  return cudaGetLastError();
}

}  // namespace

extern "C" {

int ceiling_store(void* out, int64_t bytes, int streaming, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  return streaming ? run_store<true>(out, bytes, s) : run_store<false>(out, bytes, s);
}

int ceiling_memset(void* out, int64_t bytes, void* stream) {
  return cudaMemsetAsync(out, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream));
}

// Sets `instructions` to the total over all threads. `kind` is 0 for multiplies, 1 for logical
// operations, 2 for equal numbers of both.
int ceiling_issue(int kind, int rounds, void* sink, int64_t* instructions, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (kind == 0) return run_issue<true, false>(rounds, sink, instructions, s);
  if (kind == 1) return run_issue<false, true>(rounds, sink, instructions, s);
  return run_issue<true, true>(rounds, sink, instructions, s);
}
}
