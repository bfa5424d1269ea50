// The CUDA fill kernels, run on the host, against the CPU's: one line a case that differs, and how
// many were compared in the last line.
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "csrc/constants.h"
#include "csrc/cpu/run_function.h"
#include "csrc/cuda/kernels.cuh"

using namespace paraminit;

namespace {

const ElementType kTypes[] = {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16,
                              ElementType::kFloat64};
constexpr double kInf = std::numeric_limits<double>::infinity();

struct Case {
  const char* name;
  Plan (*plan)(ElementType);
};
const Case kCases[] = {
    {"uniform", [](ElementType t) { return plan_uniform(t, -1.0, 1.5); }},
    {"uniform of few values", [](ElementType t) { return plan_uniform(t, 1.0, 1.0 + 0x1p-6); }},
    {"uniform, tiny", [](ElementType t) { return plan_uniform(t, 0.0, 0x1p-1000); }},
    {"uniform, small", [](ElementType t) { return plan_uniform(t, 0.0, 0x1p-120); }},
    {"normal", [](ElementType t) { return plan_normal(t, 0.0, 0.02); }},
    {"normal of subnormals", [](ElementType t) { return plan_normal(t, 0.0, 0x1p-24); }},
    {"normal of float32's subnormals", [](ElementType t) { return plan_normal(t, 0.0, 0x1p-130); }},
    {"normal, large", [](ElementType t) { return plan_normal(t, 3.0, 0x1p120); }},
    {"bounds far out", [](ElementType t) { return plan_trunc_normal(t, 0.0, 0.02, -2.0, 2.0); }},
    {"2 std", [](ElementType t) { return plan_trunc_normal(t, 0.0, 0.02, -0.04, 0.04); }},
    {"half a std", [](ElementType t) { return plan_trunc_normal(t, 1.0, 2.0, 0.0, 2.0); }},
    {"close together", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, -1e-3, 2e-3); }},
    {"from 0", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, 0.0, 2.0); }},
    {"to 0", [](ElementType t) { return plan_trunc_normal(t, -0.3, 1.0, -2.0, 0.0); }},
    {"3 std", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, -3.0, 3.0); }},
    {"uneven", [](ElementType t) { return plan_trunc_normal(t, 0.1, 1.0, -1.0, 4.0); }},
    {"half a line", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, -1.25, kInf); }},
    {"5 std, at 100", [](ElementType t) { return plan_trunc_normal(t, 100.0, 2.0, 90.0, 110.0); }},
    // Their means are rounded by more than what the bounds leave of a deviation.
    {"at 4096",
     [](ElementType t) { return plan_trunc_normal(t, 4096.00023, 1.0, 4095.0, 4098.0); }},
    {"at 2^20",
     [](ElementType t) { return plan_trunc_normal(t, 1048576.06, 1.0, 1048575.0, 1048578.0); }},
    {"subnormal",
     [](ElementType t) {
       return plan_trunc_normal(t, 0.0, 3.5 * 0x1p-149, -7 * 0x1p-149, 7 * 0x1p-149);
     }},
    {"above", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, 1.75, kInf); }},
    {"below", [](ElementType t) { return plan_trunc_normal(t, 0.5, 1.0, -9.0, -4.0); }},
};

const char* name_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return "float32";
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kBFloat16:
      return "bfloat16";
    case ElementType::kFloat64:
      return "float64";
    default:
      return "words";
  }
}

int64_t compared = 0, failed = 0;

struct Memory {
  const char* name;
  std::vector<int64_t> sizes, strides, whole, start;  // whole is empty where the tensor is it
  int64_t misplaced = 0;                              // elements after an aligned address
};

