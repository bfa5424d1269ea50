"""``torch.nn.init``, name for name, on this package's fills.

Each function turns its arguments into plain numbers (a bound, a standard deviation, a count) and hands them
with one key to one op. Nothing here is random, and nothing is written before every argument has been checked.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, final

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from paraminit_ext import _C
from paraminit_ext.geometry import FLOATING_DTYPES, REAL_DTYPES, Part, Shard, locate, refuse_unfillable
from paraminit_ext.key import FillKey, Key, refuse_generator, take_key
from paraminit_ext.warn import warn as _warn

__all__ = [
    "calculate_gain",
    "constant",
    "constant_",
    "delta_orthogonal_",
    "dirac",
    "dirac_",
    "eye",
    "eye_",
    "kaiming_normal",
    "kaiming_normal_",
    "kaiming_uniform",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "normal",
    "normal_",
    "ones_",
    "orthogonal",
    "orthogonal_",
    "sparse",
    "sparse_",
    "trunc_normal_",
    "uniform",
    "uniform_",
    "variance_scaling_",
    "xavier_normal",
    "xavier_normal_",
    "xavier_uniform",
    "xavier_uniform_",
    "zeros_",
]

_R = TypeVar("_R")
_P = ParamSpec("_P")

_NonlinearityType = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
]
_FanMode = Literal["fan_in", "fan_out"]
_VarianceMode = Literal["fan_in", "fan_out", "fan_avg"]
_VarianceDistribution = Literal["normal", "uniform", "truncated_normal"]
_FillName = Literal["uniform_", "normal_", "trunc_normal_", "sparse_", "orthogonal_", "delta_orthogonal_"]

# The overloads, looked up once: a packet's call would try each of them in turn.
_EAGER = {
    "uniform_": torch.ops.paraminit_ext.uniform_.default,
    "normal_": torch.ops.paraminit_ext.normal_.default,
    "trunc_normal_": torch.ops.paraminit_ext.trunc_normal_.default,
    "sparse_": torch.ops.paraminit_ext.sparse_.default,
    "orthogonal_": torch.ops.paraminit_ext.orthogonal_.default,
}
# The same without the cost of torch.ops' call, several times that of a small fill. torch.compile sees none of
# it, since its keys are tensors; other tracers see the operator through the dispatcher.
_DIRECT: dict[str, Callable[..., None]] = {
    "uniform_": _C.uniform_,
    "normal_": _C.normal_,
    "trunc_normal_": _C.trunc_normal_,
}
_KEYED = {
    "uniform_": torch.ops.paraminit_ext.uniform_.key,
    "normal_": torch.ops.paraminit_ext.normal_.key,
    "trunc_normal_": torch.ops.paraminit_ext.trunc_normal_.key,
    "sparse_": torch.ops.paraminit_ext.sparse_.key,
    "orthogonal_": torch.ops.paraminit_ext.orthogonal_.key,
}

_UNIT_GAINS = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
)


# ----------------------------------------------------------------------------------------
# From arguments to one call of an op
# ----------------------------------------------------------------------------------------


# Its stub binds the handler's arguments to the function's own, which named ones from a dict cannot show.
_handle: Callable[..., Any] = handle_torch_function


def _overridable(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Honour ``__torch_function__`` of the tensor (of the local one of a shard) and of active modes.

    What a handler is given is the decorated function, with every argument by its name as ``torch.nn.init``
    does, so a mode that calls it back comes here again and not to torch's own.
    """
    parameters = inspect.signature(function).parameters
    names = tuple(parameters)
    defaults = {p.name: p.default for p in parameters.values() if p.default is not inspect.Parameter.empty}

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        tensor = args[0] if args else kwargs.get("tensor")
        carrier = tensor.local if type(tensor) is Shard else tensor
        if has_torch_function_variadic(carrier) and len(args) <= len(names):
            named = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            answer: _R = _handle(wrapper, (carrier,), **named)
            return answer
        return function(*args, **kwargs)

    return wrapper


def _number(name: str, what: str, value: object) -> float:
    """A parameter as a Python float: from a number, a NumPy scalar or a tensor of no dimensions."""
    if type(value) is float:
        return value
    if isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        return float(value)
    if hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(
        f"paraminit_ext.{name}: expected a real number for {what}, got {type(value).__name__}. Pass a float."
    )


def _finite(name: str, what: str, value: object) -> float:
    number = _number(name, what, value)
    if not math.isfinite(number):
        raise ValueError(
            f"paraminit_ext.{name}: expected a finite {what}, got {number}. Pass a finite factor."
        )
    return number


# Parameters that an op has accepted for a dtype. Only what it accepts is remembered, so what it refuses is
# asked anew.
_accepted: set[tuple[object, ...]] = set()


def _refuse_parameters(fill: _FillName, local: Tensor, parameters: tuple[float, ...]) -> None:
    """Raise what the op raises for these parameters: it is asked on a tensor of no elements."""
    asked = (fill, local.dtype, parameters)
    if asked not in _accepted:
        _EAGER[fill](local.new_empty(0), *parameters, 0, 0, (), ())
        # A mode may have swallowed the question.
        if _C.calls_are_plain():
            if len(_accepted) >= 4096:
                _accepted.clear()
            _accepted.add(asked)


