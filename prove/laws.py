"""The laws that the fills are held to, and samples of them.

A law is the ideal one, of real numbers. A fill differs from it in two ways, and both are accounted for: its
32-bit path by at most `WORD_ERROR` in the distribution function, its 16-bit dtypes by one rounding, whose
discrete law is known exactly: the probability of a value is the law's mass between the midpoints around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import special
from torch import Tensor

from paraminit_ext import Key, Shard, init

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# How far the distribution function of a fill made of 32-bit words may be from its ideal one, anywhere.
# Uniform: the grid of 2^24 steps and the rounding of each, 2^-24 + 2^-24. Normal: |dz| is at most 2 ulp of
# the radius, 2^-23 R of the angle and half an ulp, and phi(z) |dz| with R <= |z| + |z'|, E|z'| = 0.8, at most
# 2^-23; then the rounding of x, which is half an ulp of mean + std z in units of std, 2^-23 for the means
# here. Truncated normal: swept (test_a_truncated_normal_has_its_distribution_function_at_every_word), with
# more of it in one tail, where the density is greater.
WORD_ERROR = 2.0**-22
TAIL_ERROR = 2.0**-19

# How far such a value y may be from its ideal one, in standard deviations of the law, over 1 + |y|: 8 ulp of
# a truncated normal in a tail are the most, 2^-20 z, and those here have a standard deviation of a third of
# z.
VALUE_ERROR = 2.0**-17


# ----------------------------------------------------------------------------------------
# Laws
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Of standardised values: E y^k for k up to 12 and E |y|^k for k up to 4."""

    power: list[float]
    absolute: list[float]


def moments_of(y: Array, p: Array) -> Moments:
    powers = [np.ones_like(y)]
    for _ in range(12):
        powers.append(powers[-1] * y)
    return Moments([float(power @ p) for power in powers], [float(np.abs(power) @ p) for power in powers[:5]])


@dataclass(frozen=True)
class Law:
    """Uniform on [a, b), or normal given that it lies in [a, b]."""

    family: str
    a: float
    b: float
    mean: float = 0.0
    std: float = 1.0

    def cdf(self, x: npt.ArrayLike) -> Array:
        x = np.clip(np.asarray(x, np.float64), self.a, self.b)
        if self.family == "uniform":
            share: Array = (x - self.a) / (self.b - self.a)
            return share
        # From the tail that is the smaller one at the nearer bound, so that far tails keep their precision.
        alpha, beta = (self.a - self.mean) / self.std, (self.b - self.mean) / self.std
        z = (x - self.mean) / self.std
        if alpha + beta > 0:
            share = (special.ndtr(-alpha) - special.ndtr(-z)) / (special.ndtr(-alpha) - special.ndtr(-beta))
        else:
            share = (special.ndtr(z) - special.ndtr(alpha)) / (special.ndtr(beta) - special.ndtr(alpha))
        return share

    def quantile(self, p: Array) -> Array:
        """Good to what a planted fault or a plain sample needs: not in far tails."""
        if self.family == "uniform":
            x: Array = self.a + p * (self.b - self.a)
            return x
        low, high = special.ndtr((np.array([self.a, self.b]) - self.mean) / self.std)
        z: Array = special.ndtri(low + p * (high - low))
        return np.clip(self.mean + self.std * z, self.a, self.b)

    @cached_property
    def nodes(self) -> tuple[Array, Array]:
        """Values and weights that integrate polynomials against the law: Gauss and Legendre, 64 pieces."""
        low, high = self.a, self.b
        if self.family == "normal":
            # What lies beyond 13 standard deviations of the mean, or of the nearer bound, is below 1e-20.
            near = min(max(self.mean, self.a), self.b)
            low, high = max(low, near - 13 * self.std), min(high, near + 13 * self.std)
        points, weights = np.polynomial.legendre.leggauss(32)
        ends = np.linspace(low, high, 65)
        half = np.diff(ends)[:, None] / 2
        x = (ends[:-1, None] + half * (points + 1)).ravel()
        density = np.ones_like(x)
        if self.family == "normal":
            z = (x - self.mean) / self.std
            density = np.exp(-(np.square(z) - np.square(z).min()) / 2)
        mass = (half * weights).ravel() * density
        return x, mass / mass.sum()

    @cached_property
    def centre(self) -> float:
        x, p = self.nodes
        return float(p @ x)

    @cached_property
    def scale(self) -> float:
        x, p = self.nodes
        return float(np.sqrt(p @ np.square(x - self.centre)))

    def error(self, dtype: torch.dtype) -> float:
        """Of a fill's distribution function. The errors of float64 are below what 2^32 values can show."""
        if dtype == torch.float64:
            return 0.0
        one_tail = self.family == "normal" and max(self.a - self.mean, self.mean - self.b) > self.std
        return TAIL_ERROR if one_tail else WORD_ERROR

    def tail_error(self, share: float, error: float) -> float:
        """What `error` is for the values beyond a small share of the law.

        Where nothing cuts it, they are off by z |dz| of their share, |dz| being 2^-22 (1 + |z|) with |z| up
        to 7, and by the radius words that stand so far out, hundreds in what is looked at.
        """
        normal = max(self.a - self.mean, self.mean - self.b) < -6.77 * self.std
        return min(error, share * 2.0**-14) if normal and self.family == "normal" else error

    def standard(self, x: Array) -> Array:
        """The values less the law's mean, in units of its standard deviation."""
        y: Array = (x - self.centre) / self.scale
        return y

    @cached_property
    def moments(self) -> Moments:
        x, p = self.nodes
        return moments_of(self.standard(x), p)

    def cells(self, dtype: torch.dtype) -> Cells:
        return _cells(self, dtype)


