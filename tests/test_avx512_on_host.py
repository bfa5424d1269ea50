"""The AVX-512 lane on processors without AVX-512, compared bit for bit with the scalar lane.

The tests compile csrc/cpu/fill_avx512.cpp and its includes, without its pragma and with
tests/avx512_on_host/stand_in.h in place of <immintrin.h>. They do not test the instructions that a compiler
emits for the real intrinsics. Every other test does, on a processor that has AVX-512.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # tools are not installed
pytest.importorskip("typer", reason="needs requirements/bench.txt")

from tools.driver import SOURCES, checksums, disagreements  # noqa: E402

CXX = os.environ.get("CXX", "c++").split()
FLAGS = ["-O0", "-ffp-contract=off", "-std=c++20", "-w", "-pthread"]
LANE = "csrc/cpu/fill_avx512.cpp"
REFERENCE = "csrc/cpu/fill_baseline.cpp"
BUILT = [source for source in SOURCES if source != "csrc/cpu/fill_avx2.cpp"]

pytestmark = pytest.mark.skipif(shutil.which(CXX[0]) is None, reason="needs a C++ compiler")


def prepare(folder: Path) -> None:
    """Copy the sources of the driver, and change the AVX-512 lane so that it runs on any processor."""
    shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("cuda"))
    shutil.copytree(ROOT / "tools/driver", folder / "tools/driver")
    shutil.copytree(ROOT / "tests/avx512_on_host", folder / "avx512")
    (folder / "avx512/immintrin.h").write_text('#include "stand_in.h"\n')
    rewrite(folder / LANE, r"#if defined\(__clang__\)\n#pragma clang attribute push.*?#endif\n", "")
    rewrite(folder / LANE, r"#if defined\(__clang__\)\n#pragma clang attribute pop\n#endif\n", "")
    rewrite(folder / LANE, r"#if defined\(__x86_64__\)", "#if 1")
    # Without forced inlining, compilation takes seconds instead of a minute.
    for source in (LANE, REFERENCE):
        rewrite(folder / source, r" __attribute__\(\(always_inline\)\)", "")
    row = '{"avx512", [] { return true; }, avx512::fill_kernels, avx512::column_kernels},'
    table = r'#if [^\n]*\s+\{"avx512",.*?#endif\s+(?=\{"baseline")'
    rewrite(folder / "csrc/cpu/capability.cpp", table, row)


def rewrite(path: Path, pattern: str, by: str) -> None:
    text, count = re.subn(pattern, by, path.read_text(), flags=re.DOTALL)
    assert count == 1, f"{count} of {pattern} in {path.name}"
    path.write_text(text)


def compile_all(folder: Path, sources: Sequence[str]) -> list[Path]:
    """Compile the sources in parallel and return their object files."""

    def compiled(source: str) -> Path:
        stand_in = ["-Iavx512"] if source == LANE else []
        out = object_of(folder, source)
        subprocess.run([*CXX, *FLAGS, *stand_in, "-c", source, "-o", out], cwd=folder, check=True)
        return out

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, sources))


def object_of(folder: Path, source: str) -> Path:
    return folder / f"{Path(source).stem}.o"


def run_driver(folder: Path, objects: Sequence[Path], isa: str) -> subprocess.CompletedProcess[str]:
    subprocess.run([*CXX, "-pthread", *objects, "-o", "program"], cwd=folder, check=True)
    command: list[str | Path] = [folder / "program", "--small", "--isa", isa]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("avx512_on_host")
    prepare(folder)
    compile_all(folder, BUILT)
    return folder


@pytest.fixture(scope="module")
def scalar(built: Path) -> str:
    """Return the output of the driver for the scalar lane."""
    return run_driver(built, [object_of(built, source) for source in BUILT], "baseline").stdout


def test_every_fill_has_the_bits_of_the_scalar_lane(built: Path, scalar: str) -> None:
    printed = run_driver(built, [object_of(built, source) for source in BUILT], "avx512").stdout
    assert len(checksums(printed)) > 300
    assert checksums(printed).keys() == checksums(scalar).keys()
    assert disagreements(printed, scalar) == []


# The file, the text to replace, the fault to plant, and the case that must notice it.
FAULTS = [
    pytest.param(
        "csrc/cpu/fill_kernel.h",
        "static_cast<uint32_t>(counter) <= -groups",
        "true",
        "normal, dense;fp32",
        id="a block crosses the wrap of the counter's low word",
    ),
    pytest.param(
        "csrc/cpu/lane_avx512.h",
        "0x82);",
        "0x28);",
        "trunc_normal_wide, dense;fp32",
        id="fold31 is another function",
    ),
    pytest.param(
        "csrc/cpu/lane_avx512.h",
        "_mm512_add_epi32(b, _mm512_set1_epi32(0x7FFF));",
        "_mm512_add_epi32(b, _mm512_set1_epi32(0x8000));",
        "sparse 20x300 in 2;bf16",
        id="a tie is rounded away from zero",
    ),
    pytest.param(
        "csrc/cpu/lane_avx512.h",
        "return _mm512_mask_min_epu32(least, _mm512_cmple_epu32_mask(a, b), least, w);",
        "return _mm512_mask_min_epu32(least, _mm512_cmple_epu32_mask(b, a), least, w);",
        "sparse 20x300 in 1;fp32",
        id="a minimum is taken for the opposite condition",
    ),
    pytest.param(
        "csrc/cpu/fill_kernel.h",
        "reinterpret_cast<uintptr_t>(out) % 64 == 0",
        "reinterpret_cast<uintptr_t>(out) % 32 == 0",
        "a misaligned non-temporal store",
        id="a non-temporal store is misaligned",
    ),
]


@pytest.mark.parametrize(("file", "right", "wrong", "case"), FAULTS)
def test_a_planted_fault_is_noticed(
    file: str, right: str, wrong: str, case: str, built: Path, scalar: str, tmp_path: Path
) -> None:
    prepare(tmp_path)
    rewrite(tmp_path / file, re.escape(right), wrong)
    others = [object_of(built, other) for other in BUILT if other != LANE]
    printed = run_driver(tmp_path, [*compile_all(tmp_path, [LANE]), *others], "avx512")
    if printed.returncode != 0:
        assert printed.stderr.strip() == case
    else:
        assert case in disagreements(printed.stdout, scalar)
