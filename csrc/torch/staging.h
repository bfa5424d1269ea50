// Fills tensors on devices without kernels: computes the values piece by piece on the CPU and
// copies them to the device.
#pragma once

#include <functional>

#include "tensors.h"

namespace paraminit {

// Size limit of the staging buffer in host memory.
constexpr int64_t kStagingBytes = int64_t(64) << 20;

// Fills a contiguous CPU array as the part of `place.global_shape` that begins at
// `place.shard_offset`.
using PieceFill = std::function<void(const Array& piece, const ShardPosition& place)>;

// Divides `self` into boxes of at most `most_bytes`, calls `fill` for each box and copies it into
// place. Boxes extend as far as possible along the last dimensions, or along the first dimensions
// if `columns` is true. `array` describes `self`.
void fill_by_pieces(const char* op, const Tensor& self, const Array& array,
                    const ShardPosition& place, int64_t most_bytes, bool columns,
                    const PieceFill& fill);

}  // namespace paraminit
