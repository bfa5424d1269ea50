"""The law of a fill: which distribution a call of :mod:`paraminit_ext.init` asks for, as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from paraminit_ext.many import DRAWING, resolve_fill

if TYPE_CHECKING:
    from paraminit_ext.models.plan import Entry


@dataclass(frozen=True, slots=True)
class Law:
    """The distribution of the elements of a tensor.

    Args:
        name: of the function that was called
        fill: ``"uniform_"``, ``"normal_"``, ``"trunc_normal_"``, ``"sparse_"``, ``"orthogonal_"`` or
            ``"constant_"``
        mean: of an element
        std: of an element
        low: no element is less
        high: no element is greater
        parameters: those of ``fill``, in their order
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
        """Of an element at x, where the law is continuous there; of ``sparse_`` that beside zero."""
        if self.is_constant or not self.low <= x <= self.high:
            return 0.0
        if self.fill == "uniform_":
            return 1 / (self.high - self.low)
        if self.fill == "trunc_normal_":
            mean, std, low, high = self.parameters
            inside = _normal_cdf((high - mean) / std) - _normal_cdf((low - mean) / std)
            return _normal_pdf((x - mean) / std) / std / inside
        if self.fill == "sparse_":
            std, kept = self.parameters
            return kept * _normal_pdf(x / std) / std
        # An element of a Haar matrix is close to a normal.
        return _normal_pdf((x - self.mean) / self.std) / self.std


def _normal_pdf(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def law_of(
    name: str, arguments: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Law | None:
    """The law of ``init.<name>(tensor, **arguments)`` for a tensor of this shape.

    None where elements follow no law of their own (``eye_``, ``dirac_``, ``delta_orthogonal_``), and where
    there are none.
    """
    if name in ("constant_", "ones_", "zeros_"):
        value = arguments["val"] if name == "constant_" else float(name == "ones_")
        if isinstance(value, complex) or not isinstance(value, int | float):
            return None
        return Law(name, "constant_", float(value), 0.0, float(value), float(value), (float(value),))
    if name not in DRAWING or 0 in shape or dtype.is_complex:
        return None
    found = resolve_fill(torch.empty(shape, dtype=dtype, device="meta"), name, arguments)
    if found is None:
        return None
    fill, numbers = found
    if fill == "uniform_":
        low, high = numbers
        return Law(name, fill, (low + high) / 2, (high - low) / math.sqrt(12), low, high, numbers)
    if fill == "normal_":
        mean, std = numbers
        return Law(name, fill, mean, std, -math.inf, math.inf, numbers)
    if fill == "trunc_normal_":
        return _truncated(name, numbers)
    if fill == "sparse_":
        std, zeros = numbers
        kept = 1 - zeros / shape[0]
        return Law(name, fill, 0.0, std * math.sqrt(kept), -math.inf, math.inf, (std, kept))
    if fill == "orthogonal_":
        (gain,) = numbers
        rows, columns = shape[0], math.prod(shape[1:])
        return Law(name, fill, 0.0, abs(gain) / math.sqrt(max(rows, columns)), -abs(gain), abs(gain), numbers)
    return None


def law_of_fill(entry: Entry) -> Law | None:
    """The law of the fill that an entry of a plan begins with, whatever follows it."""
    step = entry.fill
    return None if step is None else law_of(step.do, step.options, entry.shape, entry.dtype)


def _truncated(name: str, numbers: tuple[float, ...]) -> Law | None:
    """By the moments of a normal between two bounds (Johnson, Kotz and Balakrishnan 1994, section 10.1)."""
    mean, std, low, high = numbers
    a, b = (low - mean) / std, (high - mean) / std
    inside = _normal_cdf(b) - _normal_cdf(a)
    if low == high:
        return Law(name, "constant_", low, 0.0, low, high, (low,))
    # Far out in a tail differences of distribution functions are nothing but rounding.
    if inside < 1e-9:
        return None
    at_a, at_b = _normal_pdf(a), _normal_pdf(b)
    moved = (at_a - at_b) / inside
    a_part = a * at_a if math.isfinite(a) else 0.0
    b_part = b * at_b if math.isfinite(b) else 0.0
    variance = 1 + (a_part - b_part) / inside - moved**2
    return Law(name, "trunc_normal_", mean + std * moved, std * math.sqrt(variance), low, high, numbers)
