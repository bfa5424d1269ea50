"""The values match an independent implementation: torch.func._random (experimental, torch 2.15)."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from fills import same
from paraminit_ext import Key, init

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15):
    pytest.skip(
        "needs torch >= 2.15: earlier versions have no CPU kernels for torch.func._random",
        allow_module_level=True,
    )
oracle: Any = importlib.import_module("torch.func._random")

KEYS = [Key(0), Key(0x1234567890ABCDEF, 5), Key(2**64 - 1, 2**63)]
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
keyed = pytest.mark.parametrize("key", KEYS, ids=str)


def theirs(name: str, key: Key, shape: tuple[int, ...], *arguments: float, **keywords: Any) -> Tensor:
    values: Tensor = getattr(oracle, name)(key.to_tensor(), shape, *arguments, **keywords)
    return values


@both
@keyed
@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (-0.3, 0.55), (-1e-3, 2e-3)])
def test_uniforms_are_the_same_bits(key: Key, a: float, b: float, dtype: torch.dtype) -> None:
    expected = theirs("uniform", key, (129, 257), low=a, high=b, dtype=dtype)
    assert same(init.uniform_(torch.empty(129, 257, dtype=dtype), a, b, generator=key), expected)


@both
@keyed
def test_normals_differ_by_roundings_alone(key: Key, dtype: torch.dtype) -> None:
    expected = theirs("normal", key, (129, 257), dtype=dtype)
    got = init.normal_(torch.empty(129, 257, dtype=dtype), generator=key)
    # torch's float32 uniform is coarse near 1, and the radius is steep there. Its float64 uniform is fine.
    assert (got - expected).abs().max() <= (5e-4 if dtype == torch.float32 else 1e-12)
    assert not torch.equal(got, expected)


@keyed
def test_keys_fold_and_split_alike(key: Key) -> None:
    for data in (0, 1, 12345):
        assert Key.from_tensor(oracle.fold_in(key.to_tensor(), data)) == key.fold_in(data)
    assert [Key.from_tensor(k) for k in oracle.split(key.to_tensor(), 4)] == list(key.split(4))
