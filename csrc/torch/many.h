// Fills of many tensors in one call: each entry's values are those of its own fill, and the result
// is that of the entries one after the other.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "../stream/request.h"

namespace paraminit {

// What entries may share: an elementwise operator with its parameters, or one value for every
// element, in a tensor of no dimensions on the CPU and of the entries' dtype.
struct ManyFill {
  std::string name;
  std::vector<double> parameters;
  at::Tensor value;
};

struct ManyEntry {
  at::Tensor self;
  size_t fill;
  Key key;
  std::vector<int64_t> whole, start;  // empty: the tensor is the whole
};

// Whether calls of operators in this thread reach their kernels and nothing in between: no mode,
// transform or trace that would have to see them.
bool calls_are_plain();

// Whether a tensor is plain memory on a device that has kernels here.
bool is_plain(const at::Tensor& tensor);

// Whether every element of a plain tensor can be written on its own, here and now.
bool is_fillable(const at::Tensor& tensor);

// Everything is checked before anything is written.
void fill_many(const std::vector<ManyFill>& fills, const std::vector<ManyEntry>& entries);

}  // namespace paraminit
