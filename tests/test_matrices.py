"""sparse_ and orthogonal_ match plain specifications, whatever the strides, threads, shards and settings."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import subprocesses
from fills import DTYPES, KEY, LAYOUTS, same, typed
from paraminit_ext import _C, Key, init, shard

Extended = npt.NDArray[np.longdouble]

FILLABLE = [*DTYPES, torch.complex64]
every_dtype = pytest.mark.parametrize("dtype", FILLABLE, ids=lambda d: str(d)[6:])


@pytest.fixture(params=[1, 2, 3])
def thread_count(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test once with each number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield int(request.param)
    torch.set_num_threads(before)


def surrounded(shape: tuple[int, ...], dtype: torch.dtype, transposed: bool = False) -> tuple[Tensor, Tensor]:
    """Return a view with gaps in every dimension, and its base tensor, which is full of canaries."""
    sizes = [2 * n + 5 for n in (shape[::-1] if transposed else shape)]
    backing = torch.full(sizes, -7.0, dtype=dtype)
    view = backing.t() if transposed else backing
    return view[tuple(slice(3, 3 + 2 * n, 2) for n in shape)], backing


def untouched(view: Tensor, backing: Tensor) -> bool:
    """Return whether every element of the base outside the view still holds its canary."""
    view.fill_(-7.0)
    return bool((backing == -7.0).all())


# ----------------------------------------------------------------------------------------
# sparse_: the plain specification
# ----------------------------------------------------------------------------------------


def words(key: Key, whole: tuple[int, int], begin: int = 0, columns: int | None = None) -> Tensor:
    """Return the words that rank the elements of some columns of a whole matrix."""
    folded = key.fold_in(1)
    seed, offset = (n - 2**64 if n >= 2**63 else n for n in (folded.seed, folded.offset))
    out = torch.empty(whole[0], whole[1] if columns is None else columns, dtype=torch.int64)
    torch.ops.paraminit_ext.words_.default(out, seed, offset, whole, (0, begin))
    return out


def chosen(ranked: Tensor, zeros: int) -> Tensor:
    """Mark the smallest (word, row) pairs of each column; the stable sort orders equal words by row."""
    order = ranked.sort(dim=0, stable=True).indices
    return torch.zeros(ranked.shape, dtype=torch.bool).scatter_(0, order[:zeros], True)


@cache
def specified(
    shape: tuple[int, int], dtype: torch.dtype, sparsity: float, key: Key = KEY, std: float = 0.01
) -> Tensor:
    """Return the normal fill with the specified zeros, computed once for all instruction sets and layouts."""
    values = init.normal_(torch.empty(shape, dtype=dtype), 0.0, std, generator=key)
    return values.masked_fill(chosen(words(key, shape), math.ceil(sparsity * shape[0])), 0.0)


SHAPES = [(1, 1), (1, 9), (9, 1), (0, 5), (5, 0), (0, 0), (2, 3), (3, 2), (4, 4), (8, 16), (16, 8), (7, 33),
          (33, 7), (31, 31), (64, 64), (65, 17), (127, 12), (255, 5), (256, 4), (257, 9), (1000, 3),
          (1025, 6), (3, 1001), (17, 4099), (4099, 5)]  # fmt: skip
SPARSITIES = [0.0, 1e-9, 0.1, 1 / 3, 0.5, 0.9, 1 - 2**-40, 1.0]


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_a_sparse_fill_is_the_specified_one(
    shape: tuple[int, int], dtype: torch.dtype, cpu_capability: str
) -> None:
    for sparsity in SPARSITIES:
        got = init.sparse_(torch.full(shape, 3.0, dtype=dtype), sparsity, generator=KEY)
        assert same(got, specified(shape, dtype, sparsity)), sparsity


def test_a_sparse_fill_of_any_small_shape_and_count_is_the_specified_one(cpu_capability: str) -> None:
    draw = random.Random(1)
    for rows in range(1, 81):
        columns = draw.randrange(1, 41)
        ranked, key = words(KEY.fold_in(rows), (rows, columns)), KEY.fold_in(rows)
        values = init.normal_(torch.empty(rows, columns), 0.0, 0.01, generator=key)
        for zeros in {0, 1, rows // 2, draw.randrange(rows + 1), rows - 1, rows}:
            got = init.sparse_(torch.empty(rows, columns), zeros / rows, generator=key)
            # zeros / rows * rows may round up past zeros. Then the contract requires one more zero.
            expected = math.ceil(zeros / rows * rows)
            assert same(got, values.masked_fill(chosen(ranked, expected), 0.0)), (rows, columns, zeros)


def test_the_count_of_zeros_is_stocks_for_every_row_count_and_fraction() -> None:
    torch.manual_seed(0)  # with this seed stock draws no value that is zero
    fractions = [0.07, 0.1, 0.29, 0.3, 0.57, 0.7, 0.99, math.nextafter(1.0, 0.0), 5e-324, 1e-300]
    for rows in range(1, 130):
        for sparsity in (*fractions, 1 / rows, math.nextafter(1 / rows, 1.0), (rows - 1) / rows):
            ours = init.sparse_(torch.empty(rows, 2), sparsity, generator=KEY)
            stock = torch.nn.init.sparse_(torch.empty(rows, 2), sparsity)
            counts = [(m == 0).sum(0).tolist() for m in (ours, stock)]
            assert counts == [[math.ceil(sparsity * rows)] * 2] * 2


def test_the_std_scales_what_is_kept_and_moves_no_zero() -> None:
    for std in (0.0, 1e-45, 0.5, 3.0, 1e38):
        got = init.sparse_(torch.empty(40, 30), 0.4, std, generator=KEY)
        assert same(got, specified((40, 30), torch.float32, 0.4, std=std))


def test_every_dtype_has_its_zeros_in_the_same_places() -> None:
    patterns = [init.sparse_(torch.empty(50, 30, dtype=d), 0.4, 1.0, generator=KEY) == 0 for d in FILLABLE]
    assert all(torch.equal(patterns[0], pattern) for pattern in patterns)


# ----------------------------------------------------------------------------------------
# sparse_: what may not change a value
# ----------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_sparse_fill_does_not_depend_on_strides(
    layout: Callable[[torch.dtype], Tensor], dtype: torch.dtype, cpu_capability: str
) -> None:
    got = init.sparse_(layout(dtype), 0.3, generator=KEY)
    assert same(got, specified((130, 67), dtype, 0.3))


@every_dtype
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (9, 1), (40, 67), (300, 10), (6, 513)])
def test_a_sparse_fill_writes_its_view_and_nothing_around_it(
    shape: tuple[int, int], transposed: bool, dtype: torch.dtype, cpu_capability: str
) -> None:
    view, backing = surrounded(shape, dtype, transposed)
    assert same(init.sparse_(view, 0.3, generator=KEY), specified(shape, dtype, 0.3))
    assert untouched(view, backing)
    # Contiguous, at an odd storage offset.
    flat = torch.full((math.prod(shape) + 10,), -7.0, dtype=dtype)
    dense = flat[3 : 3 + math.prod(shape)].view(shape)
    assert same(init.sparse_(dense, 0.3, generator=KEY), specified(shape, dtype, 0.3))
    assert untouched(dense, flat)


@pytest.mark.parametrize("shape", [(300, 4001), (40_000, 31), (1 << 20, 1)])
def test_a_sparse_fill_does_not_depend_on_the_thread_count(
    shape: tuple[int, int], thread_count: int, cpu_capability: str
) -> None:
    expected = specified(shape, torch.float32, 0.2)
    assert same(init.sparse_(torch.empty(shape), 0.2, generator=KEY), expected)
    assert same(init.sparse_(torch.empty(shape[::-1]).t(), 0.2, generator=KEY), expected)


@pytest.mark.parametrize("sparsity", [0.004, 0.3])
def test_a_wide_sparse_fill_is_the_specified_one(sparsity: float) -> None:
    rows, columns, panel = 256, 131_072, 16_384
    got = init.sparse_(torch.empty(rows, columns), sparsity, generator=KEY)
    values = init.normal_(torch.empty(rows, columns), 0.0, 0.01, generator=KEY)
    zeros = math.ceil(sparsity * rows)
    for begin in range(0, columns, panel):
        # Encode (word, row) as one number. The largest chosen number is the threshold.
        rank = words(KEY, (rows, columns), begin, panel).t().mul(rows).add_(torch.arange(rows))
        threshold = rank.kthvalue(zeros, dim=1, keepdim=True).values
        columns_of_panel = slice(begin, begin + panel)
        values[:, columns_of_panel].masked_fill_((rank <= threshold).t(), 0.0)
    assert same(got, values)


BOXES = [((0, 5), (0, None)), ((5, None), (0, None)), ((0, None), (0, 1)), ((0, None), (1, 64)),
         ((3, 4), (7, 9)), ((2, 36), (60, None)), ((17, 17), (0, 5)), ((0, None), (3, 3)),
         ((0, None), (0, None))]  # fmt: skip


@every_dtype
@pytest.mark.parametrize("shape", [(37, 131), (700, 66), (5000, 70)])
def test_sparse_shards_of_rows_of_columns_and_of_both_are_the_parts(
    shape: tuple[int, int], dtype: torch.dtype, cpu_capability: str
) -> None:
    whole = specified(shape, dtype, 0.3)
    for (r0, r1), (c0, c1) in BOXES:
        expected = whole[r0:r1, c0:c1]
        local = torch.full(expected.shape, -7.0, dtype=dtype)
        assert same(init.sparse_(shard(local, shape, (r0, c0)), 0.3, generator=KEY), expected)
        view, backing = surrounded((expected.size(0), expected.size(1)), dtype, transposed=True)
        assert same(init.sparse_(shard(view, shape, (r0, c0)), 0.3, generator=KEY), expected)
        assert untouched(view, backing)


def test_a_sparse_shard_past_2_to_the_32_elements_is_the_part(cpu_capability: str) -> None:
    whole, row, column = (1 << 18, 1 << 20), 261_000, 1_048_571
    local = init.sparse_(shard(torch.empty(1000, 5), whole, (row, column)), 0.25, generator=KEY)
    values = init.normal_(shard(torch.empty(1000, 5), whole, (row, column)), 0.0, 0.01, generator=KEY)
    zeros = chosen(words(KEY, whole, column, 5), 1 << 16)
    assert same(local, values.masked_fill(zeros[row : row + 1000], 0.0))


# ----------------------------------------------------------------------------------------
# sparse_: equal words
# ----------------------------------------------------------------------------------------

TALL = (1 << 17, 8)


@cache
def ties(key: Key) -> list[tuple[int, int, int, int]]:
    """Return the pairs of equal words in a column of a tall matrix, as (column, zeros, lower row, upper row).

    ``zeros`` counts the column's words up to the first of the pair, so a fill with that many zeros has its
    threshold between the two. A column of 2^17 words of 32 bits has two such pairs on average.
    """
    ordered, rows = words(key, TALL).sort(dim=0, stable=True)
    equal_pairs = []
    for place, column in (ordered[1:] == ordered[:-1]).nonzero().tolist():
        pair = rows[place : place + 2, column].tolist()
        equal_pairs.append((column, place + 1, pair[0], pair[1]))
    return equal_pairs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("transposed", [False, True])
def test_of_two_equal_words_at_the_threshold_the_lower_row_is_zeroed(
    seed: int, transposed: bool, cpu_capability: str
) -> None:
    key = KEY.fold_in(seed)
    assert ties(key), "no column holds a word twice: take another key"
    for column, zeros, lower, upper in ties(key)[:3]:
        assert lower < upper
        tensor = torch.empty(TALL[::-1]).t() if transposed else torch.empty(TALL)
        got = init.sparse_(tensor, zeros / TALL[0], generator=key)
        assert got[lower, column] == 0
        assert got[upper, column] != 0
        assert (got == 0).sum(0).tolist() == [zeros] * TALL[1]
        # One more zero also takes the upper row.
        both = init.sparse_(torch.empty(TALL), (zeros + 1) / TALL[0], generator=key)
        assert both[lower, column] == both[upper, column] == 0


def test_two_words_at_the_threshold_that_differ_by_1_are_told_apart(cpu_capability: str) -> None:
    # The lower row has the greater word, so words of fewer bits would be equal and choose the wrong row.
    key = KEY.fold_in(2)
    ordered, rows = words(key, TALL).sort(dim=0, stable=True)
    close = (ordered[1:] - ordered[:-1] == 1) & (rows[1:] < rows[:-1])
    assert int(close.sum()) >= 4, "2^20 words of 32 bits hold about 16 such pairs: take another key"
    for place, column in close.nonzero()[:4].tolist():
        got = init.sparse_(torch.empty(TALL), (place + 1) / TALL[0], generator=key)
        upper, lower = rows[place : place + 2, column].tolist()
        assert got[upper, column] == 0
        assert got[lower, column] != 0


def test_the_upper_of_two_equal_words_is_kept_in_a_shard_without_the_lower(cpu_capability: str) -> None:
    key = KEY.fold_in(0)
    for column, zeros, lower, upper in ties(key)[:4]:
        for row, zeroed in ((lower, True), (upper, False)):
            local = init.sparse_(
                shard(torch.empty(1, 1), TALL, (row, column)), zeros / TALL[0], generator=key
            )
            assert bool(local == 0) == zeroed


def test_a_tall_sparse_fill_with_equal_words_does_not_depend_on_the_thread_count(thread_count: int) -> None:
    key = KEY.fold_in(1)
    zeros = ties(key)[0][1]
    got = init.sparse_(torch.empty(TALL), zeros / TALL[0], generator=key)
    assert same(got, specified(TALL, torch.float32, zeros / TALL[0], key))


# ----------------------------------------------------------------------------------------
# Both: keys, generators, compilation
# ----------------------------------------------------------------------------------------

MATRICES: dict[str, tuple[float, ...]] = {"sparse_": (0.3,), "orthogonal_": ()}
both = pytest.mark.parametrize(("name", "arguments"), MATRICES.items(), ids=MATRICES.keys())


def function(name: str) -> Callable[..., Tensor]:
    fill: Callable[..., Tensor] = getattr(init, name)
    return fill


@both
def test_a_generator_gives_one_draw_as_the_key(name: str, arguments: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    seed, offset = torch.empty(2, dtype=torch.int64).random_(-(2**63), None, generator=generator).tolist()
    after = generator.get_state()
    expected = function(name)(torch.empty(19, 7), *arguments, generator=Key(seed % 2**64, offset % 2**64))
    generator.manual_seed(4)
    assert same(function(name)(torch.empty(19, 7), *arguments, generator=generator), expected)
    assert torch.equal(generator.get_state(), after)


@both
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_a_matrix_without_elements_takes_no_draw(
    name: str, arguments: tuple[float, ...], shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(4)
    before, empty = generator.get_state(), torch.empty(shape)
    assert function(name)(empty, *arguments, generator=generator) is empty
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("name", "tensor", "arguments", "error"),
    [
        *(("sparse_", torch.full((4, 6), 7.0), (s,), ValueError)
          for s in (-1e-9, math.nextafter(1.0, 2.0), math.nan, math.inf, -math.inf)),
        *(("sparse_", torch.full((4, 6), 7.0), (0.5, s), RuntimeError) for s in (-1.0, math.nan, math.inf)),
        *(("sparse_", torch.full(shape, 7.0), (0.5,), ValueError) for shape in ((), (6,), (2, 3, 4))),
        *(("orthogonal_", torch.full((4, 6), 7.0), (g,), ValueError)
          for g in (math.nan, math.inf, -math.inf)),
        *(("orthogonal_", torch.full(shape, 7.0), (), ValueError) for shape in ((), (6,))),
        ("sparse_", torch.full((4, 6), 7), (0.5,), NotImplementedError),
        ("orthogonal_", torch.full((4, 6), 7), (), NotImplementedError),
        ("orthogonal_", torch.full((4, 6), 7.0, dtype=torch.complex64), (), NotImplementedError),
        ("sparse_", torch.full((1, 6), 7.0).expand(4, 6), (0.5,), RuntimeError),
        ("orthogonal_", torch.full((1, 6), 7.0).expand(4, 6), (), RuntimeError),
    ],
)  # fmt: skip
def test_a_refusal_leaves_the_tensor_and_a_given_generator_alone(
    name: str, tensor: Tensor, arguments: tuple[float, ...], error: type[Exception]
) -> None:
    generator = torch.Generator().manual_seed(4)
    before, version = generator.get_state(), tensor._version
    with pytest.raises(error, match=r"^paraminit_ext\.\w+_: expected .*, got "):
        function(name)(tensor, *arguments, generator=generator)
    assert (tensor == 7).all()
    assert tensor._version == version
    assert torch.equal(generator.get_state(), before)


@both
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_matrix_fill_at_a_key_is_the_eager_one(
    name: str, arguments: tuple[float, ...], dynamic: bool
) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def fill(w: Tensor) -> Tensor:
        return function(name)(w, *arguments, generator=Key(5))

    for rows in (3, 8, 21):
        expected = function(name)(torch.empty(rows, 4), *arguments, generator=Key(5))
        assert same(fill(torch.empty(rows, 4)), expected)


@both
def test_a_compiled_matrix_fill_draws_anew_at_each_call(name: str, arguments: tuple[float, ...]) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(w: Tensor) -> Tensor:
        return function(name)(w, *arguments) * 2.0

    torch.manual_seed(11)
    compiled = [
        step(torch.empty(6, 5)) for _ in range(12)
    ]  # more than the eight recompilations that torch allows
    torch.manual_seed(11)
    eager = [function(name)(torch.empty(6, 5), *arguments) * 2.0 for _ in range(12)]
    assert all(same(c, e) for c, e in zip(compiled, eager, strict=True))
    assert not torch.equal(compiled[0], compiled[1])


# ----------------------------------------------------------------------------------------
# orthogonal_: the plain specification
# ----------------------------------------------------------------------------------------

# The specification is computed in a type wider than double, so that its own rounding does not count.
needs_extended = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 2.0**-60, reason="long double is no wider than double here"
)
REAL = [torch.float32, torch.float64]
precise = pytest.mark.parametrize("dtype", REAL, ids=lambda d: str(d)[6:])


def bound(shape: tuple[int, int], dtype: torch.dtype) -> float:
    """Return 8 u sqrt(n), the error that docs/stream.md allows; u is the unit roundoff."""
    return 8 * torch.finfo(dtype).eps / 2 * math.sqrt(max(shape))


def reflected(gaussian: Extended) -> Extended:
    """Return the first columns of H_0 H_1 ... times the signs, as docs/stream.md defines them."""
    rows, columns = gaussian.shape
    q = np.zeros((rows, columns), np.longdouble)
    for k in reversed(range(columns)):
        v = gaussian[k:, k].copy()
        sign = np.longdouble(-1 if v[0] < 0 else 1)
        v[0] += sign * np.sqrt((v * v).sum())
        q[k, k] = -sign
        # Start at column k: the columns before it are still zero from row k down.
        corner = q[k:, k:]
        corner -= np.outer(v, 2 * (v @ corner) / (v @ v))
    return q


@cache
def specified_orthogonal(shape: tuple[int, int], wide: bool, key: Key = KEY) -> Extended:
    """Return the whole matrix of gain 1, from the Gaussian entries of float64 (wide) or of float32."""
    dtype = torch.float64 if wide else torch.float32
    gaussian = init.normal_(torch.empty(max(shape), min(shape), dtype=dtype), generator=key)
    q = reflected(gaussian.double().numpy().astype(np.longdouble))
    return q if shape[0] >= shape[1] else q.T


def distance(got: Tensor, exact: Extended) -> float:
    return float(np.abs(got.detach().double().numpy() - exact).max(initial=0))


def gram_error(q: Tensor, gain: float = 1.0) -> float:
    """Return max |Q'Q - gain^2 I| in double; for a wide matrix Q Q' replaces Q'Q."""
    q = q.detach().double()
    q = q if q.size(0) >= q.size(1) else q.t()
    return float((q.t() @ q - gain**2 * torch.eye(q.size(1), dtype=torch.float64)).abs().max())


