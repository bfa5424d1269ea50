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
// Clang's __builtin_cpu_supports does not accept "f16c".
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

struct Capability {
  const char* name;
  bool (*is_supported)();
  FillKernels (*fill_kernels)(const FillRequest&);
  ColumnKernels (*column_kernels)();
};

// __builtin_cpu_supports also checks that the operating system saves the wide registers (XGETBV).
// If it does not, the instruction set counts as unsupported.
const Capability kCapabilities[] = {
#if defined(__x86_64__)
    {"avx512",
     [] {
       return bool(__builtin_cpu_supports("avx512f")) && bool(__builtin_cpu_supports("avx512dq")) &&
              bool(__builtin_cpu_supports("avx512bw")) && bool(__builtin_cpu_supports("avx512vl"));
     },
     avx512::fill_kernels, avx512::column_kernels},
    {"avx2",
     [] {
       return bool(__builtin_cpu_supports("avx2")) && bool(__builtin_cpu_supports("fma")) &&
              has_f16c();
     },
     avx2::fill_kernels, avx2::column_kernels},
#endif
    {"baseline", [] { return true; }, baseline::fill_kernels, baseline::column_kernels},
};

// `setting` is the function or the environment variable that gave the name.
const Capability* find_capability(const std::string& setting, const std::string& name) {
  for (const Capability& c : kCapabilities) {
    if (name == c.name && c.is_supported()) return &c;
  }
  std::string list;
  for (const std::string& n : available_cpu_capabilities()) list += (list.empty() ? "" : ", ") + n;
  throw std::invalid_argument(setting + ": expected one of " + list +
                              " (supported by this CPU), got '" + name + "'.");
}

std::atomic<const Capability*>& selected_capability() {
  static std::atomic<const Capability*> capability = [] {
    constexpr const char* variable = "PARAMINIT_CPU_CAPABILITY";
    const char* const name = std::getenv(variable);
    return find_capability(
        variable, name != nullptr && *name != '\0' ? name : available_cpu_capabilities().front());
  }();
  return capability;
}

}  // namespace

std::vector<std::string> available_cpu_capabilities() {
  std::vector<std::string> names;
  for (const Capability& c : kCapabilities) {
    if (c.is_supported()) names.emplace_back(c.name);
  }
  return names;
}

std::string cpu_capability() { return selected_capability().load()->name; }

void set_cpu_capability(const std::string& name) {
  selected_capability().store(find_capability("paraminit_ext.set_cpu_capability", name));
}

FillKernels fill_kernels(const FillRequest& request) {
  return selected_capability().load()->fill_kernels(request);
}

ColumnKernels column_kernels() { return selected_capability().load()->column_kernels(); }

#if defined(__x86_64__)
DefaultFloatMode::DefaultFloatMode() : saved_(_mm_getcsr()) {
  _mm_setcsr(0x1F80);  // all exceptions masked, round to nearest, subnormals are not flushed
}
DefaultFloatMode::~DefaultFloatMode() {
  // Also restores the exception flags of the caller.
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
