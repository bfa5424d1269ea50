// Function pointers to the loops of one instruction set. Its translation unit exports nothing else.
#pragma once

#include <cstdint>
#include <cstring>

#include "../stream/request.h"

namespace paraminit {

struct FillKernels {
  // Writes the values of elements index .. index + count - 1 to contiguous memory.
  void (*fill)(const FillRequest& request, uint64_t index, int64_t count, void* out);
  // Writes the values that follow from the given words, four per group.
  void (*apply)(const FillRequest& request, const uint32_t* words, int64_t groups, void* out);
};

// Words inside the threshold window, with their positions among the words passed to count().
// Vectors write past the last of at most `size` words.
template <int64_t size>
struct Candidates {
  uint32_t positions[size + 16];
  uint32_t words[size + 16];
};

// A multiple of the block size (in elements) of every instruction set. A run of this length, cut
// into blocks, has no tail.
constexpr int kBlockMultiple = 192;

constexpr int kSmallLanes = kBlockMultiple;

// Loops over words where consecutive words belong to consecutive columns. Bits are packed
// 64 to a uint64_t. Bit 0 is the first column.
struct ColumnKernels {
  // Compares `count` words with the window: sets bit i of `below` if words[i] < low, increments
  // not_below[i] otherwise, and appends the words low <= words[i] <= high and their positions to
  // the candidates. Returns the number of candidates.
  int64_t (*count)(const uint32_t* words, int64_t count, uint32_t low, uint32_t high,
                   uint32_t* not_below, uint64_t* below, uint32_t* candidate_positions,
                   uint32_t* candidate_words);
  // For each of kSmallLanes columns of words[row * kSmallLanes + column], returns the `zeros`-th
  // smallest word in `thresholds` and the number of words <= that threshold in
  // `at_most_threshold`.
  void (*select_small)(const uint32_t* words, int64_t rows, uint32_t zeros, uint32_t* thresholds,
                       uint32_t* at_most_threshold);
  // Sets bit i of `at_most` if words[i] <= thresholds[i], for kSmallLanes words.
  void (*compare_small)(const uint32_t* words, const uint32_t* thresholds, uint64_t* at_most);
  // Sets element i of `values` to +0 if bit first + i of `bits` is set. The suffix is the element
  // size in bits. Reads one word past the last bit.
  void (*zero16)(const uint64_t* bits, int64_t first, int64_t count, void* values);
  void (*zero32)(const uint64_t* bits, int64_t first, int64_t count, void* values);
  void (*zero64)(const uint64_t* bits, int64_t first, int64_t count, void* values);
  void (*zero128)(const uint64_t* bits, int64_t first, int64_t count, void* values);
};

namespace baseline {
FillKernels fill_kernels(const FillRequest& request);
ColumnKernels column_kernels();
}  // namespace baseline
namespace avx2 {
FillKernels fill_kernels(const FillRequest& request);
ColumnKernels column_kernels();
}  // namespace avx2
namespace avx512 {
FillKernels fill_kernels(const FillRequest& request);
ColumnKernels column_kernels();
}  // namespace avx512

}  // namespace paraminit
