"""From the arguments of a function to one call of an op: what every function that draws comes down to.

Everything is checked, then one key is taken, then one op fills.
"""

import functools
import inspect
import math
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

# The overloads, looked up once: a packet's call would try each of them in turn.
_EAGER = {
    "uniform_": torch.ops.paraminit_ext.uniform_.default,
    "normal_": torch.ops.paraminit_ext.normal_.default,
    "trunc_normal_": torch.ops.paraminit_ext.trunc_normal_.default,
    "sparse_": torch.ops.paraminit_ext.sparse_.default,
    "orthogonal_": torch.ops.paraminit_ext.orthogonal_.default,
}
_KEYED = {
    "uniform_": torch.ops.paraminit_ext.uniform_.key,
    "normal_": torch.ops.paraminit_ext.normal_.key,
    "trunc_normal_": torch.ops.paraminit_ext.trunc_normal_.key,
    "sparse_": torch.ops.paraminit_ext.sparse_.key,
    "orthogonal_": torch.ops.paraminit_ext.orthogonal_.key,
}


# Its stub binds the handler's arguments to the function's own, which named ones from a dict cannot show.
_handle: Callable[..., Any] = handle_torch_function


def overridable(function: Callable[_P, _R]) -> Callable[_P, _R]:
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


def as_number(name: str, what: str, value: object) -> float:
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


def as_finite(name: str, what: str, value: object) -> float:
    """The same, where infinities and NaN mean nothing."""
    number = as_number(name, what, value)
    if not math.isfinite(number):
        raise ValueError(
            f"paraminit_ext.{name}: expected a finite {what}, got {number}. Pass a finite factor."
        )
    return number


# Parameters that an op has accepted for a dtype. Only what it accepts is remembered, so what it refuses is
# asked anew.
_accepted: set[tuple[object, ...]] = set()


def _refuse_parameters(fill: FillName, dtype: torch.dtype, parameters: tuple[float, ...]) -> None:
    """Raise what the op raises for these parameters."""
    asked = (fill, dtype, parameters)
    if asked not in _accepted:
        _C.check_parameters(fill, parameters, dtype)
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
        self.fill: FillName | None = None

    def hold(self, fill: FillName, part: Part, parameters: tuple[float, ...]) -> None:
        self.fill, self.part, self.parameters = fill, part, parameters


Source: TypeAlias = torch.Generator | Key | Held | None


def _take(name: str, part: Part, generator: torch.Generator | Key | None) -> FillKey:
    """The key of this fill; a fill without elements takes none, but its generator is still looked at."""
    plain = torch.compiler.is_compiling() or _C.calls_are_plain()
    if not plain:
        refuse_transformed(name, part.local, random=not isinstance(generator, Key | TracedKey))
    if part.draws:
        refuse_other_draws(name, part, generator)
        if not plain and generator is None and torch._C._is_tracing():
            drawn: Tensor = DRAW_KEY_LIKE(part.local)
            return drawn
        return take_key(name, generator, part.local.device, plain)
    refuse_generator(name, generator, part.local.device)
    return 0, 0


def key_of_fill(name: str, part: Part, generator: torch.Generator | Key | None) -> Key:
    """The key of a fill that is done in several calls: one draw for all of them."""
    if isinstance(generator, Key):
        return generator
    key = _take(name, part, generator)
    return Key.from_tensor(key) if isinstance(key, Tensor) else Key(*(word % (1 << 64) for word in key))


def refuse_other_draws(name: str, part: Part, generator: torch.Generator | Key | TracedKey | None) -> None:
    """Raise where the ranks of a DTensor's mesh would draw different numbers for it.

    Raises:
        RuntimeError: on every rank of the mesh.
    """
    if part.given is part.local or isinstance(generator, Key | TracedKey) or torch.compiler.is_compiling():
        return
    refuse_generator(name, generator, part.local.device)
    source = generator_of(generator, part.local.device)
    if source is not None and not is_fake(part.local):
        from paraminit_ext import mesh

        mesh.refuse_other_draws(name, part.given, source)


