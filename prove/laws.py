"""The laws that fills must follow, and samples of fills.

A `Law` is an ideal distribution of real numbers. A fill differs from it in two ways, and the checks account
for both. Values from 32-bit words have a distribution function that is off by at most `WORD_ERROR`. A 16-bit
dtype rounds once, and its discrete law is known exactly: the probability of a value is the law's mass between
the midpoints around it.
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

# The greatest error of the distribution function of a fill that is made from 32-bit words.
# Uniform: the grid of 2^24 steps and the rounding of each value, 2^-24 + 2^-24.
# Normal: the error |dz| is at most the sum of 2 ulp of the radius, 2^-23 R from the angle, and half an ulp.
# With R <= |z| + |z'| and E|z'| = 0.8, phi(z) |dz| is at most 2^-23. The rounding of x = mean + std z adds
# half an ulp of x in units of std, which is 2^-23 for the means here.
# Truncated normal: measured (test_a_truncated_normal_has_its_distribution_function_at_every_word). The error
# in one tail, TAIL_ERROR, is greater because the density there is greater.
WORD_ERROR = 2.0**-22
TAIL_ERROR = 2.0**-19

# The greatest error of a value y of such a fill, in standard deviations of the law, divided by 1 + |y|. It is
# greatest for a truncated normal in a tail: 8 ulp, which is 2^-20 z. Those laws here have a standard
# deviation of a third of z.
VALUE_ERROR = 2.0**-17


# ----------------------------------------------------------------------------------------
# Laws
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Moments of standardised values: E y^k for k up to 12 (`power`), E |y|^k for k up to 4 (`absolute`)."""

    power: list[float]
    absolute: list[float]


def moments_of(y: Array, p: Array) -> Moments:
    powers = [np.ones_like(y)]
    for _ in range(12):
        powers.append(powers[-1] * y)
    return Moments([float(power @ p) for power in powers], [float(np.abs(power) @ p) for power in powers[:5]])


@dataclass(frozen=True)
class Law:
    """The uniform law on [a, b), or the normal law truncated to [a, b]."""

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
        # If the interval lies mostly above the mean, use upper tails, so that far tails keep their precision.
        alpha, beta = (self.a - self.mean) / self.std, (self.b - self.mean) / self.std
        z = (x - self.mean) / self.std
        if alpha + beta > 0:
            share = (special.ndtr(-alpha) - special.ndtr(-z)) / (special.ndtr(-alpha) - special.ndtr(-beta))
        else:
            share = (special.ndtr(z) - special.ndtr(alpha)) / (special.ndtr(beta) - special.ndtr(alpha))
        return share

    def quantile(self, p: Array) -> Array:
        """Return quantiles. They are precise enough for planted faults and samples, but not in far tails."""
        if self.family == "uniform":
            x: Array = self.a + p * (self.b - self.a)
            return x
        low, high = special.ndtr((np.array([self.a, self.b]) - self.mean) / self.std)
        z: Array = special.ndtri(low + p * (high - low))
        return np.clip(self.mean + self.std * z, self.a, self.b)

    @cached_property
    def nodes(self) -> tuple[Array, Array]:
        """Nodes and weights that integrate polynomials against the law: Gauss-Legendre on 64 intervals."""
        low, high = self.a, self.b
        if self.family == "normal":
            # The mass beyond 13 standard deviations from the mean, or from the nearer bound, is below 1e-20.
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
        """Return the greatest error of a fill's distribution function.

        It is 0 for float64, whose errors are below what 2^32 values can show.
        """
        if dtype == torch.float64:
            return 0.0
        one_tail = self.family == "normal" and max(self.a - self.mean, self.mean - self.b) > self.std
        return TAIL_ERROR if one_tail else WORD_ERROR

    def tail_error(self, share: float, error: float) -> float:
        """Return the error of the probability of a tail, given the probability `share` and the law's `error`.

        If no bound cuts the normal, the relative error is z |dz|, where |dz| is 2^-22 (1 + |z|) and |z| is at
        most 7, and the granularity of the radius words in the tail, hundreds in the checked tails.
        """
        normal = max(self.a - self.mean, self.mean - self.b) < -6.77 * self.std
        return min(error, share * 2.0**-14) if normal and self.family == "normal" else error

    def standard(self, x: Array) -> Array:
        """Return the standardised values: minus the law's mean, in units of its standard deviation."""
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
    """Return the normal law truncated at two standard deviations, with this variance after truncation."""
    std = math.sqrt(variance) / truncated(0, 1, -2, 2).scale
    return truncated(0.0, std, -2 * std, 2 * std)


