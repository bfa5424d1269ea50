"""`make matrix`: test the package with other versions of torch and Python, compilers, flags and processors.

Each row builds the extension in its own folder of build/matrix/, and runs the tests of the stream and of the
operators with it. A row uses an existing environment with its torch and Python, or creates one. An emulator
runs the fills of another processor without torch, and their checksums are compared with this processor's.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.compiler import ROOT, ToolError, output
from tools.build import build_package
from tools.driver import build, disagreements
from tools.environments import (
    HERE,
    MissingError,
    described,
    install,
    new_environment,
    tested,
    torch_of,
)
from tools.rows import Result, chosen, finish, result_of, show, terminal

FOLDER = ROOT / "build" / "matrix"
TESTS = (
    "test_stream.py",
    "test_oracle.py",
    "test_ops.py",
    "test_fast_path.py",
    "test_shards.py",
    "test_mesh.py",
    "test_pieces.py",
    "test_ranks.py",
    "test_tracers.py",
    "test_functional.py",
    "test_autograd.py",
    "test_serialisation.py",
    "test_patch.py",
    "test_keyed.py",
    "test_deferred.py",
    "test_plan.py",
    "test_statistics_op.py",
    "test_summary.py",
    "test_audit.py",
)


@dataclass(frozen=True)
class Row:
    """The name of a row, and the versions, compiler and flags of its build."""

    name: str
    torch: str = "2.13.0"
    python: str = HERE
    cxx: str = "g++"
    flags: str = ""
    packages: str = ""  # Debian packages that contain the compiler


ROWS = (
    Row("torch 2.11.0", torch="2.11.0"),
    Row("torch 2.13.0"),
    Row("torch 2.15.0", torch="2.15.0"),
    Row("clang", cxx="clang++", packages="clang libomp-dev"),
    Row("-O0", flags="-O0"),
    Row("python 3.10", python="3.10"),
    Row("python 3.13", python="3.13"),
)
EMULATED = "aarch64"


def need(tool: str, packages: str) -> None:
    """Ensure that a tool exists. Install its Debian packages if this process may."""
    if shutil.which(tool) is not None:
        return
    if os.geteuid() == 0 and shutil.which("apt-get") is not None:
        output(["apt-get", "update"])
        output(["apt-get", "install", "-y", "--no-install-recommends", *packages.split()])
    if shutil.which(tool) is None:
        raise MissingError(f"{tool} is not here; as root, run: apt-get install {packages}")


def environment(row: Row) -> Path:
    """Return the Python of an environment with the row's torch and the requirements of the tests."""
    made = FOLDER / f"torch{row.torch}-python{row.python}"
    for folder in (Path(sys.prefix), ROOT / ".venv-cuda", made):
        python = folder / "bin" / "python"
        if python.exists() and torch_of(python) == f"{row.torch} {row.python}":
            return python
    python = new_environment(row.python, row.torch, made)
    install(python, "-r", "requirements/test.txt")
    return python


def compiled_by(row: Row) -> str:
    """Return the compiler with its version and flags, such as "gcc 12.2.0 -O0"."""
    printed = output([row.cxx, "--version"]).partition("\n")[0]
    versions = re.findall(r"\b\d+\.\d+\.\d+", printed) or ["?"]
    name = f"clang {versions[0]}" if "clang" in printed else f"gcc {versions[-1]}"
    return f"{name} {row.flags}".strip()


def built_and_tested(row: Row) -> tuple[str, str]:
    if row.packages:
        need(row.cxx, row.packages)
    python = environment(row)
    library = build_package(python, FOLDER / re.sub(r"\W+", "_", row.name), row.cxx, row.flags.split())
    log = library.parent / "tests.txt"
    ran = tested(python, library, TESTS, log, FOLDER, {"PYTHONPATH": str(library)})
    return f"{described(python)}, {compiled_by(row)}", ran


def emulated() -> tuple[str, str]:
    """Compare the checksums of all fills on the scalar path of another processor with those of this one."""
    need("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user")
    need("qemu-aarch64", "qemu-user")
    there = build(FOLDER / "aarch64", "aarch64-linux-gnu-g++", ["-static"])
    here = build(FOLDER / platform.machine(), "g++", [])
    theirs = output(["qemu-aarch64", there, "--small"])
    ours = output([here, "--small"])
    if theirs.count("\n") < 100:
        raise ToolError(f"expected at least 100 fills, got {theirs.count(chr(10))}")
    different = disagreements(ours, theirs)
    if different:
        raise ToolError(f"{len(different)} fills differ, the first is {different[0]}")
    version = output(["aarch64-linux-gnu-g++", "--version"]).partition("\n")[0].split()[-1]
    count = theirs.count("\n")
    return f"fills without torch, gcc {version}, qemu", f"{count} checksums are {platform.machine()}'s"


def one(name: str) -> Result:
    row = next((r for r in ROWS if r.name == name), None)
    return result_of(name, emulated if row is None else partial(built_and_tested, row))


def main(
    only: Annotated[str, typer.Option(help="names of rows, separated by commas")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="remove the environments made here")] = False,
    to: Annotated[Path, typer.Option("--markdown", help="the file for the table")] = FOLDER / "matrix.md",
) -> None:
    """Build and test the package with other versions of torch and Python, compilers and processors."""
    console = terminal()
    wanted = chosen("matrix", only, [*(row.name for row in ROWS), EMULATED], console)
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = []
    for name in wanted:
        results.append(one(name))
        show("matrix", results[-1], console)
    if remove:
        for folder in FOLDER.glob("torch*-python*"):
            shutil.rmtree(folder)
    finish("matrix", "built with", results, to, console)


if __name__ == "__main__":
    typer.run(main)
