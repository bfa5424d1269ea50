"""Write the values of a plan's entries to tensors: the fills of whole tensors in one batch, then the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paraminit_ext.geometry import PLAIN_TYPES, Part, box_index, copy_part, locate, mark_written
from paraminit_ext.key import Key
from paraminit_ext.many import fill_many
from paraminit_ext.models import steps
from paraminit_ext.models.distributed_orthogonal import spread, write_spread
from paraminit_ext.models.layout import Geometry
from paraminit_ext.models.names import local_tensor, mesh_of
from paraminit_ext.models.pieces import Pieces, can_run_in_pieces, commutes_with_cast, cuts
from paraminit_ext.models.steps import Step, View

if TYPE_CHECKING:
    from paraminit_ext.models.plan import Entry, InitPlan

# Number of elements of the buffer in which values are computed before rounding. It fits in a core's cache.
_PART = 1 << 18


def check_same_recordings(name: str, targets: Iterable[tuple[Entry, Tensor]]) -> None:
    """Raise on every rank unless all ranks of each mesh recorded the same draws.

    A plan with a key needs no such check, because the keys of its fills depend only on the names.

    Raises:
        RuntimeError: the recorded draws differ.
    """
    drawn: dict[Any, list[Any]] = {}
    for entry, tensor in targets:
        mesh = mesh_of(tensor)
        # On a rank outside of the mesh, the fill raises the error.
        if mesh is not None and entry.draws and mesh.get_coordinate() is not None:
            drawn.setdefault(mesh, []).append((entry.name, entry.draws))
    if drawn:
        from paraminit_ext.mesh import require_equal_on_ranks

        for mesh, draws in drawn.items():
            require_equal_on_ranks(
                name,
                mesh,
                repr(draws).encode(),
                "the same recorded draws",
                "Seed every rank alike before deferred_init (torch.manual_seed), or pass it a key.",
            )


@torch.no_grad()
def write(plan: InitPlan, targets: Sequence[tuple[Entry, Tensor]], key: Key | None) -> None:
    """Run the steps of each entry on its tensor, in place."""
    key = key or plan.key
    for mesh, matrices in spread(targets).items():
        write_spread(
            mesh, matrices, lambda entry, tensor: make(plan, entry, local_tensor(tensor).device, key)
        )
        spread_out = {id(tensor) for _, tensor in matrices}
        targets = [(entry, tensor) for entry, tensor in targets if id(tensor) not in spread_out]
    in_place = [(entry, tensor) for entry, tensor in targets if _is_done_in_place(entry, tensor)]
    filled = [(entry, tensor) for entry, tensor in in_place if entry.fill is not None]
    fill_many(_call(entry, tensor, key) for entry, tensor in filled)
    for entry, tensor in in_place:
        rest = entry.steps[1:] if entry.fill is not None else entry.steps
        steps.run(rest, {0: tensor}, _drawer(entry, key), plan.values, tensor.device)
    done = {id(tensor) for _, tensor in in_place}
    for entry, tensor in targets:
        if id(tensor) in done or not entry.steps:
            continue
        if can_run_in_pieces(entry) and not _is_expanded(tensor):
            _write_pieces(entry, tensor, key)
        elif _acts_on_the_whole(entry) and local_tensor(tensor) is not tensor:
            # A tensor with the placements of the target, so that the steps run on shards.
            made = torch.empty_like(tensor, dtype=entry.dtype, requires_grad=False)
            steps.run(entry.steps, {0: made}, _drawer(entry, key), plan.values, tensor.device)
            local_tensor(tensor).copy_(local_tensor(made))
            mark_written(tensor, local_tensor(tensor))
        else:
            _copy(make(plan, entry, local_tensor(tensor).device, key), tensor)


@torch.no_grad()
def make(plan: InitPlan, entry: Entry, device: torch.device | str, key: Key | None) -> Tensor:
    """Return a new tensor with the values of the entry, in its dtype and layout."""
    return steps.make(
        entry.steps,
        entry.shape,
        entry.dtype,
        entry.layout,
        _drawer(entry, key or plan.key),
        plan.values,
        device,
    )


def _drawer(entry: Entry, key: Key | None) -> Callable[[int], Key]:
    return lambda index: entry.draws[index].resolve(key)


def _call(entry: Entry, tensor: Tensor, key: Key | None) -> tuple[Tensor, str, dict[str, Any], Key | None]:
    """Return the first step of the entry as an argument of :func:`fill_many`."""
    step = entry.fill
    assert step is not None
    return tensor, step.do, step.options, None if step.draw is None else entry.draws[step.draw].resolve(key)


def _is_done_in_place(entry: Entry, tensor: Tensor) -> bool:
    """Return whether the steps can run on the tensor itself."""
    if _acts_on_the_whole(entry):
        return commutes_with_cast(tensor.dtype, entry)
    # Views in steps are byte ranges of a contiguous tensor, and temporaries are not distributed.
    is_alike = tensor.dtype == entry.dtype and local_tensor(tensor) is tensor
    return entry.is_allocated_first and is_alike and Geometry.of(tensor).is_contiguous


def _acts_on_the_whole(entry: Entry) -> bool:
    """Return whether every tensor argument of every step is the entry's whole tensor."""
    return entry.is_allocated_first and all(view == View(0) for step in entry.steps for view in _views(step))


