// One run of consecutive elements into consecutive memory, in blocks of whole vectors.
// The value of an element depends on its index alone: where a run starts or ends inside a group,
// the whole vector is computed into a buffer on the stack and the part asked for is copied.
// Included once by each instruction set's translation unit, inside its region. Knows no tensors.
#pragma once

#include <cstring>

#include "../stream/distributions.h"
#include "../stream/philox.h"
#include "lane_together.h"
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

// What a 32-bit distribution makes of a lane's words: floats or words.
template <class Dist, class L>
struct Value32 {
  using type = typename L::F32;
};
template <class L>
struct Value32<Words, L> {
  using type = typename L::U32;
};

// The values of vectors of groups from their words.
template <class Dist, bool streaming, int vectors, class T>
PARAMINIT_FN void values(const FillRequest& request, const LastRound<Lane> (&words)[vectors],
                         T* out) {
  const Constants<typename Dist::Real>& c = constants_of<Dist>(request);
  if constexpr (sizeof(typename Dist::Real) == 8) {
    using L = Together<Lane, vectors>;
    typename L::U64 even, odd;
    for (int n = 0; n < vectors; ++n) pair64<Lane>(words[n], even.v[n], odd.v[n]);
    typename L::F64 u, v;
    Dist::template pair<L>(c, even, odd, u, v);
    for (int n = 0; n < vectors; ++n) {
      Lane::store<streaming>(out + n * kVector<Dist>, u.v[n], v.v[n]);
    }
  } else {
    constexpr int calls = Lane::kCalls;
    using L = Together<Lane, vectors * calls>;
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

// The values of vectors whose first two rounds are done.
template <class Dist, bool streaming, int vectors, class T>
PARAMINIT_FN void values_after(const FillRequest& request, Lane::U64 (&x)[vectors][4], T* out) {
  later_rounds<Lane, vectors, kPhiloxRounds - 1>(request.keys, x);
  LastRound<Lane> words[vectors];
  for (int n = 0; n < vectors; ++n) words[n] = last_round<Lane>(request.keys, x[n]);
  values<Dist, streaming>(request, words, out);
}

// One vector of values, the first group's counter being `counter`.
template <class Dist, class T>
PARAMINIT_FN void one_vector(const FillRequest& request, uint64_t counter, T* out) {
  Lane::U64 x[1][4] = {{Lane::counters(counter, out)}};
  first_rounds<Lane>(request.keys, x[0]);
  values_after<Dist, false>(request, x, out);
}

// The same of kUnroll vectors, where the low word of the counter does not wrap between them: then
// what Philox makes of the high word is one number for all, and what it makes of the low word first
// grows evenly, so that both cost no multiply.
template <class Dist, bool streaming, class T>
PARAMINIT_FN void block(const FillRequest& request, uint64_t counter, T* out) {
  const uint32_t low = static_cast<uint32_t>(counter), high = static_cast<uint32_t>(counter >> 32);
  const Lane::U64 of_low = Lane::splat64(uint64_t{low} * kPhiloxM0);
  const Lane::U64 of_high = Lane::splat64(uint64_t{high ^ request.keys.k0[0]} * kPhiloxM0);
  Lane::U64 x[Lane::kUnroll][4];
  for (int n = 0; n < Lane::kUnroll; ++n) {
    const Lane::U64 ahead =
        Lane::mul_low32(Lane::counters(static_cast<uint64_t>(n) * Lane::kGroups, out), kPhiloxM0);
    first_rounds<Lane>(request.keys, Lane::add64(of_low, ahead), of_high, x[n]);
  }
  values_after<Dist, streaming>(request, x, out);
}

// Reads the first line of the next small page, for its address: streaming stores would wait for the
// walk through the page tables, up to 15 % of a fill on pages of 4 KiB. Of a page that is not there
// a prefetch reads nothing.
PARAMINIT_FN void prefetch_page(const void* out) {
  constexpr uintptr_t page = 4096;
  __builtin_prefetch(
      reinterpret_cast<const void*>((reinterpret_cast<uintptr_t>(out) + page) & ~(page - 1)));
}

// As many whole blocks as `count` holds, up to one in which the counter's low word wraps; the three
// arguments move on by them.
template <class Dist, bool streaming, class T>
PARAMINIT_FN void whole_blocks(const FillRequest& request, uint64_t& counter, int64_t& count,
                               T*& out) {
  constexpr int size = kVector<Dist> * Lane::kUnroll;
  constexpr uint32_t groups = Lane::kGroups * Lane::kUnroll;
  static_assert(kWholeBlocks % size == 0);
  for (; count >= size && static_cast<uint32_t>(counter) <= -groups; count -= size) {
    if constexpr (streaming) prefetch_page(out);
    block<Dist, streaming>(request, counter, out);
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
        if (streaming) whole_blocks<Dist, true>(request, counter, count, out);
      }
      if (!streaming) whole_blocks<Dist, false>(request, counter, count, out);
      if (count == 0) break;
    }
    // The head and the tail of a run, and the vectors in which the counter's low word wraps.
    alignas(64) T buffer[vector];
    one_vector<Dist>(request, counter, buffer);
    const int64_t part = count < vector - skip ? count : vector - skip;
    std::memcpy(out, buffer + skip, static_cast<size_t>(part) * sizeof(T));
    out += part;
    count -= part;
    counter += Lane::kGroups;
    skip = 0;
  }
}

// The distribution applied to given words, four a group, instead of to Philox's: how tests reach
// the words that no short stream contains.
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
    values<Dist, false>(request, last, buffer);
    std::memcpy(out + g * group, buffer, static_cast<size_t>(count * group) * sizeof(T));
  }
}

template <class Dist, class T>
static RunFunctions functions() {
  return {fill_run<Dist, T>, apply_words<Dist, T>};
}

template <class Dist32, class Dist64>
static RunFunctions choose_type(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return functions<Dist32, float>();
    case ElementType::kFloat16:
      return functions<Dist32, Half>();
    case ElementType::kBFloat16:
      return functions<Dist32, BFloat16>();
    default:
      return functions<Dist64, double>();
  }
}

template <bool clamped>
static RunFunctions choose_uniform(const FillRequest& request) {
  if constexpr (Lane::kFuses) {
    if (request.round_range) {
      return choose_type<UniformF<clamped, true>, UniformD<clamped, true>>(request.type);
    }
  }
  return choose_type<UniformF<clamped>, UniformD<clamped>>(request.type);
}

RunFunctions run_functions(const FillRequest& request) {
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
      // plan_trunc_normal() gives this one to 32-bit types only.
      return choose_type<TruncInteriorF, TruncTwoSidedD>(type);
    case Distribution::kTruncTwoSided:
      return choose_type<TruncTwoSidedF, TruncTwoSidedD>(type);
    case Distribution::kTruncOneSided:
      return choose_type<TruncOneSidedF, TruncOneSidedD>(type);
    default:
      return type == ElementType::kWord32 ? functions<Words, uint32_t>()
                                          : functions<Words, int64_t>();
  }
}

}  // namespace paraminit::PARAMINIT_ISA
