"""From the entries of a plan to values in tensors: fills of whole tensors together, then the other steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paraminit_ext.geometry import PLAIN_TYPES, Part, copy_part, locate, mark_written, slices
from paraminit_ext.key import Key
from paraminit_ext.many import fill_many
from paraminit_ext.models import steps
from paraminit_ext.models.layout import Geometry
from paraminit_ext.models.names import local_tensor, mesh_of
from paraminit_ext.models.pieces import Pieces, cuts, is_in_pieces, may_be_done_in
from paraminit_ext.models.spread import spread, write_spread
from paraminit_ext.models.steps import Step, View

if TYPE_CHECKING:
    from paraminit_ext.models.plan import Entry, InitPlan

# Elements of the parts in which a tensor is filled and rounded: they stay in a core's cache.
_PART = 1 << 18


def refuse_other_recordings(name: str, targets: Iterable[tuple[Entry, Tensor]]) -> None:
    """Raise on every rank unless the ranks of each mesh drew the same keys when they recorded.

    A plan with a key of its own needs no such question: its names decide.

    Raises:
        RuntimeError: they did not.
    """
    drawn: dict[Any, list[Any]] = {}
    for entry, tensor in targets:
        mesh = mesh_of(tensor)
        # A rank outside of it is told so by the fill.
        if mesh is not None and entry.draws and mesh.get_coordinate() is not None:
            drawn.setdefault(mesh, []).append((entry.name, entry.draws))
    if drawn:
        from paraminit_ext.mesh import refuse_others

        for mesh, draws in drawn.items():
            refuse_others(
                name,
                mesh,
                repr(draws).encode(),
                "the same recorded draws",
                "Seed every rank alike before deferred_init (torch.manual_seed), or pass it a key.",
            )


@torch.no_grad()
def write(plan: InitPlan, targets: Sequence[tuple[Entry, Tensor]], key: Key | None) -> None:
    """Do the steps of each entry on a tensor of its shape, in place."""
    key = key or plan.key
    for mesh, matrices in spread(targets).items():
        write_spread(
            mesh, matrices, lambda entry, tensor: make(plan, entry, local_tensor(tensor).device, key)
        )
        spread_out = {id(tensor) for _, tensor in matrices}
        targets = [(entry, tensor) for entry, tensor in targets if id(tensor) not in spread_out]
    in_place = [(entry, tensor) for entry, tensor in targets if _is_done_in_place(entry, tensor)]
    together = [(entry, tensor) for entry, tensor in in_place if entry.fill is not None]
    fill_many(_call(entry, tensor, key) for entry, tensor in together)
    for entry, tensor in in_place:
        rest = entry.steps[1:] if entry.fill is not None else entry.steps
        steps.run(rest, {0: tensor}, _drawer(entry, key), plan.values, tensor.device)
    done = {id(tensor) for _, tensor in in_place}
    for entry, tensor in targets:
        if id(tensor) in done or not entry.steps:
            continue
        if is_in_pieces(entry) and not _is_expanded(tensor):
            _write_pieces(entry, tensor, key)
        elif _acts_on_the_whole(entry) and local_tensor(tensor) is not tensor:
            # Distributed as the tensor is, so that this is a shard too.
            made = torch.empty_like(tensor, dtype=entry.dtype, requires_grad=False)
            steps.run(entry.steps, {0: made}, _drawer(entry, key), plan.values, tensor.device)
            local_tensor(tensor).copy_(local_tensor(made))
            mark_written(tensor, local_tensor(tensor))
        else:
            _copy(make(plan, entry, local_tensor(tensor).device, key), tensor)


@torch.no_grad()
def make(plan: InitPlan, entry: Entry, device: torch.device | str, key: Key | None) -> Tensor:
    """A new tensor with the entry's values, in the entry's dtype and layout."""
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
    """The first step of the entry, as an entry of :func:`fill_many`."""
    step = entry.fill
    assert step is not None
    return tensor, step.do, step.options, None if step.draw is None else entry.draws[step.draw].resolve(key)


def _is_done_in_place(entry: Entry, tensor: Tensor) -> bool:
    """Whether the steps can be done on the tensor itself."""
    if _acts_on_the_whole(entry):
        return may_be_done_in(tensor.dtype, entry)
    # Views are told by bytes, of a tensor that lies as a new one does, and temporaries are not distributed.
    is_alike = tensor.dtype == entry.dtype and local_tensor(tensor) is tensor
    return entry.is_allocated_first and is_alike and Geometry.of(tensor).is_contiguous


def _acts_on_the_whole(entry: Entry) -> bool:
    """Whether no step names another tensor than the entry's own, as a whole."""
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
    """Whether elements share memory, in which case they are written once."""
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _write_pieces(entry: Entry, tensor: Tensor, key: Key | None) -> None:
    """Do the steps on what of the tensor is held here, and nothing else."""
    pieces = Pieces(entry, key)
    part = locate("InitPlan.apply", tensor)
    for box in part.boxes:
        if may_be_done_in(box.local.dtype, entry) and type(box.local) in PLAIN_TYPES:
            pieces.fill(box.local, box.start)
        else:
            _write_converted(entry, box, pieces)
    mark_written(tensor, part.local)


