"""Any view, shard and parameters give the reference's bits or a one-line error, and no write elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import paraminit_ext
from fills import DTYPES, bits
from paraminit_ext import Key, init, reference, shard

pytestmark = pytest.mark.filterwarnings("ignore:mean is more than 2 std:UserWarning")


def examples(count: int) -> settings:
    """Return settings that give the same examples in every run, so that a failure is reproducible."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


# ----------------------------------------------------------------------------------------
# Where to fill: a view of memory, with checks of all other bytes
# ----------------------------------------------------------------------------------------

CANARY = 0x5A


@dataclass(frozen=True)
class Place:
    """A view, and its position as a shard of a whole."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int
    whole: tuple[int, ...]
    start: tuple[int, ...]
    room: int  # elements of memory beyond the view's last

    def addresses(self) -> list[int]:
        """Return the address of each element in memory, in row-major order."""
        return [self.storage_offset + _dot(index, self.strides) for index in self.indices()]

    def indices(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*map(range, self.shape)))

    def global_indices(self) -> list[int]:
        """Return the index of each element in the whole."""
        steps = [math.prod(self.whole[d + 1 :]) for d in range(len(self.whole))]
        return [
            _dot([i + s for i, s in zip(index, self.start, strict=True)], steps) for index in self.indices()
        ]

    def overlaps(self) -> bool:
        return len(set(self.addresses())) < math.prod(self.shape)

    def memory(self, dtype: torch.dtype) -> Tensor:
        """Return memory full of canaries, large enough for the view and its room."""
        last = max(self.addresses(), default=self.storage_offset)
        size = torch.empty((), dtype=dtype).element_size()
        return torch.full(((last + 1 + self.room) * size,), CANARY, dtype=torch.uint8)


def _dot(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


@st.composite
def places(draw: st.DrawFn, dims: int | None = None, disjoint: bool = True) -> Place:
    """Draw views of a few dozen elements: permuted, with gaps, unaligned, far out in a whole."""
    count = draw(st.integers(0, 5)) if dims is None else dims
    shape: list[int] = []
    for _ in range(count):
        most = max(1, 72 // math.prod(shape)) if 0 not in shape else 3
        shape.append(draw(st.integers(0, min(most, 40))))
    strides = [0] * count
    if disjoint:
        step = draw(st.sampled_from([1, 1, 1, 2, 3]))
        for d in draw(st.permutations(range(count))):
            strides[d] = step
            step = step * max(shape[d], 1) + draw(st.sampled_from([0, 0, 0, 1, 5]))
    else:
        strides = [draw(st.integers(0, 9)) for _ in range(count)]
    whole, start = list(shape), [0] * count
    # Keep the number of elements of the whole, and so every index, below 2^63.
    for d in draw(st.permutations(range(count))):
        most = (2**63 - 1) // math.prod(n for i, n in enumerate(whole) if i != d and n > 0) - whole[d]
        before = draw(st.sampled_from([0, 0, 1, 2, 3, 7, 2**17, 2**31 - 1, 2**32, 2**40 + 3, 2**62]))
        after = draw(st.sampled_from([0, 0, 1, 4, 2**16]))
        start[d] = min(before, max(most - after, 0))
        whole[d] += start[d] + min(after, max(most - start[d], 0))
    offset, room = draw(st.integers(0, 17)), draw(st.integers(0, 40))
    return Place(tuple(shape), tuple(strides), offset, tuple(whole), tuple(start), room)


words = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**64 - 1, 2**64 - 3]))
keys = st.builds(Key, words, words)
dtypes = st.sampled_from(DTYPES)
capabilities = st.sampled_from(paraminit_ext.available_cpu_capabilities())

# ----------------------------------------------------------------------------------------
# What to fill: parameters of every size, and which of them docs/stream.md accepts
# ----------------------------------------------------------------------------------------

numbers = st.one_of(
    st.floats(-4.0, 4.0),
    st.floats(width=32),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1.0, 0.02, -0.02, 1e-8, 65504.0, 1e-40, 5e-324, math.inf, -math.inf]),
)
deviations = st.one_of(st.floats(0.0, 4.0), numbers)


@st.composite
def uniforms(draw: st.DrawFn) -> tuple[float, ...]:
    a = draw(numbers)
    return (a, draw(st.one_of(numbers, st.floats(0.0, 2.0).map(lambda width: a + width))))


@st.composite
def normals(draw: st.DrawFn) -> tuple[float, ...]:
    return (draw(numbers), draw(deviations))


@st.composite
def truncated(draw: st.DrawFn) -> tuple[float, ...]:
    mean, std = draw(numbers), draw(deviations)
    if draw(st.booleans()):
        return (mean, std, draw(numbers), draw(numbers))
    # Bounds by their distance from the mean, near the borders of the regimes.
    alpha, width = draw(st.floats(-39.0, 39.0)), draw(st.floats(0.0, 12.0))
    return (mean, std, mean + alpha * std, mean + (alpha + width) * std)


def largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max


def accepts_uniform(dtype: torch.dtype, a: float, b: float) -> bool:
    most = largest(dtype)
    return abs(a) <= most and abs(b) <= most and a <= b and b - a <= most


def accepts_normal(dtype: torch.dtype, mean: float, std: float) -> bool:
    # 16-bit values are float32 values, rounded once, so the range of float32 applies.
    most = largest(torch.float64 if dtype == torch.float64 else torch.float32)
    return abs(mean) <= most and 0.0 <= std <= most


def accepts_truncated(dtype: torch.dtype, mean: float, std: float, a: float, b: float) -> bool:
    most = largest(torch.float64 if dtype == torch.float64 else torch.float32)
    least = 0.0 if dtype == torch.float64 else 2.0**-150  # float32(2^-150) is a tie and rounds to 0
    if not (accepts_normal(dtype, mean, std) and std > least and a <= b and a <= most and b >= -most):
        return False
    return a == b or max((a - mean) / std, (mean - b) / std) <= 37.0


# ----------------------------------------------------------------------------------------
# The claim
# ----------------------------------------------------------------------------------------

Filled = Callable[[Tensor], object]


def check(place: Place, dtype: torch.dtype, fill: Filled, expected: Callable[[], Tensor] | None) -> None:
    """Assert that the fill writes the expected values into its view only, or raises and writes nothing."""
    memory = place.memory(dtype)
    view = torch.as_strided(memory.view(dtype), place.shape, place.strides, place.storage_offset)
    if expected is None:
        with pytest.raises(
            (RuntimeError, ValueError), match=r"^paraminit_ext\.\w+: expected [^\n]+, got [^\n]+$"
        ):
            fill(view)
        assert bool((memory == CANARY).all()), "a refused fill wrote to memory"
        return
    fill(view)
    after = memory.clone()
    if view.numel() > 0:
        assert torch.equal(bits(view).flatten(), bits(expected()))
        rows = torch.tensor(place.addresses())
        memory.view(-1, view.element_size())[rows] = CANARY
        after.view(-1, view.element_size())[rows] = CANARY
    assert bool((after == CANARY).all()), "a byte outside the view was written"


def assert_agrees(
    name: str,
    accepts: Callable[..., bool],
    place: Place,
    dtype: torch.dtype,
    key: Key,
    capability: str,
    parameters: tuple[float, ...],
) -> None:
    accepted = accepts(dtype, *parameters) and not place.overlaps()

    def fill(view: Tensor) -> object:
        return getattr(init, name + "_")(shard(view, place.whole, place.start), *parameters, generator=key)

    def expected() -> Tensor:
        values: Tensor = getattr(reference, name)(key, place.global_indices(), dtype, *parameters)
        return values

    before = paraminit_ext.cpu_capability()
    paraminit_ext.set_cpu_capability(capability)
    try:
        check(place, dtype, fill, expected if accepted else None)
    finally:
        paraminit_ext.set_cpu_capability(before)


@examples(250)
@given(places(), dtypes, keys, capabilities, uniforms())
def test_a_uniform_fill_of_any_view_is_the_references(
    place: Place, dtype: torch.dtype, key: Key, capability: str, parameters: tuple[float, ...]
) -> None:
    assert_agrees("uniform", accepts_uniform, place, dtype, key, capability, parameters)


@examples(250)
@given(places(), dtypes, keys, capabilities, normals())
def test_a_normal_fill_of_any_view_is_the_references(
    place: Place, dtype: torch.dtype, key: Key, capability: str, parameters: tuple[float, ...]
) -> None:
    assert_agrees("normal", accepts_normal, place, dtype, key, capability, parameters)


@examples(400)
@given(places(), dtypes, keys, capabilities, truncated())
def test_a_truncated_normal_fill_of_any_view_is_the_references(
    place: Place, dtype: torch.dtype, key: Key, capability: str, parameters: tuple[float, ...]
) -> None:
    assert_agrees("trunc_normal", accepts_truncated, place, dtype, key, capability, parameters)


@examples(150)
@given(places(disjoint=False), dtypes, keys)
def test_any_strides_are_filled_exactly_or_refused_for_their_overlap(
    place: Place, dtype: torch.dtype, key: Key
) -> None:
    assert_agrees("normal", accepts_normal, place, dtype, key, paraminit_ext.cpu_capability(), (0.0, 1.0))


@st.composite
def matrices(draw: st.DrawFn) -> Place:
    place = draw(places(dims=2))
    # The reference ranks every word of the whole, so the whole must be small.
    start = tuple(min(s, 5) for s in place.start)
    whole = tuple(s + n + min(w - n, 3) for s, n, w in zip(start, place.shape, place.whole, strict=True))
    return Place(place.shape, place.strides, place.storage_offset, whole, start, place.room)


@examples(150)
@given(matrices(), dtypes, keys, capabilities, st.one_of(st.floats(0.0, 1.0), numbers), deviations)
def test_a_sparse_fill_of_any_view_is_the_references(
    place: Place, dtype: torch.dtype, key: Key, capability: str, sparsity: float, std: float
) -> None:
    def accepts(dtype: torch.dtype, sparsity: float, std: float) -> bool:
        return 0.0 <= sparsity <= 1.0 and accepts_normal(dtype, 0.0, std)

    def expected(key: Key, indices: list[int], dtype: torch.dtype, sparsity: float, std: float) -> Tensor:
        values = reference.normal(key, indices, dtype, 0.0, std)
        zeros = reference.sparse_zeros(key, (place.whole[0], place.whole[1]), sparsity).flatten()
        return values.masked_fill(zeros[indices], 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "sparse", expected, raising=False)
        assert_agrees("sparse", accepts, place, dtype, key, capability, (sparsity, std))


# ----------------------------------------------------------------------------------------
# Planted faults are found, and the examples are of every kind
# ----------------------------------------------------------------------------------------

TRANSPOSED = Place((3, 5), (1, 4), 2, (9, 11), (4, 6), 3)


@pytest.mark.parametrize("fault", ["", "value", "index", "before", "gap", "behind", "refused"])
def test_a_planted_fault_is_found(fault: str) -> None:
    key = Key(3)

    def fill(view: Tensor) -> None:
        start = (4, 5) if fault == "index" else TRANSPOSED.start
        init.normal_(shard(view, TRANSPOSED.whole, start), generator=key)
        memory = view.as_strided(
            (22,), (1,), 0
        )  # the view's elements lie at 2, 3, 4, 6, 7, 8 and so on to 20
        if fault == "value":
            memory[7:8].view(torch.int32).bitwise_xor_(1)
        elif fault:
            memory[{"before": 1, "gap": 5, "behind": 21}.get(fault, 1)] = 0.0
        if fault == "refused":
            raise ValueError("paraminit_ext.normal_: expected one thing, got another.")

    def expected() -> Tensor:
        return reference.normal(key, TRANSPOSED.global_indices(), torch.float32, 0.0, 1.0)

    wanted = None if fault == "refused" else expected
    if not fault:
        check(TRANSPOSED, torch.float32, fill, wanted)
        return
    with pytest.raises(AssertionError):
        check(TRANSPOSED, torch.float32, fill, wanted)


@pytest.mark.parametrize(
    ("parameters", "accepts"),
    [(uniforms(), accepts_uniform), (normals(), accepts_normal), (truncated(), accepts_truncated)],
    ids=["uniform", "normal", "trunc_normal"],
)
def test_a_good_share_of_the_parameters_is_accepted_and_another_refused(
    parameters: st.SearchStrategy[tuple[float, ...]], accepts: Callable[..., bool]
) -> None:
    verdicts: list[bool] = []

    @examples(200)
    @given(dtypes, parameters)
    def record_example(dtype: torch.dtype, drawn: tuple[float, ...]) -> None:
        verdicts.append(accepts(dtype, *drawn))

    record_example()
    assert len(verdicts) < 5 * sum(verdicts) < 4 * len(verdicts), (sum(verdicts), len(verdicts))


def test_the_places_are_of_every_kind() -> None:
    seen: set[str] = set()

    @examples(300)
    @given(places(), places(disjoint=False))
    def record_example(place: Place, any_strides: Place) -> None:
        assert not place.overlaps()
        assert math.prod(max(n, 1) for n in place.whole) < 2**63
        kinds = {
            "of no dimensions": not place.shape,
            "empty": 0 in place.shape,
            "contiguous": list(place.strides)
            == [math.prod(place.shape[d + 1 :]) for d in range(len(place.shape))],
            "permuted": list(place.strides) != sorted(place.strides, reverse=True),
            "scattered": len(place.strides) > 1 and min(place.strides) > 1,
            "unaligned": place.storage_offset % 8 != 0,
            "past 2^32": any(i > 2**32 for i in place.global_indices()[:1]),
            "past 2^62": any(i > 2**62 for i in place.global_indices()[:1]),
            "overlapping": any_strides.overlaps(),
        }
        seen.update(kind for kind, held in kinds.items() if held)

    record_example()
    assert len(seen) == 9, seen
