"""Orthogonal matrices of a plan, distributed over the ranks of a mesh: one rank computes each matrix.

An orthogonal matrix must be computed whole, by matrix products of cubic cost, even if it is sharded. With
several matrices and ranks, each rank computes some of the matrices and sends the other ranks their shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paraminit_ext.geometry import box_index, locate, mark_written
from paraminit_ext.models.layout import Box
from paraminit_ext.models.names import mesh_of
from paraminit_ext.models.pieces import cuts

if TYPE_CHECKING:
    from paraminit_ext.models.plan import Entry

# Lower bounds from which distribution at least halves the time (docs/scale.md). A smaller matrix is computed
# faster than sent.
_RANKS = 4
_MATRICES = 4
_SIZE = 2048
# Elements are sent as integers: a floating-point sum with zeros would lose the sign of a zero.
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
# Maximum number of elements that one collective sends.
_PANEL = 1 << 24


def spread(targets: Sequence[tuple[Entry, Tensor]]) -> dict[Any, list[tuple[Entry, Tensor]]]:
    """Return the targets that are worth distributing, by mesh. All ranks of a mesh get the same answer."""
    large: dict[Any, list[tuple[Entry, Tensor]]] = {}
    for entry, tensor in targets:
        mesh = mesh_of(tensor)
        if mesh is not None and mesh.size() >= _RANKS and _is_large(entry):
            large.setdefault(mesh, []).append((entry, tensor))
    if not large:
        return {}
    from paraminit_ext.mesh import rank_and_size

    return {
        mesh: group
        for mesh, group in large.items()
        if len(group) >= _MATRICES and rank_and_size(mesh) is not None
    }


def _is_large(entry: Entry) -> bool:
    step = entry.fill
    if step is None or step.do != "orthogonal_" or len(entry.steps) != 1 or entry.layout is not None:
        return False
    return _smaller_side(entry.shape) >= _SIZE and entry.dtype in _BITS


def _smaller_side(shape: Sequence[int]) -> int:
    return min(shape[0], math.prod(shape[1:])) if len(shape) > 1 else 0


def write_spread(
    mesh: Any, targets: Sequence[tuple[Entry, Tensor]], make: Callable[[Entry, Tensor], Tensor]
) -> None:
    """Write each rank's shard of each matrix. All ranks of the mesh must call this function.

    Args:
        mesh: the mesh of the tensors
        targets: the entry of each matrix, and the tensor that receives it
        make: computes a whole matrix
    """
    from paraminit_ext.mesh import rank_and_size

    place, count = rank_and_size(mesh) or (0, 1)
    for begin in range(0, len(targets), count):
        turn = targets[begin : begin + count]
        # Each rank computes its own matrix before any is sent, so that the ranks compute in parallel.
        own = make(*turn[place]) if place < len(turn) else None
        for maker, (entry, tensor) in enumerate(turn):
            _send(mesh, own if maker == place else None, entry, tensor)
        del own


def _send(mesh: Any, whole: Tensor | None, entry: Entry, tensor: Tensor) -> None:
    """Copy a matrix that one rank holds (``whole``) into every rank's shard, panel by panel."""
    part = locate("InitPlan.apply", tensor)
    for start, sizes in cuts(entry.shape, 0, math.prod(entry.shape), _PANEL):
        if whole is None:
            panel = torch.zeros(sizes, dtype=entry.dtype, device=part.local.device)
        else:
            panel = whole[box_index(start, sizes)]
        panel = _sum_over(mesh, panel)
        for box in part.boxes:
            overlap = Box.at(start, sizes).within(box.local, box.start)
            if overlap is not None:
                part_of_box, begin = overlap
                part_of_box.copy_(panel[box_index(begin, part_of_box.shape)])
    mark_written(tensor, part.local)


def _sum_over(mesh: Any, panel: Tensor) -> Tensor:
    """Return the sum of ``panel`` over the ranks, by DTensor's collectives. All but one rank pass zeros."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    words = panel.contiguous().view(_BITS[panel.dtype])
    partial = DTensor.from_local(words, mesh, [Partial()] * mesh.ndim, run_check=False)
    summed: Tensor = partial.redistribute(placements=[Replicate()] * mesh.ndim).to_local()
    return summed.view(panel.dtype)
