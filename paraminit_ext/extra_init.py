"""Initialisers that ``torch.nn.init`` does not have but other libraries do, with the same interface."""

import math
from typing import Literal

import torch
from torch import Tensor

from paraminit_ext.dispatch import as_factor, as_number, check_and_fill, fill_checked, overridable
from paraminit_ext.fans import fans_of, normal_std, uniform_bound
from paraminit_ext.geometry import REAL_DTYPES, Shard, locate, refuse_unfillable
from paraminit_ext.key import Key
from paraminit_ext.warn import warn

VarianceMode = Literal["fan_in", "fan_out", "fan_avg"]
VarianceDistribution = Literal["normal", "uniform", "truncated_normal"]


@overridable
def delta_orthogonal_(
    tensor: Tensor | Shard,
    gain: float = 1,
    generator: torch.Generator | Key | None = None,
) -> Tensor:
    r"""Fill the {3, 4, 5}-dimensional input `Tensor` with an orthogonal matrix at the centre of its kernel.

    All other taps of the kernel are zero. A convolution with circular padding then preserves the norm of its
    input, times ``gain``. The centre of a kernel of size :math:`k` is tap :math:`\lfloor k / 2 \rfloor`, as
    in :func:`dirac_`. The matrix is the one that :func:`orthogonal_` writes to a tensor of shape (out
    channels, in channels).

    Args:
        tensor: a {3, 4, 5}-dimensional real `torch.Tensor` (out channels, in channels, kernel sizes) with at
            least as many out channels as in channels, or a shard of one
        gain: optional scaling factor
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if the tensor does not have 3, 4 or 5 dimensions, has fewer out channels than in channels,
            or ``gain`` is not finite.
        RuntimeError: if elements of the tensor share memory.
        NotImplementedError: if the dtype (for example a complex one) or the layout is not supported.

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
    gain = as_factor("delta_orthogonal_", "gain", gain, part.local.dtype)
    refuse_unfillable("delta_orthogonal_", part.local, REAL_DTYPES)
    return fill_checked("delta_orthogonal_", "delta_orthogonal_", part, generator, (gain,))


@overridable
def variance_scaling_(
    tensor: Tensor | Shard,
    scale: float = 1.0,
    mode: VarianceMode = "fan_in",
    distribution: VarianceDistribution = "normal",
    generator: torch.Generator | Key | None = None,
    groups: int = 1,
) -> Tensor:
    r"""Fill the input `Tensor` with values whose variance is scaled by the inverse of a fan.

    The variance of the values is

    .. math::
        \text{Var} = \frac{\text{scale}}{\text{fan\_mode}}

    The values are drawn from one of these distributions:

    - ``'normal'``: :math:`\mathcal{N}(0, \text{Var})`
    - ``'uniform'``: :math:`\mathcal{U}[-\sqrt{3 \text{Var}}, \sqrt{3 \text{Var}})`
    - ``'truncated_normal'``: :math:`\mathcal{N}(0, \sigma^2)` truncated to :math:`[-2 \sigma, 2 \sigma]`,
      with :math:`\sigma = \sqrt{\text{Var}} / 0.87962566` so that the variance after truncation is Var

    For a complex tensor, Var is the mean of :math:`|w|^2`, and the real and imaginary parts have half of it
    each. The names and their meaning are those of `jax.nn.initializers.variance_scaling` and of Keras's
    `VarianceScaling`. The fans are computed for a torch weight of shape (out, in, kernel sizes).

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard of one (fans are computed
            from the global shape)
        scale: the positive factor on the variance
        mode: ``'fan_in'``, ``'fan_out'`` or ``'fan_avg'``, which is the mean of both
        distribution: ``'normal'``, ``'uniform'`` or ``'truncated_normal'``
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)
        groups: the number of groups of the convolution whose weight is ``tensor``. An input feeds only the
            outputs of its own group, so fan_out is divided by ``groups``. A depthwise convolution has as many
            groups as channels.

    Raises:
        ValueError: if the tensor has fewer than 2 dimensions, ``scale`` is not positive and finite, ``mode``
            or ``distribution`` is unknown, or ``groups`` does not divide the number of outputs.
        RuntimeError: if elements of the tensor share memory.
        NotImplementedError: if the dtype or the layout is not supported.

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
    return _variance_scaling("variance_scaling_", tensor, scale, mode, distribution, generator, groups)


