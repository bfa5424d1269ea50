"""Build `paraminit_ext._C`, and a library of the CUDA kernels if that is possible.

Both use only the stable ABI of torch, so that a build works with torch 2.11 and every later version. CUDA is
built if there is a CUDA toolkit and a CUDA build of torch to compile and link it. No GPU is needed.

Environment variables: FORCE_CUDA=1 raises an error if CUDA cannot be built. PARAMINIT_CUDA=0 leaves CUDA out.
TORCH_CUDA_ARCH_LIST and MAX_JOBS have the same meaning as for torch. PARAMINIT_PTXAS_VERBOSE=1 makes ptxas
print the registers and spills of each kernel. PARAMINIT_CAPTURE=0 leaves out the library that works only with
the torch of the build, as wheels do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import setuptools
from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build_backend import find_torch, version_of_torch

if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"paraminit_ext: setuptools {setuptools.__version__} cannot read pyproject.toml; run "
        '`pip install "setuptools>=77.0.3,<82"`'
    )
if not find_torch():
    raise SystemExit(
        f"paraminit_ext: expected torch 2.11 or later, got {version_of_torch()}; "
        "run `pip install -U torch` first"
    )
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent
# Find the environment's ninja even if the environment is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
DEFAULT_ARCHITECTURES = ((8, 0), (9, 0), (10, 0))
STANDARD = "-std=c++20"
# The oldest supported torch, 2.11. torch's headers then hide everything newer, and unstable headers cannot be
# included at all.
MACROS: list[tuple[str, str | None]] = [("TORCH_TARGET_VERSION", "0x020b000000000000")]
VERSION = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
# No contraction and no fast-math: the bits of each value are part of the contract (docs/stream.md).
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-ffp-contract=off",
    # GCC's gcse pass keeps so many constants from one block of vectors for the next that vectors spill: with
    # AVX-512, trunc_normal_ takes 5 % longer. Clang has no such pass.
    "-fno-gcse",
    STANDARD,
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]


def sources_digest() -> str:
    """Return a hash of the sources of a binary."""
    digest = hashlib.sha256()
    for path in [ROOT / "setup.py", *sorted(ROOT.glob("csrc/**/*.*"))]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def printed(command: Sequence[str | Path]) -> str:
    """Return what a tool prints, or "" if it cannot run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def site_nvidia_folders(*parts: str) -> list[Path]:
    """Return the folders of NVIDIA's wheels next to torch: site-packages/nvidia/*/<parts>."""
    return sorted(Path(torch.__file__).parents[1].glob("/".join(("nvidia", "*", *parts))))


def find_toolkit() -> Path | None:
    """Return the root of a toolkit, a folder with both nvcc and the headers of the runtime, or None.

    An `nvcc` on PATH may be a wrapper script outside of its toolkit. Then torch's guess has no headers.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    guesses: list[Path] = []
    if named:
        guesses = [Path(named)]  # named explicitly, so no other folder is tried
    else:
        if cpp_extension.CUDA_HOME:
            guesses.append(Path(cpp_extension.CUDA_HOME))
        nvcc = shutil.which("nvcc")
        if nvcc:
            guesses.append(Path(nvcc).resolve().parents[1])
        guesses.append(Path("/usr/local/cuda"))
        guesses.extend(folder.parent for folder in site_nvidia_folders("bin"))
    for guess in guesses:
        if (guess / "bin" / "nvcc").exists() and (guess / "include" / "cuda_runtime.h").exists():
            return guess
    return None


def toolkit_version(toolkit: Path) -> str:
    found = re.search(r"release (\d+\.\d+)", printed([toolkit / "bin" / "nvcc", "--version"]))
    return found.group(1) if found else ""


def choose_cuda() -> tuple[Path | None, str]:
    """Return the toolkit that builds the CUDA kernels, or None, and the reason for the choice."""
    forced = os.environ.get("FORCE_CUDA", "0") == "1"
    toolkit: Path | None = None
    if os.environ.get("PARAMINIT_CUDA", "1") == "0":
        reason = "PARAMINIT_CUDA=0"
    elif torch.version.cuda is None:
        reason = f"torch {torch.__version__} is not a CUDA build"
    elif (toolkit := find_toolkit()) is None:
        reason = "no CUDA toolkit was found (CUDA_HOME: a folder with bin/nvcc and include/cuda_runtime.h)"
    else:
        version = toolkit_version(toolkit)
        reason = f"toolkit {version} in {toolkit}, torch {torch.__version__} for CUDA {torch.version.cuda}"
        if version.split(".")[0] != torch.version.cuda.split(".")[0]:
            reason += ": the major versions differ"
            toolkit = None
    if forced and toolkit is None:
        raise SystemExit(f"paraminit_ext: FORCE_CUDA=1, but the CUDA kernels cannot be built: {reason}")
    return toolkit, reason


def choose_architectures(toolkit: Path) -> str:
    """Return TORCH_CUDA_ARCH_LIST if set, otherwise the GPUs present, otherwise known defaults with PTX."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if given and given != "native":
        return given
    listed = printed([toolkit / "bin" / "nvcc", "--list-gpu-arch"])
    known = {(int(digits[:-1]), int(digits[-1])) for digits in re.findall(r"compute_(\d+)\b", listed)}
    try:
        present = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    except RuntimeError:  # a GPU is listed, but its driver does not answer
        present = set()
    if present and present <= known:
        return " ".join(f"{major}.{minor}" for major, minor in sorted(present))
    chosen = [architecture for architecture in DEFAULT_ARCHITECTURES if architecture in known] or [max(known)]
    return " ".join(f"{major}.{minor}" for major, minor in chosen) + "+PTX"


