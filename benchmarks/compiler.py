"""Commands, and the C++ compiler with the flags of setup.py for programs that are built without torch."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class ToolError(Exception):
    """A tool failed. The message is one line that says why."""


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Any:
    """Run a command to its end, with stdout and stderr as text. `environment` is added to os.environ."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
        )
    except OSError as error:
        raise ToolError(f"expected to run {command[0]}, got {error}") from None


def output(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> str:
    """Return what a command prints. Raise ToolError if it fails."""
    done = run(command, environment, cwd)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        first = next((line for line in lines if "rror" in line), lines[-1])
        raise ToolError(f"{Path(command[0]).name} failed with status {done.returncode}: {first}")
    return str(done.stdout)


def compiler() -> list[str]:
    """Return the C++ compiler and the arguments that CXX gives it."""
    return os.environ.get("CXX", "c++").split()


def cxx_flags(root: Path) -> list[str]:
    """Return CXX_FLAGS of setup.py. They are read from its source, because importing it would build."""
    names: dict[str, Any] = {}
    for node in ast.parse((root / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("STANDARD", "CXX_FLAGS"):
            exec(compile(ast.Module([node], []), "setup.py", "exec"), names)
    return list(names["CXX_FLAGS"])
