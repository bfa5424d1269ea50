// Compares the CUDA kernels for fills of many tensors, run on the host, with the CPU kernels.
// Prints one line per tensor that differs, and the number of compared elements in the last line.
#include <deque>
#include <map>

#include "compare.h"
#include "csrc/cuda/kernels.cuh"
#include "csrc/cuda/many_items.h"

using namespace paraminit;

namespace {

struct Entry {
  std::string name;
  const FillRequest* request;  // null: a constant fill
  Key key;
  uint64_t value;
  Tensor tensor;
};

// Returns a type of this size. A constant fill depends only on the size.
ElementType type_of_size(int64_t size) {
  return size == 2   ? ElementType::kBFloat16
         : size == 4 ? ElementType::kFloat32
                     : ElementType::kFloat64;
}

// Compares fills of one kind, which are in one launch.
void compare(std::vector<Entry>& entries) {
  std::vector<DeviceItem> items;
  std::vector<int64_t> first_chunk{0};
  ManyLaunch launch{};
  Kind kind;
  for (Entry& e : entries) {
    Tensor& t = e.tensor;
    if (e.request != nullptr) {
      expect_fill(t, *e.request, e.key);
      launch.distribution = e.request->distribution;
      launch.type = e.request->type;
    } else {
      expect(t, [&](uint64_t, int64_t count, char* to) {
        for (; count > 0; --count, to += t.size) {
          std::memcpy(to, &e.value, static_cast<size_t>(t.size));
        }
      });
    }
    const ManyItem item{e.request,          e.key,      {e.value, 0}, t.size, t.data,
                        t.geometry.numel(), &t.geometry};
    kind = kind_of(item);
    DeviceDescription described = describe(item, t.geometry);
    if (described.scattered) described.item.geometry = &t.geometry;
    items.push_back(described.item);
    first_chunk.push_back(first_chunk.back() + described.chunks);
  }
  launch.items = items.data();
  launch.first_chunk = first_chunk.data();
  launch.count = static_cast<int>(items.size());
  launch.chunks = first_chunk.back();
  dispatch(launch, kind);
  for (const Entry& e : entries) check(e.name, e.tensor);
}

}  // namespace

bool on_launch(int, const cuda::DenseRun*, const void*) { return true; }

int main() {
  // A chunk has two tiles of 4096 elements for float32, or four tiles of 1024 for float64.
  const Memory dense[] = {
      {"a few elements", {3}, {1}, {}, {}},
      {"a tile", {4096}, {1}, {}, {}},
      {"chunks and a rest", {3 * 8192 + 1237}, {1}, {}, {}},
      {"a shard that begins in a packet", {9009}, {1}, {100000}, {1003}, 1003 % 8},
      {"a shard inside a packet", {2}, {1}, {64}, {41}, 41 % 8},
  };
  const Memory strided[] = {
      {"every third element", {9001}, {3}, {}, {}},
      {"rows apart", {37, 401}, {512, 1}, {}, {}},
      {"transposed", {61, 53}, {1, 61}, {}, {}},
      {"columns of a matrix", {300, 61}, {64, 1}, {300, 100}, {0, 7}},
      {"a shard of three dimensions", {5, 7, 11}, {200, 24, 2}, {9, 10, 12}, {2, 3, 1}},
  };
  // The low word of the counter wraps in a tile, between chunks, after the first group, among the
  // last groups of the run, and together with the high word.
  const uint64_t wrapping[] = {0x5FFFFF000u - 777, 0x600000000u - 2048, 0x5FFFFFFFFu,
                               0x600000000u - 6450, 0xFFFFFFFFFFFFF000u};

  std::deque<Plan> plans;
  std::map<Kind, std::vector<Entry>> launches;
  uint64_t seed = 0x0123456789ABCDEFu;
  const auto add = [&](const char* name, const FillRequest& request, uint64_t offset,
                       const Memory& m) {
    const Kind kind{static_cast<int>(request.distribution), static_cast<int64_t>(request.type)};
    launches[kind].push_back(
        {name, &request, {seed += 0x9E3779B97F4A7C15u, offset}, 0, make_tensor(m, request.type)});
  };
  for (const ElementType type : kTypes) {
    for (const Case& c : kCases) {
      plans.push_back(c.plan(type));
      if (plans.back().is_constant) continue;
      for (const Memory& m : dense) add(c.name, plans.back().request, seed >> 8, m);
    }
    plans.push_back(plan_uniform(type, 0.0, 1.0));
    for (const uint64_t offset : wrapping) {
      add("wrapping counter", plans.back().request, offset, dense[2]);
      add("wrapping counter", plans.back().request, offset, dense[3]);
    }
    // Every length and every offset within a few packets.
    for (int64_t first = 0; first < 9; ++first) {
      for (int64_t count = 1; count < 27; ++count) {
        add("short", plans.back().request, 0,
            {"short run", {count}, {1}, {count + first}, {first}, first});
      }
    }
  }
  for (const int64_t size : {2, 4, 8}) {
    const auto constant = [&](const char* name, const Memory& m) {
      launches[{kConstant, size}].push_back(
          {name, nullptr, {}, 0xFEDCBA9876543210u, make_tensor(m, type_of_size(size))});
    };
    for (const Memory& m : dense) constant("constant", m);
    for (const Memory& m : strided) constant("constant", m);
    for (int64_t first = 0; first < 9; ++first) {
      for (int64_t count = 1; count < 27; ++count) {
        constant("short constant", {"short run", {count}, {1}, {}, {}, first});
      }
    }
  }
  for (auto& [kind, entries] : launches) compare(entries);
  return finish();
}
