// Runs every CPU fill without torch, for sanitizers, valgrind and other processors. Prints a
// checksum of all bytes for each case as "instruction set;case;element type;checksum". With
// --fault, commits a fault that a sanitizer must detect. driver [--threads N] [--isa NAME]
// [--small] [--together] [--fault NAME]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/stream/constants.h"
#include "../../csrc/cpu/capability.h"
#include "../../csrc/cpu/fill.h"
#include "../../csrc/cpu/sparse.h"
#include "../../csrc/cpu/statistics.h"
#include "pool.h"

using namespace paraminit;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// The 64-bit counter wraps in every case with more than a few thousand elements.
constexpr Key kKey{0x1234567890ABCDEFu, ~uint64_t(0) - 999};

struct Type {
  const char* name;
  ElementType type;
};
const Type kTypes[] = {{"fp32", ElementType::kFloat32},
                       {"fp16", ElementType::kFloat16},
                       {"bf16", ElementType::kBFloat16},
                       {"fp64", ElementType::kFloat64}};

struct Case {
  const char* name;
  Plan (*plan)(ElementType);
};
const Case kCases[] = {
    {"uniform", [](ElementType t) { return plan_uniform(t, -0.3, 0.55); }},
    {"uniform_narrow", [](ElementType t) { return plan_uniform(t, 1.0, 1.0078125); }},
    {"uniform_tiny", [](ElementType t) { return plan_uniform(t, 0.0, 1e-42); }},
    {"normal", [](ElementType t) { return plan_normal(t, 0.0, 0.02); }},
    {"trunc_normal", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, -2.0, 2.0); }},
    {"trunc_normal_wide", [](ElementType t) { return plan_trunc_normal(t, 0.1, 1.0, -3.0, 4.0); }},
    {"trunc_normal_far", [](ElementType t) { return plan_trunc_normal(t, 0.0, 0.02, -2.0, 2.0); }},
    // z cannot reach these bounds, but rounded values can: in float16, with a subnormal std, or
    // with a bound so far from the mean that the distance overflows.
    {"trunc_normal_clamped",
     [](ElementType t) {
       if (t == ElementType::kFloat16) return plan_trunc_normal(t, 0.0, 2e4, -1.4e5, 1.4e5);
       if (t == ElementType::kFloat64) {
         return plan_trunc_normal(t, 1e307, 2.1e307, -1.7e308, kInfinity);
       }
       return plan_trunc_normal(t, 0.0, 0.51 * 0x1p-149, -4 * 0x1p-149, 4 * 0x1p-149);
     }},
    {"trunc_normal_above",
     [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, 1.75, kInfinity); }},
    {"trunc_normal_below",
     [](ElementType t) { return plan_trunc_normal(t, 1.0, 0.5, -9.0, -1.0); }},
};

constexpr const Case& kNormal = kCases[3];

