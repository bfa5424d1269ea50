"""How a tensor lies in its storage."""

from __future__ import annotations

import math
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
        begin, end = self.extent
        return math.prod(self.size) * self.dtype.itemsize == end - begin

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


def contiguous_stride(size: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    reach = 1
    for length in reversed(size):
        strides.append(reach)
        reach *= max(length, 1)
    return tuple(reversed(strides))