@final
class Held:
    """Given to a function in place of a generator, takes the fill that the call comes down to.

    The call has then been checked, and nothing has been drawn or written. It stays empty where there is
    nothing to do. :func:`paraminit_ext.fill_many` checks its entries so.
    """

    __slots__ = ("fill", "parameters", "part")

    part: Part
    parameters: tuple[float, ...]

    def __init__(self) -> None:
        self.fill: _FillName | None = None

    def hold(self, fill: _FillName, part: Part, parameters: tuple[float, ...]) -> None:
        self.fill, self.part, self.parameters = fill, part, parameters


_Source: TypeAlias = torch.Generator | Key | Held | None


def _take(name: str, part: Part, generator: torch.Generator | Key | None) -> FillKey:
    """The key of this fill; a fill without elements takes none, but its generator is still looked at."""
    if part.draws:
        return take_key(name, generator, part.local.device)
    refuse_generator(name, generator, part.local.device)
    return 0, 0


def _apply(fill: _FillName, part: Part, key: FillKey, parameters: tuple[float, ...]) -> None:
    direct = _DIRECT.get(fill)
    if direct is not None and not part.global_shape and not isinstance(key, Tensor):
        direct(part.local, *parameters, *key)
        return
    if fill == "delta_orthogonal_":
        _write_delta_orthogonal(part, key, *parameters)
        return
    with torch.no_grad():
        if isinstance(key, Tensor):
            _KEYED[fill](part.local, *parameters, key, part.global_shape, part.shard_offset)
        else:
            _EAGER[fill](part.local, *parameters, key[0], key[1], part.global_shape, part.shard_offset)


def _fill(
    name: str,
    fill: _FillName,
    part: Part,
    generator: _Source,
    parameters: tuple[float, ...],
) -> Tensor:
    """Check everything, take one key, fill: what each function that draws comes down to."""
    _refuse(name, fill, part.local, parameters)
    return _finish(name, fill, part, generator, parameters)


def _finish(
    name: str,
    fill: _FillName,
    part: Part,
    generator: _Source,
    parameters: tuple[float, ...],
) -> Tensor:
    """Take one key and fill, everything having been checked; or leave both for later."""
    if type(generator) is Held:
        generator.hold(fill, part, parameters)
    else:
        _apply(fill, part, _take(name, part, generator), parameters)
    return part.given


def _refuse(name: str, fill: _FillName, local: Tensor, parameters: tuple[float, ...]) -> None:
    refuse_unfillable(name, local, REAL_DTYPES if fill == "trunc_normal_" else FLOATING_DTYPES)
    # While a graph is traced the op's own check runs then and there, and memory of past calls would be
    # guarded on.
    if not torch.compiler.is_compiling():
        _refuse_parameters(fill, local, parameters)


# ----------------------------------------------------------------------------------------
# Gains and fans
# ----------------------------------------------------------------------------------------


def calculate_gain(nonlinearity: _NonlinearityType, param: int | float | None = None) -> float:
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


def _calculate_fan_in_and_fan_out(tensor: Tensor | Shard) -> tuple[int, int]:
    """The inputs and the outputs of the layer that ``tensor`` is the weight of; the whole's, for a shard."""
    return _fans("_calculate_fan_in_and_fan_out", locate("_calculate_fan_in_and_fan_out", tensor))


def _calculate_correct_fan(tensor: Tensor | Shard, mode: _FanMode) -> int:
    """The one of the two fans that ``mode`` names."""
    return _fan("_calculate_correct_fan", locate("_calculate_correct_fan", tensor), mode)


def _fans(name: str, part: Part) -> tuple[int, int]:
    shape = part.whole_shape
    if len(shape) < 2:
        raise ValueError(
            f"paraminit_ext.{name}: expected a tensor of 2 or more dimensions, got shape {shape}. "
            "Fan in and fan out are those of a matrix or of a convolution's weight."
        )
    receptive_field = math.prod(shape[2:])
    return shape[1] * receptive_field, shape[0] * receptive_field


def _fan(name: str, part: Part, mode: _FanMode) -> int:
    lowered = mode.lower()
    if lowered not in ("fan_in", "fan_out"):
        raise ValueError(f"paraminit_ext.{name}: expected a mode, got {mode!r}. Use 'fan_in' or 'fan_out'.")
    fan_in, fan_out = _fans(name, part)
    return fan_in if lowered == "fan_in" else fan_out


def _xavier_std(name: str, part: Part, gain: float) -> float:
    fan_in, fan_out = _fans(name, part)
    if fan_in + fan_out == 0:
        raise ZeroDivisionError(
            f"paraminit_ext.{name}: expected a tensor with inputs or outputs, got shape {part.whole_shape}. "
            "Its fans are both 0, and the standard deviation divides by their sum."
        )
    return _number(name, "gain", gain) * math.sqrt(2.0 / float(fan_in + fan_out))


