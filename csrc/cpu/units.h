// How a tensor is cut into units of work, and how units are spread over threads.
// It decides which core writes an element, and in what order, and nothing about its value. What is
// written comes from `Write`, called with (first index, count, consecutive memory).
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "../stream/geometry.h"
#include "capability.h"
#include "quota.h"
#include "threads.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace paraminit {

// Units of a dense run: all but the last end with a block.
constexpr int64_t kDenseUnit = 32 * kWholeBlocks;
// Elements that are worth a thread's while, some 10 microseconds of work; it takes as many at once.
constexpr int64_t kGrain = 6 * kDenseUnit;
// Units of a scattered run pass through a buffer on the stack.
constexpr int64_t kScatteredUnit = 6 * kWholeBlocks;
// Tiles of a transposed matrix: whole blocks of consecutive indices one way, whole cache lines of
// memory the other.
constexpr int64_t kTileRows = 32;
constexpr int64_t kTileColumns = kWholeBlocks;

template <class T>
void scatter(const Geometry& g, int64_t position, int64_t count, const void* values, void* base) {
  const T* from = static_cast<const T*>(values);
  T* to = static_cast<T*>(base);
  const int inner = g.dims - 1;
  const int64_t size = g.sizes[inner], stride = g.strides[inner];
  while (count > 0) {
    const int64_t part = std::min(count, size - position % size);
    T* row = to + locate_in_run(g, position);
    for (int64_t i = 0; i < part; ++i) row[i * stride] = from[i];
    from += part;
    position += part;
    count -= part;
  }
}

// Calls f with a zero of the unsigned integer of an element's size: moves need only the bits.
template <class F>
void with_bits(int64_t size, F&& f) {
  if (size == 4) {
    f(uint32_t{});
  } else if (size == 2) {
    f(uint16_t{});
  } else {
    f(uint64_t{});
  }
}

// A run in units of `length` elements, straight into memory or by way of a buffer.
template <class Write>
struct Runs {
  const Write& write;
  int64_t size;  // of an element, bytes
  const Geometry& g;
  char* data;

  bool dense() const { return g.dense_runs(); }
  int64_t length() const { return std::min(dense() ? kDenseUnit : kScatteredUnit, g.run_length); }
  int64_t parts() const { return (g.run_length + length() - 1) / length(); }
  int64_t units() const { return parts() * g.run_count; }
  int64_t unit_elements() const { return length(); }

  void operator()(int64_t begin, int64_t end) const {
    const int64_t of_a_run = parts();
    while (begin < end) {
      const int64_t part = begin % of_a_run;
      // Neighbouring units of a dense run are one call.
      const int64_t together = dense() ? std::min(end - begin, of_a_run - part) : 1;
      const int64_t position = part * length();
      const int64_t count = std::min(together * length(), g.run_length - position);
      int64_t offset;
      uint64_t index;
      locate_run(g, begin / of_a_run, offset, index);
      index += static_cast<uint64_t>(position);
      if (dense()) {
        write(index, count, data + (offset + position) * size);
      } else {
        alignas(64) char buffer[kScatteredUnit * 8];
        write(index, count, buffer);
        with_bits(size, [&](auto bits) {
          scatter<decltype(bits)>(g, position, count, buffer, data + offset * size);
        });
      }
      begin += together;
    }
  }
};

// The dimension whose elements lie closer together in memory than those of the innermost one, or -1
// where the geometry does not call for tiles.
inline int find_tile_rows(const Geometry& g) {
  const int inner = g.dims - 1;
  if (g.dims < 2 || g.index_strides[inner] != 1 || g.sizes[inner] < 16) return -1;
  int row_dim = -1;
  int64_t least = g.strides[inner];
  for (int d = 0; d < inner; ++d) {
    if (g.sizes[d] > 1 && g.strides[d] < least) {
      least = g.strides[d];
      row_dim = d;
    }
  }
  return row_dim;
}

// The innermost dimension, where indices are consecutive, strides over memory that another one (the
// rows) walks through: in tiles, every cache line is written once and whole.
template <class Write>
struct Tiles {
  const Write& write;
  int64_t size;  // of an element, bytes
  const Geometry& g;
  char* data;
  int row_dim;

  int64_t rows() const { return g.sizes[row_dim]; }
  int64_t columns() const { return g.sizes[g.dims - 1]; }
  int64_t row_blocks() const { return (rows() + kTileRows - 1) / kTileRows; }
  int64_t column_blocks() const { return (columns() + kTileColumns - 1) / kTileColumns; }
  int64_t units() const {
    return g.numel() / (rows() * columns()) * row_blocks() * column_blocks();
  }
  int64_t unit_elements() const { return kTileRows * kTileColumns; }

