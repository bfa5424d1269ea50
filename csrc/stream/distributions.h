// The distributions. Each is a functor that maps a pair of words to a pair of values. `even` and
// `odd` belong to elements 2n and 2n + 1 of the stream. Constants come from constants.h. A value is
// clamped to [low, high] before it is rounded to 16 bits. The bounds are values of the element type
// and rounding is monotonic, so this gives the same result as clamping after rounding.
#pragma once

#include "request.h"
#include "transforms.h"

namespace paraminit::PARAMINIT_ISA {

template <class L, class V, class Real>
PARAMINIT_FN V clamp(V x, const Constants<Real>& c) {
  return L::maximum(L::minimum(x, L::splat(c.high)), L::splat(c.low));
}

// Base of distributions with one word per element, computed by Derived::value(). If value() is a
// long dependency chain, both words of a pair are interleaved so that their chains overlap.
// `live_values` is the number of values per word that are live in the chain (0: do not interleave).
// Interleaving is only used if the lane has enough registers.
template <class Derived, int live_values = 0>
struct Elementwise {
  template <class L, class Word, class V, class Real>
  PARAMINIT_FN void pair(const Constants<Real>& c, Word even, Word odd, V& x, V& y) {
    if constexpr (requires { requires live_values > 0 && L::kInterleaveLimit >= live_values; }) {
      L::deinterleave(Derived::template value<typename L::Interleaved>(c, L::interleave(even, odd)),
                      x, y);
    } else {
      x = Derived::template value<L>(c, even);
      y = Derived::template value<L>(c, odd);
    }
  }
};

// fl(fl(u * range) + start). With u = k 2^-24 (2^-53), k (range 2^-24) rounds exactly as u * range
// does. If the request's round_range is set, as for [0, 1) and [-1, 1), `round` gives the same
// values with fewer instructions: a fill takes 4 % less time, a clamped fill 7 % less.
template <class L, bool clamped, bool round, class V, class Real>
PARAMINIT_FN V uniform(const Constants<Real>& c, V k) {
  if constexpr (round) {
    const V x = L::fma(k, L::splat(c.scale), L::splat(c.shift));
    return clamped ? L::minimum(x, L::splat(c.high)) : x;
  } else {
    const V x = L::add(L::mul(k, L::splat(c.scale)), L::splat(c.shift));
    return clamped ? clamp<L>(x, c) : x;
  }
}

template <bool clamped, bool round = false>
struct UniformF : Elementwise<UniformF<clamped, round>> {
  using Real = float;
  template <class L>
  PARAMINIT_FN typename L::F32 value(const Constants<float>& c, typename L::U32 w) {
    return uniform<L, clamped, round>(c, L::from_int32(L::low24(w)));
  }
};

struct UniformTinyF : Elementwise<UniformTinyF> {
  using Real = float;
  template <class L>
  PARAMINIT_FN typename L::F32 value(const Constants<float>& c, typename L::U32 w) {
    const typename L::F32 u = L::mul(L::from_int32(L::low24(w)), L::splat(0x1p-24f));
    return clamp<L>(L::add(L::mul(u, L::splat(c.scale)), L::splat(c.shift)), c);
  }
};

template <bool clamped, bool round = false>
struct UniformD : Elementwise<UniformD<clamped, round>> {
  using Real = double;
  template <class L>
  PARAMINIT_FN typename L::F64 value(const Constants<double>& c, typename L::U64 x) {
    return uniform<L, clamped, round>(c, L::from_low53(x));
  }
};

struct UniformTinyD : Elementwise<UniformTinyD> {
  using Real = double;
  template <class L>
  PARAMINIT_FN typename L::F64 value(const Constants<double>& c, typename L::U64 x) {
    const typename L::F64 u = L::mul(L::from_low53(x), L::splat(0x1p-53));
    return clamp<L>(L::add(L::mul(u, L::splat(c.scale)), L::splat(c.shift)), c);
  }
};

// Box and Muller (1958): the even word determines the radius, the odd word the angle.
template <bool clamped>
struct NormalF {
  using Real = float;
  template <class L>
  PARAMINIT_FN void pair(const Constants<float>& c, typename L::U32 even, typename L::U32 odd,
                         typename L::F32& x, typename L::F32& y) {
    typename L::F32 cosine, sine;
    rotate<L>(radius<L>(even), odd, cosine, sine);
    x = L::fma(cosine, L::splat(c.std), L::splat(c.shift));
    y = L::fma(sine, L::splat(c.std), L::splat(c.shift));
    if constexpr (clamped) {
      x = clamp<L>(x, c);
      y = clamp<L>(y, c);
    }
  }
};

template <bool clamped>
struct NormalD {
  using Real = double;
  template <class L>
  PARAMINIT_FN void pair(const Constants<double>& c, typename L::U64 even, typename L::U64 odd,
                         typename L::F64& x, typename L::F64& y) {
    typename L::F64 cosine, sine;
    rotate64<L>(radius64<L>(even), odd, cosine, sine);
    x = L::fma(cosine, L::splat(c.std), L::splat(c.shift));
    y = L::fma(sine, L::splat(c.std), L::splat(c.shift));
    if constexpr (clamped) {
      x = clamp<L>(x, c);
      y = clamp<L>(y, c);
    }
  }
};

// Truncated normals by inverse CDF, z = Phi^-1(Phi(alpha) + p (Phi(beta) - Phi(alpha))), from one
// word and without rejection. The bounds alone determine which of the three forms is used.

// The interior and two-sided form in float32 also have a two-step interface, for lanes that skip
// the clamp if it is not needed. unclamped_value() returns a value and r. If r <= c.unclamped_limit
// (in the same unit), that value is final. final_value() takes both and returns the final value for
// every r.

// u = 2 Phi(z) - 1 is affine in the word as a signed integer. With bounds within 2.125 standard
// deviations, 1 - u^2 is above 1/16.
struct TruncInteriorF : Elementwise<TruncInteriorF, 4> {
  using Real = float;
  template <class L>
  PARAMINIT_FN typename L::F32 unclamped_value(const Constants<float>& c, typename L::U32 w,
                                               typename L::F32& r) {
    const typename L::F32 u = L::fma(L::from_int32(w), L::splat(c.slope), L::splat(c.lower));
    r = minus_two_log_interior<L>(L::fma(L::negate(u), u, L::splat(1.0f)));
    const typename L::F32 z = L::mul(u, quantile_interior<L>(r));
    return L::fma(z, L::splat(c.std), L::splat(c.shift));
  }
  template <class L>
  PARAMINIT_FN typename L::F32 final_value(const Constants<float>& c, typename L::U32,
                                           typename L::F32, typename L::F32 x) {
    return clamp<L>(x, c);
  }
  template <class L>
  PARAMINIT_FN typename L::F32 value(const Constants<float>& c, typename L::U32 w) {
    typename L::F32 r;
    return clamp<L>(unclamped_value<L>(c, w, r), c);
  }
};

// t is the mass below z if p is in its lower half, otherwise the mass above z. It is small in the
// tails.
struct TruncTwoSidedF : Elementwise<TruncTwoSidedF, 5> {
  using Real = float;
  template <class L>
  PARAMINIT_FN typename L::F32 unclamped_value(const Constants<float>& c, typename L::U32 w,
                                               typename L::F32& r) {
    return scale_and_shift<L>(c, w, central_z<L>(c, w, r));
  }
  template <class L>
  PARAMINIT_FN typename L::F32 final_value(const Constants<float>& c, typename L::U32 w,
                                           typename L::F32 r, typename L::F32 x) {
    const typename L::M32 far = L::greater(r, L::splat(kCentralLimit));
    if (L::any(far)) x = L::select(far, scale_and_shift<L>(c, w, quantile_tail<L>(L::sqrt(r))), x);
    return clamp<L>(x, c);
  }
  template <class L>
  PARAMINIT_FN typename L::F32 value(const Constants<float>& c, typename L::U32 w) {
    typename L::F32 r;
    typename L::F32 z = central_z<L>(c, w, r);
    const typename L::M32 far = L::greater(r, L::splat(kCentralLimit));
    if (L::any(far)) z = L::select(far, quantile_tail<L>(L::sqrt(r)), z);
    return clamp<L>(scale_and_shift<L>(c, w, z), c);
  }

