"""DTensors: the elements that a rank holds, and the check that all ranks of a mesh draw equal keys.

The first call with a DTensor imports this module, because torch.distributed is slow to import.
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
# The elements that a rank holds
# ----------------------------------------------------------------------------------------

# Indices of one dimension of the global tensor, as runs of consecutive indices (begin, end).
_Runs: TypeAlias = list[tuple[int, int]]


def locate(name: str, tensor: Tensor) -> Part:
    """Return the part of the global tensor that this rank holds; see :func:`paraminit_ext.geometry.locate`.

    This function does not use torch's ``compute_local_shape_and_global_offset``, which lists every index of a
    dimension and returns wrong elements if FSDP shards an uneven dimension after tensor parallelism.
    """
    assert isinstance(tensor, DTensor)
    for placement in tensor.placements:
        # Compare exact types: a subclass may mean other elements.
        if type(placement) not in (Replicate, Shard, _StridedShard):
            raise NotImplementedError(
                f"paraminit_ext.{name}: expected a DTensor of Shard and Replicate placements, got "
                f"{placement}. Redistribute it first, or fill its parts through paraminit_ext.shard."
            )
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a rank of the DTensor's mesh, got one outside of it. Call this "
            "function only on ranks of the mesh."
        )
    with torch.no_grad():
        local = tensor.to_local()
    for runs in _possible_runs(tensor, coordinate):
        shape = tuple(map(_length, runs))
        if shape == tuple(local.shape) or local.numel() == math.prod(shape) == 0:
            return _part(tensor, local, runs)
    raise NotImplementedError(
        f"paraminit_ext.{name}: expected a DTensor sharded as torch.chunk would, with a local tensor of "
        f"shape {shape}, got {tuple(local.shape)}. Fill its parts through paraminit_ext.shard."
    )


def _part(tensor: DTensor, local: Tensor, runs: list[_Runs]) -> Part:
    whole = tuple(tensor.shape)
    if local.numel() == 0:
        return Part(local, tensor, whole, (0,) * len(whole))
    boxes = []
    for box in itertools.product(*(_with_local_begin(dim_runs) for dim_runs in runs)):
        view = local
        if any(len(dim_runs) > 1 for dim_runs in runs):
            for dim, (local_begin, begin, end) in enumerate(box):
                view = view.narrow(dim, local_begin, end - begin)
        boxes.append(Part(view, tensor, whole, tuple(begin for _, begin, _ in box)))
    return boxes[0] if len(boxes) == 1 else Part(local, tensor, whole, (), tuple(boxes))


def _with_local_begin(runs: _Runs) -> Iterator[tuple[int, int, int]]:
    """Yield (begin in the local tensor, begin, end) of each run. The local tensor holds the runs in order."""
    local_begin = 0
    for begin, end in runs:
        yield local_begin, begin, end
        local_begin += end - begin


def _length(runs: _Runs) -> int:
    return sum(end - begin for begin, end in runs)


def _possible_runs(tensor: DTensor, coordinate: Sequence[int]) -> Iterator[list[_Runs]]:
    """Yield the runs of each dimension, for each possible meaning of the placements.

    Only strided placements have two meanings. Either a mesh dimension to the right was sharded first, as
    FSDP2 does with tensor parallelism. Or the dimension consists of ``split_factor`` pieces that are sharded
    separately, as after a view. For even sizes both give the same elements. The first meaning comes first
    where it is possible, because ``full_tensor`` uses it.
    """
    mesh, placements = tensor.device_mesh, tensor.placements
    is_strided = any(isinstance(placement, _StridedShard) for placement in placements)
    spec = tensor._spec
    if is_strided and getattr(spec, "use_strided_shard_as_shard_order", True) is not False:
        order = _sharding_order(placements, mesh)
        if order is not None:
            yield _runs(tensor.shape, [(dim, mesh_dim, 1) for dim, mesh_dim in order], mesh, coordinate)
    ordered = None if is_strided else getattr(spec, "shard_order", None)
    if ordered is not None:
        steps = [(entry.tensor_dim, dim, 1) for entry in ordered for dim in entry.mesh_dims]
    else:
        steps = list(_shards(placements))
    yield _runs(tensor.shape, steps, mesh, coordinate)


def _shards(placements: Sequence[Placement]) -> Iterator[tuple[int, int, int]]:
    """Yield (tensor dimension, mesh dimension, split factor or 1) for each placement that shards."""
    for mesh_dim, placement in enumerate(placements):
        if isinstance(placement, Shard | _StridedShard):
            yield placement.dim, mesh_dim, int(getattr(placement, "split_factor", 1))


def _sharding_order(placements: Sequence[Placement], mesh: DeviceMesh) -> list[tuple[int, int]] | None:
    """Return (tensor dimension, mesh dimension) in the order of sharding that explains the split factors.

    The split factor of a placement is then the number of parts into which mesh dimensions to its right have
    already split the tensor dimension. Return None if no order explains the split factors.
    """
    orders: dict[int, list[int]] = {}
    for dim, mesh_dim, split_factor in reversed(list(_shards(placements))):
        order = orders.setdefault(dim, [])
        parts = [math.prod(mesh.size(before) for before in order[:place]) for place in range(len(order) + 1)]
        if split_factor not in parts:
            return None
        order.insert(parts.index(split_factor), mesh_dim)
    return [(dim, mesh_dim) for dim, order in orders.items() for mesh_dim in order]


def _runs(
    shape: Sequence[int], steps: Sequence[tuple[int, int, int]], mesh: DeviceMesh, coordinate: Sequence[int]
) -> list[_Runs]:
    """Return the runs of each dimension after the steps (tensor dimension, mesh dimension, pieces)."""
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
    """Return the indices in chunk ``place`` of a ``torch.chunk`` into ``count``. The chunk may be empty."""
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
# Whether the ranks draw equal keys
# ----------------------------------------------------------------------------------------

# The generators that the ranks of a mesh have compared and found equal, with the world group of that time.
# The key is the mesh and whether the generator is torch's default one. Only the last other generator is kept,
# to keep no more of them alive. Meshes are compared by value and never dropped: if ranks forgot a mesh at
# different times, some of them would wait in a collective that the others skip.
_compared: dict[tuple[DeviceMesh, bool], tuple[torch.Generator, weakref.ref[dist.ProcessGroup]]] = {}


def refuse_unequal_generators(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Raise on every rank of a DTensor's mesh unless the generators of all ranks are in the same state.

    The ranks compare one hash at the first fill on the mesh from this generator. With a fake process group
    nothing is compared. Nothing is drawn.

    Raises:
        RuntimeError: if the states differ.
    """
    assert isinstance(tensor, DTensor)
    mesh, world = tensor.device_mesh, dist.group.WORLD
    key = mesh, generator is torch.default_generator
    last = _compared.get(key)
    if world is None or (last is not None and last[0] is generator and last[1]() is world):
        return
    require_equal_on_ranks(
        name,
        mesh,
        bytes(generator.get_state().tolist()),
        "generators in the same state",
        "Call torch.manual_seed with the same seed on every rank, or pass a paraminit_ext.Key.",
    )
    _compared[key] = generator, weakref.ref(world)


