// One tensor of a fill of many tensors, as plain data passed from fill_many.cpp to the kernels.
// Does not depend on torch.
#pragma once

#include "geometry.h"
#include "request.h"

namespace paraminit {

struct ManyItem {
  const FillRequest* request;  // `keys` is unset; if null, every element is `value`
  Key key;
  uint64_t value[2];  // the bits of one element, in memory order
  int64_t size;       // bytes per element
  void* data;
  int64_t numel;
  const Geometry* geometry;  // if null, the tensor is contiguous and starts at index 0
};

// Returns the geometry of a contiguous tensor that starts at index 0.
inline Geometry flat_geometry(int64_t numel) {
  const int64_t stride = 1;
  return make_geometry(1, &numel, &stride, nullptr, nullptr);
}

}  // namespace paraminit
