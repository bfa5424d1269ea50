"""The layout of a tensor in its storage, and access to the bits and indices of its elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """The layout of a tensor in its storage. Sizes, strides and the offset are in elements."""

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def of(tensor: Tensor) -> Geometry:
        return Geometry(tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    @property
    def is_contiguous(self) -> bool:
        """Whether this is the layout of ``torch.empty(size)``."""
        return self.offset == 0 and self.stride == contiguous_stride(self.size)

    @property
    def extent(self) -> tuple[int, int]:
        """The range of bytes of the storage that the tensor spans: begin and end."""
        if 0 in self.size:
            return 0, 0
        reach = sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        return self.offset * self.dtype.itemsize, (self.offset + reach + 1) * self.dtype.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether the elements cover every byte of the extent exactly once."""
        expected = 1
        for stride, size in sorted(
            (stride, size) for stride, size in zip(self.stride, self.size, strict=True) if size != 1
        ):
            if stride != expected:
                return False
            expected *= size
        return True

    def view(self, tensor: Tensor) -> Tensor:
        """Return the view of the tensor's storage that has this layout.

        Raises:
            ValueError: the view extends past the end of the storage.
        """
        if self.extent[1] > tensor.untyped_storage().nbytes():
            raise ValueError(f"a view of {self.extent[1]} bytes of {tensor.untyped_storage().nbytes()}")
        if tensor.dtype != self.dtype:
            flat = torch.empty(0, dtype=self.dtype, device=tensor.device)
            return flat.set_(tensor.untyped_storage(), self.offset, self.size, self.stride)
        return tensor.as_strided(self.size, self.stride, self.offset)

    def empty(self, device: torch.device | str | None) -> Tensor:
        """Return an empty tensor with these sizes and strides and offset 0."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=device)


@dataclass(frozen=True, slots=True)
class Box:
    """A view that covers a contiguous range of indices in each dimension of the whole tensor.

    Args:
        begin: the first index in each dimension of the whole tensor
        end: the index after the last one in each dimension of the whole tensor
        dims: for each dimension of the view, the dimension of the whole tensor; None for an added dimension
            of size 1
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    dims: tuple[int | None, ...]

    @staticmethod
    def at(start: Sequence[int], sizes: Sequence[int]) -> Box:
        """Return a box whose view has the same dimensions as the whole tensor."""
        end = (begin + size for begin, size in zip(start, sizes, strict=True))
        return Box(tuple(start), tuple(end), tuple(range(len(start))))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the view."""
        return tuple(1 if dim is None else self.end[dim] - self.begin[dim] for dim in self.dims)

    def within(self, piece: Tensor, start: Sequence[int]) -> tuple[Tensor, tuple[int, ...]] | None:
        """Return the part of the view that a piece of the whole holds, and its offset in the view."""
        low = [max(begin, offset) for begin, offset in zip(self.begin, start, strict=True)]
        high = [
            min(end, offset + size) for end, offset, size in zip(self.end, start, piece.shape, strict=True)
        ]
        if any(first >= last for first, last in zip(low, high, strict=True)):
            return None
        part = piece[
            tuple(slice(a - offset, b - offset) for a, b, offset in zip(low, high, start, strict=True))
        ]
        kept = [dim for dim in self.dims if dim is not None]
        part = part.permute([*kept, *(dim for dim in range(part.dim()) if dim not in kept)])
        # The view has a single index in every other dimension.
        while part.dim() > len(kept):
            part = part.select(-1, 0)
        for place, dim in enumerate(self.dims):
            if dim is None:
                part = part.unsqueeze(place)
        return part, tuple(0 if dim is None else low[dim] - self.begin[dim] for dim in self.dims)


def box_of(shape: tuple[int, ...], dtype: torch.dtype, geometry: Geometry | None) -> Box | None:
    """Return a view of a contiguous whole tensor as a box, or None if it is not a box."""
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
        matches = [d for d in range(len(shape)) if strides[d] == stride and shape[d] > 1 and d not in dims]
        if not matches or begin[matches[0]] + size > shape[matches[0]]:
            return None
        end[matches[0]] = begin[matches[0]] + size
        dims.append(matches[0])
    return Box(tuple(begin), tuple(end), tuple(dims))


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """Return the bits of each element as an integer, so that -0 differs from +0 and a NaN equals itself.

    No integer is as wide as complex128. Its elements become two integers along an added last dimension.
    """
    if tensor.element_size() > 8:
        tensor = torch.view_as_real(tensor)
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bits. A NaN equals a NaN of the same bits."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def unravel_index(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the index of the element at position ``place`` in row-major order."""
    indices: list[int] = []
    for size in reversed(shape):
        place, index = divmod(place, size)
        indices.insert(0, index)
    return tuple(indices)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without the prefix: ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as text: ``3 x 4`` for ``(3, 4)``, ``scalar`` for ``()``."""
    return " x ".join(map(str, shape)) or "scalar"


def contiguous_stride(size: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of this shape."""
    strides: list[int] = []
    reach = 1
    for length in reversed(size):
        strides.append(reach)
        reach *= max(length, 1)
    return tuple(reversed(strides))


def swap_data(tensor: Tensor, new: Tensor) -> None:
    """Give the object ``tensor`` the data of ``new``. It keeps its class, attributes and hooks.

    ``torch.utils.swap_tensors`` cannot do this: it also swaps the class and the attributes, and it refuses
    objects with weak references, such as the weights of an LSTM.
    """
    with torch._C.DisableTorchFunctionSubclass():
        _exchange(tensor, new)


def _exchange(tensor: Tensor, new: Tensor) -> None:
    hooks, accumulate_hooks = tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)
    other = new.detach().requires_grad_(tensor.requires_grad and tensor.is_leaf)
    torch._C._swap_tensor_impl(tensor, other)
    if hooks is not None:
        tensor._backward_hooks = hooks
    if accumulate_hooks is not None:
        tensor._post_accumulate_grad_hooks = accumulate_hooks
