"""The stream contract: which numbers a fill writes, and what must not change them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import paraminit_ext
from fills import DTYPES, FILLS, KEY, LAYOUTS, RANDOM, Fill, bits, filled, same, typed
from paraminit_ext import Key, init, shard

GOLDEN = Path(paraminit_ext.__file__).with_name("golden.json")
pytestmark = pytest.mark.filterwarnings("ignore:mean is more than 2 std:UserWarning")

# --- known answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_random123s_known_answers(counter: str, key: str, words: str) -> None:
    c, k, w = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    assert list(paraminit_ext._C.philox((c[0], c[1], c[2], c[3]), (k[0], k[1]))) == w


FOUR_SHAPES = ("5", "1001x7", "64x65", "2x3x5x7")
MATRIX_SHAPES = ("5x3", "1001x7", "64x65")
COMPLEX = [torch.complex64, torch.complex128]
INF = math.inf
# Function, arguments, dtypes and shapes of fills that a change of the stream would change.
GOLDEN_FILLS: list[tuple[str, tuple[float, ...], list[torch.dtype], tuple[str, ...]]] = [
    ("uniform_", (-0.3, 0.55), [*DTYPES, *COMPLEX], FOUR_SHAPES),
    ("uniform_", (1.0, 1.0078125), DTYPES, FOUR_SHAPES),
    ("normal_", (0.0, 0.02), DTYPES, FOUR_SHAPES),
    ("normal_", (3.0, 2.0), [*DTYPES, *COMPLEX], FOUR_SHAPES),
    ("normal_", (0.0, 1.0), [torch.float32, torch.float64], FOUR_SHAPES),  # orthogonal_'s Gaussian
    ("trunc_normal_", (), DTYPES, FOUR_SHAPES),
    ("trunc_normal_", (0.1, 1.0, -3.0, 4.0), DTYPES, FOUR_SHAPES),
    ("trunc_normal_", (0.0, 1.0, 1.75, INF), DTYPES, FOUR_SHAPES),
    ("trunc_normal_", (1.0, 0.5, -9.0, -1.0), DTYPES, FOUR_SHAPES),
    ("trunc_normal_", (0.0, 0.02, -2.0, 2.0), DTYPES, FOUR_SHAPES),
    ("sparse_", (0.3,), [*DTYPES, *COMPLEX], MATRIX_SHAPES),
    ("sparse_", (0.9, 1.5), [*DTYPES, *COMPLEX], MATRIX_SHAPES),
    *(
        (name, (), DTYPES, ("64x65", "8x4x3x3"))
        for name in (
            "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_",
            "lecun_uniform_", "lecun_normal_", "variance_scaling_",
        )
    ),
]  # fmt: skip
GOLDEN_KEYS: list[tuple[Key, str, list[int | str]]] = [
    (Key(0), "fold_in", [0]),
    (KEY, "fold_in", [1]),
    (KEY, "fold_in", [2**64 - 1]),
    (KEY, "fold_in", ["layers.0.attn.wq.weight"]),
    (KEY, "fold_in", ["слой"]),
    (KEY, "split", [3]),
]
GOLDEN_GENERATORS = (0, 7, 2**63 - 1)
HOW_TO_CHANGE = (
    "the stream has changed; if this is intended, raise STREAM_VERSION (csrc/stream/request.h, "
    "paraminit_ext/__init__.py), say why under Stream in CHANGELOG.md and run "
    "`python tests/test_stream.py` to write the new golden values"
)


def sha256(function: str, arguments: tuple[float, ...], dtype: torch.dtype, shape: str) -> str:
    tensor = torch.empty([int(n) for n in shape.split("x")], dtype=dtype)
    getattr(init, function)(tensor, *arguments, generator=KEY)
    real = torch.view_as_real(tensor) if dtype.is_complex else tensor
    return hashlib.sha256(bits(real).numpy().tobytes()).hexdigest()


def made_keys(key: Key, method: str, arguments: list[int | str]) -> list[list[int]]:
    made = getattr(key, method)(*arguments)
    return [[k.seed, k.offset] for k in ([made] if isinstance(made, Key) else made)]


def generator_key(seed: int) -> list[int]:
    """Return the key that a fill draws from a CPU generator with this seed."""
    return [n % 2**64 for n in paraminit_ext.draws.draw(torch.Generator().manual_seed(seed))]


def golden_values() -> dict[str, object]:
    """Return the contents of golden.json for the current stream."""
    return {
        "stream_version": paraminit_ext.STREAM_VERSION,
        "key": [KEY.seed, KEY.offset],
        "keys": [
            {"of": [key.seed, key.offset], "call": method, "arguments": arguments,
             "gives": made_keys(key, method, arguments)}
            for key, method, arguments in GOLDEN_KEYS
        ],
        "generators": [{"seed": seed, "gives": generator_key(seed)} for seed in GOLDEN_GENERATORS],
        "fills": [
            {
                "function": function,
                "arguments": list(arguments),
                "sha256": {
                    str(dtype)[6:]: {shape: sha256(function, arguments, dtype, shape) for shape in shapes}
                    for dtype in dtypes
                },
            }
            for function, arguments, dtypes, shapes in GOLDEN_FILLS
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    "n", range(len(GOLDEN_FILLS)), ids=lambda n: f"{GOLDEN_FILLS[n][0]}{GOLDEN_FILLS[n][1]}"
)
def test_values_are_the_golden_ones(n: int, cpu_capability: str) -> None:
    function, arguments, dtypes, shapes = GOLDEN_FILLS[n]
    golden = json.loads(GOLDEN.read_text())["fills"][n]
    assert (golden["function"], tuple(golden["arguments"])) == (function, arguments)
    assert list(golden["sha256"]) == [str(dtype)[6:] for dtype in dtypes]
    for dtype in dtypes:
        hashes = {shape: sha256(function, arguments, dtype, shape) for shape in shapes}
        assert hashes == golden["sha256"][str(dtype)[6:]], HOW_TO_CHANGE


def test_derived_keys_are_the_golden_ones() -> None:
    golden, now = json.loads(GOLDEN.read_text()), golden_values()
    for part in ("key", "keys", "generators"):
        assert golden[part] == now[part], HOW_TO_CHANGE


def test_every_function_that_draws_has_golden_values() -> None:
    # Only the Gaussian of an orthogonal matrix has fixed bits, and that is normal_ with std 1.
    assert {function for function, *_ in GOLDEN_FILLS} == RANDOM.keys() - {"orthogonal_"}


def test_a_changed_value_says_how_to_change_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    right = init.normal_
    monkeypatch.setattr(
        init, "normal_", lambda t, mean, std, generator: right(t, mean, std * 1.0001, generator)
    )
    with pytest.raises(AssertionError, match="raise STREAM_VERSION"):
        test_values_are_the_golden_ones(2, paraminit_ext.cpu_capability())


def test_the_stream_version_is_that_of_the_golden_values() -> None:
    assert json.loads(GOLDEN.read_text())["stream_version"] == paraminit_ext.STREAM_VERSION
    assert paraminit_ext._C.build_info()["stream_version"] == str(paraminit_ext.STREAM_VERSION)


# --- what must not change a value ------------------------------------------------------------


@pytest.fixture
def thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@filled
@pytest.mark.usefixtures("thread_count")
def test_values_do_not_depend_on_the_thread_count(fill: Fill, cpu_capability: str) -> None:
    values = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        values.append(fill(torch.empty(300_001), KEY))
    assert all(same(values[0], other) for other in values[1:])


@typed
@filled
def test_values_do_not_depend_on_length_or_alignment(
    fill: Fill, dtype: torch.dtype, cpu_capability: str
) -> None:
    whole = fill(torch.empty(1000, dtype=dtype), KEY)
    for length in (*range(70), 127, 128, 129, 255, 256, 257, 511, 513):
        backing = torch.full((length + 8,), -7.0, dtype=dtype)
        for place in (0, 1, 3):
            assert same(fill(backing[place : place + length], KEY), whole[:length])
        assert (backing[3 + length :] == -7.0).all()


@typed
@filled
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_values_do_not_depend_on_strides(
    fill: Fill, dtype: torch.dtype, layout: Callable[[torch.dtype], Tensor], cpu_capability: str
) -> None:
    assert same(fill(layout(dtype), KEY), fill(torch.empty(130, 67, dtype=dtype), KEY))


@filled
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_values_do_not_depend_on_the_memory_format(fill: Fill, memory_format: torch.memory_format) -> None:
    shape = (9, 21, 3, 5)
    expected = fill(torch.empty(shape), KEY)
    assert same(fill(torch.empty(shape, memory_format=memory_format), KEY), expected)


def test_a_large_transposed_matrix_is_the_contiguous_one() -> None:
    # Larger than a unit of work in both dimensions, and split over threads.
    expected = init.normal_(torch.empty(700, 1030), generator=KEY)
    assert same(init.normal_(torch.empty(1030, 700).t(), generator=KEY), expected)


@typed
@pytest.mark.parametrize("name", ["uniform", "normal", "trunc_normal"])
def test_a_large_fill_is_what_small_ones_write(name: str, dtype: torch.dtype, cpu_capability: str) -> None:
    # From 8 MiB on a fill uses non-temporal stores and requests huge pages.
    numel = (9 << 20) // torch.empty((), dtype=dtype).element_size() + 77
    for place in (0, 1):
        backing = torch.full((numel + 9,), -7.0, dtype=dtype)
        large = FILLS[name](backing[place : place + numel], KEY)
        pieces = torch.empty(numel, dtype=dtype)
        for begin in range(0, numel, 700_001):
            FILLS[name](shard(pieces[begin : begin + 700_001], (numel,), (begin,)), KEY)
        assert same(large, pieces)
        assert (backing[place + numel :] == -7.0).all()


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (2, 0, 3, 1), (1, 2, 3, 0), (3, 2, 1, 0)])
def test_values_do_not_depend_on_the_order_of_dimensions(order: tuple[int, ...], cpu_capability: str) -> None:
    shape = (3, 40, 37, 70)
    expected = init.normal_(torch.empty(shape), generator=KEY)
    inverse = [order.index(d) for d in range(4)]
    permuted = torch.empty([shape[d] for d in order]).permute(inverse)
    assert permuted.shape == expected.shape
    assert same(init.normal_(permuted, generator=KEY), expected)
    part = torch.empty([(2, 33, 20, 41)[d] for d in order]).permute(inverse)
    init.normal_(shard(part, shape, (1, 5, 17, 29)), generator=KEY)
    assert same(part, expected[1:3, 5:38, 17:37, 29:70])


@filled
def test_shards_are_the_parts_of_the_whole(fill: Fill, cpu_capability: str) -> None:
    rows, columns = 37, 131
    for dtype in DTYPES:
        whole = fill(torch.empty(rows, columns, dtype=dtype), KEY)
        for (r0, r1), (c0, c1) in (
            ((0, 5), (0, columns)),
            ((5, rows), (0, columns)),
            ((0, rows), (0, 1)),
            ((0, rows), (1, 64)),
            ((3, 4), (7, 9)),
            ((2, 36), (130, 131)),
        ):
            part = torch.empty(r1 - r0, c1 - c0, dtype=dtype)
            fill(shard(part, (rows, columns), (r0, c0)), KEY)
            assert same(part, whole[r0:r1, c0:c1])


@pytest.mark.parametrize("place", [2**31, 2**32, 2**33 + 1, 2**40 + 3, 2**62])
@typed
def test_an_element_far_out_is_that_of_its_own_counter(
    place: int, dtype: torch.dtype, cpu_capability: str
) -> None:
    size = 4 if dtype != torch.float64 else 2
    part = torch.empty(40, dtype=dtype)
    init.normal_(shard(part, (2**63 - 1,), (place,)), generator=KEY)
    # The same values come from a key that is advanced by that many counters.
    moved = Key(KEY.seed, (KEY.offset + place // size) % 2**64)
    assert same(part, init.normal_(torch.empty(44, dtype=dtype), generator=moved)[place % size :][:40])


@filled
def test_flushing_of_subnormals_changes_no_value(fill: Fill, cpu_capability: str) -> None:
    def tiny() -> Tensor:
        return torch.cat(
            [fill(torch.empty(5000, dtype=d), KEY).double() for d in DTYPES]
            + [
                init.normal_(torch.empty(5000, dtype=d), 0.0, 1e-39, generator=KEY).double()
                for d in (torch.float32, torch.bfloat16)
            ]
        )

    expected = tiny()
    try:
        torch.set_flush_denormal(True)
        with torch.no_grad():
            got = [fill(torch.empty(5000, dtype=d), KEY) for d in DTYPES]
            got += [
                init.normal_(torch.empty(5000, dtype=d), 0.0, 1e-39, generator=KEY)
                for d in (torch.float32, torch.bfloat16)
            ]
    finally:
        torch.set_flush_denormal(False)
    assert same(torch.cat([t.double() for t in got]), expected)
    # These fills contain subnormal values, which the mode would have flushed.
    assert (got[-2].abs() < 2.0**-126).all()
    assert got[-2].any()


def test_two_fills_in_a_row_differ_and_share_no_value() -> None:
    torch.manual_seed(0)
    a, b = (
        init.uniform_(torch.empty(4096, dtype=torch.float64)),
        init.uniform_(torch.empty(4096, dtype=torch.float64)),
    )
    # Values have 53 bits: one of 2^24 pairs agrees by chance with probability 2^-29.
    assert not set(a.tolist()) & set(b.tolist())


# --- relations between fills -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_a_16_bit_normal_is_the_float32_one_rounded_once(dtype: torch.dtype, cpu_capability: str) -> None:
    for mean, std in ((0.0, 0.02), (0.0, 1e-6), (1.0, 3.0), (0.0, 1e-40)):
        wide = init.normal_(torch.empty(100_003), mean, std, generator=KEY)
        assert same(init.normal_(torch.empty(100_003, dtype=dtype), mean, std, generator=KEY), wide.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_std_scales_the_standard_normal(dtype: torch.dtype, cpu_capability: str) -> None:
    z = init.normal_(torch.empty(10_001, dtype=dtype), generator=KEY)
    std = torch.tensor(0.0237, dtype=dtype).item()
    assert same(init.normal_(torch.empty(10_001, dtype=dtype), 0.0, std, generator=KEY), z * std)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=lambda d: str(d)[6:])
def test_a_complex_fill_is_that_of_its_parts(dtype: torch.dtype, cpu_capability: str) -> None:
    z = init.normal_(torch.empty(33, 5, dtype=dtype), 0.25, 2.0, generator=KEY)
    parts = torch.empty(33, 5, 2, dtype=z.real.dtype)
    init.normal_(parts, 0.25, 2.0 / math.sqrt(2.0), generator=KEY)
    assert same(torch.view_as_real(z), parts)
    u = init.uniform_(torch.empty(5, 33, dtype=dtype).t(), -2.0, 3.0, generator=KEY)
    assert same(torch.view_as_real(u.resolve_conj()), init.uniform_(parts, -2.0, 3.0, generator=KEY))
    part = torch.empty(4, 2, dtype=dtype)
    init.uniform_(shard(part, (33, 5), (7, 3)), -2.0, 3.0, generator=KEY)
    assert torch.equal(part, u[7:11, 3:5])


@pytest.mark.parametrize(
    ("a", "b", "dtype"),
    [
        (0.0, 1.0, torch.float32), (1.0, 1.0 + 2**-22, torch.float32), (-1e-3, 2e-3, torch.float32),
        (16777216.0, 16777220.0, torch.float32), (0.0, 1e-44, torch.float32), (-3e-45, 3e-45, torch.float32),
        (0.0, 1.0, torch.float64), (1.0, 1.0 + 2**-50, torch.float64), (0.0, 2e-323, torch.float64),
        (0.0, 1.0, torch.bfloat16), (1.0, 1.0 + 2**-7, torch.bfloat16), (0.999, 1.001, torch.bfloat16),
        (1.001, 1.003, torch.bfloat16), (0.0, 1.0, torch.float16), (0.1, 0.3, torch.float16),
        (-6e-8, 6e-8, torch.float16), (-65504.0, 0.0, torch.float16),
    ],
)  # fmt: skip
def test_a_uniform_stays_below_its_upper_bound(
    a: float, b: float, dtype: torch.dtype, cpu_capability: str
) -> None:
    values = init.uniform_(torch.empty(1 << 20, dtype=dtype), a, b, generator=KEY).double()
    start, end = (x if dtype == torch.float64 else float(np.float32(x)) for x in (a, b))
    representable = torch.tensor([start], dtype=torch.float64).to(dtype).double()
    if not bool(((values >= start) & (values < end)).all()):
        # The values are the rounded bound only if the dtype has no value in [a, b).
        assert bool((values == representable).all())
        nearest = torch.nextafter(representable.to(dtype), torch.tensor([math.inf], dtype=dtype)).double()
        assert not (start <= representable.item() < end)
        assert not (start <= nearest.item() < end)


# --- generators ------------------------------------------------------------------------------


def test_what_a_fill_takes_from_a_generator_does_not_depend_on_its_size() -> None:
    states = []
    for shape in ((1,), (64, 64), (1 << 20,)):
        generator = torch.Generator().manual_seed(7)
        init.normal_(torch.empty(shape), generator=generator)
        states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states)


def test_the_draw_is_two_integers_over_their_whole_range() -> None:
    generator = torch.Generator().manual_seed(7)
    seed, offset = torch.empty(2, dtype=torch.int64).random_(-(2**63), None, generator=generator).tolist()
    expected = init.normal_(torch.empty(100), generator=Key(seed % 2**64, offset % 2**64))
    assert same(init.normal_(torch.empty(100), generator=generator.manual_seed(7)), expected)
    torch.manual_seed(7)
    assert same(init.normal_(torch.empty(100)), expected)


if __name__ == "__main__":
    # Run this after an intended change of the stream.
    GOLDEN.write_text(json.dumps(golden_values(), indent=1) + "\n")