 private:
  template <class L>
  PARAMINIT_FN typename L::F32 central_z(const Constants<float>& c, typename L::U32 w,
                                         typename L::F32& r) {
    const typename L::F32 end = L::select_sign(w, L::splat(c.lower), L::splat(c.upper));
    const typename L::F32 t = L::fma(L::from_int32(L::fold31(w)), L::splat(c.slope), end);
    const typename L::F32 u = L::fma(t, L::splat(-2.0f), L::splat(1.0f));
    const typename L::F32 t4 = L::mul(t, L::splat(4.0f));
    r = minus_two_log<L>(L::fma(L::negate(t4), t, t4));
    return L::mul(u, quantile_central<L>(r));
  }
  template <class L>
  PARAMINIT_FN typename L::F32 scale_and_shift(const Constants<float>& c, typename L::U32 w,
                                               typename L::F32 z) {
    return L::fma(L::flip_sign(z, w), L::splat(c.std), L::splat(c.shift));
  }
};

// Q is the mass beyond the bound nearer to 0, and y is the share of Q that is beyond z. z is a
// smooth function of s with s^2 = -2 ln(Q y). The request contains a polynomial fitted to it.
struct TruncOneSidedF : Elementwise<TruncOneSidedF, 4> {
  using Real = float;
  template <class L>
  PARAMINIT_FN typename L::F32 value(const Constants<float>& c, typename L::U32 w) {
    const typename L::U32 n = L::flip_bits(w, static_cast<uint32_t>(c.flip));
    const typename L::F32 y = L::fma(L::from_uint32(n), L::splat(c.slope), L::splat(c.lower));
    const typename L::F32 s = L::sqrt(L::add(minus_two_log<L>(y), L::splat(c.log_tail)));
    const typename L::F32 z = polynomial<L>(L::sub(s, L::splat(c.middle)), c.tail);
    return clamp<L>(L::fma(z, L::splat(c.std), L::splat(c.shift)), c);
  }
};

struct TruncTwoSidedD : Elementwise<TruncTwoSidedD, 5> {
  using Real = double;
  template <class L>
  PARAMINIT_FN typename L::F64 value(const Constants<double>& c, typename L::U64 x) {
    const typename L::F64 end = L::select_sign64(x, L::splat(c.upper), L::splat(c.lower));
    const typename L::F64 m = L::add(L::from_high53(L::fold63(x)), L::splat(0.5));
    const typename L::F64 t = L::fma(m, L::splat(c.slope), end);
    const typename L::F64 q = L::sub(L::splat(0.5), t);
    typename L::F64 z = quantile_central64<L>(q);
    const typename L::M64 far = L::greater(q, L::splat(kCentralHalfWidth));
    if (L::any(far)) {
      z = L::select(far, quantile_tail64<L>(L::sqrt(minus_two_log<L>(t))), z);
    }
    // If bit 63 is set, p is in its upper half. Flip the sign if it is clear.
    z = L::flip_sign64(z, L::flip_bits64(x, 0x8000000000000000u));
    return clamp<L>(L::fma(z, L::splat(c.std), L::splat(c.shift)), c);
  }
};

struct TruncOneSidedD : Elementwise<TruncOneSidedD, 5> {
  using Real = double;
  template <class L>
  PARAMINIT_FN typename L::F64 value(const Constants<double>& c, typename L::U64 x) {
    const typename L::F64 m = L::add(L::from_high53(L::flip_bits64(x, c.flip)), L::splat(0.5));
    const typename L::F64 y = L::fma(m, L::splat(c.slope), L::splat(c.lower));
    const typename L::F64 s = L::sqrt(L::add(minus_two_log<L>(y), L::splat(c.log_tail)));
    const typename L::F64 z = quantile_tail64<L>(s);
    return clamp<L>(L::fma(z, L::splat(c.std), L::splat(c.shift)), c);
  }
};

// Returns the words themselves, for selection by comparison.
struct Words {
  using Real = float;
  template <class L>
  PARAMINIT_FN void pair(const Constants<float>&, typename L::U32 even, typename L::U32 odd,
                         typename L::U32& x, typename L::U32& y) {
    x = even;
    y = odd;
  }
};

}  // namespace paraminit::PARAMINIT_ISA
