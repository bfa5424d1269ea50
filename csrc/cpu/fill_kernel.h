// Writes a run of consecutive elements to contiguous memory, in blocks of several vectors.
// The value of an element depends only on its index. If a run starts or ends inside a group, the
// full vector is computed in a buffer on the stack and the required part is copied. The translation
// unit of each instruction set includes this file once, in its target region.
#pragma once

#include <cstring>

#include "../stream/distributions.h"
#include "../stream/philox.h"
#include "lane_unrolled.h"
#include "kernel_table.h"

namespace paraminit::PARAMINIT_ISA {

template <class Dist>
PARAMINIT_FN const Constants<typename Dist::Real>& constants_of(const FillRequest& r) {
  if constexpr (sizeof(typename Dist::Real) == 4) {
    return r.c32;
  } else {
    return r.c64;
  }
}

// Elements computed from one vector of counters.
template <class Dist>
constexpr int kVector = Lane::kGroups * (sizeof(typename Dist::Real) == 4 ? 4 : 2);

// The vector type of the values of a distribution with 32-bit words: floats, or words for Words.
template <class Dist, class L>
struct Value32 {
  using type = typename L::F32;
};
template <class L>
struct Value32<Words, L> {
  using type = typename L::U32;
};

// Computes and stores the values of `vectors` vectors of groups from their words.
template <class Dist, bool streaming, int vectors, class T>
PARAMINIT_FN void write_values(const FillRequest& request, const LastRound<Lane> (&words)[vectors],
                               T* out) {
  const Constants<typename Dist::Real>& c = constants_of<Dist>(request);
  if constexpr (sizeof(typename Dist::Real) == 8) {
    using L = Unrolled<Lane, vectors>;
    typename L::U64 even, odd;
    for (int n = 0; n < vectors; ++n) pair64<Lane>(words[n], even.v[n], odd.v[n]);
    typename L::F64 u, v;
    Dist::template pair<L>(c, even, odd, u, v);
    for (int n = 0; n < vectors; ++n) {
      Lane::store<streaming>(out + n * kVector<Dist>, u.v[n], v.v[n]);
    }
  } else {
    constexpr int calls = Lane::kCalls;
    using L = Unrolled<Lane, vectors * calls>;
    typename L::U32 even, odd;
    for (int n = 0; n < vectors; ++n) {
      pairs<Lane>(words[n], even.v + n * calls, odd.v + n * calls);
    }
    typename Value32<Dist, L>::type u, v;
    Dist::template pair<L>(c, even, odd, u, v);
    for (int i = 0; i < vectors * calls; ++i) {
      Lane::store<streaming>(out + i * (kVector<Dist> / calls), u.v[i], v.v[i]);
    }
  }
}

// Computes and stores the values of vectors after their first two rounds.
template <class Dist, bool streaming, int vectors, class T>
PARAMINIT_FN void write_after_first_rounds(const FillRequest& request, Lane::U64 (&x)[vectors][4],
                                           T* out) {
  later_rounds<Lane, vectors, kPhiloxRounds - 1>(request.keys, x);
  LastRound<Lane> words[vectors];
  for (int n = 0; n < vectors; ++n) words[n] = last_round<Lane>(request.keys, x[n]);
  write_values<Dist, streaming>(request, words, out);
}

// Writes one vector of values. `counter` is the counter of its first group.
template <class Dist, class T>
PARAMINIT_FN void write_vector(const FillRequest& request, uint64_t counter, T* out) {
  Lane::U64 x[1][4] = {{Lane::counters(counter, out)}};
  first_rounds<Lane>(request.keys, x[0]);
  write_after_first_rounds<Dist, false>(request, x, out);
}

// Writes kUnroll vectors. The low word of the counter must not wrap within them. Then the high word
// is the same for all counters, so its first product is a scalar. The first product of the low word
// increases by a constant per counter. Neither requires a vector multiplication.
template <class Dist, bool streaming, class T>
PARAMINIT_FN void write_block(const FillRequest& request, uint64_t counter, T* out) {
  const uint32_t low = static_cast<uint32_t>(counter), high = static_cast<uint32_t>(counter >> 32);
  const Lane::U64 low_product = Lane::splat64(uint64_t{low} * kPhiloxM0);
  const Lane::U64 high_product = Lane::splat64(uint64_t{high ^ request.keys.k0[0]} * kPhiloxM0);
  Lane::U64 x[Lane::kUnroll][4];
  for (int n = 0; n < Lane::kUnroll; ++n) {
    const Lane::U64 increment =
        Lane::mul_low32(Lane::counters(static_cast<uint64_t>(n) * Lane::kGroups, out), kPhiloxM0);
    first_rounds<Lane>(request.keys, Lane::add64(low_product, increment), high_product, x[n]);
  }
  write_after_first_rounds<Dist, streaming>(request, x, out);
}

// Prefetches the first cache line of the next small page to load its address translation. Otherwise
// non-temporal stores wait for the page walk, which takes up to 15 % of a fill on 4 KiB pages. A
// prefetch from an unmapped page has no effect.
PARAMINIT_FN void prefetch_page(const void* out) {
  constexpr uintptr_t page = 4096;
  __builtin_prefetch(
      reinterpret_cast<const void*>((reinterpret_cast<uintptr_t>(out) + page) & ~(page - 1)));
}

// Writes all whole blocks of the `count` elements, up to a block in which the low word of the
// counter wraps. Advances counter, count and out past the written blocks.
template <class Dist, bool streaming, class T>
PARAMINIT_FN void write_blocks(const FillRequest& request, uint64_t& counter, int64_t& count,
                               T*& out) {
  constexpr int size = kVector<Dist> * Lane::kUnroll;
  constexpr uint32_t groups = Lane::kGroups * Lane::kUnroll;
  static_assert(kBlockMultiple % size == 0);
  for (; count >= size && static_cast<uint32_t>(counter) <= -groups; count -= size) {
    if constexpr (streaming) prefetch_page(out);
    write_block<Dist, streaming>(request, counter, out);
    out += size;
    counter += groups;
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
      bool streaming = false;
      if constexpr (Lane::kStreams) {
        streaming = request.streaming && reinterpret_cast<uintptr_t>(out) % 64 == 0;
        if (streaming) write_blocks<Dist, true>(request, counter, count, out);
      }
      if (!streaming) write_blocks<Dist, false>(request, counter, count, out);
      if (count == 0) break;
    }
    // The head and tail of a run, and vectors in which the low word of the counter wraps.
    alignas(64) T buffer[vector];
    write_vector<Dist>(request, counter, buffer);
    const int64_t part = count < vector - skip ? count : vector - skip;
    std::memcpy(out, buffer + skip, static_cast<size_t>(part) * sizeof(T));
    out += part;
    count -= part;
    counter += Lane::kGroups;
    skip = 0;
  }
}

