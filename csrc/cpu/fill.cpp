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
// Where neighbouring runs share cache lines (a transposed matrix), few elements of many runs.
constexpr int64_t kTransposedUnit = 64;
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

// The units of a fill are numbered run by run, or, for a transposed matrix, part by part.
struct Units {
  int64_t length;  // elements of a unit
  int64_t parts;   // units of a run
  bool by_part;
};

Units cut(const Geometry& g) {
  Units units{};
  if (g.dense_runs()) {
    units.length = std::min(kDenseUnit, g.run_length);
  } else {
    units.by_part = g.run_count > 1 && g.run_begin + 1 == g.dims;
    units.length = units.by_part ? kTransposedUnit : kScatteredUnit;
  }
  units.parts = (g.run_length + units.length - 1) / units.length;
  return units;
}

void fill_units(const FillRequest& request, const Geometry& g, const Units& units, int64_t begin,
                int64_t end, decltype(RunFunctions::fill) run, char* data) {
  const int64_t size = element_size(request.type);
  const bool dense = g.dense_runs();
  while (begin < end) {
    const int64_t which = units.by_part ? begin % g.run_count : begin / units.parts;
    const int64_t part = units.by_part ? begin / g.run_count : begin % units.parts;
    // Neighbouring units of a dense run are one call.
    const int64_t together = dense ? std::min(end - begin, units.parts - part) : 1;
    const int64_t position = part * units.length;
    const int64_t count = std::min(together * units.length, g.run_length - position);
    int64_t offset;
    uint64_t index;
    locate_run(g, which, offset, index);
    index += static_cast<uint64_t>(position);
    if (dense) {
      run(request, index, count, data + (offset + position) * size);
    } else {
      alignas(64) char buffer[kScatteredUnit * 8];
      run(request, index, count, buffer);
      char* base = data + offset * size;
      if (size == 4) {
        scatter<uint32_t>(g, position, count, buffer, base);
      } else if (size == 2) {
        scatter<uint16_t>(g, position, count, buffer, base);
      } else {
        scatter<uint64_t>(g, position, count, buffer, base);
      }
    }
    begin += together;
  }
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

void fill_cpu(const FillRequest& request, const Geometry& g, void* data) {
  // A vector's worth of work for a handful of elements: the scalar lane writes the same bits.
  const auto functions =
      g.run_length < kShortRun ? baseline::run_functions : chosen().load()->run_functions;
  const auto run = functions(request.distribution, request.type).fill;
  const Units units = cut(g);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::min(units.length, g.run_length));
#if defined(__clang__) && defined(_OPENMP)
  // Clang's OpenMP runtime is not the one that torch's wheels bring, and has a thread count of its
  // own.
  omp_set_num_threads(at::get_num_threads());
#endif
  at::parallel_for(0, units.parts * g.run_count, grain, [&](int64_t begin, int64_t end) {
    const DefaultFloatMode mode;
    fill_units(request, g, units, begin, end, run, static_cast<char*>(data));
  });
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
