// Exact test of whether elements of a tensor share memory. torch's own test gives up on interleaved
// strides, and its fills then leave the value of the last thread that wrote. Does not depend on
// torch.
#pragma once

#include <cstdint>
#include <span>

namespace paraminit {

// Returns whether the tensor is contiguous, as defined by torch's is_contiguous().
bool is_contiguous(std::span<const int64_t> sizes, std::span<const int64_t> strides);

// Returns whether the elements fill one block of memory without gaps, in any order of dimensions.
bool is_dense(std::span<const int64_t> sizes, std::span<const int64_t> strides);

// Returns whether elements share memory. A search undecided after 2^16 steps counts as an overlap.
bool overlaps_itself(std::span<const int64_t> sizes, std::span<const int64_t> strides);

}  // namespace paraminit
