"""The place of a tensor in its global tensor, and the checks that refuse tensors.

A plain tensor, a :func:`shard` and a DTensor all become a :class:`Part`: the local tensor, the global shape
and the offset of the local tensor in the global one. This module does not draw and does not fill.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from paraminit_ext import _C
from paraminit_ext.warn import warn

_MAX_NUMEL = (1 << 63) - 1
_HAS_CUDA = _C.has_cuda()

REAL_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
FLOATING_DTYPES = REAL_DTYPES | {torch.complex32, torch.complex64, torch.complex128}
_COMPUTED_IN_FLOAT64 = frozenset({torch.float64, torch.complex128})

# The types of tensors that are nothing but their own memory. Subclasses may be too: see is_plain.
PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_plain(tensor: object) -> TypeGuard[Tensor]:
    """Return whether ``tensor`` is nothing but its own memory: its class overrides no call of torch."""
    kind = type(tensor)
    return kind in PLAIN_TYPES or (
        issubclass(kind, Tensor)
        and kind.__torch_function__ is torch.nn.Parameter.__torch_function__
        and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    )


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """Part of a global tensor that this process holds.

    :func:`shard` makes it, and every function of :mod:`paraminit_ext.init` accepts it in place of a tensor.
    ``local`` is the tensor held here. ``global_shape`` is the shape of the global tensor. ``shard_offset`` is
    the index in the global tensor at which ``local`` begins.
    """

    local: Tensor
    global_shape: tuple[int, ...]
    shard_offset: tuple[int, ...]

    @property
    def shape(self) -> torch.Size:
        """The global shape, from which fans are computed."""
        return torch.Size(self.global_shape)


def shard(local: Tensor, global_shape: Sequence[int], shard_offset: Sequence[int]) -> Shard:
    """Describe ``local`` as the part of a global tensor that begins at ``shard_offset``.

    Pass the result to a function of :mod:`paraminit_ext.init` in place of the tensor. The function fills
    ``local`` with its elements of the global tensor and returns ``local``. Shards that are filled with the
    same key form the global tensor that is filled with that key. Fans are computed from ``global_shape``.

    Args:
        local: the tensor that this process holds, with as many dimensions as the global tensor; it may be
            empty
        global_shape: the shape of the global tensor, in elements
        shard_offset: the index in the global tensor at which ``local`` begins, in elements, one number for
            each dimension

    Returns:
        The :class:`Shard`.

    Raises:
        TypeError: if ``local`` is not a plain tensor, or a size or an offset is not an int.
        ValueError: if the numbers of dimensions differ, or the shard reaches outside the global tensor.

    Examples:
        >>> import torch
        >>> from paraminit_ext import Key, init, shard
        >>> whole = init.xavier_normal_(torch.empty(6, 4), generator=Key(1))
        >>> lower = init.xavier_normal_(shard(torch.empty(2, 4), (6, 4), (4, 0)), generator=Key(1))
        >>> torch.equal(lower, whole[4:])
        True
    """
    if not isinstance(local, Tensor) or _is_dtensor(local):
        raise TypeError(
            f"paraminit_ext.shard: expected a plain tensor for local, got {type(local).__name__}. "
            "Pass the local tensor, or pass a DTensor directly to the function."
        )
    whole, start = _integers("global_shape", global_shape), _integers("shard_offset", shard_offset)
    if not len(whole) == len(start) == local.dim():
        raise ValueError(
            f"paraminit_ext.shard: expected {local.dim()} sizes and {local.dim()} offsets for a local tensor "
            f"of shape {tuple(local.shape)}, got global_shape {whole} and shard_offset {start}. Give one "
            "number for each dimension."
        )
    if not all(o >= 0 and o + n <= g for o, n, g in zip(start, local.shape, whole, strict=True)):
        raise ValueError(
            f"paraminit_ext.shard: expected a shard inside global_shape {whole}, got shape "
            f"{tuple(local.shape)} at shard_offset {start}. Give offsets in elements, with offset + size at "
            "most the global size."
        )
    if math.prod(whole) > _MAX_NUMEL:
        raise ValueError(
            f"paraminit_ext.shard: expected a global_shape of fewer than 2**63 elements, got {whole}. "
            "Use a smaller one: indices are 64 bits wide."
        )
    return Shard(local, whole, start)


class Part(NamedTuple):
    """A local tensor and its place in the global tensor.

    ``given`` is the tensor that the caller passed, for example a DTensor. Empty tuples for ``global_shape``
    and ``shard_offset`` mean that ``local`` is the global tensor. If the elements of ``local`` do not form
    one box of the global tensor, ``box_views`` has one part for each box, a view of ``local``, and
    ``shard_offset`` is empty.
    """

    local: Tensor
    given: Tensor
    global_shape: tuple[int, ...]
    shard_offset: tuple[int, ...]
    box_views: tuple[Part, ...] = ()

    @property
    def boxes(self) -> tuple[Part, ...]:
        """Parts that each form one box, and together form this part."""
        return self.box_views or (self,)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        return self.global_shape or tuple(self.local.shape)

    @property
    def start(self) -> tuple[int, ...]:
        return self.shard_offset or (0,) * self.local.dim()

    @property
    def draws(self) -> bool:
        """Whether a fill takes a draw.

        An empty part of a global tensor that has elements takes one, because the parts on other ranks do.
        """
        if self.local.is_meta:
            return False
        return self.local.numel() != 0 or (bool(self.global_shape) and 0 not in self.global_shape)


def locate(name: str, tensor: Tensor | Shard) -> Part:
    """Return the :class:`Part` of the tensor or shard that the caller passed to the function ``name``.

    Raises:
        TypeError: if ``tensor`` is not a tensor or a shard.
        RuntimeError: if another library has partitioned the parameter away, or this rank is outside the mesh
            of the DTensor.
        NotImplementedError: if the DTensor has a placement other than Shard and Replicate.
    """
    if type(tensor) is Shard:
        _refuse_partitioned(name, tensor.local)
        return Part(tensor.local, tensor.local, tensor.global_shape, tensor.shard_offset)
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"paraminit_ext.{name}: expected a torch.Tensor or a paraminit_ext.shard, got "
            f"{type(tensor).__name__}. Pass the tensor to fill."
        )
    if type(tensor) not in PLAIN_TYPES and _is_dtensor(tensor):
        from paraminit_ext import mesh

        return mesh.locate(name, tensor)
    _refuse_partitioned(name, tensor)
    return Part(tensor, tensor, (), ())


def _refuse_partitioned(name: str, tensor: Tensor) -> None:
    if tensor.numel() == 0 and hasattr(tensor, "ds_id"):
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a parameter with its elements, got one that ZeRO has "
            "partitioned away. Wrap the call in `with deepspeed.zero.GatheredParameters(parameter, "
            "modifier_rank=0):`."
        )


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which the values of a tensor of ``dtype`` are computed before they are rounded."""
    return torch.float64 if dtype in _COMPUTED_IN_FLOAT64 else torch.float32


