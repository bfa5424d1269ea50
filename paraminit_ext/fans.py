"""Gains and fans, from which the scales of Glorot's and He's initialisations are computed."""

import math
from typing import Literal, get_args

import torch

from paraminit_ext.dispatch import as_number
from paraminit_ext.geometry import FLOATING_DTYPES, Part, computed_in

# The nonlinearities whose gain is 1.
_UnitGain = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
]
NonlinearityType = Literal[_UnitGain, "tanh", "relu", "leaky_relu", "selu"]
FanMode = Literal["fan_in", "fan_out"]

_UNIT_GAINS: tuple[str, ...] = get_args(_UnitGain)
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in FLOATING_DTYPES}


def calculate_gain(nonlinearity: NonlinearityType, param: int | float | None = None) -> float:
    r"""Return the gain that preserves the variance of activations through a nonlinearity.

    The values are as follows:

    ================= ====================================================
    nonlinearity      gain
    ================= ====================================================
    linear, conv      :math:`1`
    sigmoid           :math:`1`
    tanh              :math:`\frac{5}{3}`
    relu              :math:`\sqrt{2}`
    leaky_relu        :math:`\sqrt{\frac{2}{1 + \text{negative\_slope}^2}}`
    selu              :math:`\frac{3}{4}`
    ================= ====================================================

    Args:
        nonlinearity: the name of the nonlinear function in `torch.nn.functional`, or ``"linear"`` or the name
            of a convolution for a layer without one
        param: the negative slope of ``leaky_relu`` (default: 0.01); the other nonlinearities ignore it

    Raises:
        ValueError: if the nonlinearity is unknown, or the slope is not a number.
        OverflowError: if the square of the slope overflows.

    Source: `Delving deep into rectifiers` - He, K. et al. (2015), section 2.2. The gain of SELU is empirical.
    For self-normalising networks use ``"linear"`` instead of ``"selu"``.

    Examples:
        >>> from paraminit_ext import init
        >>> init.calculate_gain("leaky_relu", 1)
        1.0
    """
    return gain_of("calculate_gain", nonlinearity, "param", param)


def gain_of(name: str, nonlinearity: str, argument: str, slope: int | float | None) -> float:
    """Return :func:`calculate_gain`. Errors name the function ``name`` and its slope ``argument``."""
    if nonlinearity in _UNIT_GAINS:
        return 1
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "selu":
        return 3.0 / 4
    if nonlinearity != "leaky_relu":
        raise ValueError(
            f"paraminit_ext.{name}: expected a nonlinearity, got {nonlinearity!r}. Use one of "
            f"{', '.join(_UNIT_GAINS)}, tanh, relu, leaky_relu, selu."
        )
    slope = 0.01 if slope is None else slope
    if isinstance(slope, bool) or not isinstance(slope, int | float):
        raise ValueError(
            f"paraminit_ext.{name}: expected a number for {argument}, the negative slope, got {slope!r}. "
            "Pass an int, a float or None."
        )
    try:
        return math.sqrt(2.0 / (1 + slope**2))
    except OverflowError:
        raise OverflowError(
            f"paraminit_ext.{name}: expected a slope {argument} whose square is finite, got {slope}. Pass "
            "a smaller slope."
        ) from None


def fans_of(name: str, part: Part, groups: int = 1) -> tuple[int, int]:
    """Return the fan in and the fan out of the global tensor, the weight of a layer with ``groups`` groups.

    An input of a grouped convolution feeds only the outputs of its own group.
    """
    shape = part.whole_shape
    if len(shape) < 2:
        raise ValueError(
            f"paraminit_ext.{name}: expected a tensor of 2 or more dimensions, got shape {shape}. "
            "Pass a matrix or the weight of a convolution."
        )
    if not isinstance(groups, int) or groups < 1 or shape[0] % groups != 0:
        raise ValueError(
            f"paraminit_ext.{name}: expected groups >= 1 that divide the {shape[0]} outputs of dimension 0, "
            f"got {groups!r}. Pass the layer's own groups."
        )
    receptive_field = math.prod(shape[2:])
    return shape[1] * receptive_field, shape[0] // groups * receptive_field


