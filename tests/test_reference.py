"""The kernels against paraminit_ext.reference: the same values, bit for bit, in every regime."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fills import DTYPES, same, typed
from paraminit_ext import _C, Key, init, reference, shard

INF = math.inf
# Wraps after 40 counters: inside every run below.
KEY = Key(0x1234567890ABCDEF, 2**64 - 40)
# Where a run begins in a flat whole: aligned, inside a group, past 2^33, near the last index of all.
PLACES = [0, 1, 6, 2**33 + 3, 2**63 - 300]
pytestmark = pytest.mark.filterwarnings("ignore:mean is more than 2 std:UserWarning")

UNIFORMS = [(-0.3, 0.55), (0.0, 1.0), (1.0, 1.0 + 2**-22), (-1e-3, 2e-3), (0.25, 0.25), (1.001, 1.003),
            (0.0, 1e-44), (1e-36, 3e-36), (-2.0, -1.0), (-6e-8, 6e-8), (6e4, 65504.0),
            (0.999, 1.001)]  # fmt: skip
NORMALS = [(0.0, 1.0), (0.0, 0.02), (3.0, 2.0), (1.0, 0.0), (0.0, 1e-40), (0.0, 20000.0), (-1e-3, 1e-7)]
# (mean, std, a, b)
TRUNCATED = [
    (0.0, 1.0, -2.0, 2.0), (0.0, 0.02, -0.04, 0.04), (1.0, 2.0, -3.0, 5.0), (0.0, 1.0, -2.125, 2.125),
    (0.0, 1.0, 0.1, 0.5), (0.0, 1.0, 1.49, 2.1), (0.0, 1.0, 1.0, 1.0 + 2**-8),  # interior
    (0.0, 1.0, -3.0, 3.0), (0.0, 1.0, -6.7, 6.7), (0.5, 1.0, 0.5, INF), (0.0, 1.0, -INF, 1.0),
    (0.0, 1.0, -8.0, 2.2), (0.0, 1.0, 0.99, INF), (0.0, 1.0, 1.49, INF), (0.0, 1.0, -INF, -1.25),  # two-sided
    (0.0, 1.0, 1.5, INF), (0.0, 1.0, 3.0, 4.0), (1.0, 0.5, -9.0, -1.0), (0.0, 1.0, -INF, -5.0),
    (0.0, 1.0, 3.0, 3.0 + 2**-7), (0.0, 1.0, 13.0, INF), (0.0, 1.0, 36.9, 37.5),
    (5.0, 0.1, 1.5, 2.0),  # one-sided
    (0.0, 0.02, -2.0, 2.0), (0.0, 1.0, -INF, INF), (0.0, 1.0, 0.3, 0.3), (0.0, 1.0, 1.001, 1.003),
]  # fmt: skip


def from_kernel(fill: Callable[[Tensor], Tensor], place: int, count: int, dtype: torch.dtype) -> Tensor:
    """The fill's elements from ``place`` on, of a flat whole that has them."""
    local = torch.full((count,), -7.0, dtype=dtype)
    fill(shard(local, (2**63 - 1,), (place,)))  # type: ignore[arg-type]
    return local


def agree(
    fill: Callable[[Tensor], Tensor], expected: Callable[[range], Tensor], count: int, dtype: torch.dtype
) -> None:
    for place in PLACES:
        assert same(from_kernel(fill, place, count, dtype), expected(range(place, place + count))), place


@typed
@pytest.mark.parametrize(("a", "b"), UNIFORMS)
def test_uniforms_are_the_references(a: float, b: float, dtype: torch.dtype, cpu_capability: str) -> None:
    fill = lambda t: init.uniform_(t, a, b, generator=KEY)  # noqa: E731
    agree(fill, lambda r: reference.uniform(KEY, r, dtype, a, b), 137, dtype)


@typed
@pytest.mark.parametrize(("mean", "std"), NORMALS)
def test_normals_are_the_references(mean: float, std: float, dtype: torch.dtype, cpu_capability: str) -> None:
    fill = lambda t: init.normal_(t, mean, std, generator=KEY)  # noqa: E731
    agree(fill, lambda r: reference.normal(KEY, r, dtype, mean, std), 67, dtype)