def _kaiming_std(name: str, part: Part, a: float, mode: _FanMode, nonlinearity: _NonlinearityType) -> float:
    fan = _fan(name, part, mode)
    gain = calculate_gain(nonlinearity, a)
    if not math.isfinite(gain) or (gain == 0.0):
        raise ValueError(
            f"paraminit_ext.{name}: expected a finite negative slope for a, got {a}. Its gain is {gain}."
        )
    return gain / math.sqrt(fan)


# ----------------------------------------------------------------------------------------
# Distributions
# ----------------------------------------------------------------------------------------


@_overridable
def uniform_(
    tensor: Tensor | Shard,
    a: float = 0.0,
    b: float = 1.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input Tensor with values drawn from the uniform distribution.

    :math:`\mathcal{U}[a, b)`; never ``b`` itself, in any dtype, unless ``a == b``.

    Args:
        tensor: an n-dimensional `torch.Tensor`, real or complex (each part is drawn), or a shard of one
        a: the lower bound of the uniform distribution
        b: the upper bound of the uniform distribution
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        RuntimeError: ``b < a``, a bound or ``b - a`` beyond the dtype's range, or elements that share memory.
        NotImplementedError: dtype or layout has no fill.

    Source: `Parallel random numbers: as easy as 1, 2, 3` - Salmon, J. et al. (2011).

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.uniform_(w, -0.5, 0.5).abs().max().item() <= 0.5
        True
    """
    bounds = (_number("uniform_", "a", a), _number("uniform_", "b", b))
    return _fill("uniform_", "uniform_", locate("uniform_", tensor), generator, bounds)


@_overridable
def normal_(
    tensor: Tensor | Shard,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input Tensor with values drawn from the normal distribution.

    :math:`\mathcal{N}(\text{mean}, \text{std}^2)`.

    Args:
        tensor: an n-dimensional `torch.Tensor`, real or complex (each part of variance ``std**2 / 2``), or a
            shard of one
        mean: the mean of the normal distribution
        std: the standard deviation of the normal distribution
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        RuntimeError: ``std < 0``, a parameter that is not finite, or elements that share memory.
        NotImplementedError: dtype or layout has no fill.

    Source: `A note on the generation of random normal deviates` - Box, G. & Muller, M. (1958).

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.normal_(w, std=0.02) is w
        True
    """
    moments = (_number("normal_", "mean", mean), _number("normal_", "std", std))
    return _fill("normal_", "normal_", locate("normal_", tensor), generator, moments)


@_overridable
def trunc_normal_(
    tensor: Tensor | Shard,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input Tensor with values drawn from a truncated normal distribution.

    :math:`\mathcal{N}(\text{mean}, \text{std}^2)` given that it lies in :math:`[a, b]`. The bounds are
    values, not multiples of ``std``; either may be infinite. One word makes one value by the inverse of the
    distribution, so nothing is redrawn, however narrow or far out the interval is.

    Args:
        tensor: an n-dimensional real `torch.Tensor`, or a shard of one
        mean: the mean of the normal distribution before the cut
        std: its standard deviation
        a: the minimum cutoff value
        b: the maximum cutoff value
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: ``a > b``, ``std <= 0``, a mean or std that is not finite, or an interval more than 37
            standard deviations from the mean.
        RuntimeError: elements that share memory.
        NotImplementedError: dtype (a complex one, for example) or layout has no fill.

    Source: `Non-uniform random variate generation` - Devroye, L. (1986), section II.2: inversion.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04).abs().max().item() <= 0.04
        True
    """
    part = locate("trunc_normal_", tensor)
    mean, std = _number("trunc_normal_", "mean", mean), _number("trunc_normal_", "std", std)
    a, b = _number("trunc_normal_", "a", a), _number("trunc_normal_", "b", b)
    _refuse("trunc_normal_", "trunc_normal_", part.local, (mean, std, a, b))
    if _in_a_tail(mean, std, a, b) and not part.local.is_meta:
        _warn(
            "mean is more than 2 std from [a, b] in paraminit_ext.trunc_normal_: the values are right, "
            "but they are those of a tail, crowded at the nearer bound."
        )
    return _finish("trunc_normal_", "trunc_normal_", part, generator, (mean, std, a, b))


def _in_a_tail(mean: float, std: float, a: float, b: float) -> bool:
    """Where stock warns, since its own method is then slow and imprecise."""
    return mean < a - 2 * std or mean > b + 2 * std


# ----------------------------------------------------------------------------------------
# Constants, which draw nothing
# ----------------------------------------------------------------------------------------


@_overridable
def constant_(tensor: Tensor | Shard, val: float) -> Tensor:
    r"""Fill the input Tensor with the value :math:`\text{val}`.

    Args:
        tensor: an n-dimensional `torch.Tensor` of any dtype, or a shard of one
        val: the value to fill the tensor with

    Raises:
        RuntimeError: a value that the dtype cannot hold, as `torch.Tensor.fill_`, which it is.

    Source: `torch.Tensor.fill_`.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> init.constant_(torch.empty(2), 0.5)
        tensor([0.5000, 0.5000])
    """
    part = locate("constant_", tensor)
    with torch.no_grad():
        part.local.fill_(val)
    return part.given


@_overridable
def ones_(tensor: Tensor | Shard) -> Tensor:
    r"""Fill the input Tensor with the scalar value `1`.

    Args:
        tensor: an n-dimensional `torch.Tensor` of any dtype, or a shard of one

    Raises:
        TypeError: not a tensor.

    Source: `torch.Tensor.fill_`.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> init.ones_(torch.empty(2))
        tensor([1., 1.])
    """
    part = locate("ones_", tensor)
    with torch.no_grad():
        part.local.fill_(1.0)
    return part.given


@_overridable
def zeros_(tensor: Tensor | Shard) -> Tensor:
    r"""Fill the input Tensor with the scalar value `0`.

    Args:
        tensor: an n-dimensional `torch.Tensor` of any dtype, or a shard of one

    Raises:
        TypeError: not a tensor.

    Source: `torch.Tensor.zero_`.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> init.zeros_(torch.empty(2))
        tensor([0., 0.])
    """
    part = locate("zeros_", tensor)
    with torch.no_grad():
        part.local.zero_()
    return part.given


@_overridable
def eye_(tensor: Tensor | Shard) -> Tensor:
    r"""Fill the 2-dimensional input `Tensor` with the identity matrix.

    :math:`w_{ij} = 1` where :math:`i = j`, else 0: a `Linear` layer then passes on as many of its inputs as
    it has outputs for.

    Args:
        tensor: a 2-dimensional `torch.Tensor` of any dtype, or a shard of one

    Raises:
        ValueError: another number of dimensions.
        RuntimeError: elements that share memory.

    Source: `torch.eye`.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> init.eye_(torch.empty(2, 3))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    part = _check_eye(tensor)
    row, column = part.start
    with torch.no_grad():
        # Element (i, j) held here is (i + row, j + column) of the whole.
        part.local.zero_().diagonal(row - column).fill_(1)
    return part.given


def _check_eye(tensor: Tensor | Shard) -> Part:
    part = locate("eye_", tensor)
    if part.local.dim() != 2:
        raise ValueError(
            f"paraminit_ext.eye_: expected a tensor of 2 dimensions, got shape {part.whole_shape}. Pass a "
            "matrix."
        )
    refuse_unfillable("eye_", part.local, frozenset(), kernel=False)
    return part


@_overridable
def dirac_(tensor: Tensor | Shard, groups: int = 1) -> Tensor:
    r"""Fill the {3, 4, 5}-dimensional input `Tensor` with the Dirac delta function.

    In each group of output channels, channel :math:`d` is 1 at input channel :math:`d` in the middle of the
    kernel and 0 elsewhere: a `Convolutional` layer then passes on as many of its input channels as it has
        outputs for.

    Args:
        tensor: a {3, 4, 5}-dimensional `torch.Tensor` (out channels, in channels / groups, kernel sizes) of
            any dtype, or a shard of one
        groups: number of groups in the conv layer, each with an identity of its own (default: 1)

    Raises:
        ValueError: another number of dimensions, ``groups < 1``, or out channels that ``groups`` does not
            divide.
        TypeError: ``groups`` is not an int.
        RuntimeError: elements that share memory.

    Source: `DiracNets: training very deep neural networks without skip-connections` - Zagoruyko, S. &
    Komodakis, N. (2017), section 3.1.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> init.dirac_(torch.empty(2, 2, 3))[0]
        tensor([[0., 1., 0.],
                [0., 0., 0.]])
        >>> init.dirac_(torch.empty(6, 2, 3), groups=3).sum().item()
        6.0
    """
    part = _check_dirac(tensor, groups)
    with torch.no_grad():
        part.local.zero_()
        if not part.local.is_meta:
            _write_dirac(part, groups)
    return part.given


def _check_dirac(tensor: Tensor | Shard, groups: int = 1) -> Part:
    part = locate("dirac_", tensor)
    shape = part.whole_shape
    if len(shape) not in (3, 4, 5):
        raise ValueError(
            f"paraminit_ext.dirac_: expected a tensor of 3, 4 or 5 dimensions, got shape {shape}. "
            "Pass the weight of a convolution."
        )
    if not isinstance(groups, int):
        raise TypeError(
            f"paraminit_ext.dirac_: expected an int for groups, got {type(groups).__name__}. Pass an int."
        )
    if groups < 1 or shape[0] % groups != 0:
        raise ValueError(
            f"paraminit_ext.dirac_: expected groups >= 1 that divide the {shape[0]} output channels of "
            f"dimension 0, got {groups}. Pass the layer's own groups."
        )
    refuse_unfillable("dirac_", part.local, frozenset(), kernel=False)
    return part


def _centre_tap(part: Part) -> Tensor | None:
    """The matrix at the middle of a convolution's kernel, as far as this part of the weight holds it."""
    plane = part.local
    for size, begin in zip(reversed(part.whole_shape[2:]), reversed(part.start[2:]), strict=True):
        place = size // 2 - begin
        if not 0 <= place < plane.size(-1):
            return None
        plane = plane.select(-1, place)
    return plane


def _write_dirac(part: Part, groups: int) -> None:
    plane = _centre_tap(part)
    if plane is None or plane.numel() == 0:
        return
    shape, start, held = part.whole_shape, part.start, plane.shape
    outputs = torch.arange(held[0], device=plane.device)
    inputs = (outputs + start[0]) % (shape[0] // groups) - start[1]
    # An output channel without an input of its own, here or anywhere, stays zero. It is written all the same:
    # to choose the others would make a size that depends on values, which no tracer knows.
    own = (inputs >= 0) & (inputs < held[1])
    plane[outputs, inputs.clamp(0, held[1] - 1)] = own.to(plane.dtype)


# ----------------------------------------------------------------------------------------
# Fans
# ----------------------------------------------------------------------------------------


@_overridable
def xavier_uniform_(
    tensor: Tensor | Shard,
    gain: float = 1.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with values using a Xavier uniform distribution.

    The values are drawn from :math:`\mathcal{U}[-a, a)` where

    .. math::
        a = \text{gain} \times \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}

    Also known as Glorot initialization.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard (fans are the whole's)
        gain: an optional scaling factor
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: fewer than 2 dimensions.
        ZeroDivisionError: both fans are 0.
        RuntimeError: a gain that is negative or not finite, or elements that share memory.
        NotImplementedError: dtype or layout has no fill.

    Source: `Understanding the difficulty of training deep feedforward neural networks` - Glorot, X. & Bengio,
    Y. (2010), equation 16.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.xavier_uniform_(w, gain=init.calculate_gain("relu")) is w
        True
    """
    part = locate("xavier_uniform_", tensor)
    bound = math.sqrt(3.0) * _xavier_std("xavier_uniform_", part, gain)
    return _fill("xavier_uniform_", "uniform_", part, generator, (-bound, bound))


@_overridable
def xavier_normal_(
    tensor: Tensor | Shard,
    gain: float = 1.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with values using a Xavier normal distribution.

    The values are drawn from :math:`\mathcal{N}(0, \text{std}^2)` where

    .. math::
        \text{std} = \text{gain} \times \sqrt{\frac{2}{\text{fan\_in} + \text{fan\_out}}}

    Also known as Glorot initialization.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard (fans are the whole's)
        gain: an optional scaling factor
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: fewer than 2 dimensions.
        ZeroDivisionError: both fans are 0.
        RuntimeError: a gain that is negative or not finite, or elements that share memory.
        NotImplementedError: dtype or layout has no fill.

    Source: `Understanding the difficulty of training deep feedforward neural networks` - Glorot, X. & Bengio,
    Y. (2010), equation 12.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.xavier_normal_(w) is w
        True
    """
    part = locate("xavier_normal_", tensor)
    std = _xavier_std("xavier_normal_", part, gain)
    return _fill("xavier_normal_", "normal_", part, generator, (0.0, std))


@_overridable
def kaiming_uniform_(
    tensor: Tensor | Shard,
    a: float = 0,
    mode: _FanMode = "fan_in",
    nonlinearity: _NonlinearityType = "leaky_relu",
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with values using a Kaiming uniform distribution.

    The values are drawn from :math:`\mathcal{U}[-\text{bound}, \text{bound})` where

    .. math::
        \text{bound} = \text{gain} \times \sqrt{\frac{3}{\text{fan\_mode}}}

    Also known as He initialization.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard (fans are the whole's)
        a: the negative slope of the rectifier after this layer (only ``'leaky_relu'`` has one)
        mode: ``'fan_in'`` keeps the variance of activations in the forward pass, ``'fan_out'`` that of
            gradients in the backward pass
        nonlinearity: the name of the function after this layer, best ``'relu'`` or ``'leaky_relu'``
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: fewer than 2 dimensions, an unknown mode or nonlinearity, or a slope that is not finite.
        RuntimeError: elements that share memory.
        NotImplementedError: dtype or layout has no fill.

    Source: `Delving deep into rectifiers: Surpassing human-level performance on ImageNet classification` -
    He, K. et al. (2015), equations 10 and 14.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.kaiming_uniform_(w, mode="fan_in", nonlinearity="relu") is w
        True

    Note:
        The fans are those of a weight of shape (fan_out, fan_in), used as ``x @ w.T``. For
        one used as ``x @ w`` pass ``w.T``: strides do not matter to the fill.
    """
    part = locate("kaiming_uniform_", tensor)
    if 0 in part.whole_shape:
        _warn("Initializing zero-element tensors is a no-op")
        return part.given
    bound = math.sqrt(3.0) * _kaiming_std("kaiming_uniform_", part, a, mode, nonlinearity)
    return _fill("kaiming_uniform_", "uniform_", part, generator, (-bound, bound))


@_overridable
def kaiming_normal_(
    tensor: Tensor | Shard,
    a: float = 0,
    mode: _FanMode = "fan_in",
    nonlinearity: _NonlinearityType = "leaky_relu",
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with values using a Kaiming normal distribution.

    The values are drawn from :math:`\mathcal{N}(0, \text{std}^2)` where

    .. math::
        \text{std} = \frac{\text{gain}}{\sqrt{\text{fan\_mode}}}

    Also known as He initialization.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard (fans are the whole's)
        a: the negative slope of the rectifier after this layer (only ``'leaky_relu'`` has one)
        mode: ``'fan_in'`` keeps the variance of activations in the forward pass, ``'fan_out'`` that of
            gradients in the backward pass
        nonlinearity: the name of the function after this layer, best ``'relu'`` or ``'leaky_relu'``
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: fewer than 2 dimensions, an unknown mode or nonlinearity, or a slope that is not finite.
        RuntimeError: elements that share memory.
        NotImplementedError: dtype or layout has no fill.

    Source: `Delving deep into rectifiers: Surpassing human-level performance on ImageNet classification` -
    He, K. et al. (2015), equations 10 and 14.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu") is w
        True

    Note:
        The fans are those of a weight of shape (fan_out, fan_in), used as ``x @ w.T``. For
        one used as ``x @ w`` pass ``w.T``: strides do not matter to the fill.
    """
    part = locate("kaiming_normal_", tensor)
    if 0 in part.whole_shape:
        _warn("Initializing zero-element tensors is a no-op")
        return part.given
    std = _kaiming_std("kaiming_normal_", part, a, mode, nonlinearity)
    return _fill("kaiming_normal_", "normal_", part, generator, (0.0, std))


# ----------------------------------------------------------------------------------------
# Matrices
# ----------------------------------------------------------------------------------------


@_overridable
def orthogonal_(
    tensor: Tensor | Shard,
    gain: float = 1,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with a (semi) orthogonal matrix, uniform among all of them (Haar).

    :math:`Q = H_0 H_1 \cdots H_{m-1} D`, its first :math:`m` columns, from one random reflector
    :math:`H_k = I - 2 v_k v_k^T / v_k^T v_k` for each column of a Gaussian matrix, no factorisation needed.
    Trailing dimensions are flattened; where there are fewer rows than columns the rows are orthonormal.

    Args:
        tensor: an n-dimensional real `torch.Tensor`, where :math:`n \geq 2`, of any strides, or a shard of
            one (the whole matrix is then made and the part copied from it)
        gain: optional scaling factor
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: fewer than 2 dimensions, or a gain that is not finite.
        RuntimeError: elements that share memory.
        NotImplementedError: dtype (a complex one, for example) or layout has no fill.

    Source: `The efficient generation of random orthogonal matrices` - Stewart, G. (1980); as an
    initialisation, `Exact solutions to the nonlinear dynamics of learning in deep linear neural networks` -
    Saxe, A. et al. (2013).

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = init.orthogonal_(torch.empty(3, 5))
        >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-6)
        True
    """
    part = locate("orthogonal_", tensor)
    shape = part.whole_shape
    if len(shape) < 2:
        raise ValueError(
            f"paraminit_ext.orthogonal_: expected a tensor of 2 or more dimensions, got shape {shape}. Pass "
            "a matrix."
        )
    gain = _finite("orthogonal_", "gain", gain)
    refuse_unfillable("orthogonal_", part.local, REAL_DTYPES)
    return _finish("orthogonal_", "orthogonal_", part, generator, (gain,))


@_overridable
def sparse_(
    tensor: Tensor | Shard,
    sparsity: float,
    std: float = 0.01,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the 2D input `Tensor` as a sparse matrix: exactly so many elements of each column are zero.

    In each column :math:`\lceil \text{sparsity} \times \text{rows} \rceil` elements are 0; the others are
    drawn from :math:`\mathcal{N}(0, \text{std}^2)`.

    Args:
        tensor: a 2-dimensional `torch.Tensor`, real or complex, or a shard of one
        sparsity: the fraction of elements in each column to be set to zero, in [0, 1]
        std: the standard deviation of the normal distribution of the others
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: another number of dimensions, or a sparsity outside [0, 1].
        RuntimeError: ``std < 0`` or not finite, or elements that share memory.
        NotImplementedError: dtype or layout has no fill; 2**32 or more rows.

    Source: `Deep learning via Hessian-free optimization` - Martens, J. (2010), section 5.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = init.sparse_(torch.empty(10, 4), sparsity=0.25)
        >>> (w == 0).sum(dim=0)
        tensor([3, 3, 3, 3])
    """
    part = locate("sparse_", tensor)
    if part.local.dim() != 2:
        raise ValueError(
            f"paraminit_ext.sparse_: expected a tensor of 2 dimensions, got shape {part.whole_shape}. Pass a "
            "matrix."
        )
    sparsity, std = _number("sparse_", "sparsity", sparsity), _number("sparse_", "std", std)
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(
            f"paraminit_ext.sparse_: expected a sparsity in [0, 1], got {sparsity}. It is the fraction of "
            "zeros."
        )
    rows = part.whole_shape[0]
    if rows >= 1 << 32:
        raise NotImplementedError(
            f"paraminit_ext.sparse_: expected fewer than 2**32 rows, got {rows}. Fill the transpose of a "
            "smaller matrix."
        )
    if not 0.0 <= std < math.inf:
        raise RuntimeError(
            f"paraminit_ext.sparse_: expected a finite std >= 0, got {std}. Pass a standard deviation."
        )
    _refuse("sparse_", "normal_", part.local, (0.0, std))
    return _finish("sparse_", "sparse_", part, generator, (std, math.ceil(sparsity * rows)))


# ----------------------------------------------------------------------------------------
# Beside stock's: what other libraries' users ask for, by the same rules
# ----------------------------------------------------------------------------------------


@_overridable
def delta_orthogonal_(
    tensor: Tensor | Shard,
    gain: float = 1,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the {3, 4, 5}-dimensional input `Tensor` with an orthogonal matrix at the centre of its kernel.

    The other taps are zero, so that the convolution of a circular signal preserves its norm (times ``gain``).
    The centre of a kernel of size :math:`k` is tap :math:`\lfloor k / 2 \rfloor`, as :func:`dirac_`'s is.

    Args:
        tensor: a {3, 4, 5}-dimensional real `torch.Tensor` (out channels, in channels, kernel sizes) with at
            least as many out channels as in channels, or a shard of one
        gain: optional scaling factor
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator);
            the matrix is that of :func:`orthogonal_` for (out channels, in channels)

    Raises:
        ValueError: another number of dimensions, fewer out channels than in channels, or a gain that is not
            finite.
        RuntimeError: elements that share memory.
        NotImplementedError: dtype (a complex one, for example) or layout has no fill.

    Source: `Dynamical isometry and a mean field theory of CNNs: how to train 10,000-layer vanilla
    convolutional neural networks` - Xiao, L. et al. (2018), algorithm 1.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = init.delta_orthogonal_(torch.empty(6, 4, 3, 3))
        >>> torch.allclose(w[:, :, 1, 1].T @ w[:, :, 1, 1], torch.eye(4), atol=1e-6)
        True
        >>> w.count_nonzero().item()
        24
    """
    part = locate("delta_orthogonal_", tensor)
    shape = part.whole_shape
    if len(shape) not in (3, 4, 5):
        raise ValueError(
            f"paraminit_ext.delta_orthogonal_: expected a tensor of 3, 4 or 5 dimensions, got shape {shape}. "
            "Pass the weight of a convolution."
        )
    if shape[0] < shape[1]:
        raise ValueError(
            "paraminit_ext.delta_orthogonal_: expected at least as many out channels as in channels, got "
            f"shape {shape}. No such convolution preserves norms; use orthogonal_."
        )
    gain = _finite("delta_orthogonal_", "gain", gain)
    refuse_unfillable("delta_orthogonal_", part.local, REAL_DTYPES)
    return _finish("delta_orthogonal_", "delta_orthogonal_", part, generator, (gain,))


def _write_delta_orthogonal(part: Part, key: FillKey, gain: float) -> None:
    with torch.no_grad():
        part.local.zero_()
    plane = _centre_tap(part)
    if plane is not None:
        _apply("orthogonal_", Part(plane, plane, part.whole_shape[:2], part.start[:2]), key, (gain,))


@_overridable
def variance_scaling_(
    tensor: Tensor | Shard,
    scale: float = 1.0,
    mode: _VarianceMode = "fan_in",
    distribution: _VarianceDistribution = "normal",
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with values whose variance is a multiple of the inverse of a fan.

    .. math::
        \text{Var} = \frac{\text{scale}}{\text{fan\_mode}}

    from :math:`\mathcal{N}(0, \text{Var})`, or :math:`\mathcal{U}[-\sqrt{3 \text{Var}},
    \sqrt{3 \text{Var}})`, or the normal distribution cut at two of its standard deviations, which are
    :math:`\sqrt{\text{Var}} / 0.87962566` so that the variance after the cut is Var. Names and meaning are
    those of `jax.nn.initializers.variance_scaling` and Keras's `VarianceScaling`; the fans are those of a
    torch weight, (out, in, kernel sizes).

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard (fans are the whole's)
        scale: the factor on the variance, positive
        mode: ``'fan_in'``, ``'fan_out'`` or ``'fan_avg'``, the mean of both
        distribution: ``'normal'``, ``'uniform'`` or ``'truncated_normal'``
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: fewer than 2 dimensions, a scale that is not positive and finite, an unknown mode or
            distribution.
        RuntimeError: elements that share memory.
        NotImplementedError: dtype or layout has no fill.

    Source: `Delving deep into rectifiers` - He, K. et al. (2015), equation 10, with the scale of
    `Understanding the difficulty of training deep feedforward neural networks` - Glorot, X. & Bengio, Y.
    (2010), equation 12.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.variance_scaling_(w, 2.0, "fan_avg", "truncated_normal") is w
        True
    """
    return _variance_scaling("variance_scaling_", tensor, scale, mode, distribution, generator)


@_overridable
def lecun_normal_(tensor: Tensor | Shard, generator: torch.Generator | Key | None = None) -> Tensor:
    r"""Fill the input `Tensor` from a truncated normal distribution of variance :math:`1 / \text{fan\_in}`.

    What JAX and Keras call LeCun normal: :func:`variance_scaling_` with ``"truncated_normal"``.

    Args:
        tensor: an n-dimensional real `torch.Tensor`, where :math:`n \geq 2`, or a shard (fans are the
            whole's)
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: fewer than 2 dimensions.
        RuntimeError: elements that share memory.
        NotImplementedError: dtype (a complex one, for example) or layout has no fill.

    Source: `Efficient BackProp` - LeCun, Y. et al. (1998), equation 16; `Self-normalizing neural networks` -
    Klambauer, G. et al. (2017).

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.lecun_normal_(w) is w
        True
    """
    return _variance_scaling("lecun_normal_", tensor, 1.0, "fan_in", "truncated_normal", generator)


@_overridable
def lecun_uniform_(tensor: Tensor | Shard, generator: torch.Generator | Key | None = None) -> Tensor:
    r"""Fill the input `Tensor` from a uniform distribution of variance :math:`1 / \text{fan\_in}`.

    :math:`\mathcal{U}[-\sqrt{3 / \text{fan\_in}}, \sqrt{3 / \text{fan\_in}})`.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard (fans are the whole's)
        generator: a generator to draw from, or the key to fill at (default: None, torch's default generator)

    Raises:
        ValueError: fewer than 2 dimensions.
        RuntimeError: elements that share memory.
        NotImplementedError: dtype or layout has no fill.

    Source: `Efficient BackProp` - LeCun, Y. et al. (1998), equation 16.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.lecun_uniform_(w).abs().max().item() <= (3 / 5) ** 0.5
        True
    """
    return _variance_scaling("lecun_uniform_", tensor, 1.0, "fan_in", "uniform", generator)


# The standard deviation of the standard normal distribution cut at -2 and 2.
_CUT_STD = 0.87962566103423978


def _variance_scaling(
    name: str,
    tensor: Tensor | Shard,
    scale: float,
    mode: str,
    distribution: str,
    generator: torch.Generator | Key | None,
) -> Tensor:
    part = locate(name, tensor)
    fan_in, fan_out = _fans(name, part)
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    if mode not in fans:
        raise ValueError(
            f"paraminit_ext.{name}: expected a mode, got {mode!r}. Use one of {', '.join(fans)}."
        )
    if distribution not in ("normal", "uniform", "truncated_normal"):
        raise ValueError(
            f"paraminit_ext.{name}: expected a distribution, got {distribution!r}. Use 'normal', 'uniform' "
            "or 'truncated_normal'."
        )
    scale = _number(name, "scale", scale)
    if not 0.0 < scale < math.inf:
        raise ValueError(
            f"paraminit_ext.{name}: expected a positive finite scale, got {scale}. It multiplies the "
            "variance."
        )
    if 0 in part.whole_shape:
        _warn("Initializing zero-element tensors is a no-op")
        return part.given
    std = math.sqrt(scale / fans[mode])
    if distribution == "normal":
        return _fill(name, "normal_", part, generator, (0.0, std))
    if distribution == "uniform":
        bound = math.sqrt(3.0) * std
        return _fill(name, "uniform_", part, generator, (-bound, bound))
    std /= _CUT_STD
    return _fill(name, "trunc_normal_", part, generator, (0.0, std, -2.0 * std, 2.0 * std))


# ----------------------------------------------------------------------------------------
# Names without the underscore, for code of long ago
# ----------------------------------------------------------------------------------------


def _make_deprecate(function: Callable[_P, _R]) -> Callable[_P, _R]:
    new_name = function.__name__
    old_name = new_name[:-1]

    def deprecated(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        _warn(
            f"`paraminit_ext.init.{old_name}` is now deprecated in favor of `paraminit_ext.init.{new_name}`.",
            FutureWarning,
        )
        return function(*args, **kwargs)

    deprecated.__name__ = deprecated.__qualname__ = old_name
    deprecated.__doc__ = f"""Warn that this name is deprecated, and call :func:`{new_name}`."""
    return deprecated


uniform = _make_deprecate(uniform_)
normal = _make_deprecate(normal_)
constant = _make_deprecate(constant_)
eye = _make_deprecate(eye_)
dirac = _make_deprecate(dirac_)
xavier_uniform = _make_deprecate(xavier_uniform_)
xavier_normal = _make_deprecate(xavier_normal_)
kaiming_uniform = _make_deprecate(kaiming_uniform_)
kaiming_normal = _make_deprecate(kaiming_normal_)
orthogonal = _make_deprecate(orthogonal_)
sparse = _make_deprecate(sparse_)
