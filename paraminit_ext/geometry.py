"""Where a tensor stands in the whole that it is part of, and which tensors are refused.

A plain tensor, a :func:`shard` and a DTensor all become a :class:`Part`: the local tensor, the shape of the
whole and the place of this part in it. Nothing here draws and nothing is written.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paraminit_ext import _C
from paraminit_ext.warn import warn

_MAX_NUMEL = (1 << 63) - 1
_HAS_CUDA = _C.has_cuda()

REAL_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
FLOATING_DTYPES = REAL_DTYPES | {torch.complex32, torch.complex64, torch.complex128}


# Tensors that are their own memory and nothing else.
PLAIN_TYPES = (Tensor, torch.nn.Parameter)


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """The part held here of a global tensor: made by :func:`shard`, taken by every function of ``init``."""

    local: Tensor
    global_shape: tuple[int, ...]
    shard_offset: tuple[int, ...]

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole: what fans are computed from."""
        return torch.Size(self.global_shape)


def shard(local: Tensor, global_shape: Sequence[int], shard_offset: Sequence[int]) -> Shard:
    """Name ``local`` as the part of a tensor of ``global_shape`` that begins at ``shard_offset``.

    Passed to a function of :mod:`paraminit_ext.init` in place of the tensor, it is filled with its elements
    of the
    whole: shards filled under one key, side by side, are the global tensor filled under that key. Fans are
    those of the whole, and the function returns ``local``.

    Args:
        local: the tensor that is held here, of the whole's number of dimensions; it may be empty
        global_shape: the shape of the whole, in elements
        shard_offset: where ``local`` begins in the whole, in elements, one number a dimension

    Raises:
        TypeError: ``local`` is not a tensor, or a size or an offset is not an int.
        ValueError: another number of dimensions, or a part that reaches outside the whole.

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
            "Pass the tensor that is held here (a DTensor goes to the function as it is)."
        )
    whole, start = _integers("global_shape", global_shape), _integers("shard_offset", shard_offset)
    if not len(whole) == len(start) == local.dim():
        raise ValueError(
            f"paraminit_ext.shard: expected {local.dim()} sizes and {local.dim()} offsets for a local tensor "
            f"of shape {tuple(local.shape)}, got global_shape {whole} and shard_offset {start}. Give one "
            "number a dimension."
        )
    if not all(o >= 0 and o + n <= g for o, n, g in zip(start, local.shape, whole, strict=True)):
        raise ValueError(
            f"paraminit_ext.shard: expected a part inside the whole of shape {whole}, got shape "
            f"{tuple(local.shape)} at {start}. Offsets are in elements, and offset + size may not pass the "
            "whole's size."
        )
    if math.prod(whole) > _MAX_NUMEL:
        raise ValueError(
            f"paraminit_ext.shard: expected a whole of fewer than 2**63 elements, got shape {whole}. "
            "Indices are 64 bits wide."
        )
    return Shard(local, whole, start)


class Part(NamedTuple):
    """A tensor's place; empty tuples for ``global_shape`` and ``shard_offset`` say that it is the whole.

    A local tensor whose elements are no one box of the whole has ``several``, each of them a view of it; its
    own ``shard_offset`` is then empty.
    """

    local: Tensor
    given: Tensor
    global_shape: tuple[int, ...]
    shard_offset: tuple[int, ...]
    several: tuple[Part, ...] = ()

    @property
    def boxes(self) -> tuple[Part, ...]:
        """Parts that are one box each, and together are this one."""
        return self.several or (self,)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        return self.global_shape or tuple(self.local.shape)

    @property
    def start(self) -> tuple[int, ...]:
        return self.shard_offset or (0,) * self.local.dim()

    @property
    def draws(self) -> bool:
        """Whether a fill takes a draw: an empty part of a whole with elements does, as its peers do."""
        if self.local.is_meta:
            return False
        return self.local.numel() != 0 or (bool(self.global_shape) and 0 not in self.global_shape)


def locate(name: str, tensor: Tensor | Shard) -> Part:
    """Resolve what the caller passed to the function called ``name`` into its part of the whole.

    Raises:
        TypeError: not a tensor.
        RuntimeError: a parameter that another library has partitioned away, or a DTensor on a rank outside
            its mesh.
        NotImplementedError: a DTensor of partial sums, or of placements that are not known.
    """
    if type(tensor) is Shard:
        _refuse_partitioned(name, tensor.local)
        return Part(tensor.local, tensor.local, tensor.global_shape, tensor.shard_offset)
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"paraminit_ext.{name}: expected a torch.Tensor or a paraminit_ext.shard, got "
            f"{type(tensor).__name__}. Pass the tensor that is to be filled."
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


def refuse_unfillable(
    name: str, local: Tensor, dtypes: frozenset[torch.dtype] = FLOATING_DTYPES, kernel: bool = True
) -> None:
    """Raise unless the function called ``name`` can write every element of ``local`` on its own.

    The ops refuse all this too. It is asked here first so that a refused call has drawn nothing.

    Args:
        name: the function that was called, for the messages
        local: the tensor that is to be filled
        dtypes: the dtypes that the function fills; empty for any
        kernel: whether it needs a kernel of this package (torch's own fills do not)

    Raises:
        NotImplementedError: dtype or layout has no fill.
        RuntimeError: elements share memory or have none, an inference tensor outside inference mode.
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
            f"paraminit_ext.{name}: expected a dense tensor, got a nested one. Fill the parts that its "
            "unbind() gives."
        )
    if local.layout is not torch.strided:
        raise NotImplementedError(
            f"paraminit_ext.{name}: expected a dense tensor, got layout {local.layout}. "
            "Fill a dense tensor and convert it."
        )
    # Asking breaks a graph that is being traced; the ops ask again when a compiled one runs.
    if torch.compiler.is_compiling():
        return
    if local.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a normal tensor outside inference mode, got an inference "
            "tensor. Fill it under torch.inference_mode(), or clone it first."
        )
    if not local.is_contiguous() and _C.overlaps_itself(local):
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a memory location of its own for each element, got shape "
            f"{tuple(local.shape)} with strides {local.stride()}, which overlap. Fill a .clone() or the base "
            "tensor."
        )
    refuse_unbacked(name, local)
    if kernel and not local.is_cpu and not (local.is_cuda and _HAS_CUDA) and not local.is_meta:
        _warn_of_staging(local.device)


