"""A slow reference implementation of every fill in plain Python.

It is written independently of the kernels, and the tests require every value of the kernels to match it bit
for bit. Python's floats are binary64, and its operators round once. Operations that binary64 lacks (a float32
result, a fused multiply-add) are computed exactly in fractions and rounded once.

Examples:
    >>> import torch
    >>> from paraminit_ext import Key, init, reference
    >>> key = Key(2024).fold_in("weight")
    >>> torch.equal(reference.normal(key, range(6), torch.float32, 0.0, 0.02),
    ...             init.normal_(torch.empty(6), 0.0, 0.02, generator=key))
    True
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from paraminit_ext.key import Key

# ----------------------------------------------------------------------------------------
# Words: Philox4x32-10 (Salmon et al. 2011)
# ----------------------------------------------------------------------------------------


def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Return four 32-bit words: ten Philox rounds on a counter of four 32-bit words with a key of two.

    Word 0 is the least significant.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        p, q = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (q >> 32) ^ x1 ^ k0, q % 2**32, (p >> 32) ^ x3 ^ k1, p % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x0, x1, x2, x3


@lru_cache(maxsize=1 << 16)
def words(key: Key, group: int) -> tuple[int, int, int, int]:
    """Return the four words of a group. The counter is 64 bits wide and wraps around."""
    counter = (key.offset + group) % 2**64
    return philox4x32_10((counter % 2**32, counter >> 32, 0, 0), (key.seed % 2**32, key.seed >> 32))


def word32(key: Key, index: int) -> int:
    """Return the word of a float32, float16 or bfloat16 element."""
    return words(key, index // 4)[index % 4]


def word64(key: Key, index: int) -> int:
    """Return the word of a float64 element."""
    w, j = words(key, index // 2), index % 2
    return w[2 * j] << 32 | w[2 * j + 1]


def fold_in(key: Key, data: int) -> Key:
    """Return the key that :meth:`Key.fold_in <paraminit_ext.Key.fold_in>` gives for an int."""
    w = words(key, data)
    return Key(w[0] | w[1] << 32, w[2] | w[3] << 32)


# ----------------------------------------------------------------------------------------
# Rounding
# ----------------------------------------------------------------------------------------


def f32(x: float) -> float:
    """Round to the nearest float32, ties to even. Numbers beyond the largest float32 become infinite."""
    return ctypes.c_float(x).value


def _fma64(a: float, b: float, c: float) -> float:
    try:
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        # float() rounds a fraction to the nearest binary64, but a fraction has no signed zero. If the exact
        # sum is 0, the float product and sum do not round and give the correct sign.
        return float(exact) if exact else a * b + c
    except OverflowError:
        return math.copysign(math.inf, a * b)


def _fma32(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    near = float(exact) if exact else a * b + c
    if Fraction(near) != exact and not struct.unpack("<q", struct.pack("<d", near))[0] & 1:
        # Round to odd, so that the binary64 value stays on the exact value's side of a float32 tie.
        near = math.nextafter(near, math.inf if exact > Fraction(near) else -math.inf)
    return f32(near)


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic of a binary format: its rounding and its fused multiply-add.

    For float32, an operation rounds to binary64 first and then to float32. For sums, products, quotients and
    square roots this is correct rounding, because 53 >= 2 * 24 + 2 (Figueroa 1995).
    """

    round: Callable[[float], float]
    fma: Callable[[float, float, float], float]

    def polynomial(self, x: float, coefficients: Sequence[float]) -> float:
        total = coefficients[-1]
        for c in reversed(coefficients[:-1]):
            total = self.fma(total, x, c)
        return total


SINGLE = Arithmetic(f32, _fma32)
DOUBLE = Arithmetic(lambda x: x, _fma64)


# --- the representable values of each dtype ---


def _bfloat16_bits(x: float) -> int:
    (b,) = struct.unpack("<I", struct.pack("<f", x))
    return int((b + 0x7FFF + (b >> 16 & 1)) >> 16)


