"""The common path of every function that draws, from its arguments to the call of one operator.

The path checks everything, then takes one key, then calls one operator that fills.
"""

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, final

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from paraminit_ext import _C
from paraminit_ext.functional import refuse_transformed
from paraminit_ext.geometry import (
    FLOATING_DTYPES,
    PLAIN_TYPES,
    REAL_DTYPES,
    Part,
    Shard,
    centre_tap,
    computed_in,
    copy_part,
    is_fake,
    mark_written,
    refuse_unfillable,
)
from paraminit_ext.key import FillKey, Key, TracedKey, generator_of, refuse_generator, take_key
from paraminit_ext.ops import DRAW_KEY_LIKE

_R = TypeVar("_R")
_P = ParamSpec("_P")

FillName = Literal["uniform_", "normal_", "trunc_normal_", "sparse_", "orthogonal_", "delta_orthogonal_"]

# The overloads are looked up once. A call of the overload packet would try each overload in turn.
_WITH_INT_KEY = {
    "uniform_": torch.ops.paraminit_ext.uniform_.default,
    "normal_": torch.ops.paraminit_ext.normal_.default,
    "trunc_normal_": torch.ops.paraminit_ext.trunc_normal_.default,
    "sparse_": torch.ops.paraminit_ext.sparse_.default,
    "orthogonal_": torch.ops.paraminit_ext.orthogonal_.default,
}
_WITH_TENSOR_KEY = {
    "uniform_": torch.ops.paraminit_ext.uniform_.key,
    "normal_": torch.ops.paraminit_ext.normal_.key,
    "trunc_normal_": torch.ops.paraminit_ext.trunc_normal_.key,
    "sparse_": torch.ops.paraminit_ext.sparse_.key,
    "orthogonal_": torch.ops.paraminit_ext.orthogonal_.key,
}


# torch's stub types the arguments by the function's signature, which arguments from a dict do not satisfy.
_handle: Callable[..., Any] = handle_torch_function


