"""Functions that the group `fresh-memory` runs in separate processes.

A process reads the setting of huge pages once, and records only one peak of its memory.
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
    """Return the function by which a contender (`ours`, `stock` or `fill`) fills a tensor."""
    if contender == "fill":
        return lambda tensor: tensor.fill_(1.0)
    module = init if contender == "ours" else nn.init
    return lambda tensor: recipe.apply(module, tensor)


def fresh_seconds(contender: str, recipe: Recipe, numel: int, dtype: str, threads: int) -> float:
    """Return the seconds to allocate and fill a tensor. Freeing it is not timed."""
    torch.set_num_threads(threads)
    fill = filler(contender, recipe)
    begin = time.perf_counter()
    tensor = fill(torch.empty(numel, dtype=DTYPES[dtype]))
    end = time.perf_counter()
    del tensor
    return end - begin


def status_bytes(field: str) -> int:
    """Return VmRSS or VmHWM of this process, in bytes."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"benchmarks: expected {field} in /proc/self/status, got none")
    return int(found.group(1)) * 1024


def peak_over(contender: str, recipe: Recipe, numel: int, dtype: str, threads: int) -> int:
    """Return by how many bytes, without the tensor's own, a fill raises this process's peak memory."""
    torch.set_num_threads(threads)
    fill = filler(contender, recipe)
    fill(torch.empty(1 << 16, dtype=DTYPES[dtype]))  # so that threads, stacks, code and tables are loaded
    before = status_bytes("VmRSS")
    tensor = fill(torch.empty(numel, dtype=DTYPES[dtype]))
    return status_bytes("VmHWM") - before - tensor.nbytes


def set_environment(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)


def process(variables: Mapping[str, str] = {}) -> ProcessPoolExecutor:
    """Return an executor with one new process that has these environment variables.

    The process starts at its first task. A fork server, which has imported torch but not used it, forks the
    process, because each import of torch would take seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(
        max_workers=1,
        mp_context=context,
        initializer=set_environment,
        initargs=(dict(variables),),
    )
