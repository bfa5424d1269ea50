"""A sweep, judged: the package's own binary makes the values, judge.cpp holds them to the exact ones."""

from __future__ import annotations

import ctypes
import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import paraminit_ext
from benchmarks.compiler import ToolError, compiler, cxx_flags, output
from prove.claims import ProofError
from prove.sweeps import ALL, COSINE, RADIUS, SINE, Stream, Sweep, values

ROOT = Path(__file__).resolve().parents[1]
# Values of one block, and how many on either side of them the law's part of a block has to know.
BLOCK = 1 << 22
MARGIN = 1 << 20
PART = 1 << 16

Floats = npt.NDArray[np.float32]


class Tally(ctypes.Structure):
    """What judge.cpp finds in a block."""

    _fields_ = (
        ("worst", ctypes.c_double),
        ("worst_ulp", ctypes.c_double),
        ("worst_at", ctypes.c_uint64),
        ("worst_ulp_at", ctypes.c_uint64),
        ("worst_value", ctypes.c_double),
        ("worst_ulp_value", ctypes.c_double),
        ("least", ctypes.c_double),
        ("greatest", ctypes.c_double),
        ("moments", ctypes.c_double * 8),
        ("distance", ctypes.c_double),
    )


@dataclass(frozen=True)
class Judge:
    """judge.cpp, compiled."""

    library: ctypes.CDLL

    @staticmethod
    def build() -> Judge:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "judge.so"
            source = ROOT / "prove" / "judge.cpp"
            try:
                output([*compiler(), *cxx_flags(ROOT), "-shared", "-fPIC", source, "-o", out])
            except ToolError as error:
                raise ProofError(f"expected judge.cpp to compile, got {error}") from None
            library = ctypes.CDLL(str(out))
        i32, i64, u64 = ctypes.c_int, ctypes.c_int64, ctypes.c_uint64
        pointer, real, real32 = ctypes.c_void_p, ctypes.c_double, ctypes.c_float
        library.judge.restype = None
        library.judge.argtypes = [
            i32, real, real, pointer, i64, i64, i64, i64, u64, i32, u64, u64, ctypes.POINTER(Tally),
        ]  # fmt: skip
        library.checksum.restype = u64
        library.checksum.argtypes = [pointer, i64, i64, u64]
        library.count_values.restype = None
        library.count_values.argtypes = [pointer, i64, i64, pointer]
        library.count_beyond.restype = u64
        library.count_beyond.argtypes = [pointer, i64, i64, pointer, real32, real32]
        return Judge(library)


