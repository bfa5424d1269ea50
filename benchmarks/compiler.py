"""The compiler as setup.py calls it, for what is compiled beside the package and without torch."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class ToolError(Exception):
    """What keeps a tool from its work, in one line."""


def tool(command: Sequence[str | Path]) -> str:
    """What a tool prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ToolError(f"expected to run {command[0]}, got {error}") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ToolError(f"{command[0]} failed with status {done.returncode}: {last}")
    return done.stdout


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
