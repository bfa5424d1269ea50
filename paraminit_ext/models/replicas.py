"""Whether ranks that hold the same elements of a tensor hold the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from paraminit_ext.geometry import loaded
from paraminit_ext.models.layout import bits
from paraminit_ext.models.look import is_readable
from paraminit_ext.models.names import local_tensor, mesh_of, named_tensors

_PIECE = 1 << 20
# Odd numbers that spread bits: those of SplitMix64 (Steele, Lea and Flood 2014), as int64.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


@torch.no_grad()
def fingerprint(tensor: Tensor) -> int:
    """A number of 64 bits that hangs on each element's bits and place: different for different tensors.

    The sum, modulo 2^64, of a mix of each element's bits and index; by chance alone two tensors that differ
    have the same in one of 2^64 cases.
    """
    flat = tensor.detach().reshape(-1)
    words = bits(flat).reshape(-1)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for begin in range(0, words.numel(), _PIECE):
        part = words[begin : begin + _PIECE].to(torch.int64)
        place = torch.arange(begin + 1, begin + 1 + part.numel(), device=part.device)
        mixed = (part ^ (place * _STEP)) * _FIRST
        mixed = (mixed ^ (mixed >> 29)) * _SECOND
        total += (mixed ^ (mixed >> 32)).sum()
    return int(total)


def differing_replicas(module: nn.Module) -> Iterator[str]:
    """The names of tensors whose replicas differ; every rank of their groups calls together."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return
    groups: dict[Any, dict[str, Tensor]] = {}
    for name, tensor, *_ in named_tensors(module):
        for group in _groups(module, tensor):
            groups.setdefault(group, {}).setdefault(name, tensor)
    found: dict[str, None] = {}
    for group, tensors in groups.items():
        if dist.get_world_size(group) < 2 or dist.get_backend(group) == "fake":
            continue
        own = [fingerprint(local_tensor(tensor)) for tensor in tensors.values()]
        device = next(iter(tensors.values())).device
        mine = torch.tensor(own, dtype=torch.int64, device=device)
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, mine, group=group)
        differs = torch.stack([one != gathered[0] for one in gathered]).any(0).tolist()
        found.update({name: None for name, wrong in zip(tensors, differs, strict=True) if wrong})
    yield from found


def _groups(module: nn.Module, tensor: Tensor) -> list[Any]:
    """The groups of ranks that hold what this one holds of the tensor."""
    if not is_readable(tensor):
        return []
    mesh = mesh_of(tensor)
    if mesh is not None:
        if mesh.get_coordinate() is None:
            return []
        placements = tensor.placements  # type: ignore[attr-defined]
        return [mesh.get_group(dim) for dim, placement in enumerate(placements) if placement.is_replicate()]
    kind = loaded("torch.nn.parallel.distributed", "DistributedDataParallel")
    if kind is not None and isinstance(module, kind):
        return [module.process_group]
    return []
