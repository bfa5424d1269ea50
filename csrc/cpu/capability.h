// The instruction sets that this CPU supports, the selected one, and the floating-point mode of
// fills. Does not depend on torch.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace paraminit {

// Returns the names of the instruction sets that this CPU supports, best first.
std::vector<std::string> available_cpu_capabilities();
std::string cpu_capability();
// Throws std::invalid_argument, which lists the supported names, if `name` is not among them.
void set_cpu_capability(const std::string& name);

// Return the kernels of the currently selected instruction set.
FillKernels fill_kernels(const FillRequest& request);
ColumnKernels column_kernels();

// Sets rounding to nearest without flushing of subnormals, and restores the caller's mode on
// destruction. torch and other libraries can change the mode of a thread, and values must not
// depend on it.
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
