"""Interpreters and environments of other versions of Python and torch, and the tests in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.compiler import ROOT, ToolError, output, run

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
# What pip says where a version is not to be had, or where a constraint keeps it away.
NOT_TO_BE_HAD = re.compile("No matching distribution|conflicting dependencies|ResolutionImpossible")


class MissingError(ToolError):
    """What a row needs and is not to be had here."""


def interpreter(version: str) -> Path:
    """A Python of that version: this one, one of the PATH, or one of pyenv's."""
    if version == HERE:
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for one in [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]:
        if one is not None and run([one, "-c", "import venv, ensurepip"]).returncode == 0:
            return Path(one)
    raise MissingError(f"no Python {version} is here")


def torch_of(python: Path) -> str:
    """As in "2.13.0 3.11", or nothing."""
    code = "import sys, torch; print(torch.__version__.split('+')[0], '%d.%d' % sys.version_info[:2])"
    done = run([python, "-I", "-c", code])
    return str(done.stdout).strip() if done.returncode == 0 else ""


def described(python: Path) -> str:
    """As in "torch 2.13.0+cpu, Python 3.11.7"."""
    code = "import platform, torch; print(f'torch {torch.__version__}, Python {platform.python_version()}')"
    return output([python, "-I", "-c", code]).strip()


def pip(python: Path, *arguments: str | Path) -> list[str | Path]:
    return [python, "-m", "pip", "--disable-pip-version-check", *arguments]


def install(python: Path, *what: str | Path, variables: Mapping[str, str] | None = None) -> None:
    output(pip(python, "-q", "install", *what), variables)


def constraint(python: Path) -> str:
    """The file by which pip is told here which versions to leave alone, or nothing."""
    given = os.environ.get("PIP_CONSTRAINT")  # which outweighs pip's own files
    if given is None:
        found = re.search(r"^\w+\.constraint='(.*)'$", run(pip(python, "config", "list")).stdout, re.M)
        given = found.group(1) if found else ""
    return "" if given == os.devnull else given


def new_environment(version: str, torch: str, folder: Path) -> Path:
    """The Python of a fresh environment of that Python with that torch and nothing more."""
    output([interpreter(version), "-m", "venv", "--clear", folder])
    python = folder / "bin" / "python"
    # In a call of its own and first: what is installed later then finds a torch and brings no other.
    done = run(pip(python, "-q", "install", f"torch=={torch}"))
    if done.returncode == 0:
        return python
    said = str(done.stderr)
    held = constraint(python)
    shutil.rmtree(folder)
    if NOT_TO_BE_HAD.search(said) is None:
        raise ToolError(f"pip could not install torch {torch}: {(said.strip().splitlines() or ['?'])[-1]}")
    remedy = f"; {held} may keep it away: run again with PIP_CONSTRAINT={os.devnull}" if held else ""
    raise MissingError(f"pip finds no torch {torch} for Python {version}{remedy}")


def look_at_import(python: Path, library: Path, cwd: Path, variables: Mapping[str, str]) -> None:
    """An error unless the package that is imported is the one in `library`."""
    code = "import paraminit_ext; print(paraminit_ext.__file__)"
    done = run([python, "-c", code], variables, cwd)
    said = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
    if done.returncode != 0 or not Path(said).is_relative_to(library):
        raise ToolError(f"expected the package in {library}, got {said}")


def tested(
    python: Path, library: Path, tests: Sequence[str], log: Path, cwd: Path, variables: Mapping[str, str]
) -> str:
    """Runs these tests with the package in `library`; returns pytest's last line.

    `cwd` is not the root, where the sources' own build would be imported.
    """
    look_at_import(python, library, cwd, variables)
    command: list[str | Path] = [python, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml"]
    command += ["--rootdir", ROOT, "-p", "no:cacheprovider"]
    done = run([*command, *(ROOT / "tests" / name for name in tests)], variables, cwd)
    log.write_text(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    if done.returncode != 0:
        raise ToolError(f"{last} ({log.relative_to(ROOT)})")
    return re.sub(r" in .*", "", last)


def outcome(work: Callable[[], tuple[str, str]]) -> tuple[str, str, float, str]:
    """What a row's work gives of itself, how many seconds it took, and passed, failed or not run."""
    begin = time.monotonic()
    try:
        what, ran = work()
        verdict = "passed"
    except MissingError as error:
        what, ran, verdict = "", str(error), "not run"
    except (ToolError, subprocess.SubprocessError) as error:
        what, ran, verdict = "", str(error), "failed"
    return what, ran, time.monotonic() - begin, verdict
