// One kernel per fill. Dense runs are written in 16-byte packets, all other geometries group by
// group. The assignment of groups to threads never affects values.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "launch.h"

#define PARAMINIT_ISA cuda
#define PARAMINIT_FN static __device__ __forceinline__
#include "lane_cuda.cuh"
#include "../stream/distributions.h"
#include "../stream/philox.h"

namespace paraminit::cuda {

constexpr int kThreads = 256;
constexpr int kPacketBytes = 16;

template <class Dist>
constexpr int kGroup = sizeof(typename Dist::Real) == 4 ? 4 : 2;

// The type of an element before it is stored. Raw words are stored as they are.
template <class Dist, class T>
struct ValueOf {
  using type = typename Dist::Real;
};
template <class Dist>
struct ValueOf<Dist, int64_t> {
  using type = uint32_t;
};

// Returns the greatest of the floats, or 0 if all are negative.
template <int count>
__device__ __forceinline__ float greatest(const float (&r)[count]) {
  int most = 0;
#pragma unroll
  for (int n = 0; n < count; n += 2) {
    most = __vimax3_s32(most, __float_as_int(r[n]), __float_as_int(r[n + 1]));
  }
  return __int_as_float(most);
}

// Distributions with a second step that few words need. A warp skips the step if none of its
// threads needs it. For TruncInteriorF, the step is a clamp that almost no word needs, so one test
// covers all groups of a thread. For TruncTwoSidedF, the step also computes the tail, so each group
// is tested separately.
template <class Dist>
constexpr bool kFinalValueAll = std::is_same_v<Dist, TruncInteriorF>;
template <class Dist>
constexpr bool kFinalValueSome = std::is_same_v<Dist, TruncTwoSidedF>;

template <class Dist, int groups>
__device__ __forceinline__ void two_step_values(const Constants<float>& c, const uint64_t (*x)[4],
                                                float (*v)[4]) {
  uint32_t w[4 * groups];
  float r[4 * groups];
#pragma unroll
  for (int n = 0; n < 4 * groups; ++n) {
    w[n] = static_cast<uint32_t>(x[n / 4][n % 4]);
    v[n / 4][n % 4] = Dist::template unclamped_value<Lane>(c, w[n], r[n]);
  }
  if (greatest(r) <= c.unclamped_limit) return;
#pragma unroll
  for (int n = 0; n < 4 * groups; ++n) {
    if (kFinalValueAll<Dist> || r[n] > c.unclamped_limit) {
      v[n / 4][n % 4] = Dist::template final_value<Lane>(c, w[n], r[n], v[n / 4][n % 4]);
    }
  }
}

template <class Dist, class V>
__device__ __forceinline__ void group_values(const Constants<typename Dist::Real>& c,
                                             const uint64_t (&x)[4], V (&v)[kGroup<Dist>]) {
  if constexpr (kFinalValueAll<Dist> || kFinalValueSome<Dist>) {
    two_step_values<Dist, 1>(c, &x, &v);
  } else if constexpr (kGroup<Dist> == 2) {
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

// Computes the values of groups from their words.
template <class Dist, int groups, class V>
__device__ __forceinline__ void values(const Constants<typename Dist::Real>& c,
                                       const uint64_t (&x)[groups][4],
                                       V (&v)[groups][kGroup<Dist>]) {
  if constexpr (kFinalValueAll<Dist>) {
    two_step_values<Dist, groups>(c, x, v);
  } else {
#pragma unroll
    for (int n = 0; n < groups; ++n) group_values<Dist>(c, x[n], v[n]);
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

// Store one packet: one group of float32 or float64, or two groups of a 16-bit type.
__device__ __forceinline__ void store_packet(float* out, const float (*v)[4]) {
  *reinterpret_cast<float4*>(out) = make_float4(v[0][0], v[0][1], v[0][2], v[0][3]);
}
__device__ __forceinline__ void store_packet(double* out, const double (*v)[2]) {
  *reinterpret_cast<double2*>(out) = make_double2(v[0][0], v[0][1]);
}
template <class T>
__device__ __forceinline__ void store_packet(T* out, const float (*v)[4]) {
  *reinterpret_cast<uint4*>(out) =
      make_uint4(packed(out, v[0][0], v[0][1]), packed(out, v[0][2], v[0][3]),
                 packed(out, v[1][0], v[1][1]), packed(out, v[1][2], v[1][3]));
}

// Returns the key schedule: the kernel argument (in the constant bank), or one expanded from a key
// in device memory.
template <bool from_memory>
__device__ __forceinline__ KeySchedule schedule(const KeySchedule& keys,
                                                const uint64_t* device_key) {
  if constexpr (from_memory) {
    return key_schedule({__ldg(device_key), __ldg(device_key + 1)});
  } else {
    return keys;
  }
}

// The minimum number of resident blocks per multiprocessor, which limits the registers per thread.
template <class Dist>
constexpr int kBlocks = sizeof(typename Dist::Real) == 4 ? 3 : 1;

// A tile is the memory that a block writes in one round of the dense kernel. Each thread writes
// `kPacketsInFlight` packets, kThreads packets apart, so that the stores of a warp are contiguous.
template <class Dist, class T>
struct Tile {
  static constexpr int kPacket = kPacketBytes / sizeof(T);
  static constexpr int kPacketGroups = kPacket / kGroup<Dist>;
  // Independent groups that a thread keeps in flight.
  static constexpr int kGroupsInFlight = sizeof(typename Dist::Real) == 4 ? 4 : 2;
  static constexpr int kPacketsInFlight = kGroupsInFlight / kPacketGroups;
  static constexpr int kPackets = kPacketsInFlight * kThreads;
  static constexpr int kGroups = kPackets * kPacketGroups;
};

// Computes the values of one packet. `counter` is the counter of its first group.
template <class Dist, class T>
__device__ __forceinline__ void packet_values(
    const Constants<typename Dist::Real>& c, const KeySchedule& keys, uint64_t counter,
    typename Dist::Real (&v)[Tile<Dist, T>::kPacketGroups][kGroup<Dist>]) {
  constexpr int groups = Tile<Dist, T>::kPacketGroups;
  uint64_t x[groups][4];
#pragma unroll
  for (int n = 0; n < groups; ++n) x[n][0] = counter + n;
  philox<Lane, groups>(keys, x);
  values<Dist>(c, x, v);
}

// Stores elements [begin, end) of a packet, one by one if the packet is not complete.
template <class Dist, class T>
__device__ __forceinline__ void store_part(
    T* out, const typename Dist::Real (&v)[Tile<Dist, T>::kPacketGroups][kGroup<Dist>],
    int64_t begin, int64_t end) {
  constexpr int packet = Tile<Dist, T>::kPacket;
  if (begin <= 0 && end >= packet) {
    store_packet(out, v);
    return;
  }
#pragma unroll
  for (int n = 0; n < packet; ++n) {
    if (n >= begin && n < end) store_one(out + n, v[n / kGroup<Dist>][n % kGroup<Dist>]);
  }
}

// The first product of Philox, the low word of the counter times kPhiloxM0, for each group that a
// thread has in flight. `low` is the low word of the first group, and must not wrap before the last
// one. From tile to tile, each product grows by step * kPhiloxM0, which takes one multiply-add.
// Counters would need an addition and then a multiplication.
template <class Dist, class T>
struct LowProducts {
  using Shape = Tile<Dist, T>;
  uint64_t product[Shape::kGroupsInFlight];

  __device__ __forceinline__ explicit LowProducts(uint32_t low) {
    constexpr int packet_groups = Shape::kPacketGroups;
#pragma unroll
    for (int n = 0; n < Shape::kGroupsInFlight; ++n) {
      const uint32_t ahead = n / packet_groups * (kThreads * packet_groups) + n % packet_groups;
      product[n] = wide_product(low + ahead, kPhiloxM0);
    }
  }
  __device__ __forceinline__ void advance(uint32_t step) {
#pragma unroll
    for (int n = 0; n < Shape::kGroupsInFlight; ++n) product[n] += uint64_t{step} * kPhiloxM0;
  }
};

// Computes and stores a thread's packets of one tile. `high` is the first Philox product of the
// high counter word, which all these packets share.
template <class Dist, class T>
__device__ __forceinline__ void store_packets(const Constants<typename Dist::Real>& c,
                                              const KeySchedule& keys, uint64_t high,
                                              const LowProducts<Dist, T>& low, T* out) {
  using Shape = Tile<Dist, T>;
  constexpr int groups = Shape::kGroupsInFlight, packet_groups = Shape::kPacketGroups;
  uint64_t x[groups][4];
#pragma unroll
  for (int n = 0; n < groups; ++n) first_rounds<Lane>(keys, low.product[n], high, x[n]);
  later_rounds<Lane, groups>(keys, x);
  typename Dist::Real v[groups][kGroup<Dist>];
  values<Dist>(c, x, v);
#pragma unroll
  for (int n = 0; n < Shape::kPacketsInFlight; ++n) {
    store_packet(out + n * kThreads * Shape::kPacket, v + n * packet_groups);
  }
}

// A run of consecutive elements [head, end) with less than 2^32 groups. Elements are counted from
// the beginning of the packet in which the run begins. `first_group` is the first group there.
struct DenseRun {
  uint64_t first_group;
  int64_t head;
  int64_t end;
  uint32_t rounds;  // tiles per block; the rest of the run is written packet by packet
};

// `out` is the address of element 0, even if that is before the run. It is aligned to a packet.
template <class Dist, class T, bool device_key_given>
__global__ void __launch_bounds__(kThreads, kBlocks<Dist>)
    dense_kernel(const __grid_constant__ Constants<typename Dist::Real> c,
                 const __grid_constant__ KeySchedule by_value, const uint64_t* device_key,
                 const __grid_constant__ DenseRun run, T* out) {
  using Shape = Tile<Dist, T>;
  constexpr int packet = Shape::kPacket;
  const KeySchedule keys = schedule<device_key_given>(by_value, device_key);
  const uint64_t counter = keys.offset + run.first_group;  // of packet 0
  const int64_t whole_begin = run.head == 0 ? 0 : 1;       // in packets
  const uint64_t tiles = static_cast<uint64_t>(run.rounds) * gridDim.x;
  // The low word of the counter wraps at most once. The tile in which it wraps is skipped here and
  // written after the loop. The first pass of the outer loop does the rounds before that tile, the
  // second pass those after it, so that a thread's high word is constant within a pass.
  const uint64_t tile_counter = counter + static_cast<uint64_t>(whole_begin) * Shape::kPacketGroups;
  const uint64_t wrap_tile =
      ((uint64_t{1} << 32) - static_cast<uint32_t>(tile_counter)) / Shape::kGroups;
  const bool wraps = wrap_tile < tiles;

  uint32_t round = 0, stop = run.rounds;
  if (wraps) {
    const uint32_t tile = static_cast<uint32_t>(wrap_tile);
    stop = tile > blockIdx.x ? (tile - blockIdx.x - 1) / gridDim.x + 1 : 0;
  }
  const uint32_t step = gridDim.x * Shape::kGroups;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * Shape::kPackets * packet;
  for (;;) {
    const uint64_t tile = blockIdx.x + static_cast<uint64_t>(round) * gridDim.x;
    const uint64_t first_counter =
        tile_counter + tile * Shape::kGroups + threadIdx.x * Shape::kPacketGroups;
    const uint64_t high =
        opaque(wide_product(static_cast<uint32_t>(first_counter >> 32) ^ keys.k0[0], kPhiloxM0));
    const uint32_t low = static_cast<uint32_t>(first_counter);
    const uint32_t end = low + (stop - round) * step;
    const uint32_t end_product = end * kPhiloxM0;  // unique to `end`, as kPhiloxM0 is odd
    LowProducts<Dist, T> products(low);
    T* to =
        out + (whole_begin + static_cast<int64_t>(tile * Shape::kPackets + threadIdx.x)) * packet;
    if (low != end) {
#pragma unroll 1
      for (;;) {
        store_packets(c, keys, high, products, to);
        products.advance(step);
        if (static_cast<uint32_t>(products.product[0]) == end_product) break;
        to += stride;  // after the break: ptxas would otherwise hoist it and copy the old value
      }
    }
    if (stop == run.rounds) break;
    round = stop + (blockIdx.x + static_cast<uint64_t>(stop) * gridDim.x == wrap_tile);
    stop = run.rounds;
  }

  // The partial packet at the head, then the packets after the tiles, then the skipped tile.
  const int64_t tiles_end = whole_begin + static_cast<int64_t>(tiles * Shape::kPackets);
  const int64_t outside = (run.end + packet - 1) / packet - (tiles_end - whole_begin);
  const int64_t rest = outside + (wraps ? Shape::kPackets : 0);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < rest;
       n += threads) {
    int64_t index = n;
    if (n >= outside) {
      index += whole_begin + static_cast<int64_t>(wrap_tile) * Shape::kPackets - outside;
    } else if (n >= whole_begin) {
      index += tiles_end - whole_begin;
    }
    typename Dist::Real v[Shape::kPacketGroups][kGroup<Dist>];
    packet_values<Dist, T>(c, keys, counter + static_cast<uint64_t>(index) * Shape::kPacketGroups,
                           v);
    store_part<Dist>(out + index * packet, v, run.head - index * packet, run.end - index * packet);
  }
}

// Handles any geometry. A unit is one group of one run.
template <class Dist, class T>
__global__ void __launch_bounds__(kThreads)
    scattered_kernel(const __grid_constant__ Constants<typename Dist::Real> c,
                     const __grid_constant__ KeySchedule by_value, const uint64_t* device_key,
                     const __grid_constant__ Geometry geometry, T* out) {
  constexpr int group = kGroup<Dist>;
  const KeySchedule keys = device_key != nullptr ? schedule<true>(by_value, device_key) : by_value;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  // A run that begins inside a group touches one more group.
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

// Returns the number of blocks of the kernel that the device holds at once. The kernel is a
// template argument so that each kernel has its own cache: kernels of the same function type differ
// in their registers.
template <auto kernel>
int64_t resident_blocks(int device, int multiprocessors) {
  constexpr int kDevices = 64;
  static std::atomic<int> blocks_of_a_multiprocessor[kDevices];
  int resident = device < kDevices ? blocks_of_a_multiprocessor[device].load() : 0;
  if (resident == 0) {
    const cudaError_t error =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0);
    if (error != cudaSuccess || resident == 0) {
      cudaGetLastError();  // or the check after the launch would report this error
      return multiprocessors;
    }
    if (device < kDevices) blocks_of_a_multiprocessor[device].store(resident);
  }
  return static_cast<int64_t>(resident) * multiprocessors;
}

// Returns the grid size for `units` units: no more threads than units, and no more blocks than the
// device holds at once.
template <auto kernel>
int grid_size(int device, int multiprocessors, int64_t units) {
  const int64_t wanted = (units + kThreads - 1) / kThreads;
  return static_cast<int>(
      std::max<int64_t>(1, std::min(wanted, resident_blocks<kernel>(device, multiprocessors))));
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
      grid_size<scattered_kernel<Dist, T>>(launch.device, launch.multiprocessors, units);
  scattered_kernel<Dist, T><<<grid, kThreads, 0, launch.stream>>>(
      constants_of<Dist>(launch.request), launch.request.keys, launch.device_key, g,
      static_cast<T*>(launch.data));
  return cudaGetLastError();
}

// Returns the number of rounds and blocks for the tiles. Every block has the same number of tiles,
// and at most `resident` blocks are launched, so that no block waits for another. If there are
// fewer tiles than multiprocessors, there are no rounds, because packet by packet is faster.
struct Rounds {
  uint32_t rounds;
  int64_t blocks;
};
inline Rounds divide(int64_t tiles, int64_t resident, int multiprocessors) {
  if (tiles < multiprocessors) return {0, 0};
  const int64_t rounds = (tiles + resident - 1) / resident;
  return {static_cast<uint32_t>(rounds), tiles / rounds};
}

template <class Dist, class T>
cudaError_t launch_fill(const Launch& launch) {
  using Shape = Tile<Dist, T>;
  constexpr int packet = Shape::kPacket;
  // The elements per launch are limited, so that the low word of the counter wraps at most once.
  constexpr int64_t kMost = (int64_t{1} << 31) * kGroup<Dist>;
  const Geometry& g = launch.geometry;
  int64_t head = static_cast<int64_t>(g.first_index % packet);
  T* out = static_cast<T*>(launch.data) - head;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % kPacketBytes == 0;
  if (g.run_count != 1 || !g.dense_runs() || !aligned) return launch_scattered<Dist, T>(launch);

  const bool by_value = launch.device_key == nullptr;
  const auto kernel = by_value ? dense_kernel<Dist, T, false> : dense_kernel<Dist, T, true>;
  const auto resident_of = by_value ? resident_blocks<dense_kernel<Dist, T, false>>
                                    : resident_blocks<dense_kernel<Dist, T, true>>;
  const int64_t resident = resident_of(launch.device, launch.multiprocessors);
  uint64_t first_group = (g.first_index - static_cast<uint64_t>(head)) / kGroup<Dist>;
  for (int64_t left = head + g.run_length; left > 0; left -= kMost) {
    const int64_t end = std::min(left, kMost);
    const int64_t whole = end / packet - (head == 0 ? 0 : 1);
    const Rounds tiled = divide(whole / Shape::kPackets, resident, launch.multiprocessors);
    const DenseRun run{first_group, head, end, tiled.rounds};
    const int64_t blocks =
        tiled.rounds > 0 ? tiled.blocks
                         : std::min(resident, (end + packet * kThreads - 1) / (packet * kThreads));
    kernel<<<static_cast<int>(blocks), kThreads, 0, launch.stream>>>(
        constants_of<Dist>(launch.request), launch.request.keys, launch.device_key, run, out);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    first_group += kMost / kGroup<Dist>;
    out += kMost;
    head = 0;
  }
  return cudaSuccess;
}

// Launches a fill of float32 or a 16-bit type.
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
