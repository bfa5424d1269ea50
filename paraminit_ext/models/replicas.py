"""Check that the replicas of a tensor on different ranks have the same values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from paraminit_ext.geometry import class_if_imported
from paraminit_ext.models.layout import bits
from paraminit_ext.models.names import local_tensor, mesh_of, named_tensors
from paraminit_ext.models.summary import is_readable

_PIECE = 1 << 20
# The odd multipliers of SplitMix64 (Steele, Lea and Flood 2014), as int64.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


@torch.no_grad()
def fingerprint(tensor: Tensor) -> int:
    """Return a 64-bit hash of the bits and the index of every element.

    The hash is the sum, modulo 2^64, of a mix of each element's bits and index. Two different tensors have
    the same hash with probability 2^-64.
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
    """Yield the names of tensors whose replicas differ. All ranks of their groups must call this function."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return
    groups: dict[Any, dict[str, Tensor]] = {}
    for name, tensor, *_ in named_tensors(module):
        for group in _groups(module, tensor):
            groups.setdefault(group, {}).setdefault(name, tensor)
    differing: dict[str, None] = {}
    for group, tensors in groups.items():
        if dist.get_world_size(group) < 2 or dist.get_backend(group) == "fake":
            continue
        hashes = [fingerprint(local_tensor(tensor)) for tensor in tensors.values()]
        device = next(iter(tensors.values())).device
        own = torch.tensor(hashes, dtype=torch.int64, device=device)
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, own, group=group)
        differs = torch.stack([other != gathered[0] for other in gathered]).any(0).tolist()
        differing.update({name: None for name, wrong in zip(tensors, differs, strict=True) if wrong})
    yield from differing


def _groups(module: nn.Module, tensor: Tensor) -> list[Any]:
    """Return the process groups whose ranks hold the same elements of the tensor as this rank."""
    if not is_readable(tensor):
        return []
    mesh = mesh_of(tensor)
    if mesh is not None:
        if mesh.get_coordinate() is None:
            return []
        placements = tensor.placements  # type: ignore[attr-defined]
        return [mesh.get_group(dim) for dim, placement in enumerate(placements) if placement.is_replicate()]
    kind = class_if_imported("torch.nn.parallel.distributed", "DistributedDataParallel")
    if kind is not None and isinstance(module, kind):
        return [module.process_group]
    return []