def refuse_unfillable(
    name: str, local: Tensor, dtypes: frozenset[torch.dtype] = FLOATING_DTYPES, kernel: bool = True
) -> None:
    """Raise unless the function ``name`` can write every element of ``local`` independently.

    The operators make the same checks. They are made here first so that a refused call draws nothing.

    Args:
        name: the function that was called, for the messages
        local: the tensor to fill
        dtypes: the dtypes that the function fills; empty for any
        kernel: whether the function needs a kernel of this package (torch's own fills do not)

    Raises:
        NotImplementedError: if the dtype or the layout is not supported.
        RuntimeError: if elements share memory or have no storage, or the tensor is an inference tensor
            outside inference mode.
    """
    if dtypes and local.dtype not in dtypes:
        kind = "a floating-point tensor" if torch.complex64 in dtypes else "a real floating-point tensor"
        raise NotImplementedError(
            f"paraminit_ext.{name}: expected {kind}, got {local.dtype}. "
            f"Fill a tensor of {_join(dtypes)} and convert it."
        )
    if not torch.compiler.is_compiling() and _C.is_fillable(local):
        return
    if local.is_nested:
        raise NotImplementedError(
            f"paraminit_ext.{name}: expected a dense tensor, got a nested one. Fill the parts from "
            "its unbind()."
        )
    if local.layout is not torch.strided:
        raise NotImplementedError(
            f"paraminit_ext.{name}: expected a dense tensor, got layout {local.layout}. "
            "Fill a dense tensor and convert it."
        )
    # The next checks would break a graph that is being traced. The operators repeat them when the graph runs.
    if torch.compiler.is_compiling():
        return
    if local.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a normal tensor outside inference mode, got an inference "
            "tensor. Fill it under torch.inference_mode(), or clone it first."
        )
    if not local.is_contiguous() and _C.overlaps_itself(local):
        raise RuntimeError(
            f"paraminit_ext.{name}: expected elements that do not share memory, got shape "
            f"{tuple(local.shape)} with strides {local.stride()}, which overlap. Fill a .clone() or the base "
            "tensor."
        )
    refuse_unbacked(name, local)
    if kernel and not local.is_cpu and not (local.is_cuda and _HAS_CUDA) and not local.is_meta:
        _warn_of_staging(local.device)


