"""Python interpreters and environments with other versions of Python and torch, and tests in them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.compiler import ROOT, ToolError, output, run

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
# What pip prints if a version does not exist, or if a constraint excludes it.
NOT_AVAILABLE = re.compile("No matching distribution|conflicting dependencies|ResolutionImpossible")


class MissingError(ToolError):
    """Something that a row needs is not available on this machine."""


def interpreter(version: str) -> Path:
    """Return a Python of a version: the running one, one on PATH, or one of pyenv."""
    if version == HERE:
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for python in [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]:
        if python is not None and run([python, "-c", "import venv, ensurepip"]).returncode == 0:
            return Path(python)
    raise MissingError(f"no Python {version} is here")


def torch_of(python: Path) -> str:
    """Return the versions of torch and Python, such as "2.13.0 3.11", or "" if there is no torch."""
    code = "import sys, torch; print(torch.__version__.split('+')[0], '%d.%d' % sys.version_info[:2])"
    done = run([python, "-I", "-c", code])
    return str(done.stdout).strip() if done.returncode == 0 else ""


def described(python: Path) -> str:
    """Return a description, such as "torch 2.13.0+cpu, Python 3.11.7"."""
    code = "import platform, torch; print(f'torch {torch.__version__}, Python {platform.python_version()}')"
    return output([python, "-I", "-c", code]).strip()


def pip(python: Path, *arguments: str | Path) -> list[str | Path]:
    return [python, "-m", "pip", "--disable-pip-version-check", *arguments]


def install(python: Path, *what: str | Path, variables: Mapping[str, str] | None = None) -> None:
    output(pip(python, "-q", "install", *what), variables)


def constraint(python: Path) -> str:
    """Return the file of version constraints that pip uses on this machine, or ""."""
    file = os.environ.get("PIP_CONSTRAINT")  # takes precedence over pip's configuration files
    if file is None:
        found = re.search(r"^\w+\.constraint='(.*)'$", run(pip(python, "config", "list")).stdout, re.M)
        file = found.group(1) if found else ""
    return "" if file == os.devnull else file


def new_environment(version: str, torch: str, folder: Path) -> Path:
    """Create an environment with a version of Python and of torch and nothing else; return its Python."""
    output([interpreter(version), "-m", "venv", "--clear", folder])
    python = folder / "bin" / "python"
    # Install torch first, in its own call, so that later packages find it and install no other torch.
    done = run(pip(python, "-q", "install", f"torch=={torch}"))
    if done.returncode == 0:
        return python
    message = str(done.stderr)
    file = constraint(python)
    shutil.rmtree(folder)
    if NOT_AVAILABLE.search(message) is None:
        raise ToolError(f"pip could not install torch {torch}: {(message.strip().splitlines() or ['?'])[-1]}")
    remedy = f"; {file} may keep it away: run again with PIP_CONSTRAINT={os.devnull}" if file else ""
    raise MissingError(f"pip finds no torch {torch} for Python {version}{remedy}")


def look_at_import(python: Path, library: Path, cwd: Path, variables: Mapping[str, str]) -> None:
    """Raise ToolError unless the imported package is the one in `library`."""
    code = "import paraminit_ext; print(paraminit_ext.__file__)"
    done = run([python, "-c", code], variables, cwd)
    imported = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
    if done.returncode != 0 or not Path(imported).is_relative_to(library):
        raise ToolError(f"expected the package in {library}, got {imported}")


def tested(
    python: Path, library: Path, tests: Sequence[str], log: Path, cwd: Path, variables: Mapping[str, str]
) -> str:
    """Run tests with the package in `library`; return pytest's last line.

    `cwd` must not be the root, because Python would import the in-place build there.
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
