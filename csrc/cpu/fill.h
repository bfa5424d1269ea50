// A fill on the CPU, and the choice of the instruction set that runs it.
#pragma once

#include <string>
#include <vector>

#include "../geometry.h"
#include "../request.h"

namespace paraminit {

// Names of the instruction sets that this machine runs, best first.
std::vector<std::string> available_cpu_capabilities();
std::string cpu_capability();
// Throws std::invalid_argument, which lists those available.
void set_cpu_capability(const std::string& name);

void fill_cpu(const FillRequest& request, const Geometry& geometry, void* data);

// The distribution of the request applied to given words, four a group: for tests.
void apply_cpu(const FillRequest& request, const uint32_t* words, int64_t groups, void* out);

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
