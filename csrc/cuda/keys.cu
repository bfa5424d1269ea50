// Computes keys on the device: a key derived from another key, and the key of a draw from a
// generator. During graph capture, the state of the generator is only known at replay.
#include "launch.h"

#define PARAMINIT_ISA cuda
#define PARAMINIT_FN static __device__ __forceinline__
#include "lane_cuda.cuh"
#include "../stream/philox.h"

namespace paraminit {
namespace {

__device__ __forceinline__ void write_folded(Key key, uint64_t data, uint64_t* folded) {
  const Key child = cuda::folded<cuda::Lane>(key, data);
  folded[0] = child.seed;
  folded[1] = child.offset;
}

__global__ void fold_in_kernel(const uint64_t* key, uint64_t data, uint64_t* folded) {
  write_folded({key[0], key[1]}, data, folded);
}

__global__ void draw_key_kernel(const __grid_constant__ PhiloxState state, uint64_t* key) {
  const uint64_t seed = state.captured ? static_cast<uint64_t>(*state.seed_address) : state.seed;
  const uint64_t offset = state.captured
                              ? static_cast<uint64_t>(*state.offset_address) + state.offset_in_graph
                              : state.offset;
  write_folded({seed, offset / 4}, 0, key);
}

}  // namespace

cudaError_t launch_fold_in(const uint64_t* key, uint64_t data, uint64_t* folded,
                           cudaStream_t stream) {
  fold_in_kernel<<<1, 1, 0, stream>>>(key, data, folded);
  return cudaGetLastError();
}

cudaError_t launch_draw_key(const PhiloxState& state, uint64_t* key, cudaStream_t stream) {
  draw_key_kernel<<<1, 1, 0, stream>>>(state, key);
  return cudaGetLastError();
}

}  // namespace paraminit