def require_equal_on_ranks(name: str, mesh: DeviceMesh, content: bytes, expected: str, remedy: str) -> None:
    """Raise on every rank of the mesh unless all ranks pass the same ``content``. This is a collective call.

    Raises:
        RuntimeError: if the contents differ; the message names the ranks.
    """
    number = int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1
    # Two numbers suffice for any number of ranks: the inverse of the largest inverted number is the smallest.
    largest_number, inverted_smallest = max_over_ranks(mesh, [number, ~number])
    if largest_number == ~inverted_smallest:
        return
    pairs = torch.tensor([[dist.get_rank(), number]], dtype=torch.int64, device=mesh.device_type)
    for group in _groups(mesh):
        gathered = [torch.empty_like(pairs) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, pairs, group=group)
        pairs = torch.cat(gathered)
    numbers = dict(sorted(pairs.tolist()))
    first = next(iter(numbers))
    others = [rank for rank, other in numbers.items() if other != numbers[first]]
    listed = ", ".join(map(str, others[:8])) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
    ranks_differ = f"rank {listed} differs" if len(others) == 1 else f"ranks {listed} differ"
    raise RuntimeError(
        f"paraminit_ext.{name}: expected {expected} on all {len(numbers)} ranks of the mesh, got different "
        f"ones: {ranks_differ} from rank {first}. {remedy}"
    )


def max_over_ranks(mesh: DeviceMesh, numbers: Sequence[int]) -> list[int]:
    """Return the largest value over the ranks of the mesh, for each number. This is a collective call."""
    groups = _groups(mesh)
    if not groups:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.int64, device=mesh.device_type)
    for group in groups:
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=group)
    result: list[int] = values.tolist()
    return result


def rank_and_size(mesh: DeviceMesh) -> tuple[int, int] | None:
    """Return (index of this rank in the mesh, number of ranks), or None if nothing is communicated."""
    coordinate = mesh.get_coordinate()
    if coordinate is None or not _groups(mesh):
        return None
    index = 0
    for dim, position in enumerate(coordinate):
        index = index * mesh.size(dim) + position
    return index, mesh.size()


def _groups(mesh: DeviceMesh) -> list[dist.ProcessGroup]:
    """Return process groups that together connect all ranks of the mesh.

    One collective on each group in turn reaches every rank. The list is empty if there is nothing to
    communicate.
    """
    world = dist.group.WORLD
    if world is not None and mesh.size() == dist.get_world_size():
        groups = [world]
    else:
        groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]
    if any(dist.get_backend(group) == "fake" for group in groups):
        return []
    return groups if mesh.size() > 1 else []
