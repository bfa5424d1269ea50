// What the kernels of a fill of many are told of each tensor, and which launch it belongs to. Plain
// arithmetic on the host. Knows no torch.
#pragma once

#include <utility>

#include "../stream/many_request.h"
#include "many_launch.h"

namespace paraminit {

// What one launch fills: a distribution and an element type, or constants of a size.
using Kind = std::pair<int, int64_t>;
constexpr int kConstant = -1;

inline Kind kind_of(const ManyItem& item) {
  if (item.request == nullptr) return {kConstant, item.size};
  return {static_cast<int>(item.request->distribution), static_cast<int64_t>(item.request->type)};
}

struct Described {
  DeviceItem item;
  int64_t chunks;
  bool scattered;
};

// Without the place of its geometry in the device's memory.
inline Described describe(const ManyItem& item, const Geometry& g) {
  constexpr int64_t kPacket = 16, kChunk = int64_t{kManyThreads} * kManyGroups;
  const auto quotient_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  Described made{};
  const int64_t packet = kPacket / item.size;
  const bool dense = g.run_count == 1 && g.dense_runs();
  int64_t units;
  if (item.request == nullptr) {
    // A constant is the same everywhere: packets lie as the memory does.
    made.item.head =
        static_cast<int64_t>(reinterpret_cast<uintptr_t>(item.data) % kPacket) / item.size;
    made.item.value[0] = item.value[0];
    made.scattered = !dense;
    made.item.end = made.item.head + g.run_length;
    units = dense ? quotient_up(made.item.end, packet) : quotient_up(g.numel(), packet);
  } else {
    const int64_t group = item.size == 8 ? 2 : 4;
    made.item.head = static_cast<int64_t>(g.first_index % static_cast<uint64_t>(packet));
    made.item.first_group =
        (g.first_index - static_cast<uint64_t>(made.item.head)) / static_cast<uint64_t>(group);
    made.item.key = item.key;
    if (item.size == 8) {
      made.item.c64 = item.request->c64;
    } else {
      made.item.c32 = item.request->c32;
    }
    const uintptr_t out =
        reinterpret_cast<uintptr_t>(item.data) - static_cast<uintptr_t>(made.item.head * item.size);
    made.scattered = !dense || out % kPacket != 0;
    made.item.end = made.item.head + g.run_length;
    units = made.scattered ? g.numel() : quotient_up(made.item.end, packet) * (packet / group);
  }
  made.item.data =
      made.scattered ? item.data : static_cast<char*>(item.data) - made.item.head * item.size;
  made.chunks = quotient_up(units, kChunk);
  return made;
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
  return cudaErrorInvalidConfiguration;  // words are no distribution of many.cpp's
}

}  // namespace paraminit
