"""DTensors: which elements of the whole a rank holds, and whether the ranks of a mesh draw the same numbers.

Imported by the first call with a DTensor, since torch.distributed takes long to import.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from paraminit_ext.geometry import Part

# ----------------------------------------------------------------------------------------
# Which elements
# ----------------------------------------------------------------------------------------

# Indices of one dimension of the whole, as runs of consecutive ones: from, to.
_Runs: TypeAlias = list[tuple[int, int]]


def locate(name: str, tensor: Tensor) -> Part:
    """The part of the whole that this rank holds; see :func:`paraminit_ext.geometry.locate`.

    torch's own ``compute_local_shape_and_global_offset`` is not used: it lists every index of a dimension,
    and of an uneven dimension that FSDP shards after tensor parallelism it names other elements than are
    there.
    """
    assert isinstance(tensor, DTensor)
    for placement in tensor.placements:
        # By exact type: a subclass may mean other elements.
        if type(placement) not in (Replicate, Shard, _StridedShard):
            raise NotImplementedError(
                f"paraminit_ext.{name}: expected a DTensor of Shard and Replicate placements, got "
                f"{placement}. Redistribute it first, or fill its parts through paraminit_ext.shard."
            )
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a rank of the DTensor's mesh, got one outside of it. Call it on "
            "the ranks of the mesh alone."
        )
    with torch.no_grad():
        local = tensor.to_local()
    for runs in _readings(tensor, coordinate):
        held = tuple(map(_length, runs))
        if held == tuple(local.shape) or local.numel() == math.prod(held) == 0:
            return _part(tensor, local, runs)
    raise NotImplementedError(
        f"paraminit_ext.{name}: expected a DTensor sharded as torch.chunk would, with a local tensor of "
        f"shape {held}, got {tuple(local.shape)}. Fill its parts through paraminit_ext.shard."
    )


def _part(tensor: DTensor, local: Tensor, runs: list[_Runs]) -> Part:
    whole = tuple(tensor.shape)
    if local.numel() == 0:
        return Part(local, tensor, whole, (0,) * len(whole))
    boxes = []
    for box in itertools.product(*(_with_places(one) for one in runs)):
        view = local
        if any(len(one) > 1 for one in runs):
            for dim, (place, begin, end) in enumerate(box):
                view = view.narrow(dim, place, end - begin)
        boxes.append(Part(view, tensor, whole, tuple(begin for _, begin, _ in box)))
    return boxes[0] if len(boxes) == 1 else Part(local, tensor, whole, (), tuple(boxes))


def _with_places(runs: _Runs) -> Iterator[tuple[int, int, int]]:
    """Each run with its place in the local tensor, where they lie one after the other."""
    place = 0
    for begin, end in runs:
        yield place, begin, end
        place += end - begin


def _length(runs: _Runs) -> int:
    return sum(end - begin for begin, end in runs)


def _readings(tensor: DTensor, coordinate: Sequence[int]) -> Iterator[list[_Runs]]:
    """The runs of each dimension, as the placements may be read: one way, but for strided ones.

    A strided placement says either that a mesh dimension to its right has sharded before it, as FSDP2 does
    with tensor parallelism, or, after a view, that each of so many pieces is sharded. Of even sizes both
    are the same. The first is what ``full_tensor`` takes it for, wherever it can be meant.
    """
    mesh, placements = tensor.device_mesh, tensor.placements
    is_strided = any(isinstance(placement, _StridedShard) for placement in placements)
    spec = tensor._spec
    if is_strided and getattr(spec, "use_strided_shard_as_shard_order", True) is not False:
        order = _order_of_strides(placements, mesh)
        if order is not None:
            yield _runs(tensor.shape, [(dim, mesh_dim, 1) for dim, mesh_dim in order], mesh, coordinate)
    ordered = None if is_strided else getattr(spec, "shard_order", None)
    if ordered is not None:
        steps = [(entry.tensor_dim, dim, 1) for entry in ordered for dim in entry.mesh_dims]
    else:
        steps = list(_shards(placements))
    yield _runs(tensor.shape, steps, mesh, coordinate)


def _shards(placements: Sequence[Placement]) -> Iterator[tuple[int, int, int]]:
    """Of each placement that shards: the dimensions of tensor and mesh; the stride of a strided one, or 1."""
    for mesh_dim, placement in enumerate(placements):
        if isinstance(placement, Shard | _StridedShard):
            yield placement.dim, mesh_dim, int(getattr(placement, "split_factor", 1))


def _order_of_strides(placements: Sequence[Placement], mesh: DeviceMesh) -> list[tuple[int, int]] | None:
    """Tensor and mesh dimensions in the order in which they shard, where the strides can be explained so.

    The stride of a placement is then the number of parts that dimensions to its right have made before it.
    """
    orders: dict[int, list[int]] = {}
    for dim, mesh_dim, stride in reversed(list(_shards(placements))):
        order = orders.setdefault(dim, [])
        parts = [math.prod(mesh.size(before) for before in order[:place]) for place in range(len(order) + 1)]
        if stride not in parts:
            return None
        order.insert(parts.index(stride), mesh_dim)
    return [(dim, mesh_dim) for dim, order in orders.items() for mesh_dim in order]


def _runs(
    shape: Sequence[int], steps: Sequence[tuple[int, int, int]], mesh: DeviceMesh, coordinate: Sequence[int]
) -> list[_Runs]:
    """What is left of each dimension after sharding steps: tensor dimension, mesh dimension, pieces."""
    runs: list[_Runs] = [[(0, size)] for size in shape]
    for dim, mesh_dim, pieces in steps:
        count, place = mesh.size(mesh_dim), coordinate[mesh_dim]
        kept: _Runs = []
        for piece in range(pieces):
            for begin, end in _chunk(_chunk(runs[dim], pieces, piece), count, place):
                if kept and kept[-1][1] == begin:
                    begin = kept.pop()[0]
                kept.append((begin, end))
        runs[dim] = kept
    return runs


def _chunk(runs: _Runs, count: int, place: int) -> _Runs:
    """Which indices ``torch.chunk`` into ``count`` gives to the one at ``place``; it may be none."""
    length = -(-_length(runs) // count)
    low, high = place * length, (place + 1) * length
    kept: _Runs = []
    for begin, end in runs:
        first, last = begin + max(low, 0), min(begin + high, end)
        if first < last:
            kept.append((first, last))
        low, high = low - (end - begin), high - (end - begin)
    return kept


# ----------------------------------------------------------------------------------------
# Whether ranks draw the same
# ----------------------------------------------------------------------------------------

# By mesh: the generators that the ranks were found to have alike, and the world that was there. They are
# torch's default one and the last other one: to keep more would keep them alive. A mesh is kept by its value,
# not for as long as an object lives: ranks that forget at different times would wait for each other.
_alike: dict[tuple[DeviceMesh, bool], tuple[torch.Generator, weakref.ref[dist.ProcessGroup]]] = {}


def refuse_other_draws(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Raise on every rank of a DTensor's mesh unless their generators are in the same state.

    The ranks compare one hash, at the first fill on the mesh from this generator; a fake process group has
    nobody to compare with. Nothing is drawn.

    Raises:
        RuntimeError: the states differ.
    """
    assert isinstance(tensor, DTensor)
    mesh, world = tensor.device_mesh, dist.group.WORLD
    key = mesh, generator is torch.default_generator
    before = _alike.get(key)
    if world is None or (before is not None and before[0] is generator and before[1]() is world):
        return
    refuse_others(
        name,
        mesh,
        bytes(generator.get_state().tolist()),
        "generators in the same state",
        "Call torch.manual_seed with the same seed on every rank, or pass a paraminit_ext.Key.",
    )
    _alike[key] = generator, weakref.ref(world)


