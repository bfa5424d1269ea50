"""Bit-for-bit comparison of whole modules: every parameter and every buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from paraminit_ext import patch

T = TypeVar("T")


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name. A tied tensor appears under each of its names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def differences(first: nn.Module, second: nn.Module) -> list[str]:
    """Return how two modules differ: in names, and in bits, dtypes, strides, classes or ties of tensors."""
    left, right = tensors(first), tensors(second)
    lines = [f"{name}: in only one module" for name in left.keys() ^ right.keys()]
    for name in left.keys() & right.keys():
        a, b = left[name], right[name]
        if nn.parameter.is_lazy(a) and nn.parameter.is_lazy(b):
            continue
        if a.is_meta != b.is_meta:
            lines.append(f"{name}: on meta")
            continue
        for aspect, equal in (
            ("class", type(a) is type(b)),
            ("requires_grad", a.requires_grad == b.requires_grad),
            ("dtype", a.dtype == b.dtype),
            ("device", a.device == b.device),
            ("strides", a.stride() == b.stride()),
            ("ties", [n for n in left if left[n] is a] == [n for n in right if right[n] is b]),
            ("bits", a.shape == b.shape and (a.is_meta or torch.equal(bits(a), bits(b)))),
        ):
            if not equal:
                lines.append(f"{name}: {aspect}")
                break
    return lines


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.uint8) if tensor.dim() else tensor.detach().reshape(1)


def seeded(build: Callable[[], T], seed: int = 5) -> T:
    """Seed torch's default generator and return the result of ``build``."""
    torch.manual_seed(seed)
    return build()


def patched(build: Callable[[], T], seed: int = 5) -> T:
    """Do the same as :func:`seeded`, under ``patch()``."""
    with patch():
        return seeded(build, seed)
