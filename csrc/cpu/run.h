// One run of consecutive elements into consecutive memory, in blocks of whole vectors.
// The value of an element depends on its index alone: where a run starts or ends inside a group, the
// whole vector is computed into a buffer on the stack and the part asked for is copied.
// Included once by each instruction set's translation unit, inside its region. Knows no tensors.
#pragma once

#include <cstring>

#include "../distributions.h"
#include "../philox.h"
#include "run_function.h"

namespace paraminit::PARAMINIT_ISA {

template <class Dist>
PARAMINIT_FN const Constants<typename Dist::Real>& constants_of(const FillRequest& r) {
  if constexpr (sizeof(typename Dist::Real) == 4) {
    return r.c32;
  } else {
    return r.c64;
  }
}

// Elements of one vector of groups.
template <class Dist>
constexpr int kVector = Lane::kGroups * (sizeof(typename Dist::Real) == 4 ? 4 : 2);

// `vectors` vectors of values, the first group's counter being `counter`.
template <class Dist, int vectors, class T>
PARAMINIT_FN void block(const FillRequest& request, uint64_t counter, T* out) {
  using L = Lane;
  L::U64 x[vectors][4];
  for (int n = 0; n < vectors; ++n) {
    x[n][0] = L::counters(counter + static_cast<uint64_t>(n) * L::kGroups, out);
  }
  philox<L, vectors>(request.keys, x);
  const Constants<typename Dist::Real>& c = constants_of<Dist>(request);
  for (int n = 0; n < vectors; ++n) {
    T* const to = out + n * kVector<Dist>;
    if constexpr (sizeof(typename Dist::Real) == 8) {
      L::U64 even, odd;
      L::F64 u, v;
      L::pair64(x[n], even, odd);
      Dist::template pair<L>(c, even, odd, u, v);
      L::store(to, u, v);
    } else {
      L::U32 even[L::kCalls], odd[L::kCalls];
      L::pairs(x[n], even, odd);
      for (int i = 0; i < L::kCalls; ++i) {
        if constexpr (sizeof(T) == 8) {
          L::U32 u, v;
          Dist::template pair<L>(c, even[i], odd[i], u, v);
          L::store(to + 2 * i, u, v);
        } else {
          L::F32 u, v;
          Dist::template pair<L>(c, even[i], odd[i], u, v);
          L::store(to + 2 * i, u, v);
        }
      }
    }
  }
}

template <class Dist, class T>
static void fill_run(const FillRequest& request, uint64_t index, int64_t count, void* data) {
  constexpr int group = sizeof(typename Dist::Real) == 4 ? 4 : 2;
  constexpr int vector = kVector<Dist>;
  T* out = static_cast<T*>(data);
  uint64_t counter = request.keys.offset + index / group;
  int skip = static_cast<int>(index % group);
  while (count > 0) {
    if (skip == 0) {
      for (; count >= vector * Lane::kUnroll; count -= vector * Lane::kUnroll) {
        block<Dist, Lane::kUnroll>(request, counter, out);
        out += vector * Lane::kUnroll;
        counter += static_cast<uint64_t>(Lane::kGroups) * Lane::kUnroll;
      }
    }
    // The head and the tail of a run, and what is left of it between whole blocks.
    alignas(64) T buffer[vector];
    block<Dist, 1>(request, counter, buffer);
    const int64_t part = count < vector - skip ? count : vector - skip;
    std::memcpy(out, buffer + skip, static_cast<size_t>(part) * sizeof(T));
    out += part;
    count -= part;
    counter += Lane::kGroups;
    skip = 0;
  }
}

template <class Dist32, class Dist64>
static RunFunction choose_type(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return fill_run<Dist32, float>;
    case ElementType::kFloat16:
      return fill_run<Dist32, Half>;
    case ElementType::kBFloat16:
      return fill_run<Dist32, BFloat16>;
    default:
      return fill_run<Dist64, double>;
  }
}

RunFunction run_function(Distribution distribution, ElementType type) {
  switch (distribution) {
    case Distribution::kUniform:
      return choose_type<UniformF, UniformD>(type);
    case Distribution::kUniformTiny:
      return choose_type<UniformTinyF, UniformTinyD>(type);
    case Distribution::kNormal:
      return choose_type<NormalF<false>, NormalD<false>>(type);
    case Distribution::kNormalClamped:
      return choose_type<NormalF<true>, NormalD<true>>(type);
    case Distribution::kTruncInterior:
      // plan_trunc_normal() gives this one to 32-bit types only.
      return choose_type<TruncInteriorF, TruncTwoSidedD>(type);
    case Distribution::kTruncTwoSided:
      return choose_type<TruncTwoSidedF, TruncTwoSidedD>(type);
    case Distribution::kTruncOneSided:
      return choose_type<TruncOneSidedF, TruncOneSidedD>(type);
    default:
      return fill_run<Words, int64_t>;
  }
}

}  // namespace paraminit::PARAMINIT_ISA
