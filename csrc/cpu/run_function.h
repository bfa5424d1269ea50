// How one instruction set's loops over a run are called: all that its translation unit exports.
#pragma once

#include "../stream/request.h"

namespace paraminit {

struct RunFunctions {
  // Writes the values of elements index .. index + count - 1 to consecutive memory.
  void (*fill)(const FillRequest& request, uint64_t index, int64_t count, void* out);
  // The same from given words, four a group.
  void (*apply)(const FillRequest& request, const uint32_t* words, int64_t groups, void* out);
};

// One element of a column, found in a run: position is counted from the run's first element.
struct Found {
  uint32_t position;
  uint32_t word;
};

// Whole blocks of vectors of every instruction set: what a run of so many elements is cut into has
// no remainder.
constexpr int kWholeBlocks = 192;

constexpr int kSmallLanes = kWholeBlocks;

// Loops over the words of a run in which each element belongs to another column.
struct ColumnFunctions {
  // Adds 1 to up_to[i] where words[i] <= high, and writes to `found` those with low <= words[i] <=
  // high, of which there may be `count`; returns how many.
  int64_t (*count)(const uint32_t* words, int64_t count, uint32_t low, uint32_t high,
                   uint32_t* up_to, Found* found);
  // In each of kSmallLanes columns, words[row * kSmallLanes + column], the `zeros`-th smallest of
  // the words, and how many are not above it.
  void (*select_small)(const uint32_t* words, int64_t rows, uint32_t zeros, uint32_t* thresholds,
                       uint32_t* up_to);
  // Makes element i of `values` +0 where words[i] <= thresholds[i]; by the bits of an element.
  void (*zero16)(const uint32_t* words, const uint32_t* thresholds, int64_t count, void* values);
  void (*zero32)(const uint32_t* words, const uint32_t* thresholds, int64_t count, void* values);
  void (*zero64)(const uint32_t* words, const uint32_t* thresholds, int64_t count, void* values);
  void (*zero128)(const uint32_t* words, const uint32_t* thresholds, int64_t count, void* values);
};

namespace baseline {
RunFunctions run_functions(const FillRequest& request);
ColumnFunctions column_functions();
}  // namespace baseline
namespace avx2 {
RunFunctions run_functions(const FillRequest& request);
ColumnFunctions column_functions();
}  // namespace avx2
namespace avx512 {
RunFunctions run_functions(const FillRequest& request);
ColumnFunctions column_functions();
}  // namespace avx512

}  // namespace paraminit
