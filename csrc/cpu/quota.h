// The CPU quota of this process's control groups. Does not depend on torch.
#pragma once

#include <cstdint>
#include <string>

namespace paraminit {

// Returns the minimum quota of the process's control group and its ancestors, in processors,
// rounded up. Returns 0 if there is no quota or the system has no control groups. `root` is
// prepended to /proc and /sys.
int64_t read_cpu_quota(const std::string& root);

// Returns read_cpu_quota(""), which is read once per process.
int64_t cpu_quota();

}  // namespace paraminit