def _half_bits(x: float) -> int:
    try:
        return int(struct.unpack("<H", struct.pack("<e", x))[0])
    except OverflowError:
        return 0x7C00 if x > 0 else 0xFC00


@dataclass(frozen=True)
class Format:
    """The representable values of a dtype: rounding to bits, decoding from bits, and the number of bits."""

    encode: Callable[[float], int]
    decode: Callable[[int], float]
    size: int

    def nearest(self, x: float) -> float:
        return self.decode(self.encode(x))

    def neighbour(self, x: float, up: bool) -> float:
        bits, sign = self.encode(x), 1 << (self.size - 1)
        if bits % sign == 0:
            return self.decode(1 if up else sign | 1)
        return self.decode(bits + (1 if up == (bits < sign) else -1))

    def smallest_not_below(self, x: float) -> float:
        v = self.nearest(x)
        return v if v >= x else self.neighbour(v, True)

    def largest_not_above(self, x: float) -> float:
        v = self.nearest(x)
        return v if v <= x else self.neighbour(v, False)

    def largest_below(self, x: float) -> float:
        v = self.nearest(x)
        return v if v < x else self.neighbour(v, False)


def _packed(letter: str, integer: str) -> tuple[Callable[[float], int], Callable[[int], float]]:
    return (
        lambda x: int(struct.unpack(integer, struct.pack(letter, x))[0]),
        lambda b: float(struct.unpack(letter, struct.pack(integer, b))[0]),
    )


_single, _double = _packed("<f", "<I"), _packed("<d", "<Q")
FORMATS = {
    torch.float32: Format(lambda x: _single[0](f32(x)), _single[1], 32),
    torch.float64: Format(*_double, 64),
    torch.float16: Format(lambda x: _half_bits(f32(x)), _packed("<e", "<H")[1], 16),
    torch.bfloat16: Format(lambda x: _bfloat16_bits(f32(x)), lambda b: _single[1](b << 16), 16),
}


def _hex(text: str) -> tuple[float, ...]:
    return tuple(map(float.fromhex, text.split()))


# ----------------------------------------------------------------------------------------
# Transforms: minimax polynomials by Horner's rule, with one fused multiply-add for each term
# ----------------------------------------------------------------------------------------

# -2 ln(1 + f) / f on [-1/2, 0].
_LOG32 = _hex("-0x1p+1 0x1.fffecp-1 -0x1.55a384p-1 0x1.f313e4p-2 -0x1.0df6dep-1 -0x1.722976p-2 -0x1.355066p+1"
              " -0x1.a399d8p+1 -0x1.6a0fa8p+1")  # fmt: skip
_LOG64 = _hex("-0x1p+1 0x1.fffffffffff30p-1 -0x1.5555555564030p-1 0x1.fffffff2d9e6ep-2 -0x1.99999cb6c7e58p-2"
              " 0x1.5554e1f961420p-2 -0x1.249d673f8bd48p-2 0x1.fe7d98ed5e5f0p-3 -0x1.da4edca5b105cp-3"
              " 0x1.c424b9f69e6cdp-4 -0x1.acf8c8590df3cp-1 -0x1.c71b7b1837302p+1 -0x1.0a23b47bfab7fp+4"
              " -0x1.c71ba49be8f7bp+5 -0x1.33aed00f612c3p+7 -0x1.3f4b404bbafa8p+8 -0x1.f67e28000ffa6p+8"
              " -0x1.219098c9e5d45p+9 -0x1.cf370ba4b4ffbp+8 -0x1.ccbf4e7b02002p+7"
              " -0x1.b3343953cb7d2p+5")  # fmt: skip
