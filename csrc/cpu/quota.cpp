// See quota.h. Reads the files of cgroups(7), versions 1 and 2.
#include "quota.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

namespace paraminit {
namespace {

// Returns the quota from the files of one group, in processors, or infinity if it has none.
using GroupQuota = double (*)(const std::string& folder);

constexpr double kNoQuota = std::numeric_limits<double>::infinity();

double ratio(double quota, double period) {
  return quota > 0 && period > 0 ? quota / period : kNoQuota;
}

// Version 2: one file with "200000 100000", or "max 100000" for no quota.
double unified_quota(const std::string& folder) {
  double quota = 0, period = 0;
  std::ifstream file(folder + "/cpu.max");
  return file >> quota >> period ? ratio(quota, period) : kNoQuota;
}

// Version 1: one file for the quota (-1 for none) and one for the period.
double legacy_quota(const std::string& folder) {
  double quota = 0, period = 0;
  std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
  std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  return ratio(quota, period);
}

// Returns the minimum quota of a group and its ancestors. A container may see its own group as the
// root of the hierarchy, although /proc gives another path. Missing folders count as no quota.
double min_quota(const std::string& hierarchy, std::string group, GroupQuota quota_of) {
  double least = quota_of(hierarchy);
  while (group.size() > 1) {
    least = std::min(least, quota_of(hierarchy + group));
    group.resize(group.find_last_of('/'));
  }
  return least;
}

}  // namespace

int64_t read_cpu_quota(const std::string& root) {
  double least = kNoQuota;
  std::ifstream groups(root + "/proc/self/cgroup");
  // One line per hierarchy: "number:controllers:path". Version 2 lists no controllers.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string group = line.substr(second + 1);
    if (group.empty() || group[0] != '/') continue;
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    if (second == first + 1) {
      least = std::min(least, min_quota(root + "/sys/fs/cgroup", group, unified_quota));
    }
    for (std::string name; std::getline(controllers, name, ',');) {
      if (name == "cpu") {
        least = std::min(least, min_quota(root + "/sys/fs/cgroup/cpu", group, legacy_quota));
      }
    }
  }
  return least == kNoQuota ? 0 : std::max<int64_t>(1, static_cast<int64_t>(std::ceil(least)));
}

int64_t cpu_quota() {
  static const int64_t quota = read_cpu_quota("");
  return quota;
}

}  // namespace paraminit
