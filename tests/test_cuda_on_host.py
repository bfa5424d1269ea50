"""The CUDA kernels, compiled for the host with stand-ins for intrinsics, against the CPU bit for bit.

The sources are those of csrc/cuda/, except that the launch syntax is rewritten and that stand-ins replace
instructions.cuh. tests/test_cuda.py tests the kernels on a GPU.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CXX = os.environ.get("CXX", "c++").split()
FLAGS = ["-O1", "-ffp-contract=off", "-std=c++20", "-w", "-I."]
REFERENCE = ["csrc/stream/constants.cpp", "csrc/cpu/fill_baseline.cpp"]
FAMILIES = ("uniform", "normal", "trunc_normal")
# The sources of each program. A program has the name of its driver.
PROGRAMS = {
    "driver": ["driver.cpp", *(f"csrc/cuda/{name}.cu" for name in FAMILIES), *REFERENCE],
    "many_driver": ["many_driver.cpp", *(f"csrc/cuda/many_{name}.cu" for name in FAMILIES), *REFERENCE],
    "sparse_driver": ["sparse_driver.cpp", "csrc/cuda/sparse.cu", *REFERENCE],
    "statistics_driver": [
        "statistics_driver.cpp",
        "csrc/cuda/statistics.cu",
        "csrc/cpu/statistics_baseline.cpp",
    ],
}

pytestmark = pytest.mark.skipif(shutil.which(CXX[0]) is None, reason="needs a C++ compiler")


def prepare(folder: Path) -> None:
    """Copy the sources and prepare them for a host compiler."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copytree(ROOT / "tests/cuda_on_host", folder, dirs_exist_ok=True)
    for name in ("cuda_runtime_api.h", "cuda_bf16.h", "cuda_fp16.h", "csrc/cuda/instructions.cuh"):
        (folder / name).write_text('#include "stand_in.h"\n')
    for path in (folder / "csrc/cuda").glob("*.cu*"):
        launch = r"([\w:]+(?:<[\w, ]*>)?)<<<(.*?)>>>\("
        path.write_text(re.sub(launch, r"launched(\1, \2)(", path.read_text(), flags=re.DOTALL))


def compile_all(folder: Path, sources: Sequence[str]) -> list[Path]:
    """Compile the sources in parallel and return their object files."""

    def compiled(source: str) -> Path:
        out = object_of(folder, source)
        subprocess.run([*CXX, *FLAGS, "-x", "c++", "-c", source, "-o", out], cwd=folder, check=True)
        return out

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, sources))


def object_of(folder: Path, source: str) -> Path:
    return folder / f"{Path(source).stem}.o"


def link(folder: Path, objects: Sequence[Path], program: str) -> Path:
    subprocess.run([*CXX, *objects, "-o", program], cwd=folder, check=True)
    return folder / program


def run(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program], capture_output=True, text=True, check=False)


def lines(program: Path) -> list[str]:
    return run(program).stdout.splitlines()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda_on_host")
    prepare(folder)
    compile_all(folder, sorted({source for sources in PROGRAMS.values() for source in sources}))
    for program, sources in PROGRAMS.items():
        link(folder, [object_of(folder, source) for source in sources], program)
    return folder


@pytest.mark.parametrize(
    ("program", "minimum"),
    [
        ("driver", 20_000_000),
        ("many_driver", 2_000_000),
        ("sparse_driver", 400_000),
        ("statistics_driver", 6_000_000),
    ],
)
def test_every_kernel_writes_the_bits_of_the_cpu_and_nothing_else(
    program: str, minimum: int, built: Path
) -> None:
    *differing, last = lines(built / program)
    assert differing == []
    compared = re.fullmatch(r"(\d+) elements compared, 0 cases differ", last)
    assert compared is not None
    assert int(compared[1]) > minimum


