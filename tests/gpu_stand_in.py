"""A stand-in for a GPU, so that Python lines that need a GPU run on machines without one.

Calls with a "cuda" device run on the CPU, and `torch.cuda` answers as if an H100 were present. This tests
that the Python lines run and that their comparisons hold. It tests nothing about a real GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from paraminit_ext import _C

# The memory that the stand-in reports: enough for one tensor of 2^32 elements of 16 bits.
MEMORY = 14 << 30


class Event:
    """Stands for torch.cuda.Event. Work is complete as soon as it is submitted."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        if not self.seconds:
            raise RuntimeError("this event was not recorded")

    def elapsed_time(self, end: Event) -> float:
        if not (self.timed and end.timed):
            raise ValueError("events without enable_timing=True record no times")
        return (end.seconds - self.seconds) * 1e3


class Stream:
    """Stands for torch.cuda.Stream."""

    cuda_stream = 0

    def synchronize(self) -> None:
        pass


def to_cpu(value: Any) -> Any:
    """Return the CPU if an argument is a CUDA device. Otherwise return the argument."""
    if isinstance(value, str):
        return "cpu" if value.partition(":")[0] == "cuda" else value
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


class RedirectToCpu(TorchFunctionMode):
    """Runs calls of torch with CUDA devices among their arguments on the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Keep torch.device itself unchanged: calls that use the device are redirected.
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        keywords = {name: to_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*map(to_cpu, args), **keywords)


@contextmanager
def stand_in(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make Python see a GPU while the context lasts."""
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda *_: "a stand-in",
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "current_stream": lambda *_: Stream(),
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "set_per_process_memory_fraction": lambda *_: None,
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda: torch.get_rng_state(),
        "_sleep": lambda _: None,
        "Event": Event,
        "Stream": Stream,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)
    patch.setattr(torch.backends.cuda, "preferred_blas_library", lambda *_: "cublas")
    patch.setattr(_C, "has_cuda", lambda: True)
    with RedirectToCpu():
        yield
