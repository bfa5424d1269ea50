// Divides a tensor into units of work and distributes the units over threads.
// This decides which thread writes an element and when, and never affects the element's value.
// The values come from a callable `Writer`: write(first index, count, contiguous output memory).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "../stream/geometry.h"
#include "capability.h"
#include "fill.h"
#include "quota.h"
#include "threads.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace paraminit {

// Elements in a unit of a dense run. Every unit except the last ends at a block boundary.
constexpr int64_t kDenseUnit = 32 * kBlockMultiple;
// Elements that a thread claims at a time: about 10 microseconds of work. Also the least amount of
// work for which another thread is used.
constexpr int64_t kGrain = 6 * kDenseUnit;
// Elements in a unit of a scattered run. Such a unit is computed in a buffer on the stack.
constexpr int64_t kScatteredUnit = 6 * kBlockMultiple;
// Tile size for a transposed matrix. A row of a tile is a whole number of blocks of consecutive
// indices. Rows are padded: their distance would otherwise be a multiple of 128 bytes, and they
// would share few sets of the cache. A column of a tile is two whole cache lines.
constexpr int64_t kTileColumns = kBlockMultiple;
constexpr int64_t kTilePitch = kTileColumns + 16;
constexpr int64_t kTileBytes = 128;

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

// Calls f with a zero of the unsigned integer type that has the size of an element. Copies do not
// depend on the element type, only on its size.
template <class F>
void with_uint_of_size(int64_t size, F&& f) {
  if (size == 4) {
    f(uint32_t{});
  } else if (size == 2) {
    f(uint16_t{});
  } else {
    f(uint64_t{});
  }
}

// Divides each run into units of `length()` elements. Dense units are written directly to the
// tensor, scattered ones through a buffer.
template <class Writer>
struct RunUnits {
  const Writer& write;
  int64_t size;  // bytes per element
  const Geometry& g;
  char* data;

  bool dense() const { return g.dense_runs(); }
  int64_t length() const { return std::min(dense() ? kDenseUnit : kScatteredUnit, g.run_length); }
  int64_t parts() const { return (g.run_length + length() - 1) / length(); }
  int64_t units() const { return parts() * g.run_count; }
  int64_t unit_elements() const { return length(); }

  void operator()(int64_t begin, int64_t end) const {
    const int64_t parts_per_run = parts();
    while (begin < end) {
      const int64_t part = begin % parts_per_run;
      // Adjacent units of a dense run are merged into one call.
      const int64_t merged = dense() ? std::min(end - begin, parts_per_run - part) : 1;
      const int64_t position = part * length();
      const int64_t count = std::min(merged * length(), g.run_length - position);
      int64_t offset;
      uint64_t index;
      locate_run(g, begin / parts_per_run, offset, index);
      index += static_cast<uint64_t>(position);
      if (dense()) {
        write(index, count, data + (offset + position) * size);
      } else {
        alignas(64) char buffer[kScatteredUnit * 8];
        write(index, count, buffer);
        with_uint_of_size(size, [&](auto bits) {
          scatter<decltype(bits)>(g, position, count, buffer, data + offset * size);
        });
      }
      begin += merged;
    }
  }
};

// Returns the outer dimension with the smallest stride if that stride is smaller than the innermost
// dimension's stride. This dimension forms the rows of the tiles. Returns -1 if tiling does not
// help.
inline int find_tile_rows(const Geometry& g) {
  const int inner = g.dims - 1;
  if (g.dims < 2 || g.index_strides[inner] != 1 || g.sizes[inner] < 16) return -1;
  int row_dim = -1;
  int64_t smallest = g.strides[inner];
  for (int d = 0; d < inner; ++d) {
    if (g.sizes[d] > 1 && g.strides[d] < smallest) {
      smallest = g.strides[d];
      row_dim = d;
    }
  }
  return row_dim;
}

