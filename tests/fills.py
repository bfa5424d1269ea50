"""Fills that must have the same bits on every device and instruction set, and the comparison of bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from paraminit_ext import Key, Shard, init

KEY = Key(0x1234567890ABCDEF, 2**64 - 1000)  # counters wrap inside every tensor of more than 4000 elements
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

Fill = Callable[[Tensor | Shard, Key], Tensor]
FILLS: dict[str, Fill] = {
    "uniform": lambda t, k: init.uniform_(t, -0.3, 0.55, generator=k),
    "uniform_narrow": lambda t, k: init.uniform_(t, 1.0, 1.0078125, generator=k),
    "normal": lambda t, k: init.normal_(t, 0.0, 0.02, generator=k),
    "normal_shifted": lambda t, k: init.normal_(t, 3.0, 2.0, generator=k),
    "trunc_normal": lambda t, k: init.trunc_normal_(t, generator=k),
    "trunc_normal_wide": lambda t, k: init.trunc_normal_(t, 0.1, 1.0, -3.0, 4.0, generator=k),
    "trunc_normal_above": lambda t, k: init.trunc_normal_(t, 0.0, 1.0, 1.75, math.inf, generator=k),
    "trunc_normal_below": lambda t, k: init.trunc_normal_(t, 1.0, 0.5, -9.0, -1.0, generator=k),
    "trunc_normal_far": lambda t, k: init.trunc_normal_(t, 0.0, 0.02, -2.0, 2.0, generator=k),
}
filled = pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS.keys())
typed = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


# Every function that draws random numbers, with arguments that are valid for a matrix of 4 x 6 or more.
RANDOM: dict[str, tuple[Any, ...]] = {
    "uniform_": (),
    "normal_": (),
    "trunc_normal_": (),
    "xavier_uniform_": (),
    "xavier_normal_": (),
    "kaiming_uniform_": (),
    "kaiming_normal_": (),
    "orthogonal_": (),
    "sparse_": (0.5,),
    "variance_scaling_": (),
    "lecun_normal_": (),
    "lecun_uniform_": (),
}
every_random = pytest.mark.parametrize(("name", "arguments"), RANDOM.items(), ids=RANDOM.keys())


CONSTANT: dict[str, tuple[Any, ...]] = {
    "constant_": (0.3,),
    "ones_": (),
    "zeros_": (),
    "eye_": (),
    "dirac_": (2,),
    "delta_orthogonal_": (),
}
every_function = pytest.mark.parametrize(
    ("name", "arguments"), [*RANDOM.items(), *CONSTANT.items()], ids=[*RANDOM, *CONSTANT]
)


def shape_for(name: str) -> tuple[int, ...]:
    return (6, 4, 3) if name in ("dirac_", "delta_orthogonal_") else (6, 4)


def filler(name: str, arguments: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    """Bind the arguments of the function ``name``, and ``KEY`` as its generator if it takes one."""
    function: Callable[..., Tensor] = getattr(init, name)
    keywords = {"generator": KEY} if name in RANDOM or name == "delta_orthogonal_" else {}
    return lambda tensor: function(tensor, *arguments, **keywords)


def bits(tensor: Tensor) -> Tensor:
    """Return the bits of the values in logical order. Comparing them is exact and tells -0 from +0."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(integers[tensor.element_size()])


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(bits(a), bits(b))


LAYOUTS: dict[str, Callable[[torch.dtype], Tensor]] = {
    "transposed": lambda d: torch.empty(67, 130, dtype=d).t(),
    "column of a wider matrix": lambda d: torch.empty(130, 200, dtype=d)[:, 5:72],
    "every third": lambda d: torch.empty(130, 201, dtype=d)[:, ::3],
    "flipped dimensions": lambda d: torch.empty(5, 13, 2, 67, dtype=d).permute(2, 1, 0, 3).reshape(130, 67),
    "padded rows": lambda d: torch.empty(130, 72, dtype=d)[:, :67],
}
