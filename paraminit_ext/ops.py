"""The parts of the operators that torch's stable ABI cannot express.

The operators and their kernels are compiled (csrc/torch/ops.cpp). This module adds the rules for autograd,
for version counters, for meta tensors and for conjugate and negative views. It also defines the operator that
draws a key, because a ``torch.Generator`` is a Python object.
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

# For each fill: the number of parameters before the key in its arguments, and the dtypes that it fills.
FILLS: dict[str, tuple[int, frozenset[torch.dtype]]] = {
    "uniform_": (2, FLOATING_DTYPES),
    "normal_": (2, FLOATING_DTYPES),
    "trunc_normal_": (4, REAL_DTYPES),
    "sparse_": (2, FLOATING_DTYPES),
    "orthogonal_": (1, REAL_DTYPES),
    "words_": (0, frozenset({torch.int64})),
}
_ERROR_TYPES: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "NotImplementedError": NotImplementedError,
    "OutOfMemoryError": torch.OutOfMemoryError,
    "RuntimeError": RuntimeError,
}


def _redispatch(op: torch._ops.OpOverload, keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
    """Call the kernel below, and raise its errors with their own types.

    torch passes on the message of an error from a compiled kernel, but not its type.
    """
    # This comes first: TorchDynamo, which reaches this function after a graph break, gives up at the guard.
    # At a function of _C it would warn.
    with torch._C._AutoDispatchBelowADInplaceOrView():
        _C.take_error_type()  # discard the error type of an earlier call
        try:
            return op.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *arguments)
        except Exception as error:
            error_type = _ERROR_TYPES.get(_C.take_error_type())
            if error_type is None or type(error) is error_type:
                raise
            raise error_type(str(error)) from None


def _read_only_kernel(op: torch._ops.OpOverload) -> Callable[..., Tensor]:
    def kernel(keys: torch._C.DispatchKeySet, *arguments: Any) -> Tensor:
        result: Tensor = _redispatch(op, keys, *arguments)
        return result

    return kernel


def _in_place_kernel(name: str, op: torch._ops.OpOverload) -> Callable[..., None]:
    """Return a kernel that does the work of torch's own in-place functions around the compiled kernel.

    It refuses a tensor that requires grad under grad mode (a fill has no gradient) and an inference tensor
    outside inference mode. After the fill it increments the version and zeroes the forward-mode tangent.
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


def _meta_kernel(name: str) -> Callable[..., None]:
    """Return a kernel for meta tensors, which makes the checks of the real kernel. Sizes may be symbolic."""
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
        # The number of zeros of sparse_ may be symbolic, and check_parameters does not need it.
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
    """Return a kernel that fills a plain tensor and copies it to a conjugate or negative view.

    Reading the view then gives the values of the fill.
    """

    def kernel(tensor: Tensor, *arguments: Any) -> None:
        sizes_are_known = not any(isinstance(size, torch.SymInt) for size in tensor.shape)
        if sizes_are_known and _C.overlaps_itself(tensor):
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
        _library.impl(_name + _overload, _in_place_kernel(_name, _op), "ADInplaceOrView", with_keyset=True)
        _library.impl(_name + _overload, _meta_kernel(_name), "Meta")
        _library.impl(_name + _overload, torch.library.fallthrough_kernel, "Autograd")
        _library.impl(_name + _overload, _through_copy(_name, _op), "Conjugate")
        _library.impl(_name + _overload, _through_copy(_name, _op), "Negative")

# Keys are int64 with the bits of the words, because torch before 2.12 cannot save a graph that contains
# uint64. The device is a keyword argument, because torch looks it up by name when it recomputes a part of a
# graph.
_SEEDED = (torch.Tag.nondeterministic_seeded,)
_library.define("draw_key(*, Device device, Generator? generator=None) -> Tensor", tags=_SEEDED)
_library.impl("draw_key", draw_on_device, "BackendSelect")
_library.impl("draw_key", draw_on_device, "CompositeExplicitAutograd")
# This overload is for torch.jit.trace, which does not support a device as an argument.
_library.define("draw_key.like(Tensor like) -> Tensor", tags=_SEEDED)
_library.impl("draw_key.like", lambda like: draw_on_device(like.device), "CompositeExplicitAutograd")
_library.impl("draw_key.like", lambda like: torch.empty(2, dtype=torch.int64, device=like.device), "Meta")
_library.impl("fold_in", lambda key, _: torch.empty_like(key), "Meta")
_library.impl("statistics", lambda tensor: torch.empty(10, dtype=torch.float64, device=tensor.device), "Meta")
for _name in ("fold_in", "draw_key.like", "statistics"):
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")
for _name in ("fold_in", "statistics"):
    _op = getattr(torch.ops.paraminit_ext, _name).default
    _library.impl(_name, _read_only_kernel(_op), "ADInplaceOrView", with_keyset=True)

DRAW_KEY = torch.ops.paraminit_ext.draw_key.default
DRAW_KEY_LIKE = torch.ops.paraminit_ext.draw_key.like
FOLD_IN = torch.ops.paraminit_ext.fold_in.default
