"""Fills by Triton's own Philox, `tl.rand` and `tl.randn`: one number per element, as in its tutorials.

The counters have 32 bits (64-bit counters make Philox slower), so that numbers repeat after 2^32 elements.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from benchmarks.timing import Call

BLOCK = 1024


# Triton reads annotations as its own types, so only the constant has one.
def _uniform(out, numel, seed, low, width, size: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    value = low + width * tl.rand(seed, place.to(tl.int32))
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < numel)


def _normal(out, numel, seed, mean, std, size: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    value = mean + std * tl.randn(seed, place.to(tl.int32))
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < numel)


_uniform_kernel = triton.jit(_uniform)
_normal_kernel = triton.jit(_normal)


def uniform(tensor: Tensor, low: float, high: float) -> Call:
    grid = (triton.cdiv(tensor.numel(), BLOCK),)
    return lambda: _uniform_kernel[grid](tensor, tensor.numel(), 0, low, high - low, BLOCK)


def normal(tensor: Tensor, mean: float, std: float) -> Call:
    grid = (triton.cdiv(tensor.numel(), BLOCK),)
    return lambda: _normal_kernel[grid](tensor, tensor.numel(), 0, mean, std, BLOCK)
