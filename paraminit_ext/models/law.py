"""The law of a fill: the distribution that a call of :mod:`paraminit_ext.init` requests, as numbers."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from paraminit_ext.many import DRAWING_FUNCTIONS, resolve_fill

if TYPE_CHECKING:
    from paraminit_ext.models.plan import Entry


@dataclass(frozen=True, slots=True)
class Law:
    """The distribution of the elements of a tensor.

    Args:
        name: the name of the called function
        fill: the kind of distribution: ``"uniform_"``, ``"normal_"``, ``"trunc_normal_"``, ``"sparse_"``,
            ``"orthogonal_"`` or ``"constant_"``
        mean: the mean of an element
        std: the standard deviation of an element
        low: the lower bound of the elements
        high: the upper bound of the elements
        parameters: the parameters of ``fill``, in order
    """

    name: str
    fill: str
    mean: float
    std: float
    low: float
    high: float
    parameters: tuple[float, ...] = ()

    @property
    def is_constant(self) -> bool:
        return self.std == 0

    def __str__(self) -> str:
        if self.is_constant:
            return f"{self.name}: {self.mean:.4g}"
        return f"{self.name}: mean {self.mean:.4g}, std {self.std:.4g}"

    def density(self, x: float) -> float:
        """Return the density at ``x``, without point masses (constants and the zeros of ``sparse_``)."""
        if self.is_constant or not self.low <= x <= self.high:
            return 0.0
        if self.fill == "uniform_":
            return 1 / (self.high - self.low)
        if self.fill == "trunc_normal_":
            mean, std, low, high = self.parameters
            peak, mass, *_ = _truncated_moments((low - mean) / std, (high - mean) / std, (high - low) / std)
            return _relative_density((x - mean) / std, peak) / std / mass
        if self.fill == "sparse_":
            std, kept = self.parameters
            return kept * _normal_pdf(x / std) / std
        # A normal density, exact for normal_. An element of a Haar matrix is approximately normal.
        return _normal_pdf((x - self.mean) / self.std) / self.std


def _normal_pdf(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _relative_density(z: float, peak: float) -> float:
    """Return the normal density at ``z`` divided by that at ``peak``, which can be far out in a tail."""
    return math.exp((peak - z) * (peak + z) / 2)


def law_of(
    name: str, arguments: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Law | None:
    """Return the law of ``init.<name>(tensor, **arguments)`` for a tensor of this shape.

    Return None if the elements have no common law (``eye_``, ``dirac_``, ``delta_orthogonal_``) or if there
    are no elements.
    """
    if name in ("constant_", "ones_", "zeros_"):
        value = arguments["val"] if name == "constant_" else float(name == "ones_")
        if isinstance(value, complex) or not isinstance(value, int | float):
            return None
        return Law(name, "constant_", float(value), 0.0, float(value), float(value), (float(value),))
    if name not in DRAWING_FUNCTIONS or 0 in shape or dtype.is_complex:
        return None
    resolved = resolve_fill(torch.empty(shape, dtype=dtype, device="meta"), name, arguments)
    if resolved is None:
        return None
    fill, parameters = resolved
    if fill == "uniform_":
        low, high = parameters
        return Law(name, fill, (low + high) / 2, (high - low) / math.sqrt(12), low, high, parameters)
    if fill == "normal_":
        mean, std = parameters
        return Law(name, fill, mean, std, -math.inf, math.inf, parameters)
    if fill == "trunc_normal_":
        return _truncated(name, parameters)
    if fill == "sparse_":
        std, zeros = parameters
        kept = 1 - zeros / shape[0]
        return Law(name, fill, 0.0, std * math.sqrt(kept), -math.inf, math.inf, (std, kept))
    if fill == "orthogonal_":
        (gain,) = parameters
        rows, columns = shape[0], math.prod(shape[1:])
        return Law(
            name, fill, 0.0, abs(gain) / math.sqrt(max(rows, columns)), -abs(gain), abs(gain), parameters
        )
    return None


def law_of_fill(entry: Entry) -> Law | None:
    """Return the law of the first fill of a plan's entry, regardless of later steps."""
    step = entry.fill
    return None if step is None else law_of(step.do, step.options, entry.shape, entry.dtype)


