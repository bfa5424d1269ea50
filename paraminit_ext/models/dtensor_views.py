"""Views of DTensors: make a fill of a view reach the DTensor, where torch would fill a copy.

If a DTensor is sharded along the indexed dimension, torch gathers it for ``weight[index]``, and a fill of the
result leaves the weight unchanged (``nn.Embedding`` zeroes the row of the padding token in this way). Under
``patch`` and ``keyed`` this module records the DTensor of each view. Not handled: views of non-contiguous
DTensors, and ``zero_`` or ``fill_`` of a view with a step (``weight[::2]``) or of a flattened tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from paraminit_ext import dispatch, init
from paraminit_ext.geometry import (
    PLAIN_TYPES,
    Part,
    Shard,
    class_if_imported,
    is_fake,
    locate,
    mark_written,
    shard,
)
from paraminit_ext.key import Key
from paraminit_ext.many import DRAWING_FUNCTIONS, resolve_fill
from paraminit_ext.models import storage_log
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
# Methods that write one number to all elements.
_WRITES: frozenset[Callable[..., Any]] = frozenset({Tensor.fill_, Tensor.zero_})


class ViewOf(NamedTuple):
    """The DTensor that a view belongs to, and the same view of a contiguous meta tensor of its shape."""

    whole: Tensor
    shadow: Tensor

    def parts(self, whole: Part) -> list[Shard] | None:
        """Return the view's elements in this rank's part of the whole, as shards of the view.

        Returns None if the view is not a range of indices in each dimension of the whole.
        """
        box = box_of(tuple(self.whole.shape), self.whole.dtype, Geometry.of(self.shadow))
        if box is None:
            return None
        overlaps = (box.within(local_box.local, local_box.start) for local_box in whole.boxes)
        return [shard(part, box.shape, start) for part, start in filter(None, overlaps)]

    def fill(
        self, view: Tensor, name: str, arguments: Mapping[str, Any], source: torch.Generator | Key | None
    ) -> torch.Generator | Key | None:
        """Fill this rank's elements of the view by a function of :mod:`paraminit_ext.init`.

        Args:
            view: the view itself; the caller fills it as well, with the returned source
            name: the name of the function
            arguments: its arguments, except the tensor and the generator
            source: the generator or key that gives the random numbers

        Returns:
            The source of the random numbers. A fill that draws returns the key that it used.

        Raises:
            NotImplementedError: the view is a copy and is not a range of indices in each dimension.
        """
        shape = tuple(self.shadow.shape)
        whole = locate(name, self.whole)
        if 0 in shape or is_fake(whole.local):
            return source
        parts = self.parts(whole)
        if parts is None:
            if _share_storage(view, self.whole):
                return source
            raise NotImplementedError(
                f"paraminit_ext.{name}: expected a view of a DTensor that is a range of each dimension, got "
                f"shape {shape} of {tuple(self.whole.shape)}. Fill the tensor as a whole."
            )
        if name in DRAWING_FUNCTIONS:
            # Check the arguments first, so that a refused call draws nothing.
            resolve_fill(torch.empty(shape, dtype=self.whole.dtype, device="meta"), name, arguments)
            source = dispatch.take_shared_key(name, whole, source)
            arguments = {**arguments, "generator": source}
        for part in parts:
            getattr(init, name)(part, **arguments)
        _mark_written(whole)
        return source


def _mark_written(whole: Part) -> None:
    mark_written(whole.given, whole.local)
    storage_log.log_write(whole.given)


# Maps each view to its ViewOf. An attribute of the view would be saved and copied with the tensor.
_recorded_views = WeakIdKeyDictionary()


def view_of(tensor: object) -> ViewOf | None:
    """Return the record of a DTensor's view; None if there is none or the view has every element."""
    found: ViewOf | None = (
        _recorded_views.get(tensor) if len(_recorded_views) and isinstance(tensor, Tensor) else None
    )
    return found if found is not None and found.shadow.numel() != found.whole.numel() else None


def after_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any) -> None:
    """Follow up a call of torch: record a new view of a DTensor, or repeat a write to a view on the DTensor.

    Args:
        func: the function that was called
        args: its positional arguments
        kwargs: its keyword arguments
        made: the result of the call
    """
    if not args or type(args[0]) in PLAIN_TYPES or torch.compiler.is_compiling():
        return
    kind = class_if_imported("torch.distributed.tensor", "DTensor")
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
        _record(func, args, kwargs, made, kind)


def _record(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any, kind: type
) -> None:
    base: ViewOf | None = _recorded_views.get(args[0])
    if base is None:
        if not args[0].is_contiguous():
            return
        base = ViewOf(args[0], torch.empty(args[0].shape, dtype=args[0].dtype, device="meta"))
    try:
        shadows = func(base.shadow, *args[1:], **kwargs)
    except (IndexError, TypeError, RuntimeError, NotImplementedError):
        # The result is not a view, for example if the index depends on values.
        return
    views = made if isinstance(made, tuple | list) else (made,)
    for view, shadow in zip(views, shadows if isinstance(shadows, tuple | list) else (shadows,), strict=True):
        # If the shadow has its own storage, the call is meant to return a copy.
        if isinstance(view, kind) and view is not base.whole and _share_storage(shadow, base.shadow):
            _recorded_views[view] = ViewOf(base.whole, shadow)


def _share_storage(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors, or their local tensors, share a storage."""
    first, second = (getattr(tensor, "_local_tensor", tensor).untyped_storage() for tensor in (a, b))
    return bool(first._cdata == second._cdata)
