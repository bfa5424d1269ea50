"""Which calls of torch are fills of this package, and what each comes down to.

A call is read into a :class:`Fill`, or left to torch. Where the line is: the fills of ``torch.nn.init`` and
``Tensor.normal_`` and ``uniform_`` are ours for floating-point tensors of known classes; a method that runs
in a module's forward is not, and a factory (``torch.randn``) is ours only where a module is being built.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from paraminit_ext import init
from paraminit_ext.geometry import FLOATING_DTYPES, PLAIN_TYPES, REAL_DTYPES, Shard, loaded, locate
from paraminit_ext.key import Key
from paraminit_ext.many import DRAWING, NAMES
from paraminit_ext.models import seen, views

Source: TypeAlias = torch.Generator | Key | None


class Fill(NamedTuple):
    """One call of a function of :mod:`paraminit_ext.init`."""

    name: str
    tensor: Tensor | Shard
    arguments: Mapping[str, Any]
    generator: Source = None
    # What remains to be done with the filled tensor, where the call is more than a fill.
    then: Callable[[Tensor], Tensor] | None = None

    @property
    def draws(self) -> bool:
        """Whether the call takes a key, as a constant does not, nor a tensor of no elements or, unless it is
        recorded, on meta.
        """
        if self.name not in DRAWING:
            return False
        part = locate(self.name, self.tensor)
        return part.draws or (part.local.is_meta and 0 not in part.whole_shape and is_recording())

    def run(self, source: Source) -> Tensor:
        """Make the call, with numbers from ``source``."""
        function: Callable[..., Tensor] = getattr(init, self.name)
        given = self.tensor.local if type(self.tensor) is Shard else self.tensor
        view = views.view_of(given)
        if view is not None and _is_seen_again():
            view = None
        if view is not None:
            assert isinstance(given, Tensor)
            source = view.fill(given, self.name, self.arguments, source)
        arguments = {**self.arguments, "generator": source} if self.name in DRAWING else self.arguments
        filled = function(self.tensor, **arguments)
        if view is None and isinstance(given, Tensor):
            seen.fill(self.name, self.arguments, self.tensor.shape, given)
        return filled if self.then is None else self.then(filled)


def is_recording() -> bool:
    """Whether the code that runs is recorded."""
    return any(getattr(mode, "records", False) for mode in _get_current_function_mode_stack())


def _is_seen_again() -> bool:
    """Whether a mode further out will see what the code that runs calls."""
    return any(isinstance(mode, FillMode) for mode in _get_current_function_mode_stack())


Reader: TypeAlias = Callable[[tuple[Any, ...], Mapping[str, Any]], Fill | None]


# ----------------------------------------------------------------------------------------
# Where the line is
# ----------------------------------------------------------------------------------------


def is_filled(tensor: object, real: bool = False) -> bool:
    """Whether a fill of this tensor is ours: dense, floating-point, of a class that this package knows."""
    if not isinstance(tensor, Tensor) or not (type(tensor) in PLAIN_TYPES or _is_known(tensor)):
        return False
    dtypes = REAL_DTYPES if real else FLOATING_DTYPES
    return tensor.dtype in dtypes and tensor.layout is torch.strided and not tensor.is_nested


def _is_known(tensor: object) -> bool:
    """Whether the tensor is of torch's own classes of which a fill knows how to write each element."""
    dtensor = loaded("torch.distributed.tensor", "DTensor")
    fake = loaded("torch._subclasses.fake_tensor", "FakeTensor")
    return type(tensor) in (dtensor, fake)


# The frame in which a module is called, whatever its forward is named.
_CALL = nn.Module._call_impl.__code__
# What methods that give a module its parameters are called, without leading underscores.
_BUILDING = ("init", "reset_param", "build", "setup", "configure_model", "apply", "smart_apply", "post_init")


def is_building() -> bool | None:
    """Whether a module is being built or initialised by the code that runs, None where no module is at work.

    It is by a method of a module with such a name, unless a forward called that.
    """
    frame: FrameType | None = sys._getframe(1)
    building = False
    while frame is not None:
        code = frame.f_code
        if code is _CALL:
            # A lazy module initialises itself before its forward, which is in no frame then.
            return building
        name = code.co_name.lstrip("_")
        if code.co_argcount and (name == "forward" or (not building and name.startswith(_BUILDING))):
            own = frame.f_locals.get(code.co_varnames[0])
            if isinstance(own, nn.Module):
                if name == "forward":
                    return False
                if code.co_name == "__init__":
                    return True
                building = True
        frame = frame.f_back
    return building or None


# ----------------------------------------------------------------------------------------
# One reader a function
# ----------------------------------------------------------------------------------------