def refuse_others(name: str, mesh: DeviceMesh, content: bytes, expected: str, remedy: str) -> None:
    """Raise on every rank of the mesh, all of which call together, unless each of them gives these bytes.

    Raises:
        RuntimeError: some differ; the message says which ranks.
    """
    number = int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1
    # Two numbers, however many ranks there are: of the inverted ones the largest is the smallest.
    most, least = largest(mesh, [number, ~number])
    if most == ~least:
        return
    pairs = torch.tensor([[dist.get_rank(), number]], dtype=torch.int64, device=mesh.device_type)
    for group in _groups(mesh):
        gathered = [torch.empty_like(pairs) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, pairs, group=group)
        pairs = torch.cat(gathered)
    found = dict(sorted(pairs.tolist()))
    first = next(iter(found))
    others = [rank for rank, other in found.items() if other != found[first]]
    told = ", ".join(map(str, others[:8])) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
    ranks_differ = f"rank {told} differs" if len(others) == 1 else f"ranks {told} differ"
    raise RuntimeError(
        f"paraminit_ext.{name}: expected {expected} on all {len(found)} ranks of the mesh, got others: "
        f"{ranks_differ} from rank {first}. {remedy}"
    )


def largest(mesh: DeviceMesh, numbers: Sequence[int]) -> list[int]:
    """The largest that any rank of the mesh gives, of each number; all ranks call together."""
    groups = _groups(mesh)
    if not groups:
        return list(numbers)
    found = torch.tensor(numbers, dtype=torch.int64, device=mesh.device_type)
    for group in groups:
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    highest: list[int] = found.tolist()
    return highest


def ranks_of(mesh: DeviceMesh) -> tuple[int, int] | None:
    """The place of this rank among those of the mesh, and their number; None if nobody is to speak to."""
    coordinate = mesh.get_coordinate()
    if coordinate is None or not _groups(mesh):
        return None
    place = 0
    for dim, at in enumerate(coordinate):
        place = place * mesh.size(dim) + at
    return place, mesh.size()


def _groups(mesh: DeviceMesh) -> list[dist.ProcessGroup]:
    """Groups of which each rank of the mesh reaches all others, one collective after the other."""
    world = dist.group.WORLD
    if world is not None and mesh.size() == dist.get_world_size():
        groups = [world]
    else:
        groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]
    if any(dist.get_backend(group) == "fake" for group in groups):
        return []
    return groups if mesh.size() > 1 else []