// An allocation of exactly `bytes` bytes, aligned to a cache line, so that a sanitizer detects an
// access one byte past the end.
class Memory {
 public:
  explicit Memory(int64_t bytes) : size_(static_cast<size_t>(bytes)) {
    if (posix_memalign(&data_, 64, size_) != 0) std::abort();
    std::memset(data_, 0x5A, size_);
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* at(int64_t byte) { return static_cast<char*>(data_) + byte; }
  // Adds all bytes to an FNV-1a checksum, including bytes that no fill may write.
  void add_to(uint64_t& sum) const {
    for (size_t i = 0; i < size_; ++i) {
      sum = (sum ^ static_cast<unsigned char*>(data_)[i]) * 0x100000001B3u;
    }
  }

 private:
  size_t size_;
  void* data_ = nullptr;
};
constexpr uint64_t kFirstSum = 0xCBF29CE484222325u;

FillRequest request_of(const Case& c, ElementType type) {
  FillRequest request = c.plan(type).request;
  request.keys = make_key_schedule(kKey);
  return request;
}

struct Layout {
  const char* name;
  bool small;  // few enough elements for an emulator
  std::vector<int64_t> sizes, strides, global_sizes, shard_offset;
};
const Layout kLayouts[] = {
    {"dense", true, {5000}, {1}, {5000}, {0}},
    {"threads", false, {150, 1001}, {1001, 1}, {150, 1001}, {0, 0}},
    {"streaming", false, {(9 << 20) / 2 + 77}, {1}, {(9 << 20) / 2 + 77}, {0}},
    {"tiles", true, {67, 130}, {1, 67}, {67, 130}, {0, 0}},
    {"tiles of threads", false, {3, 400, 300}, {120100, 1, 400}, {3, 400, 300}, {0, 0, 0}},
    {"scattered", true, {41, 67}, {201, 3}, {41, 67}, {0, 0}},
    {"short rows", true, {120, 5}, {7, 1}, {120, 5}, {0, 0}},
    {"far shard", true, {3, 9, 70}, {700, 75, 1}, {1 << 20, 1 << 20, 1 << 20}, {7, 1 << 19, 999}},
};

uint64_t run_layout(const Layout& l, const Case& c, ElementType type) {
  int64_t last = 0;
  for (size_t d = 0; d < l.sizes.size(); ++d) last += (l.sizes[d] - 1) * l.strides[d];
  const int64_t size = element_size(type);
  Memory memory((last + 1) * size);
  fill_cpu(request_of(c, type),
           make_geometry(static_cast<int>(l.sizes.size()), l.sizes.data(), l.strides.data(),
                         l.global_sizes.data(), l.shard_offset.data()),
           memory.at(0));
  uint64_t sum = kFirstSum;
  memory.add_to(sum);
  return sum;
}

// Fills every length up to a few vectors, from every position in a group and at several alignments.
uint64_t run_lengths(const Case& c, ElementType type, bool small) {
  const FillRequest request = request_of(c, type);
  const auto fill = fill_kernels(request).fill;
  const int64_t size = element_size(type);
  uint64_t sum = kFirstSum;
  for (int64_t length = 0; length < (small ? 70 : 300); ++length) {
    const int64_t before = length % 5;
    Memory memory((before + length) * size + 1);
    // The extra byte makes an allocation without elements nonempty.
    fill(request, static_cast<uint64_t>(length % 7), length, memory.at(before * size));
    memory.add_to(sum);
  }
  return sum;
}

// Fills with non-temporal stores, which large tensors use, if the alignment permits them.
uint64_t run_streamed(const Case& c, ElementType type) {
  FillRequest request = request_of(c, type);
  request.streaming = true;
  const auto fill = fill_kernels(request).fill;
  uint64_t sum = kFirstSum;
  for (int64_t length = 1; length < 1500; length += 107) {
    const int64_t before = length % 2 * 32;
    Memory memory(before + length * element_size(type));
    fill(request, 0, length, memory.at(before));
    memory.add_to(sum);
  }
  return sum;
}

// Applies each distribution to given words, in numbers of groups with and without a partial vector.
uint64_t run_words(const Case& c, ElementType type) {
  const FillRequest request = request_of(c, type);
  const int64_t group_bytes = (type == ElementType::kFloat64 ? 2 : 4) * element_size(type);
  uint64_t sum = kFirstSum;
  for (int64_t groups = 1; groups < 40; groups += 3) {
    const std::unique_ptr<uint32_t[]> words(new uint32_t[static_cast<size_t>(4 * groups)]);
    for (int64_t i = 0; i < 4 * groups; ++i) {
      words[static_cast<size_t>(i)] = i % 3 == 0 ? 0u : i % 3 == 1 ? ~0u : 0x80000000u >> (i % 32);
    }
    Memory memory(groups * group_bytes);
    apply_cpu(request, words.get(), groups, memory.at(0));
    memory.add_to(sum);
  }
  return sum;
}

struct Matrix {
  int64_t rows, columns;
  Rectangle shard;
  int64_t zeros;
  bool transposed, small;
};
const Matrix kMatrices[] = {
    {20, 300, {0, 0, 20, 300}, 7, false, true},
    {64, 65, {3, 9, 50, 41}, 63, true, true},
    {65, 40, {0, 0, 65, 40}, 1, false, true},
    {5000, 7, {0, 0, 5000, 7}, 500, false, false},
    {900, 1100, {0, 0, 900, 1100}, 90, true, false},
    {3000, 400, {17, 5, 2900, 390}, 2999, false, false},
};

uint64_t run_sparse(const Matrix& m, ElementType type, int parts, double spread) {
  SparseRequest request{};
  request.values = request_of(kNormal, type);
  request.word_keys = make_key_schedule(fold_in(kKey, 1));
  request.parts = parts;
  request.rows = m.rows;
  request.columns = m.columns;
  request.shard = m.shard;
  request.zeros = m.zeros;
  request.spread = spread;
  const int64_t rows = m.shard.rows * parts, columns = m.shard.columns * parts;
  const int64_t by_rows[] = {columns, parts}, by_columns[] = {parts, rows};
  Memory memory(m.shard.rows * columns * element_size(type));
  sparse_cpu(request, m.transposed ? by_columns : by_rows, memory.at(0));
  uint64_t sum = kFirstSum;
  memory.add_to(sum);
  return sum;
}

// Computes the constants for parameters of every magnitude, and a few values with each.
uint64_t run_parameters() {
  const double parameters[] = {0.0,   -0.0,    1.0,  -1.0,  0.02,  1e-8,
                               1e-40, 65504.0, 3e38, -3e38, 1e300, 37.0};
  uint64_t sum = kFirstSum;
  const auto add = [&](const Plan& plan) {
    if (plan.is_constant) return;
    FillRequest request = plan.request;
    request.keys = make_key_schedule(kKey);
    const int64_t count = 19, size = element_size(request.type);
    Memory memory(count * size);
    fill_kernels(request).fill(request, 3, count, memory.at(0));
    memory.add_to(sum);
  };
  for (const Type& t : kTypes) {
    const double max_bound = t.type == ElementType::kFloat64   ? 1e308
                             : t.type == ElementType::kFloat16 ? 65504.0
                                                               : 3.3e38;
    const double range = t.type == ElementType::kFloat64 ? 1e308 : 3.3e38;
    for (const double a : parameters) {
      for (const double b : parameters) {
        if (std::fabs(a) <= max_bound && a <= b && b - a <= max_bound)
          add(plan_uniform(t.type, a, b));
        if (std::fabs(a) > range || !(b >= 0 && b <= range)) continue;
        add(plan_normal(t.type, a, b));
        if (b == 0 || (t.type != ElementType::kFloat64 && b < 1e-45)) continue;
        for (const double alpha : {-kInfinity, -36.9, -9.0, -2.1, -1.0, 0.0, 0.5, 1.6, 36.0}) {
          for (const double width : {1e-3, 0.5, 4.0, 50.0, kInfinity}) {
            const double low = a + alpha * b, high = low + width * b;
            if (alpha + width < -36.9 || !(low <= high) || low > range || high < -range) continue;
            if (alpha == -kInfinity && width != kInfinity) continue;
            add(plan_trunc_normal(t.type, a, b, low, high));
          }
        }
      }
    }
  }
  return sum;
}

// Computes the statistics of a fill, and of a fill with NaN and zeros in it, from the first and
// from the second element on.
uint64_t run_statistics(ElementType type, bool is_complex, int64_t numbers) {
  uint64_t sum = kFirstSum;
  const FillRequest request = request_of(kNormal, type);
  const int64_t size = element_size(type), parts = is_complex ? 2 : 1;
  for (const bool with_special : {false, true}) {
    Memory memory(numbers * size);
    fill_kernels(request).fill(request, 0, numbers, memory.at(0));
    if (with_special) {
      // In each of these types, all bits set is NaN and all bits clear is zero.
      std::memset(memory.at(numbers / 2 * size), 0xFF, static_cast<size_t>(size));
      std::memset(memory.at(numbers / 3 * size), 0, static_cast<size_t>(2 * size));
    }
    for (const int64_t skip : {0, 1}) {
      double fields[kStatistics];
      store(
          statistics_cpu(type, is_complex, memory.at(skip * parts * size), numbers / parts - skip),
          fields);
      Memory bytes(sizeof(fields));
      std::memcpy(bytes.at(0), fields, sizeof(fields));
      bytes.add_to(sum);
    }
  }
  return sum;
}

struct Options {
  std::string isa, fault;
  bool small = false, concurrent = false;
};

void print(const std::string& isa, const std::string& name, const char* type, uint64_t sum) {
  // Branch on the sum, because valgrind reports a branch that depends on an uninitialised byte.
  if (sum == 0) std::puts("a sum of 0");
  std::printf("%s;%s;%s;%016llx\n", isa.c_str(), name.c_str(), type,
              static_cast<unsigned long long>(sum));
}

void run_all(const Options& options) {
  for (const std::string& isa : available_cpu_capabilities()) {
    if (!options.isa.empty() && options.isa != isa) continue;
    set_cpu_capability(isa);
    for (const Type& t : kTypes) {
      for (const Case& c : kCases) {
        print(isa, std::string(c.name) + ", lengths", t.name,
              run_lengths(c, t.type, options.small));
        print(isa, std::string(c.name) + ", streamed", t.name, run_streamed(c, t.type));
        print(isa, std::string(c.name) + ", words", t.name, run_words(c, t.type));
        for (const Layout& l : kLayouts) {
          if (options.small && !l.small) continue;
          // This layout has by far the most elements, so it runs for one case only.
          if (std::strcmp(l.name, "streaming") == 0 && &c != &kNormal) continue;
          print(isa, std::string(c.name) + ", " + l.name, t.name, run_layout(l, c, t.type));
        }
      }
      for (const bool is_complex : {false, true}) {
        for (const int64_t numbers : {66, 20002, 200006}) {
          if (options.small && numbers > 100000) continue;
          print(isa, (is_complex ? "complex statistics " : "statistics ") + std::to_string(numbers),
                t.name, run_statistics(t.type, is_complex, numbers));
        }
      }
      for (const Matrix& m : kMatrices) {
        if (options.small && !m.small) continue;
        for (const int parts : {1, 2}) {
          // A window that misses every threshold, and the default window.
          for (const double spread : {0.0, kWindowSpread}) {
            if (spread == 0.0 && m.rows * m.columns > 40000) continue;  // slow: one word at a time
            print(isa,
                  "sparse " + std::to_string(m.rows) + "x" + std::to_string(m.columns) + " in " +
                      std::to_string(parts) + (spread == 0.0 ? ", searched whole" : ""),
                  t.name, run_sparse(m, t.type, parts, spread));
          }
        }
      }
    }
    print(isa, "parameters", "all", run_parameters());
  }
}

// Runs several fills concurrently, each on its own threads, while the instruction set changes.
void run_concurrently() {
  std::vector<std::thread> fills;
  std::vector<uint64_t> sums(8);
  for (size_t i = 0; i < sums.size(); ++i) {
    fills.emplace_back([&sums, i] {
      const Type& t = kTypes[i % 4];
      sums[i] = run_layout(kLayouts[i % 2 == 0 ? 1 : 4], kCases[i], t.type) ^
                run_sparse(kMatrices[i % 2 == 0 ? 3 : 4], t.type, 1, kWindowSpread);
    });
  }
  for (int i = 0; i < 100; ++i) {
    for (const std::string& isa : available_cpu_capabilities()) set_cpu_capability(isa);
    std::this_thread::yield();
  }
  for (std::thread& fill : fills) fill.join();
  for (size_t i = 0; i < sums.size(); ++i) {
    print("any", "together " + std::to_string(i), kTypes[i % 4].name, sums[i]);
  }
}

// Commits a fault that a sanitizer must detect. Returns 2 if there is no fault with this name,
// otherwise 0.
int commit_fault(const std::string& fault) {
  const FillRequest request = request_of(kNormal, ElementType::kFloat32);
  const auto fill = fill_kernels(request).fill;
  Memory memory(400);
  if (fault == "overrun") {
    fill(request, 0, 101, memory.at(0));  // one element past the end
  } else if (fault == "undefined") {
    volatile int shift = 64;
    std::printf("%llu\n", static_cast<unsigned long long>(uint64_t(1) << shift));
  } else if (fault == "uninitialised") {
    const std::unique_ptr<uint32_t[]> words(new uint32_t[16]);
    apply_cpu(request, words.get(), 4, memory.at(0));
    uint64_t sum = kFirstSum;
    memory.add_to(sum);
    print("any", fault, "fp32", sum);
  } else if (fault == "race") {
    // Two concurrent fills of the same elements.
    std::thread other([&] { fill(request, 0, 100, memory.at(0)); });
    fill(request, 0, 100, memory.at(0));
    other.join();
  } else {
    std::fprintf(stderr, "driver: expected overrun, undefined, uninitialised or race, got '%s'\n",
                 fault.c_str());
    return 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  driver::use_threads();
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--small") {
      options.small = true;
    } else if (option == "--together") {
      options.concurrent = true;
    } else if (option == "--isa" && i + 1 < argc) {
      options.isa = argv[++i];
    } else if (option == "--fault" && i + 1 < argc) {
      options.fault = argv[++i];
    } else if (option == "--threads" && i + 1 < argc) {
      driver::num_threads = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr, "driver: expected an option, got '%s'\n", option.c_str());
      return 2;
    }
  }
  if (!options.fault.empty()) return commit_fault(options.fault);
  options.concurrent ? run_concurrently() : run_all(options);
  return 0;
}
