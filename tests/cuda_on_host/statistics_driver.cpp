// Compares the CUDA kernels for statistics, run on the host, with the CPU's loop. Counts and
// extremes must be equal. Mean and squares may differ by the rounding of sums of doubles in another
// order.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "csrc/cpu/statistics.h"
#include "csrc/cuda/launch.h"
#include "stand_in.h"

bool on_launch(int, const paraminit::cuda::DenseRun*, const void*) { return true; }

namespace paraminit {
namespace {

int64_t compared = 0, differing = 0;

template <class T>
T rounded(double v);
template <>
float rounded(double v) {
  return static_cast<float>(v);
}
template <>
double rounded(double v) {
  return v;
}
template <>
BFloat16 rounded(double v) {
  return {static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(v)) >> 16)};
}
// Rounds towards zero. The result must not be a subnormal half.
template <>
Half rounded(double v) {
  if (v == 0.0) return {0};
  const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(v));
  const uint32_t magnitude = (bits & 0x7FFFFFFFu) - (112u << 23);
  return {static_cast<uint16_t>((bits >> 31 << 15) | magnitude >> 13)};
}

// Returns the CPU's statistics of each unit, merged in order.
Statistics expected(ElementType type, bool is_complex, const char* data, int64_t count) {
  const int64_t size = element_size(type) * (is_complex ? 2 : 1);
  Statistics whole = empty_statistics();
  for (int64_t first = 0; first < count; first += kStatisticsUnit) {
    const int64_t length = std::min(kStatisticsUnit, count - first);
    const auto read = baseline::statistics_function(type, is_complex);
    whole = merged(whole, read(data + first * size, length));
  }
  return whole;
}

bool near(double a, double b, double scale) { return a == b || std::abs(a - b) <= 1e-6 * scale; }

template <class T>
void compare(const char* name, ElementType type, bool is_complex, int64_t count, int64_t skip,
             double mean, int outliers) {
  const int parts = is_complex ? 2 : 1;
  std::mt19937_64 random(static_cast<uint64_t>(count));
  std::normal_distribution<double> normal(mean, 2.0);
  std::vector<T> memory(static_cast<size_t>((count + skip) * parts) + 16);
  T* const aligned =
      reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + 15) / 16 * 16);
  T* const x = aligned + skip * parts;
  for (int64_t i = 0; i < count * parts; ++i) x[i] = rounded<T>(normal(random));
  const double outlier[] = {0.0, -0.0, 1e3, -1e3};
  for (int n = 0; n < outliers; ++n) x[(n * 7919) % (count * parts)] = rounded<T>(outlier[n % 4]);

  const int64_t units = (count + kStatisticsUnit - 1) / kStatisticsUnit;
  std::vector<Statistics> unit_statistics(static_cast<size_t>(units));
  double got[kStatistics], want[kStatistics];
  const bool launched = launch_statistics(type, is_complex, x, count, unit_statistics.data(),
                                          nullptr) == cudaSuccess &&
                        launch_merge(unit_statistics.data(), units, got, nullptr) == cudaSuccess;
  const Statistics cpu = expected(type, is_complex, reinterpret_cast<const char*>(x), count);
  store(cpu, want);
  bool right = launched;
  for (int i : {0, 1, 2, 3, 4, 8, 9}) right = right && got[i] == want[i];
  const double spread = std::sqrt(cpu.squares / static_cast<double>(count));
  right = right && near(got[5], want[5], spread) && near(got[6], want[6], spread) &&
          near(got[7], want[7], cpu.squares);
  compared += count;
  if (right) return;
  ++differing;
  std::printf("%s, %lld elements from %lld on%s\n", name, static_cast<long long>(count),
              static_cast<long long>(skip), is_complex ? ", complex" : "");
  for (int i = 0; i < kStatistics; ++i) std::printf("  %.17g, expected %.17g\n", got[i], want[i]);
}

template <class T>
void compare_all(const char* name, ElementType type) {
  for (const bool is_complex : {false, true}) {
    for (const int64_t count : {1, 2, 255, 256, 4099, 65535, 65536, 65537, 200003}) {
      for (const int64_t skip : {0, 1}) {
        compare<T>(name, type, is_complex, count, skip, 0.0, 0);
        compare<T>(name, type, is_complex, count, skip, 10.0, 9);
      }
    }
  }
}

}  // namespace
}  // namespace paraminit

int main() {
  using namespace paraminit;
  threads_wait = true;
  compare_all<float>("float32", ElementType::kFloat32);
  compare_all<double>("float64", ElementType::kFloat64);
  compare_all<BFloat16>("bfloat16", ElementType::kBFloat16);
  compare_all<Half>("float16", ElementType::kFloat16);
  std::printf("%lld elements compared, %lld cases differ\n", static_cast<long long>(compared),
              static_cast<long long>(differing));
  return differing == 0 ? 0 : 1;
}