_TWO_LN2_32, _TWO_LN2_64 = _hex("0x1.62e43p+0 0x1.62e42fefa39efp+0")
# cos(pi x / 2) / h - 1 and (sin(pi x / 2) / x - 1) / h as polynomials in h = 1 - x^2.
_COS32 = _hex("-0x1.b7812ap-3 0x1.921fa4p-3 0x1.1d925cp-6 0x1.a2c208p-11 0x1.8f0eb4p-16")
_SIN32 = _hex("0x1.fffff6p-2 0x1.10b28ep-4 0x1.0aad94p-8 0x1.3c18cap-13")
_COS64 = _hex("-0x1.b7812aeef4baep-3 0x1.921fb54442f07p-3 0x1.1d8f9b8790efap-6 0x1.a37b4079a40b0p-11"
              " 0x1.7996a19896a5dp-16 0x1.cbc144e2100a1p-22 0x1.93c7be5f4770fp-28"
              " 0x1.166423e8e85e9p-34")  # fmt: skip
_SIN64 = _hex("0x1.000000000004fp-1 0x1.10b0cd906a26ap-4 0x1.0b0cd90982639p-8 0x1.2c79ae36b36f5p-13"
              " 0x1.b7085e4613cafp-19 0x1.c1e3c7cd49f79p-25 0x1.61a3c25fb3f5bp-31")  # fmt: skip
# Quantile functions of the normal law. The functions below say where each is used.
_INTERIOR = _hex("0x1.40d92ep+0 0x1.4ffeecp-3 0x1.0b4938p-8 -0x1.ab661cp-12 -0x1.dd66a0p-17 0x1.8e221ap-19"
                 " -0x1.d10630p-24")  # fmt: skip
_CENTRAL = _hex("0x1.40d930p+0 0x1.4ffe4ap-3 0x1.0b8152p-8 -0x1.af9946p-12 -0x1.89ce7cp-17 0x1.18e3fap-19"
                " 0x1.25f0e4p-24 -0x1.577406p-26 0x1.3586b4p-30 -0x1.8702e6p-36")  # fmt: skip
_TAIL = _hex("0x1.312224p+2 0x1.01f46cp+0 0x1.0f4e44p-9 -0x1.ab0582p-11 0x1.ac3f54p-13 -0x1.76abc8p-15"
             " 0x1.b15cf4p-18 0x1.1b7f64p-20 -0x1.0bf6b4p-21")  # fmt: skip
_CENTRAL64 = (
    _hex("0x1.b18d91e9eef75p+1 0x1.0a6c9b3cfb013p+7 0x1.ed789397a3f1ap+10 0x1.adf1034b6250bp+13"
         " 0x1.67c8a0a66af1cp+15 0x1.07c9add6f33d1p+16 0x1.0687da27e6469p+15 0x1.3bb5b4838c03bp+11"),
    _hex("0x1p+0 0x1.52ac4cf7bcc4dp+5 0x1.57f697da028b1p+9 0x1.51bc37481abeep+12 0x1.4c5437cb72804p+14"
         " 0x1.3431ca86db513p+15 0x1.c3038c9b4f7d4p+14 0x1.489eca731ac63p+12"),
)  # fmt: skip
_NEAR64 = (
    _hex("0x1.e3a7b68d6f79cp-1 0x1.64f84fe752df0p+1 0x1.760d411b90232p+1 0x1.82f0ddb88cc3ap+0"
         " 0x1.be2525541ce84p-2 0x1.2c5a86a0b4ac3p-4 0x1.cf341fb4410f3p-8 0x1.66852ff326512p-12"
         " 0x1.7f5dac9311177p-18"),
    _hex("0x1p+0 0x1.9cad0b54d7108p+0 0x1.07da0b658bfe9p+0 0x1.5b4aa2bd5dbb0p-2 0x1.00444ec0497a1p-4"
         " 0x1.a8a9a7f41532cp-8 0x1.5b5968ebb6027p-12 0x1.7f59988e63fc3p-18"),
)  # fmt: skip
_FAR64 = (
    _hex("0x1.e7b15a9b9d30ep+2 0x1.068107795faa5p+2 0x1.c9ea1fed0c5bap-1 0x1.a06178a80c7c7p-4"
         " 0x1.a7135ec0e5fc1p-8 0x1.de784d0cb6adfp-13 0x1.1b0ed79c06f11p-18 0x1.2f8e0da66722ap-25"
         " 0x1.a12494a098248p-34"),
    _hex("0x1p+0 0x1.9c6955806f948p-2 0x1.02e9b890c2026p-4 0x1.412379c3dc027p-8 0x1.9cc5103de6851p-13"
         " 0x1.088ab05a9171cp-18 0x1.2909ce2e49dd8p-25 0x1.a1247976cd1fdp-34"),
)  # fmt: skip