def by_name(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _reader_of_ours(name: str) -> Reader:
    """Of a function of :mod:`paraminit_ext.init`, which may be handed what it likes."""
    names = tuple(inspect.signature(getattr(init, name)).parameters)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        given = by_name(names, args, kwargs)
        tensor = given.pop("tensor", None)
        return Fill(name, tensor, given, given.pop("generator", None)) if tensor is not None else None

    return read


def reader_of_stock(name: str, names: tuple[str, ...]) -> Reader:
    """Of a function of ``torch.nn.init`` that is ``name`` here, with the parameters ``names``."""
    real = name in ("trunc_normal_", "orthogonal_")

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        given = by_name(names, args, kwargs)
        tensor = given.pop("tensor", None)
        if not is_filled(tensor, real):
            return None
        return Fill(name, tensor, given, given.pop("generator", None))

    return read


def _reader_of_method(name: str, first: str, second: str, ours: tuple[str, str]) -> Reader:
    """Of ``Tensor.normal_`` or ``uniform_``, whose two numbers are called otherwise here."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        given = by_name(("self", first, second), args, kwargs)
        tensor = given.pop("self", None)
        if len(args) > 3 or not is_filled(tensor):
            return None
        # torch refuses it for a leaf and differentiates it for others: neither is an initialisation.
        if tensor.requires_grad and torch.is_grad_enabled():
            return None
        if is_building() is False:
            return None
        generator = given.pop("generator", None)
        renamed = {ours[(first, second).index(key)]: value for key, value in given.items()}
        return Fill(name, tensor, renamed, generator)

    return read


def _reader_of_factory(name: str, arguments: Mapping[str, float], like: bool) -> Reader:
    """Of ``torch.randn`` and its kin: an empty tensor made by torch, and the fill of it."""
    make: Callable[..., Tensor] = torch.empty_like if like else torch.empty

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        if kwargs.get("out") is not None or kwargs.get("names") is not None or not is_building():
            return None
        if like and not is_filled(args[0] if args else kwargs.get("input")):
            return None
        given = dict(kwargs)
        generator, requires_grad = given.pop("generator", None), given.pop("requires_grad", False)
        tensor = make(*args, **given)
        if not is_filled(tensor):
            return None
        seen.allocated(tensor)
        return Fill(name, tensor.requires_grad_() if requires_grad else tensor, arguments, generator)

    return read


_read_randn = _reader_of_factory("normal_", {}, like=False)


def _read_torch_normal(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
    """Of ``torch.normal``: numbers and a size, or tensors of means and deviations."""
    given = by_name(("mean", "std", "size"), args, kwargs)
    mean, std, size = given.pop("mean", 0.0), given.pop("std", 1.0), given.pop("size", None)
    tensors = [number for number in (mean, std) if isinstance(number, Tensor)]
    if not tensors:
        fill = _read_randn((size,), given) if size is not None else None
        return fill and fill._replace(arguments={"mean": mean, "std": std})
    if size is not None or not all(map(is_filled, tensors)):
        return None
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    fill = _read_randn((shape,), {**given, "dtype": tensors[0].dtype, "device": tensors[0].device})
    return fill and fill._replace(then=lambda noise: noise.mul_(std).add_(mean))


_STOCK = (
    "constant_",
    "dirac_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
)
# The private helpers that code of others imports.
_HELPERS = {
    "_no_grad_fill_": "constant_",
    "_no_grad_normal_": "normal_",
    "_no_grad_trunc_normal_": "trunc_normal_",
    "_no_grad_uniform_": "uniform_",
    "_no_grad_zero_": "zeros_",
}
# The functions of torch.nn.init and their kin, as they were defined: transformers binds others to their names
# for a while, and keeps the first ones in a table of its own.
STOCK: set[Callable[..., Any]] = set()
READERS: dict[Callable[..., Any], Reader] = {}


def add_stock(function: Callable[..., Any], name: str, reader: Reader | None = None) -> None:
    """Have a Python function that fills ``tensor`` read as the fill ``name``."""
    STOCK.add(function)
    READERS[function] = reader or reader_of_stock(name, tuple(inspect.signature(function).parameters))


def _fill_readers() -> None:
    captured = getattr(sys.modules.get("transformers.initialization"), "TORCH_INIT_FUNCTIONS", {})
    for name in _STOCK:
        add_stock(captured.get(name) or getattr(nn.init, name), name)
    for helper, name in _HELPERS.items():
        if hasattr(nn.init, helper):
            add_stock(getattr(nn.init, helper), name)
    READERS.update({getattr(init, name): _reader_of_ours(name) for name in NAMES})
    READERS[Tensor.normal_] = _reader_of_method("normal_", "mean", "std", ("mean", "std"))
    READERS[Tensor.uniform_] = _reader_of_method("uniform_", "from", "to", ("a", "b"))
    READERS[torch.randn] = _reader_of_factory("normal_", {}, like=False)
    READERS[torch.rand] = _reader_of_factory("uniform_", {}, like=False)
    READERS[torch.randn_like] = _reader_of_factory("normal_", {}, like=True)
    READERS[torch.rand_like] = _reader_of_factory("uniform_", {}, like=True)
    READERS[torch.normal] = _read_torch_normal


_fill_readers()

# What makes a tensor of its own: none of a module's, until the module takes it.
FACTORIES: frozenset[Callable[..., Any]] = frozenset(
    {torch.randn, torch.rand, torch.randn_like, torch.rand_like, torch.normal}
)


FillFunction: TypeAlias = Callable[[Fill, Callable[[], Any]], Any]


class FillMode(TorchFunctionMode):
    """A mode that sees the fills of the thread that entered it, and passes on everything else.

    Args:
        fill: does what a call was read as, or makes the call, which it is given too
        source: where a fill's numbers come from, for the recorder that is entered inside
        factories: whether ``torch.randn`` and its kin are read as fills
    """

    records = False

    def __init__(
        self, fill: FillFunction, source: Callable[[Fill], Source] | None = None, factories: bool = True
    ) -> None:
        super().__init__()
        self._fill = fill
        self._factories = factories
        self.source = source

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        reader = READERS.get(func)
        if reader is not None and (self._factories or func not in FACTORIES):
            fill = reader(args, kwargs or {})
            if fill is not None:
                return self._fill(fill, functools.partial(func, *args, **(kwargs or {})))
        made = func(*args, **kwargs) if kwargs else func(*args)
        if not self.records:
            watcher = seen.WATCHED.get(func)
            if watcher is not None:
                watcher(made, args)
            views.note(func, args, kwargs or {}, made)
        return made
