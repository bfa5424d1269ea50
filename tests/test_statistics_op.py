"""``torch.ops.paraminit_ext.statistics`` gives the statistics of a tensor in one pass.

Counts and extremes must equal torch's exactly. Mean and squares are compared with torch's in float64. Sums of
float64 numbers differ only by their order. 16-bit numbers are first summed as floats, at most eight in a row.
So each is rounded at most nine times, by 2^-24: less than 6e-7 of the sum of magnitudes.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import paraminit_ext

COUNTS = ("finite", "zeros", "subnormals", "nans", "infinities")
FIELDS = (*COUNTS, "mean", "mean_imag", "squares", "least", "greatest")
FLOATING = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
COMPLEX = [torch.complex64, torch.complex128, torch.complex32]
OTHERS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int8, torch.uint8, torch.bool]
# A few elements; a vector step, a block and a unit, each with one element more; several units.
SIZES = [1, 7, 32, 33, 8192, 8193, 65537, 200_003]
ROUNDING = 6e-7

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")


def statistics(tensor: Tensor) -> dict[str, float]:
    found = torch.ops.paraminit_ext.statistics(tensor)
    assert found.shape == (10,)
    assert found.dtype == torch.float64
    return dict(zip(FIELDS, found.tolist(), strict=True))


def exact(tensor: Tensor) -> Tensor:
    """Return the tensor flat, as float64 or complex128."""
    if tensor.dtype == torch.complex32:
        tensor = tensor.to(torch.complex64)
    return tensor.flatten().to(torch.complex128 if tensor.is_complex() else torch.float64)


def expected(tensor: Tensor) -> dict[str, float]:
    values = exact(tensor)
    parts = torch.view_as_real(values) if values.is_complex() else values[:, None]
    nans = parts.isnan().any(1)
    infinities = parts.isinf().any(1) & ~nans
    kept = parts[~nans & ~infinities]
    base = tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
    normal = torch.finfo(base).smallest_normal if base in FLOATING else 0.0
    found: dict[str, float] = {
        "finite": len(kept),
        "zeros": int((kept == 0).all(1).sum()),
        "subnormals": int(((kept != 0) & (kept.abs() < normal)).any(1).sum()),
        "nans": int(nans.sum()),
        "infinities": int(infinities.sum()),
        "mean": 0.0,
        "mean_imag": 0.0,
        "squares": 0.0,
        "least": math.inf,
        "greatest": -math.inf,
    }
    if len(kept):
        mean = kept.mean(0)
        found["mean"] = float(mean[0])
        found["mean_imag"] = float(mean[1]) if values.is_complex() else 0.0
        found["squares"] = float(((kept - mean) ** 2).sum())
        found["least"], found["greatest"] = float(kept.min()), float(kept.max())
    return found


def assert_right(tensor: Tensor) -> None:
    got, want = statistics(tensor), expected(tensor)
    for field in (*COUNTS, "least", "greatest"):
        assert got[field] == want[field], field
    scale = math.sqrt(want["squares"] / max(1, want["finite"])) + abs(want["mean"])
    assert abs(got["mean"] - want["mean"]) <= ROUNDING * scale
    assert abs(got["mean_imag"] - want["mean_imag"]) <= ROUNDING * scale
    # Each distance from the mean is rounded once more, and squared.
    assert abs(got["squares"] - want["squares"]) <= 3 * ROUNDING * want["squares"] + 1e-300


def sample(dtype: torch.dtype, size: int, mean: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    kind = torch.complex64 if dtype.is_complex else torch.float32
    values = torch.randn(size, dtype=kind, generator=generator)
    return values.mul(2).add(mean).to(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [*FLOATING, *COMPLEX, *OTHERS])
def test_statistics_are_torchs(dtype: torch.dtype, size: int, cpu_capability: str) -> None:
    assert_right(sample(dtype, size))


@pytest.mark.parametrize("dtype", [*FLOATING, *COMPLEX])
def test_special_values_are_counted_wherever_they_stand(dtype: torch.dtype, cpu_capability: str) -> None:
    base = dtype.to_real() if dtype.is_complex else dtype
    tiny = torch.finfo(base).smallest_normal / 4
    # In float64 the square must not overflow.
    large = min(torch.finfo(base).max, 1e150)
    for special in (0.0, -0.0, tiny, -tiny, math.nan, math.inf, -math.inf, large):
        for place in (0, 1, 31, 8191, 8192, 20_000):
            tensor = sample(dtype, 20_001)
            if dtype.is_complex and place % 2:
                tensor[place] = complex(special, 1.0)  # type: ignore[assignment]  # torch takes it
            else:
                tensor[place] = special
            assert_right(tensor)


@pytest.mark.parametrize("dtype", [*FLOATING, *COMPLEX])
def test_tensors_without_finite_elements_are_right(dtype: torch.dtype) -> None:
    assert_right(torch.full((1000,), math.nan, dtype=dtype))
    assert_right(torch.empty(0, dtype=dtype))
    assert_right(torch.zeros(1000, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATING)
def test_a_small_deviation_around_a_large_mean_is_not_lost(dtype: torch.dtype) -> None:
    assert_right(sample(dtype, 100_000, mean=1000.0))
    # One element differs from a constant.
    tensor = torch.ones(1 << 20, dtype=dtype)
    tensor[77_777] += max(torch.finfo(dtype).eps, 1e-7)
    assert_right(tensor)


@pytest.mark.parametrize("scale", [1e-15, 1e-18, 1e-19, 1e-21, 1e-24, 1e-36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_squares_of_small_numbers_do_not_underflow(
    dtype: torch.dtype, scale: float, cpu_capability: str
) -> None:
    for mean in (0.5, 1000.0):
        assert_right(
            (sample(torch.complex128 if dtype.is_complex else torch.float64, 20_001, mean) * scale).to(dtype)
        )


def test_statistics_ignore_that_denormals_are_flushed() -> None:
    tensor = sample(torch.float64, 300_000) * 1e-160
    want = statistics(tensor)
    assert 0 < want["squares"] < torch.finfo(torch.float64).smallest_normal
    try:
        assert torch.set_flush_denormal(True)
        assert statistics(tensor) == want
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_the_bits_depend_neither_on_threads_nor_on_the_instruction_set(dtype: torch.dtype) -> None:
    tensor = sample(dtype, 1_000_003)
    threads, before = torch.get_num_threads(), paraminit_ext.cpu_capability()
    try:
        found = set()
        for name in paraminit_ext.available_cpu_capabilities():
            paraminit_ext.set_cpu_capability(name)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.add(tuple(torch.ops.paraminit_ext.statistics(tensor).tolist()))
        assert len(found) == 1
    finally:
        torch.set_num_threads(threads)
        paraminit_ext.set_cpu_capability(before)


def test_any_layout_is_read() -> None:
    base = sample(torch.float32, 6 * 700 * 300).view(6, 700, 300)
    assert_right(base.transpose(0, 2))
    assert_right(base[:, ::3, 1::2])
    assert_right(base[0, 0].expand(2000, 300))
    assert_right(base[2, 3, 4])
    assert_right(torch.complex(base[0], base[1]).conj())
    assert_right(torch.view_as_complex(base.view(6, 700, 150, 2)).imag)


def test_a_tensor_that_cannot_be_read_is_refused_in_one_line() -> None:
    with pytest.raises(NotImplementedError, match=r"^paraminit_ext\.statistics: expected"):
        torch.ops.paraminit_ext.statistics(torch.eye(3).to_sparse())
    freed = torch.ones(10)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"^paraminit_ext\.statistics: expected"):
        torch.ops.paraminit_ext.statistics(freed)


def test_statistics_have_no_gradient_and_leave_the_version() -> None:
    weight = torch.nn.Parameter(torch.ones(5))
    found = torch.ops.paraminit_ext.statistics(weight)
    assert not found.requires_grad
    assert weight._version == 0
    torch.library.opcheck(torch.ops.paraminit_ext.statistics.default, (torch.randn(10),))
    assert torch.ops.paraminit_ext.statistics(torch.empty(3, device="meta")).is_meta


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [*FLOATING, *COMPLEX[:2]])
def test_statistics_on_a_gpu_are_the_cpus(dtype: torch.dtype, size: int) -> None:
    tensor = sample(dtype, size + 1)
    for values in (tensor, tensor[1:]):
        got, want = statistics(values.to("cuda")), statistics(values)
        assert all(got[field] == want[field] for field in (*COUNTS, "least", "greatest"))
        scale = math.sqrt(want["squares"] / want["finite"]) + abs(want["mean"])
        assert abs(got["mean"] - want["mean"]) <= 2 * ROUNDING * scale
        assert abs(got["squares"] - want["squares"]) <= 6 * ROUNDING * want["squares"] + 1e-300