# The file, the text to replace, the fault to plant, the program and the source that include the file, and the
# case that must notice the fault.
FAULTS = [
    pytest.param(
        "csrc/cuda/statistics.cu",
        "for (; i < length; ++i) read",
        "for (; i < length - 1; ++i) read",
        "statistics_driver",
        "csrc/cuda/statistics.cu",
        "float32, 1 elements",
        id="the last element is not read",
    ),
    pytest.param(
        "csrc/cuda/statistics.cu",
        "found[threadIdx.x] = merged(found[threadIdx.x], found[threadIdx.x + step]);",
        "found[threadIdx.x] = merged(found[threadIdx.x + step], found[threadIdx.x + step]);",
        "statistics_driver",
        "csrc/cuda/statistics.cu",
        "float32, 200003 elements",
        id="units are merged twice",
    ),
    pytest.param(
        "csrc/cuda/kernels.cuh",
        "template <auto kernel>\nint64_t resident_blocks(int device, int multiprocessors) {",
        "template <class Kernel>\nint64_t of_type(Kernel kernel, int device, int multiprocessors);\n"
        "template <auto kernel>\nint64_t resident_blocks(int device, int multiprocessors) {\n"
        "  return of_type(kernel, device, multiprocessors);\n}\n"
        "template <class Kernel>\nint64_t of_type(Kernel kernel, int device, int multiprocessors) {",
        "driver",
        "driver.cpp",
        "grids: ",
        id="kernels of one type have the grid of the first one",
    ),
    pytest.param(
        "csrc/cuda/kernels.cuh",
        "      cudaGetLastError();  // or",
        "      // or",
        "driver",
        "driver.cpp",
        "grids: ",
        id="a failed query leaves its error for the launch",
    ),
    pytest.param(
        "csrc/cuda/kernels.cuh",
        "const bool wraps = wrap_tile < tiles;",
        "const bool wraps = false;",
        "driver",
        "csrc/cuda/uniform.cu",
        "wrapping counter",
        id="the carry into the counter's high word is lost",
    ),
    pytest.param(
        "csrc/stream/constants.cpp",
        "- 0x1p-14;",
        "+ 0x1p-6;",
        "driver",
        "csrc/stream/constants.cpp",
        "2 std",
        id="values that need a clamp pass as unclamped_limit",
    ),
    pytest.param(
        "csrc/cuda/lane_cuda.cuh",
        "constexpr int three = 0x01400000;",
        "constexpr int three = 0x01800000;",
        "driver",
        "csrc/cuda/trunc_normal.cu",
        "2 std",
        id="an exponent of 3 is taken for 4",
    ),
    pytest.param(
        "csrc/cuda/lane_cuda.cuh",
        "return __fmaf_rn(__fmaf_rn(-root, root, a), half, root);",
        "return root;",
        "driver",
        "csrc/cuda/normal.cu",
        "normal",
        id="the square root is not corrected",
    ),
    pytest.param(
        "csrc/cuda/kernels.cuh",
        "first_group += kMost / kGroup<Dist>;",
        "first_group += kMost;",
        "driver",
        "csrc/cuda/uniform.cu",
        "a run of 8589934597 elements",
        id="the second launch of a long run begins at the wrong group",
    ),
    pytest.param(
        "csrc/cuda/many_kernels.cuh",
        "const int whole = low > 0 || wraps ? 0 : high / tile;",
        "const int whole = low > 0 ? 0 : high / tile;",
        "many_driver",
        "csrc/cuda/many_uniform.cu",
        "wrapping counter",
        id="many: the carry into the counter's high word is lost",
    ),
    pytest.param(
        "csrc/cuda/many_kernels.cuh",
        "high = there < size ? static_cast<int>(there) : size;",
        "high = there < size ? static_cast<int>(there) + 1 : size;",
        "many_driver",
        "csrc/cuda/many_normal.cu",
        "normal, float32, a few elements: memory differs first at element 3",
        id="many: one element too many is written",
    ),
    pytest.param(
        "csrc/cuda/many_kernels.cuh",
        "if (__ldg(first_chunk + middle) <= blockIdx.x) {",
        "if (__ldg(first_chunk + middle) < blockIdx.x) {",
        "many_driver",
        "csrc/cuda/many_trunc_normal.cu",
        "2 std",
        id="many: the first chunk of a tensor is assigned to the previous tensor",
    ),
    pytest.param(
        "csrc/cuda/many_kernels.cuh",
        "locate_run(geometry, e / length, offset, index);",
        "locate_run(geometry, e / size, offset, index);",
        "many_driver",
        "csrc/cuda/many_uniform.cu",
        "constant, float32, columns of a matrix",
        id="many: a strided constant is written at the wrong place",
    ),
    pytest.param(
        "csrc/cuda/sparse.cu",
        "prefix = prefix << 8 | static_cast<uint64_t>(d);\n    }\n    __syncthreads();",
        "prefix = prefix << 8 | static_cast<uint64_t>(d);\n    }",
        "sparse_driver",
        "csrc/cuda/sparse.cu",
        "a long list",
        id="sparse: threads continue before the digit is found",
    ),
    pytest.param(
        "csrc/cuda/sparse.cu",
        "if (count > plan.capacity || rank < 0",
        "if (rank < 0",
        "sparse_driver",
        "csrc/cuda/sparse.cu",
        "lists too short",
        id="sparse: a list that is too short is taken as complete",
    ),
    pytest.param(
        "csrc/cuda/sparse.cu",
        "ranked(words[n], static_cast<uint64_t>(row + folded[n]));",
        "ranked(words[n], static_cast<uint64_t>(row));",
        "sparse_driver",
        "csrc/cuda/sparse.cu",
        "few columns",
        id="sparse: folded rows are taken for one",
    ),
]


@pytest.mark.parametrize(("file", "right", "wrong", "program", "source", "case"), FAULTS)
def test_a_planted_fault_is_noticed(
    file: str, right: str, wrong: str, program: str, source: str, case: str, built: Path, tmp_path: Path
) -> None:
    prepare(tmp_path)
    text = (tmp_path / file).read_text()
    assert text.count(right) == 1
    (tmp_path / file).write_text(text.replace(right, wrong))
    others = [object_of(built, other) for other in PROGRAMS[program] if other != source]
    result = run(link(tmp_path, [*compile_all(tmp_path, [source]), *others], program))
    # A wrong index may crash the program before it prints anything.
    assert result.returncode < 0 or any(line.startswith(case) for line in result.stdout.splitlines()[:-1])


def test_the_square_root_is_correctly_rounded_whatever_the_hardware_approximates(built: Path) -> None:
    *wrong, last = lines(link(built, compile_all(built, ["square_root.cpp"]), "square_root"))
    # These steps fail for two of the reciprocal roots within 2^-22.9. sqrt.rn takes the same steps, so
    # hardware whose sqrt.rn is correctly rounded returns neither of the two.
    assert wrong == ["0x1.f82294p+0 +1", "0x1.dd26e4p+1 +1"]
    # For each of the 2^24 floats a in [1, 4): the floats within a relative 2^-22.9 of 1/sqrt(a). They are
    # 2^-24 apart, and the mean of 1/sqrt(a) over these a is sqrt(1/2).
    floats = 2**24 * math.sqrt(0.5) * 2 * 2**-22.9 / 2**-24
    assert int(last.split()[0]) == pytest.approx(floats, rel=0.01)


def test_the_logarithm_between_near_bounds_is_that_of_every_lane(built: Path) -> None:
    # The floats of four binades, and 1 itself.
    assert lines(link(built, compile_all(built, ["interior.cpp"]), "interior")) == [
        f"{4 * 2**23 + 1} checked"
    ]
