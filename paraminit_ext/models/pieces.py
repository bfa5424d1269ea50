"""Steps that can run on any piece of a tensor, without the rest of it: element-wise fills and constants.

Used to write checkpoints, tensors of another dtype than the plan's, and the shards of a mesh.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paraminit_ext import init
from paraminit_ext.geometry import shard
from paraminit_ext.key import Key
from paraminit_ext.models import steps
from paraminit_ext.models.layout import Box, Geometry, box_of, contiguous_stride
from paraminit_ext.models.steps import Step, View

if TYPE_CHECKING:
    from paraminit_ext.models.plan import Entry

# Fills whose cost on a piece is proportional to the elements of the piece.
_FILLS = frozenset(
    {
        "dirac_",
        "eye_",
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
# Steps that write one number to all elements and read nothing.
_CONSTANTS = frozenset({"aten.fill_.Scalar", "aten.zero_.default", "constant_", "ones_", "zeros_"})


class Pieces:
    """The steps of an entry, prepared to run on pieces of its tensor.

    Args:
        entry: the entry; :func:`can_run_in_pieces` must be true for it
        key: the key of the model
    """

    def __init__(self, entry: Entry, key: Key | None) -> None:
        self._steps: list[tuple[Step, list[Box], Key | None]] = []
        for step in entry.steps:
            boxes = _boxes(entry, step)
            assert boxes is not None
            draw = None if step.draw is None else entry.draws[step.draw].resolve(key)
            self._steps.append((step, boxes, draw))

    def fill(self, piece: Tensor, start: Sequence[int]) -> None:
        """Write the values of a piece that begins at index ``start`` of the whole tensor."""
        for step, boxes, key in self._steps:
            for box in boxes:
                overlap = box.within(piece, start)
                if overlap is None:
                    continue
                part, offset = overlap
                if step.do in _CONSTANTS:
                    (name, _), *rest = step.arguments
                    step_on_part = replace(step, arguments=((name, View(0)), *rest))
                    steps.run([step_on_part], {0: part}, steps.no_draw, {}, part.device)
                else:
                    source = {} if key is None else {"generator": key}
                    getattr(init, step.do)(shard(part, box.shape, offset), **step.options, **source)


def can_run_in_pieces(entry: Entry) -> bool:
    """Return whether every step is a fill or a constant that can run on any piece of the tensor."""
    if not entry.steps or not entry.is_allocated_first or entry.layout is not None:
        return False
    return all(_boxes(entry, step) is not None for step in entry.steps)


# Steps whose 16-bit result is the rounded float32 result. A uniform fill is not one of them: it also keeps
# rounded values below its upper bound.
_ROUNDED = frozenset(
    {"aten.zero_.default", "kaiming_normal_", "normal_", "ones_", "xavier_normal_", "zeros_"}
)


def commutes_with_cast(dtype: torch.dtype, entry: Entry) -> bool:
    """Return whether the steps give the same in ``dtype`` as in the entry's dtype with a conversion."""
    is_rounding = entry.dtype == torch.float32 and dtype in (torch.bfloat16, torch.float16)
    return dtype == entry.dtype or (is_rounding and all(step.do in _ROUNDED for step in entry.steps))


def constant_range(entry: Entry, step: Step) -> tuple[int, int] | None:
    """Return the range of elements, in row-major order, to which the step writes a constant.

    Returns None if the step does anything else.
    """
    if step.do not in _CONSTANTS:
        return None
    view = step.arguments[0][1]
    geometry = view.geometry or Geometry(entry.dtype, entry.shape, contiguous_stride(entry.shape))
    if view.slot or geometry.dtype != entry.dtype or geometry.stride != contiguous_stride(geometry.size):
        return None
    return geometry.offset, geometry.offset + math.prod(geometry.size)


def _boxes(entry: Entry, step: Step) -> list[Box] | None:
    """Return the boxes of the tensor that the step fills or sets to a constant; None for other steps."""
    if step.do not in _FILLS and step.do not in _CONSTANTS:
        return None
    (_, view), *rest = step.arguments
    if not isinstance(view, View) or view.slot or any(isinstance(value, View) for _, value in rest):
        return None
    box = box_of(entry.shape, entry.dtype, view.geometry)
    if box is not None:
        return [box]
    element_range = constant_range(entry, step)
    if element_range is None:
        return None
    # A constant in a range that may begin or end inside a row, so it takes several boxes.
    return [Box.at(*cut) for cut in cuts(entry.shape, *element_range, math.prod(entry.shape))]


def cuts(
    shape: tuple[int, ...], begin: int, end: int, elements: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Split the range from ``begin`` to ``end``, in row-major order, into boxes of at most ``elements``.

    Yields (start, sizes) of each box, in order.
    """
    # Treat a scalar as a vector of one element.
    sizes = shape or (1,)
    lengths = contiguous_stride(sizes)
    while begin < end:
        most = min(elements, end - begin)
        start = tuple(begin // length % size for length, size in zip(lengths, sizes, strict=True))
        # The outermost dimension whose next index starts at `begin` and fits into the box.
        dim = next(d for d, length in enumerate(lengths) if length <= most and begin % length == 0)
        count = min(most // lengths[dim], sizes[dim] - start[dim])
        box = (1,) * dim + (count,) + sizes[dim + 1 :]
        yield start[: len(shape)], box[: len(shape)]
        begin += count * lengths[dim]
