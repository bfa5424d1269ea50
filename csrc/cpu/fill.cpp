// Threads and instruction-set choice: cuts a fill into units, hands each to a run function.
// How it is cut decides nothing about the values, only which core writes them and in what order.
#include "fill.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "run_function.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif
#if defined(__clang__) && defined(_OPENMP)
#include <omp.h>
#endif

namespace paraminit {
namespace {

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports does not know the name.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

struct Capability {
  const char* name;
  bool (*runs_here)();
  RunFunctions (*run_functions)(Distribution, ElementType);
};

// __builtin_cpu_supports asks the operating system as well (XGETBV), so a kernel that does not save
// the wide registers counts as a CPU that lacks them.
const Capability kCapabilities[] = {
#if defined(__x86_64__)
    {"avx512",
     [] {
       return bool(__builtin_cpu_supports("avx512f")) && bool(__builtin_cpu_supports("avx512dq")) &&
              bool(__builtin_cpu_supports("avx512bw")) && bool(__builtin_cpu_supports("avx512vl"));
     },
     avx512::run_functions},
    {"avx2",
     [] {
       return bool(__builtin_cpu_supports("avx2")) && bool(__builtin_cpu_supports("fma")) &&
              has_f16c();
     },
     avx2::run_functions},
#endif
    {"baseline", [] { return true; }, baseline::run_functions},
};

const Capability* find_capability(const std::string& name) {
  for (const Capability& c : kCapabilities) {
    if (name == c.name && c.runs_here()) return &c;
  }
  std::string list;
  for (const std::string& n : available_cpu_capabilities()) list += (list.empty() ? "" : ", ") + n;
  throw std::invalid_argument("paraminit_ext.set_cpu_capability: expected one of " + list +
                              " (those that this CPU runs), got '" + name + "'.");
}

std::atomic<const Capability*>& chosen() {
  static std::atomic<const Capability*> capability = [] {
    if (const char* name = std::getenv("PARAMINIT_CPU_CAPABILITY"); name != nullptr && *name) {
      return find_capability(name);
    }
    return find_capability(available_cpu_capabilities().front());
  }();
  return capability;
}

// Elements that are worth a thread's while: some 10 microseconds of work.
constexpr int64_t kGrain = 32768;
// Units of a dense run. A multiple of every vector block, so that all but the last end on one.
constexpr int64_t kDenseUnit = 4096;
// Units of a scattered run pass through a buffer on the stack.
constexpr int64_t kScatteredUnit = 1024;
// Tiles of a transposed matrix: whole blocks of consecutive indices one way, whole cache lines of
// memory the other.
constexpr int64_t kTileRows = 32;
constexpr int64_t kTileColumns = 128;
// From here on a fill is not going to be read from a cache. Its stores pass by them, which saves
// reading each line before it is overwritten; and where its pages are new, they are asked for by
// the 2 MiB rather than the 4 KiB.
constexpr int64_t kLargeFill = int64_t(8) << 20;
// Shorter runs leave most of a vector unused.
constexpr int64_t kShortRun = 8;

int64_t element_size(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return 4;
    case ElementType::kFloat16:
    case ElementType::kBFloat16:
      return 2;
    default:
      return 8;
  }
}

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
struct Runs {
  const FillRequest& request;
  const Geometry& g;
  decltype(RunFunctions::fill) fill;
  char* data;

  bool dense() const { return g.dense_runs(); }
  int64_t length() const { return std::min(dense() ? kDenseUnit : kScatteredUnit, g.run_length); }
  int64_t parts() const { return (g.run_length + length() - 1) / length(); }
  int64_t units() const { return parts() * g.run_count; }
  int64_t unit_elements() const { return length(); }

  void operator()(int64_t begin, int64_t end) const {
    const int64_t size = element_size(request.type), of_a_run = parts();
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
        fill(request, index, count, data + (offset + position) * size);
      } else {
        alignas(64) char buffer[kScatteredUnit * 8];
        fill(request, index, count, buffer);
        with_bits(size, [&](auto bits) {
          scatter<decltype(bits)>(g, position, count, buffer, data + offset * size);
        });
      }
      begin += together;
    }
  }
};

// The innermost dimension, where indices are consecutive, strides over memory that another one (the
// rows) walks through: in tiles, every cache line is written once and whole.
struct Tiles {
  const FillRequest& request;
  const Geometry& g;
  decltype(RunFunctions::fill) fill;
  char* data;
  int row_dim;

  // The dimension of the rows, or -1 where the geometry does not call for tiles.
  static int find_rows(const Geometry& g) {
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
    const int64_t size = element_size(request.type);
    alignas(64) char buffer[kTileRows * kTileColumns * 8];
    for (int64_t r = 0; r < height; ++r) {
      fill(request, index + static_cast<uint64_t>(r) * g.index_strides[row_dim], width,
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
void finish_streaming_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

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

template <class Work>
void run_on_threads(const Work& work) {
#if defined(__clang__) && defined(_OPENMP)
  // Clang's OpenMP runtime is not the one that torch's wheels bring: it has its own thread count.
  omp_set_num_threads(at::get_num_threads());
#endif
  const int64_t grain = std::max<int64_t>(1, kGrain / work.unit_elements());
  at::parallel_for(0, work.units(), grain, [&](int64_t begin, int64_t end) {
    const DefaultFloatMode mode;
    work(begin, end);
    finish_streaming_stores();
  });
}

}  // namespace

std::vector<std::string> available_cpu_capabilities() {
  std::vector<std::string> names;
  for (const Capability& c : kCapabilities) {
    if (c.runs_here()) names.emplace_back(c.name);
  }
  return names;
}

std::string cpu_capability() { return chosen().load()->name; }

void set_cpu_capability(const std::string& name) { chosen().store(find_capability(name)); }

void fill_cpu(const FillRequest& asked, const Geometry& g, void* data) {
  FillRequest request = asked;
  const int64_t bytes = g.numel() * element_size(request.type);
  if (g.dense_runs() && g.run_count == 1 && bytes >= kLargeFill) {
    request.streaming = true;
    ask_for_huge_pages(data, static_cast<size_t>(bytes));
  }
  // A vector's worth of work for a handful of elements: the scalar lane writes the same bits.
  const auto functions =
      g.run_length < kShortRun ? baseline::run_functions : chosen().load()->run_functions;
  const auto run = functions(request.distribution, request.type).fill;
  const int row_dim = Tiles::find_rows(g);
  if (row_dim >= 0) {
    run_on_threads(Tiles{request, g, run, static_cast<char*>(data), row_dim});
  } else {
    run_on_threads(Runs{request, g, run, static_cast<char*>(data)});
  }
}

void apply_cpu(const FillRequest& request, const uint32_t* words, int64_t groups, void* out) {
  const DefaultFloatMode mode;
  chosen()
      .load()
      ->run_functions(request.distribution, request.type)
      .apply(request, words, groups, out);
}

#if defined(__x86_64__)
DefaultFloatMode::DefaultFloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
DefaultFloatMode::~DefaultFloatMode() {
  // Keep the exception flags that the caller had, not those raised here.
  _mm_setcsr(static_cast<unsigned>(saved_));
}
#elif defined(__aarch64__)
DefaultFloatMode::DefaultFloatMode() {
  asm volatile("mrs %0, fpcr" : "=r"(saved_));
  asm volatile("msr fpcr, %0" : : "r"(uint64_t(0)));
}
DefaultFloatMode::~DefaultFloatMode() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
DefaultFloatMode::DefaultFloatMode() : saved_(0) {}
DefaultFloatMode::~DefaultFloatMode() {}
#endif

}  // namespace paraminit
