"""The functions that stock does not have: the plain fills that they equal, and the calls that they refuse."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fills import KEY, same, typed
from paraminit_ext import Key, init, shard

SHAPE = (24, 16, 3, 5)  # fans 240 and 360
FANS = {"fan_in": 240, "fan_out": 360, "fan_avg": 300}
CUT_STD = float(stats.truncnorm(-2, 2).std())


@typed
@pytest.mark.parametrize("mode", FANS)
@pytest.mark.parametrize("scale", [0.5, 1, 2.0])
def test_variance_scaling_is_the_plain_fill_of_that_variance(
    mode: Any, scale: float, dtype: torch.dtype
) -> None:
    def fill(distribution: Any) -> Tensor:
        return init.variance_scaling_(torch.empty(SHAPE, dtype=dtype), scale, mode, distribution, KEY)

    std = math.sqrt(scale / FANS[mode])
    plain = torch.empty(SHAPE, dtype=dtype)
    assert same(fill("normal"), init.normal_(plain, 0.0, std, KEY))
    bound = math.sqrt(3.0) * std
    assert same(fill("uniform"), init.uniform_(plain, -bound, bound, KEY))
    wide = std / 0.87962566103423978
    assert same(fill("truncated_normal"), init.trunc_normal_(plain, 0.0, wide, -2 * wide, 2 * wide, KEY))


def test_the_cut_at_two_deviations_is_corrected_to_the_variance_asked_for() -> None:
    # The divisor is the standard deviation after the cut, not the one before it.
    assert math.isclose(0.87962566103423978, CUT_STD, rel_tol=1e-12)  # scipy's own quadrature


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_every_distribution_has_the_variance_asked_for(distribution: Any) -> None:
    w = init.variance_scaling_(torch.empty(1024, 1024), 3.0, "fan_in", distribution, Key(1)).double()
    law = {"normal": stats.norm(), "uniform": stats.uniform(), "truncated_normal": stats.truncnorm(-2, 2)}
    kurtosis = float(law[distribution].stats("k")) + 3
    # The sample variance of n values has standard error sigma^2 sqrt((kurtosis - 1) / n).
    error = math.sqrt((kurtosis - 1) / w.numel())
    z = (float(w.square().mean()) / (3.0 / 1024) - 1) / error
    limit = stats.norm.isf(0.5e-6)
    assert abs(z) < limit
    # The same statistic detects a cut that is not corrected.
    assert abs((float(w.square().mean()) * CUT_STD**2 / (3.0 / 1024) - 1) / error) > limit


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_a_complex_weight_has_the_variance_asked_for_in_its_modulus(
    distribution: Any, dtype: torch.dtype
) -> None:
    w = init.variance_scaling_(torch.empty(512, 1024, dtype=dtype), 3.0, "fan_in", distribution, Key(1))
    parts = torch.view_as_real(w).double()
    kurtosis = {"normal": 3.0, "uniform": 1.8}[distribution]
    # The mean of |w|^2 is the sum of two means, each of n squares.
    error = math.sqrt((kurtosis - 1) / parts.numel())
    z = (float(parts.square().sum(-1).mean()) / (3.0 / 1024) - 1) / error
    limit = stats.norm.isf(0.5e-6)
    assert abs(z) < limit
    # The statistic detects twice the variance, which parts within the bounds of a real fill would have.
    assert abs((2 * float(parts.square().sum(-1).mean()) / (3.0 / 1024) - 1) / error) > limit
    if distribution == "uniform":
        bound = math.sqrt(1.5) * math.sqrt(1 / 16)
        expected = init.uniform_(torch.empty(8, 16, dtype=dtype), -bound, bound, KEY)
        assert torch.equal(init.lecun_uniform_(torch.empty(8, 16, dtype=dtype), KEY), expected)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 18), ("fan_out", 144), ("fan_avg", 81)])
def test_groups_divide_the_fan_out(mode: Any, fan: int) -> None:
    # A convolution from 8 to 64 channels in 4 groups: each input feeds 16 outputs with 9 taps each.
    weight = torch.empty(64, 2, 3, 3)
    got = init.variance_scaling_(weight, 2.0, mode, "normal", KEY, groups=4)
    assert same(got, init.normal_(torch.empty(64, 2, 3, 3), 0.0, math.sqrt(2.0 / fan), KEY))
    part = init.variance_scaling_(
        shard(torch.empty(8, 2, 3, 3), (64, 2, 3, 3), (8, 0, 0, 0)), 2.0, mode, "normal", KEY, 4
    )
    assert same(part, got[8:16])
    with pytest.raises(
        ValueError, match="^paraminit_ext.variance_scaling_: expected groups >= 1 that divide"
    ):
        init.variance_scaling_(weight, groups=5)


def test_lecun_is_variance_scaling_of_the_fan_in() -> None:
    a, b = torch.empty(SHAPE), torch.empty(SHAPE)
    assert same(
        init.lecun_normal_(a, generator=KEY),
        init.variance_scaling_(b, 1.0, "fan_in", "truncated_normal", KEY),
    )
    assert same(
        init.lecun_uniform_(a, generator=KEY), init.variance_scaling_(b, 1.0, "fan_in", "uniform", KEY)
    )


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_a_shard_is_scaled_by_the_fans_of_the_whole(distribution: Any) -> None:
    whole = init.variance_scaling_(torch.empty(12, 10), 1.0, "fan_avg", distribution, KEY)
    part = shard(torch.empty(3, 10), (12, 10), (6, 0))
    assert same(init.variance_scaling_(part, 1.0, "fan_avg", distribution, KEY), whole[6:9])


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0,),
        (-1.0,),
        (math.inf,),
        (math.nan,),
        (1.0, "fan_both"),
        (1.0, "FAN_IN"),
        (1.0, "fan_in", "gaussian"),
    ],
)
def test_variance_scaling_refuses_what_has_no_meaning(arguments: tuple[Any, ...]) -> None:
    w, generator = torch.full((4, 6), -7.0), torch.Generator().manual_seed(1)
    named: dict[str, Any] = dict(zip(("scale", "mode", "distribution"), arguments, strict=False))
    state = generator.get_state()
    with pytest.raises(ValueError, match=r"^paraminit_ext\.variance_scaling_: expected [^\n]+$"):
        init.variance_scaling_(w, generator=generator, **named)
    assert bool((w == -7.0).all())
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("name", ["variance_scaling_", "lecun_normal_", "lecun_uniform_"])
def test_fewer_than_two_dimensions_have_no_fan(name: str) -> None:
    with pytest.raises(ValueError, match=f"paraminit_ext.{name}: expected a tensor of 2 or more"):
        getattr(init, name)(torch.empty(5))


@typed
@pytest.mark.parametrize("kernel", [(1,), (4,), (3, 3), (2, 5), (3, 1, 3)])
def test_delta_orthogonal_is_an_orthogonal_matrix_at_the_centre_and_zero_elsewhere(
    kernel: tuple[int, ...], dtype: torch.dtype
) -> None:
    w = init.delta_orthogonal_(torch.full((9, 6, *kernel), -7.0, dtype=dtype), 1.5, KEY)
    centre: tuple[slice | int, ...] = (slice(None), slice(None), *(size // 2 for size in kernel))
    assert same(w[centre], init.orthogonal_(torch.empty(9, 6, dtype=dtype), 1.5, KEY))
    w[centre] = 0
    assert not w.any()


def test_a_delta_orthogonal_convolution_preserves_norms() -> None:
    w = init.delta_orthogonal_(torch.empty(8, 5, 3, 3, dtype=torch.float64), generator=KEY)
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), w)
    # 45 taps of products of unit vectors, each rounded to 2^-53.
    assert torch.allclose(y.norm(dim=1), x.norm(dim=1), rtol=64 * 2.0**-53, atol=0)


def test_the_parts_of_a_delta_orthogonal_weight_are_those_of_the_whole() -> None:
    shape = (7, 4, 3, 3)
    whole = init.delta_orthogonal_(torch.empty(shape), generator=KEY)
    for begin in itertools.product((0, 3), (0, 1), (0, 1, 2), (0, 2)):
        part = torch.empty(tuple(size - b for size, b in zip(shape, begin, strict=True)))
        init.delta_orthogonal_(shard(part, shape, begin), generator=KEY)
        assert same(part, whole[tuple(slice(b, None) for b in begin)])


@pytest.mark.parametrize("shape", [(4,), (4, 4), (4, 4, 3, 3, 3, 3), (3, 4, 3)])
def test_delta_orthogonal_refuses_what_is_no_such_convolution(shape: tuple[int, ...]) -> None:
    w, generator = torch.full(shape, -7.0), torch.Generator().manual_seed(1)
    state = generator.get_state()
    with pytest.raises(ValueError, match=r"^paraminit_ext\.delta_orthogonal_: expected [^\n]+$"):
        init.delta_orthogonal_(w, generator=generator)
    assert bool((w == -7.0).all())
    assert torch.equal(generator.get_state(), state)


def test_delta_orthogonal_draws_once_wherever_its_centre_is() -> None:
    shape, states = (6, 4, 3), []
    for begin, size in ((0, 3), (0, 1), (2, 1)):
        generator = torch.Generator().manual_seed(1)
        part = shard(torch.empty(6, 4, size), shape, (0, 0, begin))
        init.delta_orthogonal_(part, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    "name", ["delta_orthogonal_", "variance_scaling_", "lecun_normal_", "lecun_uniform_"]
)
def test_a_parameter_is_filled_and_returned_as_it_was_given(name: str) -> None:
    p = nn.Parameter(torch.full((4, 4, 3), math.nan))
    version = p._version
    assert getattr(init, name)(p) is p
    assert p.requires_grad
    assert p.is_leaf
    assert p._version > version
    assert bool(p.isfinite().all())
