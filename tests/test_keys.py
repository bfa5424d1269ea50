"""Keys, and the keys that generators give: every fill draws one key, as the contract says."""

from __future__ import annotations

import copy
import hashlib
import pickle
from typing import Any

import pytest
import torch

import paraminit_ext
from fills import every_random, same
from paraminit_ext import Key, init, shard

BIG = Key(0x1234567890ABCDEF, 2**64 - 1000)


def philox(key: Key, counter: int) -> tuple[int, int, int, int]:
    low = 0xFFFFFFFF
    counter %= 2**64
    return paraminit_ext._C.philox((counter & low, counter >> 32, 0, 0), (key.seed & low, key.seed >> 32))


@pytest.mark.parametrize("data", [0, 1, 999, 1000, 2**40, 2**64 - 1])
def test_fold_in_is_the_four_words_of_that_counter(data: int) -> None:
    w = philox(BIG, BIG.offset + data)
    assert BIG.fold_in(data) == Key(w[0] | w[1] << 32, w[2] | w[3] << 32)


@pytest.mark.parametrize("text", ["", "layers.0.attn.wq.weight", "ключ"])
def test_a_text_folds_in_as_the_first_8_bytes_of_its_sha256(text: str) -> None:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    assert BIG.fold_in(text) == BIG.fold_in(int.from_bytes(digest[:8], "little"))
    assert BIG.fold_in(text) != BIG.fold_in(text + " ")


def test_split_is_fold_in_of_the_first_numbers() -> None:
    assert BIG.split(3) == (BIG.fold_in(0), BIG.fold_in(1), BIG.fold_in(2))
    assert BIG.split(0) == ()


def test_fold_in_of_the_next_number_is_fold_in_at_the_next_offset() -> None:
    assert Key(5, 7).fold_in(1) == Key(5, 8).fold_in(0)


def test_keys_are_values() -> None:
    key = Key(2**64 - 1, 3)
    assert key == Key(2**64 - 1, 3)
    assert len({key, Key(2**64 - 1, 3), Key(2**64 - 1, 4)}) == 2
    assert pickle.loads(pickle.dumps(key)) == key
    assert copy.deepcopy(key) == key
    assert Key(5) == Key(5, 0)
    with pytest.raises(AttributeError):
        key.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("key", [Key(0), BIG, Key(2**63, 2**63 - 1), Key(2**64 - 1, 2**64 - 1)])
def test_a_key_survives_the_way_through_a_tensor(key: Key) -> None:
    tensor = key.to_tensor()
    assert tensor.dtype == torch.uint64
    assert tensor.tolist() == [key.seed, key.offset]
    assert Key.from_tensor(tensor) == key


@every_random
def test_a_fill_takes_one_draw_whatever_the_size(name: str, arguments: tuple[Any, ...]) -> None:
    states = []
    for shape in ((2, 1), (16, 24), (300, 20)):
        generator = torch.Generator().manual_seed(7)
        getattr(init, name)(torch.empty(shape), *arguments, generator=generator)
        states.append(generator.get_state())
    expected = torch.Generator().manual_seed(7)
    torch.empty(2, dtype=torch.int64).random_(-(2**63), None, generator=expected)
    assert all(torch.equal(state, expected.get_state()) for state in states)


@every_random
def test_a_key_its_generator_and_the_default_generator_agree(name: str, arguments: tuple[Any, ...]) -> None:
    def fill(**keywords: Any) -> torch.Tensor:
        out: torch.Tensor = getattr(init, name)(torch.empty(16, 24), *arguments, **keywords)
        return out

    generator = torch.Generator().manual_seed(7)
    seed, offset = torch.empty(2, dtype=torch.int64).random_(-(2**63), None, generator=generator).tolist()
    by_key = fill(generator=Key(seed % 2**64, offset % 2**64))
    assert same(fill(generator=torch.Generator().manual_seed(7)), by_key)
    torch.manual_seed(7)
    assert same(fill(), by_key)
    assert not torch.equal(fill(), by_key), "two fills in a row are equal"


@every_random
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_nothing_is_drawn_for_meta_or_for_no_elements(name: str, arguments: tuple[Any, ...]) -> None:
    generator = torch.Generator().manual_seed(7)
    state = generator.get_state()
    for tensor in (torch.empty(0, 5), torch.empty(5, 0), torch.empty(4, 6, device="meta")):
        assert getattr(init, name)(tensor, *arguments, generator=generator) is tensor
    empty_whole = shard(torch.empty(0, 5), (0, 5), (0, 0))
    getattr(init, name)(empty_whole, *arguments, generator=generator)
    assert torch.equal(generator.get_state(), state)


@every_random
def test_an_empty_shard_of_a_whole_with_elements_draws_as_the_other_shards_do(
    name: str, arguments: tuple[Any, ...]
) -> None:
    empty, full = (torch.Generator().manual_seed(7) for _ in range(2))
    getattr(init, name)(shard(torch.empty(0, 6), (4, 6), (4, 0)), *arguments, generator=empty)
    getattr(init, name)(shard(torch.empty(4, 6), (4, 6), (0, 0)), *arguments, generator=full)
    assert torch.equal(empty.get_state(), full.get_state())


@pytest.mark.parametrize("name", ["constant_", "ones_", "zeros_", "eye_"])
def test_what_is_not_random_draws_nothing(name: str) -> None:
    state = torch.get_rng_state()
    getattr(init, name)(torch.empty(4, 6), *((0.3,) if name == "constant_" else ()))
    init.dirac_(torch.empty(4, 6, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_key_is_not_used_up() -> None:
    assert same(init.normal_(torch.empty(9), generator=BIG), init.normal_(torch.empty(9), generator=BIG))
