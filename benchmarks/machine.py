"""Facts that every result must record: machine, compiler, torch, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from paraminit_ext import _C, cpu_capability
from paraminit_ext.cli.build_facts import cpu_name, host_memory

# Bytes that stay free for the temporaries of checks and of stock functions.
MARGIN = 1 << 30
# The greatest share of a GPU's memory that a process takes.
GPU_SHARE = 0.7


def commit() -> str:
    """Return the commit of the sources, with a plus if tracked files differ from it.

    Outside a repository, return the environment variable PARAMINIT_COMMIT, or "" if it is not set.
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
    """Return the bytes that can still be allocated on the device.

    The limit is that of the control group on the CPU, and GPU_SHARE of the total memory on a GPU.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free - int((1.0 - GPU_SHARE) * total)
    return host_memory()


def huge_pages() -> str:
    """Return the system's setting of huge pages: always, madvise or never, or "" if it has none."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return ""
    found = re.search(r"\[(\w+)\]", text)
    return found.group(1) if found else ""


def facts(device: torch.device) -> dict[str, str | int]:
    """Return the facts that are the same for all rows of a run."""
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
