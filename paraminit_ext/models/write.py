"""From the entries of a plan to values in tensors: fills of whole tensors together, then the other steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paraminit_ext import init
from paraminit_ext.geometry import locate, shard
from paraminit_ext.key import Key
from paraminit_ext.many import fill_many
from paraminit_ext.models import steps
from paraminit_ext.models.layout import Geometry
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
    arguments = {name: value for name, value in step.arguments if name != "tensor"}
    return tensor, step.do, arguments, None if step.draw is None else entry.draws[step.draw].resolve(key)


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
    """Fill a tensor of another dtype part by part, where one fill is all that there is to do."""
    step = entry.fill
    if step is None or len(entry.steps) > 1 or step.do not in _IN_PARTS or not entry.shape:
        return False
    if local_tensor(tensor) is not tensor:
        return False
    _, name, arguments, source = _call(entry, tensor, key)
    rows = entry.shape[0]
    rest = entry.shape[1:]
    count = max(1, _PART // max(1, math.prod(rest)))
    part = torch.empty((min(count, rows), *rest), dtype=entry.dtype, device=tensor.device)
    for begin in range(0, rows, count):
        held = part[: rows - begin]
        piece = shard(held, entry.shape, (begin, *(0 for _ in rest)))
        getattr(init, name)(piece, **arguments, generator=source)
        tensor[begin : begin + count].copy_(held)
    return True


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
