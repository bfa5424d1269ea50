"""What torch does before and after the kernels of the operators, for which its stable ABI has no names.

The operators and their kernels are compiled (csrc/torch/ops.cpp). Here is the rest: what autograd asks of a
tensor that is written, its version, tensors without memory, conjugate and negative views, and the operator
that draws a key, since a ``torch.Generator`` is Python's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from paraminit_ext import _C
from paraminit_ext.draws import draw_on_device
from paraminit_ext.geometry import FLOATING_DTYPES, REAL_DTYPES

# The numbers before the key of each fill's arguments, and the dtypes that it fills.
FILLS: dict[str, tuple[int, frozenset[torch.dtype]]] = {
    "uniform_": (2, FLOATING_DTYPES),
    "normal_": (2, FLOATING_DTYPES),
    "trunc_normal_": (4, REAL_DTYPES),
    "sparse_": (2, FLOATING_DTYPES),
    "orthogonal_": (1, REAL_DTYPES),
    "words_": (0, frozenset({torch.int64})),
}
_RAISED: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "NotImplementedError": NotImplementedError,
    "OutOfMemoryError": torch.OutOfMemoryError,
    "RuntimeError": RuntimeError,
}


def _redispatch(op: torch._ops.OpOverload, keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
    """Call what is below, and raise what it refuses as the kind of error that it is.

    torch hands on what a compiled kernel has said, and not what kind of error it was.
    """
    _C.take_refusal()  # of a call before this one, which nobody asked about
    try:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *arguments)
    except Exception as error:
        kind = _RAISED.get(_C.take_refusal())
        if kind is None or type(error) is kind:
            raise
        raise kind(str(error)) from None


def _read(op: torch._ops.OpOverload) -> Callable[..., Tensor]:
    def kernel(keys: torch._C.DispatchKeySet, *arguments: Any) -> Tensor:
        result: Tensor = _redispatch(op, keys, *arguments)
        return result

    return kernel


def _write(name: str, op: torch._ops.OpOverload) -> Callable[..., None]:
    """What torch's own in-place functions do before and after their kernels.

    A tensor that requires grad is refused under grad mode (a fill has no gradient), an inference tensor
    outside inference mode; the version moves, and the tangent of forward-mode differentiation becomes zero.
    """

    def kernel(keys: torch._C.DispatchKeySet, tensor: Tensor, *arguments: Any) -> None:
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"paraminit_ext.{name}: expected a tensor that does not require grad, got one that does "
                "while grad mode is on. Fill it under torch.no_grad()."
            )
        if tensor.is_inference():
            raise RuntimeError(
                f"paraminit_ext.{name}: expected a normal tensor outside inference mode, got an inference "
                "tensor. Fill it under torch.inference_mode(), or fill a clone."
            )
        _redispatch(op, keys, tensor, *arguments)
        increment_version(tensor)
        if forward_ad._current_level >= 0:
            tangent = torch._VF._unpack_dual(tensor, level=0)[1]
            if tangent is not None:
                tangent.zero_()

    return kernel


def _check(name: str) -> Callable[..., None]:
    """Raise what the kernel would, for a tensor without memory; its sizes may be symbols."""
    count, dtypes = FILLS[name]

    def kernel(tensor: Tensor, *arguments: Any) -> None:
        if tensor.layout is not torch.strided:
            raise NotImplementedError(
                f"paraminit_ext.{name}: expected a strided tensor, got layout {tensor.layout}. Fill its "
                "values() or a dense tensor."
            )
        if tensor.dtype not in dtypes:
            raise NotImplementedError(
                f"paraminit_ext.{name}: expected a tensor of {', '.join(sorted(map(str, dtypes)))}, got "
                f"{tensor.dtype}. Fill one of these and convert it."
            )
        dims = tensor.dim()
        if (name == "sparse_" and dims != 2) or (name == "orthogonal_" and dims < 2):
            expected = "2" if name == "sparse_" else "2 or more"
            raise ValueError(
                f"paraminit_ext.{name}: expected a tensor of {expected} dimensions, got {dims}. "
                "Pass a matrix."
            )
        # A count of zeros may be a symbol, and is no matter here.
        numbers = tuple(n if isinstance(n, float) else 0.0 for n in arguments[:count])
        _C.check_parameters(name, numbers, tensor.dtype)
        key = arguments[count]
        if isinstance(key, Tensor) and (
            key.dtype not in (torch.int64, torch.uint64)
            or key.shape != (2,)
            or not key.is_contiguous()
            or key.device != tensor.device
        ):
            raise ValueError(
                f"paraminit_ext.{name}: expected a contiguous key of two uint64 or int64 on {tensor.device}, "
                f"got {key.dtype} of shape {tuple(key.shape)} on {key.device}. Use Key.to_tensor()."
            )

    return kernel


def _through_copy(name: str, op: torch._ops.OpOverload) -> Callable[..., None]:
    """Fill a conjugate or negative view as it reads, by way of a plain tensor."""

    def kernel(tensor: Tensor, *arguments: Any) -> None:
        known = not any(isinstance(size, torch.SymInt) for size in tensor.shape)
        if known and _C.overlaps_itself(tensor):
            raise RuntimeError(
                f"paraminit_ext.{name}: expected a tensor whose elements do not share memory, got shape "
                f"{tuple(tensor.shape)} with strides {tensor.stride()}. Use .contiguous() or .clone()."
            )
        plain = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        op(plain, *arguments)
        tensor.copy_(plain)

    return kernel


_library = torch.library.Library("paraminit_ext", "FRAGMENT")
for _name in FILLS:
    for _overload in ("", ".key"):
        _op = getattr(getattr(torch.ops.paraminit_ext, _name), _overload[1:] or "default")
        _library.impl(_name + _overload, _write(_name, _op), "ADInplaceOrView", with_keyset=True)
        _library.impl(_name + _overload, _check(_name), "Meta")
        _library.impl(_name + _overload, torch.library.fallthrough_kernel, "Autograd")
        _library.impl(_name + _overload, _through_copy(_name, _op), "Conjugate")
        _library.impl(_name + _overload, _through_copy(_name, _op), "Negative")

# As int64 of the words' bits: torch before 2.12 cannot save a graph that has uint64 in it. By name: what
# recomputes a part of a graph looks for a device under its name.
_SEEDED = (torch.Tag.nondeterministic_seeded,)
_library.define("draw_key(*, Device device, Generator? generator=None) -> Tensor", tags=_SEEDED)
_library.impl("draw_key", draw_on_device, "BackendSelect")
_library.impl("draw_key", draw_on_device, "CompositeExplicitAutograd")
# For torch.jit.trace, which takes no device for an argument.
_library.define("draw_key.like(Tensor like) -> Tensor", tags=_SEEDED)
_library.impl("draw_key.like", lambda like: draw_on_device(like.device), "CompositeExplicitAutograd")
_library.impl("draw_key.like", lambda like: torch.empty(2, dtype=torch.int64, device=like.device), "Meta")
_library.impl("fold_in", lambda key, _: torch.empty_like(key), "Meta")
_library.impl("statistics", lambda tensor: torch.empty(10, dtype=torch.float64, device=tensor.device), "Meta")
for _name in ("fold_in", "draw_key.like", "statistics"):
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")
for _name in ("fold_in", "statistics"):
    _op = getattr(torch.ops.paraminit_ext, _name).default
    _library.impl(_name, _read(_op), "ADInplaceOrView", with_keyset=True)

DRAW_KEY = torch.ops.paraminit_ext.draw_key.default
DRAW_KEY_LIKE = torch.ops.paraminit_ext.draw_key.like
FOLD_IN = torch.ops.paraminit_ext.fold_in.default
