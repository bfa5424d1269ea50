// Runs each fill once in each of two sizes under callgrind, which counts the instructions of each
// call of `measured`. Prints "instruction set, case, element type, elements" for each call, in
// order. Does not depend on torch.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <vector>

#include "../../csrc/stream/constants.h"
#include "../../csrc/cpu/kernel_table.h"

using namespace paraminit;

// callgrind finds this function by its name (--toggle-collect, --dump-after).
extern "C" __attribute__((noinline)) void measured(decltype(FillKernels::fill) fill,
                                                   const FillRequest& request, int64_t count,
                                                   void* out) {
  fill(request, 0, count, out);
}

namespace {

struct InstructionSet {
  const char* name;
  FillKernels (*functions)(const FillRequest&);
};
const InstructionSet kSets[] = {
    {"baseline", baseline::fill_kernels},
#if defined(__x86_64__)
    {"avx2", avx2::fill_kernels},
#endif
};

struct Type {
  const char* name;
  ElementType type;
};
const Type kTypes[] = {{"fp32", ElementType::kFloat32},
                       {"bf16", ElementType::kBFloat16},
                       {"fp64", ElementType::kFloat64}};

struct Case {
  const char* name;
  Plan (*plan)(ElementType);
};
const Case kCases[] = {
    {"uniform", [](ElementType t) { return plan_uniform(t, -1.0, 1.0); }},
    {"uniform_uneven", [](ElementType t) { return plan_uniform(t, -0.3, 0.3); }},
    {"normal", [](ElementType t) { return plan_normal(t, 0.0, 0.02); }},
    {"trunc_normal", [](ElementType t) { return plan_trunc_normal(t, 0.0, 0.02, -0.04, 0.04); }},
    {"trunc_normal_wide", [](ElementType t) { return plan_trunc_normal(t, 0.1, 1.0, -3.0, 4.0); }},
    {"trunc_normal_one_sided",
     [](ElementType t) {
       return plan_trunc_normal(t, 0.0, 1.0, 1.75, std::numeric_limits<double>::infinity());
     }},
};

// Multiples of the block size of every instruction set. The difference between the two counts does
// not contain the fixed cost of a call.
constexpr int64_t kSizes[] = {4096, 20480};

}  // namespace

int main() {
  std::vector<double> out(static_cast<size_t>(kSizes[1]));
  for (const InstructionSet& set : kSets) {
    for (const Case& c : kCases) {
      for (const Type& t : kTypes) {
        Plan plan = c.plan(t.type);
        plan.request.keys = make_key_schedule({1, 0});
        const auto fill = set.functions(plan.request).fill;
        for (const int64_t size : kSizes) {
          measured(fill, plan.request, size, out.data());
          std::printf("%s %s %s %lld\n", set.name, c.name, t.name, static_cast<long long>(size));
        }
      }
    }
  }
  return 0;
}