def refuse_unbacked(name: str, local: Tensor) -> None:
    """Raise where the storage of a plain tensor ends before its elements do, and so would be written past.

    Raises:
        RuntimeError: a storage that was resized, as FSDP frees that of a parameter.
    """
    if type(local) in PLAIN_TYPES and not torch.compiler.is_compiling() and _C.lacks_storage(local):
        raise RuntimeError(
            f"paraminit_ext.{name}: expected storage for every element, got shape {tuple(local.shape)} in "
            f"{local.untyped_storage().nbytes()} bytes. Resize the storage, or fill the tensor before its "
            "memory is freed."
        )


def mark_written(given: Tensor, local: Tensor) -> None:
    """Move the version counter of what the caller passed, where what was written is another tensor.

    Autograd then refuses what was saved before, as it does for a plain tensor.
    """
    if given is not local and not given.is_inference():
        torch.autograd.graph.increment_version(given)


def _join(dtypes: Iterable[torch.dtype]) -> str:
    names = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes if not dtype.is_complex)
    return ", ".join(names[:-1]) + f" or {names[-1]}"


_warned = False


def _warn_of_staging(device: torch.device) -> None:
    """Say once a process that the CPU fills what lies on another device, and what would do it there."""
    global _warned
    if _warned or torch.compiler.is_compiling():
        return
    _warned = True
    if device.type == "cuda":
        warn(
            "paraminit_ext was built without CUDA kernels: tensors on cuda are filled by the CPU and copied, "
            "with the same values. Install a CUDA toolkit and run `FORCE_CUDA=1 pip install "
            "--no-build-isolation -e .`."
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
            f"paraminit_ext.shard: expected a sequence of ints for {what}, got {values!r}. Give one int a "
            "dimension."
        ) from None


def loaded(module: str, name: str) -> Any:
    """A class of a module that takes long to import, or None: nobody has an instance without having it."""
    return getattr(sys.modules.get(module), name, None)


def is_fake(tensor: object) -> bool:
    """Whether a tensor has no values, nor anything that is drawn for it, as under a FakeTensorMode."""
    kind = loaded("torch._subclasses.fake_tensor", "FakeTensor")
    return kind is not None and isinstance(tensor, kind)


def _is_dtensor(tensor: object) -> bool:
    kind = loaded("torch.distributed.tensor", "DTensor")
    return kind is not None and isinstance(tensor, kind)


def slices(start: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    """The index of a box of a tensor."""
    return tuple(slice(begin, begin + size) for begin, size in zip(start, sizes, strict=True))


def copy_part(whole: Tensor, part: Part) -> None:
    """Copy from a tensor of the whole's shape what the part holds of it."""
    for box in part.boxes:
        box.local.copy_(whole[slices(box.start, box.local.shape)])


def centre_tap(part: Part) -> Tensor | None:
    """The matrix at the middle of a convolution's kernel, as far as this part of the weight holds it."""
    plane = part.local
    for size, begin in zip(reversed(part.whole_shape[2:]), reversed(part.start[2:]), strict=True):
        place = size // 2 - begin
        if not 0 <= place < plane.size(-1):
            return None
        plane = plane.select(-1, place)
    return plane