  void operator()(int64_t begin, int64_t end) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      // Row blocks fastest: they are next to each other in memory.
      const int64_t row = unit % row_blocks() * kTileRows;
      const int64_t column = unit / row_blocks() % column_blocks() * kTileColumns;
      int64_t rest = unit / row_blocks() / column_blocks();
      int64_t offset = row * g.strides[row_dim] + column * g.strides[g.dims - 1];
      uint64_t index = g.first_index + static_cast<uint64_t>(row) * g.index_strides[row_dim] +
                       static_cast<uint64_t>(column);
      for (int d = g.dims - 2; d >= 0; --d) {
        if (d == row_dim) continue;
        offset += rest % g.sizes[d] * g.strides[d];
        index += static_cast<uint64_t>(rest % g.sizes[d]) * g.index_strides[d];
        rest /= g.sizes[d];
      }
      tile(offset, index, std::min(kTileRows, rows() - row),
           std::min(kTileColumns, columns() - column));
    }
  }

  void tile(int64_t offset, uint64_t index, int64_t height, int64_t width) const {
    alignas(64) char buffer[kTileRows * kTileColumns * 8];
    for (int64_t r = 0; r < height; ++r) {
      write(index + static_cast<uint64_t>(r) * g.index_strides[row_dim], width,
            buffer + r * kTileColumns * size);
    }
    with_bits(size, [&](auto bits) {
      using T = decltype(bits);
      const T* from = reinterpret_cast<const T*>(buffer);
      T* to = reinterpret_cast<T*>(data) + offset;
      for (int64_t c = 0; c < width; ++c) {
        for (int64_t r = 0; r < height; ++r) {
          to[c * g.strides[g.dims - 1] + r * g.strides[row_dim]] = from[r * kTileColumns + c];
        }
      }
    });
  }
};

// Streaming stores are ordered with nothing else, the end of a parallel region included.
inline void finish_streaming_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// What one thread begins with: units [next, end) of it have not been taken yet.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

// Calls work(begin, end) for parts of [0, units), several units a call where they are small. A
// thread at the end of its own share goes on with what is left of the others': beside a process
// that keeps one of two processors busy, fills take 0.7 to 0.8 of the time of equal parts.
template <class Work>
void run_on_threads(int64_t units, int64_t unit_elements, const Work& work) {
  const int64_t piece = std::max<int64_t>(1, kGrain / unit_elements);
  int64_t threads = std::min(thread_pool().count(), (units + piece - 1) / piece);
  // No more threads than the quota pays for: with more, the whole process is stopped again and
  // again. Two on one processor, 2^18 elements: 3 to 6 ms in the mean where one takes 0.33.
  if (const int64_t quota = cpu_quota(); quota > 0) threads = std::min(threads, quota);
  if (threads <= 1) {
    const DefaultFloatMode mode;
    work(0, units);
    finish_streaming_stores();
    return;
  }
  // Shares and not one counter for all: a thread stays in one part of the memory.
  std::vector<Share> shares(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    Share& share = shares[static_cast<size_t>(t)];
    share.next = units / threads * t + std::min(t, units % threads);
    share.end = units / threads * (t + 1) + std::min(t + 1, units % threads);
  }
  // Fewer threads than asked for are no loss: the first one to come takes all that is there.
  run_on_pool(threads, [&](int64_t own, int64_t) {
    const DefaultFloatMode mode;
    for (int64_t t = own; t < own + threads; ++t) {
      Share& share = shares[static_cast<size_t>(t % threads)];
      for (;;) {
        const int64_t begin = share.next.fetch_add(piece, std::memory_order_relaxed);
        if (begin >= share.end) break;
        work(begin, std::min(begin + piece, share.end));
      }
    }
    finish_streaming_stores();
  });
}

// Calls f with the units of the tensor.
template <class Write, class F>
void with_units(const Write& write, int64_t size, const Geometry& g, void* data, F&& f) {
  char* const bytes = static_cast<char*>(data);
  if (const int row_dim = find_tile_rows(g); row_dim >= 0) {
    f(Tiles<Write>{write, size, g, bytes, row_dim});
  } else {
    f(Runs<Write>{write, size, g, bytes});
  }
}

// Every element of the tensor, from `write`.
template <class Write>
void write_tensor(const Write& write, int64_t size, const Geometry& g, void* data) {
  with_units(write, size, g, data, [](const auto& units) {
    run_on_threads(units.units(), units.unit_elements(), units);
  });
}

}  // namespace paraminit
