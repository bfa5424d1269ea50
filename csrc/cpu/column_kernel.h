// The inner loops of sparse fills. Consecutive words belong to consecutive columns.
// All arithmetic is on integers, so every instruction set gives the same results by construction.
// The translation unit of each instruction set includes this file once, in its target region.
#pragma once

#include "kernel_table.h"

namespace paraminit::PARAMINIT_ISA {

// Appends the words whose bits are set in the mask, and their positions. Bit 0 is position `begin`.
template <class L>
PARAMINIT_FN int64_t append_words(uint32_t mask, int64_t begin, typename L::U32 w,
                                  const uint32_t* words, uint32_t* positions, uint32_t* found) {
  if constexpr (requires { L::compress(mask, w); }) {
    // Without a branch, which would be mispredicted for every third vector.
    L::save(positions, L::compress(mask, L::plus(L::iota(), L::splat_word(uint32_t(begin)))));
    L::save(found, L::compress(mask, w));
    return __builtin_popcount(mask);
  } else {
    int64_t n = 0;
    for (; mask != 0; mask &= mask - 1) {
      const int64_t i = begin + __builtin_ctz(mask);
      positions[n] = static_cast<uint32_t>(i);
      found[n++] = words[i];
    }
    return n;
  }
}

static int64_t count_words(const uint32_t* words, int64_t count, uint32_t low, uint32_t high,
                           uint32_t* not_below, uint64_t* below, uint32_t* candidate_positions,
                           uint32_t* candidate_words) {
  using L = Lane;
  const L::U32 first = L::splat_word(low), span = L::splat_word(high - low);
  constexpr uint64_t all = (uint64_t{1} << L::kWords) - 1;
  int64_t n = 0, begin = 0;
  for (; begin + 64 <= count; begin += 64) {
    uint64_t bits = 0;
    for (int at = 0; at < 64; at += L::kWords) {
      const int64_t i = begin + at;
      const L::U32 w = L::load(words + i);
      L::save(not_below + i, L::add_if_at_most(L::load(not_below + i), first, w));
      bits |= (L::mask_at_most(first, w) ^ all) << at;
      // A word below the window wraps modulo 2^32 to a difference greater than `span`.
      const uint32_t in_window = L::mask_at_most(L::minus(w, first), span);
      n += append_words<L>(in_window, i, w, words, candidate_positions + n, candidate_words + n);
    }
    below[begin / 64] = bits;
  }
  if (begin < count) below[begin / 64] = 0;
  for (; begin < count; ++begin) {
    const bool is_below = words[begin] < low;
    not_below[begin] += is_below ? 0 : 1;
    below[begin / 64] |= uint64_t{is_below} << begin % 64;
    if (words[begin] - low <= high - low) {
      candidate_positions[n] = static_cast<uint32_t>(begin);
      candidate_words[n++] = words[begin];
    }
  }
  return n;
}

static void compare_small(const uint32_t* words, const uint32_t* thresholds, uint64_t* at_most) {
  using L = Lane;
  for (int begin = 0; begin < kSmallLanes; begin += 64) {
    uint64_t bits = 0;
    for (int at = 0; at < 64; at += L::kWords) {
      const uint64_t mask =
          L::mask_at_most(L::load(words + begin + at), L::load(thresholds + begin + at));
      bits |= mask << at;
    }
    at_most[begin / 64] = bits;
  }
}

// Compares every word with every other word of its column, which costs less than sorting if there
// are few rows. The alignment of the inner loop to cache lines affects its time by up to a third.
[[gnu::aligned(64)]] static void select_small(const uint32_t* words, int64_t rows, uint32_t zeros,
                                              uint32_t* thresholds, uint32_t* at_most_threshold) {
  using L = Lane;
  for (int lane = 0; lane < kSmallLanes; lane += L::kWords) {
    const L::U32 wanted = L::splat_word(zeros);
    L::U32 threshold = L::splat_word(0xFFFFFFFFu), at_most = L::splat_word(0);
    for (int64_t row = 0; row < rows; ++row) {
      const L::U32 w = L::load(words + row * kSmallLanes + lane);
      L::U32 count = L::splat_word(0);
      for (int64_t other = 0; other < rows; ++other) {
        count = L::add_if_at_most(count, L::load(words + other * kSmallLanes + lane), w);
      }
      // The threshold is the smallest word w such that at least `zeros` words are <= w.
      threshold = L::min_if_at_most(wanted, count, w, threshold);
    }
    for (int64_t row = 0; row < rows; ++row) {
      at_most = L::add_if_at_most(at_most, L::load(words + row * kSmallLanes + lane), threshold);
    }
    L::save(thresholds + lane, threshold);
    L::save(at_most_threshold + lane, at_most);
  }
}

// An element is `parts` words. Vectors are the compiler's own: a loop over the elements of a vector
// would be unrolled into scalar code.
template <class Word, int parts>
static void zero_elements(const uint64_t* bits, int64_t first, int64_t count, void* values) {
  constexpr int64_t width = 16;  // elements per vector
  typedef Word Vector __attribute__((vector_size(width * parts * sizeof(Word))));
  Vector bit_of{};
  for (int i = 0; i < width * parts; ++i) bit_of[i] = static_cast<Word>(Word{1} << i / parts);
  Word* out = static_cast<Word*>(values);
  for (; count > 0; count -= width, first += width, out += width * parts) {
    const uint64_t* const at = bits + static_cast<uint64_t>(first) / 64;
    const int shift = static_cast<int>(static_cast<uint64_t>(first) % 64);
    // Shifting by 64 is undefined.
    const uint64_t chunk = at[0] >> shift | at[1] << 1 << (63 - shift);
    const int64_t bytes = (count < width ? count : width) * parts * int64_t{sizeof(Word)};
    Vector v{};
    if (count >= width) {
      std::memcpy(&v, out, sizeof(v));
    } else {
      std::memcpy(&v, out, static_cast<std::size_t>(bytes));
    }
    v &= (bit_of & (Vector{} + static_cast<Word>(chunk & 0xFFFF))) == 0;
    if (count >= width) {
      std::memcpy(out, &v, sizeof(v));
    } else {
      std::memcpy(out, &v, static_cast<std::size_t>(bytes));
    }
  }
}

ColumnKernels column_kernels() {
  return {count_words,
          select_small,
          compare_small,
          zero_elements<uint16_t, 1>,
          zero_elements<uint32_t, 1>,
          zero_elements<uint64_t, 1>,
          zero_elements<uint64_t, 2>};
}

}  // namespace paraminit::PARAMINIT_ISA
