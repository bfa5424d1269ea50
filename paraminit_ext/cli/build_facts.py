"""The facts that the command ``info`` prints. Needs no package except torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

import paraminit_ext
from paraminit_ext import _C
from paraminit_ext._build_info import ARCH, COMPILER, CUDA, CXX_FLAGS, TORCH_VERSION

# Packages that some commands need besides torch.
_OPTIONAL = ("typer", "rich", "safetensors", "transformers", "matplotlib")


def cpu_name() -> str:
    """Return the model name of the processor, or its architecture if the system does not report the name."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def host_memory() -> int:
    """Return the number of available bytes of memory, within the limit of the control group."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        free = int(found.group(1)) * 1024 if found else free
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except OSError:
        pass  # there is no /proc or no control group: use the number of free pages
    return free


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    properties = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return "; ".join(
        f"{p.name} (sm_{p.major}{p.minor}, {p.multi_processor_count} SMs, {p.total_memory >> 20} MiB)"
        for p in properties
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda_kernels() -> str:
    if not CUDA:
        return "not built"
    return f"toolkit {CUDA}, for {ARCH}" + ("" if _C.has_cuda() else "; not loaded with this torch")


def info() -> dict[str, str]:
    """Return the facts by name, in the order in which they are printed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _C.read_cpu_quota("")
    return {
        "paraminit_ext": f"{paraminit_ext.__version__}, stream version {paraminit_ext.STREAM_VERSION}",
        "torch": f"{torch.__version__} running, {TORCH_VERSION} built with",
        "python": f"{platform.python_version()}, {platform.platform()}",
        "compiler": f"{COMPILER}, {CXX_FLAGS}",
        "cuda kernels": _cuda_kernels(),
        "cuda of torch": torch.version.cuda or "none",
        "gpus": _gpus(),
        "cpu": f"{cpu_name()}, {cores} cores in the affinity mask of {os.cpu_count()}",
        "instruction set": f"{paraminit_ext.cpu_capability()}, of "
        + ", ".join(paraminit_ext.available_cpu_capabilities()),
        "threads": f"{torch.get_num_threads()}, OMP_NUM_THREADS="
        + os.environ.get("OMP_NUM_THREADS", "(not set)")
        + (f", at most {quota} for the control group's quota" if quota else ", no quota of a control group"),
    } | {package: _version(package) for package in _OPTIONAL}