def uniform(a: float, b: float) -> Law:
    return Law("uniform", a, b)


def normal(mean: float, std: float) -> Law:
    return Law("normal", -math.inf, math.inf, mean, std)


def truncated(mean: float, std: float, a: float, b: float) -> Law:
    return Law("normal", a, b, mean, std)


def uniform_of(variance: float) -> Law:
    return uniform(-math.sqrt(3 * variance), math.sqrt(3 * variance))


def normal_of(variance: float) -> Law:
    return normal(0.0, math.sqrt(variance))


def truncated_of(variance: float) -> Law:
    """Cut at two of its standard deviations, which are such that the variance after the cut is this one."""
    std = math.sqrt(variance) / truncated(0, 1, -2, 2).scale
    return truncated(0.0, std, -2 * std, 2 * std)


# ----------------------------------------------------------------------------------------
# The discrete laws of 16 bits
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """The values that a 16-bit dtype has within the bounds, and the law's mass that rounds to each.

    Values that have none, to the last bit of the distribution function, go with their neighbours; beyond the
    last that has some, none is expected ever.
    """

    values: Array
    standard: Array  # the same less the law's mean, in its standard deviations
    below: Array  # the law's mass below each value's cell, and 1 at the end
    place: npt.NDArray[np.int64]  # of each of the 65,536 patterns among the values, -1 where it is none

    @cached_property
    def probabilities(self) -> Array:
        return np.diff(self.below)

    @cached_property
    def moments(self) -> Moments:
        return moments_of(self.standard, self.probabilities)

    def at(self, u: Array) -> Array:
        """The values whose cells hold these shares of the law."""
        return self.values[np.searchsorted(self.below[1:-1], u, side="right")]

    def merged(self, least: float) -> tuple[npt.NDArray[np.int64], Array]:
        """Where runs of neighbours begin that have at least this probability each, and what they have."""
        if least not in self._merged:
            starts = merged(self.probabilities, least)
            self._merged[least] = starts, np.add.reduceat(self.probabilities, starts)
        return self._merged[least]

    @cached_property
    def _merged(self) -> dict[float, tuple[npt.NDArray[np.int64], Array]]:
        return {}

    def counts(self, patterns: Counts) -> Counts:
        """How often each value occurs, from how often each pattern does. Another value is an error."""
        outside = int(patterns[self.place < 0].sum())
        if outside:
            raise ValueError(f"{outside} values are none that the law has")
        inside = self.place >= 0
        counts = np.bincount(self.place[inside], weights=patterns[inside], minlength=len(self.values))
        return counts.astype(np.int64)


