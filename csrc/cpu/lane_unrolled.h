// Several vectors of a lane as one: each operation is applied to all vectors before the next
// operation. The results of a dependency chain (a polynomial) have a longer latency than the
// out-of-order window of a core covers. Chains that follow each other in the code would therefore
// not overlap.
#pragma once

#include <cstdint>

namespace paraminit::PARAMINIT_ISA {

template <class L, int n>
struct Unrolled {
  struct U32 {
    typename L::U32 v[n];
  };
  struct U64 {
    typename L::U64 v[n];
  };
  struct F32 {
    typename L::F32 v[n];
  };
  struct F64 {
    typename L::F64 v[n];
  };
  struct M32 {
    typename L::M32 v[n];
  };
  struct M64 {
    typename L::M64 v[n];
  };

  // Interleaves the words of a pair, for chains with at most kInterleaveLimit live values per word.
  static constexpr int kInterleaveLimit = L::kInterleaveLimit;
  using Interleaved = Unrolled<L, 2 * n>;
  PARAMINIT_FN auto interleave(U32 even, U32 odd) {
    return interleave_as<typename Interleaved::U32>(even, odd);
  }
  PARAMINIT_FN auto interleave(U64 even, U64 odd) {
    return interleave_as<typename Interleaved::U64>(even, odd);
  }
  template <class W, class V>
  PARAMINIT_FN W interleave_as(V x, V y) {
    W interleaved;
    for (int i = 0; i < n; ++i) {
      interleaved.v[2 * i] = x.v[i];
      interleaved.v[2 * i + 1] = y.v[i];
    }
    return interleaved;
  }
  template <class W, class V>
  PARAMINIT_FN void deinterleave(W interleaved, V& x, V& y) {
    for (int i = 0; i < n; ++i) {
      x.v[i] = interleaved.v[2 * i];
      y.v[i] = interleaved.v[2 * i + 1];
    }
  }

// Returns a result of type R. Its vector i is the value of the expression for i.
#define PARAMINIT_EACH(R, ...)                         \
  R each;                                              \
  for (int i = 0; i < n; ++i) each.v[i] = __VA_ARGS__; \
  return each

  PARAMINIT_FN F32 splat(float a) { PARAMINIT_EACH(F32, L::splat(a)); }
  PARAMINIT_FN F64 splat(double a) { PARAMINIT_EACH(F64, L::splat(a)); }

  // --- integers
  PARAMINIT_FN U32 low24(U32 w) { PARAMINIT_EACH(U32, L::low24(w.v[i])); }
  PARAMINIT_FN U32 twice_plus_half_turn(U32 w) {
    PARAMINIT_EACH(U32, L::twice_plus_half_turn(w.v[i]));
  }
  PARAMINIT_FN U32 flip_bits(U32 w, uint32_t m) { PARAMINIT_EACH(U32, L::flip_bits(w.v[i], m)); }
  PARAMINIT_FN U64 flip_bits64(U64 x, uint64_t m) {
    PARAMINIT_EACH(U64, L::flip_bits64(x.v[i], m));
  }
  PARAMINIT_FN U32 fold31(U32 w) { PARAMINIT_EACH(U32, L::fold31(w.v[i])); }
  PARAMINIT_FN U64 fold63(U64 x) { PARAMINIT_EACH(U64, L::fold63(x.v[i])); }

  // --- integers to reals
  PARAMINIT_FN F32 from_int32(U32 w) { PARAMINIT_EACH(F32, L::from_int32(w.v[i])); }
  PARAMINIT_FN F32 from_uint32(U32 w) { PARAMINIT_EACH(F32, L::from_uint32(w.v[i])); }
  PARAMINIT_FN F64 from_low53(U64 x) { PARAMINIT_EACH(F64, L::from_low53(x.v[i])); }
  PARAMINIT_FN F64 from_high53(U64 x) { PARAMINIT_EACH(F64, L::from_high53(x.v[i])); }
  PARAMINIT_FN F64 from_high53_signed(U64 x) { PARAMINIT_EACH(F64, L::from_high53_signed(x.v[i])); }
  PARAMINIT_FN F64 fraction52(U64 x) { PARAMINIT_EACH(F64, L::fraction52(x.v[i])); }

