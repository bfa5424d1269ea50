"""Checks that run on several processes over gloo. The processes start once for all checks of a test file."""

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

# In a spawned process: the folder that all ranks share.
SHARED = Path()


def distribute(module: nn.Module, mesh: DeviceMesh, placements: Sequence[Placement]) -> None:
    """Distribute each parameter. Replicate the parameters that lack a dimension to shard along."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            dims = [placement.dim for placement in placements if isinstance(placement, Shard)]
            parameter_placements = (
                placements if parameter.dim() > max(dims, default=0) else [Replicate()] * mesh.ndim
            )
            sharded = distribute_tensor(parameter.detach(), mesh, parameter_placements)
            owner.register_parameter(name, nn.Parameter(sharded))


def run(checks: Mapping[str, Check], ranks: int, folder: Path) -> Callable[[str], None]:
    """Run the checks one after another on all ranks. Return a function that fails if the named check failed.

    Args:
        checks: functions of a test file, which are called with the rank
        ranks: the number of processes
        folder: the directory for the results
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
    pending = list(checks.items())
    while pending:
        name, check = pending.pop(0)
        result = Path(folder, f"{name}-{rank}")
        try:
            check(rank)
            dist.barrier()
        except BaseException:
            result.write_text(traceback.format_exc())
            for later, _ in pending:
                Path(folder, f"{later}-{rank}").write_text(f"not run because {name} failed")
            # Ending the process closes its connections, so ranks that wait for it in a collective fail.
            os._exit(0)
        result.write_text("passed")
    dist.destroy_process_group()
