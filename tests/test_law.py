"""The law that belongs to a call of ``init``, against the values that the call writes.

Samples have 2^18 elements. The relative standard error of a deviation is sqrt((kurtosis - 1) / 4n), with a
kurtosis of at most 3 / 0.7, that of ``sparse_``. The standard error of a mean is std / sqrt(n). The limit is
6 standard errors. A correct sample exceeds it in less than one of 5e8 cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from scipy import integrate

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


def is_followed(law: Law, values: torch.Tensor) -> bool:
    exact = values.double()
    kurtosis = 3 / 0.7
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
