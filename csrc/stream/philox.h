// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") over any lane.
// A lane's U64 holds one 32-bit word in the low half of each 64-bit element. The high halves are
// undefined between rounds because the multiplication reads only low halves.
#pragma once

#include "request.h"

namespace paraminit::PARAMINIT_ISA {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;

PARAMINIT_FN KeySchedule key_schedule(Key key) {
  KeySchedule schedule{};
  uint32_t k0 = static_cast<uint32_t>(key.seed);
  uint32_t k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    schedule.k0[round] = k0;
    schedule.k1[round] = k1;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  schedule.offset = key.offset;
  return schedule;
}

// One round on `count` independent counters. A superscalar core executes them in parallel.
template <class L, int count>
PARAMINIT_FN void philox_round(typename L::U64 (&x)[count][4], uint32_t k0, uint32_t k1) {
  for (int n = 0; n < count; ++n) {
    const typename L::U64 p = L::mul_low32(x[n][0], kPhiloxM0);
    const typename L::U64 q = L::mul_low32(x[n][2], kPhiloxM1);
    x[n][0] = L::xor3(L::high32(q), x[n][1], L::splat_word(k0));
    x[n][1] = q;
    x[n][2] = L::xor3(L::high32(p), x[n][3], L::splat_word(k1));
    x[n][3] = p;
  }
}

// The first two rounds, given the products low_word * kPhiloxM0 and (high_word ^ k0[0]) *
// kPhiloxM0. Counter words 2 and 3 are zero, so the first round needs only one multiplication and
// the second round needs one xor less.
template <class L>
PARAMINIT_FN void first_rounds(const KeySchedule& keys, typename L::U64 low_product,
                               typename L::U64 high_product, typename L::U64 (&x)[4]) {
  const typename L::U64 y2 = L::xor2(L::high32(low_product), L::splat_word(keys.k1[0]));
  const typename L::U64 q1 = L::mul_low32(y2, kPhiloxM1);
  x[0] = L::xor2(L::high32(q1), L::splat_word(keys.k0[1]));
  x[1] = q1;
  x[2] = L::xor3(L::high32(high_product), low_product, L::splat_word(keys.k1[1]));
  x[3] = high_product;
}

// Rounds 2 to last - 1. On return the low halves of x[n] contain the four words.
template <class L, int count, int last = kPhiloxRounds>
PARAMINIT_FN void later_rounds(const KeySchedule& keys, typename L::U64 (&x)[count][4]) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 2; round < last; ++round) {
    philox_round<L, count>(x, keys.k0[round], keys.k1[round]);
  }
}

// The first two rounds. On entry x[0] contains 64-bit counters.
template <class L>
PARAMINIT_FN void first_rounds(const KeySchedule& keys, typename L::U64 (&x)[4]) {
  const typename L::U64 low_product = L::mul_low32(x[0], kPhiloxM0);
  const typename L::U64 y0 = L::xor2(L::high32(x[0]), L::splat_word(keys.k0[0]));
  first_rounds<L>(keys, low_product, L::mul_low32(y0, kPhiloxM0), x);
}

// All rounds. On entry x[n][0] contains 64-bit counters. On return the low halves of x[n] contain
// the four words.
template <class L, int count>
PARAMINIT_FN void philox(const KeySchedule& keys, typename L::U64 (&x)[count][4]) {
  for (int n = 0; n < count; ++n) first_rounds<L>(keys, x[n]);
  later_rounds<L, count>(keys, x);
}

// Returns the key that fold_in(data) derives. For lanes of one element.
template <class L>
PARAMINIT_FN Key folded(Key key, uint64_t data) {
  uint64_t x[1][4] = {{key.offset + data}};
  philox<L, 1>(key_schedule(key), x);
  uint32_t w[4];
  for (int n = 0; n < 4; ++n) w[n] = static_cast<uint32_t>(x[0][n]);
  return {w[0] | uint64_t{w[1]} << 32, w[2] | uint64_t{w[3]} << 32};
}

// The intermediate results of the last round. Lanes that pack words side by side into registers
// combine the packing with the xors of this round, which saves instructions.
template <class L>
struct LastRound {
  typename L::U64 q;  // the low half is word 1
  typename L::U64 a;  // word 0 is high32(q) ^ a ^ k0
  typename L::U64 p;  // the low half is word 3
  typename L::U64 b;  // word 2 is high32(p) ^ b ^ k1
  uint32_t k0, k1;
};

template <class L>
PARAMINIT_FN LastRound<L> last_round(const KeySchedule& keys, const typename L::U64 (&x)[4]) {
  return {L::mul_low32(x[2], kPhiloxM1), x[1],
          L::mul_low32(x[0], kPhiloxM0), x[3],
          keys.k0[kPhiloxRounds - 1],    keys.k1[kPhiloxRounds - 1]};
}

// Returns the words as pairs of 32-bit numbers: words 0 and 2 in `even`, 1 and 3 in `odd`.
template <class L>
PARAMINIT_FN void pairs(const LastRound<L>& w, typename L::U32* even, typename L::U32* odd) {
  if constexpr (L::kCalls == 1) {
    const typename L::U64 keys = L::splat64(uint64_t{w.k1} << 32 | w.k0);
    even[0] = L::xor3(L::join_high(w.q, w.p), L::join(w.a, w.b), keys);
    odd[0] = L::join(w.q, w.p);
  } else {
    using Word = typename L::U32;
    even[0] = static_cast<Word>(L::high32(w.q) ^ w.a) ^ w.k0;
    odd[0] = static_cast<Word>(w.q);
    even[1] = static_cast<Word>(L::high32(w.p) ^ w.b) ^ w.k1;
    odd[1] = static_cast<Word>(w.p);
  }
}

// Returns the words as one pair of 64-bit numbers: words 0 (high) and 1 (low) in `even`, 2 and 3 in
// `odd`.
template <class L>
PARAMINIT_FN void pair64(const LastRound<L>& w, typename L::U64& even, typename L::U64& odd) {
  even = L::xor3(w.q, L::to_high(w.a), L::splat64(uint64_t{w.k0} << 32));
  odd = L::xor3(w.p, L::to_high(w.b), L::splat64(uint64_t{w.k1} << 32));
}

// Computes the words of any 128-bit counter without the shortcut of first_rounds(). For
// known-answer tests and to check the shortcut.
template <class L>
PARAMINIT_FN void philox_any(const KeySchedule& keys, const uint32_t (&counter)[4],
                             uint32_t (&words)[4]) {
  typename L::U64 x[1][4] = {{counter[0], counter[1], counter[2], counter[3]}};
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round<L, 1>(x, keys.k0[round], keys.k1[round]);
  }
  for (int n = 0; n < 4; ++n) words[n] = static_cast<uint32_t>(x[0][n]);
}

}  // namespace paraminit::PARAMINIT_ISA
