"""The direction of dependencies between the folders of csrc/, read from the includes."""

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

# The folders of csrc/ that each folder may include.
MAY_INCLUDE = {
    "stream": {"stream"},
    "cpu": {"stream", "cpu"},
    "cuda": {"stream", "cuda"},
    "torch": {"stream", "cpu", "cuda", "torch"},
    "python": {"stream", "cpu", "torch", "python"},
    "capture": set(),
}
# The headers of torch that keep their ABI from one version to the next.
STABLE_HEADER = re.compile(r"^torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch)/")
PYTHON_HEADER = re.compile(r"^(pybind11/|Python\.h$)")
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|caffe2)/")
INTRINSICS = re.compile(r"^(\w+intrin|x86intrin|arm_neon|arm_sve|cpuid)\.h$")
# The headers from integers up to values. Each may include only the headers before it.
LAYERS = [f"stream/{name}.h" for name in ("request", "philox", "transforms", "distributions")]


def includes(name: str) -> list[str]:
    """Return the includes of a file, as written."""
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', (CSRC / name).read_text(), re.MULTILINE)


def csrc_includes(name: str) -> list[str]:
    """Return the files of csrc/ that a file includes by a path relative to itself."""
    paths = ((CSRC / name).parent / included for included in includes(name))
    resolved = [path.resolve() for path in paths if path.exists()]
    return [path.relative_to(CSRC).as_posix() for path in resolved if path.is_relative_to(CSRC)]


def reachable(name: str) -> set[str]:
    """Return the file and the files of csrc/ that it includes, directly or indirectly."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(csrc_includes(current))
    return seen


def test_the_sources_are_found() -> None:
    assert {"torch/ops.cpp", "stream/philox.h", "cpu/fill.cpp", "cuda/kernels.cuh"} <= set(FILES)
    assert {name.partition("/")[0] for name in FILES} == set(MAY_INCLUDE)
    assert KERNELS


@pytest.mark.parametrize("name", FILES)
def test_a_file_includes_what_its_folder_may(name: str) -> None:
    folder = name.partition("/")[0]
    reached = {other.partition("/")[0] for other in csrc_includes(name)}
    assert reached <= MAY_INCLUDE[folder]
    of_torch = [header for header in includes(name) if TORCH_HEADER.match(header)]
    if folder == "torch":
        assert all(STABLE_HEADER.match(header) for header in of_torch)
    elif folder != "capture":
        assert not of_torch
    if folder not in ("python", "capture"):
        assert not [header for header in includes(name) if PYTHON_HEADER.match(header)]


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("python/")])
def test_no_header_of_torch_is_reachable_from_the_module_for_python(name: str) -> None:
    for inner in sorted(reachable(name)):
        assert not [header for header in includes(inner) if TORCH_HEADER.match(header)], inner


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_includes_no_layer_above_it(name: str) -> None:
    above = set(LAYERS[LAYERS.index(name) + 1 :])
    assert not reachable(name) & above


def test_philox_knows_no_floats() -> None:
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", (CSRC / "stream/philox.h").read_text(), flags=re.DOTALL)
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


def test_an_include_against_the_direction_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "includes", lambda _: ["../torch/ops.cpp", "ATen/ATen.h"])
    with pytest.raises(AssertionError):
        test_a_file_includes_what_its_folder_may("stream/philox.h")
    with pytest.raises(AssertionError):
        test_a_file_includes_what_its_folder_may("torch/ops.cpp")
    with pytest.raises(AssertionError):
        test_no_header_of_torch_is_reachable_from_the_module_for_python("python/fast_path.cpp")
    monkeypatch.setitem(globals(), "includes", lambda name: ["distributions.h"] if "philox" in name else [])
    assert "stream/distributions.h" in reachable("stream/philox.h")