// Copies contiguous values to memory that nobody reads soon: whole cache lines by non-temporal
// stores, which neither read a line before they overwrite it nor evict others.
inline void stream_copy(void* to, const void* from, size_t bytes) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
#if defined(__x86_64__)
  const size_t head = std::min(bytes, (64 - reinterpret_cast<uintptr_t>(out) % 64) % 64);
  std::memcpy(out, in, head);
  out += head, in += head, bytes -= head;
  for (; bytes >= 64; out += 64, in += 64, bytes -= 64) {
    for (int n = 0; n < 4; ++n) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(out) + n,
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in) + n));
    }
  }
#endif
  std::memcpy(out, in, bytes);
}

// Transposes a square block whose rows have 16 bytes.
template <class T>
inline void transpose_block(const T* from, int64_t from_pitch, T* to, int64_t to_pitch) {
  constexpr int side = 16 / sizeof(T);
#if defined(__x86_64__)
  __m128i rows[side], columns[side];
  for (int r = 0; r < side; ++r) {
    rows[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + r * from_pitch));
  }
  // Each step interleaves the first half of the vectors with the second one.
  for (int step = 1; step < side; step *= 2) {
    for (int i = 0; i < side / 2; ++i) {
      const __m128i a = rows[i], b = rows[i + side / 2];
      if constexpr (sizeof(T) == 2) {
        columns[2 * i] = _mm_unpacklo_epi16(a, b);
        columns[2 * i + 1] = _mm_unpackhi_epi16(a, b);
      } else if constexpr (sizeof(T) == 4) {
        columns[2 * i] = _mm_unpacklo_epi32(a, b);
        columns[2 * i + 1] = _mm_unpackhi_epi32(a, b);
      } else {
        columns[2 * i] = _mm_unpacklo_epi64(a, b);
        columns[2 * i + 1] = _mm_unpackhi_epi64(a, b);
      }
    }
    std::copy(columns, columns + side, rows);
  }
  for (int c = 0; c < side; ++c) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * to_pitch), rows[c]);
  }
#else
  for (int r = 0; r < side; ++r) {
    for (int c = 0; c < side; ++c) to[c * to_pitch + r] = from[r * from_pitch + c];
  }
#endif
}

// Divides a tensor into tiles if consecutive indices are far apart in memory and another dimension
// (`row_dim`) has a smaller stride. With tiles, each cache line is written once and completely.
template <class Writer>
struct TileUnits {
  const Writer& write;
  int64_t size;  // bytes per element
  const Geometry& g;
  char* data;
  int row_dim;
  bool streaming;

  int64_t rows() const { return g.sizes[row_dim]; }
  int64_t columns() const { return g.sizes[g.dims - 1]; }
  int64_t tile_rows() const { return kTileBytes / size; }
  // Rows that the first block lacks, so that the other blocks begin at a cache line.
  int64_t skipped_rows() const {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % uintptr_t{kTileBytes}) / size;
  }
  int64_t row_blocks() const { return (skipped_rows() + rows() + tile_rows() - 1) / tile_rows(); }
  int64_t column_blocks() const { return (columns() + kTileColumns - 1) / kTileColumns; }
  int64_t units() const {
    return g.numel() / (rows() * columns()) * row_blocks() * column_blocks();
  }
  int64_t unit_elements() const { return tile_rows() * kTileColumns; }

  void operator()(int64_t begin, int64_t end) const {
    const int64_t skipped = skipped_rows();
    for (int64_t unit = begin; unit < end; ++unit) {
      // Row blocks vary fastest because adjacent row blocks are adjacent in memory.
      const int64_t block = unit % row_blocks() * tile_rows() - skipped;
      const int64_t row = std::max<int64_t>(block, 0);
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
      tile(offset, index, std::min(block + tile_rows(), rows()) - row,
           std::min(kTileColumns, columns() - column));
    }
  }

  void tile(int64_t offset, uint64_t index, int64_t height, int64_t width) const {
    alignas(64) char buffer[kTileBytes * kTilePitch];
    for (int64_t r = 0; r < height; ++r) {
      write(index + static_cast<uint64_t>(r) * g.index_strides[row_dim], width,
            buffer + r * kTilePitch * size);
    }
    with_uint_of_size(size, [&](auto bits) {
      using T = decltype(bits);
      const T* from = reinterpret_cast<const T*>(buffer);
      T* to = reinterpret_cast<T*>(data) + offset;
      const int64_t row_stride = g.strides[row_dim], column_stride = g.strides[g.dims - 1];
      if (row_stride != 1) {
        for (int64_t c = 0; c < width; ++c, to += column_stride) {
          for (int64_t r = 0; r < height; ++r) to[r * row_stride] = from[r * kTilePitch + c];
        }
        return;
      }
      // As many columns at a time as a square block has.
      constexpr int64_t side = 16 / sizeof(T);
      alignas(64) T columns[side][kTileBytes / sizeof(T)];
      for (int64_t first = 0; first < width; first += side) {
        for (int64_t r = 0; r < height; r += side) {
          transpose_block(from + r * kTilePitch + first, kTilePitch, &columns[0][r],
                          kTileBytes / int64_t{sizeof(T)});
        }
        for (int64_t c = 0; c < std::min(side, width - first); ++c, to += column_stride) {
          const size_t bytes = static_cast<size_t>(height) * sizeof(T);
          if (streaming) {
            stream_copy(to, columns[c], bytes);
          } else {
            std::memcpy(to, columns[c], bytes);
          }
        }
      }
    });
  }
};

