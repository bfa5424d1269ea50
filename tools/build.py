"""Builds of the package apart from the one in place, with a compiler or flags of their own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compiler import output


def has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True  # not known: then with everything


def compiler(folder: Path, cxx: str, flags: Sequence[str]) -> Path:
    """A compiler in the folder that adds these flags after all others, which they outweigh."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#!/bin/sh"]
    if not has_avx512():
        # What this machine cannot run needs no instruments, which take minutes to compile.
        lines.append(f'case "$*" in *fill_avx512.cpp*) exec {cxx} "$@" -O0 ;; esac')
    lines.append(f'exec {cxx} "$@" {" ".join(flags)}')
    path = folder / "c++"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def build_package(python: Path, folder: Path, cxx: str, flags: Sequence[str]) -> Path:
    """Builds the package, without CUDA, by that Python's torch; returns the folder to import it from."""
    adding = str(compiler(folder, cxx, flags))
    library = folder / "lib"
    shutil.rmtree(library, ignore_errors=True)
    command: list[str | Path] = [python, "setup.py", "-q", "build", "-b", folder / "build"]
    command += ["--build-lib", library]
    # Said to build_ext itself: what `build` is told does not keep the objects out of the in-place build's.
    command += ["build_ext", "--build-temp", folder / "objects"]
    output(command, {"CC": adding, "CXX": adding, "PARAMINIT_CUDA": "0"})
    return library
