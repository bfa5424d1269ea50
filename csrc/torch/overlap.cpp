// See overlap.h.
#include "overlap.h"

#include <ATen/MemoryOverlap.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

namespace paraminit {
namespace {

// Looks for steps d, not all zero, |d[i]| < size[i], with sum d[i] stride[i] = 0, widest stride
// first, so that each step leaves only what the narrower ones can make up for.
class OverlapSearch {
 public:
  explicit OverlapSearch(const at::Tensor& t) {
    for (int64_t d = 0; d < t.dim(); ++d) {
      if (t.size(d) > 1) dims_.push_back({t.stride(d), t.size(d) - 1});
    }
    std::sort(dims_.begin(), dims_.end(), [](auto& a, auto& b) { return a.stride > b.stride; });
    reach_.resize(dims_.size() + 1, 0);
    for (size_t i = dims_.size(); i-- > 0;) {
      reach_[i] = reach_[i + 1] + dims_[i].stride * dims_[i].most;
    }
  }
  bool found() { return search(0, 0, false); }

 private:
  struct Dim {
    int64_t stride, most;
  };
  bool search(size_t i, int64_t sum, bool moved) {
    if (--budget_ < 0) return true;
    if (i == dims_.size()) return moved && sum == 0;
    const auto [stride, most] = dims_[i];
    if (stride == 0) return true;
    const int64_t rest = reach_[i + 1];
    // By symmetry the first step that is not zero is positive.
    const int64_t first = std::max(moved ? -most : 0, -((rest + sum) / stride));
    const int64_t last = std::min(most, (rest - sum) / stride);
    for (int64_t d = first; d <= last; ++d) {
      if (search(i + 1, sum + d * stride, moved || d != 0)) return true;
    }
    return false;
  }
  c10::SmallVector<Dim, 8> dims_;
  c10::SmallVector<int64_t, 9> reach_;
  int64_t budget_ = 1 << 16;
};

}  // namespace

bool overlaps_itself(const at::Tensor& t) {
  switch (at::has_internal_overlap(t)) {
    case at::MemOverlap::No:
      return false;
    case at::MemOverlap::Yes:
      return true;
    default:
      return OverlapSearch(t).found();
  }
}

}  // namespace paraminit