def _apply(fill: FillName, part: Part, key: FillKey, parameters: tuple[float, ...]) -> None:
    """Fill, also a tensor whose class knows no operators but torch's: by way of a plain one."""
    if part.several:
        _apply_to_several(fill, part, key, parameters)
        return
    if type(part.local) in PLAIN_TYPES or torch.compiler.is_compiling():
        _call_op(fill, part, key, parameters)
        return
    try:
        _call_op(fill, part, key, parameters)
    except (TypeError, NotImplementedError):
        # What __torch_dispatch__ raises or makes the dispatcher raise; the fill itself has been checked.
        if type(part.local).__torch_dispatch__ is Tensor.__torch_dispatch__:
            raise
        with torch.no_grad():
            plain = torch.empty(part.local.shape, dtype=part.local.dtype, device=part.local.device)
            _call_op(fill, part._replace(local=plain), key, parameters)
            part.local.copy_(plain)


def _apply_to_several(fill: FillName, part: Part, key: FillKey, parameters: tuple[float, ...]) -> None:
    if fill not in ("orthogonal_", "delta_orthogonal_"):
        for box in part.several:
            _apply(fill, box, key, parameters)
        return
    # An orthogonal matrix is made whole for each part, so once for all.
    with torch.no_grad():
        whole = torch.empty(part.whole_shape, dtype=part.local.dtype, device=part.local.device)
        _call_op(fill, Part(whole, whole, (), ()), key, parameters)
        copy_part(whole, part)


def _fill_plain(fill: FillName, part: Part, source: Any, parameters: tuple[float, ...]) -> bool:
    """Fill a plain tensor without the cost of an operator's call, several times that of a small fill.

    False, with nothing drawn or written, where anything may have to be said about it: then the call goes the
    way on which it is said.
    """
    return (
        not torch.compiler.is_compiling()
        and type(source) is not Held
        and part.given is part.local
        and not part.several
        and fill in _EAGER
        and _C.fill(fill, part.local, parameters, source, part.global_shape, part.shard_offset)
    )


def _call_op(fill: FillName, part: Part, key: FillKey, parameters: tuple[float, ...]) -> None:
    """Fill, by the shortest way that the call has."""
    if fill == "delta_orthogonal_":
        _write_delta_orthogonal(part, key, *parameters)
        return
    if not isinstance(key, Tensor) and _C.fill_at(
        fill, part.local, parameters, key, part.global_shape, part.shard_offset
    ):
        return
    # A region without grad mode that gives nothing back is one that torch.export cannot save.
    with torch.no_grad() if part.local.requires_grad else nullcontext():
        if isinstance(key, Tensor):
            _KEYED[fill](part.local, *parameters, key, part.global_shape, part.shard_offset)
        else:
            _EAGER[fill](part.local, *parameters, key[0], key[1], part.global_shape, part.shard_offset)


def _write_delta_orthogonal(part: Part, key: FillKey, gain: float) -> None:
    """Zeros, then an orthogonal matrix at the centre: the one fill that is not a single op."""
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
    """Check everything, take one key, fill: what each function that draws comes down to."""
    if not _fill_plain(fill, part, generator, parameters):
        refuse_fill(name, fill, part.local, parameters)
        _hold_or_fill(name, fill, part, generator, parameters)
    return part.given


def finish(
    name: str,
    fill: FillName,
    part: Part,
    generator: Source,
    parameters: tuple[float, ...],
) -> Tensor:
    """Take one key and fill, everything having been checked; or leave both for later."""
    if not _fill_plain(fill, part, generator, parameters):
        _hold_or_fill(name, fill, part, generator, parameters)
    return part.given


def _hold_or_fill(
    name: str, fill: FillName, part: Part, generator: Source, parameters: tuple[float, ...]
) -> None:
    if type(generator) is Held:
        generator.hold(fill, part, parameters)
    else:
        _apply(fill, part, _take(name, part, generator), parameters)
        mark_written(part.given, part.local)


def refuse_fill(name: str, fill: FillName, local: Tensor, parameters: tuple[float, ...]) -> None:
    """Raise what the op would raise for this tensor and these parameters, before a key is taken."""
    refuse_unfillable(name, local, REAL_DTYPES if fill == "trunc_normal_" else FLOATING_DTYPES)
    # While a graph is traced the op's own check runs then and there, and memory of past calls would be
    # guarded on.
    if not torch.compiler.is_compiling():
        _refuse_parameters(fill, local.dtype, parameters)
