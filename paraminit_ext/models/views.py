"""Views of DTensors: fills of them that torch would have reach a copy.

``weight[index]`` of a DTensor that is sharded along that dimension is gathered first, so that a fill of it
changes nothing of the weight: the zeros that transformers and ``nn.Embedding`` write to the row of the
padding token, for example. Under :class:`paraminit_ext.patch` and :class:`paraminit_ext.keyed` a view
remembers what it is a view of, by the same view of a tensor on meta that lies as the whole does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paraminit_ext import calls, init
from paraminit_ext.geometry import Part, loaded, locate, mark_written, shard
from paraminit_ext.key import Key
from paraminit_ext.many import DRAWING
from paraminit_ext.models.layout import Geometry, box_of

# The attribute of a view that says what it is a view of.
_MARK = "_paraminit_view"
_NAMES = (
    "chunk",
    "detach",
    "flatten",
    "narrow",
    "permute",
    "select",
    "split",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unflatten",
    "unsqueeze",
)
_VIEWS: frozenset[Callable[..., Any]] = frozenset(
    [
        *(getattr(owner, name) for name in _NAMES for owner in (torch, Tensor)),
        *(getattr(Tensor, name).__get__ for name in ("data", "T", "mT")),
        Tensor.__getitem__,
        Tensor.view,
    ]
)
# Methods that write one number.
_WRITES: frozenset[Callable[..., Any]] = frozenset({Tensor.fill_, Tensor.zero_})


class ViewOf(NamedTuple):
    """What a DTensor is a view of, and the same view of a tensor on meta that lies as the whole does."""

    whole: Tensor
    shadow: Tensor

    def parts(self, name: str) -> list[Part]:
        """What is held here of the view, as parts of it.

        Raises:
            NotImplementedError: it is no range of indices of each dimension of the whole.
        """
        shape = tuple(self.whole.shape)
        box = box_of(shape, self.whole.dtype, Geometry.of(self.shadow))
        if box is None:
            raise NotImplementedError(
                f"paraminit_ext.{name}: expected a view of a DTensor that is a range of each dimension, got "
                f"shape {tuple(self.shadow.shape)} of {shape}. Fill the tensor as a whole."
            )
        found = (box.within(one.local, one.start) for one in locate(name, self.whole).boxes)
        return [Part(part, part, box.shape, start) for part, start in filter(None, found)]

    def fill(
        self, name: str, arguments: Mapping[str, Any], source: torch.Generator | Key | None
    ) -> Key | None:
        """Call the function of :mod:`paraminit_ext.init` on what of the view is held here.

        Returns:
            the key of the fill, for those who fill the view itself as well; None of a constant
        """
        parts = self.parts(name)
        key = None
        if name in DRAWING:
            key = calls.key_of_fill(name, locate(name, self.whole), source)
            arguments = {**arguments, "generator": key}
        for part in parts:
            getattr(init, name)(shard(part.local, part.global_shape, part.shard_offset), **arguments)
        mark_written(self.whole, parts[0].local if parts else self.whole)
        return key


def view_of(tensor: object) -> ViewOf | None:
    """What a DTensor is a proper view of, where that is known."""
    found: ViewOf | None = getattr(tensor, _MARK, None)
    return found if found is not None and found.shadow.numel() != found.whole.numel() else None


def note(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any) -> None:
    """After a call of torch: a view of a DTensor is marked, and what is written to one is written here.

    Args:
        func: the function that was called
        args: its arguments
        kwargs: its arguments by name
        made: what it returned
    """
    kind = loaded("torch.distributed.tensor", "DTensor")
    if kind is None or not args or not isinstance(args[0], kind):
        return
    if func in _WRITES:
        view = view_of(args[0])
        if view is not None:
            with torch.no_grad():
                for part in view.parts(func.__name__):
                    func(part.local, *args[1:], **kwargs)
            mark_written(view.whole, args[0])
    elif func in _VIEWS:
        _mark(func, args, kwargs, made, kind)


def _mark(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any, kind: type
) -> None:
    given = args[0]
    of: ViewOf | None = getattr(given, _MARK, None)
    if of is None:
        of = ViewOf(given, torch.empty(given.shape, dtype=given.dtype, device="meta"))
    try:
        shadows = func(of.shadow, *args[1:], **kwargs)
    except (IndexError, TypeError, RuntimeError, NotImplementedError):
        # An index that hangs on values, for example: no view.
        return
    several = made if isinstance(made, tuple | list) else (made,)
    for one, shadow in zip(
        several, shadows if isinstance(shadows, tuple | list) else (shadows,), strict=True
    ):
        # What shares no memory with the tensor is a copy by the meaning of the call.
        if isinstance(one, kind) and shadow._is_view() and one is not of.whole:
            setattr(one, _MARK, ViewOf(of.whole, shadow))
