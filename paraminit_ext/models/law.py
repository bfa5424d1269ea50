"""The law of a fill: the distribution that a call of :mod:`paraminit_ext.init` requests, as numbers."""

from __future__ import annotations

import math
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
            mass = _normal_cdf((high - mean) / std) - _normal_cdf((low - mean) / std)
            return _normal_pdf((x - mean) / std) / std / mass
        if self.fill == "sparse_":
            std, kept = self.parameters
            return kept * _normal_pdf(x / std) / std
        # A normal density, exact for normal_. An element of a Haar matrix is approximately normal.
        return _normal_pdf((x - self.mean) / self.std) / self.std


def _normal_pdf(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


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


def _truncated(name: str, parameters: tuple[float, ...]) -> Law | None:
    """Return the law of a truncated normal, from its moments.

    Source: Johnson, Kotz and Balakrishnan (1994), section 10.1.
    """
    mean, std, low, high = parameters
    a, b = (low - mean) / std, (high - mean) / std
    mass = _normal_cdf(b) - _normal_cdf(a)
    if low == high:
        return Law(name, "constant_", low, 0.0, low, high, (low,))
    # Far out in a tail, the difference of the distribution functions is only rounding error.
    if mass < 1e-9:
        return None
    at_a, at_b = _normal_pdf(a), _normal_pdf(b)
    shift = (at_a - at_b) / mass
    a_part = a * at_a if math.isfinite(a) else 0.0
    b_part = b * at_b if math.isfinite(b) else 0.0
    variance = 1 + (a_part - b_part) / mass - shift**2
    return Law(name, "trunc_normal_", mean + std * shift, std * math.sqrt(variance), low, high, parameters)
