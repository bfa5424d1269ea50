"""Steps that can be done on any piece of a tensor, without the rest of it: elementwise fills and constants.

Checkpoints are written so, tensors of another dtype are, and the shards of a mesh.
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

# Fills of which a part costs no more than its elements.
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
# Steps that write one number, whatever was there.
_CONSTANTS = frozenset({"aten.fill_.Scalar", "aten.zero_.default", "constant_", "ones_", "zeros_"})


class Pieces:
    """The steps of an entry, to be done on pieces of its tensor.

    Args:
        entry: whose steps; :func:`is_in_pieces` has to hold
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
        """Give a piece of the whole that begins at ``start`` its values."""
        for step, boxes, key in self._steps:
            for box in boxes:
                found = box.within(piece, start)
                if found is None:
                    continue
                part, offset = found
                if step.do in _CONSTANTS:
                    (name, _), *rest = step.arguments
                    here = replace(step, arguments=((name, View(0)), *rest))
                    steps.run([here], {0: part}, _no_draw, {}, part.device)
                else:
                    source = {} if key is None else {"generator": key}
                    getattr(init, step.do)(shard(part, box.shape, offset), **step.options, **source)


def _no_draw(index: int) -> Key:
    raise AssertionError(index)


def is_in_pieces(entry: Entry) -> bool:
    """Whether each step is a fill or a constant that can be done on any piece of the tensor."""
    if not entry.steps or not entry.is_allocated_first or entry.layout is not None:
        return False
    return all(_boxes(entry, step) is not None for step in entry.steps)


# Steps of which a 16-bit value is the float32 value, rounded: a uniform fill keeps below its bound besides.
_ROUNDED = frozenset(
    {"aten.zero_.default", "kaiming_normal_", "normal_", "ones_", "xavier_normal_", "zeros_"}
)


def may_be_done_in(dtype: torch.dtype, entry: Entry) -> bool:
    """Whether steps done in this dtype give what they give in the entry's, converted."""
    is_rounding = entry.dtype == torch.float32 and dtype in (torch.bfloat16, torch.float16)
    return dtype == entry.dtype or (is_rounding and all(step.do in _ROUNDED for step in entry.steps))


def overwritten(entry: Entry, step: Step) -> tuple[int, int] | None:
    """The range in row-major order to which the step writes a constant; None if it does anything else."""
    if step.do not in _CONSTANTS:
        return None
    view = step.arguments[0][1]
    geometry = view.geometry or Geometry(entry.dtype, entry.shape, contiguous_stride(entry.shape))
    if view.slot or geometry.dtype != entry.dtype or geometry.stride != contiguous_stride(geometry.size):
        return None
    return geometry.offset, geometry.offset + math.prod(geometry.size)


def _boxes(entry: Entry, step: Step) -> list[Box] | None:
    """The boxes of the tensor that the step fills or overwrites; None if it does anything else."""
    if step.do not in _FILLS and step.do not in _CONSTANTS:
        return None
    (_, view), *rest = step.arguments
    if not isinstance(view, View) or view.slot or any(isinstance(value, View) for _, value in rest):
        return None
    box = box_of(entry.shape, entry.dtype, view.geometry)
    if box is not None:
        return [box]
    reach = overwritten(entry, step)
    if reach is None:
        return None
    # One number in a range of rows that begins or ends within one.
    return [Box.at(*cut) for cut in cuts(entry.shape, *reach, math.prod(entry.shape))]


def cuts(
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
