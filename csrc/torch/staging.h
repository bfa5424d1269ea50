// Fills of tensors on devices that have no kernels here: by the CPU, piece by piece, and copied.
#pragma once

#include <functional>

#include "tensors.h"

namespace paraminit {

// What a fill takes of the host's memory at a time.
constexpr int64_t kStagingBytes = int64_t(64) << 20;

// Fills a contiguous array on the CPU, the part of `place.whole` that begins at `place.start`.
using PieceFill = std::function<void(const Array& piece, const Place& place)>;

// Calls `fill` for boxes of `self` of at most `most_bytes`, as long as they can be in the last
// dimensions (with `columns` in the first ones), and copies each into its place. `self` is
// described by `array`.
void fill_by_pieces(const char* op, const Tensor& self, const Array& array, const Place& place,
                    int64_t most_bytes, bool columns, const PieceFill& fill);

}  // namespace paraminit
