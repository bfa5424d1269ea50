// Orthonormal columns from Gaussian ones, by matrix products alone. No header of torch.
#pragma once

#include "../stream/laws.h"
#include "array.h"

namespace paraminit {

// Fills an array of two or more dimensions, seen as a matrix of its first by all others, or the
// part of one, with `gain` times a Haar-distributed matrix of orthonormal rows or columns
// (docs/stream.md, "Orthogonal"). Beside a float32 or float64 matrix that is in one piece at most
// three panels of its columns are allocated; beside others the whole matrix as well.
void fill_orthogonal(const Orthogonal& law, const Array& self, KeySource key, const Place& place);

// Whether torch lets the factors of float32 products on a device be rounded: what Python knows and
// the stable headers do not, handed in at import. Until then they may.
using ProductsMayRound = bool (*)(DeviceKind device);
void set_products_may_round(ProductsMayRound ask);

}  // namespace paraminit
