// Fills of tensors on devices that have no kernels here: by the CPU, piece by piece, and copied.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace paraminit {

// What a fill takes of the host's memory at a time.
constexpr int64_t kStagingBytes = int64_t(64) << 20;

// Fills a contiguous tensor on the CPU, the part of `whole` that begins at `start`.
using PieceFill =
    std::function<void(const at::Tensor& piece, at::IntArrayRef whole, at::IntArrayRef start)>;

// Calls `fill` for boxes of `self` of at most `most_bytes`, as long as they can be in the last
// dimensions (with `columns` in the first ones), and copies each into its place.
void fill_by_pieces(const char* op, const at::Tensor& self, at::IntArrayRef whole,
                    at::IntArrayRef start, int64_t most_bytes, bool columns, const PieceFill& fill);

}  // namespace paraminit
