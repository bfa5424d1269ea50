// The fills of arrays: what they refuse and their work. Every check comes before the first write,
// so that an error leaves the tensor as it was. No header of torch.
#pragma once

#include <stdexcept>
#include <string>

#include "../cuda/backend.h"
#include "../stream/geometry.h"
#include "../stream/laws.h"
#include "array.h"

namespace paraminit {

// The library of the CUDA kernels, or null; set once, at import.
const CudaBackend* cuda_backend();
void set_cuda_backend(const CudaBackend* backend);

// Whether there are kernels for the device.
bool has_kernels(Device device);

// Raises what the fill raises for this array and place: `data` is not looked at.
template <class Law>
void check_fill(const Law& law, const Array& self, const Place& place);

// Fills an array that has been checked and whose device has kernels.
template <class Law>
void fill(const Law& law, const Array& self, KeySource key, const Place& place);

// What `use` makes of the fill of that name with these parameters; refuses other names.
template <class Use>
auto with_law(const std::string& name, std::span<const double> p, const Use& use) {
  if (name == Uniform::name && p.size() == 2) return use(Uniform{p[0], p[1]});
  if (name == Normal::name && p.size() == 2) return use(Normal{p[0], p[1]});
  if (name == TruncNormal::name && p.size() == 4) return use(TruncNormal{p[0], p[1], p[2], p[3]});
  if (name == Sparse::name && p.size() == 2) return use(Sparse{p[0], static_cast<int64_t>(p[1])});
  if (name == Orthogonal::name && p.size() == 1) return use(Orthogonal{p[0]});
  if (name == RawWords::name && p.empty()) return use(RawWords{});
  throw std::invalid_argument("paraminit_ext: expected the name of a fill, got " + name + ".");
}

// Whether the storage ends before the elements do, as where its memory was taken away.
bool lacks_storage(const Array& self);
void check_storage(const char* op, const Array& self);
void check_shard(const char* op, const Array& self, const Place& place);

// Where the elements of an array that has some lie, of complex ones the real and imaginary parts.
Geometry geometry_of(const Array& self, const Place& place);

}  // namespace paraminit
