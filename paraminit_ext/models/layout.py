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
