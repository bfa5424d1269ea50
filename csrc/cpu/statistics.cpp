// See statistics.h.
#include "statistics.h"

#include <string>
#include <vector>

#include "capability.h"
#include "parallel.h"

namespace paraminit {
namespace {

StatisticsFunction statistics_function(ElementType type, bool is_complex) {
#if defined(__x86_64__)
  const std::string name = cpu_capability();
  if (name == "avx512") return avx512::statistics_function(type, is_complex);
  if (name == "avx2") return avx2::statistics_function(type, is_complex);
#endif
  return baseline::statistics_function(type, is_complex);
}

// Computes the statistics of units with read(first, count) and merges them in element order, so
// that the result does not depend on the threads.
template <class Read>
Statistics read_units(int64_t count, const Read& read) {
  const DefaultFloatMode mode;
  const int64_t units = (count + kStatisticsUnit - 1) / kStatisticsUnit;
  std::vector<Statistics> unit_statistics(static_cast<size_t>(units));
  run_on_threads(units, kStatisticsUnit, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit * kStatisticsUnit;
      unit_statistics[static_cast<size_t>(unit)] =
          read(first, std::min(kStatisticsUnit, count - first));
    }
  });
  Statistics whole = empty_statistics();
  for (const Statistics& part : unit_statistics) whole = merged(whole, part);
  return whole;
}

}  // namespace

Statistics statistics_cpu(ElementType type, bool is_complex, const void* data, int64_t count) {
  const StatisticsFunction read = statistics_function(type, is_complex);
  const int64_t size = element_size(type) * (is_complex ? 2 : 1);
  return read_units(count, [&](int64_t first, int64_t length) {
    return read(static_cast<const char*>(data) + first * size, length);
  });
}

Statistics statistics_of_bytes_cpu(const float (&numbers)[256], const void* data, int64_t count) {
  const StatisticsFunction read = statistics_function(ElementType::kFloat32, false);
  return read_units(count, [&](int64_t first, int64_t length) {
    const uint8_t* const bytes = static_cast<const uint8_t*>(data) + first;
    constexpr int64_t kPart = 8192;  // the block size of read()
    float part[kPart];
    Statistics unit = empty_statistics();
    for (int64_t begin = 0; begin < length; begin += kPart) {
      const int64_t size = std::min(kPart, length - begin);
      for (int64_t i = 0; i < size; ++i) part[i] = numbers[bytes[begin + i]];
      unit = merged(unit, read(part, size));
    }
    return unit;
  });
}

}  // namespace paraminit