// Every element of the tensor as the CPU's, and nothing else written.
void compare(const std::string& name, FillRequest request, Key key, const Memory& m,
             bool key_on_device) {
  const int64_t size = element_size(request.type);
  const int dims = static_cast<int>(m.sizes.size());
  const Geometry geometry = make_geometry(dims, m.sizes.data(), m.strides.data(),
                                          m.whole.empty() ? nullptr : m.whole.data(),
                                          m.start.empty() ? nullptr : m.start.data());
  int64_t extent = 1;
  for (int d = 0; d < dims; ++d) extent += (m.sizes[d] - 1) * m.strides[d];
  constexpr int64_t kAround = 64;
  std::vector<char> got(static_cast<size_t>((extent + 2 * kAround) * size + 16), '\x5A');
  char* aligned = got.data() + (16 - reinterpret_cast<uintptr_t>(got.data()) % 16) % 16;
  char* data = aligned + (kAround + m.misplaced) * size;
  std::vector<char> expected = got;
  char* reference = expected.data() + (data - got.data());

  request.keys = make_key_schedule(key);
  const auto fill = baseline::run_functions(request.distribution, request.type).fill;
  std::vector<char> run(static_cast<size_t>(geometry.run_length * size));
  for (int64_t r = 0; r < geometry.run_count; ++r) {
    int64_t offset;
    uint64_t index;
    locate_run(geometry, r, offset, index);
    fill(request, index, geometry.run_length, run.data());
    for (int64_t i = 0; i < geometry.run_length; ++i) {
      std::memcpy(reference + (offset + locate_in_run(geometry, i)) * size, run.data() + i * size,
                  static_cast<size_t>(size));
    }
  }

  const uint64_t words[] = {key.seed, key.offset};
  if (key_on_device) request.keys = {};
  dispatch({request, geometry, data, key_on_device ? words : nullptr, nullptr, 0, 2});
  compared += geometry.numel();
  if (got == expected) return;
  ++failed;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;
    std::printf("%s, %s, %s%s: memory differs first at element %lld\n", name.c_str(),
                name_of(request.type), m.name, key_on_device ? ", key on the device" : "",
                static_cast<long long>((static_cast<int64_t>(i) - (data - got.data())) / size));
    return;
  }
}

// Blocks of a launch, set aside instead of run.
struct Seen {
  int blocks;
  cuda::DenseRun run;
  const char* out;
};
bool looking = false;
std::vector<Seen> seen;

// Runs that are too long to be filled here: the launches are looked at instead.
template <class T>
void check_long_run(int64_t count, uint64_t first_index) {
  looking = true;
  seen.clear();
  Plan plan = plan_uniform(sizeof(T) == 4 ? ElementType::kFloat32 : ElementType::kFloat64, 0, 1);
  plan.request.keys = make_key_schedule({1, 2});
  const int64_t whole[] = {count + static_cast<int64_t>(first_index)};
  const int64_t start[] = {static_cast<int64_t>(first_index)}, stride[] = {1};
  constexpr int packet = cuda::kPacketBytes / sizeof(T), group = sizeof(T) == 4 ? 4 : 2;
  char* const data = reinterpret_cast<char*>(uintptr_t{1} << 40) + first_index % packet * sizeof(T);
  dispatch({plan.request, make_geometry(1, &count, stride, whole, start), data, nullptr, nullptr, 0,
            132});
  looking = false;
  uint64_t next = first_index;
  bool right = !seen.empty();
  for (const Seen& one : seen) {
    const uint64_t first = one.run.first_group * group + static_cast<uint64_t>(one.run.head);
    constexpr int64_t tile = cuda::kThreads * group * group;
    // The tiles leave less than a round of single ones, or than what would not go round at all.
    const int64_t left = one.run.end - one.run.rounds * tile * one.blocks;
    const int64_t bytes = static_cast<int64_t>((first - first_index) * sizeof(T));
    right = right && first == next && one.run.end - one.run.head <= int64_t{1} << 34 &&
            one.out + one.run.head * static_cast<int64_t>(sizeof(T)) == data + bytes && left >= 0 &&
            left < (one.run.rounds + 133) * tile && one.blocks <= 2 * 132;
    next += static_cast<uint64_t>(one.run.end - one.run.head);
  }
  if (right && next == first_index + static_cast<uint64_t>(count)) return;
  ++failed;
  std::printf("a run of %lld elements from %llu is not launched as a whole\n",
              static_cast<long long>(count), static_cast<unsigned long long>(first_index));
}

// The values of chosen words: around each word at which some bound or branch lies.
template <class Dist>
void compare_words(const char* name, const Plan& plan) {
  std::vector<uint32_t> words;
  for (uint64_t step = 0; step <= 0x100000000u; step += 0x01000000u / 4) {
    for (int64_t off = -8; off < 8; ++off) words.push_back(static_cast<uint32_t>(step + off));
  }
  for (int64_t near = 0; near < 1 << 16; ++near) {
    for (const uint32_t end : {0u, 0x80000000u}) {
      words.push_back(end + static_cast<uint32_t>(near));
      words.push_back(end - static_cast<uint32_t>(near));
    }
  }
  const size_t groups = words.size() / 4;
  std::vector<float> expected(groups * 4);
  baseline::run_functions(plan.request.distribution, ElementType::kFloat32)
      .apply(plan.request, words.data(), static_cast<int64_t>(groups), expected.data());
  compared += static_cast<int64_t>(groups * 4);
  for (size_t g = 0; g < groups; ++g) {
    uint64_t x[1][4];
    // High halves are garbage, as Philox leaves them.
    for (int n = 0; n < 4; ++n) x[0][n] = words[g * 4 + n] | 0xDEADBEEF00000000u;
    float v[1][4];
    cuda::values<Dist>(plan.request.c32, x, v);
    if (std::memcmp(v[0], &expected[g * 4], sizeof(v[0])) == 0) continue;
    ++failed;
    std::printf("%s: the group of word %08x differs\n", name, words[g * 4]);
    return;
  }
}

