// How many processors the control groups of this process pay for. Knows no torch.
#pragma once

#include <cstdint>
#include <string>

namespace paraminit {

// The least quota of the process's control group and of those around it, in processors, rounded up;
// 0 where there is none, as on a system without control groups. `root` stands before /proc and
// /sys.
int64_t read_cpu_quota(const std::string& root);

// The same of the system itself, read once.
int64_t cpu_quota();

}  // namespace paraminit
