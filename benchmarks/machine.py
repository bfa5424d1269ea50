"""What a result must carry for anyone to judge it: machine, compiler, torch, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from paraminit_ext import _C, cpu_capability
from paraminit_ext.cli.facts import cpu_name, host_memory

# Bytes that stay free beside what is filled: temporaries of checks and of stock functions.
MARGIN = 1 << 30
# Of a GPU's memory, what a process takes at most.
GPU_SHARE = 0.7


def commit() -> str:
    """The commit of the sources, with a plus where tracked files differ from it.

    Outside a repository it is what PARAMINIT_COMMIT says, or "".
    """
    root = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + (
            "+" if git("status", "--porcelain", "-uno").strip() else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PARAMINIT_COMMIT", "")


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device.

    On the CPU no more than the control group allows, on a GPU no more than GPU_SHARE of all there is.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free - int((1.0 - GPU_SHARE) * total)
    return host_memory()


def huge_pages() -> str:
    """The system's choice for huge pages: always, madvise or never; "" where there are none."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return ""
    found = re.search(r"\[(\w+)\]", text)
    return found.group(1) if found else ""


def facts(device: torch.device) -> dict[str, str | int]:
    """The part of a result that is the same for all its rows."""
    build = _C.build_info()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "machine": gpu or cpu_name(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "cpu_capability": cpu_capability(),
        "torch": torch.__version__,
        "cuda": build["cuda"],
        "compiler": build["compiler"],
        "python": platform.python_version(),
        "kernel": platform.release(),
        "huge_pages": huge_pages(),
        "commit": commit(),
    }