def minus_two_log(v: float, wide: bool) -> float:
    """Return -2 ln U. ``v`` is U in (0, 1], or U - 1 if negative, so that it is precise near both 0 and 1."""
    arithmetic = DOUBLE if wide else SINGLE
    f, exponent = (v, 0) if v < 0 else math.frexp(v)
    if v > 0:
        f -= 1.0
    t = arithmetic.round(f * arithmetic.polynomial(f, _LOG64 if wide else _LOG32))
    return arithmetic.fma(exponent, -(_TWO_LN2_64 if wide else _TWO_LN2_32), t)


def _signed(word: int, size: int) -> int:
    return word - (1 << size) if word >> (size - 1) else word


def radius32(w: int) -> float:
    """Return sqrt(-2 ln((w + 1/2) 2^-32))."""
    v = _fma32(f32(_signed(w, 32)), 2.0**-32, 2.0**-33)
    return f32(math.sqrt(minus_two_log(v, False)))


def radius64(x: int) -> float:
    """Return sqrt(-2 ln((m + 1/2) 2^-53)) for the upper 53 bits m of the word."""
    return math.sqrt(minus_two_log((_signed(x, 64) // 2**11 + 0.5) * 2.0**-53, True))


def rotate32(r: float, w: int) -> tuple[float, float]:
    """Return (r cos T, r sin T) for T = 2 pi (w + 1/2) 2^-32.

    T is pi/2 - pi x / 2, plus pi if bit 31 of the word is set. So cos T is sin(pi x / 2) and sin T is
    cos(pi x / 2), up to a sign.
    """
    x = f32(_signed((2 * w + 2**31 + 1) % 2**32, 32)) * -(2.0**-31)
    h = _fma32(-x, x, 1.0)
    if w >> 31:
        r = -r
    cos_x = _fma32(h, SINGLE.polynomial(h, _COS32), h)
    sin_x = _fma32(x, f32(h * SINGLE.polynomial(h, _SIN32)), x)
    return f32(r * sin_x), _fma32(r, cos_x, 2.0**-100)


def rotate64(r: float, word: int) -> tuple[float, float]:
    """Return (r cos T, r sin T) for T = 2 pi (m + 1/2) 2^-53 and the upper 53 bits m; here x is exact."""
    x = -2.0 * ((word >> 11) % 2**52 * 2.0**-52 - 0.5) - 2.0**-52
    h = _fma64(-x, x, 1.0)
    if word >> 63:
        r = -r
    cos_x = _fma64(h, DOUBLE.polynomial(h, _COS64), h)
    sin_x = _fma64(x, h * DOUBLE.polynomial(h, _SIN64), x)
    return r * sin_x, r * cos_x


def _ratio(x: float, fraction: tuple[Sequence[float], Sequence[float]]) -> float:
    return DOUBLE.polynomial(x, fraction[0]) / DOUBLE.polynomial(x, fraction[1])


def quantile_central64(q: float) -> float:
    """Return z with Phi(z) = 1/2 + q for abs(q) <= 0.425, rational in 0.425^2 - q^2 (Wichura 1988)."""
    return q * _ratio(_fma64(-q, q, 0.180625), _CENTRAL64)


def quantile_tail64(s: float) -> float:
    """Return z > 0 with 1 - Phi(z) = exp(-s^2 / 2), for 1.875 <= s <= 39."""
    return _ratio(s - 8.0, _FAR64) if s > 8.0 else _ratio(s - 1.875, _NEAR64)


# ----------------------------------------------------------------------------------------
# The constants of a truncated normal
# ----------------------------------------------------------------------------------------

_LN2_HIGH, _LN2_LOW, _LOG2_E = _hex("0x1.62e42fefa39efp-1 0x1.abc9e3b39803fp-56 0x1.71547652b82fep+0")
_LOG_TWO_PI, _INVERSE_ROOT_TWO_PI = _hex("0x1.d67f1c864beb5p+0 0x1.9884533d43651p-2")


def exp_minus(y: float) -> float:
    """Return exp(-y) for 0 <= y <= 700: a power of two times a Taylor series of degree 15."""
    n = int(y * _LOG2_E + 0.5)
    r = _fma64(n, _LN2_LOW, _fma64(n, _LN2_HIGH, -y))
    total = 1.0
    for k in range(15, 0, -1):
        total = _fma64(total, r / k, 1.0)
    return total * 2.0**-n if n < 1000 else total * 2.0**-1000 * 2.0 ** (1000 - n)


def mills_ratio(x: float) -> float:
    """Return (1 - Phi(x)) / phi(x) for x >= 2.5 by 64 terms of Laplace's continued fraction."""
    total = x
    for k in range(64, 0, -1):
        total = x + k / total
    return 1.0 / total


def upper_tail(x: float) -> float:
    """Return 1 - Phi(x) for x >= 0. Below 2.5, use Marsaglia's series (2004) for the central mass."""
    if x > 37.4:
        return 0.0
    if x >= 2.5:
        return _INVERSE_ROOT_TWO_PI * exp_minus(0.5 * x * x) * mills_ratio(x)
    term = total = x
    for k in range(3, 102, 2):
        term = term * (x * x) / k
        total += term
    return 0.5 - total * (_INVERSE_ROOT_TWO_PI * exp_minus(0.5 * x * x))


def minus_two_log_upper_tail(x: float) -> float:
    """Return -2 ln(1 - Phi(x)) for x >= 0."""
    if x < 2.5:
        return minus_two_log(upper_tail(x), True)
    return x * x + (_LOG_TWO_PI + minus_two_log(mills_ratio(x), True))


def lower_mass(x: float) -> float:
    """Return Phi(x)."""
    return upper_tail(-x) if x <= 0 else 1.0 - upper_tail(x)


# cos(pi (2 j + 1) / 24) for j = 0..5.
_NODES = _hex(
    "0x1.fb9ea92ec689bp-1 0x1.d906bcf328d46p-1 0x1.963268b572492p-1 0x1.37af93f9513eap-1"
    " 0x1.87de2a6aea964p-2 0x1.0b5150f6da2d5p-3"
)


def fit_tail(middle: float, half: float) -> list[float]:
    """Interpolate quantile_tail64 at 12 Chebyshev nodes by a polynomial of degree 11 in s - middle."""
    n = 12
    node = [*_NODES, *(-x for x in reversed(_NODES))]
    value = [quantile_tail64(middle + half * x) for x in node]
    previous, current = [1.0] * n, list(node)
    chebyshev = []
    for k in range(n):
        total = 0.0
        for v, t in zip(value, previous, strict=True):
            total += v * t
        chebyshev.append(total * (1.0 if k == 0 else 2.0) / n)
        following = [2.0 * x * c - p for x, c, p in zip(node, current, previous, strict=True)]
        previous, current = current, following
    # Expand each T_k in powers of (s - middle) / half, by the same recurrence on coefficients.
    t_previous, t_current = [1.0, *[0.0] * (n - 1)], [0.0, 1.0, *[0.0] * (n - 2)]
    tail = [0.0] * n
    for c in chebyshev:
        tail = [total + c * t for total, t in zip(tail, t_previous, strict=True)]
        shifted = [0.0, *t_current[:-1]]
        t_previous, t_current = t_current, [2.0 * s - p for s, p in zip(shifted, t_previous, strict=True)]
    scale = 1.0
    for i in range(n):
        tail[i] *= scale
        scale /= half
    return tail


# ----------------------------------------------------------------------------------------
# Distributions
# ----------------------------------------------------------------------------------------


def _tensor(values: Iterable[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64).to(dtype)


def _working(x: float, dtype: torch.dtype) -> float:
    """Round a parameter to the precision in which values are computed."""
    return x if dtype == torch.float64 else f32(x)


def uniform(key: Key, indices: Iterable[int], dtype: torch.dtype, a: float, b: float) -> Tensor:
    """Return the elements ``indices`` of the uniform fill on [a, b).

    Each value takes two roundings and is then clamped to the half-open interval.
    """
    form, wide = FORMATS[dtype], dtype == torch.float64
    start, end = _working(a, dtype), _working(b, dtype)
    low, high = form.smallest_not_below(start), form.largest_below(end)
    width = _working(end - start, dtype)

    def value(index: int) -> float:
        if a == b or low > high:
            return form.nearest(start)
        u = word64(key, index) % 2**53 * 2.0**-53 if wide else word32(key, index) % 2**24 * 2.0**-24
        x = form.nearest(_working(_working(u * width, dtype) + start, dtype))
        return max(min(x, high), low)

    return _tensor(map(value, indices), dtype)


def _clamped(x: float, lower: float, low: float, upper: float, high: float) -> float:
    """Clamp ``x`` so that after rounding to the dtype it is in [lower, upper].

    ``low`` and ``high`` are the smallest and the largest value of the dtype in [lower, upper]. Rounding is
    monotone, so clamping before it equals clamping after it. If ``low`` or ``high`` is zero but its bound is
    not, clamp to the bound instead, so that values between the two keep their sign. An upper bound of zero
    turns +0 into -0, and a lower bound of zero turns -0 into +0.
    """
    high = high or (upper if upper > 0 else -0.0)
    low = low or (lower if lower < 0 else 0.0)
    x = x if x < high else high
    return x if x > low else low


def _standard_normal(key: Key, index: int, wide: bool) -> float:
    pair = index & ~1
    if wide:
        return rotate64(radius64(word64(key, pair)), word64(key, pair + 1))[index % 2]
    return rotate32(radius32(word32(key, pair)), word32(key, pair + 1))[index % 2]


def normal(key: Key, indices: Iterable[int], dtype: torch.dtype, mean: float, std: float) -> Tensor:
    """Return the elements ``indices`` of the normal fill, by the method of Box and Muller (1958)."""
    return trunc_normal(key, indices, dtype, mean, std, -math.inf, math.inf)


def _two_sided32(w: int, slope: float, lower: float, upper: float) -> float:
    below = w >> 31
    fold = (w if below else ~w) % 2**31
    t = _fma32(f32(fold), slope, lower if below else upper)
    r = minus_two_log(_fma32(-4.0 * t, t, 4.0 * t), False)
    if r > 10.0:
        z = SINGLE.polynomial(f32(f32(math.sqrt(r)) - 5.0), _TAIL)
    else:
        z = f32(_fma32(t, -2.0, 1.0) * SINGLE.polynomial(r, _CENTRAL))
    return -z if below else z


def _two_sided64(x: int, slope: float, lower: float, upper: float) -> float:
    above = x >> 63
    m = ((~x if above else x) % 2**63 >> 11) + 0.5
    t = _fma64(m, slope, upper if above else lower)
    q = 0.5 - t
    z = quantile_tail64(math.sqrt(minus_two_log(t, True))) if q > 0.425 else quantile_central64(q)
    return z if above else -z


def _truncated(alpha: float, beta: float, wide: bool) -> tuple[Callable[[int], float], bool]:
    """Return a function from a word to z, and whether to negate z, for a normal on [alpha, beta]."""
    if alpha >= (1.0 if wide else 1.5) or beta <= -(1.0 if wide else 1.5):
        mirrored = beta < 0
        nearer, farther = (-beta, -alpha) if mirrored else (alpha, beta)
        log_tail = minus_two_log_upper_tail(nearer)
        distance = 1400.0 if farther > 100.0 else minus_two_log_upper_tail(farther) - log_tail
        beyond = 0.0 if distance >= 1400.0 else exp_minus(0.5 * distance)
        within = 1.0 - beyond
        if wide:
            flip = 0 if mirrored else 2**64 - 1
            slope = within * 2.0**-53

            def far64(x: int) -> float:
                y = _fma64(((x ^ flip) >> 11) + 0.5, slope, beyond)
                return quantile_tail64(math.sqrt(minus_two_log(y, True) + log_tail))

            return far64, mirrored
        least = beyond + within * 2.0**-33
        s0, s1 = math.sqrt(log_tail), math.sqrt(log_tail + minus_two_log(least, True))
        middle = f32(0.5 * (s0 + s1))
        tail = [f32(c) for c in fit_tail(middle, max(0.5 * (s1 - s0), 2.0**-5))]
        flip = 2**31 if mirrored else 2**31 - 1
        slope, least, log_tail = f32(within * 2.0**-32), f32(least), f32(log_tail)

        def far32(w: int) -> float:
            y = _fma32(f32(w ^ flip), slope, least)
            s = f32(math.sqrt(f32(minus_two_log(y, False) + log_tail)))
            return SINGLE.polynomial(f32(s - middle), tail)

        return far32, mirrored
    below, above = lower_mass(alpha), lower_mass(-beta)
    within = (1.0 - below) - above
    if wide:
        return lambda x: _two_sided64(x, within * 2.0**-53, below, above), False
    if alpha >= -2.125 and beta <= 2.125:
        slope, lower = f32(within * 2.0**-31), f32((below - above) + within * 2.0**-32)

        def interior(w: int) -> float:
            u = _fma32(f32(_signed(w, 32)), slope, lower)
            r = minus_two_log(_fma32(-u, u, 1.0), False)
            return f32(u * SINGLE.polynomial(r, _INTERIOR))

        return interior, False
    slope, lower = f32(within * 2.0**-32), f32(below + within * 2.0**-33)
    upper = f32(above + within * 2.0**-33)
    return lambda w: _two_sided32(w, slope, lower, upper), False


def trunc_normal(
    key: Key, indices: Iterable[int], dtype: torch.dtype, mean: float, std: float, a: float, b: float
) -> Tensor:
    """Return the elements ``indices`` of the truncated normal fill on [a, b], by inversion."""
    form, wide = FORMATS[dtype], dtype == torch.float64
    arithmetic = DOUBLE if wide else SINGLE
    lower, upper = _working(a, dtype), _working(b, dtype)
    low, high = form.smallest_not_below(lower), form.largest_not_above(upper)
    if a == b or low > high:
        return _tensor((form.nearest(lower) for _ in indices), dtype)
    if _working(std, dtype) == 0:
        return _tensor((form.nearest(_working(mean, dtype)) for _ in indices), dtype)
    alpha, beta = (lower - mean) / std, (upper - mean) / std
    reach = 8.66 if wide else 6.77
    word = word64 if wide else word32
    if alpha < -reach and beta > reach:

        def z_of(index: int) -> float:
            return _standard_normal(key, index, wide)

        mirrored = False
    else:
        quantile, mirrored = _truncated(alpha, beta, wide)

        def z_of(index: int) -> float:
            return quantile(word(key, index))

    std, mean = _working(-std if mirrored else std, dtype), _working(mean, dtype)
    return _tensor(
        (
            form.nearest(_clamped(arithmetic.fma(z_of(index), std, mean), lower, low, upper, high))
            for index in indices
        ),
        dtype,
    )


def sparse_zeros(key: Key, shape: tuple[int, int], sparsity: float) -> Tensor:
    """Return a bool tensor of the global shape that is True where the sparse fill writes zeros."""
    rows, columns = shape
    folded, count = fold_in(key, 1), math.ceil(sparsity * rows)
    zeros = torch.zeros(shape, dtype=torch.bool)
    for column in range(columns):
        order = sorted(range(rows), key=lambda row: (word32(folded, row * columns + column), row))
        zeros[order[:count], column] = True
    return zeros