def _views(step: Step) -> list[View]:
    found: list[View] = []
    waiting = [value for _, value in step.arguments]
    while waiting:
        value = waiting.pop()
        if isinstance(value, View):
            found.append(value)
        elif isinstance(value, tuple):
            waiting += value
    return found


def _is_expanded(tensor: Tensor) -> bool:
    """Return whether elements share memory, because a dimension has stride 0."""
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _write_pieces(entry: Entry, tensor: Tensor, key: Key | None) -> None:
    """Run the steps on the part of the tensor that this process holds."""
    pieces = Pieces(entry, key)
    part = locate("InitPlan.apply", tensor)
    for box in part.boxes:
        if commutes_with_cast(box.local.dtype, entry) and type(box.local) in PLAIN_TYPES:
            pieces.fill(box.local, box.start)
        else:
            _write_converted(entry, box, pieces)
    mark_written(tensor, part.local)


def _write_converted(entry: Entry, box: Part, pieces: Pieces) -> None:
    """Write the values of a box in another dtype, through a buffer that fits in a core's cache."""
    buffer = torch.empty(min(_PART, box.local.numel()), dtype=entry.dtype, device=box.local.device)
    for start, sizes in cuts(tuple(box.local.shape), 0, box.local.numel(), _PART):
        piece = buffer[: math.prod(sizes)].view(sizes)
        pieces.fill(piece, tuple(map(sum, zip(box.start, start, strict=True))))
        box.local[box_index(start, sizes)].copy_(piece)


# ----------------------------------------------------------------------------------------
# In consecutive parts
# ----------------------------------------------------------------------------------------


def parts(
    plan: InitPlan,
    entry: Entry,
    dtype: torch.dtype,
    key: Key | None = None,
    device: torch.device | str = "cpu",
    elements: int = _PART,
) -> Iterator[Tensor]:
    """Yield the values of the entry, flat and in row-major order, in parts of at most ``elements`` each.

    The values are those of :func:`make`, converted to ``dtype``. Parts alternate between two buffers: a part
    keeps its values while the next part is computed, so that another thread can read it meanwhile. If the
    entry cannot be computed in pieces, the whole tensor is computed first.
    """
    return parts_of_range(plan, entry, dtype, 0, math.prod(entry.shape), key, device, elements)


@torch.no_grad()
def parts_of_range(
    plan: InitPlan,
    entry: Entry,
    dtype: torch.dtype,
    begin: int,
    end: int,
    key: Key | None = None,
    device: torch.device | str = "cpu",
    elements: int = _PART,
) -> Iterator[Tensor]:
    """As :func:`parts`, for the elements from index ``begin`` to ``end`` in row-major order."""
    entry = plan.resolved(entry)
    if can_run_in_pieces(entry):
        flat = _filled(entry, key or plan.key, device, begin, end, elements)
    else:
        flat = iter(make(plan, entry, device, key).flatten()[begin:end].split(elements))
    if dtype == entry.dtype:
        yield from flat
        return
    rounded = _alternating_buffers(min(elements, end - begin), dtype, device)
    for part, buffer in zip(flat, rounded, strict=False):
        yield buffer[: part.numel()].copy_(part)


def _alternating_buffers(elements: int, dtype: torch.dtype, device: torch.device | str) -> Iterator[Tensor]:
    """Yield two buffers in turn, forever."""
    return itertools.cycle([torch.empty(elements, dtype=dtype, device=device) for _ in range(2)])


def _filled(
    entry: Entry, key: Key | None, device: torch.device | str, begin: int, end: int, elements: int
) -> Iterator[Tensor]:
    """Yield the values of a range of elements in row-major order, in flat parts."""
    buffers = _alternating_buffers(min(elements, end - begin), entry.dtype, device)
    pieces = Pieces(entry, key)
    for buffer, (start, sizes) in zip(buffers, cuts(entry.shape, begin, end, elements), strict=False):
        flat = buffer[: math.prod(sizes)]
        pieces.fill(flat.view(sizes), start)
        yield flat


def _copy(made: Tensor, tensor: Tensor) -> None:
    """Copy a whole tensor to a tensor of the same shape, of which this process may hold only a part."""
    if local_tensor(tensor) is tensor:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            # In an expanded dimension, all indices share memory, so write one index.
            if stride == 0 and size > 1:
                tensor, made = tensor.narrow(dim, 0, 1), made.narrow(dim, 0, 1)
        tensor.copy_(made)
        return
    part = locate("InitPlan.apply", tensor)
    copy_part(made, part)
    mark_written(tensor, part.local)
