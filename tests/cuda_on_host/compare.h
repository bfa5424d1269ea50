// Shared by the drivers: the distributions, and tensors with guard memory around them. A kernel
// must write the CPU's value to every element and must not write anything else.
#pragma once

#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "csrc/stream/constants.h"
#include "csrc/cpu/kernel_table.h"
#include "csrc/stream/geometry.h"

namespace paraminit {

inline const ElementType kTypes[] = {ElementType::kFloat32, ElementType::kFloat16,
                                     ElementType::kBFloat16, ElementType::kFloat64};
constexpr double kInf = std::numeric_limits<double>::infinity();

struct Case {
  const char* name;
  Plan (*plan)(ElementType);
};
inline const Case kCases[] = {
    {"uniform", [](ElementType t) { return plan_uniform(t, -1.0, 1.5); }},
    {"uniform of few values", [](ElementType t) { return plan_uniform(t, 1.0, 1.0 + 0x1p-6); }},
    {"uniform, tiny", [](ElementType t) { return plan_uniform(t, 0.0, 0x1p-1000); }},
    {"uniform, small", [](ElementType t) { return plan_uniform(t, 0.0, 0x1p-120); }},
    {"normal", [](ElementType t) { return plan_normal(t, 0.0, 0.02); }},
    {"normal of subnormals", [](ElementType t) { return plan_normal(t, 0.0, 0x1p-24); }},
    {"normal of float32's subnormals", [](ElementType t) { return plan_normal(t, 0.0, 0x1p-130); }},
    {"normal, large", [](ElementType t) { return plan_normal(t, 3.0, 0x1p120); }},
    {"bounds far out", [](ElementType t) { return plan_trunc_normal(t, 0.0, 0.02, -2.0, 2.0); }},
    // z cannot reach the bounds, but rounded values can.
    {"clamped after rounding",
     [](ElementType t) {
       if (t == ElementType::kFloat16) return plan_trunc_normal(t, 0.0, 2e4, -1.4e5, 1.4e5);
       if (t == ElementType::kFloat64) return plan_trunc_normal(t, 1e307, 2.1e307, -1.7e308, kInf);
       return plan_trunc_normal(t, 0.0, 0.51 * 0x1p-149, -4 * 0x1p-149, 4 * 0x1p-149);
     }},
    {"2 std", [](ElementType t) { return plan_trunc_normal(t, 0.0, 0.02, -0.04, 0.04); }},
    {"half a std", [](ElementType t) { return plan_trunc_normal(t, 1.0, 2.0, 0.0, 2.0); }},
    {"close together", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, -1e-3, 2e-3); }},
    {"from 0", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, 0.0, 2.0); }},
    {"to 0", [](ElementType t) { return plan_trunc_normal(t, -0.3, 1.0, -2.0, 0.0); }},
    {"3 std", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, -3.0, 3.0); }},
    {"uneven", [](ElementType t) { return plan_trunc_normal(t, 0.1, 1.0, -1.0, 4.0); }},
    {"half a line", [](ElementType t) { return plan_trunc_normal(t, 0.0, 1.0, -1.25, kInf); }},
    {"5 std, at 100", [](ElementType t) { return plan_trunc_normal(t, 100.0, 2.0, 90.0, 110.0); }},
    // Rounding these means to float32 moves them by more than the margin of unclamped_limit.
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

inline const char* name_of(ElementType type) {
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

inline int64_t compared = 0, failed = 0;

struct Memory {
  const char* name;
  std::vector<int64_t> sizes, strides, whole, start;  // `whole` is empty if the tensor is no shard
  int64_t misplaced = 0;                              // offset from an aligned address, in elements
};

struct Tensor {
  Memory memory;
  ElementType type;
  int64_t size;  // bytes per element
  Geometry geometry;
  std::vector<char> got, expected;
  char* data;
};

inline Tensor make_tensor(const Memory& m, ElementType type) {
  Tensor t{m, type, element_size(type), {}, {}, {}, nullptr};
  const int dims = static_cast<int>(m.sizes.size());
  t.geometry = make_geometry(dims, m.sizes.data(), m.strides.data(),
                             m.whole.empty() ? nullptr : m.whole.data(),
                             m.start.empty() ? nullptr : m.start.data());
  int64_t extent = 1;
  for (int d = 0; d < dims; ++d) extent += (m.sizes[d] - 1) * m.strides[d];
  constexpr int64_t kGuard = 64;  // guard elements on either side
  t.got.assign(static_cast<size_t>((extent + 2 * kGuard) * t.size + 16), '\x5A');
  char* aligned = t.got.data() + (16 - reinterpret_cast<uintptr_t>(t.got.data()) % 16) % 16;
  t.data = aligned + (kGuard + m.misplaced) * t.size;
  t.expected = t.got;
  return t;
}

// Writes the expected elements of each run, computed by `values(index, count, to)`.
template <class Values>
void expect(Tensor& t, const Values& values) {
  const Geometry& g = t.geometry;
  char* const reference = t.expected.data() + (t.data - t.got.data());
  std::vector<char> run(static_cast<size_t>(g.run_length * t.size));
  for (int64_t r = 0; r < g.run_count; ++r) {
    int64_t offset;
    uint64_t index;
    locate_run(g, r, offset, index);
    values(index, g.run_length, run.data());
    for (int64_t i = 0; i < g.run_length; ++i) {
      std::memcpy(reference + (offset + locate_in_run(g, i)) * t.size, run.data() + i * t.size,
                  static_cast<size_t>(t.size));
    }
  }
}

inline void expect_fill(Tensor& t, FillRequest request, Key key) {
  request.keys = make_key_schedule(key);
  const auto fill = baseline::fill_kernels(request).fill;
  expect(t, [&](uint64_t index, int64_t count, char* to) { fill(request, index, count, to); });
}

inline void check(const std::string& name, const Tensor& t, const char* note = "") {
  compared += t.geometry.numel();
  if (t.got == t.expected) return;
  ++failed;
  size_t i = 0;
  while (t.got[i] == t.expected[i]) ++i;
  std::printf("%s, %s, %s%s: memory differs first at element %lld\n", name.c_str(), name_of(t.type),
              t.memory.name, note,
              static_cast<long long>((static_cast<int64_t>(i) - (t.data - t.got.data())) / t.size));
}

// Prints the last line of a driver and returns its exit status.
inline int finish() {
  std::printf("%lld elements compared, %lld cases differ\n", static_cast<long long>(compared),
              static_cast<long long>(failed));
  return failed == 0 ? 0 : 1;
}

}  // namespace paraminit
