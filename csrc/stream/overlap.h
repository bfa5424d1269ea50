// Whether a tensor's elements share memory, decided exactly: torch's own test gives up on strides
// that interleave, and its fills then write what the last thread left. Knows no torch.
#pragma once

#include <cstdint>
#include <span>

namespace paraminit {

// One after the other in the order of the dimensions, as torch's is_contiguous().
bool is_contiguous(std::span<const int64_t> sizes, std::span<const int64_t> strides);

// Whether they fill one piece of memory, in whatever order.
bool is_dense(std::span<const int64_t> sizes, std::span<const int64_t> strides);

// An undecided search (one of more than 2^16 steps) counts as an overlap.
bool overlaps_itself(std::span<const int64_t> sizes, std::span<const int64_t> strides);

}  // namespace paraminit
