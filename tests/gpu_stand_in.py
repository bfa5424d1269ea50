"""What stands in for a GPU where there is none, so that each Python line that only a GPU would run is run.

Whatever is asked for on "cuda" is had on the CPU, and `torch.cuda` answers as if an H100 were there. It shows
that the lines run, and what they compare; of the GPU it shows nothing.
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

# Room for one tensor of 2^32 elements of 16 bits.
MEMORY = 14 << 30


class Event:
    """torch.cuda.Event on a stream that is never behind."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        if not self.seconds:
            raise RuntimeError("an event that was not recorded")

    def elapsed_time(self, end: Event) -> float:
        if not (self.timed and end.timed):
            raise ValueError("events without enable_timing=True have no times")
        return (end.seconds - self.seconds) * 1e3


class Stream:
    """torch.cuda.Stream."""

    cuda_stream = 0

    def synchronize(self) -> None:
        pass


def moved(value: Any) -> Any:
    """The CPU where an argument says CUDA."""
    if isinstance(value, str):
        return "cpu" if value.partition(":")[0] == "cuda" else value
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


class OnCpu(TorchFunctionMode):
    """Calls of torch with CUDA among their arguments, on the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.device:  # which is only named, and what is done there is seen below
            return func(*args, **(kwargs or {}))
        named = {name: moved(value) for name, value in (kwargs or {}).items()}
        return func(*map(moved, args), **named)


@contextmanager
def stand_in(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU, as far as Python sees."""
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
    with OnCpu():
        yield