  // --- reals: V is F32 or F64, M is the mask type of its comparisons
  template <class V>
  PARAMINIT_FN V add(V a, V b) {
    PARAMINIT_EACH(V, L::add(a.v[i], b.v[i]));
  }
  template <class V>
  PARAMINIT_FN V sub(V a, V b) {
    PARAMINIT_EACH(V, L::sub(a.v[i], b.v[i]));
  }
  template <class V>
  PARAMINIT_FN V mul(V a, V b) {
    PARAMINIT_EACH(V, L::mul(a.v[i], b.v[i]));
  }
  template <class V>
  PARAMINIT_FN V div(V a, V b) {
    PARAMINIT_EACH(V, L::div(a.v[i], b.v[i]));
  }
  template <class V>
  PARAMINIT_FN V fma(V a, V b, V c) {
    PARAMINIT_EACH(V, L::fma(a.v[i], b.v[i], c.v[i]));
  }
  template <class V>
  PARAMINIT_FN V sqrt(V a) {
    PARAMINIT_EACH(V, L::sqrt(a.v[i]));
  }
  template <class V>
  PARAMINIT_FN V negate(V a) {
    PARAMINIT_EACH(V, L::negate(a.v[i]));
  }
  PARAMINIT_FN F32 plus_bits(F32 a, uint32_t m)
    requires requires(typename L::F32 x) { L::plus_bits(x, m); }
  {
    PARAMINIT_EACH(F32, L::plus_bits(a.v[i], m));
  }
  template <class V>
  PARAMINIT_FN V minimum(V a, V bound) {
    PARAMINIT_EACH(V, L::minimum(a.v[i], bound.v[i]));
  }
  template <class V>
  PARAMINIT_FN V maximum(V a, V bound) {
    PARAMINIT_EACH(V, L::maximum(a.v[i], bound.v[i]));
  }
  PARAMINIT_FN M32 greater(F32 a, F32 b) { PARAMINIT_EACH(M32, L::greater(a.v[i], b.v[i])); }
  PARAMINIT_FN M64 greater(F64 a, F64 b) { PARAMINIT_EACH(M64, L::greater(a.v[i], b.v[i])); }
  template <class M>
  PARAMINIT_FN bool any(M m) {
    bool result = false;
    for (int i = 0; i < n; ++i) result |= L::any(m.v[i]);
    return result;
  }
  template <class M, class V>
  PARAMINIT_FN V select(M m, V a, V b) {
    PARAMINIT_EACH(V, L::select(m.v[i], a.v[i], b.v[i]));
  }
  PARAMINIT_FN F32 flip_sign(F32 a, U32 w) { PARAMINIT_EACH(F32, L::flip_sign(a.v[i], w.v[i])); }
  PARAMINIT_FN F64 flip_sign64(F64 a, U64 x) {
    PARAMINIT_EACH(F64, L::flip_sign64(a.v[i], x.v[i]));
  }
  PARAMINIT_FN F32 select_sign(U32 w, F32 set, F32 clear) {
    PARAMINIT_EACH(F32, L::select_sign(w.v[i], set.v[i], clear.v[i]));
  }
  PARAMINIT_FN F64 select_sign64(U64 x, F64 set, F64 clear) {
    PARAMINIT_EACH(F64, L::select_sign64(x.v[i], set.v[i], clear.v[i]));
  }
  template <class V>
  PARAMINIT_FN void split(V s, V& f, V& exponent) {
    for (int i = 0; i < n; ++i) L::split(s.v[i], f.v[i], exponent.v[i]);
  }
  template <class V>
  PARAMINIT_FN void split_signed(V v, V& f, V& exponent) {
    for (int i = 0; i < n; ++i) L::split_signed(v.v[i], f.v[i], exponent.v[i]);
  }
#undef PARAMINIT_EACH
};

}  // namespace paraminit::PARAMINIT_ISA
