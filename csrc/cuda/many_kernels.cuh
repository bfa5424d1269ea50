// One kernel for many tensors. Each block fills one chunk, a part of a single tensor: it finds the
// tensor by binary search and computes the values as kernels.cuh does. The assignment of chunks to
// blocks never affects values.
#pragma once

#include "kernels.cuh"
#include "many_launch.h"

namespace paraminit::cuda {

static_assert(kManyThreads == kThreads);

// Returns the item of this block's chunk. Sets `chunk` to the index of the chunk within the item.
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

// Computes which elements [low, high) of a chunk of `size` elements are in the run. `first` is the
// chunk's first element, counted from `item.data`.
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

// Fills one chunk of a dense run: first its complete tiles, then the rest packet by packet.
template <class Dist, class T>
__device__ __forceinline__ void fill_dense(const DeviceItem& item, int64_t chunk) {
  using Shape = Tile<Dist, T>;
  constexpr int packet = Shape::kPacket, tile = Shape::kPackets * packet;
  constexpr int tiles = kManyGroups / Shape::kGroupsInFlight;
  // A copy, because the compiler must assume that the stores below may alias `item`.
  const Constants<typename Dist::Real> c = item_constants<Dist>(item);
  const KeySchedule keys = key_schedule(item.key);
  const uint64_t counter =
      keys.offset + item.first_group + static_cast<uint64_t>(chunk) * (tiles * Shape::kGroups);
  int low, high;
  clip(item, chunk * (tiles * tile), tiles * tile, low, high);
  // If the low word of the counter wraps, or the run begins inside the chunk, the whole chunk is
  // written packet by packet.
  const bool wraps =
      static_cast<uint32_t>(counter) > -static_cast<uint32_t>(tiles * Shape::kGroups);
  const int whole = low > 0 || wraps ? 0 : high / tile;

  const uint64_t first_counter = counter + threadIdx.x * Shape::kPacketGroups;
  const uint64_t high_product =
      wide_product(static_cast<uint32_t>(first_counter >> 32) ^ keys.k0[0], kPhiloxM0);
  T* out = static_cast<T*>(item.data) + chunk * (tiles * tile) + threadIdx.x * packet;
  LowProducts<Dist, T> products(static_cast<uint32_t>(first_counter));
#pragma unroll 1
  for (int n = 0; n < whole; ++n) {
    store_packets(c, keys, high_product, products, out);
    products.advance(Shape::kGroups);
    out += tile;
  }
  int first = static_cast<int>(threadIdx.x) * packet + whole * tile;
#pragma unroll 1
  for (; first < high; first += kThreads * packet, out += kThreads * packet) {
    if (first + packet <= low) continue;
    typename Dist::Real v[Shape::kPacketGroups][kGroup<Dist>];
    packet_values<Dist, T>(c, keys, counter + static_cast<uint64_t>(first / kGroup<Dist>), v);
    store_part<Dist>(out, v, low - first, high - first);
  }
}

template <class Dist, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<Dist>)
    many_kernel(const DeviceItem* items, const int64_t* first_chunk, int count) {
  int64_t chunk;
  const DeviceItem& item = find_item(items, first_chunk, count, chunk);
  fill_dense<Dist, T>(item, chunk);
}

// Fills with constants of 2, 4 or 8 bytes, given by their bits.
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

// Launches one block per chunk, which balances the load better than a loop over chunks.
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
