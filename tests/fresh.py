"""Programs in a fresh process, which imports the very package that this one tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import paraminit_ext

PACKAGE_ROOT = Path(paraminit_ext.__file__).parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What Python did with these arguments; it must end within two minutes."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=PACKAGE_ROOT,  # which Python looks through before all that is installed
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def lines(code: str, *arguments: str, **environment: str) -> list[str]:
    """The lines that a program prints; it must end well."""
    done = run("-c", code, *arguments, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()
