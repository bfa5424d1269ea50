"""What runs in processes of their own for the group `fresh-memory`.

The choice of huge pages is read once in a process, and a process has one peak of its memory.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.models import Recipe
from benchmarks.rows import DTYPES
from paraminit_ext import init


def filler(contender: str, recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """How `ours`, `stock` or `fill` fills a tensor."""
    if contender == "fill":
        return lambda tensor: tensor.fill_(1.0)
    module = init if contender == "ours" else nn.init
    return lambda tensor: recipe.apply(module, tensor)


def fresh_seconds(contender: str, recipe: Recipe, numel: int, dtype: str, threads: int) -> float:
    """Allocates and fills a tensor; it is freed after the clock has been read."""
    torch.set_num_threads(threads)
    fill = filler(contender, recipe)
    begin = time.perf_counter()
    tensor = fill(torch.empty(numel, dtype=DTYPES[dtype]))
    end = time.perf_counter()
    del tensor
    return end - begin


def status_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"benchmarks: expected {field} in /proc/self/status, got none")
    return int(found.group(1)) * 1024


def peak_over(contender: str, recipe: Recipe, numel: int, dtype: str, threads: int) -> int:
    """Bytes beyond the tensor's own by which a fill raises the peak of this process's memory."""
    torch.set_num_threads(threads)
    fill = filler(contender, recipe)
    fill(torch.empty(1 << 16, dtype=DTYPES[dtype]))  # threads and their stacks, code, tables
    before = status_bytes("VmRSS")
    tensor = fill(torch.empty(numel, dtype=DTYPES[dtype]))
    return status_bytes("VmHWM") - before - tensor.nbytes


def set_environment(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)


def process(variables: Mapping[str, str] = {}) -> ProcessPoolExecutor:
    """One fresh process, started when it first has something to do, with these environment variables.

    A server that has imported torch, and done nothing with it, forks: an import would take seconds each time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(
        max_workers=1,
        mp_context=context,
        initializer=set_environment,
        initargs=(dict(variables),),
    )
