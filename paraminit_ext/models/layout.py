"""How a tensor lies in its storage; its elements by their bits and places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a tensor lies in its storage; sizes, strides and offset in elements."""

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def of(tensor: Tensor) -> Geometry:
        return Geometry(tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    @property
    def is_contiguous(self) -> bool:
        """Whether this is what ``torch.empty(size)`` makes."""
        return self.offset == 0 and self.stride == contiguous_stride(self.size)

    @property
    def extent(self) -> tuple[int, int]:
        """The bytes of the storage that the tensor reaches: from, to."""
        if 0 in self.size:
            return 0, 0
        reach = sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        return self.offset * self.dtype.itemsize, (self.offset + reach + 1) * self.dtype.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether the tensor has every byte of its extent, once."""
        reach = 1
        for stride, size in sorted(
            (stride, size) for stride, size in zip(self.stride, self.size, strict=True) if size != 1
        ):
            if stride != reach:
                return False
            reach *= size
        return True

    def view(self, tensor: Tensor) -> Tensor:
        """The view of the tensor's storage.

        Raises:
            ValueError: it reaches past the storage's end.
        """
        if self.extent[1] > tensor.untyped_storage().nbytes():
            raise ValueError(f"a view of {self.extent[1]} bytes of {tensor.untyped_storage().nbytes()}")
        if tensor.dtype != self.dtype:
            flat = torch.empty(0, dtype=self.dtype, device=tensor.device)
            return flat.set_(tensor.untyped_storage(), self.offset, self.size, self.stride)
        return tensor.as_strided(self.size, self.stride, self.offset)

    def empty(self, device: torch.device | str | None) -> Tensor:
        """A new tensor that lies like this from its storage's beginning."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=device)


@dataclass(frozen=True, slots=True)
class Box:
    """A view that has a range of indices of each dimension of the whole.

    Args:
        begin: the first index of each dimension of the whole
        end: the one after the last
        dims: for each dimension of the view the one of the whole, or None for a size of one that is its own
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    dims: tuple[int | None, ...]

    @staticmethod
    def at(start: Sequence[int], sizes: Sequence[int]) -> Box:
        """A box that has all dimensions of the whole."""
        end = (begin + size for begin, size in zip(start, sizes, strict=True))
        return Box(tuple(start), tuple(end), tuple(range(len(start))))

    @property
    def shape(self) -> tuple[int, ...]:
        """The view's sizes."""
        return tuple(1 if dim is None else self.end[dim] - self.begin[dim] for dim in self.dims)

    def within(self, piece: Tensor, start: Sequence[int]) -> tuple[Tensor, tuple[int, ...]] | None:
        """What a piece of the whole has of the view: a view of the piece, and where in this one it begins."""
        low = [max(begin, at) for begin, at in zip(self.begin, start, strict=True)]
        high = [min(end, at + size) for end, at, size in zip(self.end, start, piece.shape, strict=True)]
        if any(first >= last for first, last in zip(low, high, strict=True)):
            return None
        part = piece[tuple(slice(a - at, b - at) for a, b, at in zip(low, high, start, strict=True))]
        kept = [dim for dim in self.dims if dim is not None]
        part = part.permute([*kept, *(dim for dim in range(part.dim()) if dim not in kept)])
        # Of the others the view has one index.
        while part.dim() > len(kept):
            part = part.select(-1, 0)
        for place, dim in enumerate(self.dims):
            if dim is None:
                part = part.unsqueeze(place)
        return part, tuple(0 if dim is None else low[dim] - self.begin[dim] for dim in self.dims)


def box_of(shape: tuple[int, ...], dtype: torch.dtype, geometry: Geometry | None) -> Box | None:
    """A view as a box of the whole, which lies as a new tensor does; None if it is none."""
    if geometry is None:
        return Box.at((0,) * len(shape), shape)
    if geometry.dtype != dtype or 0 in shape:
        return None
    strides = contiguous_stride(shape)
    begin = [geometry.offset // stride % size for stride, size in zip(strides, shape, strict=True)]
    end = [place + 1 for place in begin]
    dims: list[int | None] = []
    for size, stride in zip(geometry.size, geometry.stride, strict=True):
        if size == 1:
            dims.append(None)
            continue
        found = [d for d in range(len(shape)) if strides[d] == stride and shape[d] > 1 and d not in dims]
        if not found or begin[found[0]] + size > shape[found[0]]:
            return None
        end[found[0]] = begin[found[0]] + size
        dims.append(found[0])
    return Box(tuple(begin), tuple(end), tuple(dims))


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """The bits of each element as an integer: equality tells -0 from +0, and a NaN equals itself.

    Of complex128, which no integer is wide enough for, they are two along a last dimension.
    """
    if tensor.element_size() > 8:
        tensor = torch.view_as_real(tensor)
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def index_at(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of the element at that place in row-major order."""
    found: list[int] = []
    for size in reversed(shape):
        place, index = divmod(place, size)
        found.insert(0, index)
    return tuple(found)


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def contiguous_stride(size: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    reach = 1
    for length in reversed(size):
        strides.append(reach)
        reach *= max(length, 1)
    return tuple(reversed(strides))


def exchange(tensor: Tensor, new: Tensor) -> None:
    """Give the object ``tensor`` what ``new`` holds; its class, attributes and hooks stay.

    What ``torch.utils.swap_tensors`` does, which takes class and attributes over as well and refuses objects
    that have weak references (an LSTM's weights have): whoever holds one is to see the new values.
    """
    with torch._C.DisableTorchFunctionSubclass():
        _exchange(tensor, new)


def _exchange(tensor: Tensor, new: Tensor) -> None:
    hooks, after = tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)
    other = new.detach().requires_grad_(tensor.requires_grad and tensor.is_leaf)
    torch._C._swap_tensor_impl(tensor, other)
    if hooks is not None:
        tensor._backward_hooks = hooks
    if after is not None:
        tensor._post_accumulate_grad_hooks = after