// Applies the distribution to the given words, four per group, instead of to the words of Philox.
// Tests use it for words that no short stream contains.
template <class Dist, class T>
static void apply_words(const FillRequest& request, const uint32_t* words, int64_t groups,
                        void* data) {
  T* out = static_cast<T*>(data);
  constexpr int group = kVector<Dist> / Lane::kGroups;
  const Lane::U64 lanes = Lane::counters(0, out);
  uint64_t order[Lane::kGroups];
  std::memcpy(order, &lanes, sizeof(order));
  for (int64_t g = 0; g < groups; g += Lane::kGroups) {
    const int64_t count = groups - g < Lane::kGroups ? groups - g : Lane::kGroups;
    Lane::U64 x[4];
    for (int n = 0; n < 4; ++n) {
      uint64_t column[Lane::kGroups];
      for (int i = 0; i < Lane::kGroups; ++i) {
        const int64_t from = static_cast<int64_t>(order[i]);
        column[i] = from < count ? words[(g + from) * 4 + n] : 0;
      }
      std::memcpy(&x[n], column, sizeof(column));
    }
    alignas(64) T buffer[kVector<Dist>];
    const LastRound<Lane> last[1] = {{x[1], x[0], x[3], x[2], 0, 0}};
    write_values<Dist, false>(request, last, buffer);
    std::memcpy(out + g * group, buffer, static_cast<size_t>(count * group) * sizeof(T));
  }
}

template <class Dist, class T>
static FillKernels kernels_of() {
  return {fill_run<Dist, T>, apply_words<Dist, T>};
}

template <class Dist32, class Dist64>
static FillKernels choose_type(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return kernels_of<Dist32, float>();
    case ElementType::kFloat16:
      return kernels_of<Dist32, Half>();
    case ElementType::kBFloat16:
      return kernels_of<Dist32, BFloat16>();
    default:
      return kernels_of<Dist64, double>();
  }
}

template <bool clamped>
static FillKernels choose_uniform(const FillRequest& request) {
  if constexpr (Lane::kFuses) {
    if (request.round_range) {
      return choose_type<UniformF<clamped, true>, UniformD<clamped, true>>(request.type);
    }
  }
  return choose_type<UniformF<clamped>, UniformD<clamped>>(request.type);
}

FillKernels fill_kernels(const FillRequest& request) {
  const ElementType type = request.type;
  switch (request.distribution) {
    case Distribution::kUniform:
      return choose_uniform<false>(request);
    case Distribution::kUniformClamped:
      return choose_uniform<true>(request);
    case Distribution::kUniformTiny:
      return choose_type<UniformTinyF, UniformTinyD>(type);
    case Distribution::kNormal:
      return choose_type<NormalF<false>, NormalD<false>>(type);
    case Distribution::kNormalClamped:
      return choose_type<NormalF<true>, NormalD<true>>(type);
    case Distribution::kTruncInterior:
      // plan_trunc_normal() chooses kTruncInterior only for types computed in float32.
      return choose_type<TruncInteriorF, TruncTwoSidedD>(type);
    case Distribution::kTruncTwoSided:
      return choose_type<TruncTwoSidedF, TruncTwoSidedD>(type);
    case Distribution::kTruncOneSided:
      return choose_type<TruncOneSidedF, TruncOneSidedD>(type);
    default:
      return type == ElementType::kWord32 ? kernels_of<Words, uint32_t>()
                                          : kernels_of<Words, int64_t>();
  }
}

}  // namespace paraminit::PARAMINIT_ISA
