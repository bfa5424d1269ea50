"""The direction of dependencies, read from the includes of csrc/: who may know whom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
FILES = sorted(
    path.relative_to(CSRC).as_posix()
    for path in CSRC.rglob("*")
    if path.suffix in {".h", ".cpp", ".cu", ".cuh"}
)
KERNELS = [name for name in FILES if name.endswith((".cu", ".cuh"))]
CUDA = [name for name in FILES if name.startswith("cuda/")]

# The only ones that may include torch's headers.
TORCH_AWARE = {
    "read.h",
    "read.cpp",
    "checks.h",
    "checks.cpp",
    "fills.h",
    "fills.cpp",
    "forked.h",
    "forked.cpp",
    "ops.cpp",
    "many.h",
    "many.cpp",
    "staging.h",
    "staging.cpp",
    "python.cpp",
    "generator.h",
    "generator.cpp",
    "overlap.h",
    "overlap.cpp",
    "orthogonal.h",
    "orthogonal.cpp",
    "cpu/units.h",
    *CUDA,
}
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|pybind11|Python\.h)\b")
INTRINSICS = re.compile(r"^(\w+intrin|x86intrin|arm_neon|arm_sve|cpuid)\.h$")
# The headers from integers up to values; each may include only what stands before it.
LAYERS = ["request.h", "philox.h", "transforms.h", "distributions.h"]


def includes(name: str) -> list[str]:
    """What a file includes, as written."""
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', (CSRC / name).read_text(), re.MULTILINE)


def ours(name: str) -> list[str]:
    """The files of csrc/ that a file includes, beside it or from the root."""
    found = []
    for included in includes(name):
        for candidate in ((CSRC / name).parent / included, CSRC / included):
            if candidate.exists() and candidate.resolve().is_relative_to(CSRC):
                found.append(candidate.resolve().relative_to(CSRC).as_posix())
                break
    return found


def reachable(name: str) -> set[str]:
    """The file and all of csrc/ that it includes, at any depth."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(ours(current))
    return seen


def test_the_sources_are_found() -> None:
    assert {"ops.cpp", "philox.h", "transforms.h", "distributions.h", "cpu/fill.cpp"} <= set(FILES)
    assert KERNELS


@pytest.mark.parametrize("name", FILES)
def test_only_the_outer_files_include_torch(name: str) -> None:
    reached = {header for header in includes(name) if TORCH_HEADER.match(header)}
    assert not reached or name in TORCH_AWARE, f"{name} includes {sorted(reached)}"


@pytest.mark.parametrize("name", ["philox.h", "transforms.h", "distributions.h"])
def test_the_mathematics_reaches_no_torch_header(name: str) -> None:
    for inner in reachable(name):
        assert not [header for header in includes(inner) if TORCH_HEADER.match(header)], inner


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_includes_no_layer_above_it(name: str) -> None:
    above = set(LAYERS[LAYERS.index(name) + 1 :])
    assert not reachable(name) & above


def test_philox_knows_no_floats() -> None:
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", (CSRC / "philox.h").read_text(), flags=re.DOTALL)
    assert not re.search(r"\b(float|double|half|bfloat16)\b", code)


@pytest.mark.parametrize("name", KERNELS)
def test_no_intrinsics_header_is_reachable_from_a_kernel(name: str) -> None:
    for inner in sorted(reachable(name)):
        assert not [header for header in includes(inner) if INTRINSICS.match(header)], inner


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_at_most_five_lines_of_comment(name: str) -> None:
    lines = (CSRC / name).read_text().splitlines()
    opening = 0
    while opening < len(lines) and lines[opening].startswith("//"):
        opening += 1
    assert 1 <= opening <= 5, f"{opening} lines of comment at the top"


def test_an_include_against_the_direction_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "includes", lambda name: ["distributions.h"] if name == "philox.h" else [])
    assert "distributions.h" in reachable("philox.h")
