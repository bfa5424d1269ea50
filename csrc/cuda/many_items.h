// Describes each tensor of a fill of many to the kernels, and assigns it to a launch. Plain host
// arithmetic. Does not depend on torch.
#pragma once

#include <utility>

#include "../stream/many_request.h"
#include "many_launch.h"

namespace paraminit {

// What one launch fills: (distribution, element type), or (kConstant, element size).
using Kind = std::pair<int, int64_t>;
constexpr int kConstant = -1;

inline Kind kind_of(const ManyItem& item) {
  if (item.request == nullptr) return {kConstant, item.size};
  return {static_cast<int>(item.request->distribution), static_cast<int64_t>(item.request->type)};
}

struct DeviceDescription {
  DeviceItem item;
  int64_t chunks;
  bool scattered;
};

// Returns the description of an item. The caller sets `item.geometry`, a device address.
inline DeviceDescription describe(const ManyItem& item, const Geometry& g) {
  constexpr int64_t kPacket = 16, kChunk = int64_t{kManyThreads} * kManyGroups;
  const auto quotient_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  DeviceDescription result{};
  const int64_t packet = kPacket / item.size;
  const bool dense = g.run_count == 1 && g.dense_runs();
  int64_t units;
  if (item.request == nullptr) {
    // A constant does not depend on the index, so its packets follow the alignment of the memory.
    result.item.head =
        static_cast<int64_t>(reinterpret_cast<uintptr_t>(item.data) % kPacket) / item.size;
    result.item.value[0] = item.value[0];
    result.scattered = !dense;
    result.item.end = result.item.head + g.run_length;
    units = dense ? quotient_up(result.item.end, packet) : quotient_up(g.numel(), packet);
  } else {
    const int64_t group = item.size == 8 ? 2 : 4;
    result.item.head = static_cast<int64_t>(g.first_index % static_cast<uint64_t>(packet));
    result.item.first_group =
        (g.first_index - static_cast<uint64_t>(result.item.head)) / static_cast<uint64_t>(group);
    result.item.key = item.key;
    if (item.size == 8) {
      result.item.c64 = item.request->c64;
    } else {
      result.item.c32 = item.request->c32;
    }
    const uintptr_t out = reinterpret_cast<uintptr_t>(item.data) -
                          static_cast<uintptr_t>(result.item.head * item.size);
    result.scattered = !dense || out % kPacket != 0;
    result.item.end = result.item.head + g.run_length;
    units = result.scattered ? g.numel() : quotient_up(result.item.end, packet) * (packet / group);
  }
  result.item.data =
      result.scattered ? item.data : static_cast<char*>(item.data) - result.item.head * item.size;
  result.chunks = quotient_up(units, kChunk);
  return result;
}

inline cudaError_t dispatch(const ManyLaunch& launch, const Kind& kind) {
  if (kind.first == kConstant) return launch_many_constant(launch, kind.second);
  switch (family_of(launch.distribution)) {
    case Family::kUniform:
      return launch_many_uniform(launch);
    case Family::kNormal:
      return launch_many_normal(launch);
    case Family::kTruncNormal:
      return launch_many_trunc_normal(launch);
    case Family::kWords:
      break;
  }
  return cudaErrorInvalidConfiguration;  // fill_many.cpp never requests words
}

}  // namespace paraminit
