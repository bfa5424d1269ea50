"""What is swept: every 32-bit word through every float32 transform, and the bounds that hold for each.

It needs torch alone, so that a machine with a GPU can sweep there.
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
# A stride of one word in each 2^10: 2^22 of them.
STRIDE_SHIFT = 10
RADIUS, COSINE, SINE, UNIFORM, TRUNCATED = range(5)


def float32(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).item()


@dataclass(frozen=True)
class Limit:
    """The bound of an error: that many units of `unit`, which is "ulp" or "" for an absolute one."""

    size: float
    unit: str

    def __str__(self) -> str:
        return f"{self.size:g} ulp" if self.unit else f"2^{math.log2(self.size):g}"


@dataclass(frozen=True)
class Stream:
    """One of the values that a transform makes of a word, and where in the sweep its law is read off."""

    name: str
    kind: int
    limit: Limit
    a: float = 0.0
    b: float = 0.0
    law_first: int = 0
    law_size: int = 0


@dataclass(frozen=True)
class Sweep:
    """A fill of `_C.apply_distribution` under which every word passes once through one transform.

    `pair` puts the words beside another one in the pairs of Box and Muller: None where words stand alone.
    """

    fill: str
    parameters: tuple[float, ...]
    streams: tuple[Stream, ...]
    pair: str | None = None

    @property
    def turn(self) -> int:
        """The word of place 0: from there on, modulo 2^32, values grow or fall with the place."""
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
# The bounds of docs/stream.md. Of a uniform: half an ulp of the greater bound for either of two roundings.
SWEEPS = (
    normal_sweep(
        "angle",
        Stream("cosine", COSINE, Limit(2.0**-23, ""), law_first=0, law_size=ALL // 2),
        Stream("sine", SINE, Limit(2.0**-23, ""), law_first=ALL // 4, law_size=ALL // 2),
    ),
    normal_sweep("radius", Stream("radius", RADIUS, Limit(2, "ulp"), law_size=ALL)),
    uniform_sweep(0.0, 1.0, Limit(0, "ulp")),
    uniform_sweep(-0.3, 0.55, Limit(2.0**-24, "")),
    uniform_sweep(1.0, 1.0078125, Limit(2.0**-23, ""), law=False),  # bounds that rounding would reach
    uniform_sweep(0.0, 1e-44, Limit(2.0**-149, ""), law=False),  # subnormal
    truncated_sweep(-2.0, 2.0, NEAR),  # interior
    truncated_sweep(-3.0, 3.0, NEAR),  # two-sided
    truncated_sweep(-0.5, INF, NEAR),
    truncated_sweep(1.5, INF, TAIL),  # one-sided
    truncated_sweep(-9.0, -5.0, TAIL),
)


@functools.cache
def unit_radius_word() -> int:
    """A word whose radius is 1 to the last bit, so that a pair gives its cosine and sine."""
    near = torch.arange(-2000, 2000) + int(math.exp(-0.5) * ALL)
    pairs = torch.stack([near, torch.zeros_like(near)], -1).int().reshape(-1, 4)
    z = _C.apply_distribution("normal_", [0.0, 1.0], pairs, torch.float32)
    return int(near[(z[::2] == 1.0).nonzero()[0, 0]])


def signed(word: int) -> int:
    """The int32 of the same bits, modulo 2^32."""
    return (word + ALL // 2) % ALL - ALL // 2


def groups(sweep: Sweep, first: int, count: int, shift: int = 0, device: str = "cpu") -> Tensor:
    """The words of `count` places (a multiple of 4), four a group as int32.

    The places are the `first` and the next, or as many of one in each 2^shift, spread over the low bits:
    judge.cpp has the same.
    """
    if shift:
        n = torch.arange(first, first + count, dtype=torch.int64, device=device)
        words = ((n << shift | (n * 619 & ((1 << shift) - 1))) + sweep.turn).to(torch.int32)
    else:
        words = torch.arange(count, dtype=torch.int32, device=device) + signed(first + sweep.turn)
    if sweep.pair is not None:
        pairs = words.new_empty(count, 2)
        # The cosine of angle word 0 is 1 to the last bit.
        swept, other = (1, unit_radius_word()) if sweep.pair == "angle" else (0, 0)
        pairs[:, swept] = words
        pairs[:, 1 - swept] = signed(other)
        words = pairs
    return words.reshape(-1, 4)


def values(sweep: Sweep, first: int, count: int, shift: int = 0, device: str = "cpu") -> Tensor:
    """What the transform makes of the words of that many places, in their order: (places, values of each)."""
    words = groups(sweep, first, count, shift, device)
    return _C.apply_distribution(sweep.fill, list(sweep.parameters), words, torch.float32).view(count, -1)


def checksum(block: Tensor, first: int) -> list[int]:
    """One sum for each of the values of a place, on any device: what judge.cpp computes, in torch."""
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
    """The checksums of the places from `first` to before `end`, by parts that the device has room for."""
    sums = [0] * len(sweep.streams)
    for place in range(first, end, part):
        block = values(sweep, place, min(part, end - place), device=device)
        sums = [(a + b) % (1 << 64) for a, b in zip(sums, checksum(block, place), strict=False)]
    return [hexed(total) for total in sums]


def hexed(number: int) -> str:
    return f"{number:016x}"


def read_checksums() -> dict[str, Any]:
    """The committed checksums: those of all words and those of the stride, by stream."""
    committed: dict[str, Any] = json.loads(CHECKSUMS.read_text())
    return committed


def renew_checksums(every: dict[str, str], stride: dict[str, str]) -> None:
    """Adds those that are missing; within a version of the stream, what stands is not changed."""
    committed = read_checksums()
    old = committed["stream_version"] != STREAM_VERSION
    content: dict[str, Any] = {"stream_version": STREAM_VERSION}
    for kind, new in (("all", every), ("stride", stride)):
        stands = {} if old else committed[kind]
        content[kind] = {name: stands.get(name, total) for name, total in new.items()}
    CHECKSUMS.write_text(json.dumps(content, indent=1) + "\n")
