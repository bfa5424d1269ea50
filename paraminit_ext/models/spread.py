"""Orthogonal matrices of a plan, spread over the ranks of a mesh: each is made by one rank, not by all.

An orthogonal matrix is made whole, by products that take the cube of its size; which ranks hold it does not
matter. With several matrices and ranks, each rank makes some, and gives all others their parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paraminit_ext.geometry import locate, mark_written, slices
from paraminit_ext.models.layout import Box
from paraminit_ext.models.names import mesh_of
from paraminit_ext.models.pieces import cuts

if TYPE_CHECKING:
    from paraminit_ext.models.plan import Entry

# From here on it takes at most half of the time (docs/scale.md). Smaller ones are made sooner than sent.
_RANKS = 4
_MATRICES = 4
_SIZE = 2048
# As what elements are sent: a sum of floating-point numbers and zeros would lose the sign of a zero.
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
# Elements that are sent at once.
_PANEL = 1 << 24


def spread(targets: Sequence[tuple[Entry, Tensor]]) -> dict[Any, list[tuple[Entry, Tensor]]]:
    """Those that are better made so, by mesh. All ranks of a mesh come to the same answer."""
    found: dict[Any, list[tuple[Entry, Tensor]]] = {}
    for entry, tensor in targets:
        mesh = mesh_of(tensor)
        if mesh is not None and mesh.size() >= _RANKS and _is_large(entry):
            found.setdefault(mesh, []).append((entry, tensor))
    if not found:
        return {}
    from paraminit_ext.mesh import ranks_of

    return {
        mesh: some for mesh, some in found.items() if len(some) >= _MATRICES and ranks_of(mesh) is not None
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
    """Give each rank of the mesh its part of each matrix; all ranks call together.

    Args:
        mesh: of the tensors
        targets: the matrices, and where they go
        make: makes a matrix whole
    """
    from paraminit_ext.mesh import ranks_of

    place, count = ranks_of(mesh) or (0, 1)
    for begin in range(0, len(targets), count):
        turn = targets[begin : begin + count]
        # Each its own first, so that all of them are made at the same time.
        own = make(*turn[place]) if place < len(turn) else None
        for maker, (entry, tensor) in enumerate(turn):
            _send(mesh, own if maker == place else None, entry, tensor)
        del own


def _send(mesh: Any, whole: Tensor | None, entry: Entry, tensor: Tensor) -> None:
    """Copy to each rank its part of a matrix that one of them has, some rows at a time."""
    part = locate("InitPlan.apply", tensor)
    for start, sizes in cuts(entry.shape, 0, math.prod(entry.shape), _PANEL):
        if whole is None:
            panel = torch.zeros(sizes, dtype=entry.dtype, device=part.local.device)
        else:
            panel = whole[slices(start, sizes)]
        panel = _sum_over(mesh, panel)
        for box in part.boxes:
            found = Box.at(start, sizes).within(box.local, box.start)
            if found is not None:
                here, there = found
                here.copy_(panel[slices(there, here.shape)])
    mark_written(tensor, part.local)


def _sum_over(mesh: Any, panel: Tensor) -> Tensor:
    """The sum over the ranks, by DTensor's own collectives: of one rank's numbers and zeros."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    words = panel.contiguous().view(_BITS[panel.dtype])
    partial = DTensor.from_local(words, mesh, [Partial()] * mesh.ndim, run_check=False)
    summed: Tensor = partial.redistribute(placements=[Replicate()] * mesh.ndim).to_local()
    return summed.view(panel.dtype)
