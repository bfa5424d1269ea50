"""The kernels give the values of paraminit_ext.reference, bit for bit, in every regime."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import pytest
import torch
from torch import Tensor

from fills import DTYPES, same, typed
from paraminit_ext import _C, Key, init, reference, shard

INF = math.inf
# The counter of this key wraps after five groups, inside every run below that starts near 0.
KEY = Key(0x1234567890ABCDEF, 2**64 - 5)
# Indices at which runs begin in a flat whole: aligned (0), inside a group (1, 6), before the counter's low
# half carries into the high half (in float64, then in the other dtypes), and near the last index.
PLACES = [0, 1, 6, 2**33 + 3, 2**34 + 11, 2**63 - 300]
pytestmark = pytest.mark.filterwarnings("ignore:mean is more than 2 std:UserWarning")

UNIFORMS = [(-0.3, 0.55), (0.0, 1.0), (1.0, 1.0 + 2**-22), (-1e-3, 2e-3), (0.25, 0.25), (1.001, 1.003),
            (0.0, 1e-44), (1e-36, 3e-36), (-2.0, -1.0), (-6e-8, 6e-8), (6e4, 65504.0),
            (0.999, 1.001), (1.0, 1.0 + 2**-23), (1.0, 1.0 + 2**-52), (-32752.0, 32752.0),
            # Ranges of a power of two, with largest values that do or do not round to the bound in 16 bits.
            (-1.0, 1.0), (0.1, 0.6), (-0.1, 0.4), (1e-40, 2.0**-99), (-(2.0**14), 2.0**14),
            # Both sides of the range at which u * range would lose bits as a subnormal, and far below it.
            (0.0, 2.0**-100), (0.0, 2.0**-100 * (1 - 2**-24)),
            (0.0, 2.0**-960), (0.0, 2.0**-960 * (1 - 2**-53)), (0.0, 1e-310),
            (-1e-310, 3e-310), (0.0, 5e-324),
            # Bounds that round to zero in 16 bits: values between them keep their sign.
            (-2e-8, 2e-8), (-2e-8, 1e-3), (-1e-3, 2e-8), (-2e-31, 2e-31),
            (-4e-41, 4e-41), (-0.0, 1e-7)]  # fmt: skip
NORMALS = [(0.0, 1.0), (0.0, 0.02), (3.0, 2.0), (1.0, 0.0), (0.0, 1e-40), (0.0, 20000.0), (-1e-3, 1e-7),
           (-0.0, 0.0), (-0.0, 1e-45), (-0.0, 1e-50), (6e4, 3e4), (3e38, 3e38), (0.0, 5e-324)]  # fmt: skip
TINY = 2.0**-149  # the smallest positive float32
# (mean, std, a, b) of fills by inversion of the CDF.
INVERTED = [
    (0.0, 1.0, -2.0, 2.0), (0.0, 0.02, -0.04, 0.04), (1.0, 2.0, -3.0, 5.0), (0.0, 1.0, -2.125, 2.125),
    (0.0, 1.0, 0.1, 0.5), (0.0, 1.0, 1.49, 2.1), (0.0, 1.0, 1.0, 1.0 + 2**-8),
    (0.0, 1.0, 0.9, 1.0056), (-1.0, 1.0, -3.0, 0.0),  # interior
    (0.0, 1.0, -2.0, 2.126), (0.0, 1.0, -2.126, 2.0), (0.0, 1.0, -3.0, 3.0), (0.0, 1.0, -6.7, 6.7),
    (0.5, 1.0, 0.5, INF), (0.0, 1.0, -INF, 1.0), (0.0, 1.0, -8.0, 2.2), (0.0, 1.0, 0.99, INF),
    (0.0, 1.0, 1.49, INF), (0.0, 1.0, -INF, -1.25), (0.0, 1.0, -37.3, 2.5), (0.0, 1.0, -40.0, -0.5),
    (0.0, 1.0, -6.77, 6.77), (0.0, 1.0, -8.66, 9.0), (0.0, 1.0, -9.0, 8.66),
    (6e4, 1e4, 0.0, 1e5),  # two-sided
    (0.0, 1.0, 1.0, INF), (0.0, 1.0, -INF, -1.0), (0.0, 1.0, 1.5, INF), (0.0, 1.0, -INF, -1.5),
    (0.0, 1.0, 3.0, 4.0), (1.0, 0.5, -9.0, -1.0), (0.0, 1.0, -INF, -5.0), (0.0, 1.0, 7.0, 9.0),
    (0.0, 1.0, 3.0, 3.0 + 2**-7), (0.0, 1.0, 3.0, 3.05), (0.0, 1.0, 13.0, INF), (0.0, 1.0, 3.0, 101.0),
    (0.0, 1.0, 36.9, 37.5), (0.0, 1.0, 36.9, 60.0), (0.0, 1.0, -INF, -36.9),
    (5.0, 0.1, 1.5, 2.0),  # one-sided
    (0.0, 1e-8, -1.0, 2e-8), (0.0, 1e-8, -2e-8, 1.0), (0.0, 1e-8, -2e-8, 2e-8), (0.0, 1e-8, -1.0, 0.0),
    (0.0, 1e-8, 0.0, 1.0),  # zeros in 16 bits
]  # fmt: skip
# Bounds that z does not reach (at least in float32), although a rounded value may.
CLAMPED = [(0.0, 0.02, -2.0, 2.0), (0.0, 1.0, -INF, INF), (0.0, 1.0, -6.7700005, 6.7700005),
           (0.0, 1.0, -8.66000001, 8.66000001), (0.0, 2e4, -1.4e5, 1.4e5),
           (-0.0, 1e-40, -1.0, 1.0), (0.0, 0.51 * TINY, -4 * TINY, 4 * TINY),
           # In float32 std is 4 TINY, and values next to the bound of zero round to it.
           (-27 * TINY, 3.6 * TINY, -1.0, 0.0), (27 * TINY, 3.6 * TINY, 0.0, 1.0)]  # fmt: skip
# Bounds that leave one value (at least in 16 bits).
CONSTANT = [(0.0, 1.0, 0.3, 0.3), (0.0, 1.0, -0.0, 0.0), (0.0, 1.0, 1.001, 1.003)]
TRUNCATED = INVERTED + CLAMPED + CONSTANT


def from_kernel(fill: Callable[[Tensor], Tensor], place: int, count: int, dtype: torch.dtype) -> Tensor:
    """Return ``count`` elements of the fill, from index ``place`` of a flat whole of 2^63 - 1 elements."""
    local = torch.full((count,), -7.0, dtype=dtype)
    fill(shard(local, (2**63 - 1,), (place,)))  # type: ignore[arg-type]
    return local


@cache
def _computed(name: str, dtype: torch.dtype, parameters: tuple[str, ...], indices: range) -> Tensor:
    values: Tensor = getattr(reference, name)(KEY, indices, dtype, *map(float.fromhex, parameters))
    return values


def expected(name: str, dtype: torch.dtype, parameters: tuple[float, ...], indices: range) -> Tensor:
    """Return the reference's values, computed once for all instruction sets."""
    # As text, because 0.0 and -0.0 are the same key of a cache.
    return _computed(name, dtype, tuple(float(p).hex() for p in parameters), indices)