@typed
@pytest.mark.parametrize("parameters", TRUNCATED, ids=str)
def test_truncated_normals_are_the_references(
    parameters: tuple[float, float, float, float], dtype: torch.dtype, cpu_capability: str
) -> None:
    fill = lambda t: init.trunc_normal_(t, *parameters, generator=KEY)  # noqa: E731
    agree(fill, lambda r: reference.trunc_normal(KEY, r, dtype, *parameters), 37, dtype)


def test_rare_words_reach_the_branches_that_samples_do_not() -> None:
    # Words near both ends and the middle, where tails, signs and exponents change.
    edges = [m + d for m in (0, 2**31, 2**32) for d in (-3, -2, -1, 0, 1, 2) if 0 <= m + d < 2**32]
    edges += [2**k for k in range(32)] + [2**32 - 2**k for k in range(1, 32)]
    edges += [0] * (-len(edges) % 4)
    words = torch.tensor(edges, dtype=torch.int64).to(torch.int32).reshape(-1, 4)
    for mean, std, a, b in TRUNCATED[:-4]:
        if (mean, std) != (0.0, 1.0):
            continue
        low, high = reference.f32(a), reference.f32(b)
        quantile, mirrored = reference._truncated(low, high, False)
        # The value is fma(z, 1, 0), clamped: -0 becomes +0.
        z = torch.tensor([(-1.0 if mirrored else 1.0) * quantile(w) + 0.0 for w in edges])
        got = _C.apply_distribution("trunc_normal_", [mean, std, a, b], words, torch.float32)
        assert same(got, z.clamp(low, high))


@pytest.mark.parametrize("x", [0.0, 0.3, 1.0, 2.4999, 2.5, 3.0, 7.5, 25.0, 37.0])
def test_the_tail_of_the_normal_law_is_the_references(x: float) -> None:
    assert _C.upper_tail(x) == reference.upper_tail(x)
    assert _C.minus_two_log_upper_tail(x) == reference.minus_two_log_upper_tail(x)


@pytest.mark.parametrize("shape", [(1, 1), (8, 3), (29, 7), (5, 40)])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_sparse_zeros_are_the_references(shape: tuple[int, int], sparsity: float) -> None:
    expected = reference.sparse_zeros(KEY, shape, sparsity)
    for dtype in (*DTYPES, torch.complex64):
        assert torch.equal(
            init.sparse_(torch.empty(shape, dtype=dtype), sparsity, generator=KEY) == 0, expected
        )


def test_folding_is_the_references() -> None:
    for data in (0, 1, 40, 2**64 - 1):
        assert KEY.fold_in(data) == reference.fold_in(KEY, data)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_references_philox_gives_random123s_known_answers(counter: str, key: str, words: str) -> None:
    c, k, w = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    assert list(reference.philox4x32_10(c, k)) == w


def test_a_fused_multiply_add_in_float32_is_rounded_once() -> None:
    # Exactly 1 + 2^-24 + 2^-60: above a tie, but binary64 has no room for the last bit and sees the tie.
    assert reference.SINGLE.fma(1.0 + 2.0**-36, 2.0**-24, 1.0) == 1.0 + 2.0**-23
    assert reference.SINGLE.fma(1.0, 2.0**-24, 1.0) == 1.0
    assert reference.f32(math.fsum([2.0**-24, 2.0**-60, 1.0])) == 1.0, "two roundings would go down"


@pytest.mark.parametrize("fault", ["key", "offset", "index"])
def test_the_comparison_can_fail(fault: str) -> None:
    key = {"key": Key(KEY.seed ^ 1, KEY.offset), "offset": Key(KEY.seed, KEY.offset + 1)}.get(fault, KEY)
    place = 5 if fault == "index" else 4
    got = from_kernel(lambda t: init.normal_(t, generator=KEY), 4, 40, torch.float32)
    assert not torch.equal(got, reference.normal(key, range(place, place + 40), torch.float32, 0.0, 1.0))
