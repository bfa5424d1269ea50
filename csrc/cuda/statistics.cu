// The statistics of consecutive elements on a GPU. Each block reads one unit, and a single block
// merges the units. The order of the additions depends only on the number of elements and on
// whether their memory is aligned to 16 bytes.
#include "../stream/statistics.h"

#include "launch.h"

namespace paraminit {
namespace {

constexpr int kThreads = 256;

// The sums of one thread, or of its block after the reduction.
struct Part {
  double sums[2], squares;
  double least, greatest;
  int finite, zeros, subnormals, nans, infinities;
};

__device__ __forceinline__ void add(Part& a, const Part& b) {
  a.sums[0] += b.sums[0];
  a.sums[1] += b.sums[1];
  a.squares += b.squares;
  a.least = b.least < a.least ? b.least : a.least;
  a.greatest = b.greatest > a.greatest ? b.greatest : a.greatest;
  a.finite += b.finite;
  a.zeros += b.zeros;
  a.subnormals += b.subnormals;
  a.nans += b.nans;
  a.infinities += b.infinities;
}

template <class T, int parts>
__device__ __forceinline__ void read(const T* element, const double (&k)[2], Part& part) {
  double v[2] = {};
  for (int p = 0; p < parts; ++p) v[p] = number(element[p]);
  const NumberKind kind = kind_of<T>(v);
  part.nans += kind == NumberKind::kNan;
  part.infinities += kind == NumberKind::kInfinite;
  if (kind == NumberKind::kNan || kind == NumberKind::kInfinite) return;
  part.finite += 1;
  part.zeros += kind == NumberKind::kZero;
  part.subnormals += kind == NumberKind::kSubnormal;
  for (int p = 0; p < parts; ++p) {
    const double distance = v[p] - k[p];
    part.sums[p] += distance;
    part.squares += distance * distance;
    part.least = v[p] < part.least ? v[p] : part.least;
    part.greatest = v[p] > part.greatest ? v[p] : part.greatest;
  }
}

// The elements of one load.
template <class T, int parts, int elements>
struct alignas(sizeof(T) * parts * elements) Pack {
  T numbers[parts * elements];
};

// Reads `pack` elements per load: 16 bytes if the memory is aligned, otherwise one element.
template <class T, int parts, int pack>
__global__ void __launch_bounds__(kThreads, 4)
    unit_kernel(const T* data, int64_t count, Statistics* units) {
  __shared__ Part found[kThreads];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kStatisticsUnit;
  const int64_t length = count - first < kStatisticsUnit ? count - first : kStatisticsUnit;
  const T* x = data + first * parts;
  double k[2] = {};
  for (int p = 0; p < parts; ++p) k[p] = number(x[p]);
  // Sums are taken of the distances from `k`, a number near the elements: the first element, or 0
  // if that is not finite.
  if (const NumberKind kind = kind_of<T>(k);
      kind == NumberKind::kNan || kind == NumberKind::kInfinite) {
    k[0] = k[1] = 0.0;
  }
  Part part = {{0.0, 0.0}, 0.0, __builtin_huge_val(), -__builtin_huge_val(), 0, 0, 0, 0, 0};
  int64_t i = static_cast<int64_t>(threadIdx.x) * pack;
  for (; i + pack <= length; i += kThreads * pack) {
    const auto loaded = *reinterpret_cast<const Pack<T, parts, pack>*>(x + i * parts);
    for (int n = 0; n < pack; ++n) read<T, parts>(loaded.numbers + n * parts, k, part);
  }
  for (; i < length; ++i) read<T, parts>(x + i * parts, k, part);

  found[threadIdx.x] = part;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) add(found[threadIdx.x], found[threadIdx.x + half]);
  }
  if (threadIdx.x != 0) return;
  const Part& all = found[0];
  Statistics s = empty_statistics();
  s.finite = all.finite;
  s.zeros = all.zeros;
  s.subnormals = all.subnormals;
  s.nans = all.nans;
  s.infinities = all.infinities;
  s.least = all.least;
  s.greatest = all.greatest;
  if (s.finite > 0) set_moments(s, k, all.sums, all.squares);
  units[blockIdx.x] = s;
}

__global__ void __launch_bounds__(kThreads, 4)
    merge_kernel(const Statistics* units, int64_t count, double* out) {
  __shared__ Statistics found[kThreads];
  const int64_t own = (count + kThreads - 1) / kThreads;
  const int64_t first = threadIdx.x * own;
  Statistics s = empty_statistics();
  for (int64_t i = first; i < first + own && i < count; ++i) s = merged(s, units[i]);
  found[threadIdx.x] = s;
  for (int step = 1; step < kThreads; step *= 2) {
    __syncthreads();
    if (threadIdx.x % (2 * step) == 0) {
      found[threadIdx.x] = merged(found[threadIdx.x], found[threadIdx.x + step]);
    }
  }
  if (threadIdx.x == 0) store(found[0], out);
}

template <class T, int parts>
cudaError_t launch_type(const void* data, int64_t count, Statistics* units, cudaStream_t stream) {
  constexpr int pack = 16 / (sizeof(T) * parts);
  const auto blocks = static_cast<unsigned>((count + kStatisticsUnit - 1) / kStatisticsUnit);
  const T* x = static_cast<const T*>(data);
  if (reinterpret_cast<uintptr_t>(data) % 16 == 0) {
    unit_kernel<T, parts, pack><<<blocks, kThreads, 0, stream>>>(x, count, units);
  } else {
    unit_kernel<T, parts, 1><<<blocks, kThreads, 0, stream>>>(x, count, units);
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_parts(bool is_complex, const void* data, int64_t count, Statistics* units,
                         cudaStream_t stream) {
  return is_complex ? launch_type<T, 2>(data, count, units, stream)
                    : launch_type<T, 1>(data, count, units, stream);
}

}  // namespace

cudaError_t launch_statistics(ElementType type, bool is_complex, const void* data, int64_t count,
                              Statistics* units, cudaStream_t stream) {
  switch (type) {
    case ElementType::kFloat64:
      return launch_parts<double>(is_complex, data, count, units, stream);
    case ElementType::kFloat16:
      return launch_parts<Half>(is_complex, data, count, units, stream);
    case ElementType::kBFloat16:
      return launch_parts<BFloat16>(is_complex, data, count, units, stream);
    default:
      return launch_parts<float>(is_complex, data, count, units, stream);
  }
}

cudaError_t launch_merge(const Statistics* units, int64_t count, double* out, cudaStream_t stream) {
  merge_kernel<<<1, kThreads, 0, stream>>>(units, count, out);
  return cudaGetLastError();
}

}  // namespace paraminit
