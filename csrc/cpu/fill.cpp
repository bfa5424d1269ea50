// See fill.h.
#include "fill.h"

#include <cstdlib>
#include <cstring>

#include "parallel.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace paraminit {
namespace {

// A shorter run leaves most of a vector unused.
constexpr int64_t kShortRun = 8;

}  // namespace

// Failures are ignored: without huge pages, the fill uses small pages.
void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  static const bool enabled = [] {
    const char* choice = std::getenv("PARAMINIT_HUGEPAGES");
    return choice == nullptr || std::strcmp(choice, "0") != 0;
  }();
  if (!enabled) return;
  constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

bool is_large(int64_t size, const Geometry& g) {
  return g.dense_runs() && g.run_count == 1 && g.numel() * size >= kLargeFill;
}

FillFunction fill_function(const FillRequest& request, const Geometry& g) {
  // For short runs the scalar lane does less work than a full vector, and writes the same bits.
  return (g.run_length < kShortRun ? baseline::fill_kernels(request) : fill_kernels(request)).fill;
}

void fill_cpu(const FillRequest& base_request, const Geometry& g, void* data) {
  FillRequest request = base_request;
  const int64_t size = element_size(request.type);
  if (is_large(size, g)) {
    request.streaming = true;
    ask_for_huge_pages(data, static_cast<size_t>(g.numel() * size));
  }
  const FillFunction fill = fill_function(request, g);
  const auto write = [&](uint64_t index, int64_t count, void* out) {
    fill(request, index, count, out);
  };
  write_tensor(write, element_size(request.type), g, data);
}

void apply_cpu(const FillRequest& request, const uint32_t* words, int64_t groups, void* out) {
  const DefaultFloatMode mode;
  fill_kernels(request).apply(request, words, groups, out);
}

}  // namespace paraminit