def refuse_unbacked(name: str, local: Tensor) -> None:
    """Raise if the storage of a plain tensor is too small, so that a fill would write past its end.

    Raises:
        RuntimeError: if the storage was shrunk, as FSDP does to free the memory of a parameter.
    """
    if type(local) in PLAIN_TYPES and not torch.compiler.is_compiling() and _C.storage_too_small(local):
        raise RuntimeError(
            f"paraminit_ext.{name}: expected storage for every element, got shape {tuple(local.shape)} in "
            f"{local.untyped_storage().nbytes()} bytes. Resize the storage, or fill the tensor before its "
            "memory is freed."
        )


def mark_written(given: Tensor, local: Tensor) -> None:
    """Increment the version of the tensor that the caller passed, if another tensor was written.

    Autograd then refuses values of it that were saved before the fill, as it does for a plain tensor.
    """
    if given is not local and not given.is_inference():
        torch.autograd.graph.increment_version(given)


def _join(dtypes: Iterable[torch.dtype]) -> str:
    names = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes if not dtype.is_complex)
    return ", ".join(names[:-1]) + f" or {names[-1]}"


_warned = False


def _warn_of_staging(device: torch.device) -> None:
    """Warn once in a process that the CPU fills tensors of another device, and name the remedy."""
    global _warned
    if _warned or torch.compiler.is_compiling():
        return
    _warned = True
    if device.type == "cuda":
        warn(
            "paraminit_ext was built without CUDA kernels: tensors on cuda are filled by the CPU and copied, "
            "with the same values. Install a wheel with CUDA kernels, or build the sources with FORCE_CUDA=1."
        )
    else:
        warn(
            f"paraminit_ext has no kernels for {device.type}: the CPU fills its tensors and copies them, "
            "with the same values. Nothing can be installed for it: only the CPU and CUDA have kernels."
        )


def _integers(what: str, values: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(
            f"paraminit_ext.shard: expected a sequence of ints for {what}, got {values!r}. Give one int for "
            "each dimension."
        ) from None


def class_if_imported(module: str, name: str) -> Any:
    """Return a class of a module that is slow to import, or None if nothing has imported the module.

    In the second case no instance of the class can exist.
    """
    return getattr(sys.modules.get(module), name, None)


def is_fake(tensor: object) -> bool:
    """Return whether ``tensor`` is a FakeTensor, which has no values and takes no real draw."""
    kind = class_if_imported("torch._subclasses.fake_tensor", "FakeTensor")
    return kind is not None and isinstance(tensor, kind)


def _is_dtensor(tensor: object) -> bool:
    kind = class_if_imported("torch.distributed.tensor", "DTensor")
    return kind is not None and isinstance(tensor, kind)


def box_index(start: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    """Return the index of the box that begins at ``start`` and has these sizes."""
    return tuple(slice(begin, begin + size) for begin, size in zip(start, sizes, strict=True))


def copy_part(whole: Tensor, part: Part) -> None:
    """Copy the elements of the part from a tensor of the global shape."""
    for box in part.boxes:
        box.local.copy_(whole[box_index(box.start, box.local.shape)])


def centre_tap(part: Part) -> Tensor | None:
    """Return the part's view of the matrix at the centre of a convolution's kernel, or None."""
    plane = part.local
    for size, begin in zip(reversed(part.whole_shape[2:]), reversed(part.start[2:]), strict=True):
        centre = size // 2 - begin
        if not 0 <= centre < plane.size(-1):
            return None
        plane = plane.select(-1, centre)
    return plane
