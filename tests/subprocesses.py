"""Python programs in a fresh process, which imports the same package as the running test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import paraminit_ext

PACKAGE_ROOT = Path(paraminit_ext.__file__).parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, for two minutes at most, and return the completed process."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=PACKAGE_ROOT,  # Python searches it before the installed packages
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def lines(code: str, *arguments: str, **environment: str) -> list[str]:
    """Return the lines that a program prints. Fail if its exit status is not zero."""
    done = run("-c", code, *arguments, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()
