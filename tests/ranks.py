"""Checks that run in several processes at once, over gloo: one start of them serves all checks of a file."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

Check: TypeAlias = Callable[[int], Any]

# In one of the processes: a folder that all of them see.
SHARED = Path()


def distribute(module: nn.Module, mesh: DeviceMesh, placements: Sequence[Placement]) -> None:
    """Shard each parameter so; one of a dimension is replicated where it has none to be sharded along."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            dims = [placement.dim for placement in placements if isinstance(placement, Shard)]
            kept = placements if parameter.dim() > max(dims, default=0) else [Replicate()] * mesh.ndim
            sharded = distribute_tensor(parameter.detach(), mesh, kept)
            owner.register_parameter(name, nn.Parameter(sharded))


def run(checks: Mapping[str, Check], ranks: int, folder: Path) -> Callable[[str], None]:
    """Run the checks on so many ranks, one after the other; gives what raises where one of them failed.

    Args:
        checks: functions of a test file, called with the rank
        ranks: how many processes
        folder: where results are left
    """
    mp.spawn(_run, (dict(checks), ranks, str(folder)), nprocs=ranks)  # type: ignore[attr-defined, no-untyped-call]

    def passed(name: str) -> None:
        results = [(folder / f"{name}-{rank}").read_text() for rank in range(ranks)]
        if set(results) != {"passed"}:
            pytest.fail("\n".join(f"rank {rank}: {result}" for rank, result in enumerate(results)))

    return passed


def _run(rank: int, checks: Mapping[str, Check], ranks: int, folder: str) -> None:
    global SHARED
    SHARED = Path(folder)
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timeout)
    waiting = list(checks.items())
    while waiting:
        name, check = waiting.pop(0)
        result = Path(folder, f"{name}-{rank}")
        try:
            check(rank)
            dist.barrier()
        except BaseException:
            result.write_text(traceback.format_exc())
            for later, _ in waiting:
                Path(folder, f"{later}-{rank}").write_text(f"not run, since {name} failed")
            # The others, which may wait for this one, hear of it by the connection that ends.
            os._exit(0)
        result.write_text("passed")
    dist.destroy_process_group()
