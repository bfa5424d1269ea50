// The interface of the CUDA kernel library, as a table of functions. There is one library per CUDA
// major version; the one for torch's version is loaded at run time, if it exists. All work is
// queued on the current stream of the tensor's device, without synchronisation. Must not include
// CUDA or torch headers.
#pragma once

#include <vector>

#include "../stream/geometry.h"
#include "../stream/many_request.h"
#include "../stream/request.h"
#include "../stream/sparse_request.h"
#include "../stream/statistics.h"

namespace paraminit {

// The Philox state that a CUDA generator reserves for one draw. During graph capture, seed and
// offset are only known at replay: they are read from the addresses `seed_address` and
// `offset_address`, and `offset_in_graph` is added to the offset.
struct PhiloxState {
  bool captured;
  uint64_t seed, offset;
  const int64_t* seed_address;
  const int64_t* offset_address;
  uint64_t offset_in_graph;
};

struct CudaBackend {
  // A fill and a sparse fill. If `device_key` is not null, it points to the key (seed, offset) in
  // device memory, and `key` is ignored. `strides` are those of the shard, in real numbers.
  void (*fill)(const FillRequest& request, const Geometry& geometry, void* data, Key key,
               const uint64_t* device_key, int device);
  void (*sparse)(const SparseRequest& request, const int64_t (&strides)[2], void* data, Key key,
                 const uint64_t* device_key, int device);
  // The items must not overlap.
  void (*fill_many)(const std::vector<ManyItem>& items, int device);
  // For tests: applies the distribution of a float32 request to given words, four per group.
  void (*apply)(const FillRequest& request, const uint32_t* words, int64_t groups, float* out,
                int device);
  // Computes Key(seed, philox_offset / 4).fold_in(0) from a generator's state.
  void (*draw_key)(const PhiloxState& state, uint64_t* key, int device);
  // Derives a key from another key. Both are in device memory.
  void (*fold_in)(const uint64_t* key, uint64_t data, uint64_t* folded, int device);
  // Returns whether the current stream of a device is being captured. -1 means any device.
  bool (*is_capturing)(int device);
  // Writes the statistics of each unit of elements to `units`. All pointers are device memory.
  void (*statistics)(ElementType type, bool is_complex, const void* data, int64_t count,
                     Statistics* units, int device);
  // Merges the statistics of `count` units into kStatistics numbers.
  void (*merge)(const Statistics* units, int64_t count, double* out, int device);
  // out = out - a b for row-major or column-major matrices, given as torch tensor handles. torch's
  // stable dispatcher cannot pass the Scalar arguments of this operation.
  void (*subtract_product)(void* out, void* a, void* b);
  const char* toolkit_version;
};

// The function that the library exports, and its name. `built` identifies the sources of the
// caller. The function returns null if the library was built from other sources.
constexpr const char* kCudaBackendSymbol = "paraminit_cuda_backend";
using GetCudaBackend = const CudaBackend* (*)(const char* built);

}  // namespace paraminit
