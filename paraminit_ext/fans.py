"""Gains and fans: what the scales of Glorot's and He's initialisations are made of."""

import math
from typing import Literal, get_args

from paraminit_ext.calls import as_number
from paraminit_ext.geometry import Part

# Those whose gain is 1.
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


def calculate_gain(nonlinearity: NonlinearityType, param: int | float | None = None) -> float:
    r"""Return the gain that keeps the variance of activations through a nonlinearity.

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
        nonlinearity: the name of the function in `torch.nn.functional` (or of the layer that stands in its
            place)
        param: the negative slope of ``leaky_relu`` (default: 0.01); the others take none

    Raises:
        ValueError: another name, or a slope that is not a number.

    Source: `Delving deep into rectifiers` - He, K. et al. (2015), section 2.2; the gain of SELU is empirical,
    and self-normalising networks want ``"linear"`` in its place.

    Examples:
        >>> from paraminit_ext import init
        >>> init.calculate_gain("leaky_relu", 1)
        1.0
    """
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
            f"paraminit_ext.calculate_gain: expected a nonlinearity, got {nonlinearity!r}. Use one of "
            f"{', '.join(_UNIT_GAINS)}, tanh, relu, leaky_relu, selu."
        )
    slope = 0.01 if param is None else param
    if isinstance(slope, bool) or not isinstance(slope, int | float):
        raise ValueError(
            f"paraminit_ext.calculate_gain: expected a number for the negative slope, got {slope!r}. "
            "Pass an int, a float or None."
        )
    return math.sqrt(2.0 / (1 + slope**2))


def fans_of(name: str, part: Part, groups: int = 1) -> tuple[int, int]:
    """Fan in and fan out of the whole tensor, the weight of a convolution of that many groups.

    An input of a grouped convolution feeds the outputs of its own group alone.
    """
    shape = part.whole_shape
    if len(shape) < 2:
        raise ValueError(
            f"paraminit_ext.{name}: expected a tensor of 2 or more dimensions, got shape {shape}. "
            "Fan in and fan out are those of a matrix or of a convolution's weight."
        )
    if not isinstance(groups, int) or groups < 1 or shape[0] % groups != 0:
        raise ValueError(
            f"paraminit_ext.{name}: expected groups >= 1 that divide the {shape[0]} outputs of dimension 0, "
            f"got {groups!r}. Pass the layer's own groups."
        )
    receptive_field = math.prod(shape[2:])
    return shape[1] * receptive_field, shape[0] // groups * receptive_field


def fan_of(name: str, part: Part, mode: FanMode) -> int:
    """The one of the two that ``mode`` names."""
    lowered = mode.lower()
    if lowered not in ("fan_in", "fan_out"):
        raise ValueError(f"paraminit_ext.{name}: expected a mode, got {mode!r}. Use 'fan_in' or 'fan_out'.")
    fan_in, fan_out = fans_of(name, part)
    return fan_in if lowered == "fan_in" else fan_out


def xavier_std(name: str, part: Part, gain: float) -> float:
    """Glorot and Bengio (2010), equation 16, times the gain."""
    fan_in, fan_out = fans_of(name, part)
    if fan_in + fan_out == 0:
        raise ZeroDivisionError(
            f"paraminit_ext.{name}: expected a tensor with inputs or outputs, got shape {part.whole_shape}. "
            "Its fans are both 0, and the standard deviation divides by their sum."
        )
    return as_number(name, "gain", gain) * math.sqrt(2.0 / float(fan_in + fan_out))


def kaiming_std(name: str, part: Part, a: float, mode: FanMode, nonlinearity: NonlinearityType) -> float:
    """He et al. (2015), equations 10 and 14, with the gain of a nonlinearity."""
    fan = fan_of(name, part, mode)
    gain = calculate_gain(nonlinearity, a)
    if not math.isfinite(gain) or (gain == 0.0):
        raise ValueError(
            f"paraminit_ext.{name}: expected a finite negative slope for a, got {a}. Its gain is {gain}."
        )
    return gain / math.sqrt(fan)