def fan_of(name: str, part: Part, mode: FanMode) -> int:
    """Return the fan that ``mode`` names."""
    lowered = mode.lower()
    if lowered not in ("fan_in", "fan_out"):
        raise ValueError(f"paraminit_ext.{name}: expected a mode, got {mode!r}. Use 'fan_in' or 'fan_out'.")
    fan_in, fan_out = fans_of(name, part)
    return fan_in if lowered == "fan_in" else fan_out


def xavier_std(name: str, part: Part, gain: float) -> float:
    """Return the standard deviation of Glorot and Bengio (2010), equation 12, times the gain."""
    fan_in, fan_out = fans_of(name, part)
    if fan_in + fan_out == 0:
        raise ZeroDivisionError(
            f"paraminit_ext.{name}: expected a tensor with inputs or outputs, got shape {part.whole_shape}. "
            "Both fans are 0, and the standard deviation divides by their sum."
        )
    return as_number(name, "gain", gain) * math.sqrt(2.0 / float(fan_in + fan_out))


def uniform_bound(name: str, part: Part, bound: float, argument: str, value: float) -> float:
    """Check the bound of a uniform distribution on [-bound, bound) for the dtype, and return it.

    The error names ``argument`` and ``value``, which the caller of the public function passed. While a
    function is compiled, the numbers may be symbolic, and the operator itself refuses them.

    Raises:
        RuntimeError: if the bound is negative or not finite, or the dtype cannot hold ``2 * bound``.
    """
    if torch.compiler.is_compiling() or 0.0 <= 2.0 * bound <= _LARGEST.get(part.local.dtype, math.inf):
        return bound
    raise RuntimeError(_refusal(name, part, argument, value, "bound", bound))


def normal_std(
    name: str, part: Part, std: float, argument: str, value: float, *, positive: bool = False
) -> float:
    """Check the standard deviation of a normal distribution for the dtype, and return it.

    Raises:
        RuntimeError: if the standard deviation is negative or not finite in the dtype in which values are
            computed, or 0 although ``positive`` is True.
    """
    if torch.compiler.is_compiling():
        return std
    dtype = computed_in(part.local.dtype)
    # 2**-150, half of the smallest float32, rounds to 0.
    underflows = positive and 0.0 <= std <= (0.0 if dtype is torch.float64 else 2.0**-150)
    if not underflows and 0.0 <= std <= _LARGEST[dtype]:
        return std
    if underflows:
        raise RuntimeError(
            f"paraminit_ext.{name}: expected a {argument} whose standard deviation is above 0 in {dtype}, "
            f"got {argument}={value}, which gives {std:.4g}. Pass a larger {argument}."
        )
    raise RuntimeError(_refusal(name, part, argument, value, "standard deviation", std))


def _refusal(name: str, part: Part, argument: str, value: float, noun: str, number: float) -> str:
    return (
        f"paraminit_ext.{name}: expected a finite {argument} >= 0 within the range of {part.local.dtype}, "
        f"got {argument}={value}, which gives a {noun} of {number:.4g}. Pass another {argument}."
    )


def kaiming_std(name: str, part: Part, a: float, mode: FanMode, nonlinearity: NonlinearityType) -> float:
    """Return the standard deviation of He et al. (2015), equations 10 and 14, for a nonlinearity."""
    fan = fan_of(name, part, mode)
    gain = gain_of(name, nonlinearity, "a", a)
    # A comparison, because torch.compile cannot trace math.isfinite of a symbolic number.
    if not 0.0 < gain < math.inf:
        raise ValueError(
            f"paraminit_ext.{name}: expected a finite slope for a, got {a}, whose gain is {gain}. Pass a "
            "finite number."
        )
    return gain / math.sqrt(fan)