def _truncated(name: str, parameters: tuple[float, ...]) -> Law:
    """Return the law of a truncated normal, from its moments."""
    mean, std, low, high = parameters
    if low == high:
        return Law(name, "constant_", low, 0.0, low, high, (low,))
    a, b, width = (low - mean) / std, (high - mean) / std, (high - low) / std
    _, _, shift, variance = _truncated_moments(a, b, width)
    return Law(name, "trunc_normal_", mean + std * shift, std * math.sqrt(variance), low, high, parameters)


# Beyond this exponent, a density is below 2^-60 of the largest one, and its integral below rounding.
_NEGLIGIBLE = 45.0
# The nodes and weights of the Gauss-Legendre rule with 5 nodes, on [-1, 1].
_NODES = (
    (0.0, 128 / 225),
    *(
        (sign * math.sqrt(5 - 2 * math.sqrt(10 / 7)) / 3, (322 + 13 * math.sqrt(70)) / 900)
        for sign in (-1, 1)
    ),
    *(
        (sign * math.sqrt(5 + 2 * math.sqrt(10 / 7)) / 3, (322 - 13 * math.sqrt(70)) / 900)
        for sign in (-1, 1)
    ),
)
_PANELS = 64


@functools.lru_cache(maxsize=1024)
def _truncated_moments(a: float, b: float, width: float) -> tuple[float, float, float, float]:
    """Integrate the density of a standard normal over [a, b], relative to its greatest value there.

    The closed formulas subtract nearly equal numbers if the interval is narrow or far out in a tail. Here,
    all terms of all sums are positive.

    Args:
        a: the lower end
        b: the upper end
        width: b - a, which may be smaller than the rounding of a and b

    Returns:
        The point with the greatest density, the integral, the mean, and the variance.
    """
    if b < 0:
        peak, mass, mean, variance = _truncated_moments(-b, -a, width)
        return -peak, mass, -mean, variance
    # Beyond z with (z^2 - peak^2) / 2 = _NEGLIGIBLE, the density adds nothing.
    peak = max(0.0, a)
    reach = 2 * _NEGLIGIBLE / (math.hypot(peak, math.sqrt(2 * _NEGLIGIBLE)) + peak)
    low = max(a, -reach)
    width = min(b, reach) - low if low < 0 else min(width, reach)
    # On a panel of width h, the error of the rule is h^11 / 2.5e12 times a tenth derivative of the integrand
    # (Davis and Rabinowitz 1984, equation 2.7.12). The reach is at most 9.5, so that h is at most 0.3. Around
    # the centre, the tenth derivatives are below 1e5, and the error is below 3e-13 of the integral. In a
    # tail, the density falls to exp(-45) within the reach, like exp(-c u) with c h = 0.7. Then the error of
    # the integral of u^2 exp(-c u), which is 2 / c^3, is about 45 (c h)^11 / 2.5e12 of it: below 1e-12.
    half = width / (2 * _PANELS)
    offsets = [half * (2 * panel + 1 + node) for panel in range(_PANELS) for node, _ in _NODES]
    # The exponent is (peak^2 - (low + u)^2) / 2, without the difference of large squares.
    exponents = [-u * (low + u / 2) if low >= 0 else -((low + u) ** 2) / 2 for u in offsets]
    factors = [half * factor for _ in range(_PANELS) for _, factor in _NODES]
    weights = [factor * math.exp(exponent) for factor, exponent in zip(factors, exponents, strict=True)]
    mass = math.fsum(weights)
    # Distances from `low`, because the interval may be narrower than the rounding of its ends.
    mean = math.fsum(map(operator.mul, weights, offsets)) / mass
    variance = math.fsum(w * (u - mean) ** 2 for w, u in zip(weights, offsets, strict=True)) / mass
    return peak, mass, low + mean, variance
