// See quota.h. The files are those of cgroups(7), versions 1 and 2.
#include "quota.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

namespace paraminit {
namespace {

// Processors by one group's own files; infinity where it has no quota.
using GroupQuota = double (*)(const std::string& folder);

constexpr double kNone = std::numeric_limits<double>::infinity();

double ratio(double quota, double period) {
  return quota > 0 && period > 0 ? quota / period : kNone;
}

// Version 2: "200000 100000" in one file, or "max 100000".
double unified_quota(const std::string& folder) {
  double quota = 0, period = 0;
  std::ifstream file(folder + "/cpu.max");
  return file >> quota >> period ? ratio(quota, period) : kNone;
}

// Version 1: a file each, and -1 for no quota.
double legacy_quota(const std::string& folder) {
  double quota = 0, period = 0;
  std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
  std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  return ratio(quota, period);
}

// The least of a group and all around it. A container may see its own group as the root of the
// hierarchy, whatever path the process is said to have: the folders that are missing say nothing.
double least_quota(const std::string& hierarchy, std::string group, GroupQuota own) {
  double least = own(hierarchy);
  while (group.size() > 1) {
    least = std::min(least, own(hierarchy + group));
    group.resize(group.find_last_of('/'));
  }
  return least;
}

}  // namespace

int64_t read_cpu_quota(const std::string& root) {
  double least = kNone;
  std::ifstream groups(root + "/proc/self/cgroup");
  // A line a hierarchy: "number:controllers:path"; version 2 names no controllers.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string group = line.substr(second + 1);
    if (group.empty() || group[0] != '/') continue;
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    if (second == first + 1) {
      least = std::min(least, least_quota(root + "/sys/fs/cgroup", group, unified_quota));
    }
    for (std::string name; std::getline(controllers, name, ',');) {
      if (name == "cpu") {
        least = std::min(least, least_quota(root + "/sys/fs/cgroup/cpu", group, legacy_quota));
      }
    }
  }
  return least == kNone ? 0 : std::max<int64_t>(1, static_cast<int64_t>(std::ceil(least)));
}

int64_t cpu_quota() {
  static const int64_t quota = read_cpu_quota("");
  return quota;
}

}  // namespace paraminit
