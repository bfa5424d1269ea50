// A fill: the request with the distribution's run function, over the units of the tensor.
#include "fill.h"

#include <cstdlib>
#include <cstring>

#include "units.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace paraminit {
namespace {

// Shorter runs leave most of a vector unused.
constexpr int64_t kShortRun = 8;

}  // namespace

// Silent where the system has no huge pages or gives none: then the pages are small.
void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  static const bool wanted = [] {
    const char* choice = std::getenv("PARAMINIT_HUGEPAGES");
    return choice == nullptr || std::strcmp(choice, "0") != 0;
  }();
  if (!wanted) return;
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
  // A vector's worth of work for a handful of elements: the scalar lane writes the same bits.
  return (g.run_length < kShortRun ? baseline::run_functions(request) : run_functions(request))
      .fill;
}

void fill_cpu(const FillRequest& asked, const Geometry& g, void* data) {
  FillRequest request = asked;
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
  run_functions(request).apply(request, words, groups, out);
}

}  // namespace paraminit
