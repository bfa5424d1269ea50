"""The sweeps: every 32-bit word through every float32 transform, and the error bound of each.

This module needs only torch, so that a GPU machine can run the sweeps without other packages.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paraminit_ext import _C, STREAM_VERSION

CHECKSUMS = Path(__file__).with_name("checksums.json")

INF = math.inf
ALL = 1 << 32
# The strided sweep takes one word in each 2^10, which makes 2^22 words.
STRIDE_SHIFT = 10
RADIUS, COSINE, SINE, UNIFORM, TRUNCATED = range(5)


def float32(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).item()


@dataclass(frozen=True)
class Limit:
    """The bound of an error: `size` ulp if `unit` is "ulp", and an absolute bound if `unit` is ""."""

    size: float
    unit: str

    def __str__(self) -> str:
        return f"{self.size:g} ulp" if self.unit else f"2^{math.log2(self.size):g}"


@dataclass(frozen=True)
class Stream:
    """One of the values that a transform computes from a word, and the places that cover its law once."""

    name: str
    kind: int
    limit: Limit
    a: float = 0.0
    b: float = 0.0
    law_first: int = 0
    law_size: int = 0


@dataclass(frozen=True)
class Sweep:
    """A fill of `_C.apply_distribution` that takes every word once through one transform.

    `pair` says which word of a Box-Muller pair is swept, "angle" or "radius"; the other word is constant. It
    is None if a value takes a single word.
    """

    fill: str
    parameters: tuple[float, ...]
    streams: tuple[Stream, ...]
    pair: str | None = None

    @property
    def turn(self) -> int:
        """The word of place 0. From there on, modulo 2^32, values increase or decrease with the place."""
        return 1 << 31 if self.fill == "trunc_normal_" else 0

    @property
    def name(self) -> str:
        return ", ".join(stream.name for stream in self.streams)


def normal_sweep(pair: str, *streams: Stream) -> Sweep:
    return Sweep("normal_", (0.0, 1.0), streams, pair)


def uniform_sweep(a: float, b: float, limit: Limit, law: bool = True) -> Sweep:
    low = float32(a)
    width = float32(float32(b) - low)
    stream = Stream(f"uniform on [{a:g}, {b:g})", UNIFORM, limit, low, width, 0, 1 << 24 if law else 0)
    return Sweep("uniform_", (a, b), (stream,))


def truncated_sweep(a: float, b: float, limit: Limit) -> Sweep:
    low, high = float32(a), float32(b)
    stream = Stream(f"truncated normal on [{a:g}, {b:g}]", TRUNCATED, limit, low, high, 0, ALL)
    return Sweep("trunc_normal_", (0.0, 1.0, a, b), (stream,))


NEAR, TAIL = Limit(2.0**-19.5, ""), Limit(8, "ulp")
# The error bounds of docs/stream.md. A uniform has two roundings, each of half an ulp of the greater bound.
SWEEPS = (
    normal_sweep(
        "angle",
        Stream("cosine", COSINE, Limit(2.0**-23, ""), law_first=0, law_size=ALL // 2),
        Stream("sine", SINE, Limit(2.0**-23, ""), law_first=ALL // 4, law_size=ALL // 2),
    ),
    normal_sweep("radius", Stream("radius", RADIUS, Limit(2, "ulp"), law_size=ALL)),
    uniform_sweep(0.0, 1.0, Limit(0, "ulp")),
    uniform_sweep(-0.3, 0.55, Limit(2.0**-24, "")),
    uniform_sweep(1.0, 1.0078125, Limit(2.0**-23, ""), law=False),  # rounding would reach the upper bound
    uniform_sweep(0.0, 1e-44, Limit(2.0**-149, ""), law=False),  # subnormal
    truncated_sweep(-2.0, 2.0, NEAR),  # interior
    truncated_sweep(-3.0, 3.0, NEAR),  # two-sided
    truncated_sweep(-0.5, INF, NEAR),
    truncated_sweep(1.5, INF, TAIL),  # one-sided
    truncated_sweep(-9.0, -5.0, TAIL),
)


@functools.cache
def unit_radius_word() -> int:
    """Return a word whose radius is exactly 1, so that a pair gives the cosine and sine of its angle."""
    near = torch.arange(-2000, 2000) + int(math.exp(-0.5) * ALL)
    pairs = torch.stack([near, torch.zeros_like(near)], -1).int().reshape(-1, 4)
    z = _C.apply_distribution("normal_", [0.0, 1.0], pairs, torch.float32)
    return int(near[(z[::2] == 1.0).nonzero()[0, 0]])


def signed(word: int) -> int:
    """Return the int32 with the bits of the word modulo 2^32."""
    return (word + ALL // 2) % ALL - ALL // 2


def groups(sweep: Sweep, first: int, count: int, shift: int = 0, device: str = "cpu") -> Tensor:
    """Return the words of `count` places (a multiple of 4) as int32, four in each group.

    The places are consecutive and start at `first`. With a shift, they are one in each 2^shift, with varying
    low bits; `place` of accuracy.cpp computes the same ones.
    """
    if shift:
        n = torch.arange(first, first + count, dtype=torch.int64, device=device)
        words = ((n << shift | (n * 619 & ((1 << shift) - 1))) + sweep.turn).to(torch.int32)
    else:
        words = torch.arange(count, dtype=torch.int32, device=device) + signed(first + sweep.turn)
    if sweep.pair is not None:
        pairs = words.new_empty(count, 2)
        # The cosine of angle word 0 is exactly 1.
        swept, other = (1, unit_radius_word()) if sweep.pair == "angle" else (0, 0)
        pairs[:, swept] = words
        pairs[:, 1 - swept] = signed(other)
        words = pairs
    return words.reshape(-1, 4)


def values(sweep: Sweep, first: int, count: int, shift: int = 0, device: str = "cpu") -> Tensor:
    """Return the values of `count` places in order. The shape is (places, values of a place)."""
    words = groups(sweep, first, count, shift, device)
    return _C.apply_distribution(sweep.fill, list(sweep.parameters), words, torch.float32).view(count, -1)


def checksum(block: Tensor, first: int) -> list[int]:
    """Return one checksum for each column of `block`, on any device, equal to `checksum` of accuracy.cpp."""
    n = torch.arange(first, first + len(block), dtype=torch.int64, device=block.device)
    sums = []
    for column in block.view(torch.int32).unbind(1):
        x = n << 32 | (column.long() & 0xFFFFFFFF)
        for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
            x = x * (factor - (1 << 64))
            x = x ^ (x >> 32 & 0xFFFFFFFF)
        sums.append(int(x.sum()) % (1 << 64))
    return sums


def totals(sweep: Sweep, first: int, end: int, part: int, device: str = "cpu") -> list[str]:
    """Return the checksums of the places from `first` to `end` - 1, in parts that fit in memory."""
    sums = [0] * len(sweep.streams)
    for place in range(first, end, part):
        block = values(sweep, place, min(part, end - place), device=device)
        sums = [(a + b) % (1 << 64) for a, b in zip(sums, checksum(block, place), strict=False)]
    return [hexed(total) for total in sums]


def hexed(number: int) -> str:
    return f"{number:016x}"


def read_checksums() -> dict[str, Any]:
    """Return the committed checksums by stream: of all words ("all") and of the stride ("stride")."""
    committed: dict[str, Any] = json.loads(CHECKSUMS.read_text())
    return committed


def renew_checksums(every: dict[str, str], stride: dict[str, str]) -> None:
    """Write missing checksums to the file. Existing ones are replaced only if STREAM_VERSION has changed."""
    committed = read_checksums()
    old = committed["stream_version"] != STREAM_VERSION
    content: dict[str, Any] = {"stream_version": STREAM_VERSION}
    for kind, new in (("all", every), ("stride", stride)):
        kept = {} if old else committed[kind]
        content[kind] = {name: kept.get(name, total) for name, total in new.items()}
    CHECKSUMS.write_text(json.dumps(content, indent=1) + "\n")
