// Compares the CUDA kernels for sparse fills, run on the host, with the CPU's values and its sorted
// words. Prints one line per case that differs, and the number of compared elements in the last
// line.
#include <algorithm>

#include "compare.h"
#include "csrc/cuda/kernels.cuh"

using namespace paraminit;

namespace {

struct Matrix {
  const char* name;
  int64_t rows, columns;  // of the global matrix
  Rectangle shard;
  int64_t zeros;
  int64_t panel = 1 << 20;  // maximum columns per launch
  double spread = kWindowSpread;
  int64_t capacity = 0;          // of a column's list; 0: as the window needs
  std::vector<int64_t> strides;  // in elements; empty: contiguous rows
  int64_t misplaced = 0;
};

// Returns which elements of the global matrix are zero: in each column, those with the smallest
// (word, row).
std::vector<bool> zeros_of(const Matrix& m, Key key) {
  FillRequest request = plan_words().request;
  request.type = ElementType::kWord32;
  request.keys = make_key_schedule(fold_in(key, 1));
  const size_t rows = static_cast<size_t>(m.rows), columns = static_cast<size_t>(m.columns);
  std::vector<uint32_t> words(rows * columns);
  baseline::fill_kernels(request).fill(request, 0, m.rows * m.columns, words.data());
  std::vector<bool> zero(rows * columns);
  std::vector<uint64_t> order(rows);
  for (size_t column = 0; column < columns; ++column) {
    for (size_t row = 0; row < rows; ++row) {
      order[row] = static_cast<uint64_t>(words[row * columns + column]) << 32 | row;
    }
    std::sort(order.begin(), order.end());
    for (int64_t n = 0; n < m.zeros; ++n) {
      zero[(order[static_cast<size_t>(n)] & 0xFFFFFFFFu) * columns + column] = true;
    }
  }
  return zero;
}

void compare(const Matrix& m, ElementType type, int parts, Key key, bool key_on_device) {
  SparseRequest request{};
  request.values = plan_normal(type, 0.0, 0.02).request;
  request.parts = parts;
  request.rows = m.rows;
  request.columns = m.columns;
  request.shard = m.shard;
  request.zeros = m.zeros;
  request.spread = m.spread;
  const int dims = parts == 1 ? 2 : 3;  // complex elements add a dimension for their parts
  const std::vector<int64_t> strides =
      m.strides.empty() ? std::vector<int64_t>{m.shard.columns, 1} : m.strides;
  Memory memory{m.name,
                {m.shard.rows, m.shard.columns, 2},
                {strides[0] * parts, strides[1] * parts, 1},
                {m.rows, m.columns, 2},
                {m.shard.row, m.shard.column, 0},
                m.misplaced};
  for (auto* numbers : {&memory.sizes, &memory.strides, &memory.whole, &memory.start}) {
    numbers->resize(static_cast<size_t>(dims));
  }
  Tensor t = make_tensor(memory, type);
  const std::vector<bool> zero = zeros_of(m, key);
  request.values.keys = make_key_schedule(key);
  const auto fill = baseline::fill_kernels(request.values).fill;
  expect(t, [&](uint64_t index, int64_t count, char* to) {
    fill(request.values, index, count, to);
    for (int64_t i = 0; i < count; ++i, to += t.size) {
      const uint64_t element = (index + static_cast<uint64_t>(i)) / static_cast<uint64_t>(parts);
      if (zero[element]) std::memset(to, 0, static_cast<size_t>(t.size));
    }
  });

  const Key word_key = fold_in(key, 1);
  const uint64_t words[] = {key.seed, key.offset, word_key.seed, word_key.offset};
  request.values.keys = key_on_device ? KeySchedule{} : make_key_schedule(key);
  request.word_keys = key_on_device ? KeySchedule{} : make_key_schedule(word_key);
  for (int64_t done = 0; done < m.shard.columns; done += m.panel) {
    SparseLaunch launch{};
    launch.request = request;
    launch.first = m.shard.column + done;
    launch.width = std::min(m.panel, m.shard.columns - done);
    launch.data = t.data + done * memory.strides[1] * t.size;
    launch.device_key = key_on_device ? words : nullptr;
    launch.device_word_key = key_on_device ? words + 2 : nullptr;
    launch.capacity = m.capacity != 0 ? m.capacity : sparse_capacity(request);
    // Arbitrary initial contents, which the kernels must not read before they write them.
    const size_t width = static_cast<size_t>(launch.width);
    std::vector<uint64_t> thresholds(width, 0x5A5A5A5A5A5A5A5Au);
    std::vector<uint64_t> found(width * static_cast<size_t>(launch.capacity), 0x5A5A5A5A5A5A5A5Au);
    std::vector<uint32_t> counters(2 * width, 0x5A5A5A5Au);
    launch.thresholds = thresholds.data();
    launch.counters = counters.data();
    launch.found = found.data();
    launch.multiprocessors = 2;
    Memory panel = memory;
    panel.sizes[1] = launch.width;
    panel.start[1] = launch.first;
    launch_sparse(launch, make_geometry(dims, panel.sizes.data(), panel.strides.data(),
                                        panel.whole.data(), panel.start.data()));
  }
  check(parts == 1 ? m.name : std::string(m.name) + ", complex", t,
        key_on_device ? ", key on the device" : "");
}

}  // namespace

bool on_launch(int, const cuda::DenseRun*, const void*) { return true; }

int main() {
  threads_wait = true;
  const Matrix matrices[] = {
      {"few columns", 1003, 5, {0, 0, 1003, 5}, 101},
      {"one column", 2001, 1, {0, 0, 2001, 1}, 7},
      {"one row", 1, 37, {0, 0, 1, 37}, 1},
      {"wider than a block", 33, 1030, {0, 0, 33, 1030}, 4},
      {"panels", 41, 203, {0, 0, 41, 203}, 20, 64},
      {"all zeros but one a column", 70, 9, {0, 0, 70, 9}, 69},
      {"all zeros", 70, 9, {0, 0, 70, 9}, 70},
      {"a part", 300, 17, {100, 3, 150, 11}, 30},
      {"a part in panels", 300, 17, {100, 3, 150, 11}, 30, 4},
      {"windows that miss", 500, 5, {0, 0, 500, 5}, 99, 1 << 20, 0.0},
      {"lists too short", 500, 5, {0, 0, 500, 5}, 99, 1 << 20, kWindowSpread, 5},
      {"a long list", 4001, 3, {0, 0, 4001, 3}, 1999, 1 << 20, 100.0},
      {"transposed", 111, 13, {0, 0, 111, 13}, 12, 1 << 20, kWindowSpread, 0, {1, 111}},
      {"rows apart", 60, 24, {0, 0, 60, 24}, 12, 1 << 20, kWindowSpread, 0, {40, 1}},
      {"misaligned", 60, 24, {0, 0, 60, 24}, 12, 1 << 20, kWindowSpread, 0, {}, 1},
  };
  const Key key{0x0123456789ABCDEFu, 0xFEDCBA9876543210u};
  for (const Matrix& m : matrices) {
    for (const ElementType type : kTypes) {
      compare(m, type, 1, key, false);
      compare(m, type, 2, key, false);
    }
    compare(m, ElementType::kFloat32, 1, {key.seed, 0xFFFFFFF0u}, true);
  }
  return finish();
}
