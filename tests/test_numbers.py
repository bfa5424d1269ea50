"""The values are within their error bounds of the exact ones, for words spread over all 2^32 (2^64)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import special

from paraminit_ext import _C, Key, init

Array = npt.NDArray[np.float64]

# The stride is coprime to 2^32, so that low and high bits of the words vary. EDGES adds the words near both
# ends, the quarters and the middle, where the transforms have their edges.
STRIDE = 1021
EDGES = np.concatenate(
    [np.arange(middle - 3000, middle + 3000) for middle in (3000, 2**30, 2**31, 3 * 2**30, 2**32 - 3000)]
)
WORDS = np.concatenate([np.arange(0, 2**32, STRIDE), EDGES]).astype(np.uint32)


def apply(name: str, parameters: list[float], words: npt.NDArray[np.uint32], dtype: torch.dtype) -> Array:
    """Return the distribution's values for these words, four per group, as doubles."""
    padded = np.zeros(-(-words.size // 4) * 4, np.uint32)
    padded[: words.size] = words
    tensor = torch.from_numpy(padded.view(np.int32)).reshape(-1, 4)
    values: Array = _C.apply_distribution(name, parameters, tensor, dtype).double().numpy()
    return values


def pairs(radius: npt.ArrayLike, angle: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Return words in pairs: a radius word, then an angle word."""
    return np.stack(np.broadcast_arrays(radius, angle), axis=-1).astype(np.uint32).ravel()


def ulp32(exact: Array) -> Array:
    """Return the float32 ulp in the binade of the exact value."""
    ulp: Array = np.exp2(np.floor(np.log2(np.abs(exact))) - 23)
    return ulp


def unit_radius_word() -> int:
    """Return a word with a radius of exactly 1; its uniform is close to exp(-1/2)."""
    near = np.arange(-2000, 2000) + int(math.exp(-0.5) * 2**32)
    z = apply("normal_", [0.0, 1.0], pairs(near, 0), torch.float32)[::2]
    return int(near[np.flatnonzero(z == 1.0)[0]])


def test_the_radius_is_within_2_ulp(cpu_capability: str) -> None:
    # The cosine of angle word 0 is exactly 1, so the even values are the radii.
    got = apply("normal_", [0.0, 1.0], pairs(WORDS, 0), torch.float32)[::2][: WORDS.size]
    w = WORDS.astype(np.float64)
    logarithm = np.where(w < 2**31, np.log((w + 0.5) * 2.0**-32), np.log1p(-(2.0**32 - 0.5 - w) * 2.0**-32))
    exact = np.sqrt(-2.0 * logarithm)
    assert (np.abs(got - exact) / ulp32(exact)).max() <= 2.0
    assert got.max() < 6.77


def test_sine_and_cosine_are_within_2_to_the_minus_23_and_never_zero(cpu_capability: str) -> None:
    got = apply("normal_", [0.0, 1.0], pairs(unit_radius_word(), WORDS), torch.float32)[: 2 * WORDS.size]
    # Reduce 2 pi (w + 1/2) 2^-32 exactly to [-pi/4, pi/4), so that NumPy computes small angles.
    eighth = (2 * WORDS.astype(np.int64) + 1 + 2**30) % 2**31 - 2**30
    quarter = (2 * WORDS.astype(np.int64) + 1 + 2**30) // 2**31 % 4
    s, c = np.sin(eighth * (math.pi * 2.0**-32)), np.cos(eighth * (math.pi * 2.0**-32))
    cosine = np.choose(quarter, [c, -s, -c, s])
    sine = np.choose(quarter, [s, c, -s, -c])
    assert np.abs(got[::2] - cosine).max() <= 2.0**-23
    assert np.abs(got[1::2] - sine).max() <= 2.0**-23
    assert (got != 0).all()


def test_an_error_of_a_few_units_would_be_seen() -> None:
    w = WORDS[:100_000]
    got = apply("normal_", [0.0, 1.0], pairs(w, 0), torch.float32)[::2][: w.size]
    exact = np.sqrt(-2.0 * np.log((w.astype(np.float64) + 0.5) * 2.0**-32))
    assert (np.abs(got * (1 + 2.0**-21) - exact) / ulp32(exact)).max() > 2.0


INF = math.inf
# Bounds (a, b): NEAR has intervals around or near 0, TAILS has intervals in one tail.
NEAR = [(-2.0, 2.0), (-2.125, 2.125), (-2.12, -0.2), (0.1, 0.5), (1.49, 2.12), (1.0, 1.01), (-3.0, 3.0),
        (-6.7, 6.7), (-INF, 0.0), (0.0, INF), (-0.5, 3.0), (1.49, INF), (-INF, -1.49), (-8, 2.2)]  # fmt: skip
TAILS = [(1.5, INF), (1.5, 2.2), (2.0, 2.5), (3.0, 4.0), (3.0, 3.001), (-INF, -5.0), (-9.0, -5.0),
         (13.0, INF), (36.9, INF), (-37.0, -36.9)]  # fmt: skip


def quantile(p: Array, q: Array, a: float, b: float) -> Array:
    """Return the p-quantile, q = 1 - p, of a standard normal truncated to [a, b], from the smaller tail."""
    if a > 0:
        z: Array = -quantile(q, p, -b, -a)
        return z
    # log(Phi(a) + p (Phi(b) - Phi(a))), computed relative to Phi(b) so that it does not underflow.
    low, high = special.log_ndtr(a), special.log_ndtr(b)
    z = special.ndtri_exp(high + np.log(np.exp(low - high) * q + p))
    if b > 0:
        above = special.ndtr(-b) + q * (special.ndtr(b) - special.ndtr(a))
        z = np.where(above < 0.5, -special.ndtri(above), z)
    return z


def uniform_of(w: npt.NDArray[np.uint32]) -> tuple[Array, Array]:
    p = ((w ^ np.uint32(1 << 31)).astype(np.float64) + 0.5) * 2.0**-32
    return p, (((~w) ^ np.uint32(1 << 31)).astype(np.float64) + 0.5) * 2.0**-32


@pytest.mark.parametrize(("a", "b"), NEAR)
def test_a_truncated_normal_near_0_is_within_2_to_the_minus_19_and_a_half(a: float, b: float) -> None:
    got = apply("trunc_normal_", [0.0, 1.0, a, b], WORDS, torch.float32)[: WORDS.size]
    exact = quantile(*uniform_of(WORDS), float(np.float32(a)), float(np.float32(b)))
    assert np.abs(got - exact).max() <= 2.0**-19.5
    assert np.float32(a) <= got.min() <= got.max() <= np.float32(b)


@pytest.mark.parametrize(("a", "b"), TAILS)
def test_a_truncated_normal_in_one_tail_is_within_8_ulp(a: float, b: float) -> None:
    got = apply("trunc_normal_", [0.0, 1.0, a, b], WORDS, torch.float32)[: WORDS.size]
    exact = quantile(*uniform_of(WORDS), float(np.float32(a)), float(np.float32(b)))
    assert (np.abs(got - exact) / ulp32(exact)).max() <= 8.0


@pytest.mark.parametrize(("a", "b"), [*NEAR, *TAILS])
def test_a_float64_truncated_normal_is_within_2_to_the_minus_45(a: float, b: float) -> None:
    w = WORDS[::16][: WORDS[::16].size // 4 * 4]
    got = apply("trunc_normal_", [0.0, 1.0, a, b], w, torch.float64)
    x = w[::2].astype(np.uint64) << np.uint64(32) | w[1::2].astype(np.uint64)
    p = ((x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    q = ((~x >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    exact = quantile(p, q, a, b)
    assert (np.abs(got - exact) / (1 + np.abs(exact))).max() <= 2.0**-45
    assert a <= got.min() <= got.max() <= b


def test_a_float64_normal_is_within_a_few_ulp(cpu_capability: str) -> None:
    values = init.normal_(torch.empty(200_000, dtype=torch.float64), generator=Key(5)).numpy()
    words = init_words(Key(5), 400_000)
    x = words[::2] << np.uint64(32) | words[1::2]
    m0, m1 = (x[::2] >> np.uint64(11)), (x[1::2] >> np.uint64(11))
    below = m0.astype(np.float64) + 0.5
    above = ((np.uint64(2**53 - 1) - m0).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.where(m0 < 2**52, np.log(below * 2.0**-53), np.log1p(-above)))
    turn = (m1.astype(np.float64) + 0.5) * 2.0**-52
    exact = np.stack([radius * np.cos(math.pi * turn), radius * np.sin(math.pi * turn)], -1).ravel()
    # NumPy rounds pi * turn: by up to 2^-51 for an angle of 2 pi, times a radius of at most 8.7.
    assert np.abs(values - exact).max() <= 8.7 * 2.0**-50


def init_words(key: Key, count: int) -> npt.NDArray[np.uint64]:
    words = torch.empty(count, dtype=torch.int64)
    torch.ops.paraminit_ext.words_.default(words, key.seed, key.offset, (), ())
    return words.numpy().astype(np.uint64)


@pytest.mark.parametrize("x", [0.0, 0.1, 1.0, 2.0, 2.49, 2.5, 2.51, 5.0, 8.0, 20.0, 37.0])
def test_the_tail_of_the_normal_law_is_precise_far_out(x: float) -> None:
    # Below 2.5 the tail is 1/2 minus the central mass, each rounded to 2^-54. Above, SciPy's erfc is accurate
    # to a few ulp, and both sides lose up to x^2/2 ulp in the exponential.
    if x < 2.5:
        assert abs(_C.upper_tail(x) - special.ndtr(-x)) <= 2.0**-52
    else:
        assert _C.upper_tail(x) == pytest.approx(special.ndtr(-x), rel=(8 + x * x) * 2.0**-52, abs=0)
    assert _C.minus_two_log_upper_tail(x) == pytest.approx(-2.0 * special.log_ndtr(-x), rel=2.0**-49, abs=0)
