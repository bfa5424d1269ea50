"""``python -m paraminit_ext``: ``info`` says what was built and runs here, ``verify`` that it is right."""

from __future__ import annotations

import argparse
import os
import platform
import sys

import torch

import paraminit_ext
from paraminit_ext import _C
from paraminit_ext._build_info import ARCH, COMPILER, CUDA, CXX_FLAGS, TORCH_VERSION
from paraminit_ext.verify import verify


def _cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    properties = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return "; ".join(
        f"{p.name} (sm_{p.major}{p.minor}, {p.multi_processor_count} SMs, {p.total_memory >> 20} MiB)"
        for p in properties
    )


def info() -> dict[str, str]:
    """Facts by name, in the order in which a reader wants them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _C.read_cpu_quota("")
    return {
        "paraminit_ext": f"{paraminit_ext.__version__}, stream version {paraminit_ext.STREAM_VERSION}",
        "torch": f"{torch.__version__} running, {TORCH_VERSION} built for",
        "python": f"{platform.python_version()}, {platform.platform()}",
        "compiler": f"{COMPILER}, {CXX_FLAGS}",
        "cuda kernels": f"toolkit {CUDA}, for {ARCH}" if _C.has_cuda() else "not built",
        "cuda of torch": torch.version.cuda or "none",
        "gpus": _gpus(),
        "cpu": f"{_cpu_name()}, {cores} cores in the affinity mask of {os.cpu_count()}",
        "instruction set": f"{paraminit_ext.cpu_capability()}, of "
        + ", ".join(paraminit_ext.available_cpu_capabilities()),
        "threads": f"{torch.get_num_threads()}, OMP_NUM_THREADS="
        + os.environ.get("OMP_NUM_THREADS", "(not set)")
        + (f", at most {quota} for the control group's quota" if quota else ", no quota of a control group"),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is returned."""
    parser = argparse.ArgumentParser(prog="python -m paraminit_ext", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    commands.add_parser(
        "info", help="versions, what was built, instruction sets, threads, GPUs: for a bug report"
    )
    proof = commands.add_parser("verify", help="check the numbers of this build on this machine")
    proof.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: the GPU as well")
    proof.add_argument("--quick", action="store_true", help="smaller samples: under a minute")
    parsed = parser.parse_args(arguments)
    if parsed.command == "verify":
        return verify(parsed.device, parsed.quick)
    facts = info()
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
