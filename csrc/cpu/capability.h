// The instruction sets that this machine runs, the one that fills use, and the state of the
// floating-point unit while they do. Knows no torch.
#pragma once

#include <string>
#include <vector>

#include "run_function.h"

namespace paraminit {

// Names of the instruction sets that this machine runs, best first.
std::vector<std::string> available_cpu_capabilities();
std::string cpu_capability();
// Throws std::invalid_argument, which lists those available.
void set_cpu_capability(const std::string& name);

// Of the instruction set that is chosen now.
RunFunctions run_functions(const FillRequest& request);
ColumnFunctions column_functions();

// Rounding to nearest, no flushing of subnormals, for as long as it lives: torch lets users and
// other libraries change both for the thread, and values may not follow.
class DefaultFloatMode {
 public:
  DefaultFloatMode();
  ~DefaultFloatMode();
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace paraminit
