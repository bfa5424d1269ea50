"""Drop-in replacements for the functions of ``torch.nn.init``, under the same names.

Each function checks its arguments, turns them into plain numbers (a bound, a standard deviation, a count) and
passes them with one key to one operator. Nothing is drawn or written before every argument has been checked.
"""

import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from paraminit_ext.dispatch import (
    as_factor,
    as_number,
    check_and_fill,
    fill_checked,
    overridable,
    refuse_fill,
)
from paraminit_ext.extra_init import delta_orthogonal_, lecun_normal_, lecun_uniform_, variance_scaling_
from paraminit_ext.fans import (
    FanMode,
    NonlinearityType,
    calculate_gain,
    fan_of,
    fans_of,
    kaiming_std,
    normal_std,
    uniform_bound,
    xavier_std,
)
from paraminit_ext.geometry import (
    REAL_DTYPES,
    Part,
    Shard,
    centre_tap,
    locate,
    mark_written,
    refuse_unbacked,
    refuse_unfillable,
)
from paraminit_ext.key import Key
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


# ----------------------------------------------------------------------------------------
# Distributions
# ----------------------------------------------------------------------------------------


@overridable
def uniform_(
    tensor: Tensor | Shard,
    a: float = 0.0,
    b: float = 1.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input Tensor with values drawn from the uniform distribution.

    The distribution is :math:`\mathcal{U}[a, b)`. The value ``b`` never occurs if the dtype has a value in
    :math:`[a, b)`. Otherwise all elements are ``a``, rounded to the dtype.

    Args:
        tensor: an n-dimensional `torch.Tensor`, or a :func:`~paraminit_ext.shard` of one. For a complex
            tensor the real and imaginary parts are drawn separately.
        a: the lower bound of the uniform distribution
        b: the upper bound of the uniform distribution
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        RuntimeError: if ``b < a``, a bound or ``b - a`` is outside the dtype's range, or elements of the
            tensor share memory.
        NotImplementedError: if the dtype or the layout is not supported.

    Source: `Parallel random numbers: as easy as 1, 2, 3` - Salmon, J. et al. (2011).

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.uniform_(w, -0.5, 0.5).abs().max().item() <= 0.5
        True
    """
    bounds = (as_number("uniform_", "a", a), as_number("uniform_", "b", b))
    return check_and_fill("uniform_", "uniform_", locate("uniform_", tensor), generator, bounds)


@overridable
def normal_(
    tensor: Tensor | Shard,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input Tensor with values drawn from the normal distribution.

    The distribution is :math:`\mathcal{N}(\text{mean}, \text{std}^2)`.

    Args:
        tensor: an n-dimensional `torch.Tensor`, or a :func:`~paraminit_ext.shard` of one. For a complex
            tensor the real and imaginary parts each have variance ``std**2 / 2``.
        mean: the mean of the normal distribution
        std: the standard deviation of the normal distribution
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        RuntimeError: if ``std < 0``, ``mean`` or ``std`` is not finite, or elements of the tensor share
            memory.
        NotImplementedError: if the dtype or the layout is not supported.

    Source: `A note on the generation of random normal deviates` - Box, G. & Muller, M. (1958).

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.normal_(w, std=0.02) is w
        True
    """
    moments = (as_number("normal_", "mean", mean), as_number("normal_", "std", std))
    return check_and_fill("normal_", "normal_", locate("normal_", tensor), generator, moments)


@overridable
def trunc_normal_(
    tensor: Tensor | Shard,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input Tensor with values drawn from a truncated normal distribution.

    The distribution is :math:`\mathcal{N}(\text{mean}, \text{std}^2)` conditioned on :math:`[a, b]`. The
    bounds are absolute values, not multiples of ``std``, and either bound may be infinite. The inverse CDF
    turns one random word into one value. If neither bound is within reach of :func:`normal_`, the values are
    those of :func:`normal_`. Nothing is redrawn, however narrow the interval is or however far it lies from
    the mean.

    Args:
        tensor: an n-dimensional real `torch.Tensor`, or a :func:`~paraminit_ext.shard` of one
        mean: the mean of the normal distribution before truncation
        std: the standard deviation of the normal distribution before truncation
        a: the minimum cutoff value
        b: the maximum cutoff value
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if ``a > b``, ``std <= 0``, ``mean`` or ``std`` is not finite, or the interval is more
            than 37 standard deviations from the mean.
        RuntimeError: if elements of the tensor share memory.
        NotImplementedError: if the dtype (for example a complex one) or the layout is not supported.

    Source: `Non-uniform random variate generation` - Devroye, L. (1986), section II.2 (inversion).

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04).abs().max().item() <= 0.04
        True
    """
    part = locate("trunc_normal_", tensor)
    mean, std = as_number("trunc_normal_", "mean", mean), as_number("trunc_normal_", "std", std)
    a, b = as_number("trunc_normal_", "a", a), as_number("trunc_normal_", "b", b)
    if not _in_a_tail(mean, std, a, b) or part.local.is_meta:
        return check_and_fill("trunc_normal_", "trunc_normal_", part, generator, (mean, std, a, b))
    refuse_fill("trunc_normal_", "trunc_normal_", part.local, (mean, std, a, b))
    _warn(
        "mean is more than 2 std from [a, b] in paraminit_ext.trunc_normal_: the values are correct, "
        "but they lie in a tail of the normal distribution, close to the nearer bound."
    )
    return fill_checked("trunc_normal_", "trunc_normal_", part, generator, (mean, std, a, b))


def _in_a_tail(mean: float, std: float, a: float, b: float) -> bool:
    """Return whether stock would warn, because its own method is slow and imprecise for these parameters."""
    return mean < a - 2 * std or mean > b + 2 * std


# ----------------------------------------------------------------------------------------
# Constants (these functions draw nothing)
# ----------------------------------------------------------------------------------------


def _write_constant(name: str, tensor: Tensor | Shard, value: float) -> Tensor:
    part = locate(name, tensor)
    refuse_unbacked(name, part.local)
    with torch.no_grad():
        part.local.fill_(value)
    mark_written(part.given, part.local)
    return part.given


@overridable
def constant_(tensor: Tensor | Shard, val: float) -> Tensor:
    r"""Fill the input Tensor with the value :math:`\text{val}`.

    Args:
        tensor: an n-dimensional `torch.Tensor` of any dtype, or a shard of one
        val: the value to fill the tensor with

    Raises:
        RuntimeError: if the dtype cannot hold ``val``, as for `torch.Tensor.fill_`.

    Source: `torch.Tensor.fill_`.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> init.constant_(torch.empty(2), 0.5)
        tensor([0.5000, 0.5000])
    """
    return _write_constant("constant_", tensor, val)


@overridable
def ones_(tensor: Tensor | Shard) -> Tensor:
    r"""Fill the input Tensor with the scalar value `1`.

    Args:
        tensor: an n-dimensional `torch.Tensor` of any dtype, or a shard of one

    Raises:
        TypeError: if ``tensor`` is not a tensor.

    Source: `torch.Tensor.fill_`.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> init.ones_(torch.empty(2))
        tensor([1., 1.])
    """
    return _write_constant("ones_", tensor, 1.0)


@overridable
def zeros_(tensor: Tensor | Shard) -> Tensor:
    r"""Fill the input Tensor with the scalar value `0`.

    Args:
        tensor: an n-dimensional `torch.Tensor` of any dtype, or a shard of one

    Raises:
        TypeError: if ``tensor`` is not a tensor.

    Source: `torch.Tensor.zero_`.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> init.zeros_(torch.empty(2))
        tensor([0., 0.])
    """
    part = locate("zeros_", tensor)
    refuse_unbacked("zeros_", part.local)
    with torch.no_grad():
        part.local.zero_()
    mark_written(part.given, part.local)
    return part.given


@overridable
def eye_(tensor: Tensor | Shard) -> Tensor:
    r"""Fill the 2-dimensional input `Tensor` with the identity matrix.

    Element :math:`w_{ij}` is 1 if :math:`i = j` and 0 otherwise. A `Linear` layer with this weight preserves
    as many of its inputs as possible.

    Args:
        tensor: a 2-dimensional `torch.Tensor` of any dtype, or a shard of one

    Raises:
        ValueError: if the tensor does not have 2 dimensions.
        RuntimeError: if elements of the tensor share memory.

    Source: `torch.eye`.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> init.eye_(torch.empty(2, 3))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    part = _check_eye(tensor)
    with torch.no_grad():
        for box in part.boxes:
            # Element (i, j) of the box is element (i + row, j + column) of the global tensor.
            row, column = box.start
            box.local.zero_().diagonal(row - column).fill_(1)
    mark_written(part.given, part.local)
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


@overridable
def dirac_(tensor: Tensor | Shard, groups: int = 1) -> Tensor:
    r"""Fill the {3, 4, 5}-dimensional input `Tensor` with the Dirac delta function.

    In each group of output channels, channel :math:`d` is 1 at input channel :math:`d` and the centre of the
    kernel, and 0 elsewhere. A `Convolutional` layer with this weight preserves as many of its input channels
    as possible.

    Args:
        tensor: a {3, 4, 5}-dimensional `torch.Tensor` (out channels, in channels / groups, kernel sizes) of
            any dtype, or a shard of one
        groups: number of groups in the conv layer; each group preserves identity (default: 1)

    Raises:
        ValueError: if the tensor does not have 3, 4 or 5 dimensions, ``groups < 1``, or ``groups`` does not
            divide the number of out channels.
        TypeError: if ``groups`` is not an int.
        RuntimeError: if elements of the tensor share memory.

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
            for box in part.boxes:
                _write_dirac(box, groups)
    mark_written(part.given, part.local)
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


def _write_dirac(part: Part, groups: int) -> None:
    plane = centre_tap(part)
    if plane is None or plane.numel() == 0:
        return
    shape, start, held = part.whole_shape, part.start, plane.shape
    outputs = torch.arange(held[0], device=plane.device)
    inputs = (outputs + start[0]) % (shape[0] // groups) - start[1]
    # A comparison and a copy work in every dtype, and give no size that depends on values, which tracers do
    # not support.
    is_one = inputs[:, None] == torch.arange(held[1], device=plane.device)
    plane.copy_(is_one.to(plane.dtype))


# ----------------------------------------------------------------------------------------
# Fans
# ----------------------------------------------------------------------------------------


def _calculate_fan_in_and_fan_out(tensor: Tensor | Shard) -> tuple[int, int]:
    """Return fan in and fan out of the weight ``tensor``. For a shard, return those of the global tensor."""
    return fans_of("_calculate_fan_in_and_fan_out", locate("_calculate_fan_in_and_fan_out", tensor))


def _calculate_correct_fan(tensor: Tensor | Shard, mode: FanMode) -> int:
    """Return the fan that ``mode`` names."""
    return fan_of("_calculate_correct_fan", locate("_calculate_correct_fan", tensor), mode)


@overridable
def xavier_uniform_(
    tensor: Tensor | Shard,
    gain: float = 1.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with values using a Xavier uniform distribution.

    The values are drawn from :math:`\mathcal{U}[-a, a)` where

    .. math::
        a = \text{gain} \times \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}

    Also known as Glorot initialisation.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard of one (fans are computed
            from the global shape)
        gain: an optional scaling factor
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if the tensor has fewer than 2 dimensions.
        ZeroDivisionError: if both fans are 0.
        RuntimeError: if ``gain`` is negative or not finite, or elements of the tensor share memory.
        NotImplementedError: if the dtype or the layout is not supported.

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
    std = xavier_std("xavier_uniform_", part, gain)
    bound = uniform_bound("xavier_uniform_", part, math.sqrt(3.0) * std, "gain", gain)
    return check_and_fill("xavier_uniform_", "uniform_", part, generator, (-bound, bound))


@overridable
def xavier_normal_(
    tensor: Tensor | Shard,
    gain: float = 1.0,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with values using a Xavier normal distribution.

    The values are drawn from :math:`\mathcal{N}(0, \text{std}^2)` where

    .. math::
        \text{std} = \text{gain} \times \sqrt{\frac{2}{\text{fan\_in} + \text{fan\_out}}}

    Also known as Glorot initialisation.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard of one (fans are computed
            from the global shape)
        gain: an optional scaling factor
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if the tensor has fewer than 2 dimensions.
        ZeroDivisionError: if both fans are 0.
        RuntimeError: if ``gain`` is negative or not finite, or elements of the tensor share memory.
        NotImplementedError: if the dtype or the layout is not supported.

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
    std = normal_std("xavier_normal_", part, xavier_std("xavier_normal_", part, gain), "gain", gain)
    return check_and_fill("xavier_normal_", "normal_", part, generator, (0.0, std))


@overridable
def kaiming_uniform_(
    tensor: Tensor | Shard,
    a: float = 0,
    mode: FanMode = "fan_in",
    nonlinearity: NonlinearityType = "leaky_relu",
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with values using a Kaiming uniform distribution.

    The values are drawn from :math:`\mathcal{U}[-\text{bound}, \text{bound})` where

    .. math::
        \text{bound} = \text{gain} \times \sqrt{\frac{3}{\text{fan\_mode}}}

    Also known as He initialisation.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard of one (fans are computed
            from the global shape)
        a: the negative slope of the rectifier after this layer (only used with ``'leaky_relu'``)
        mode: either ``'fan_in'`` or ``'fan_out'``. ``'fan_in'`` preserves the variance of the activations in
            the forward pass. ``'fan_out'`` preserves the variance of the gradients in the backward pass.
        nonlinearity: the name of the nonlinear function after this layer, preferably ``'relu'`` or
            ``'leaky_relu'``
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if the tensor has fewer than 2 dimensions, ``mode`` or ``nonlinearity`` is unknown, or the
            slope ``a`` is not finite.
        OverflowError: if the square of ``a`` overflows.
        RuntimeError: if elements of the tensor share memory.
        NotImplementedError: if the dtype or the layout is not supported.

    Source: `Delving deep into rectifiers: Surpassing human-level performance on ImageNet classification` -
    He, K. et al. (2015), equations 10 and 14.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.kaiming_uniform_(w, mode="fan_in", nonlinearity="relu") is w
        True

    Note:
        The fans are computed for a weight of shape (fan_out, fan_in) that is used as ``x @ w.T``. If the
        weight is used as ``x @ w``, pass ``w.T``. The strides of the tensor do not affect the values.
    """
    part = locate("kaiming_uniform_", tensor)
    if 0 in part.whole_shape:
        _warn("Initializing zero-element tensors is a no-op")
        return part.given
    bound = math.sqrt(3.0) * kaiming_std("kaiming_uniform_", part, a, mode, nonlinearity)
    return check_and_fill("kaiming_uniform_", "uniform_", part, generator, (-bound, bound))


@overridable
def kaiming_normal_(
    tensor: Tensor | Shard,
    a: float = 0,
    mode: FanMode = "fan_in",
    nonlinearity: NonlinearityType = "leaky_relu",
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with values using a Kaiming normal distribution.

    The values are drawn from :math:`\mathcal{N}(0, \text{std}^2)` where

    .. math::
        \text{std} = \frac{\text{gain}}{\sqrt{\text{fan\_mode}}}

    Also known as He initialisation.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard of one (fans are computed
            from the global shape)
        a: the negative slope of the rectifier after this layer (only used with ``'leaky_relu'``)
        mode: either ``'fan_in'`` or ``'fan_out'``. ``'fan_in'`` preserves the variance of the activations in
            the forward pass. ``'fan_out'`` preserves the variance of the gradients in the backward pass.
        nonlinearity: the name of the nonlinear function after this layer, preferably ``'relu'`` or
            ``'leaky_relu'``
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if the tensor has fewer than 2 dimensions, ``mode`` or ``nonlinearity`` is unknown, or the
            slope ``a`` is not finite.
        OverflowError: if the square of ``a`` overflows.
        RuntimeError: if elements of the tensor share memory.
        NotImplementedError: if the dtype or the layout is not supported.

    Source: `Delving deep into rectifiers: Surpassing human-level performance on ImageNet classification` -
    He, K. et al. (2015), equations 10 and 14.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu") is w
        True

    Note:
        The fans are computed for a weight of shape (fan_out, fan_in) that is used as ``x @ w.T``. If the
        weight is used as ``x @ w``, pass ``w.T``. The strides of the tensor do not affect the values.
    """
    part = locate("kaiming_normal_", tensor)
    if 0 in part.whole_shape:
        _warn("Initializing zero-element tensors is a no-op")
        return part.given
    std = kaiming_std("kaiming_normal_", part, a, mode, nonlinearity)
    return check_and_fill("kaiming_normal_", "normal_", part, generator, (0.0, std))


# ----------------------------------------------------------------------------------------
# Matrices
# ----------------------------------------------------------------------------------------


@overridable
def orthogonal_(
    tensor: Tensor | Shard,
    gain: float = 1,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the input `Tensor` with a (semi) orthogonal matrix, drawn from the Haar (uniform) distribution.

    The matrix is the first :math:`m` columns of

    .. math::
        Q = H_0 H_1 \cdots H_{m-1} D, \qquad H_k = I - \frac{2 v_k v_k^T}{v_k^T v_k}

    where :math:`D` is a diagonal matrix of signs. Each column of a Gaussian matrix gives one random reflector
    :math:`H_k`, so that no factorisation is needed.
    Trailing dimensions of the tensor are flattened. If the matrix has fewer rows than columns, its rows are
    orthonormal.

    Args:
        tensor: an n-dimensional real `torch.Tensor`, where :math:`n \geq 2`, with any strides, or a shard of
            one (the global matrix is then computed and the shard copied from it)
        gain: optional scaling factor
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if the tensor has fewer than 2 dimensions, or ``gain`` is not finite.
        RuntimeError: if elements of the tensor share memory.
        NotImplementedError: if the dtype (for example a complex one) or the layout is not supported.

    Source: `The efficient generation of random orthogonal matrices` - Stewart, G. (1980); for the use as an
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
    gain = as_factor("orthogonal_", "gain", gain, part.local.dtype)
    refuse_unfillable("orthogonal_", part.local, REAL_DTYPES)
    return fill_checked("orthogonal_", "orthogonal_", part, generator, (gain,))


@overridable
def sparse_(
    tensor: Tensor | Shard,
    sparsity: float,
    std: float = 0.01,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the 2D input `Tensor` as a sparse matrix with the same number of zeros in each column.

    In each column exactly :math:`\lceil \text{sparsity} \times \text{rows} \rceil` elements are set to zero.
    The other elements are drawn from :math:`\mathcal{N}(0, \text{std}^2)`.

    Args:
        tensor: a 2-dimensional `torch.Tensor`, real or complex, or a shard of one
        sparsity: the fraction of elements in each column to be set to zero, in [0, 1]
        std: the standard deviation of the normal distribution for the other elements
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if the tensor does not have 2 dimensions, or ``sparsity`` is outside [0, 1].
        RuntimeError: if ``std`` is negative or not finite, or elements of the tensor share memory.
        NotImplementedError: if the dtype or the layout is not supported, or the matrix has 2**32 or more
            rows.

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
    sparsity, std = as_number("sparse_", "sparsity", sparsity), as_number("sparse_", "std", std)
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(
            f"paraminit_ext.sparse_: expected a sparsity in [0, 1], got {sparsity}. Pass the fraction of "
            "zeros."
        )
    rows = part.whole_shape[0]
    if rows >= 1 << 32:
        raise NotImplementedError(
            f"paraminit_ext.sparse_: expected fewer than 2**32 rows, got {rows}. Split the rows over "
            "several matrices."
        )
    # The number of zeros needs no check, and may be symbolic.
    refuse_fill("sparse_", "sparse_", part.local, (std, 0))
    return fill_checked("sparse_", "sparse_", part, generator, (std, math.ceil(sparsity * rows)))


# ----------------------------------------------------------------------------------------
# Deprecated names without the underscore
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
    deprecated.__doc__ = f"""Warn that this name is deprecated and call :func:`{new_name}`."""
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
