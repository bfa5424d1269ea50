"""The compiler as setup.py calls it, for what is compiled beside the package and without torch."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class ToolError(Exception):
    """What keeps a tool from its work, in one line."""


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Any:
    """The finished process, its output as text, stderr apart; `environment` is added to this one's."""
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
    """What a command prints; an error where it fails."""
    done = run(command, environment, cwd)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        first = next((line for line in said if "rror" in line), said[-1])
        raise ToolError(f"{Path(command[0]).name} failed with status {done.returncode}: {first}")
    return str(done.stdout)


def compiler() -> list[str]:
    """The C++ compiler, with what CXX gives it."""
    return os.environ.get("CXX", "c++").split()


def cxx_flags(root: Path) -> list[str]:
    """CXX_FLAGS of setup.py, which cannot be imported without being run."""
    names: dict[str, Any] = {}
    for node in ast.parse((root / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("STANDARD", "CXX_FLAGS"):
            exec(compile(ast.Module([node], []), "setup.py", "exec"), names)
    return list(names["CXX_FLAGS"])
