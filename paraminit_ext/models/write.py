"""From the entries of a plan to values in tensors: fills of whole tensors together, then the other steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paraminit_ext import init
from paraminit_ext.geometry import locate, shard
from paraminit_ext.key import Key
from paraminit_ext.many import fill_many
from paraminit_ext.models import steps
from paraminit_ext.models.layout import Geometry, contiguous_stride
from paraminit_ext.models.names import local_tensor
from paraminit_ext.models.steps import Step, View

if TYPE_CHECKING:
    from paraminit_ext.models.plan import Entry, InitPlan

# Fills of which a part costs no more than its elements.
_IN_PARTS = frozenset(
    {
        "kaiming_normal_",
        "kaiming_uniform_",
        "lecun_normal_",
        "lecun_uniform_",
        "normal_",
        "trunc_normal_",
        "uniform_",
        "variance_scaling_",
        "xavier_normal_",
        "xavier_uniform_",
    }
)
# Steps that write one number, whatever was there.
_CONSTANTS = frozenset({"aten.fill_.Scalar", "aten.zero_.default", "constant_", "ones_", "zeros_"})
# Elements of the parts in which a tensor is filled and rounded: they stay in a core's cache.
_PART = 1 << 18


@torch.no_grad()
def write(plan: InitPlan, targets: Sequence[tuple[Entry, Tensor]], key: Key | None) -> None:
    """Do the steps of each entry on a tensor of its shape, in place."""
    key = key or plan.key
    in_place = [(entry, tensor) for entry, tensor in targets if _is_done_in_place(entry, tensor)]
    together = [(entry, tensor) for entry, tensor in in_place if entry.fill is not None]
    fill_many(_call(entry, tensor, key) for entry, tensor in together)
    for entry, tensor in in_place:
        rest = entry.steps[1:] if entry.fill is not None else entry.steps
        steps.run(rest, {0: tensor}, _drawer(entry, key), plan.values, tensor.device)
    done = {id(tensor) for _, tensor in in_place}
    for entry, tensor in targets:
        if id(tensor) not in done and entry.steps and not _fill_rounded(entry, tensor, key):
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
    if not entry.is_allocated_first or tensor.dtype != entry.dtype:
        return False
    views = [view for step in entry.steps for view in _views(step)]
    if all(view == View(0) for view in views):
        return True
    # Views are of a tensor that lies as a new one does, and temporaries are not distributed.
    return local_tensor(tensor) is tensor and Geometry.of(tensor).is_contiguous


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


def _fill_rounded(entry: Entry, tensor: Tensor, key: Key | None) -> bool:
    """Fill a tensor of another dtype part by part, where the steps can be done so."""
    if not is_in_parts(entry) or local_tensor(tensor) is not tensor:
        return False
    for start, part in _filled(entry, key, tensor.device, 0, math.prod(entry.shape), _PART):
        here = tuple(slice(begin, begin + size) for begin, size in zip(start, part.shape, strict=True))
        tensor[here].copy_(part)
    return True


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
    if is_in_parts(entry):
        flat = (part.flatten() for _, part in _filled(entry, key or plan.key, device, begin, end, elements))
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


def is_in_parts(entry: Entry) -> bool:
    """Whether the steps are a fill that can be done in parts, and constants in places."""
    return (
        entry.fill is not None
        and entry.fill.do in _IN_PARTS
        and all(overwritten(entry, step) is not None for step in entry.steps[1:])
    )


def overwritten(entry: Entry, step: Step) -> tuple[int, int] | None:
    """The range in row-major order to which the step writes a constant; None if it does anything else."""
    if step.do not in _CONSTANTS:
        return None
    view = step.arguments[0][1]
    geometry = view.geometry or Geometry(entry.dtype, entry.shape, contiguous_stride(entry.shape))
    if view.slot or geometry.dtype != entry.dtype or geometry.stride != contiguous_stride(geometry.size):
        return None
    return geometry.offset, geometry.offset + math.prod(geometry.size)


def _filled(
    entry: Entry, key: Key | None, device: torch.device | str, begin: int, end: int, elements: int
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Fill the parts of a range in row-major order: where each begins, its values."""
    buffers = _two_in_turn(min(elements, end - begin), entry.dtype, device)
    _, name, arguments, source = _call(entry, next(buffers), key)
    for buffer, (start, sizes) in zip(buffers, _cuts(entry.shape, begin, end, elements), strict=False):
        flat = buffer[: math.prod(sizes)]
        part = flat.view(sizes)
        getattr(init, name)(shard(part, entry.shape, start), **arguments, generator=source)
        for step in entry.steps[1:]:
            _overwrite(entry, step, flat, begin)
        yield start, part
        begin += flat.numel()


def _overwrite(entry: Entry, step: Step, flat: Tensor, begin: int) -> None:
    """Write a step's constant to those of its elements that ``flat`` has, which begins at ``begin``."""
    reach = overwritten(entry, step)
    assert reach is not None
    low, high = max(reach[0] - begin, 0), min(reach[1] - begin, flat.numel())
    if low < high:
        (name, _), *rest = step.arguments
        here = replace(step, arguments=((name, View(0)), *rest))
        steps.run([here], {0: flat[low:high]}, _no_draw, {}, flat.device)


def _no_draw(index: int) -> Key:
    raise AssertionError(index)


def _cuts(
    shape: tuple[int, ...], begin: int, end: int, elements: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Boxes (start, sizes) of at most ``elements`` that are the range from ``begin`` to ``end``, in order."""
    # A scalar is cut as a row of one.
    sizes = shape or (1,)
    lengths = contiguous_stride(sizes)
    while begin < end:
        most = min(elements, end - begin)
        start = tuple(begin // length % size for length, size in zip(lengths, sizes, strict=True))
        # The first dimension of which the next indices are whole.
        dim = next(d for d, length in enumerate(lengths) if length <= most and begin % length == 0)
        count = min(most // lengths[dim], sizes[dim] - start[dim])
        box = (1,) * dim + (count,) + sizes[dim + 1 :]
        yield start[: len(shape)], box[: len(shape)]
        begin += count * lengths[dim]


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
    here = tuple(
        slice(begin, begin + length) for begin, length in zip(part.start, part.local.shape, strict=True)
    )
    part.local.copy_(made[here])
    torch.autograd.graph.increment_version(tensor)
