"""The guard that counts instructions: figures that it accepts or refuses, and a planted regression."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are not installed
pytest.importorskip("typer", reason="needs requirements/bench.txt")

from benchmarks import compiler  # noqa: E402
from benchmarks.instructions import __main__ as guard  # noqa: E402

KNOWN = guard.Figures("gcc 12.2.0", "-O3", "glibc 2.36", "valgrind-3.19.0", {"a": 10.0, "b": 100.0})


def complaints(known: guard.Figures, counted: guard.Figures) -> dict[str, str]:
    return {case.name: case.wrong for case in guard.compare(known, counted) if case.wrong}


def counted(a: float, compiler: str = "gcc 12.9.1") -> guard.Figures:
    return replace(KNOWN, compiler=compiler, instructions={"a": a, "b": 100.0})


def test_five_percent_are_slack_in_both_directions() -> None:
    assert complaints(KNOWN, counted(10.49)) == {}
    assert complaints(KNOWN, counted(9.51)) == {}
    assert complaints(KNOWN, counted(10.51)) == {"a": "slower by more than 5%"}
    assert complaints(KNOWN, counted(9.49)) == {"a": "faster by more than 5%: --update the figure"}


@pytest.mark.parametrize("compiler", ["gcc 14.2.0", "clang 12.2.0"])
def test_another_compiler_is_held_to_what_is_much_slower_alone(compiler: str) -> None:
    assert complaints(KNOWN, counted(12.4, compiler)) == {}
    assert complaints(KNOWN, counted(5.0, compiler)) == {}
    assert complaints(KNOWN, counted(12.6, compiler)) == {"a": "slower by more than 25%"}


def test_a_case_without_a_figure_and_a_figure_without_a_case_are_refused() -> None:
    other = replace(KNOWN, instructions={"a": 10.0, "c": 1.0})
    assert complaints(KNOWN, other) == {"b": "not counted any more: --update", "c": "no figure: --update"}


def test_figures_survive_their_file(tmp_path: Path) -> None:
    guard.write(tmp_path / "figures.json", KNOWN)
    assert guard.read(tmp_path / "figures.json") == KNOWN


def test_the_committed_figures_are_of_the_flags_that_setup_compiles_with() -> None:
    figures = guard.read(guard.FIGURES)
    assert figures.flags.split() == compiler.cxx_flags(ROOT)
    driver = (ROOT / "benchmarks/instructions/driver.cpp").read_text()
    cases = re.findall(r'^    \{"(\w+)",(?:$| \[\]\(ElementType)', driver, re.MULTILINE)
    expected = {
        f"instructions/{case}[isa={isa},dtype={dtype}]"
        for case in cases
        for isa in ("baseline", "avx2")
        for dtype in ("fp32", "bf16", "fp64")
    }
    assert figures.instructions.keys() == expected


def test_a_compiler_that_is_not_there_is_one_line() -> None:
    with pytest.raises(compiler.ToolError, match="^expected to run no-such-compiler, got"):
        guard.compiler_version(["no-such-compiler"])


def can_count() -> bool:
    if shutil.which("valgrind") is None or shutil.which("c++") is None or not guard.supported():
        return False
    return guard.same_compiler(guard.compiler_version(["c++"]), guard.read(guard.FIGURES).compiler)


@pytest.mark.skipif(
    not can_count(), reason="needs valgrind, and c++ must be the compiler of the committed figures"
)
def test_an_eleventh_round_of_philox_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "benchmarks/instructions").mkdir(parents=True)
    for name in ("setup.py", "benchmarks/instructions/driver.cpp"):
        shutil.copy(ROOT / name, tmp_path / name)
    # One instruction set is enough here and takes half of the time.
    (tmp_path / "csrc/cpu/fill_avx2.cpp").write_text(
        '#include "kernel_table.h"\nparaminit::FillKernels paraminit::avx2::fill_kernels('
        "const FillRequest& request) {\n  return baseline::fill_kernels(request);\n}\n"
    )
    request = tmp_path / "csrc/stream/request.h"
    planted = request.read_text().replace(
        "constexpr int kPhiloxRounds = 10;", "constexpr int kPhiloxRounds = 11;"
    )
    assert planted != request.read_text()
    request.write_text(planted)
    complaints_by_case = complaints(guard.read(guard.FIGURES), guard.measure(tmp_path))
    assert complaints_by_case["instructions/uniform[isa=baseline,dtype=fp32]"] == "slower by more than 5%"
