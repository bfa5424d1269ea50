// One kernel for many tensors: blocks take chunks, find a chunk's tensor by bisection, and fill it
// with the values of kernels.cuh. A chunk is of one tensor; which block takes it decides nothing.
#pragma once

#include "kernels.cuh"
#include "many_launch.h"

namespace paraminit::cuda {

// The item that this block's chunk belongs to, and which of the item's chunks it is.
__device__ __forceinline__ const DeviceItem& find_item(const DeviceItem* items,
                                                       const int64_t* first_chunk, int count,
                                                       int64_t& chunk) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (__ldg(first_chunk + middle) <= blockIdx.x) {
      low = middle;
    } else {
      high = middle;
    }
  }
  chunk = blockIdx.x - __ldg(first_chunk + low);
  return items[low];
}

// Which of a chunk's `size` elements, the first of them element `first` of the run, are in the run.
__device__ __forceinline__ void clip(const DeviceItem& item, int64_t first, int size, int& low,
                                     int& high) {
  const int64_t before = item.head - first, there = item.end - first;
  low = before > 0 ? static_cast<int>(before) : 0;
  high = there < size ? static_cast<int>(there) : size;
}

template <class Dist>
__device__ __forceinline__ const Constants<typename Dist::Real>& item_constants(
    const DeviceItem& item) {
  if constexpr (sizeof(typename Dist::Real) == 4) {
    return item.c32;
  } else {
    return item.c64;
  }
}

// Made anew for each step: its twenty words, kept in registers, would be spilled around the calls
// that a division and a square root of doubles are.
__device__ __forceinline__ KeySchedule fresh_schedule(Key key) {
  asm volatile("" : "+l"(key.seed));
  return key_schedule(key);
}

// `packets` packets of 16 bytes, a packet of each thread apart; `counter` is the first one's.
template <class Dist, class T, int packets>
__device__ __forceinline__ void fill_packets(const Constants<typename Dist::Real>& c, Key key,
                                             uint64_t counter, T* out) {
  constexpr int group = kGroup<Dist>;
  constexpr int packet = kPacketBytes / sizeof(T);
  constexpr int groups = packet / group;
  uint64_t x[packets * groups][4];
#pragma unroll
  for (int n = 0; n < packets; ++n) {
#pragma unroll
    for (int i = 0; i < groups; ++i) {
      x[n * groups + i][0] = counter + static_cast<uint64_t>(n * kManyThreads * groups + i);
    }
  }
  philox<Lane, packets * groups>(fresh_schedule(key), x);
#pragma unroll
  for (int n = 0; n < packets; ++n) {
    typename Dist::Real v[groups][group];
#pragma unroll
    for (int i = 0; i < groups; ++i) group_values<Dist>(c, x[n * groups + i], v[i]);
    store_packet(out + n * kManyThreads * packet, v);
  }
}

// A chunk of a run of packets.
template <class Dist, class T>
__device__ __forceinline__ void fill_dense(const DeviceItem& item, int64_t chunk) {
  constexpr int group = kGroup<Dist>;
  constexpr int packet = kPacketBytes / sizeof(T);
  constexpr int groups = packet / group;
  constexpr int packets = kManyGroups / groups;  // of a thread
  constexpr int in_flight = 2 / groups;
  constexpr int chunk_packets = kManyThreads * packets;
  // By value: what is stored below might otherwise be these.
  const Constants<typename Dist::Real> c = item_constants<Dist>(item);
  const Key key = item.key;
  uint64_t counter = key.offset + item.first_group +
                     static_cast<uint64_t>(chunk * chunk_packets + threadIdx.x) * groups;
  T* out = static_cast<T*>(item.data) + (chunk * chunk_packets + threadIdx.x) * packet;
  int low, high;
  clip(item, chunk * chunk_packets * packet, chunk_packets * packet, low, high);
  if (low == 0 && high == chunk_packets * packet) {
#pragma unroll 1
    for (int n = 0; n < packets; n += in_flight) {
      fill_packets<Dist, T, in_flight>(c, key, counter, out);
      counter += in_flight * kManyThreads * groups;
      out += in_flight * kManyThreads * packet;
    }
    return;
  }
  // At both ends of the run: group by group, and element by element where one is not whole.
#pragma unroll 1
  for (int n = 0; n < packets * groups; ++n) {
    const int place = n / groups * kManyThreads * packet + n % groups * group;
    const int first = static_cast<int>(threadIdx.x) * packet + place;
    if (first + group <= low || first >= high) continue;
    uint64_t x[1][4];
    x[0][0] = counter + static_cast<uint64_t>(n / groups * kManyThreads * groups + n % groups);
    philox<Lane, 1>(fresh_schedule(key), x);
    typename Dist::Real v[group];
    group_values<Dist>(c, x[0], v);
#pragma unroll
    for (int m = 0; m < group; ++m) {
      if (first + m >= low && first + m < high) store_one(out + place + m, v[m]);
    }
  }
}

