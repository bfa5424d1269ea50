// The fills of arrays and their checks. All checks run before the first write, so a rejected fill
// leaves the tensor unchanged. Must not include torch headers.
#pragma once

#include <stdexcept>
#include <string>

#include "../cuda/backend.h"
#include "../stream/geometry.h"
#include "../stream/parameters.h"
#include "array.h"

namespace paraminit {

// Returns the CUDA kernel library, or null. Set once, at import.
const CudaBackend* cuda_backend();
void set_cuda_backend(const CudaBackend* backend);

// Returns whether this extension has kernels for the device.
bool has_kernels(Device device);

// Raises an error if the fill does not support this array and place. Does not use `self.data`.
template <class Law>
void check_fill(const Law& law, const Array& self, const ShardPosition& place);

// Fills an array. The array must have passed check_fill, and its device must have kernels.
template <class Law>
void fill(const Law& law, const Array& self, KeySource key, const ShardPosition& place);

// Calls `use` with the fill of this name and these parameters, and returns its result. Raises an
// error if there is no such fill.
template <class Use>
auto with_law(const std::string& name, std::span<const double> p, const Use& use) {
  if (name == Uniform::name && p.size() == 2) return use(Uniform{p[0], p[1]});
  if (name == Normal::name && p.size() == 2) return use(Normal{p[0], p[1]});
  if (name == TruncNormal::name && p.size() == 4) return use(TruncNormal{p[0], p[1], p[2], p[3]});
  if (name == Sparse::name && p.size() == 2 && p[1] >= 0 && p[1] < 0x1p63) {
    return use(Sparse{p[0], static_cast<int64_t>(p[1])});
  }
  if (name == Orthogonal::name && p.size() == 1) return use(Orthogonal{p[0]});
  if (name == RawWords::name && p.empty()) return use(RawWords{});
  throw std::invalid_argument("paraminit_ext: expected a fill and its parameters, got " + name +
                              " with " + std::to_string(p.size()) + ".");
}

// Returns whether the storage is too small for the elements, for example because its memory was
// freed.
bool storage_too_small(const Array& self);
void check_storage(const char* op, const Array& self);
void check_shard(const char* op, const Array& self, const ShardPosition& place);

// Returns the memory layout of a non-empty array. The real and imaginary parts of a complex array
// count as separate elements.
Geometry geometry_of(const Array& self, const ShardPosition& place);

}  // namespace paraminit
