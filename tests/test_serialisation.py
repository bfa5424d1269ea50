"""Keys survive checkpoints, pickles and copies, and take integer-like values as ints."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from paraminit_ext import Key

KEYS = (Key(0), Key(7, 9), Key(2**63, 2**64 - 1))


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_checkpoint_that_holds_a_key_loads_by_weights_alone(key: Key) -> None:
    saved = io.BytesIO()
    torch.save({"step": 3, "key": key, "keys": [key.fold_in(1)], "weight": torch.ones(2)}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    assert loaded["key"] == key
    assert loaded["keys"] == [key.fold_in(1)]
    assert torch.equal(loaded["weight"], torch.ones(2))


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_key_survives_pickles_and_copies(key: Key) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(key, protocol)) == key
    assert copy.copy(key) == copy.deepcopy(key) == key
    assert eval(repr(key)) == key
    assert len({key, copy.copy(key)}) == 1


def test_a_key_is_a_value() -> None:
    key: Any = Key(7, 9)
    for name in ("seed", "offset", "_seed", "other"):
        with pytest.raises(FrozenInstanceError):
            setattr(key, name, 3)
    with pytest.raises(FrozenInstanceError):
        del key._seed
    assert key != (7, 9)
    assert Key(7, 9) != Key(9, 7)
    match key:
        case Key(seed, offset):
            assert (seed, offset) == (7, 9)


INTEGERS: dict[str, Any] = {
    "numpy int64": lambda n: np.int64(n),
    "numpy uint64": lambda n: np.uint64(n),
    "numpy, no dimensions": lambda n: np.array(n),
    "tensor": lambda n: torch.tensor(n),
}


@pytest.mark.parametrize("make", INTEGERS.values(), ids=INTEGERS.keys())
def test_integer_like_values_are_taken_as_ints(make: Any) -> None:
    assert Key(make(7), make(9)) == Key(7, 9)
    assert Key(7).fold_in(make(3)) == Key(7).fold_in(3)
    assert Key(7).split(make(2)) == Key(7).split(2)
    assert type(Key(make(7)).seed) is int


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), torch.tensor(True), 1.0, np.float32(1), torch.tensor([1, 2]), "1", None]
)
def test_other_values_are_refused_in_one_line(value: Any) -> None:
    calls: dict[str, Callable[[], object]] = {
        "Key: expected an int for seed": lambda: Key(value),
        "Key: expected an int for offset": lambda: Key(1, value),
        "Key.split: expected an int for n": lambda: Key(1).split(value),
    }
    if not isinstance(value, str):
        calls["Key.fold_in: expected an int or a str for data"] = lambda: Key(1).fold_in(value)
    for message, call in calls.items():
        with pytest.raises(TypeError, match=rf"^paraminit_ext\.{message}, got [^\n]*$"):
            call()


def test_numbers_out_of_range_are_refused_in_one_line() -> None:
    calls: list[Callable[[], object]] = [
        lambda: Key(np.int64(-1)),
        lambda: Key(1, 2**64),
        lambda: Key(1).fold_in(-1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="Reduce it modulo"):
            call()
    with pytest.raises(ValueError, match=r"^paraminit_ext\.Key\.split: expected n >= 0, got -1\. Pass the"):
        Key(1).split(-1)