void compare_words(const char* name, const Plan& plan) {
  switch (plan.request.distribution) {
    case Distribution::kNormal:
      return compare_words<cuda::NormalF<false>>(name, plan);
    case Distribution::kNormalClamped:
      return compare_words<cuda::NormalF<true>>(name, plan);
    case Distribution::kTruncInterior:
      return compare_words<cuda::TruncInteriorF>(name, plan);
    case Distribution::kTruncTwoSided:
      return compare_words<cuda::TruncTwoSidedF>(name, plan);
    case Distribution::kTruncOneSided:
      return compare_words<cuda::TruncOneSidedF>(name, plan);
    default:
      return;
  }
}

}  // namespace

bool look(int blocks, const cuda::DenseRun* run, const void* out) {
  if (looking && run != nullptr) seen.push_back({blocks, *run, static_cast<const char*>(out)});
  return !looking;
}

int main() {
  // A tile of float32 is 4096 elements, one of float64 1024; four blocks at once.
  const Memory dense[] = {
      {"a few elements", {3}, {1}, {}, {}},
      {"half a tile", {2000}, {1}, {}, {}},
      {"five rounds and a rest", {4 * 5 * 4096 + 1237}, {1}, {}, {}},
      {"a shard that begins in a packet", {40009}, {1}, {100000}, {1003}, 1003 % 8},
      {"a shard inside a packet", {2}, {1}, {64}, {41}, 41 % 8},
  };
  const Memory scattered[] = {
      {"misaligned", {9001}, {1}, {}, {}, 1},
      {"misaligned shard", {9001}, {1}, {20000}, {2}},
      {"every third element", {3001}, {3}, {}, {}},
      {"rows apart", {37, 101}, {128, 1}, {}, {}},
      {"transposed", {61, 53}, {1, 61}, {}, {}},
      {"a shard of three dimensions", {5, 7, 11}, {200, 24, 2}, {9, 10, 12}, {2, 3, 1}},
      {"far into the whole", {5, 1001}, {1001, 1}, {int64_t{1} << 30, 1 << 20}, {(1 << 30) - 7, 9}},
  };
  const Key key{0x0123456789ABCDEFu, 0xFEDCBA9876543210u};
  // The low word of the counter wraps in a tile, between tiles, and in the first packet.
  const uint64_t wrapping[] = {0x5FFFFF000u - 777, 0x5FFFFFFFFu - 2047, 0x5FFFFFFFFu,
                               0xFFFFFFFFFFFFF000u};

  for (const Case& c : kCases) {
    for (const ElementType type : kTypes) {
      const Plan plan = c.plan(type);
      if (plan.is_constant) continue;
      for (const Memory& m : dense) compare(c.name, plan.request, key, m, false);
      for (const Memory& m : scattered) compare(c.name, plan.request, key, m, false);
      compare(c.name, plan.request, key, dense[3], true);
      compare(c.name, plan.request, key, scattered[3], true);
      if (type == ElementType::kFloat32) compare_words(c.name, plan);
    }
  }
  for (const ElementType type : kTypes) {
    const Plan plan = plan_uniform(type, 0.0, 1.0);
    for (const uint64_t offset : wrapping) {
      compare("wrapping counter", plan.request, {key.seed, offset}, dense[2], false);
      compare("wrapping counter", plan.request, {key.seed, offset}, dense[3], true);
    }
    // Every length and both ends of a few packets.
    for (int64_t first = 0; first < 9; ++first) {
      for (int64_t count = 1; count < 27; ++count) {
        compare("short", plan.request, key,
                {"short run", {count}, {1}, {count + first}, {first}, first}, false);
      }
    }
  }
  FillRequest words = plan_words().request;
  words.type = ElementType::kWord;
  compare("words", words, key, {"rows apart", {37, 101}, {128, 1}, {}, {}}, false);

  for (const int64_t count : {int64_t{1} << 20, (int64_t{1} << 33) + 5, (int64_t{3} << 34) - 1}) {
    for (const uint64_t first : {uint64_t{0}, uint64_t{4096}, (uint64_t{1} << 35) + 3}) {
      check_long_run<float>(count, first);
      check_long_run<double>(count, first);
    }
  }
  std::printf("%lld elements compared, %lld cases differ\n", static_cast<long long>(compared),
              static_cast<long long>(failed));
  return failed == 0 ? 0 : 1;
}
