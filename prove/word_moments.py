"""The laws of values from 2^32 equally likely words: ideal moments, and the tails of the normal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt

from prove.accuracy import Comparator, Floats
from prove.sweeps import COSINE, INF, RADIUS, SINE, UNIFORM, Stream

DIGITS = 50
LEAST_BITS, ONE_BITS = 0x3C800000, 0x3F800000
GRID = tuple(n / 4 for n in range(1, 28))
# The constant that rotate() of csrc/stream/transforms.h adds to a sine.
TINY = {COSINE: 0.0, SINE: 2.0**-100}


def ideal_moment(stream: Stream, k: int) -> Any:
    """Return the k-th moment of the ideal law of a stream, also of a radius or a cosine."""
    mp = mpmath.mp
    if stream.kind == RADIUS:
        return mp.mpf(2) ** (mp.mpf(k) / 2) * mp.gamma(1 + mp.mpf(k) / 2)
    if stream.kind in (COSINE, SINE):
        return mp.binomial(k, k // 2) / mp.mpf(2) ** k if k % 2 == 0 else mp.mpf(0)
    if stream.kind == UNIFORM:
        a, b = mp.mpf(stream.a), mp.mpf(stream.a) + mp.mpf(stream.b)
        return (b ** (k + 1) - a ** (k + 1)) / ((k + 1) * (b - a))
    a, b = mp.mpf(stream.a), mp.mpf(stream.b)
    mass = mp.quad(mp.npdf, [a, min(b, a + 3), min(b, a + 9), b]) if b < INF else mp.erfc(a / mp.sqrt(2)) / 2

    def end(x: Any, power: int) -> Any:
        return x**power * mp.npdf(x) if abs(x) < INF else mp.mpf(0)

    moments = [mp.mpf(1), (end(a, 0) - end(b, 0)) / mass]
    for n in range(2, k + 1):
        moments.append((n - 1) * moments[n - 2] + (end(a, n - 1) - end(b, n - 1)) / mass)
    return moments[k]


def deviation(got: float, ideal: Any) -> float:
    """Return the deviation from the ideal moment: relative, or absolute if the ideal moment is 0."""
    difference = mpmath.mpf(got) - ideal
    return float(difference / ideal) if abs(ideal) > 1e-20 else float(difference)


@dataclass
class NormalLaw:
    """The law of R c over all 2^64 pairs of words: the number of pairs beyond each of GRID, by kind of c."""

    at_least: dict[int, npt.NDArray[np.uint32]] = field(default_factory=dict)
    beyond: dict[int, dict[float, int]] = field(default_factory=dict)

    def count_angles(self, comparator: Comparator, array: Floats) -> None:
        for column, kind in enumerate((COSINE, SINE)):
            counts = self.at_least.setdefault(kind, np.zeros(ONE_BITS - LEAST_BITS + 1, np.uint32))
            start = array.ctypes.data + 4 * column
            comparator.library.count_values(start, 2, array.size // 2, counts.ctypes.data)

    def sum_angles(self) -> None:
        for counts in self.at_least.values():
            # At most 2^31 angles have a positive value, so that the sums fit in 32 bits.
            np.cumsum(counts[::-1], out=counts[::-1], dtype=np.uint32)

    def count_pairs(self, comparator: Comparator, array: Floats) -> dict[tuple[int, float], int]:
        """Return how many pairs of a radius of the block and any angle are beyond each of GRID."""
        start, count = array.ctypes.data, array.size // 2
        return {
            (kind, t): comparator.library.count_beyond(start, 2, count, counts.ctypes.data, t, TINY[kind])
            for kind, counts in self.at_least.items()
            for t in GRID
            if t < array[::2].max()
        }

    def add(self, counted: dict[tuple[int, float], int]) -> None:
        for (kind, t), number in counted.items():
            here = self.beyond.setdefault(kind, dict.fromkeys(GRID, 0))
            here[t] += number

    def share(self, kind: int, t: float) -> float:
        return self.beyond[kind][t] / 2.0**64

    def distance(self, kind: int) -> float:
        return max(abs(self.share(kind, t) - math.erfc(t / math.sqrt(2))) / 2 for t in GRID)
