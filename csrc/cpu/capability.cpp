// See capability.h.
#include "capability.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
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
  RunFunctions (*run_functions)(const FillRequest&);
  ColumnFunctions (*column_functions)();
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
     avx512::run_functions, avx512::column_functions},
    {"avx2",
     [] {
       return bool(__builtin_cpu_supports("avx2")) && bool(__builtin_cpu_supports("fma")) &&
              has_f16c();
     },
     avx2::run_functions, avx2::column_functions},
#endif
    {"baseline", [] { return true; }, baseline::run_functions, baseline::column_functions},
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

RunFunctions run_functions(const FillRequest& request) {
  return chosen().load()->run_functions(request);
}

ColumnFunctions column_functions() { return chosen().load()->column_functions(); }

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
