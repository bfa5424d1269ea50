// See overlap.h.
#include "overlap.h"

#include <algorithm>
#include <array>

#include "geometry.h"

namespace paraminit {
namespace {

struct Dim {
  int64_t stride, size;
};

// The dimensions of size other than 1, largest stride first.
struct Dims {
  Dims(std::span<const int64_t> sizes, std::span<const int64_t> strides) {
    for (size_t d = 0; d < sizes.size(); ++d) {
      if (sizes[d] != 1) list[count++] = {strides[d], sizes[d]};
    }
    std::sort(list.begin(), list.begin() + count,
              [](const Dim& a, const Dim& b) { return a.stride > b.stride; });
  }
  std::array<Dim, kMaxDims> list{};
  size_t count = 0;
};

bool is_empty(std::span<const int64_t> sizes) {
  return std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
}

bool is_dense(const Dims& dims) {
  int64_t expected = 1;
  for (size_t i = dims.count; i-- > 0;) {
    if (dims.list[i].stride != expected) return false;
    expected *= dims.list[i].size;
  }
  return true;
}

// Searches for differences d[i] of two elements' coordinates, not all zero, with |d[i]| < size[i]
// and sum d[i] stride[i] = 0. The largest stride comes first, so that each d[i] is limited to the
// values that the smaller strides can compensate.
class OverlapSearch {
 public:
  explicit OverlapSearch(const Dims& dims) : dims_(dims) {
    for (size_t i = dims.count; i-- > 0;) {
      reach_[i] = reach_[i + 1] + dims.list[i].stride * (dims.list[i].size - 1);
    }
  }
  bool found() { return search(0, 0, false); }

 private:
  bool search(size_t i, int64_t sum, bool moved) {
    if (--budget_ < 0) return true;
    if (i == dims_.count) return moved && sum == 0;
    const auto [stride, size] = dims_.list[i];
    if (stride == 0) return true;
    const int64_t rest = reach_[i + 1], max_step = size - 1;
    // By symmetry, the first nonzero difference can be taken as positive.
    const int64_t first = std::max(moved ? -max_step : 0, -((rest + sum) / stride));
    const int64_t last = std::min(max_step, (rest - sum) / stride);
    for (int64_t d = first; d <= last; ++d) {
      if (search(i + 1, sum + d * stride, moved || d != 0)) return true;
    }
    return false;
  }
  const Dims& dims_;
  std::array<int64_t, kMaxDims + 1> reach_{};
  int64_t budget_ = 1 << 16;
};

}  // namespace

bool is_contiguous(std::span<const int64_t> sizes, std::span<const int64_t> strides) {
  if (is_empty(sizes)) return true;
  int64_t expected = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    if (sizes[d] == 1) continue;
    if (strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

bool is_dense(std::span<const int64_t> sizes, std::span<const int64_t> strides) {
  return is_empty(sizes) || is_dense(Dims(sizes, strides));
}

bool overlaps_itself(std::span<const int64_t> sizes, std::span<const int64_t> strides) {
  if (is_contiguous(sizes, strides)) return false;
  const Dims dims(sizes, strides);
  return !is_dense(dims) && OverlapSearch(dims).found();
}

}  // namespace paraminit
