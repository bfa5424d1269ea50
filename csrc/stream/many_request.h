// One tensor of a fill of many, as plain data, between many.cpp and the kernels. Knows no torch.
#pragma once

#include "geometry.h"
#include "request.h"

namespace paraminit {

struct ManyItem {
  const FillRequest* request;  // without its key; null: every element is `value`
  Key key;
  uint64_t value[2];  // the bits of one element, in memory order
  int64_t size;       // of an element, bytes
  void* data;
  int64_t numel;
  const Geometry* geometry;  // null: the elements from index 0 on, one after the other
};

// The elements from index 0 on, one after the other.
inline Geometry flat_geometry(int64_t numel) {
  const int64_t stride = 1;
  return make_geometry(1, &numel, &stride, nullptr, nullptr);
}

}  // namespace paraminit