SIZES = [*range(1, 41), 63, 64, 65, 127, 128, 129, 130, 255, 256, 257, 512]


def shapes(n: int) -> list[tuple[int, int]]:
    """Return shapes of square, tall and wide matrices with longer side n; some are thin."""
    others = sorted(({1, max(1, n // 3), n - 1, min(n, 4)} if n < 200 else {n // 3}) - {0, n})
    return [(n, n), *((n, m) for m in others), *((m, n) for m in others)]


@precise
@pytest.mark.parametrize("n", SIZES)
def test_rows_or_columns_are_orthonormal_within_8_u_sqrt_n(n: int, dtype: torch.dtype) -> None:
    for shape in shapes(n):
        q = init.orthogonal_(torch.full(shape, 3.0, dtype=dtype), generator=KEY.fold_in(n))
        assert gram_error(q) <= bound(shape, dtype), shape


def test_a_matrix_that_is_a_little_off_is_seen() -> None:
    for dtype in REAL:
        for n in (3, 40, 257):
            q = init.orthogonal_(torch.empty(n, n, dtype=dtype), generator=KEY)
            # Lengthen one column by the bound, so that its squared length is off by twice the bound.
            q[:, n // 2] *= 1 + bound((n, n), dtype)
            assert gram_error(q) > bound((n, n), dtype)


@needs_extended
@precise
@pytest.mark.parametrize("n", [*range(1, 41), 63, 64, 65, 127, 129, 257])
def test_an_orthogonal_matrix_is_the_product_of_its_reflectors(
    n: int, dtype: torch.dtype, cpu_capability: str
) -> None:
    for shape in shapes(n):
        q = init.orthogonal_(torch.full(shape, 3.0, dtype=dtype), generator=KEY)
        assert distance(q, specified_orthogonal(shape, dtype == torch.float64)) <= bound(shape, dtype), shape


LONG = [(512, 512), (1, 5000), (5000, 1), (2000, 3), (3, 2000), (700, 33), (33, 700)]


@needs_extended
@precise
@pytest.mark.parametrize("shape", LONG, ids=lambda s: "x".join(map(str, s)))
def test_a_long_orthogonal_matrix_is_the_product_of_its_reflectors(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    q = init.orthogonal_(torch.empty(shape, dtype=dtype), generator=KEY)
    assert distance(q, specified_orthogonal(shape, dtype == torch.float64)) <= bound(shape, dtype)


def test_another_order_of_the_reflectors_is_seen() -> None:
    shape = (9, 4)
    gaussian = init.normal_(torch.empty(shape), generator=KEY).double().numpy().astype(np.longdouble)
    q = init.orthogonal_(torch.empty(shape), generator=KEY)
    for other in (gaussian[:, ::-1], -gaussian, gaussian.astype(np.float16).astype(np.longdouble)):
        assert distance(q, reflected(other)) > bound(shape, torch.float32)


@precise
@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_a_single_column_is_the_normal_fill_at_length_1(n: int, dtype: torch.dtype) -> None:
    g = init.normal_(torch.empty(n, 1, dtype=dtype), generator=KEY).double()
    for shape in ((n, 1), (1, n)):
        q = init.orthogonal_(torch.empty(shape, dtype=dtype), generator=KEY).double()
        assert (q.reshape(n, 1) - g / g.norm()).abs().max() <= bound(shape, dtype)


@precise
def test_one_element_is_the_gain_with_the_sign_of_its_normal(dtype: torch.dtype) -> None:
    for key in KEY.split(40):
        g = init.normal_(torch.empty(1, 1, dtype=dtype), generator=key)
        q = init.orthogonal_(torch.empty(1, 1, dtype=dtype), 0.75, generator=key)
        assert (q - torch.copysign(torch.tensor(0.75), g)).abs() <= 0.75 * bound((1, 1), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("gain", [1, 0.1, 1.7])
def test_a_16_bit_orthogonal_matrix_is_the_float32_one_rounded_once(
    dtype: torch.dtype, gain: float, cpu_capability: str
) -> None:
    for shape in ((1, 1), (40, 40), (130, 70), (70, 130), (12, 5, 3, 3)):
        wide = init.orthogonal_(torch.empty(shape), gain, generator=KEY)
        assert same(init.orthogonal_(torch.empty(shape, dtype=dtype), gain, generator=KEY), wide.to(dtype))


@needs_extended
@precise
@pytest.mark.parametrize("gain", [0.1, math.sqrt(2.0), 3, -1.5, 1e-20, 1e15])
def test_a_gain_is_a_factor(gain: float, dtype: torch.dtype) -> None:
    for shape in ((30, 30), (40, 17), (17, 40)):
        q = init.orthogonal_(torch.empty(shape, dtype=dtype), gain, generator=KEY)
        assert gram_error(q, gain) <= gain**2 * bound(shape, dtype)
        exact = gain * specified_orthogonal(shape, dtype == torch.float64)
        assert distance(q, exact) <= abs(gain) * bound(shape, dtype)


@precise
def test_a_gain_that_is_a_power_of_two_rounds_nothing(dtype: torch.dtype) -> None:
    q = init.orthogonal_(torch.empty(50, 20, dtype=dtype), generator=KEY)
    for gain in (0.0, 1.0, 2.0, -1.0, 2.0**-30):
        assert torch.equal(init.orthogonal_(torch.empty(50, 20, dtype=dtype), gain, generator=KEY), q * gain)


# ----------------------------------------------------------------------------------------
# orthogonal_: what may not change a value
# ----------------------------------------------------------------------------------------


@typed
@pytest.mark.parametrize("shape", [(6, 4, 3), (4, 6, 3, 2), (3, 5, 2, 2, 2), (40, 2, 3), (2, 3, 40)])
def test_trailing_dimensions_are_flattened_as_stock_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    rows, columns = shape[0], math.prod(shape[1:])
    flat = init.orthogonal_(torch.empty(rows, columns, dtype=dtype), 0.7, generator=KEY)
    assert same(init.orthogonal_(torch.empty(shape, dtype=dtype), 0.7, generator=KEY), flat.view(shape))


MAPS: dict[str, Callable[[torch.dtype], Tensor]] = {
    **LAYOUTS,
    "channels last": lambda d: torch.empty(24, 10, 3, 5, dtype=d).to(memory_format=torch.channels_last),
    "channels last in space": lambda d: torch.empty(7, 5, 2, 3, 4, dtype=d).to(
        memory_format=torch.channels_last_3d
    ),
    "permuted": lambda d: torch.empty(5, 3, 10, 24, dtype=d).permute(3, 2, 1, 0),
    "sliced": lambda d: torch.empty(30, 40, 4, dtype=d)[3:27, 5:35:2, 1:3],
}


@needs_extended
@precise
@pytest.mark.parametrize("layout", MAPS.values(), ids=MAPS.keys())
def test_an_orthogonal_matrix_of_any_strides_is_the_specified_one(
    layout: Callable[[torch.dtype], Tensor], dtype: torch.dtype, cpu_capability: str
) -> None:
    tensor = layout(dtype)
    strides = tensor.stride()
    assert init.orthogonal_(tensor, generator=KEY) is tensor
    assert tensor.stride() == strides
    shape = (tensor.size(0), math.prod(tensor.shape[1:]))
    exact = specified_orthogonal(shape, dtype == torch.float64)
    assert distance(tensor.reshape(shape), exact) <= bound(shape, dtype)


@needs_extended
@typed
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (9, 1), (40, 67), (67, 40), (64, 64)])
def test_an_orthogonal_fill_writes_its_view_and_nothing_around_it(
    shape: tuple[int, int], transposed: bool, dtype: torch.dtype, cpu_capability: str
) -> None:
    exact = specified_orthogonal(shape, dtype == torch.float64)
    allowed = bound(shape, dtype if dtype in REAL else torch.float32)
    if dtype not in REAL:  # plus one rounding of a value that exceeds 1 by at most the bound
        allowed += torch.finfo(dtype).eps / 2 * (1 + allowed)
    view, backing = surrounded(shape, dtype, transposed)
    assert distance(init.orthogonal_(view, generator=KEY), exact) <= allowed
    assert untouched(view, backing)
    # Contiguous, at an odd storage offset.
    flat = torch.full((math.prod(shape) + 10,), -7.0, dtype=dtype)
    dense = flat[3 : 3 + math.prod(shape)].view(shape)
    assert distance(init.orthogonal_(dense, generator=KEY), exact) <= allowed
    assert untouched(dense, flat)


@precise
def test_an_orthogonal_matrix_is_the_same_to_rounding_on_every_number_of_threads(
    dtype: torch.dtype, cpu_capability: str
) -> None:
    before = torch.get_num_threads()
    try:
        for shape in ((50, 50), (300, 300), (700, 40), (40, 700), (2000, 1)):
            values = []
            for count in (1, 2, 3, 1):
                torch.set_num_threads(count)
                values.append(init.orthogonal_(torch.empty(shape, dtype=dtype), generator=KEY))
            # Each is within the bound of the exact matrix. The threads determine the order of summation.
            for other in values[1:]:
                assert float((other - values[0]).abs().max()) <= 2 * bound(shape, dtype), shape
            assert same(values[0], values[-1])
    finally:
        torch.set_num_threads(before)


@typed
@pytest.mark.parametrize("shape", [(130, 257), (257, 130), (96, 96)])
def test_orthogonal_shards_of_rows_of_columns_and_of_both_are_the_parts(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    whole = init.orthogonal_(torch.empty(shape, dtype=dtype), 1.3, generator=KEY)
    for (r0, r1), (c0, c1) in BOXES:
        expected = whole[r0:r1, c0:c1]
        local = torch.full(expected.shape, -7.0, dtype=dtype)
        assert same(init.orthogonal_(shard(local, shape, (r0, c0)), 1.3, generator=KEY), expected)
        view, backing = surrounded((expected.size(0), expected.size(1)), dtype, transposed=True)
        assert same(init.orthogonal_(shard(view, shape, (r0, c0)), 1.3, generator=KEY), expected)
        assert untouched(view, backing)


def precision_settings() -> tuple[Any, ...]:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.fixture
def restored() -> Iterator[None]:
    """Restore the precision settings of the process after the test."""
    precision, tf32, cudnn, _, default, deterministic = precision_settings()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = cudnn
    torch.set_default_dtype(default)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("setting", ["high", "medium", "tf32", "autocast", "default dtype", "deterministic"])
def test_settings_of_precision_round_no_product_and_are_left_as_they_were(setting: str) -> None:
    def fill() -> list[Tensor]:
        return [
            init.orthogonal_(torch.empty(shape, dtype=dtype), generator=KEY)
            for shape in ((40, 40), (200, 130), (130, 200))
            for dtype in (torch.float32, torch.float64, torch.bfloat16)
        ]

    expected = fill()
    if setting in ("high", "medium"):
        torch.set_float32_matmul_precision(setting)
    elif setting == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    elif setting == "default dtype":
        torch.set_default_dtype(torch.bfloat16)
    elif setting == "deterministic":
        torch.use_deterministic_algorithms(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
        before = precision_settings()
        got = fill()
        assert precision_settings() == before
    if setting not in ("high", "medium"):
        assert all(same(g, e) for g, e in zip(got, expected, strict=True))
    for g, e in zip(got, expected, strict=True):
        # If oneDNN may round products, the fill computes in double. Then both matrices are within the bound
        # of the exact one, and 16-bit values differ by at most one step, which is 2^-8 below 1. A product of
        # factors rounded to bfloat16 would be off by about 2^-9 in float32.
        step = 2.0**-8 if e.dtype == torch.bfloat16 else 0.0
        wide = torch.float32 if e.dtype == torch.bfloat16 else e.dtype
        limit = 2 * bound((e.shape[0], e.shape[1]), wide) + step
        assert float((g.double() - e.double()).abs().max()) <= limit


# docs/stream.md: all arithmetic is IEEE-754 with subnormals.
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("sparse_", (0.3, 1e-39)), ("orthogonal_", (1e-39,)), ("orthogonal_", (1.0,))],
    ids=str,
)
def test_flushing_of_subnormals_changes_no_matrix(name: str, arguments: tuple[float, ...]) -> None:
    expected = function(name)(torch.empty(60, 50), *arguments, generator=KEY)
    # Only the small scale gives subnormals, which the mode would flush.
    assert bool(((expected.abs() < 2.0**-126) & (expected != 0)).any()) == (arguments != (1.0,))
    try:
        torch.set_flush_denormal(True)
        got = function(name)(torch.empty(60, 50), *arguments, generator=KEY)
    finally:
        torch.set_flush_denormal(False)
    assert same(got, expected)


@both
def test_a_parameter_under_grad_mode_is_filled_as_a_tensor_is(
    name: str, arguments: tuple[float, ...]
) -> None:
    expected = function(name)(torch.empty(30, 20), *arguments, generator=KEY)
    parameter = torch.nn.Parameter(torch.empty(30, 20))
    with torch.enable_grad():
        assert function(name)(parameter, *arguments, generator=KEY) is parameter
    assert same(parameter, expected)
    assert parameter.grad_fn is None
    assert parameter.is_leaf


@pytest.mark.parametrize(
    ("shape", "zeros"),
    [
        ((8192, 50), 800),
        ((300, 1000), 17),
        ((65, 2000), 64),
        ((1000, 3), 1),
        ((1000, 3), 999),
        ((70000, 5), 3),
    ],
)
def test_the_width_of_the_window_decides_no_zero(shape: tuple[int, int], zeros: int) -> None:
    # A window of 0 deviations misses every threshold, so whole columns are searched. One of 1000 misses none.
    patterns = []
    for spread in (0.0, 0.5, 4.0, 1000.0):
        matrix = torch.empty(shape)
        _C.sparse_ones(matrix, zeros, (KEY.seed, KEY.offset), spread)
        patterns.append(matrix == 0)
    assert bool((patterns[0].sum(0) == zeros).all())
    assert all(torch.equal(patterns[0], other) for other in patterns[1:])


def peak_allocation(call: Callable[[], object]) -> int:
    """Return the peak of bytes that torch's CPU allocator hands out in the call, beyond those before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    # The public list of events omits allocations and releases.
    results: Any = profile.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    level = peak = 0
    for event in events:
        level += event.nbytes()
        peak = max(peak, level)
    return peak


@precise
@pytest.mark.parametrize("shape", [(1024, 1024), (3000, 500), (500, 3000)])
def test_an_orthogonal_fill_takes_at_most_three_panels_of_columns(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    tensor = torch.empty(shape, dtype=dtype)
    panel = max(shape) * 128 * dtype.itemsize  # panels of these sizes are 128 columns wide
    peak = peak_allocation(lambda: init.orthogonal_(tensor, generator=KEY))
    assert panel < peak <= 3 * panel
    # stock's factorisation copies the whole matrix, which this measurement shows.
    assert peak_allocation(lambda: torch.nn.init.orthogonal_(tensor)) > 3 * panel


def test_a_half_precision_orthogonal_fill_takes_one_float32_matrix_more() -> None:
    tensor = torch.empty(1024, 1024, dtype=torch.bfloat16)
    peak = peak_allocation(lambda: init.orthogonal_(tensor, generator=KEY))
    assert 4 * tensor.numel() < peak <= 4 * tensor.numel() + 3 * 1024 * 128 * 4


@pytest.mark.parametrize("shape", [(1_000_000, 4), (2_000_000, 1), (2, 500_000)])
def test_a_very_long_orthogonal_matrix_is_orthonormal(shape: tuple[int, int]) -> None:
    q = init.orthogonal_(torch.empty(shape), generator=KEY).double()
    q = q if shape[0] >= shape[1] else q.t()
    # A sum of a million squares in one float32 accumulator is off by about 2^-9.
    off = q.t() @ q - torch.eye(q.size(1), dtype=torch.float64)
    assert float(off.abs().max()) <= bound(shape, torch.float32)
    assert float(off.abs().max()) <= 3e-6


def test_a_narrow_orthogonal_matrix_takes_panels_of_its_own_width() -> None:
    tensor = torch.empty(50_000, 3)
    peak = peak_allocation(lambda: init.orthogonal_(tensor, generator=KEY))
    assert peak <= 3 * tensor.nbytes


def test_a_sparse_shard_of_one_column_takes_little_memory() -> None:
    # The words of 64 bits that mark its zeros, one a row, and lists of 1 MiB per thread.
    program = """
import resource, torch
from paraminit_ext import Key, init, shard
column = torch.zeros(4_000_000, 1)
init.sparse_(torch.zeros(200, 400), 0.5, generator=Key(1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
init.sparse_(shard(column, (4_000_000, 400), (0, 7)), 0.5, generator=Key(1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocesses.run("-c", program)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 8 * 4_000_000 + (16 << 20)
