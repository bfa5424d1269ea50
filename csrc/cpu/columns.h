// Loops over words of which each, or each of a row, belongs to another column: what sparse fills
// compare. Integers only, so that every instruction set agrees by construction.
// Included once by each instruction set's translation unit, inside its region.
#pragma once

#include "run_function.h"

namespace paraminit::PARAMINIT_ISA {

static int64_t count_run(const uint32_t* words, int64_t count, uint32_t low, uint32_t high,
                         uint32_t* up_to, Found* found) {
  using L = Lane;
  const L::U32 first = L::splat_word(low), span = L::splat_word(high - low);
  const L::U32 last = L::splat_word(high);
  int64_t n = 0, begin = 0;
  for (; begin + L::kWords <= count; begin += L::kWords) {
    const L::U32 w = L::load(words + begin);
    L::save(up_to + begin, L::plus_at_most(L::load(up_to + begin), w, last));
    // Modulo 2^32 those below the window are far above it.
    for (uint32_t inside = L::mask_at_most(L::minus(w, first), span); inside != 0;
         inside &= inside - 1) {
      const int64_t i = begin + __builtin_ctz(inside);
      found[n++] = {static_cast<uint32_t>(i), words[i]};
    }
  }
  for (; begin < count; ++begin) {
    up_to[begin] += words[begin] <= high ? 1 : 0;
    if (words[begin] - low <= high - low) found[n++] = {static_cast<uint32_t>(begin), words[begin]};
  }
  return n;
}

// Every word against every other of its column: for columns of few rows that is less than sorting.
// Where its inner loop lies among cache lines decides up to a third of its time.
[[gnu::aligned(64)]] static void select_small(const uint32_t* words, int64_t rows, uint32_t zeros,
                                              uint32_t* thresholds, uint32_t* up_to) {
  using L = Lane;
  for (int lane = 0; lane < kSmallLanes; lane += L::kWords) {
    const L::U32 wanted = L::splat_word(zeros);
    L::U32 threshold = L::splat_word(0xFFFFFFFFu), reached = L::splat_word(0);
    for (int64_t row = 0; row < rows; ++row) {
      const L::U32 w = L::load(words + row * kSmallLanes + lane);
      L::U32 count = L::splat_word(0);
      for (int64_t other = 0; other < rows; ++other) {
        count = L::plus_at_most(count, L::load(words + other * kSmallLanes + lane), w);
      }
      // The threshold is the least word that as many as are wanted do not pass.
      threshold = L::least_where_at_most(wanted, count, w, threshold);
    }
    for (int64_t row = 0; row < rows; ++row) {
      reached = L::plus_at_most(reached, L::load(words + row * kSmallLanes + lane), threshold);
    }
    L::save(thresholds + lane, threshold);
    L::save(up_to + lane, reached);
  }
}

struct Bits128 {
  uint64_t low, high;
};

template <class T>
static void zero_run(const uint32_t* words, const uint32_t* thresholds, int64_t count,
                     void* values) {
  T* const out = static_cast<T*>(values);
  for (int64_t i = 0; i < count; ++i) {
    const T kept = out[i];
    out[i] = words[i] <= thresholds[i] ? T{} : kept;
  }
}

ColumnFunctions column_functions() {
  return {count_run,          select_small,       zero_run<uint16_t>,
          zero_run<uint32_t>, zero_run<uint64_t>, zero_run<Bits128>};
}

}  // namespace paraminit::PARAMINIT_ISA