def merged(probabilities: Array, least: float) -> npt.NDArray[np.int64]:
    """Where runs of neighbours begin that have at least this probability each."""
    starts, mass = [0], 0.0
    for place, p in enumerate(probabilities.tolist()):
        if mass >= least:
            starts.append(place)
            mass = 0.0
        mass += p
    if mass < least and len(starts) > 1:
        starts.pop()
    return np.array(starts)


def _cells_between(law: Law, values: Array, edges: Array, patterns: Array) -> Cells:
    """Cells of ascending values that lie between edges; NaN is a pattern that stands for none."""
    below = law.cdf(edges)
    occurs = np.diff(below) > 0
    values = values[occurs]
    place = np.searchsorted(values, patterns)
    place[~((patterns >= values[0]) & (patterns <= values[-1]))] = -1
    return Cells(values, law.standard(values), np.append(below[:-1][occurs], 1.0), place)


@cache
def _cells(law: Law, dtype: torch.dtype) -> Cells:
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).double().numpy()
    # The clamp after the rounding moves what rounds to a value outside to the nearest one inside.
    low, high = np.float64(np.float32(law.a)), np.float64(np.float32(law.b))
    inside = np.isfinite(patterns) & (patterns >= low)
    inside &= patterns < high if law.family == "uniform" else patterns <= high
    values = np.unique(patterns[inside])
    edges = np.concatenate([[-math.inf], (values[1:] + values[:-1]) / 2, [math.inf]])
    return _cells_between(law, values, edges, np.where(inside, patterns, math.nan))


