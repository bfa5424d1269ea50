"""Build driver.cpp, which runs every CPU fill and statistic without torch, with any compiler and flags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.compiler import ROOT, cxx_flags, output
from tools.build import compiler

SOURCES = (
    "tools/driver/driver.cpp",
    "csrc/stream/constants.cpp",
    "csrc/cpu/capability.cpp",
    "csrc/cpu/fill.cpp",
    "csrc/cpu/fill_avx2.cpp",
    "csrc/cpu/fill_avx512.cpp",
    "csrc/cpu/fill_baseline.cpp",
    "csrc/cpu/fork.cpp",
    "csrc/cpu/fill_many.cpp",
    "csrc/cpu/quota.cpp",
    "csrc/cpu/sparse.cpp",
    "csrc/cpu/statistics.cpp",
    "csrc/cpu/statistics_avx2.cpp",
    "csrc/cpu/statistics_avx512.cpp",
    "csrc/cpu/statistics_baseline.cpp",
    "csrc/cpu/threads.cpp",
)


def build(folder: Path, cxx: str, flags: Sequence[str]) -> Path:
    """Compile the driver into the folder, with the flags of setup.py and the given ones."""
    adding = compiler(folder, cxx, flags)
    common = cxx_flags(ROOT)

    def compiled(source: str) -> Path:
        out = folder / f"{Path(source).stem}.o"
        output([adding, *common, "-pthread", "-c", source, "-o", out])
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, SOURCES))
    output([adding, "-pthread", *objects, "-o", folder / "driver"])
    return folder / "driver"


def checksums(printed: str) -> dict[str, dict[str, str]]:
    """Return the checksums of each case and element type, by instruction set."""
    found: dict[str, dict[str, str]] = {}
    for line in printed.splitlines():
        isa, case, dtype, checksum = line.split(";")
        found.setdefault(f"{case};{dtype}", {})[isa] = checksum
    return found


def disagreements(*printed: str) -> list[str]:
    """Return the cases with more than one checksum, over all instruction sets and all outputs."""
    sums: dict[str, set[str]] = {}
    for one in printed:
        for case, by_isa in checksums(one).items():
            sums.setdefault(case, set()).update(by_isa.values())
    return [case for case, different in sums.items() if len(different) > 1]
