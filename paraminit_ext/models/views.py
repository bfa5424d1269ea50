"""Views of DTensors: fills of them that torch would have reach a copy.

``weight[index]`` of a DTensor that is sharded along that dimension is gathered first, so that a fill of it
changes nothing of the weight: the zeros that transformers and ``nn.Embedding`` write to the row of the
padding token, for example. Under :class:`paraminit_ext.patch` and :class:`paraminit_ext.keyed` a view is
remembered with what it is a view of, and with the same view of a tensor on meta that lies as the whole does.
Of a DTensor whose strides are not those of a new tensor nothing is remembered, and of a view with a step
(``weight[::2]``), or of a flattened tensor, a ``zero_`` or ``fill_`` reaches what torch has it reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from paraminit_ext import calls, init
from paraminit_ext.geometry import PLAIN_TYPES, Part, Shard, is_fake, loaded, locate, mark_written, shard
from paraminit_ext.key import Key
from paraminit_ext.many import DRAWING, resolve_fill
from paraminit_ext.models import seen
from paraminit_ext.models.layout import Geometry, box_of

_NAMES = (
    "adjoint",
    "chunk",
    "detach",
    "flatten",
    "hsplit",
    "moveaxis",
    "movedim",
    "narrow",
    "permute",
    "reshape",
    "select",
    "split",
    "squeeze",
    "swapaxes",
    "swapdims",
    "t",
    "tensor_split",
    "transpose",
    "unbind",
    "unflatten",
    "unsqueeze",
    "vsplit",
)
_VIEWS: frozenset[Callable[..., Any]] = frozenset(
    [
        *(getattr(owner, name) for name in _NAMES for owner in (torch, Tensor)),
        *(getattr(Tensor, name).__get__ for name in ("data", "T", "mT", "H", "mH")),
        Tensor.__getitem__,
        Tensor.view,
        Tensor.view_as,
    ]
)
# Methods that write one number.
_WRITES: frozenset[Callable[..., Any]] = frozenset({Tensor.fill_, Tensor.zero_})


class ViewOf(NamedTuple):
    """What a DTensor is a view of, and the same view of a tensor on meta that lies as the whole does."""

    whole: Tensor
    shadow: Tensor

    def parts(self, whole: Part) -> list[Shard] | None:
        """What ``whole``, located, has of the view; None if that is no range of each dimension."""
        box = box_of(tuple(self.whole.shape), self.whole.dtype, Geometry.of(self.shadow))
        if box is None:
            return None
        found = (box.within(one.local, one.start) for one in whole.boxes)
        return [shard(part, box.shape, start) for part, start in filter(None, found)]

    def fill(
        self, view: Tensor, name: str, arguments: Mapping[str, Any], source: torch.Generator | Key | None
    ) -> torch.Generator | Key | None:
        """Call the function of :mod:`paraminit_ext.init` on what of the view is held here.

        Args:
            view: the view itself, which the caller then fills as well, at the key that is returned
            name: the function
            arguments: its arguments but for the tensor and the generator
            source: where the numbers come from

        Raises:
            NotImplementedError: the view is a copy, and no range of indices of each dimension of the whole.
        """
        shape = tuple(self.shadow.shape)
        whole = locate(name, self.whole)
        if 0 in shape or is_fake(whole.local):
            return source
        parts = self.parts(whole)
        if parts is None:
            if _is_of(view, self.whole):
                return source
            raise NotImplementedError(
                f"paraminit_ext.{name}: expected a view of a DTensor that is a range of each dimension, got "
                f"shape {shape} of {tuple(self.whole.shape)}. Fill the tensor as a whole."
            )
        if name in DRAWING:
            # What is refused has drawn nothing.
            resolve_fill(torch.empty(shape, dtype=self.whole.dtype, device="meta"), name, arguments)
            source = calls.key_of_fill(name, whole, source)
            arguments = {**arguments, "generator": source}
        for part in parts:
            getattr(init, name)(part, **arguments)
        _mark_written(whole)
        return source


def _mark_written(whole: Part) -> None:
    mark_written(whole.given, whole.local)
    seen.written(whole.given)


# By view. No attribute of it: that would be saved and copied with the tensor.
_known = WeakIdKeyDictionary()


def view_of(tensor: object) -> ViewOf | None:
    """What a DTensor is a proper view of, where that is known."""
    found: ViewOf | None = _known.get(tensor) if len(_known) and isinstance(tensor, Tensor) else None
    return found if found is not None and found.shadow.numel() != found.whole.numel() else None


def note(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any) -> None:
    """After a call of torch: a view of a DTensor is remembered, and what is written to one is written here.

    Args:
        func: the function that was called
        args: its arguments
        kwargs: its arguments by name
        made: what it returned
    """
    if not args or type(args[0]) in PLAIN_TYPES or torch.compiler.is_compiling():
        return
    kind = loaded("torch.distributed.tensor", "DTensor")
    if kind is None or not isinstance(args[0], kind):
        return
    if func in _WRITES:
        view = view_of(args[0])
        if view is not None:
            whole = locate(func.__name__, view.whole)
            parts = view.parts(whole)
            if parts is not None:
                with torch.no_grad():
                    for part in parts:
                        func(part.local, *args[1:], **kwargs)
                _mark_written(whole)
    elif func in _VIEWS:
        _remember(func, args, kwargs, made, kind)


def _remember(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any, kind: type
) -> None:
    of: ViewOf | None = _known.get(args[0])
    if of is None:
        if not args[0].is_contiguous():
            return
        of = ViewOf(args[0], torch.empty(args[0].shape, dtype=args[0].dtype, device="meta"))
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
        if isinstance(one, kind) and one is not of.whole and _is_of(shadow, of.shadow):
            _known[one] = ViewOf(of.whole, shadow)


def _is_of(view: Tensor, whole: Tensor) -> bool:
    """Whether a view's memory is the whole's."""
    one, other = (getattr(tensor, "_local_tensor", tensor).untyped_storage() for tensor in (view, whole))
    return bool(one._cdata == other._cdata)