def assert_agree(name: str, parameters: tuple[float, ...], count: int, dtype: torch.dtype) -> None:
    fill = getattr(init, name + "_")
    for place in PLACES:
        got = from_kernel(lambda t: fill(t, *parameters, generator=KEY), place, count, dtype)
        assert same(got, expected(name, dtype, parameters, range(place, place + count))), place


@typed
@pytest.mark.parametrize("parameters", UNIFORMS, ids=str)
def test_uniforms_are_the_references(
    parameters: tuple[float, float], dtype: torch.dtype, cpu_capability: str
) -> None:
    assert_agree("uniform", parameters, 137, dtype)


@typed
@pytest.mark.parametrize("parameters", NORMALS, ids=str)
def test_normals_are_the_references(
    parameters: tuple[float, float], dtype: torch.dtype, cpu_capability: str
) -> None:
    assert_agree("normal", parameters, 67, dtype)


@typed
@pytest.mark.parametrize("parameters", TRUNCATED, ids=str)
def test_truncated_normals_are_the_references(
    parameters: tuple[float, float, float, float], dtype: torch.dtype, cpu_capability: str
) -> None:
    assert_agree("trunc_normal", parameters, 47, dtype)


@pytest.mark.parametrize(
    "dtype", [torch.complex32, torch.complex64, torch.complex128], ids=lambda d: str(d)[6:]
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_a_complex_fill_is_the_references_real_one_at_twice_the_index(
    dtype: torch.dtype, cpu_capability: str
) -> None:
    for place in PLACES:
        parts = range(2 * place, 2 * (place + 19))
        got = from_kernel(lambda t: init.uniform_(t, -0.3, 0.55, generator=KEY), place, 19, dtype)
        assert same(
            torch.view_as_real(got).flatten(), reference.uniform(KEY, parts, dtype.to_real(), -0.3, 0.55)
        )
        got = from_kernel(lambda t: init.normal_(t, 0.5, 2.0, generator=KEY), place, 19, dtype)
        std = 2.0 / math.sqrt(2.0)
        assert same(
            torch.view_as_real(got).flatten(), reference.normal(KEY, parts, dtype.to_real(), 0.5, std)
        )


def test_runs_cross_where_the_counter_wraps_and_where_it_carries() -> None:
    # The tests above rely on this; here for the shortest of their runs.
    for per_group, carrying in ((2, 2**33 + 3), (4, 2**34 + 11)):
        for place, bits in ((0, 64), (1, 64), (6, 64), (carrying, 32)):
            first, last = (KEY.offset + i // per_group for i in (place, place + 46))
            assert last >> bits == (first >> bits) + 1
    assert max(PLACES) > 2**63 - 400


def rare_words() -> list[tuple[int, int, int, int]]:
    """Return groups of words that a short stream does not contain, for 32-bit and for 64-bit elements."""
    # The ends and the middle, near which signs, tails and exponents change; every octave from both ends.
    near = [m + d for m in (0, 2**31, 2**32) for d in (-3, -2, -1, 0, 1, 2) if 0 <= m + d < 2**32]
    octaves = [(8 + e) << k >> 3 for k in range(31) for e in (0, 1, 3, 6)]
    edges = near + octaves + [2**32 - 1 - w for w in octaves] + [2**31 - 1 - w for w in octaves]
    # Uniforms that are ties of float16 and bfloat16.
    edges += [(2 * n + 1) << k for n in (64, 65, 127) for k in range(17)]
    n = len(edges)
    groups = [(w, edges[(7 * i + 3) % n], edges[(11 * i + 5) % n], w) for i, w in enumerate(edges)]
    # The same for 64-bit words. Only uniforms read their 11 lowest bits.
    wide = [m + (d << 11) for m in (0, 2**63, 2**64) for d in (-2, -1, 0, 1) if 0 <= m + (d << 11) < 2**64]
    wide += [x for k in range(0, 64, 3) for x in (3 << k >> 1, 2**64 - (3 << k >> 1), 2**63 - (3 << k >> 2))]
    wide = [x % 2**64 for x in wide]
    pairs = [(x, wide[(7 * i + 3) % len(wide)]) for i, x in enumerate(wide)]
    groups += [(x >> 32, x % 2**32, y >> 32, y % 2**32) for x, y in pairs]
    return [*groups, (0, 0, 0, 2**31)]  # the greatest normal and the least


@cache
def of_rare_words(name: str, dtype: torch.dtype, parameters: tuple[float, ...]) -> Tensor:
    """Return the reference's values for a stream of the rare words."""
    groups = rare_words()
    count = len(groups) * (2 if dtype == torch.float64 else 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "words", lambda _, group: groups[group])
        values: Tensor = getattr(reference, name)(KEY, range(count), dtype, *parameters)
    return values


@typed
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("uniform", (0.0, 1.0)),
        ("uniform", (-0.3, 0.55)),
        ("uniform", (-1.0, 1.0)),
        ("uniform", (0.1, 0.6)),
        ("uniform", (-0.1, 0.4)),
        ("normal", (0.0, 1.0)),
        *(
            ("trunc_normal", p)
            for p in (*INVERTED[::4], (0.0, 1.0, 7.0, 9.0), (-1.0, 1.0, -3.0, 0.0), *CLAMPED)
        ),
    ],
    ids=str,
)
def test_rare_words_give_the_references_values(
    name: str, parameters: tuple[float, ...], dtype: torch.dtype, cpu_capability: str
) -> None:
    words = torch.tensor(rare_words(), dtype=torch.int64).to(torch.int32)
    got = _C.apply_distribution(name + "_", list(parameters), words, dtype)
    assert same(got, of_rare_words(name, dtype, parameters))


