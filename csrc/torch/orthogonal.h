// Fills with Haar-distributed orthogonal matrices, computed with matrix products only. This header
// must not include torch headers.
#pragma once

#include "../stream/parameters.h"
#include "array.h"

namespace paraminit {

// Fills an array of two or more dimensions with `gain` times a Haar-distributed matrix of
// orthonormal rows or columns (docs/stream.md, "Orthogonal"). The matrix has size(0) rows, and the
// other dimensions are flattened into its columns. If `place` describes a shard, only that part of
// the matrix is written. A contiguous float32 or float64 matrix needs temporary memory for at most
// three panels of its columns. All other arrays also need temporary memory for the whole matrix.
void fill_orthogonal(const Orthogonal& law, const Array& self, KeySource key,
                     const ShardPosition& place);

// Returns whether torch may round the operands of float32 matrix products on a device. torch's
// stable headers do not expose this setting, so the Python module registers a function at import.
// Until then the answer is true.
using ProductsMayRound = bool (*)(DeviceKind device);
void set_products_may_round(ProductsMayRound function);

}  // namespace paraminit