// Non-temporal stores are weakly ordered: not even the end of a parallel region orders them.
inline void finish_streaming_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// The units initially assigned to one thread. No thread has claimed units [next, end) yet.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

// Calls work(begin, end) for parts of [0, units), with several units per call if units are small.
// A thread that has finished its own share steals units from the others. If another process keeps
// one of two processors busy, fills take 0.7 to 0.8 of the time that a static partition takes.
template <class Work>
void run_on_threads(int64_t units, int64_t unit_elements, const Work& work) {
  const int64_t claim = std::max<int64_t>(1, kGrain / unit_elements);
  int64_t threads = std::min(thread_pool().count(), (units + claim - 1) / claim);
  // Use no more threads than the CPU quota allows: otherwise the system repeatedly stops the
  // whole process. With a quota of one processor, 2^18 elements take two threads 3 to 6 ms on
  // average and one thread 0.33 ms.
  if (const int64_t quota = cpu_quota(); quota > 0) threads = std::min(threads, quota);
  if (threads <= 1) {
    const DefaultFloatMode mode;
    work(0, units);
    finish_streaming_stores();
    return;
  }
  // One share per thread, not one shared counter, so that a thread stays in one part of memory.
  std::vector<Share> shares(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    Share& share = shares[static_cast<size_t>(t)];
    share.next = units / threads * t + std::min(t, units % threads);
    share.end = units / threads * (t + 1) + std::min(t + 1, units % threads);
  }
  // If the pool runs fewer threads than requested, the running ones claim all shares.
  run_on_pool(threads, [&](int64_t own, int64_t) {
    const DefaultFloatMode mode;
    for (int64_t t = own; t < own + threads; ++t) {
      Share& share = shares[static_cast<size_t>(t % threads)];
      for (;;) {
        const int64_t begin = share.next.fetch_add(claim, std::memory_order_relaxed);
        if (begin >= share.end) break;
        work(begin, std::min(begin + claim, share.end));
      }
    }
    finish_streaming_stores();
  });
}

// Calls f with the tensor divided into units (TileUnits or RunUnits).
template <class Writer, class F>
void with_units(const Writer& write, int64_t size, const Geometry& g, void* data, F&& f) {
  char* const bytes = static_cast<char*>(data);
  if (const int row_dim = find_tile_rows(g); row_dim >= 0) {
    const bool streaming = g.numel() * size >= kLargeFill;
    f(TileUnits<Writer>{write, size, g, bytes, row_dim, streaming});
  } else {
    f(RunUnits<Writer>{write, size, g, bytes});
  }
}

// Writes every element of the tensor with `write`.
template <class Writer>
void write_tensor(const Writer& write, int64_t size, const Geometry& g, void* data) {
  with_units(write, size, g, data, [](const auto& units) {
    run_on_threads(units.units(), units.unit_elements(), units);
  });
}

}  // namespace paraminit
