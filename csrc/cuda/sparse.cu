// Sparse fills on a CUDA device, in the steps of cpu/sparse.cpp: count and collect, select, write.
// Here, lists and thresholds hold complete (word, row) pairs. Atomics affect only the order within
// a list.
#include "kernels.cuh"

namespace paraminit {
namespace cuda {
namespace {

constexpr int kLanes = 4;  // per thread of the counting kernel, as many as a group has words
constexpr int kSelectThreads = 128;
// Lists up to this length are ranked by comparing all pairs. Longer lists are ranked digit by
// digit, and every digit costs barriers.
constexpr int kPairwise = 1024;
constexpr int kDigits = 256;

__device__ __forceinline__ uint64_t ranked(uint32_t word, uint64_t row) {
  return static_cast<uint64_t>(word) << 32 | row;
}

__device__ __forceinline__ void group_words(const KeySchedule& keys, uint64_t group,
                                            uint32_t (&words)[4]) {
  uint64_t x[1][4];
  x[0][0] = keys.offset + group;
  philox<Lane, 1>(keys, x);
#pragma unroll
  for (int n = 0; n < 4; ++n) words[n] = static_cast<uint32_t>(x[0][n]);
}

// Computes the words of elements index to index + 3, from one or two groups. The number of groups
// is the same for all threads of a row, so the branch does not diverge.
__device__ __forceinline__ void four_words(const KeySchedule& keys, uint64_t index,
                                           uint32_t (&words)[4]) {
  const int skip = static_cast<int>(index % 4);
  uint32_t w[8];
  group_words(keys, index / 4, reinterpret_cast<uint32_t (&)[4]>(w[0]));
  if (skip != 0) group_words(keys, index / 4 + 1, reinterpret_cast<uint32_t (&)[4]>(w[4]));
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    words[n] = skip == 0 ? w[n] : skip == 1 ? w[n + 1] : skip == 2 ? w[n + 2] : w[n + 3];
  }
}

struct CountPlan {
  int64_t rows, columns;  // of the global matrix
  int64_t first, width;   // the panel's columns
  int64_t fold;  // rows processed side by side, if the panel has all columns and they are few
  int64_t chunk_strips;  // strips of `fold` rows per block
  uint32_t low, high;    // the window
  int64_t capacity;
};

__global__ void __launch_bounds__(kThreads)
    count_kernel(const __grid_constant__ KeySchedule by_value, const uint64_t* device_key,
                 const CountPlan plan, uint32_t* up_to, uint32_t* counts, uint64_t* found) {
  const KeySchedule keys = device_key != nullptr ? schedule<true>(by_value, device_key) : by_value;
  const int64_t lane = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kLanes;
  if (lane >= plan.width * plan.fold) return;
  int64_t column[kLanes], folded[kLanes];
  uint32_t passed[kLanes] = {};
#pragma unroll
  for (int n = 0; n < kLanes; ++n) {
    column[n] = (lane + n) % plan.width;
    folded[n] = (lane + n) / plan.width;
  }
  const int64_t first_row = blockIdx.y * plan.chunk_strips * plan.fold;
  const int64_t end_row = min(first_row + plan.chunk_strips * plan.fold, plan.rows);
  for (int64_t row = first_row; row < end_row; row += plan.fold) {
    const int64_t lanes = min(plan.fold, plan.rows - row) * plan.width;
    uint32_t words[kLanes];
    four_words(keys,
               static_cast<uint64_t>(row) * static_cast<uint64_t>(plan.columns) +
                   static_cast<uint64_t>(plan.first + lane),
               words);
#pragma unroll
    for (int n = 0; n < kLanes; ++n) {
      if (lane + n >= lanes || words[n] > plan.high) continue;
      ++passed[n];
      if (words[n] < plan.low) continue;
      const uint32_t at = atomicAdd(&counts[column[n]], 1u);
      // select_kernel detects a list that has overflowed.
      if (at < plan.capacity) {
        found[column[n] * plan.capacity + at] =
            ranked(words[n], static_cast<uint64_t>(row + folded[n]));
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kLanes; ++n) {
    if (passed[n] != 0) atomicAdd(&up_to[column[n]], passed[n]);
  }
}

// Writes the `rank`-th smallest (from 0) of `count` distinct numbers to `answer`. Determines its
// digits one by one, from the highest. All threads of the block must call this function.
template <class At>
__device__ void select_by_digits(const At& at, int64_t count, uint64_t rank, uint64_t* answer) {
  __shared__ unsigned long long histogram[kDigits];
  __shared__ uint64_t prefix, left;
  if (threadIdx.x == 0) {
    prefix = 0;
    left = rank;
  }
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int d = threadIdx.x; d < kDigits; d += kSelectThreads) histogram[d] = 0;
    __syncthreads();
    const uint64_t above = prefix;
    for (int64_t i = threadIdx.x; i < count; i += kSelectThreads) {
      const uint64_t x = at(i);
      // The first test avoids a shift by 64 bits, which is undefined.
      if (shift == 56 || x >> (shift + 8) == above) atomicAdd(&histogram[x >> shift & 255], 1ull);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int d = 0;
      for (; left >= histogram[d]; ++d) left -= histogram[d];
      prefix = prefix << 8 | static_cast<uint64_t>(d);
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) *answer = prefix;
}

// Computes the thresholds of the columns, with one block per column.
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(const __grid_constant__ KeySchedule by_value, const uint64_t* device_key,
                  const CountPlan plan, int64_t zeros, const uint32_t* up_to,
                  const uint32_t* counts, const uint64_t* found, uint64_t* thresholds) {
  const int64_t column = blockIdx.x;
  const int64_t count = counts[column];
  const int64_t rank = zeros - 1 - (static_cast<int64_t>(up_to[column]) - count);
  const uint64_t* const list = found + column * plan.capacity;
  if (count > plan.capacity || rank < 0 || rank >= count) {
    // The threshold is outside the window or the list overflowed: search the whole column.
    const KeySchedule keys =
        device_key != nullptr ? schedule<true>(by_value, device_key) : by_value;
    const auto at = [&](int64_t row) {
      const uint64_t index = static_cast<uint64_t>(row) * static_cast<uint64_t>(plan.columns) +
                             static_cast<uint64_t>(plan.first + column);
      uint32_t w[4];
      group_words(keys, index / 4, w);
      const int n = static_cast<int>(index % 4);
      return ranked(n == 0   ? w[0]
                    : n == 1 ? w[1]
                    : n == 2 ? w[2]
                             : w[3],
                    static_cast<uint64_t>(row));
    };
    select_by_digits(at, plan.rows, static_cast<uint64_t>(zeros - 1), &thresholds[column]);
  } else if (count > kPairwise) {
    const auto at = [&](int64_t i) { return list[i]; };
    select_by_digits(at, count, static_cast<uint64_t>(rank), &thresholds[column]);
  } else {
    for (int64_t i = threadIdx.x; i < count; i += kSelectThreads) {
      const uint64_t mine = list[i];
      int64_t smaller = 0;
      for (int64_t other = 0; other < count; ++other) smaller += list[other] < mine ? 1 : 0;
      if (smaller == rank) thresholds[column] = mine;
    }
  }
}

struct WritePlan {
  uint64_t columns, first;
  int64_t width;
  int parts;
  bool packed;  // a single run that begins with a packet, both in memory and by index
};

// Computes the row and column of an element. 32-bit indices use a 32-bit division, which costs a
// third.
__device__ __forceinline__ void locate_element(uint64_t element, uint64_t columns, uint64_t& row,
                                               uint64_t& column) {
  if ((element | columns) >> 32 == 0) {
    row = static_cast<uint32_t>(element) / static_cast<uint32_t>(columns);
  } else {
    row = element / columns;
  }
  column = element - row * columns;
}

// Writes the values and zeros. A unit is one packet of a run.
template <class Dist, class T>
__global__ void __launch_bounds__(kThreads)
    write_kernel(const __grid_constant__ Constants<typename Dist::Real> c,
                 const __grid_constant__ KeySchedule by_value, const uint64_t* device_key,
                 const __grid_constant__ KeySchedule words_by_value,
                 const uint64_t* device_word_key, const __grid_constant__ Geometry geometry,
                 const WritePlan plan, const uint64_t* thresholds, T* out) {
  constexpr int group = kGroup<Dist>;
  constexpr int packet = kPacketBytes / sizeof(T);
  constexpr int packet_groups = packet / group;
  const KeySchedule keys = device_key != nullptr ? schedule<true>(by_value, device_key) : by_value;
  const KeySchedule word_keys =
      device_word_key != nullptr ? schedule<true>(words_by_value, device_word_key) : words_by_value;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  // A run that begins inside a packet touches one more packet.
  const int64_t run_packets = (geometry.run_length + packet - 1) / packet + (plan.packed ? 0 : 1);
  for (int64_t unit = thread; unit < run_packets * geometry.run_count; unit += threads) {
    int64_t offset = 0, position = unit;
    uint64_t index = geometry.first_index;
    if (geometry.run_count != 1) {  // 64-bit divisions cost a quarter of the kernel
      position = unit % run_packets;
      locate_run(geometry, unit / run_packets, offset, index);
    }
    const uint64_t first_group = (index / packet + static_cast<uint64_t>(position)) * packet_groups;
    typename Dist::Real v[packet_groups][group];
#pragma unroll
    for (int i = 0; i < packet_groups; ++i) {
      const uint64_t g = first_group + static_cast<uint64_t>(i);
      uint64_t x[1][4];
      x[0][0] = keys.offset + g;
      philox<Lane, 1>(keys, x);
      group_values<Dist>(c, x[0], v[i]);
      // A group of values holds 4, 2 or 1 elements, whose words are all in one group of words.
      const uint64_t element = g * group >> (plan.parts == 2 ? 1 : 0);
      uint32_t words[4];
      group_words(word_keys, element / 4, words);
      uint64_t row, column;
      locate_element(element, plan.columns, row, column);
      bool zero = false;
#pragma unroll
      for (int n = 0; n < group; ++n) {
        const bool begins_element = plan.parts == 1 || n % 2 == 0;
        if (begins_element) {
          const int at =
              static_cast<int>((element + static_cast<uint64_t>(plan.parts == 1 ? n : n / 2)) % 4);
          const uint32_t word = at == 0   ? words[0]
                                : at == 1 ? words[1]
                                : at == 2 ? words[2]
                                          : words[3];
          // Elements outside the run, in its first and last packet, may be outside the panel.
          const uint64_t lane = column - plan.first;
          zero = lane < static_cast<uint64_t>(plan.width) && ranked(word, row) <= thresholds[lane];
          if (++column == plan.columns) {
            column = 0;
            ++row;
          }
        }
        if (zero) v[i][n] = 0;
      }
    }
    const int64_t first = static_cast<int64_t>(first_group * group - index);  // index in the run
    if (plan.packed && first + packet <= geometry.run_length) {
      store_packet(out + offset + first, v);
      continue;
    }
#pragma unroll
    for (int n = 0; n < packet; ++n) {
      const int64_t at = first + n;
      if (at >= 0 && at < geometry.run_length) {
        store_one(out + offset + locate_in_run(geometry, at), v[n / group][n % group]);
      }
    }
  }
}

template <class Dist, class T>
cudaError_t launch_write(const SparseLaunch& launch, const Geometry& geometry) {
  constexpr int packet = kPacketBytes / sizeof(T);
  const SparseRequest& r = launch.request;
  T* const out = static_cast<T*>(launch.data);
  const bool packed = geometry.run_count == 1 && geometry.dense_runs() &&
                      geometry.first_index % packet == 0 &&
                      reinterpret_cast<uintptr_t>(out) % kPacketBytes == 0;
  const WritePlan plan{static_cast<uint64_t>(r.columns), static_cast<uint64_t>(launch.first),
                       launch.width, r.parts, packed};
  const int64_t units = ((geometry.run_length + packet - 1) / packet + 1) * geometry.run_count;
  const int grid = grid_size<write_kernel<Dist, T>>(launch.device, launch.multiprocessors, units);
  write_kernel<Dist, T><<<grid, kThreads, 0, launch.stream>>>(
      constants_of<Dist>(r.values), r.values.keys, launch.device_key, r.word_keys,
      launch.device_word_key, geometry, plan, launch.thresholds, out);
  return cudaGetLastError();
}

CountPlan plan_count(const SparseLaunch& launch) {
  const SparseRequest& r = launch.request;
  const Window window = threshold_window(r.rows, r.zeros, r.spread);
  CountPlan plan{r.rows, r.columns,  launch.first, launch.width,   1,
                 1,      window.low, window.high,  launch.capacity};
  constexpr int64_t lanes = int64_t{kLanes} * kThreads;
  if (launch.width == r.columns && launch.width < lanes) {
    plan.fold = (lanes + launch.width - 1) / launch.width;
    if (plan.fold > r.rows) plan.fold = r.rows;
  }
  return plan;
}

}  // namespace
}  // namespace cuda

int64_t sparse_capacity(const SparseRequest& request) {
  return window_capacity(threshold_window(request.rows, request.zeros, request.spread),
                         request.rows);
}

cudaError_t launch_sparse(const SparseLaunch& launch, const Geometry& geometry) {
  const SparseRequest& r = launch.request;
  uint32_t* const up_to = launch.counters;
  uint32_t* const counts = launch.counters + launch.width;
  cudaError_t error = cudaMemsetAsync(
      launch.counters, 0, 2 * static_cast<size_t>(launch.width) * sizeof(uint32_t), launch.stream);
  if (error != cudaSuccess) return error;

  cuda::CountPlan plan = cuda::plan_count(launch);
  constexpr int64_t block_lanes = int64_t{cuda::kLanes} * cuda::kThreads;
  const int64_t blocks = (launch.width * plan.fold + block_lanes - 1) / block_lanes;
  const int64_t strips = (r.rows + plan.fold - 1) / plan.fold;
  // About 16 blocks per multiprocessor, and at least 16 strips per block to amortise its atomics.
  int64_t chunks = (int64_t{16} * launch.multiprocessors + blocks - 1) / blocks;
  const int64_t max_chunks = (strips + 15) / 16 < 65535 ? (strips + 15) / 16 : 65535;
  if (chunks > max_chunks) chunks = max_chunks;
  plan.chunk_strips = (strips + chunks - 1) / chunks;
  chunks = (strips + plan.chunk_strips - 1) / plan.chunk_strips;
  cuda::count_kernel<<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(chunks)),
                       cuda::kThreads, 0, launch.stream>>>(r.word_keys, launch.device_word_key,
                                                           plan, up_to, counts, launch.found);
  if ((error = cudaGetLastError()) != cudaSuccess) return error;
  cuda::select_kernel<<<static_cast<unsigned>(launch.width), cuda::kSelectThreads, 0,
                        launch.stream>>>(r.word_keys, launch.device_word_key, plan, r.zeros, up_to,
                                         counts, launch.found, launch.thresholds);
  if ((error = cudaGetLastError()) != cudaSuccess) return error;
  switch (r.values.type) {
    case ElementType::kFloat64:
      return cuda::launch_write<cuda::NormalD<false>, double>(launch, geometry);
    case ElementType::kFloat16:
      return cuda::launch_write<cuda::NormalF<false>, Half>(launch, geometry);
    case ElementType::kBFloat16:
      return cuda::launch_write<cuda::NormalF<false>, BFloat16>(launch, geometry);
    default:
      return cuda::launch_write<cuda::NormalF<false>, float>(launch, geometry);
  }
}

}  // namespace paraminit
