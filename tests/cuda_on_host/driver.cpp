// Compares the CUDA fill kernels, run on the host, with the CPU kernels. Prints one line per case
// that differs, and the number of compared elements in the last line.
#include "compare.h"
#include "csrc/cuda/kernels.cuh"

using namespace paraminit;

namespace {

void compare(const std::string& name, FillRequest request, Key key, const Memory& m,
             bool key_on_device) {
  Tensor t = make_tensor(m, request.type);
  expect_fill(t, request, key);
  const uint64_t words[] = {key.seed, key.offset};
  request.keys = key_on_device ? KeySchedule{} : make_key_schedule(key);
  dispatch({request, t.geometry, t.data, key_on_device ? words : nullptr, nullptr, 0, 2});
  check(name, t, key_on_device ? ", key on the device" : "");
}

// A launch that was recorded instead of run.
struct RecordedLaunch {
  int blocks;
  cuda::DenseRun run;
  const char* out;
};
bool recording = false;
std::vector<RecordedLaunch> recorded;

// Checks the launches of a run that is too long to be filled here.
template <class T>
void check_long_run(int64_t count, uint64_t first_index) {
  recording = true;
  recorded.clear();
  Plan plan = plan_uniform(sizeof(T) == 4 ? ElementType::kFloat32 : ElementType::kFloat64, 0, 1);
  plan.request.keys = make_key_schedule({1, 2});
  const int64_t whole[] = {count + static_cast<int64_t>(first_index)};
  const int64_t start[] = {static_cast<int64_t>(first_index)}, stride[] = {1};
  constexpr int packet = cuda::kPacketBytes / sizeof(T), group = sizeof(T) == 4 ? 4 : 2;
  char* const data = reinterpret_cast<char*>(uintptr_t{1} << 40) + first_index % packet * sizeof(T);
  dispatch({plan.request, make_geometry(1, &count, stride, whole, start), data, nullptr, nullptr, 0,
            132});
  recording = false;
  uint64_t next = first_index;
  bool right = !recorded.empty();
  for (const RecordedLaunch& launch : recorded) {
    const uint64_t first = launch.run.first_group * group + static_cast<uint64_t>(launch.run.head);
    constexpr int64_t tile = cuda::kThreads * group * group;
    // The tiles leave less than one tile per round, or fewer tiles than multiprocessors.
    const int64_t left = launch.run.end - launch.run.rounds * tile * launch.blocks;
    const int64_t bytes = static_cast<int64_t>((first - first_index) * sizeof(T));
    right = right && first == next && launch.run.end - launch.run.head <= int64_t{1} << 34 &&
            launch.out + launch.run.head * static_cast<int64_t>(sizeof(T)) == data + bytes &&
            left >= 0 && left < (launch.run.rounds + 133) * tile && launch.blocks <= 2 * 132;
    next += static_cast<uint64_t>(launch.run.end - launch.run.head);
  }
  if (right && next == first_index + static_cast<uint64_t>(count)) return;
  ++failed;
  std::printf("a run of %lld elements from %llu is not launched completely\n",
              static_cast<long long>(count), static_cast<unsigned long long>(first_index));
}

// Checks that each kernel's own occupancy determines its grid, even if a kernel of the same
// function type ran before.
void check_grids() {
  constexpr auto uniform = cuda::dense_kernel<cuda::UniformF<false>, float, false>;
  constexpr auto normal = cuda::dense_kernel<cuda::NormalF<false>, float, false>;
  constexpr auto keyed = cuda::dense_kernel<cuda::NormalF<false>, float, true>;
  static_assert(std::is_same_v<decltype(uniform), decltype(normal)>);
  const auto address = [](auto kernel) { return reinterpret_cast<const void*>(kernel); };
  constexpr int device = 1;  // has no cached occupancy yet
  occupancy = {{address(uniform), 4}, {address(normal), 3}, {address(keyed), 0}};
  bool right = cuda::resident_blocks<uniform>(device, 132) == 4 * 132 &&
               cuda::resident_blocks<normal>(device, 132) == 3 * 132;
  // A failed query does not become an error of the launch, and is repeated.
  right = right && cuda::resident_blocks<keyed>(device, 132) == 132 && last_error == cudaSuccess;
  occupancy[address(keyed)] = 2;
  right = right && cuda::resident_blocks<keyed>(device, 132) == 2 * 132;
  // The result of a query is cached.
  occupancy.clear();
  right = right && cuda::resident_blocks<uniform>(device, 132) == 4 * 132;
  if (right) return;
  ++failed;
  std::puts("grids: a kernel does not use its own number of blocks");
}

// Compares the values of selected words: those around every word at which a bound or branch may
// lie.
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
  FillRequest request = plan.request;
  request.type = ElementType::kFloat32;
  baseline::fill_kernels(request).apply(request, words.data(), static_cast<int64_t>(groups),
                                        expected.data());
  compared += static_cast<int64_t>(groups * 4);
  for (size_t g = 0; g < groups; ++g) {
    uint64_t x[1][4];
    // The high halves are arbitrary, as after Philox.
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

bool on_launch(int blocks, const cuda::DenseRun* run, const void* out) {
  if (recording && run != nullptr)
    recorded.push_back({blocks, *run, static_cast<const char*>(out)});
  return !recording;
}

int main() {
  // A tile has 4096 elements of float32 or 1024 of float64. Four blocks are resident.
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
    // Every length and every offset within a few packets.
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
  check_grids();
  return finish();
}