def test_a_bound_whose_distance_from_the_mean_overflows_binds(cpu_capability: str) -> None:
    parameters = (1e307, 2.1e307, -1.7e308, INF)
    assert_agree("trunc_normal", parameters, 47, torch.float64)
    words = torch.tensor(rare_words(), dtype=torch.int64).to(torch.int32)
    got = _C.apply_distribution("trunc_normal_", list(parameters), words, torch.float64)
    assert same(got, of_rare_words("trunc_normal", torch.float64, parameters))
    assert got.min() == -1.7e308


@pytest.mark.parametrize("x", [k / 16 for k in range(608)] + [2.4999, 37.3, 37.4, math.nextafter(37.4, 38.0)])
def test_the_tail_of_the_normal_law_is_the_references(x: float) -> None:
    assert _C.upper_tail(x) == reference.upper_tail(x)
    assert _C.minus_two_log_upper_tail(x) == reference.minus_two_log_upper_tail(x)


@pytest.mark.parametrize("shape", [(1, 1), (8, 3), (29, 7), (5, 40)])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_sparse_fills_are_the_references(
    shape: tuple[int, int], sparsity: float, cpu_capability: str
) -> None:
    zeros = reference.sparse_zeros(KEY, shape, sparsity)
    for dtype in DTYPES:
        values = expected("normal", dtype, (0.0, 0.01), range(math.prod(shape))).reshape(shape)
        got = init.sparse_(torch.empty(shape, dtype=dtype), sparsity, generator=KEY)
        assert same(got, values.masked_fill(zeros, 0.0))
    assert torch.equal(
        init.sparse_(torch.empty(shape, dtype=torch.complex64), sparsity, generator=KEY) == 0, zeros
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
    # The exact sum 1 + 2^-24 + 2^-60 is above a tie. binary64 cannot hold the last bit and would see the tie.
    assert reference.SINGLE.fma(1.0 + 2.0**-36, 2.0**-24, 1.0) == 1.0 + 2.0**-23
    assert reference.SINGLE.fma(1.0, 2.0**-24, 1.0) == 1.0
    assert reference.f32(math.fsum([2.0**-24, 2.0**-60, 1.0])) == 1.0, "two roundings would round down"


@pytest.mark.parametrize("arithmetic", [reference.SINGLE, reference.DOUBLE], ids=["float32", "float64"])
def test_a_fused_multiply_add_of_zero_has_ieees_sign(arithmetic: reference.Arithmetic) -> None:
    # IEEE-754, section 6.3: -0 if both addends are -0, +0 if they differ or cancel.
    for a, b, c, sign in (
        (-0.0, 1.0, -0.0, -1),
        (0.0, 1.0, -0.0, 1),
        (-0.0, 1.0, 0.0, 1),
        (-3.0, 2.0, 6.0, 1),
    ):
        got = arithmetic.fma(a, b, c)
        assert got == 0.0
        assert math.copysign(1.0, got) == sign


@pytest.mark.parametrize("mean", [0.0, -0.0])
def test_a_float64_interval_that_holds_nothing_but_zeros_is_the_references(
    mean: float, cpu_capability: str
) -> None:
    # Phi is the same at both bounds, so z is a zero of either sign.
    got = from_kernel(
        lambda t: init.trunc_normal_(t, mean, 1.0, -1e-228, 1e-159, generator=KEY), 0, 64, torch.float64
    )
    expected = reference.trunc_normal(KEY, range(64), torch.float64, mean, 1.0, -1e-228, 1e-159)
    assert same(got, expected)
    assert bool(torch.signbit(expected).any()) == (math.copysign(1.0, mean) < 0)


def nearest_even(exact: Fraction, got: float, dtype: torch.dtype) -> bool:
    """Return whether ``got`` is the value of ``dtype`` nearest to ``exact``, compared with its neighbours."""
    form, error = reference.FORMATS[dtype], abs(Fraction(got) - exact)
    others = [abs(Fraction(form.neighbour(got, up)) - exact) for up in (False, True)]
    return error < min(others) or (error == min(others) and form.encode(got) % 2 == 0)


def test_every_rounding_of_the_reference_is_to_the_nearest() -> None:
    draw = random.Random(0)

    def random_value() -> float:
        # Short mantissas make ties, small exponents make subnormal results.
        mantissa = draw.getrandbits(draw.choice([3, 13, 24])) | 1
        return reference.f32(
            math.ldexp(draw.choice([-1, 1]) * mantissa, draw.choice([-24, -20, -12, -80, -140]))
        )

    f32, fma = reference.f32, reference.SINGLE.fma
    for _ in range(3000):
        a, b, c = random_value(), random_value(), random_value()
        x, y, z = Fraction(a), Fraction(b), Fraction(c)
        assert nearest_even(x + y, f32(a + b), torch.float32)
        assert nearest_even(x * y, f32(a * b), torch.float32)
        assert nearest_even(x * y + z, fma(a, b, c), torch.float32)
        assert nearest_even(x * y + z, reference.DOUBLE.fma(a, b, c), torch.float64)
        for dtype in (torch.float16, torch.bfloat16):
            assert nearest_even(x, reference.FORMATS[dtype].nearest(a), dtype)
        # The squares of the midpoints between the root and its neighbours must enclose the radicand.
        root = f32(math.sqrt(abs(a)))
        below, above = (
            (Fraction(root) + Fraction(reference.FORMATS[torch.float32].neighbour(root, up))) / 2
            for up in (False, True)
        )
        assert below**2 < abs(x) < above**2


@pytest.mark.parametrize("fault", ["key", "offset", "index"])
def test_the_comparison_can_fail(fault: str) -> None:
    key = {"key": Key(KEY.seed ^ 1, KEY.offset), "offset": Key(KEY.seed, KEY.offset + 1)}.get(fault, KEY)
    place = 5 if fault == "index" else 4
    got = from_kernel(lambda t: init.normal_(t, generator=KEY), 4, 40, torch.float32)
    assert not torch.equal(got, reference.normal(key, range(place, place + 40), torch.float32, 0.0, 1.0))
