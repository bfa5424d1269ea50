// One kernel a fill, over groups: dense runs by 16-byte packets, everything else group by group.
// Which thread computes a group, and when, decides nothing about its values.
#pragma once

#include <atomic>

#include "launch.h"

#define PARAMINIT_ISA cuda
#define PARAMINIT_FN static __device__ __forceinline__
#include "lane_cuda.cuh"
#include "../distributions.h"
#include "../philox.h"

namespace paraminit::cuda {

constexpr int kThreads = 256;
constexpr int kPacketBytes = 16;
// Independent groups that a thread of the dense kernel keeps in flight.
constexpr int kGroupsInFlight = 2;

template <class Dist>
constexpr int kGroup = sizeof(typename Dist::Real) == 4 ? 4 : 2;

// Element of a group before it is stored: words are stored as they are.
template <class Dist, class T>
struct ValueOf {
  using type = typename Dist::Real;
};
template <class Dist>
struct ValueOf<Dist, int64_t> {
  using type = uint32_t;
};

template <class Dist, class V>
__device__ __forceinline__ void group_values(const Constants<typename Dist::Real>& c,
                                             const uint64_t (&x)[4], V (&v)[kGroup<Dist>]) {
  if constexpr (kGroup<Dist> == 2) {
    uint64_t even, odd;
    Lane::pair64(x, even, odd);
    Dist::template pair<Lane>(c, even, odd, v[0], v[1]);
  } else {
    uint32_t even[2], odd[2];
    Lane::pairs(x, even, odd);
    Dist::template pair<Lane>(c, even[0], odd[0], v[0], v[1]);
    Dist::template pair<Lane>(c, even[1], odd[1], v[2], v[3]);
  }
}

__device__ __forceinline__ void store_one(float* out, float v) { *out = v; }
__device__ __forceinline__ void store_one(double* out, double v) { *out = v; }
__device__ __forceinline__ void store_one(int64_t* out, uint32_t v) { *out = v; }
__device__ __forceinline__ void store_one(Half* out, float v) {
  out->bits = __half_as_ushort(__float2half_rn(v));
}
__device__ __forceinline__ void store_one(BFloat16* out, float v) {
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

__device__ __forceinline__ uint32_t packed(const Half*, float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t packed(const BFloat16*, float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// A packet: one group of float32 or float64, two of a 16-bit type.
__device__ __forceinline__ void store_packet(float* out, const float (&v)[1][4]) {
  *reinterpret_cast<float4*>(out) = make_float4(v[0][0], v[0][1], v[0][2], v[0][3]);
}
__device__ __forceinline__ void store_packet(double* out, const double (&v)[1][2]) {
  *reinterpret_cast<double2*>(out) = make_double2(v[0][0], v[0][1]);
}
template <class T>
__device__ __forceinline__ void store_packet(T* out, const float (&v)[2][4]) {
  *reinterpret_cast<uint4*>(out) =
      make_uint4(packed(out, v[0][0], v[0][1]), packed(out, v[0][2], v[0][3]),
                 packed(out, v[1][0], v[1][1]), packed(out, v[1][2], v[1][3]));
}

// The schedule by value, in the constant bank, or expanded from a key in memory.
template <bool from_memory>
__device__ __forceinline__ KeySchedule schedule(const KeySchedule& keys,
                                                const uint64_t* device_key) {
  if constexpr (from_memory) {
    return key_schedule({__ldg(device_key), __ldg(device_key + 1)});
  } else {
    return keys;
  }
}

// Elements of the run are numbered from `base`, the first element of the packet that the run begins
// in: the run is [head, end). out points to element 0, which is 16-byte aligned.
struct DenseRun {
  uint64_t first_group;
  int64_t head;
  int64_t end;
};

template <class Dist, class T, bool device_key_given>
__global__ void __launch_bounds__(kThreads)
    dense_kernel(const __grid_constant__ Constants<typename Dist::Real> c,
                 const __grid_constant__ KeySchedule by_value, const uint64_t* device_key,
                 const DenseRun run, T* out) {
  constexpr int group = kGroup<Dist>;
  constexpr int packet = kPacketBytes / sizeof(T);
  constexpr int packet_groups = packet / group;
  constexpr int packets = kGroupsInFlight / packet_groups;
  const KeySchedule keys = schedule<device_key_given>(by_value, device_key);
  const uint64_t first = keys.offset + run.first_group;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t whole_begin = (run.head + packet - 1) / packet, whole_end = run.end / packet;

  int64_t p = whole_begin + thread;
  // Whole packets, several at a time and `threads` apart, so that a warp's stores are contiguous.
  for (; p + (packets - 1) * threads < whole_end; p += packets * threads) {
    uint64_t x[packets * packet_groups][4];
#pragma unroll
    for (int n = 0; n < packets; ++n) {
#pragma unroll
      for (int i = 0; i < packet_groups; ++i) {
        x[n * packet_groups + i][0] =
            first + static_cast<uint64_t>((p + n * threads) * packet_groups + i);
      }
    }
    philox<Lane, packets * packet_groups>(keys, x);
#pragma unroll
    for (int n = 0; n < packets; ++n) {
      typename Dist::Real v[packet_groups][group];
#pragma unroll
      for (int i = 0; i < packet_groups; ++i) {
        group_values<Dist>(c, x[n * packet_groups + i], v[i]);
      }
      store_packet(out + (p + n * threads) * packet, v);
    }
  }
  // What is left of the whole packets: fewer than `packets` a thread. Then the partial packets at
  // both ends, by the last threads, which have the least left to do.
  const int64_t from_end = threads - 1 - thread;
  const bool at_head = from_end == 0 && run.head % packet != 0;
  const bool at_tail = from_end == 1 && run.end % packet != 0 && whole_end >= whole_begin;
  for (int64_t extra = 0; p < whole_end || extra < at_head + at_tail;) {
    int64_t which = p;
    if (p < whole_end) {
      p += threads;
    } else {
      which = at_head && extra == 0 ? run.head / packet : whole_end;
      ++extra;
    }
#pragma unroll 1
    for (int i = 0; i < packet_groups; ++i) {
      uint64_t x[1][4];
      x[0][0] = first + static_cast<uint64_t>(which * packet_groups + i);
      philox<Lane, 1>(keys, x);
      typename Dist::Real v[group];
      group_values<Dist>(c, x[0], v);
      const int64_t e = which * packet + i * group;
#pragma unroll
      for (int n = 0; n < group; ++n) {
        if (e + n >= run.head && e + n < run.end) store_one(out + e + n, v[n]);
      }
    }
  }
}

// Any geometry: a unit is one group of one run.
template <class Dist, class T>
__global__ void __launch_bounds__(kThreads)
    scattered_kernel(const __grid_constant__ Constants<typename Dist::Real> c,
                     const __grid_constant__ KeySchedule by_value, const uint64_t* device_key,
                     const __grid_constant__ Geometry geometry, T* out) {
  constexpr int group = kGroup<Dist>;
  const KeySchedule keys = device_key != nullptr ? schedule<true>(by_value, device_key) : by_value;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  // A run that begins inside a group touches one group more.
  const int64_t run_groups = (geometry.run_length + group - 1) / group + 1;
  for (int64_t unit = thread; unit < run_groups * geometry.run_count; unit += threads) {
    int64_t offset;
    uint64_t index;
    locate_run(geometry, unit / run_groups, offset, index);
    const uint64_t g = index / group + static_cast<uint64_t>(unit % run_groups);
    uint64_t x[1][4];
    x[0][0] = keys.offset + g;
    philox<Lane, 1>(keys, x);
    typename ValueOf<Dist, T>::type v[group];
    group_values<Dist>(c, x[0], v);
#pragma unroll
    for (int n = 0; n < group; ++n) {
      const int64_t position = static_cast<int64_t>(g * group + n - index);
      if (position >= 0 && position < geometry.run_length) {
        store_one(out + offset + locate_in_run(geometry, position), v[n]);
      }
    }
  }
}

// Blocks that fill the device, at most as many as there is work for.
template <class Kernel>
int grid_size(Kernel kernel, int device, int multiprocessors, int64_t units_of_a_thread,
              int64_t units) {
  constexpr int kDevices = 64;
  static std::atomic<int> blocks_of_a_multiprocessor[kDevices];
  int resident = device < kDevices ? blocks_of_a_multiprocessor[device].load() : 0;
  if (resident == 0) {
    if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0) !=
            cudaSuccess ||
        resident == 0) {
      resident = 1;
    }
    if (device < kDevices) blocks_of_a_multiprocessor[device].store(resident);
  }
  const int64_t wanted =
      (units + units_of_a_thread * kThreads - 1) / (units_of_a_thread * kThreads);
  const int64_t most = static_cast<int64_t>(resident) * multiprocessors;
  return static_cast<int>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

template <class Dist>
const Constants<typename Dist::Real>& constants_of(const FillRequest& request) {
  if constexpr (sizeof(typename Dist::Real) == 4) {
    return request.c32;
  } else {
    return request.c64;
  }
}

template <class Dist, class T>
cudaError_t launch_scattered(const Launch& launch) {
  const Geometry& g = launch.geometry;
  const int64_t units = ((g.run_length + kGroup<Dist> - 1) / kGroup<Dist> + 1) * g.run_count;
  const int grid =
      grid_size(scattered_kernel<Dist, T>, launch.device, launch.multiprocessors, 1, units);
  scattered_kernel<Dist, T><<<grid, kThreads, 0, launch.stream>>>(
      constants_of<Dist>(launch.request), launch.request.keys, launch.device_key, g,
      static_cast<T*>(launch.data));
  return cudaGetLastError();
}

template <class Dist, class T>
cudaError_t launch_fill(const Launch& launch) {
  constexpr int packet = kPacketBytes / sizeof(T);
  const Geometry& g = launch.geometry;
  const int64_t head = static_cast<int64_t>(g.first_index % packet);
  T* const out = static_cast<T*>(launch.data) - head;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % kPacketBytes == 0;
  if (g.run_count != 1 || !g.dense_runs() || !aligned) return launch_scattered<Dist, T>(launch);
  const DenseRun run{(g.first_index - static_cast<uint64_t>(head)) / kGroup<Dist>, head,
                     head + g.run_length};
  const int64_t packets = (run.end + packet - 1) / packet;
  constexpr int in_flight = kGroupsInFlight / (packet / kGroup<Dist>);
  const auto kernel =
      launch.device_key != nullptr ? dense_kernel<Dist, T, true> : dense_kernel<Dist, T, false>;
  const int grid = grid_size(dense_kernel<Dist, T, false>, launch.device, launch.multiprocessors,
                             in_flight, packets);
  kernel<<<grid, kThreads, 0, launch.stream>>>(constants_of<Dist>(launch.request),
                                               launch.request.keys, launch.device_key, run, out);
  return cudaGetLastError();
}

// float32 and the 16-bit types.
template <class Dist>
cudaError_t launch_fill32(const Launch& launch) {
  switch (launch.request.type) {
    case ElementType::kFloat32:
      return launch_fill<Dist, float>(launch);
    case ElementType::kFloat16:
      return launch_fill<Dist, Half>(launch);
    default:
      return launch_fill<Dist, BFloat16>(launch);
  }
}

}  // namespace paraminit::cuda