template <class Dist, class T>
__global__ void __launch_bounds__(kManyThreads)
    many_kernel(const DeviceItem* items, const int64_t* first_chunk, int count) {
  int64_t chunk;
  const DeviceItem& item = find_item(items, first_chunk, count, chunk);
  fill_dense<Dist, T>(item, chunk);
}

// Elements of 2, 4 or 8 bytes, moved by their bits.
template <class Bits>
__global__ void __launch_bounds__(kManyThreads)
    many_constant_kernel(const DeviceItem* items, const int64_t* first_chunk, int count) {
  constexpr int packet = kPacketBytes / sizeof(Bits);
  constexpr int size = kManyThreads * kManyGroups * packet;
  int64_t chunk;
  const DeviceItem& item = find_item(items, first_chunk, count, chunk);
  const Bits value = static_cast<Bits>(item.value[0]);
  Bits* const out = static_cast<Bits*>(item.data);
  if (item.geometry != nullptr) {
    const Geometry& geometry = *item.geometry;
    const int64_t length = geometry.run_length, numel = length * geometry.run_count;
    int64_t e = chunk * size + threadIdx.x;
#pragma unroll 1
    for (; e < (chunk + 1) * size && e < numel; e += kManyThreads) {
      int64_t offset;
      uint64_t index;
      locate_run(geometry, e / length, offset, index);
      out[offset + locate_in_run(geometry, e % length)] = value;
    }
    return;
  }
  uint64_t pair = value;
  for (int bits = 8 * sizeof(Bits); bits < 64; bits *= 2) pair |= pair << bits;
  int low, high;
  clip(item, chunk * size, size, low, high);
#pragma unroll 1
  for (int first = threadIdx.x * packet; first < size; first += kManyThreads * packet) {
    Bits* const at = out + chunk * size + first;
    if (first >= low && first + packet <= high) {
      *reinterpret_cast<ulonglong2*>(at) = make_ulonglong2(pair, pair);
      continue;
    }
#pragma unroll 1
    for (int m = 0; m < packet; ++m) {
      if (first + m >= low && first + m < high) at[m] = value;
    }
  }
}

// A block for each chunk: blocks that come and go are spread better than a loop would be.
template <class Kernel>
cudaError_t launch_chunks(Kernel kernel, const ManyLaunch& launch) {
  if (launch.chunks > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(launch.chunks), kManyThreads, 0, launch.stream>>>(
      launch.items, launch.first_chunk, launch.count);
  return cudaGetLastError();
}

template <class Dist>
cudaError_t launch_many32(const ManyLaunch& launch) {
  switch (launch.type) {
    case ElementType::kFloat32:
      return launch_chunks(many_kernel<Dist, float>, launch);
    case ElementType::kFloat16:
      return launch_chunks(many_kernel<Dist, Half>, launch);
    default:
      return launch_chunks(many_kernel<Dist, BFloat16>, launch);
  }
}

}  // namespace paraminit::cuda