# ----------------------------------------------------------------------------------------
# Discrete laws of 16-bit dtypes
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """The values of a 16-bit dtype within the bounds, and the law's mass that rounds to each.

    A value without mass, to double precision, is counted with the next value that has mass. Values beyond the
    first or last one with mass must not occur.
    """

    values: Array
    standard: Array  # the standardised values
    below: Array  # the law's mass below each value's cell, and 1 at the end
    place: npt.NDArray[np.int64]  # the index in `values` of each of the 65,536 patterns, -1 if it has none

    @cached_property
    def probabilities(self) -> Array:
        return np.diff(self.below)

    @cached_property
    def moments(self) -> Moments:
        return moments_of(self.standard, self.probabilities)

    def at(self, u: Array) -> Array:
        """Return the values whose cells contain these quantiles of the law."""
        return self.values[np.searchsorted(self.below[1:-1], u, side="right")]

    def merged(self, least: float) -> tuple[npt.NDArray[np.int64], Array]:
        """Return the starts and probabilities of runs of neighbours with at least the probability `least`."""
        if least not in self._merged:
            starts = merged(self.probabilities, least)
            self._merged[least] = starts, np.add.reduceat(self.probabilities, starts)
        return self._merged[least]

    @cached_property
    def _merged(self) -> dict[float, tuple[npt.NDArray[np.int64], Array]]:
        return {}

    def counts(self, patterns: Counts) -> Counts:
        """Return how often each value occurs, given how often each pattern occurs."""
        outside = int(patterns[self.place < 0].sum())
        if outside:
            raise ValueError(f"expected only values of the law, got {outside} others")
        inside = self.place >= 0
        counts = np.bincount(self.place[inside], weights=patterns[inside], minlength=len(self.values))
        return counts.astype(np.int64)


def merged(probabilities: Array, least: float) -> npt.NDArray[np.int64]:
    """Return the starts of runs of neighbours that each have at least the probability `least`."""
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
    """Return the cells of ascending `values` between `edges`. A NaN in `patterns` has no value."""
    below = law.cdf(edges)
    occurs = np.diff(below) > 0
    values = values[occurs]
    place = np.searchsorted(values, patterns)
    place[~((patterns >= values[0]) & (patterns <= values[-1]))] = -1
    return Cells(values, law.standard(values), np.append(below[:-1][occurs], 1.0), place)


@cache
def _cells(law: Law, dtype: torch.dtype) -> Cells:
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).double().numpy()
    # Results that round to a value outside the bounds are clamped to the nearest value inside.
    low, high = np.float64(np.float32(law.a)), np.float64(np.float32(law.b))
    inside = np.isfinite(patterns) & (patterns >= low)
    inside &= patterns < high if law.family == "uniform" else patterns <= high
    values = np.unique(patterns[inside])
    edges = np.concatenate([[-math.inf], (values[1:] + values[:-1]) / 2, [math.inf]])
    return _cells_between(law, values, edges, np.where(inside, patterns, math.nan))


@cache
def high_halves(law: Law) -> Cells:
    """Return the cells of float32 values by their high 16 bits, so that counts of 2^32 values fit in memory.

    A cell contains the numbers that round to a float32 with these high bits. The float32 whose low 16 bits
    are zero represents the cell. This rounds towards 0, so that 0 and -0 have separate cells.
    """
    v = (np.arange(0x7F80, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    before = np.nextafter(v[1:], np.float32(0)).astype(np.float64)
    edges = np.append((v[1:] + before) / 2, math.inf)
    v = v.astype(np.float64)
    negative = np.append(-np.nextafter(0.0, 1.0), -v[1:])  # -0 comes before 0
    patterns = np.full(65536, math.nan)
    patterns[: len(v)], patterns[0x8000 : 0x8000 + len(v)] = v, negative
    return _cells_between(
        law, np.concatenate([negative[::-1], v]), np.concatenate([-edges[::-1], [0.0], edges]), patterns
    )


# ----------------------------------------------------------------------------------------
# Samples
# ----------------------------------------------------------------------------------------


def patterns(tensor: Tensor) -> npt.NDArray[np.uint16]:
    """Return the bits of a tensor of a 16-bit dtype as unsigned integers."""
    return tensor.contiguous().view(torch.int16).numpy().ravel().view(np.uint16)


def pattern_counts(tensor: Tensor) -> Counts:
    return np.bincount(patterns(tensor), minlength=65536)


@dataclass(frozen=True)
class Histogram:
    """The counts of a law's cells, and the greatest error of the distribution function."""

    law: Law
    cells: Cells
    counts: Counts
    error: float

    @cached_property
    def size(self) -> int:
        return int(self.counts.sum())


class Sample:
    """Values, and the law that they should follow."""

    def __init__(self, tensor: Tensor, law: Law) -> None:
        self.law, self.dtype = law, tensor.dtype
        self.error = law.error(tensor.dtype)
        self.size = tensor.numel()
        self.tensor = tensor

    @property
    def y(self) -> Array:
        """The values standardised by the law."""
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
        """The law's distribution function of the values: uniform on [0, 1] if they follow the law.

        A value of a 16-bit dtype represents a cell of the law. It is spread over its cell by independent
        random numbers (a randomised quantile residual: Dunn and Smyth 1996), so that `u` is exactly uniform.
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
# Fills
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A call, and the documented law of its values: fixed, or a function of fan_out and fan_in."""

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
    # One case for each method of evaluating a truncated normal.
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
    """Return a matrix filled at a key that is derived from the case, the dtype and the shape."""
    case = CASES[name]
    key = Key(0x57A7_157C).fold_in(f"{name}, {dtype}, {rows} x {columns}")
    return Sample(case.fill(torch.empty(rows, columns, dtype=dtype), key), case.law(rows, columns))