@overridable
def lecun_normal_(tensor: Tensor | Shard, generator: torch.Generator | Key | None = None) -> Tensor:
    r"""Fill the input `Tensor` from a truncated normal distribution of variance :math:`1 / \text{fan\_in}`.

    JAX and Keras call this initialiser LeCun normal. It is :func:`variance_scaling_` with ``scale=1``,
    ``mode='fan_in'`` and ``distribution='truncated_normal'``.

    Args:
        tensor: an n-dimensional real `torch.Tensor`, where :math:`n \geq 2`, or a shard of one (fans are
            computed from the global shape)
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if the tensor has fewer than 2 dimensions.
        RuntimeError: if elements of the tensor share memory.
        NotImplementedError: if the dtype (for example a complex one) or the layout is not supported.

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


@overridable
def lecun_uniform_(tensor: Tensor | Shard, generator: torch.Generator | Key | None = None) -> Tensor:
    r"""Fill the input `Tensor` from a uniform distribution of variance :math:`1 / \text{fan\_in}`.

    The values are drawn from :math:`\mathcal{U}[-\sqrt{3 / \text{fan\_in}}, \sqrt{3 / \text{fan\_in}})`.

    Args:
        tensor: an n-dimensional `torch.Tensor`, where :math:`n \geq 2`, or a shard of one (fans are computed
            from the global shape)
        generator: the `torch.Generator` to draw the key from, or the :class:`~paraminit_ext.Key` itself
            (default: None, which draws from torch's default generator)

    Raises:
        ValueError: if the tensor has fewer than 2 dimensions.
        RuntimeError: if elements of the tensor share memory.
        NotImplementedError: if the dtype or the layout is not supported.

    Source: `Efficient BackProp` - LeCun, Y. et al. (1998), equation 16.

    Examples:
        >>> import torch
        >>> from paraminit_ext import init
        >>> w = torch.empty(3, 5)
        >>> init.lecun_uniform_(w).abs().max().item() <= (3 / 5) ** 0.5
        True
    """
    return _variance_scaling("lecun_uniform_", tensor, 1.0, "fan_in", "uniform", generator)


# The standard deviation of the standard normal distribution truncated to [-2, 2].
_CUT_STD = 0.87962566103423978


def _variance_scaling(
    name: str,
    tensor: Tensor | Shard,
    scale: float,
    mode: str,
    distribution: str,
    generator: torch.Generator | Key | None,
    groups: int = 1,
) -> Tensor:
    part = locate(name, tensor)
    fan_in, fan_out = fans_of(name, part, groups)
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
    scale = as_number(name, "scale", scale)
    if not 0.0 < scale < math.inf:
        raise ValueError(
            f"paraminit_ext.{name}: expected a positive finite scale, got {scale}. It multiplies the "
            "variance."
        )
    if 0 in part.whole_shape:
        warn("Initializing zero-element tensors is a no-op")
        return part.given
    std = math.sqrt(scale / fans[mode])
    if distribution == "normal":
        std = normal_std(name, part, std, "scale", scale)
        return check_and_fill(name, "normal_", part, generator, (0.0, std))
    if distribution == "uniform":
        # The real and imaginary parts of a complex number have half of the variance each.
        bound = math.sqrt(1.5 if part.local.is_complex() else 3.0) * std
        bound = uniform_bound(name, part, bound, "scale", scale)
        return check_and_fill(name, "uniform_", part, generator, (-bound, bound))
    std = normal_std(name, part, std / _CUT_STD, "scale", scale, positive=True)
    return check_and_fill(name, "trunc_normal_", part, generator, (0.0, std, -2.0 * std, 2.0 * std))
