// A sparse fill as plain data, and the window in which to search for a column's threshold.
// In each column of the global matrix, the `zeros` elements with the smallest (word, row) are zero.
// The threshold is the (word, row) of the last of them. Depends on nothing except arithmetic.
#pragma once

#include <cmath>

#include "request.h"

namespace paraminit {

// A rectangle of the global matrix.
struct Rectangle {
  int64_t row, column;
  int64_t rows, columns;
};

struct SparseRequest {
  FillRequest values;
  KeySchedule word_keys;  // key schedule of key.fold_in(1)
  int parts;              // 2 if elements are complex, otherwise 1
  int64_t rows, columns;  // of the global matrix
  Rectangle shard;
  int64_t zeros;  // per column, from 1 to rows
  double spread;  // width of the window; kWindowSpread, except in tests
};

// The words low <= w <= high. About `share` (0 to 1) of a column's words are in the window.
struct Window {
  uint32_t low, high;
  double share;
};

// The k-th smallest of n uniforms has a mean near k / n and a standard deviation of
// sqrt(k/n (1 - k/n) / n). The window extends by four standard deviations on either side, plus the
// 2.5 / n term because near 0 and 1 the tails are heavier than a normal's. One column in 10^4
// misses its window and is searched completely.
constexpr double kWindowSpread = 4.0;

inline Window threshold_window(int64_t rows, int64_t zeros, double spread) {
  const double n = static_cast<double>(rows), p = static_cast<double>(zeros) / n;
  const double half_width = spread * (std::sqrt(p * (1.0 - p) / n) + 2.5 / n);
  const double first = p > half_width ? p - half_width : 0.0,
               last = p + half_width < 1.0 ? p + half_width : 1.0;
  const double max_word = 0x1p+32 - 1.0;
  return {static_cast<uint32_t>(first * max_word), static_cast<uint32_t>(last * max_word),
          last - first};
}

// Returns the capacity of a list of the words in the window among `rows` rows: the expected number
// plus six standard deviations. If a list overflows, which almost never happens, the column is
// searched completely.
inline int64_t window_capacity(const Window& window, int64_t rows) {
  const double expected = window.share * static_cast<double>(rows);
  const double capacity = expected + 6.0 * std::sqrt(expected) + 16.0;
  return capacity < static_cast<double>(rows) ? static_cast<int64_t>(capacity) : rows;
}

}  // namespace paraminit