@cache
def high_halves(law: Law) -> Cells:
    """Of float32 values by their high 16 bits: what a count of 2^32 of them fits in.

    A cell holds what rounds to a float32 whose low 16 bits are dropped, and the float32 without them stands
    for it: towards 0, so that 0 and -0 are two cells.
    """
    v = (np.arange(0x7F80, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    before = np.nextafter(v[1:], np.float32(0)).astype(np.float64)
    edges = np.append((v[1:] + before) / 2, math.inf)
    v = v.astype(np.float64)
    negative = np.append(-np.nextafter(0.0, 1.0), -v[1:])  # the place of -0 is before that of 0
    patterns = np.full(65536, math.nan)
    patterns[: len(v)], patterns[0x8000 : 0x8000 + len(v)] = v, negative
    return _cells_between(
        law, np.concatenate([negative[::-1], v]), np.concatenate([-edges[::-1], [0.0], edges]), patterns
    )


# ----------------------------------------------------------------------------------------
# Samples
# ----------------------------------------------------------------------------------------


def patterns(tensor: Tensor) -> npt.NDArray[np.uint16]:
    """The bits of a tensor of a 16-bit dtype, as unsigned integers."""
    return tensor.contiguous().view(torch.int16).numpy().ravel().view(np.uint16)


def pattern_counts(tensor: Tensor) -> Counts:
    return np.bincount(patterns(tensor), minlength=65536)


@dataclass(frozen=True)
class Histogram:
    """How often each of the cells of a law is met; `error` is that of the distribution function."""

    law: Law
    cells: Cells
    counts: Counts
    error: float

    @cached_property
    def size(self) -> int:
        return int(self.counts.sum())


class Sample:
    """Values that are said to follow a law."""

    def __init__(self, tensor: Tensor, law: Law) -> None:
        self.law, self.dtype = law, tensor.dtype
        self.error = law.error(tensor.dtype)
        self.size = tensor.numel()
        self.tensor = tensor

    @property
    def y(self) -> Array:
        """In standard deviations from the law's mean."""
        return self.law.standard(self.tensor.double().numpy().ravel())

    @cached_property
    def histogram(self) -> Histogram | None:
        """How often each value of a 16-bit dtype occurs; None for a wider one."""
        if self.tensor.element_size() != 2:
            return None
        cells = self.law.cells(self.dtype)
        return Histogram(self.law, cells, cells.counts(pattern_counts(self.tensor)), self.error)

    @property
    def u(self) -> Array:
        """The sample through the law's distribution function: uniform on [0, 1] where the claim holds.

        A value of a 16-bit dtype stands for a cell of the law, so it is spread over its cell by other random
        numbers (a randomised quantile residual: Dunn and Smyth 1996), which makes `u` uniform exactly.
        """
        if self.tensor.element_size() != 2:
            return self.law.cdf(self.tensor.double().numpy().ravel())
        cells = self.law.cells(self.dtype)
        place = cells.place[patterns(self.tensor)]
        u = np.random.default_rng(0xD1CE).random(self.size)
        u *= cells.probabilities[place]
        u += cells.below[place]
        return u

    @cached_property
    def sorted_u(self) -> Array:
        u = self.u
        u.sort()
        return u


# ----------------------------------------------------------------------------------------
# Which fills
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A call, and the law that its documentation promises: one, or one for each fan_out and fan_in."""

    function: str
    arguments: dict[str, Any]
    promised: Law | Callable[[int, int], Law]

    def law(self, rows: int, columns: int) -> Law:
        return self.promised if isinstance(self.promised, Law) else self.promised(rows, columns)

    def fill(self, tensor: Tensor | Shard, key: Key | torch.Generator) -> Tensor:
        filled: Tensor = getattr(init, self.function)(tensor, **self.arguments, generator=key)
        return filled

    @property
    def has_stock(self) -> bool:
        return hasattr(torch.nn.init, self.function)

    def stock(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        filled: Tensor = getattr(torch.nn.init, self.function)(tensor, **self.arguments, generator=generator)
        return filled


CASES: dict[str, Case] = {
    "uniform_": Case("uniform_", {"a": -0.3, "b": 0.55}, uniform(-0.3, 0.55)),
    "normal_": Case("normal_", {"mean": 0.1, "std": 0.02}, normal(0.1, 0.02)),
    # One of each way in which a truncated normal is evaluated.
    "trunc_normal_ at 2 std": Case("trunc_normal_", {}, truncated(0, 1, -2, 2)),
    "trunc_normal_ on both sides": Case(
        "trunc_normal_", {"mean": 0.1, "a": -3.0, "b": 4.0}, truncated(0.1, 1, -3, 4)
    ),
    "trunc_normal_ of a tail": Case(
        "trunc_normal_", {"a": 1.75, "b": math.inf}, truncated(0, 1, 1.75, math.inf)
    ),
    "trunc_normal_ of far bounds": Case("trunc_normal_", {"std": 0.02}, truncated(0, 0.02, -2, 2)),
    "xavier_uniform_": Case("xavier_uniform_", {"gain": 5 / 3}, lambda o, i: uniform_of(50 / 9 / (o + i))),
    "xavier_normal_": Case("xavier_normal_", {}, lambda o, i: normal_of(2 / (o + i))),
    "kaiming_uniform_": Case("kaiming_uniform_", {"a": math.sqrt(5)}, lambda _, i: uniform_of(1 / (3 * i))),
    "kaiming_normal_": Case(
        "kaiming_normal_", {"mode": "fan_out", "nonlinearity": "relu"}, lambda o, _: normal_of(2 / o)
    ),
    "variance_scaling_, normal": Case(
        "variance_scaling_", {"scale": 2.0, "mode": "fan_avg"}, lambda o, i: normal_of(4 / (o + i))
    ),
    "variance_scaling_, uniform": Case(
        "variance_scaling_",
        {"scale": 0.5, "mode": "fan_out", "distribution": "uniform"},
        lambda o, _: uniform_of(0.5 / o),
    ),
    "variance_scaling_, truncated": Case(
        "variance_scaling_", {"distribution": "truncated_normal"}, lambda _, i: truncated_of(1 / i)
    ),
    "lecun_normal_": Case("lecun_normal_", {}, lambda _, i: truncated_of(1 / i)),
    "lecun_uniform_": Case("lecun_uniform_", {}, lambda _, i: uniform_of(1 / i)),
}


def draw(name: str, dtype: torch.dtype, rows: int, columns: int) -> Sample:
    """A matrix filled at a key that belongs to the case, the dtype and the shape."""
    case = CASES[name]
    key = Key(0x57A7_157C).fold_in(f"{name}, {dtype}, {rows} x {columns}")
    return Sample(case.fill(torch.empty(rows, columns, dtype=dtype), key), case.law(rows, columns))