@dataclass
class Found:
    """What is found of one stream in a whole sweep."""

    stream: Stream
    checksums: dict[str, int] = field(default_factory=dict)  # by instruction set
    tallies: list[Tally] = field(default_factory=list)  # by block, of the first instruction set
    least: list[float] = field(default_factory=list)  # by MARGIN of values
    greatest: list[float] = field(default_factory=list)

    @property
    def error(self) -> float:
        """The greatest error, in the limit's unit."""
        unit = self.stream.limit.unit
        return max(float(t.worst_ulp if unit else t.worst) for t in self.tallies)

    @property
    def worst(self) -> tuple[int, float]:
        """The place of the greatest error and the value there."""
        if self.stream.limit.unit:
            top = max(self.tallies, key=lambda t: t.worst_ulp)
            return int(top.worst_ulp_at), float(top.worst_ulp_value)
        top = max(self.tallies, key=lambda t: t.worst)
        return int(top.worst_at), float(top.worst_value)

    @property
    def distance(self) -> float:
        return max(float(t.distance) for t in self.law)

    @property
    def law(self) -> list[Tally]:
        """The blocks of the law; fewer than a block hold all of a short one."""
        first, size = self.stream.law_first, self.stream.law_size
        return self.tallies[first // BLOCK : (first + size) // BLOCK]

    def moment(self, k: int) -> float:
        return math.fsum(t.moments[k - 1] for t in self.law) / self.stream.law_size

    def margin_was_enough(self) -> bool:
        """No value further in front of a block of the law is beyond it, none further behind before it."""
        first, size = self.stream.law_first // MARGIN, self.stream.law_size // MARGIN
        least, greatest = (np.array(x[first : first + size]) for x in (self.least, self.greatest))
        if self.stream.kind in (RADIUS, COSINE, SINE):  # these fall
            least, greatest = -greatest, -least
        before = np.maximum.accumulate(greatest)
        behind = np.minimum.accumulate(least[::-1])[::-1]
        step = BLOCK // MARGIN
        for begin in range(0, size, step):
            if begin > 1 and before[begin - 2] > least[begin : begin + step].min():
                return False
            end = begin + step
            if end + 1 < size and behind[end + 1] <= greatest[begin:end].max():
                return False
        return True


# Changes the values of a block before they are judged: how the tests plant a fault.
Plant = Callable[[Sweep, str, int, Floats], None]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    judge: Judge,
    sweep: Sweep,
    shift: int = 0,
    plant: Plant | None = None,
    each_block: Callable[[Floats, int], None] | None = None,
) -> list[Found]:
    """Sweeps all words, or one in each 2^shift, on every instruction set; judges the first one's values.

    `each_block` is given the first one's values of each block and the first place, on any thread.
    """
    total = ALL >> shift
    found = [Found(stream) for stream in sweep.streams]
    width = 2 if sweep.pair is not None else 1
    capabilities = paraminit_ext.available_cpu_capabilities()

    def block(first: int) -> tuple[list[int], list[Tally], list[npt.NDArray[np.float32]]]:
        judged = capability == capabilities[0]
        before = after = 0
        if (
            judged
            and shift == 0
            and any(s.law_first <= first < s.law_first + s.law_size for s in sweep.streams)
        ):
            before, after = min(MARGIN, first), min(MARGIN, total - first - BLOCK)
        count = min(BLOCK, total)
        begin, end = first - before, first + count + after
        array: Floats = np.empty((end - begin) * width, np.float32)
        for part in range(begin, end, PART):  # so that what is between words and values stays in the cache
            place = (part - begin) * width
            array[place : place + PART * width] = values(sweep, part, PART, shift).numpy().reshape(-1)
        if plant is not None:
            plant(sweep, capability, first - before, array)
        sums, tallies, extremes = [], [], []
        for column, stream in enumerate(sweep.streams):
            start = array.ctypes.data + 4 * (before * width + column)
            sums.append(judge.library.checksum(start, width, count, first))
            if not judged:
                continue
            lowest, law_end = stream.law_first, stream.law_first + stream.law_size
            in_law = shift == 0 and lowest <= first < law_end
            tally = Tally()
            judge.library.judge(
                stream.kind, stream.a, stream.b, start, width,
                min(before, first - lowest) if in_law else 0,
                count,
                min(after, law_end - first - count) if in_law else 0,
                first, shift, lowest, stream.law_size if in_law else 0, tally,
            )  # fmt: skip
            tallies.append(tally)
            own = array[before * width + column :: width][:count]
            parts = own.reshape(-1, min(MARGIN, count))
            extremes.append(np.stack([parts.min(1), parts.max(1)]))
        if judged and each_block is not None:
            each_block(array[before * width :][: count * width], first)
        return sums, tallies, extremes

    was, threads = paraminit_ext.cpu_capability(), torch.get_num_threads()
    torch.set_num_threads(1)  # the threads are those of the pool
    try:
        for capability in capabilities:
            paraminit_ext.set_cpu_capability(capability)
            with ThreadPoolExecutor(cores()) as pool:
                for sums, tallies, extremes in pool.map(block, range(0, total, min(BLOCK, total))):
                    for one, number in zip(found, sums, strict=True):
                        one.checksums[capability] = (one.checksums.get(capability, 0) + number) % (1 << 64)
                    for one, tally, ends in zip(found, tallies, extremes, strict=False):
                        one.tallies.append(tally)
                        one.least += ends[0].tolist()
                        one.greatest += ends[1].tolist()
    finally:
        paraminit_ext.set_cpu_capability(was)
        torch.set_num_threads(threads)
    return found
