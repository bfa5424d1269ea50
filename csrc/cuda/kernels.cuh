// One kernel a fill, over groups: dense runs by 16-byte packets, everything else group by group.
// Which thread computes a group, and when, decides nothing about its values.
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

// Element of a group before it is stored: words are stored as they are.
template <class Dist, class T>
struct ValueOf {
  using type = typename Dist::Real;
};
template <class Dist>
struct ValueOf<Dist, int64_t> {
  using type = uint32_t;
};

// The greatest of floats, if it is not negative.
template <int count>
__device__ __forceinline__ float greatest(const float (&r)[count]) {
  int most = 0;
#pragma unroll
  for (int n = 0; n < count; n += 2) {
    most = __vimax3_s32(most, __float_as_int(r[n]), __float_as_int(r[n + 1]));
  }
  return __int_as_float(most);
}

// Distributions whose values come in two steps, the second of which few words need. A warp skips it
// where none of its threads needs it: of TruncInteriorF it is a clamp that next to no word needs,
// and all groups are asked at once; of TruncTwoSidedF it is the tail too, and each is asked for
// itself.
template <class Dist>
constexpr bool kCompletesAll = std::is_same_v<Dist, TruncInteriorF>;
template <class Dist>
constexpr bool kCompletesSome = std::is_same_v<Dist, TruncTwoSidedF>;

template <class Dist, int groups>
__device__ __forceinline__ void two_step_values(const Constants<float>& c, const uint64_t (*x)[4],
                                                float (*v)[4]) {
  uint32_t w[4 * groups];
  float r[4 * groups];
#pragma unroll
  for (int n = 0; n < 4 * groups; ++n) {
    w[n] = static_cast<uint32_t>(x[n / 4][n % 4]);
    v[n / 4][n % 4] = Dist::template most<Lane>(c, w[n], r[n]);
  }
  if (greatest(r) <= c.calm) return;
#pragma unroll
  for (int n = 0; n < 4 * groups; ++n) {
    if (kCompletesAll<Dist> || r[n] > c.calm) {
      v[n / 4][n % 4] = Dist::template completed<Lane>(c, w[n], r[n], v[n / 4][n % 4]);
    }
  }
}

