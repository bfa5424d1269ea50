// What a sparse fill is, as plain data, and where the threshold of a column is looked for.
// In each column of the whole the `zeros` elements of the smallest (word, row) are zero, so that
// those up to the threshold, the last of them, are. Depends on nothing but arithmetic.
#pragma once

#include <cmath>

#include "request.h"

namespace paraminit {

// A rectangle of the whole matrix.
struct Rectangle {
  int64_t row, column;
  int64_t rows, columns;
};

struct SparseRequest {
  FillRequest values;
  KeySchedule word_keys;  // of key.fold_in(1)
  int parts;              // 2 where elements are complex, else 1
  int64_t rows, columns;  // of the whole
  Rectangle held;
  int64_t zeros;  // of each column, from 1 to rows
  double spread;  // how wide a window to search, kWindowSpread but in tests
};

// Words low <= w <= high, which some `share` of a column's words lie among.
struct Window {
  uint32_t low, high;
  double share;
};

// The k-th smallest of n uniforms has mean near k / n and standard deviation
// sqrt(k/n (1 - k/n) / n). Four of these on either side, and as many elements again as its tails
// are heavier than a normal's near 0 and 1, miss one column in 10^4; that one is searched whole.
constexpr double kWindowSpread = 4.0;

inline Window threshold_window(int64_t rows, int64_t zeros, double spread) {
  const double n = static_cast<double>(rows), p = static_cast<double>(zeros) / n;
  const double half = spread * (std::sqrt(p * (1.0 - p) / n) + 2.5 / n);
  const double first = p > half ? p - half : 0.0, last = p + half < 1.0 ? p + half : 1.0;
  const double greatest = 0x1p+32 - 1.0;
  return {static_cast<uint32_t>(first * greatest), static_cast<uint32_t>(last * greatest),
          last - first};
}

// Room for the elements of `rows` rows in the window. Six standard deviations more than expected
// are all but never passed; where they are, the column is searched whole.
inline int64_t window_capacity(const Window& window, int64_t rows) {
  const double expected = window.share * static_cast<double>(rows);
  const double room = expected + 6.0 * std::sqrt(expected) + 16.0;
  return room < static_cast<double>(rows) ? static_cast<int64_t>(room) : rows;
}

}  // namespace paraminit
