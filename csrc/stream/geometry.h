// Maps the elements of a local tensor to memory offsets and to indices in the global tensor.
// Dimensions are merged if that is possible in both. The inner dimensions with consecutive indices
// form a run. Pure 64-bit integer arithmetic for host and device. Does not depend on torch.
#pragma once

#include <cstdint>

namespace paraminit {

constexpr int kMaxDims = 64;  // same limit as torch

struct Geometry {
  int dims;
  int run_begin;       // dimensions [run_begin, dims) form a run
  int64_t run_length;  // elements per run
  int64_t run_count;
  uint64_t first_index;  // index of the first local element in the global tensor
  int64_t sizes[kMaxDims];
  int64_t strides[kMaxDims];         // in memory, in elements
  uint64_t index_strides[kMaxDims];  // in the global tensor, in elements

  int64_t numel() const { return run_length * run_count; }
  // Whether each run is contiguous in memory.
  bool dense_runs() const {
    return run_begin == dims || (run_begin + 1 == dims && strides[run_begin] == 1);
  }
};

#ifdef __CUDACC__
#define PARAMINIT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PARAMINIT_HOST_DEVICE inline
#endif

// Sets the memory offset and the index of the first element of run `run`.
PARAMINIT_HOST_DEVICE void locate_run(const Geometry& g, int64_t run, int64_t& offset,
                                      uint64_t& index) {
  offset = 0;
  index = g.first_index;
  for (int d = g.run_begin - 1; d >= 0; --d) {
    const int64_t position = run % g.sizes[d];
    run /= g.sizes[d];
    offset += position * g.strides[d];
    index += static_cast<uint64_t>(position) * g.index_strides[d];
  }
}

// Returns the memory offset of element `position` of a run, relative to the first element of the
// run.
PARAMINIT_HOST_DEVICE int64_t locate_in_run(const Geometry& g, int64_t position) {
  int64_t offset = 0;
  for (int d = g.dims - 1; d >= g.run_begin; --d) {
    offset += position % g.sizes[d] * g.strides[d];
    position /= g.sizes[d];
  }
  return offset;
}

// If `global_sizes` and `shard_offset` are null, the local tensor is the global tensor. No size may
// be 0.
inline Geometry make_geometry(int dims, const int64_t* sizes, const int64_t* strides,
                              const int64_t* global_sizes, const int64_t* shard_offset) {
  Geometry g{};
  uint64_t index_stride = 1;
  uint64_t index_strides[kMaxDims] = {};
  for (int d = dims - 1; d >= 0; --d) {
    index_strides[d] = index_stride;
    if (shard_offset != nullptr) {
      g.first_index += static_cast<uint64_t>(shard_offset[d]) * index_stride;
    }
    index_stride *= static_cast<uint64_t>(global_sizes != nullptr ? global_sizes[d] : sizes[d]);
  }
  for (int d = 0; d < dims; ++d) {
    if (sizes[d] == 1) continue;
    const int last = g.dims - 1;
    if (last >= 0 && g.strides[last] == strides[d] * sizes[d] &&
        g.index_strides[last] == index_strides[d] * static_cast<uint64_t>(sizes[d])) {
      g.sizes[last] *= sizes[d];
      g.strides[last] = strides[d];
      g.index_strides[last] = index_strides[d];
    } else {
      g.sizes[g.dims] = sizes[d];
      g.strides[g.dims] = strides[d];
      g.index_strides[g.dims] = index_strides[d];
      ++g.dims;
    }
  }
  g.run_begin = g.dims;
  g.run_length = 1;
  while (g.run_begin > 0 &&
         g.index_strides[g.run_begin - 1] == static_cast<uint64_t>(g.run_length)) {
    --g.run_begin;
    g.run_length *= g.sizes[g.run_begin];
  }
  g.run_count = 1;
  for (int d = 0; d < g.run_begin; ++d) g.run_count *= g.sizes[d];
  return g;
}

}  // namespace paraminit
