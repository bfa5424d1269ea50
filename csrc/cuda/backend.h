// What the library of the CUDA kernels offers, as a table of functions: it is loaded only where it
// can be, and may be built for another CUDA than its neighbour. No header of CUDA, none of torch.
// Everything runs on the current stream of the tensor's device; nothing waits for it.
#pragma once

#include <vector>

#include "../stream/geometry.h"
#include "../stream/many_request.h"
#include "../stream/request.h"
#include "../stream/sparse_request.h"
#include "../stream/statistics.h"

namespace paraminit {

// What a generator has set apart for one draw: numbers, or where they lie when a captured graph is
// replayed.
struct PhiloxState {
  bool captured;
  uint64_t seed, offset;
  const int64_t* seed_there;
  const int64_t* offset_there;
  uint64_t offset_in_graph;
};

struct CudaBackend {
  // Of a fill and a sparse fill: the key is `key`, or, where `device_key` is not null, the two
  // words that it points to; `strides` are those of the elements held here, in real numbers.
  void (*fill)(const FillRequest& request, const Geometry& geometry, void* data, Key key,
               const uint64_t* device_key, int device);
  void (*sparse)(const SparseRequest& request, const int64_t (&strides)[2], void* data, Key key,
                 const uint64_t* device_key, int device);
  // None of them overlaps another.
  void (*fill_many)(const std::vector<ManyItem>& items, int device);
  // The distribution of the request, of float32, applied to given words, four a group: for tests.
  void (*apply)(const FillRequest& request, const uint32_t* words, int64_t groups, float* out,
                int device);
  // Key(seed, philox_offset / 4).fold_in(0) of a generator's state, and one key derived of another.
  void (*draw_key)(const PhiloxState& state, uint64_t* key, int device);
  void (*fold_in)(const uint64_t* key, uint64_t data, uint64_t* folded, int device);
  // Whether the current stream of a device, or of any device for -1, is being captured.
  bool (*is_capturing)(int device);
  // Units of statistics to `units`, and those of `count` units merged to kStatistics numbers; all
  // of them on the device.
  void (*statistics)(ElementType type, bool is_complex, const void* data, int64_t count,
                     Statistics* units, int device);
  void (*merge)(const Statistics* units, int64_t count, double* out, int device);
  // out = out - a b of row-major or column-major matrices that torch holds, by its handles: the
  // one product that torch's stable dispatcher has no numbers for.
  void (*subtract_product)(void* out, void* a, void* b);
  const char* toolkit_version;
};

// What the library exports, under this name. Both are built from the same sources, which `built`
// stands for.
constexpr const char* kCudaBackendSymbol = "paraminit_cuda_backend";
using GetCudaBackend = const CudaBackend* (*)(const char* built);

}  // namespace paraminit