def overridable(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Honour ``__torch_function__`` of the tensor (the local tensor of a shard) and of active modes.

    The handler receives the decorated function and all arguments by name, as from ``torch.nn.init``. A mode
    that calls the function back therefore calls this package, not ``torch.nn.init``.
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


def as_number(name: str, what: str, value: object) -> float:
    """Convert a parameter (a number, a NumPy scalar or a zero-dimensional tensor) to a Python float."""
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


def as_factor(name: str, what: str, value: object, dtype: torch.dtype) -> float:
    """Convert a factor to a Python float that is finite in the dtype in which values are computed."""
    number = as_number(name, what, value)
    largest = torch.finfo(computed_in(dtype)).max
    if not abs(number) <= largest:
        raise ValueError(
            f"paraminit_ext.{name}: expected a {what} within +-{largest:.6g} for {dtype}, got {number}. Pass "
            "a finite factor."
        )
    return number


# The parameters that an operator has accepted for a dtype. Refused parameters are not cached, so the operator
# checks them again.
_accepted: set[tuple[object, ...]] = set()


def _refuse_parameters(fill: FillName, dtype: torch.dtype, parameters: tuple[float, ...]) -> None:
    """Raise the error that the operator raises for these parameters."""
    request = (fill, dtype, parameters)
    if request not in _accepted:
        _C.check_parameters(fill, parameters, dtype)
        if len(_accepted) >= 4096:
            _accepted.clear()
        _accepted.add(request)


@final
class PendingFill:
    """The fill that a call resolves to, recorded instead of done.

    A function that receives this object as its generator checks its arguments and records the resulting fill
    here. It draws and writes nothing. ``fill`` stays None if the call has nothing to write.
    :func:`paraminit_ext.fill_many` checks its entries in this way.
    """

    __slots__ = ("fill", "parameters", "part")

    part: Part
    parameters: tuple[float, ...]

    def __init__(self) -> None:
        self.fill: FillName | None = None

    def record(self, fill: FillName, part: Part, parameters: tuple[float, ...]) -> None:
        self.fill, self.part, self.parameters = fill, part, parameters


Source: TypeAlias = torch.Generator | Key | PendingFill | None


def _take_key(name: str, part: Part, generator: torch.Generator | Key | None) -> FillKey:
    """Return the key of this fill.

    A fill that needs no draw returns zeros and leaves the generator unchanged, but still validates it.
    """
    plain = torch.compiler.is_compiling() or _C.dispatch_is_plain()
    if not plain:
        refuse_transformed(name, part.local, random=not isinstance(generator, Key | TracedKey))
    if part.draws:
        refuse_unequal_generators(name, part, generator)
        if not plain and generator is None and torch._C._is_tracing():
            drawn: Tensor = DRAW_KEY_LIKE(part.local)
            return drawn
        return take_key(name, generator, part.local.device, plain)
    refuse_generator(name, generator, part.local.device)
    return 0, 0


def take_shared_key(name: str, part: Part, generator: torch.Generator | Key | None) -> Key:
    """Return the key of a fill that takes several calls, which share one draw."""
    if isinstance(generator, Key):
        return generator
    key = _take_key(name, part, generator)
    return Key.from_tensor(key) if isinstance(key, Tensor) else Key(*(word % (1 << 64) for word in key))


def refuse_unequal_generators(
    name: str, part: Part, generator: torch.Generator | Key | TracedKey | None
) -> None:
    """Raise if the ranks of a DTensor's mesh would draw different keys for it.

    Raises:
        RuntimeError: if the states of the generators differ; raised on every rank of the mesh.
    """
    if part.given is part.local or isinstance(generator, Key | TracedKey) or torch.compiler.is_compiling():
        return
    refuse_generator(name, generator, part.local.device)
    source = generator_of(generator, part.local.device)
    if source is not None and not is_fake(part.local):
        from paraminit_ext import mesh

        mesh.refuse_unequal_generators(name, part.given, source)


def _apply(fill: FillName, part: Part, key: FillKey, parameters: tuple[float, ...]) -> None:
    """Fill a part, including a tensor subclass that supports only torch's own operators.

    Such a subclass is filled through a plain tensor and a copy.
    """
    if part.box_views:
        _apply_to_boxes(fill, part, key, parameters)
        return
    if type(part.local) in PLAIN_TYPES or torch.compiler.is_compiling():
        _call_op(fill, part, key, parameters)
        return
    try:
        _call_op(fill, part, key, parameters)
    except (TypeError, NotImplementedError):
        # The fill itself has been checked, so this error comes from __torch_dispatch__.
        if type(part.local).__torch_dispatch__ is Tensor.__torch_dispatch__:
            raise
        with torch.no_grad():
            plain = torch.empty(part.local.shape, dtype=part.local.dtype, device=part.local.device)
            _call_op(fill, part._replace(local=plain), key, parameters)
            part.local.copy_(plain)


def _apply_to_boxes(fill: FillName, part: Part, key: FillKey, parameters: tuple[float, ...]) -> None:
    if fill not in ("orthogonal_", "delta_orthogonal_"):
        for box in part.box_views:
            _apply(fill, box, key, parameters)
        return
    # Any part of an orthogonal matrix needs the whole matrix, so compute it once for all boxes.
    with torch.no_grad():
        whole = torch.empty(part.whole_shape, dtype=part.local.dtype, device=part.local.device)
        _call_op(fill, Part(whole, whole, (), ()), key, parameters)
        copy_part(whole, part)


def _fill_plain(fill: FillName, part: Part, source: Any, parameters: tuple[float, ...]) -> bool:
    """Fill a plain tensor without an operator call, which costs several times as much as a small fill.

    Returns:
        False if this path cannot handle the call. Nothing has then been drawn or written, and the caller must
        use the general path, which also raises the errors.
    """
    return (
        not torch.compiler.is_compiling()
        and type(source) is not PendingFill
        and part.given is part.local
        and not part.box_views
        and fill in _WITH_INT_KEY
        and _C.fill(fill, part.local, parameters, source, part.global_shape, part.shard_offset)
    )


def _call_op(fill: FillName, part: Part, key: FillKey, parameters: tuple[float, ...]) -> None:
    """Fill through the compiled extension directly if it accepts the call, otherwise through an operator."""
    if fill == "delta_orthogonal_":
        _write_delta_orthogonal(part, key, *parameters)
        return
    if not isinstance(key, Tensor) and _C.fill_with_key(
        fill, part.local, parameters, key, part.global_shape, part.shard_offset
    ):
        return
    # Enter no_grad only if it is needed: torch.export cannot save a no_grad region that returns nothing.
    with torch.no_grad() if part.local.requires_grad else nullcontext():
        if isinstance(key, Tensor):
            _WITH_TENSOR_KEY[fill](part.local, *parameters, key, part.global_shape, part.shard_offset)
        else:
            _WITH_INT_KEY[fill](part.local, *parameters, key[0], key[1], part.global_shape, part.shard_offset)


def _write_delta_orthogonal(part: Part, key: FillKey, gain: float) -> None:
    """Write zeros, then an orthogonal matrix at the centre of the kernel.

    This is the only fill that takes more than one operator.
    """
    with torch.no_grad():
        part.local.zero_()
    plane = centre_tap(part)
    if plane is not None:
        _call_op("orthogonal_", Part(plane, plane, part.whole_shape[:2], part.start[:2]), key, (gain,))


def check_and_fill(
    name: str,
    fill: FillName,
    part: Part,
    generator: Source,
    parameters: tuple[float, ...],
) -> Tensor:
    """Check the tensor and the parameters, take one key and fill."""
    if not _fill_plain(fill, part, generator, parameters):
        refuse_fill(name, fill, part.local, parameters)
        _record_or_fill(name, fill, part, generator, parameters)
    return part.given


def fill_checked(
    name: str,
    fill: FillName,
    part: Part,
    generator: Source,
    parameters: tuple[float, ...],
) -> Tensor:
    """Take one key and fill; the caller has checked everything. Only record the fill for a PendingFill."""
    if not _fill_plain(fill, part, generator, parameters):
        _record_or_fill(name, fill, part, generator, parameters)
    return part.given


def _record_or_fill(
    name: str, fill: FillName, part: Part, generator: Source, parameters: tuple[float, ...]
) -> None:
    if type(generator) is PendingFill:
        generator.record(fill, part, parameters)
    else:
        _apply(fill, part, _take_key(name, part, generator), parameters)
        mark_written(part.given, part.local)


def refuse_fill(name: str, fill: FillName, local: Tensor, parameters: tuple[float, ...]) -> None:
    """Raise the error that the operator would raise for this call, before a key is taken."""
    refuse_unfillable(name, local, REAL_DTYPES if fill == "trunc_normal_" else FLOATING_DTYPES)
    # While a graph is traced, the operator itself checks at once. The cache of accepted parameters would add
    # guards to the graph.
    if not torch.compiler.is_compiling():
        _refuse_parameters(fill, local.dtype, parameters)
