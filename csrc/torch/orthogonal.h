// Orthonormal columns from Gaussian ones, by matrix products alone.
#pragma once

#include <ATen/core/Tensor.h>

namespace paraminit {

// `q`, at least as tall as it is wide and float32 or float64, holds standard normals on entry and
// a Haar-distributed matrix of orthonormal columns on return (docs/stream.md, "Orthogonal").
// Beside it at most three panels of its columns are allocated.
void make_orthonormal(const at::Tensor& q);

}  // namespace paraminit