def system_includes(toolkit: Path | None = None) -> list[str]:
    """Return flags for the headers of torch, pybind11 and CUDA, as system headers, which give no warnings."""
    folders = [Path(folder) for folder in cpp_extension.include_paths()]
    if importlib.util.find_spec("pybind11") is not None:  # otherwise torch has a copy
        folders.insert(0, Path(importlib.import_module("pybind11").get_include()))
    if toolkit is not None:
        folders.append(toolkit / "include")
    # Error messages of torch's headers contain their path. Remove the folder: it differs on other machines.
    return as_system(folders) + [f"-fmacro-prefix-map={folder}/=" for folder in folders]


def as_system(folders: Sequence[Path]) -> list[str]:
    # GCC does not find its C headers if /usr/include is named explicitly.
    return [flag for folder in folders if str(folder) != "/usr/include" for flag in ("-isystem", str(folder))]


def cuda_runtime_link(toolkit: Path) -> list[str]:
    """Return flags that link libcudart. NVIDIA's wheels lack the plain name that -lcudart searches for."""
    folders = [toolkit / "lib64", toolkit / "lib", *site_nvidia_folders("lib")]
    for folder in folders:
        if (folder / "libcudart.so").exists():
            return [f"-L{folder}", "-lcudart"]
    for folder in folders:
        for library in sorted(folder.glob("libcudart.so.*")):
            return [f"-L{folder}", f"-l:{library.name}"]
    raise SystemExit(
        f"paraminit_ext: expected libcudart.so in {toolkit} or in NVIDIA's wheels next to torch, got none"
    )