template <class Dist, class V>
__device__ __forceinline__ void group_values(const Constants<typename Dist::Real>& c,
                                             const uint64_t (&x)[4], V (&v)[kGroup<Dist>]) {
  if constexpr (kCompletesAll<Dist> || kCompletesSome<Dist>) {
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

// The values of groups from their words.
template <class Dist, int groups, class V>
__device__ __forceinline__ void values(const Constants<typename Dist::Real>& c,
                                       const uint64_t (&x)[groups][4],
                                       V (&v)[groups][kGroup<Dist>]) {
  if constexpr (kCompletesAll<Dist>) {
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

// A packet: one group of float32 or float64, two of a 16-bit type.
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

// Blocks of a multiprocessor that registers are limited for.
template <class Dist>
constexpr int kBlocks = sizeof(typename Dist::Real) == 4 ? 3 : 1;

// A tile is what a block writes in one round of the dense kernel: `kPacketsInFlight` packets a
// thread, kThreads apart, so that a warp's stores are contiguous.
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

// The values of one packet, the counter of its first group being `counter`.
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

// The elements of a packet from `begin` to before `end`, by ones where these are not all.
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

// What Philox makes of the low word of a counter first, its product with kPhiloxM0, for each group
// that a thread has in flight; the low word, `low` for the first, does not wrap between them. With
// the next tile each grows by the product of the step, which one multiply-add does: of counters,
// each would be added to and then multiplied.
template <class Dist, class T>
struct LowProducts {
  using Shape = Tile<Dist, T>;
  uint64_t of[Shape::kGroupsInFlight];

  __device__ __forceinline__ explicit LowProducts(uint32_t low) {
    constexpr int of_packet = Shape::kPacketGroups;
#pragma unroll
    for (int n = 0; n < Shape::kGroupsInFlight; ++n) {
      const uint32_t ahead = n / of_packet * (kThreads * of_packet) + n % of_packet;
      of[n] = wide_product(low + ahead, kPhiloxM0);
    }
  }
  __device__ __forceinline__ void advance(uint32_t step) {
#pragma unroll
    for (int n = 0; n < Shape::kGroupsInFlight; ++n) of[n] += uint64_t{step} * kPhiloxM0;
  }
};

// A thread's packets of one tile. Their counters agree in the high word, of which Philox has made
// `high`.
template <class Dist, class T>
__device__ __forceinline__ void store_packets(const Constants<typename Dist::Real>& c,
                                              const KeySchedule& keys, uint64_t high,
                                              const LowProducts<Dist, T>& low, T* out) {
  using Shape = Tile<Dist, T>;
  constexpr int groups = Shape::kGroupsInFlight, of_packet = Shape::kPacketGroups;
  uint64_t x[groups][4];
#pragma unroll
  for (int n = 0; n < groups; ++n) first_rounds<Lane>(keys, low.of[n], high, x[n]);
  later_rounds<Lane, groups>(keys, x);
  typename Dist::Real v[groups][kGroup<Dist>];
  values<Dist>(c, x, v);
#pragma unroll
  for (int n = 0; n < Shape::kPacketsInFlight; ++n) {
    store_packet(out + n * kThreads * Shape::kPacket, v + n * of_packet);
  }
}

// A run of consecutive elements, numbered from the first one of the packet that it begins in: it is
// [head, end), of less than 2^32 groups. `first_group` is that packet's.
struct DenseRun {
  uint64_t first_group;
  int64_t head;
  int64_t end;
  uint32_t rounds;  // tiles of each block; what they leave of the run is done packet by packet
};

// `out` is where element 0 lies, or would, aligned to a packet.
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
  // The low word of the counter wraps once at most. The tile in which it does is set aside, so that
  // a thread's high word changes between rounds alone, and is worked on outside of their loop.
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
    const uint64_t mine = tile_counter + tile * Shape::kGroups + threadIdx.x * Shape::kPacketGroups;
    const uint64_t high =
        opaque(wide_product(static_cast<uint32_t>(mine >> 32) ^ keys.k0[0], kPhiloxM0));
    const uint32_t low = static_cast<uint32_t>(mine);
    const uint32_t end = low + (stop - round) * step;
    const uint32_t end_product = end * kPhiloxM0;  // of no other low word, for kPhiloxM0 is odd
    LowProducts<Dist, T> products(low);
    T* to =
        out + (whole_begin + static_cast<int64_t>(tile * Shape::kPackets + threadIdx.x)) * packet;
    if (low != end) {
#pragma unroll 1
      for (;;) {
        store_packets(c, keys, high, products, to);
        products.advance(step);
        if (static_cast<uint32_t>(products.of[0]) == end_product) break;
        to += stride;  // not before the way out: ptxas would move it up, and copy the old one
      }
    }
    if (stop == run.rounds) break;
    round = stop + (blockIdx.x + static_cast<uint64_t>(stop) * gridDim.x == wrap_tile);
    stop = run.rounds;
  }

  // A partial packet at the head, then what follows the tiles, then the tile set aside.
  const int64_t tiles_end = whole_begin + static_cast<int64_t>(tiles * Shape::kPackets);
  const int64_t outside = (run.end + packet - 1) / packet - (tiles_end - whole_begin);
  const int64_t rest = outside + (wraps ? Shape::kPackets : 0);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < rest;
       n += threads) {
    int64_t which = n;
    if (n >= outside) {
      which += whole_begin + static_cast<int64_t>(wrap_tile) * Shape::kPackets - outside;
    } else if (n >= whole_begin) {
      which += tiles_end - whole_begin;
    }
    typename Dist::Real v[Shape::kPacketGroups][kGroup<Dist>];
    packet_values<Dist, T>(c, keys, counter + static_cast<uint64_t>(which) * Shape::kPacketGroups,
                           v);
    store_part<Dist>(out + which * packet, v, run.head - which * packet, run.end - which * packet);
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

// Blocks of the kernel that the device holds at once. The kernel is an argument of the template,
// not of the function: kernels of one type differ in their registers, and each has a store of its
// own.
template <auto kernel>
int64_t resident_blocks(int device, int multiprocessors) {
  constexpr int kDevices = 64;
  static std::atomic<int> blocks_of_a_multiprocessor[kDevices];
  int resident = device < kDevices ? blocks_of_a_multiprocessor[device].load() : 0;
  if (resident == 0) {
    const cudaError_t error =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0);
    if (error != cudaSuccess || resident == 0) {
      cudaGetLastError();  // or the check after the launch would find it
      return multiprocessors;
    }
    if (device < kDevices) blocks_of_a_multiprocessor[device].store(resident);
  }
  return static_cast<int64_t>(resident) * multiprocessors;
}

// Blocks for units of which each thread takes at least one, as many as the device holds at once.
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

// Rounds and blocks for as many tiles. The blocks have equally many and at most `resident` run, so
// that none waits for another; too few tiles to go round are better done packet by packet.
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
  // What one launch may hold, so that a counter's low word wraps once at most.
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
