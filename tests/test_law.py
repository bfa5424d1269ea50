"""The law that belongs to a call of ``init``, against the values that the call writes.

Samples have 2^18 elements. The relative standard error of a deviation is sqrt((kurtosis - 1) / 4n), with a
kurtosis of at most 3 / 0.7, that of ``sparse_``, or 9, that of an exponential law, far out in a tail. The
standard error of a mean is std / sqrt(n). The limit is 6 standard errors. A correct sample exceeds it in less
than one of 5e8 cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from scipy import integrate, stats

from paraminit_ext import Key, init
from paraminit_ext.many import DRAWING_FUNCTIONS
from paraminit_ext.models.law import Law, law_of

SHAPE = (512, 512)
CALLS: list[tuple[str, Mapping[str, Any]]] = [
    ("uniform_", {"a": -0.3, "b": 0.7}),
    ("normal_", {"mean": 1.0, "std": 0.02}),
    ("trunc_normal_", {"std": 0.02, "a": -0.04, "b": 0.04}),
    ("trunc_normal_", {"mean": 0.5, "std": 1.0, "a": 0.0, "b": math.inf}),
    ("trunc_normal_", {"mean": 0.0, "std": 1.0, "a": 2.0, "b": 3.0}),
    ("trunc_normal_", {"std": 1e4, "a": -0.02, "b": 0.02}),
    ("xavier_uniform_", {"gain": 2.0}),
    ("xavier_normal_", {}),
    ("kaiming_uniform_", {"a": math.sqrt(5)}),
    ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "relu"}),
    ("lecun_normal_", {}),
    ("lecun_uniform_", {}),
    ("variance_scaling_", {"scale": 2.0, "distribution": "truncated_normal"}),
    ("sparse_", {"sparsity": 0.3, "std": 0.1}),
    ("orthogonal_", {"gain": 2.0}),
]
every_call = pytest.mark.parametrize(("name", "arguments"), CALLS)


def law(name: str, arguments: Mapping[str, Any]) -> Law:
    result = law_of(name, arguments, SHAPE)
    assert result is not None
    return result


def is_followed(law: Law, values: torch.Tensor, kurtosis: float = 3 / 0.7) -> bool:
    exact = values.double()
    error = math.sqrt((kurtosis - 1) / (4 * exact.numel()))
    return (
        abs(float(exact.std()) / law.std - 1) < 6 * error
        and abs(float(exact.mean()) - law.mean) < 6 * law.std / math.sqrt(exact.numel())
        and law.low - 1e-6 <= float(exact.min())
        and float(exact.max()) <= law.high + 1e-6
    )


@every_call
def test_a_call_writes_its_law(name: str, arguments: Mapping[str, Any]) -> None:
    values = getattr(init, name)(torch.empty(SHAPE), **arguments, generator=Key(7))
    assert is_followed(law(name, arguments), values)
    # The check detects a deviation that is too large by a twentieth.
    assert not is_followed(law(name, arguments), (values - values.mean()) * 1.05 + values.mean())


@every_call
def test_a_density_has_the_mean_and_deviation_of_its_law(name: str, arguments: Mapping[str, Any]) -> None:
    own_law = law(name, arguments)
    low, high = (
        max(own_law.low, own_law.mean - 12 * own_law.std),
        min(own_law.high, own_law.mean + 12 * own_law.std),
    )
    # The density of sparse_ excludes its zeros, which add nothing to the mean and the variance.
    whole = own_law.parameters[1] if own_law.fill == "sparse_" else 1.0
    for power, expected in ((0, whole), (1, own_law.mean), (2, own_law.std**2 + own_law.mean**2)):

        def moment(x: float, power: int = power) -> float:
            return own_law.density(x) * x**power

        integral = integrate.quad(moment, low, high, limit=200)[0]
        assert integral == pytest.approx(expected, rel=1e-6, abs=1e-9)


INF = math.inf
# Intervals of a standard normal: wide, narrow, far out in a tail, and both.
INTERVALS = [
    (-2.0, 2.0),
    (-INF, INF),
    (-INF, 1.0),
    (-50.0, 50.0),
    (-1e-6, 1e-6),
    (-1e-12, 3e-12),
    (1.0, 1.0 + 1e-9),
    (-2.0 - 1e-4, -2.0),
    (5.0, INF),
    (8.0, 9.0),
    (-9.0, -8.0),
    (30.0, 40.0),
    (20.0, 20.0 + 1e-7),
    (-INF, -30.0),
]


@pytest.mark.parametrize(("a", "b"), INTERVALS)
def test_the_moments_of_a_truncated_normal_are_those_of_its_density(a: float, b: float) -> None:
    """An adaptive rule integrates exp((p^2 - z^2) / 2), where p is the point of [a, b] nearest to zero.

    Its error is below 1e-9. It integrates over distances from p, which are exact for narrow intervals, up to
    where the integrand is below 1e-17: for a distance u, the exponent is -u (|p| + u / 2).
    """
    own_law = law("trunc_normal_", {"a": a, "b": b})
    p = min(max(0.0, a), b)
    limits = max(a - p, -80 / (8 + abs(p))), min(b - p, 80 / (8 + abs(p)))

    def integral(power: int, centre: float = 0.0) -> float:
        def integrand(u: float) -> float:
            return math.exp(-u * (p + u / 2)) * math.pow(u - centre, power)

        return math.fsum(
            integrate.quad(integrand, *ends, epsabs=0.0, epsrel=1e-11, limit=500)[0]
            for ends in ((limits[0], 0.0), (0.0, limits[1]))
            if ends[0] < ends[1]
        )

    mass = integral(0)
    shift = integral(1) / mass
    std = math.sqrt(integral(2, shift) / mass)
    assert own_law.std == pytest.approx(std, rel=1e-8)
    # A mean far from zero is rounded.
    assert abs(own_law.mean - (p + shift)) <= 1e-8 * std + 2.0**-52 * abs(p)
    assert own_law.density(p) == pytest.approx(1 / mass, rel=1e-8)


def test_the_law_of_a_truncated_normal_is_scipys() -> None:
    for a, b in ((-2.0, 2.0), (-INF, 1.0), (0.5, 0.75), (5.0, INF), (8.0, 9.0)):
        own_law = law("trunc_normal_", {"mean": 3.0, "std": 0.5, "a": 3 + a / 2, "b": 3 + b / 2})
        scipys = stats.truncnorm(a, b, loc=3, scale=0.5)
        assert own_law.mean == pytest.approx(scipys.mean(), rel=1e-8)
        assert own_law.std == pytest.approx(scipys.std(), rel=1e-6)
        x = 3 + (max(a, -3) + min(b, a + 1)) / 4 if math.isfinite(a) else 3.0
        assert own_law.density(x) == pytest.approx(scipys.pdf(x), rel=1e-8)


@pytest.mark.filterwarnings("ignore:mean is more than 2 std from")
def test_a_truncated_normal_far_out_in_a_tail_is_written_by_its_law() -> None:
    values = init.trunc_normal_(torch.empty(SHAPE, dtype=torch.float64), a=8.0, b=9.0, generator=Key(7))
    assert is_followed(law("trunc_normal_", {"a": 8.0, "b": 9.0}), values, kurtosis=9.0)
    assert not is_followed(law("trunc_normal_", {"a": 8.5, "b": 9.0}), values, kurtosis=9.0)


def test_constants_and_what_has_no_law() -> None:
    assert law("constant_", {"val": 3}).is_constant
    assert law("ones_", {}).mean == 1.0
    assert law("trunc_normal_", {"a": 0.5, "b": 0.5}).is_constant
    for name in ("eye_", "delta_orthogonal_", "dirac_"):
        shape = (16, 16, 3, 3) if name != "eye_" else (16, 16)
        assert law_of(name, {}, shape) is None
    assert law_of("normal_", {}, (0, 3)) is None
    assert law_of("normal_", {}, (3,), torch.complex64) is None


def test_every_function_that_draws_is_in_the_calls() -> None:
    assert {name for name, _ in CALLS} | {"delta_orthogonal_"} == DRAWING_FUNCTIONS


def test_fans_are_those_of_the_shape() -> None:
    tall = law_of("kaiming_normal_", {}, (8, 128))
    wide = law_of("kaiming_normal_", {}, (8, 32))
    assert tall is not None
    assert wide is not None
    assert wide.std == pytest.approx(2 * tall.std)