def sources(*patterns: str) -> list[str]:
    found = (path for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def make_module() -> Extension:
    """Return the Python module, with the operators and the CPU kernels."""
    of_cuda = sources("torch/*cuda.cpp")
    found = sources("stream/*.cpp", "cpu/*.cpp", "torch/*.cpp", "python/*.cpp")
    return Extension(
        "paraminit_ext._C",
        sources=[path for path in found if path not in of_cuda],
        depends=sources("**/*.h"),
        library_dirs=cpp_extension.library_paths(),
        libraries=["torch_cpu"],
        define_macros=MACROS,
        extra_compile_args={"cxx": CXX_FLAGS + system_includes()},
        language="c++",
    )


def make_cuda_library(toolkit: Path, architectures: str) -> Extension:
    """Return the library of CUDA kernels and their callers. It alone needs torch's CUDA libraries."""
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
    os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = str(toolkit)
    nvcc = ["-O3", "-fmad=false", STANDARD, "--expt-relaxed-constexpr"]
    nvcc += ["-Xcompiler", "-ffp-contract=off,-fvisibility=hidden,-Wall"]
    if os.environ.get("PARAMINIT_PTXAS_VERBOSE", "0") == "1":
        nvcc += ["-Xptxas", "-v"]
    return Extension(
        f"paraminit_ext._cuda{toolkit_version(toolkit).split('.')[0]}",
        sources=sources("stream/*.cpp", "torch/*cuda.cpp", "cuda/*.cu"),
        depends=sources("**/*.h", "**/*.cuh"),
        library_dirs=cpp_extension.library_paths(),
        libraries=["torch_cpu", "torch_cuda"],
        define_macros=[*MACROS, ("USE_CUDA", None)],
        extra_compile_args={"cxx": CXX_FLAGS + system_includes(toolkit), "nvcc": nvcc},
        extra_link_args=cuda_runtime_link(toolkit),
        language="c++",
    )


def make_capture(toolkit: Path) -> Extension:
    """Return the library that needs unstable headers of torch. It works only with the torch of the build."""
    folders = [Path(folder) for folder in cpp_extension.include_paths()]
    folders += [toolkit / "include", *site_nvidia_folders("include")]
    return Extension(
        "paraminit_ext._capture",
        sources=sources("capture/*.cpp"),
        library_dirs=cpp_extension.library_paths(),
        libraries=["c10", "c10_cuda", "torch", "torch_cpu", "torch_cuda", "torch_python"],
        extra_compile_args={"cxx": ["-O2", "-g0", STANDARD, "-fvisibility=hidden", *as_system(folders)]},
        language="c++",
    )


TOOLKIT, REASON = choose_cuda()
ARCHITECTURES = choose_architectures(TOOLKIT) if TOOLKIT is not None else ""
CUDA_VERSION = toolkit_version(TOOLKIT) if TOOLKIT is not None else ""
EXTENSIONS = [make_module()]
if TOOLKIT is not None:
    EXTENSIONS.append(make_cuda_library(TOOLKIT, ARCHITECTURES))
    # From 2.15 on, torch has the same function in Python.
    if os.environ.get("PARAMINIT_CAPTURE", "1") != "0" and not hasattr(torch.Generator, "philox_state"):
        EXTENSIONS.append(make_capture(TOOLKIT))
# The facts of a build. A binary that has the same facts need not be built again.
FACTS = {
    "TORCH_VERSION": torch.__version__,
    "CUDA": CUDA_VERSION,
    "ARCH": ARCHITECTURES,
    "CXX_FLAGS": " ".join(CXX_FLAGS),
    "SOURCES": sources_digest(),
}


class BuildExtension(cpp_extension.BuildExtension):
    """torch's build step, with separate objects for each configuration and the facts next to the binary."""

    def finalize_options(self) -> None:
        if getattr(self, "build_temp", None) is None:
            # Objects of another torch, Python or device must not be linked by mistake. Without this folder,
            # `pip install -e` would build in a temporary folder and compile everything each time.
            kind = f"cuda{CUDA_VERSION}" if CUDA_VERSION else "cpu"
            here = f"torch{torch.__version__.split('+')[0]}-{platform.machine()}"
            self.build_temp = str(ROOT / "build" / f"{kind}-{here}")
        super().finalize_options()

    def get_ext_filename(self, name: str) -> str:
        """Return a library's file name. The CUDA library works with any Python, so its name has no tag."""
        if name.rpartition(".")[2].startswith("_cuda"):
            return f"{name.replace('.', os.sep)}.so"
        filename: str = super().get_ext_filename(name)  # type: ignore[no-untyped-call]
        return filename

    def build_extensions(self) -> None:
        what = f"CPU and CUDA kernels for {ARCHITECTURES}" if CUDA_VERSION else "CPU kernels, no CUDA kernels"
        print(f"paraminit_ext: building {what}: {REASON}", flush=True)
        folder = Path(self.build_temp).resolve()
        self.write_header(folder / "include" / "paraminit_built.h")
        for extension in self.extensions:
            extension.include_dirs.append(str(folder / "include"))
        super().build_extensions()

    def build_extension(self, extension: Extension) -> None:
        # Shared sources are compiled with other flags for each library. CUDA's do not depend on Python.
        folder, name = self.build_temp, extension.name.rpartition(".")[2]
        python = "" if name.startswith("_cuda") else f"-cp{sys.version_info.major}{sys.version_info.minor}"
        self.build_temp = str(Path(folder) / f"{name}{python}")
        try:
            super().build_extension(extension)
        finally:
            self.build_temp = folder

    def write_header(self, path: Path) -> None:
        """Write the version and the hash of the sources to a header, so that binaries can be told apart."""
        text = f'#define PARAMINIT_VERSION "{VERSION}"\n#define PARAMINIT_BUILT "{FACTS["SOURCES"]}"\n'
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(self) -> None:
        super().run()
        package = ROOT if self.inplace else Path(self.build_lib)
        made = {Path(self.get_ext_filename(extension.name)).name for extension in self.extensions}
        for pattern in ("_cuda*.so", "_capture*.so"):
            for library in (package / "paraminit_ext").glob(pattern):
                if library.name not in made:  # from an earlier build of other sources
                    library.unlink()
        self.write_build_info(package / "paraminit_ext" / "_build_info.py")

    def write_build_info(self, path: Path) -> None:
        cxx = os.environ.get("CXX") or self.compiler.compiler_cxx[0]
        facts = {**FACTS, "COMPILER": printed([*cxx.split(), "--version"]).partition("\n")[0]}
        lines = [f"{name}: str = {str(value)!r}" for name, value in facts.items()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "\n".join(
                [
                    '"""Written by setup.py: what the binary next to this file was built with."""',
                    "",
                    *lines,
                    "",
                ]
            )
        )


class Facts(setuptools.Command):  # type: ignore[misc]  # setuptools has no types here
    """`python setup.py -q facts`: print the facts of a build on this machine as JSON."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        print(json.dumps(FACTS))


setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": BuildExtension, "facts": Facts})