def _write_converted(entry: Entry, box: Part, pieces: Pieces) -> None:
    """The same to another dtype, by way of a buffer that stays in a core's cache."""
    buffer = torch.empty(min(_PART, box.local.numel()), dtype=entry.dtype, device=box.local.device)
    for start, sizes in cuts(tuple(box.local.shape), 0, box.local.numel(), _PART):
        piece = buffer[: math.prod(sizes)].view(sizes)
        pieces.fill(piece, tuple(map(sum, zip(box.start, start, strict=True))))
        box.local[slices(start, sizes)].copy_(piece)


# ----------------------------------------------------------------------------------------
# Part by part
# ----------------------------------------------------------------------------------------


def parts(
    plan: InitPlan,
    entry: Entry,
    dtype: torch.dtype,
    key: Key | None = None,
    device: torch.device | str = "cpu",
    elements: int = _PART,
) -> Iterator[Tensor]:
    """The entry's values, flat and in row-major order, in consecutive parts of at most ``elements`` each.

    They are those of :func:`make`, converted to ``dtype``. A part keeps its values until the next but one is
    asked for, so that one may be read while another thread makes the next. Where the steps are a fill, and
    constants in places, no more than two parts are ever there; else the tensor is made as a whole.
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
    """The same of the elements from ``begin`` to ``end``, as they are counted in row-major order."""
    entry = plan.resolved(entry)
    if is_in_pieces(entry):
        flat = _filled(entry, key or plan.key, device, begin, end, elements)
    else:
        flat = iter(make(plan, entry, device, key).flatten()[begin:end].split(elements))
    if dtype == entry.dtype:
        yield from flat
        return
    rounded = _two_in_turn(min(elements, end - begin), dtype, device)
    for part, buffer in zip(flat, rounded, strict=False):
        yield buffer[: part.numel()].copy_(part)


def _two_in_turn(elements: int, dtype: torch.dtype, device: torch.device | str) -> Iterator[Tensor]:
    return itertools.cycle([torch.empty(elements, dtype=dtype, device=device) for _ in range(2)])


def _filled(
    entry: Entry, key: Key | None, device: torch.device | str, begin: int, end: int, elements: int
) -> Iterator[Tensor]:
    """The parts of a range in row-major order, flat."""
    buffers = _two_in_turn(min(elements, end - begin), entry.dtype, device)
    pieces = Pieces(entry, key)
    for buffer, (start, sizes) in zip(buffers, cuts(entry.shape, begin, end, elements), strict=False):
        flat = buffer[: math.prod(sizes)]
        pieces.fill(flat.view(sizes), start)
        yield flat


def _copy(made: Tensor, tensor: Tensor) -> None:
    """Copy a whole tensor to one of the same shape, of which this process may hold a part."""
    if local_tensor(tensor) is tensor:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            # Expanded: the same memory for every index, so it is written once.
            if stride == 0 and size > 1:
                tensor, made = tensor.narrow(dim, 0, 1), made.narrow(dim, 0, 1)
        tensor.copy_(made)
        return
    part = locate("InitPlan.apply", tensor)
    copy_part(made, part)
    mark_written(tensor, part.local)
