"""Builds of the package with other compilers or flags, in folders apart from the in-place build."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compiler import output


def has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True  # unknown: assume that the machine has it


def compiler(folder: Path, cxx: str, flags: Sequence[str]) -> Path:
    """Write a compiler wrapper that adds `flags` last, so that they take precedence; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#!/bin/sh"]
    if not has_avx512():
        # This machine cannot run AVX-512 code. Leave out these flags, which would take minutes to compile.
        lines.append(f'case "$*" in *fill_avx512.cpp*) exec {cxx} "$@" -O0 ;; esac')
    lines.append(f'exec {cxx} "$@" {" ".join(flags)}')
    path = folder / "c++"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def build_package(python: Path, folder: Path, cxx: str, flags: Sequence[str]) -> Path:
    """Build the package without CUDA against the torch of `python`; return the folder to import it from."""
    wrapper = str(compiler(folder, cxx, flags))
    library = folder / "lib"
    shutil.rmtree(library, ignore_errors=True)
    command: list[str | Path] = [python, "setup.py", "-q", "build", "-b", folder / "build"]
    command += ["--build-lib", library]
    # Pass this to build_ext, because the option of `build` does not separate objects from the in-place build.
    command += ["build_ext", "--build-temp", folder / "objects"]
    output(command, {"CC": wrapper, "CXX": wrapper, "PARAMINIT_CUDA": "0"})
    return library
