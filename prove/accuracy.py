"""Runs of sweeps: the package's binary computes the values, accuracy.cpp compares them with exact values."""

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
from prove.check_result import ProofError
from prove.sweeps import ALL, COSINE, RADIUS, SINE, Stream, Sweep, values

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 1 << 22  # places of a sweep that are compared at once
MARGIN = 1 << 20  # places before and after a block that the comparison with the law also reads
PART = 1 << 16  # places whose values one call of the binary computes

Floats = npt.NDArray[np.float32]


class Tally(ctypes.Structure):
    """The result of accuracy.cpp for one block."""

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
class Comparator:
    """The compiled accuracy.cpp."""

    library: ctypes.CDLL

    @staticmethod
    def build() -> Comparator:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "comparator.so"
            source = ROOT / "prove" / "accuracy.cpp"
            try:
                output([*compiler(), *cxx_flags(ROOT), "-shared", "-fPIC", source, "-o", out])
            except ToolError as error:
                raise ProofError(f"expected accuracy.cpp to compile, got {error}") from None
            library = ctypes.CDLL(str(out))
        i32, i64, u64 = ctypes.c_int, ctypes.c_int64, ctypes.c_uint64
        pointer, real, real32 = ctypes.c_void_p, ctypes.c_double, ctypes.c_float
        library.compare.restype = None
        library.compare.argtypes = [
            i32, real, real, pointer, i64, i64, i64, i64, u64, i32, u64, u64, ctypes.POINTER(Tally),
        ]  # fmt: skip
        library.checksum.restype = u64
        library.checksum.argtypes = [pointer, i64, i64, u64]
        library.count_values.restype = None
        library.count_values.argtypes = [pointer, i64, i64, pointer]
        library.count_beyond.restype = u64
        library.count_beyond.argtypes = [pointer, i64, i64, pointer, real32, real32]
        return Comparator(library)


@dataclass
class Found:
    """The results of one stream over a whole sweep."""

    stream: Stream
    checksums: dict[str, int] = field(default_factory=dict)  # by instruction set
    tallies: list[Tally] = field(default_factory=list)  # by block, of the first instruction set
    least: list[float] = field(default_factory=list)  # of each MARGIN values
    greatest: list[float] = field(default_factory=list)

    @property
    def error(self) -> float:
        """The greatest error in the unit of the limit."""
        unit = self.stream.limit.unit
        return max(float(t.worst_ulp if unit else t.worst) for t in self.tallies)

    @property
    def worst(self) -> tuple[int, float]:
        """The place of the greatest error, and the value at that place."""
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
        """The tallies of the blocks in the law; `law_first` and `law_size` are multiples of BLOCK."""
        first, size = self.stream.law_first, self.stream.law_size
        return self.tallies[first // BLOCK : (first + size) // BLOCK]

    def moment(self, k: int) -> float:
        return math.fsum(t.moments[k - 1] for t in self.law) / self.stream.law_size

    def margin_was_enough(self) -> bool:
        """Return whether MARGIN values before and after each block of the law suffice.

        They do if all earlier values are at most the least value of the block, and all later values are
        greater than its greatest value.
        """
        first, size = self.stream.law_first // MARGIN, self.stream.law_size // MARGIN
        least, greatest = (np.array(x[first : first + size]) for x in (self.least, self.greatest))
        if self.stream.kind in (RADIUS, COSINE, SINE):  # these decrease with the place
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


# Called with the values of a block before they are compared, so that tests can plant a fault.
Plant = Callable[[Sweep, str, int, Floats], None]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    comparator: Comparator,
    sweep: Sweep,
    shift: int = 0,
    plant: Plant | None = None,
    each_block: Callable[[Floats, int], None] | None = None,
) -> list[Found]:
    """Sweep all words, or one in each 2^shift, on every instruction set; compare the first set's values.

    `each_block` is called, on any thread, with each block of the first set's values and its first place.
    """
    total = ALL >> shift
    results = [Found(stream) for stream in sweep.streams]
    width = 2 if sweep.pair is not None else 1
    capabilities = paraminit_ext.available_cpu_capabilities()

    def block(first: int) -> tuple[list[int], list[Tally], list[npt.NDArray[np.float32]]]:
        compared = capability == capabilities[0]
        before = after = 0
        if (
            compared
            and shift == 0
            and any(s.law_first <= first < s.law_first + s.law_size for s in sweep.streams)
        ):
            before, after = min(MARGIN, first), min(MARGIN, total - first - BLOCK)
        count = min(BLOCK, total)
        begin, end = first - before, first + count + after
        array: Floats = np.empty((end - begin) * width, np.float32)
        for part in range(begin, end, PART):  # small parts, so that intermediate results stay in the cache
            place = (part - begin) * width
            array[place : place + PART * width] = values(sweep, part, PART, shift).numpy().reshape(-1)
        if plant is not None:
            plant(sweep, capability, first - before, array)
        sums, tallies, extremes = [], [], []
        for column, stream in enumerate(sweep.streams):
            start = array.ctypes.data + 4 * (before * width + column)
            sums.append(comparator.library.checksum(start, width, count, first))
            if not compared:
                continue
            lowest, law_end = stream.law_first, stream.law_first + stream.law_size
            in_law = shift == 0 and lowest <= first < law_end
            tally = Tally()
            comparator.library.compare(
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
        if compared and each_block is not None:
            each_block(array[before * width :][: count * width], first)
        return sums, tallies, extremes

    previous, threads = paraminit_ext.cpu_capability(), torch.get_num_threads()
    torch.set_num_threads(1)  # the pool provides the threads
    try:
        for capability in capabilities:
            paraminit_ext.set_cpu_capability(capability)
            with ThreadPoolExecutor(cores()) as pool:
                for sums, tallies, extremes in pool.map(block, range(0, total, min(BLOCK, total))):
                    for result, checksum in zip(results, sums, strict=True):
                        total_sum = result.checksums.get(capability, 0) + checksum
                        result.checksums[capability] = total_sum % (1 << 64)
                    for result, tally, ends in zip(results, tallies, extremes, strict=False):
                        result.tallies.append(tally)
                        result.least += ends[0].tolist()
                        result.greatest += ends[1].tolist()
    finally:
        paraminit_ext.set_cpu_capability(previous)
        torch.set_num_threads(threads)
    return results
