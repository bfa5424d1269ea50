"""Decides which calls of torch this package handles, and reads each of them into a :class:`Fill`.

The functions of ``torch.nn.init``, ``Tensor.normal_`` and ``Tensor.uniform_`` are handled for floating-point
tensors of known classes. A method call inside a module's forward is left to torch. A factory such as
``torch.randn`` is handled only while a module is built.
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
from paraminit_ext.geometry import (
    FLOATING_DTYPES,
    REAL_DTYPES,
    Shard,
    class_if_imported,
    is_fake,
    is_plain,
    locate,
)
from paraminit_ext.key import Key
from paraminit_ext.many import DRAWING_FUNCTIONS, FUNCTION_NAMES
from paraminit_ext.models import dtensor_views, storage_log

Source: TypeAlias = torch.Generator | Key | None


class Fill(NamedTuple):
    """One call of a function of :mod:`paraminit_ext.init`."""

    name: str
    tensor: Tensor | Shard
    arguments: Mapping[str, Any]
    generator: Source = None
    # An operation on the filled tensor, if the call is more than a fill.
    then: Callable[[Tensor], Tensor] | None = None

    @property
    def draws(self) -> bool:
        """Whether the call takes a key.

        A constant takes no key. A tensor without elements takes none. A tensor on meta takes one only while
        it is recorded.
        """
        if self.name not in DRAWING_FUNCTIONS:
            return False
        part = locate(self.name, self.tensor)
        return part.draws or (part.local.is_meta and 0 not in part.whole_shape and is_recording())

    def run(self, source: Source) -> Tensor:
        """Run the call with numbers from ``source``."""
        function: Callable[..., Tensor] = getattr(init, self.name)
        target = self.tensor.local if type(self.tensor) is Shard else self.tensor
        view = dtensor_views.view_of(target)
        if view is not None and _has_outer_mode():
            view = None
        if view is not None:
            assert isinstance(target, Tensor)
            source = view.fill(target, self.name, self.arguments, source)
        arguments = (
            {**self.arguments, "generator": source} if self.name in DRAWING_FUNCTIONS else self.arguments
        )
        result = function(self.tensor, **arguments)
        if view is None and isinstance(target, Tensor):
            storage_log.fill(self.name, self.arguments, self.tensor.shape, target)
        return result if self.then is None else self.then(result)


def is_recording() -> bool:
    """Return whether the current code is recorded."""
    return any(getattr(mode, "records", False) for mode in _get_current_function_mode_stack())


def _has_outer_mode() -> bool:
    """Return whether an outer mode will see the calls of the current code."""
    return any(isinstance(mode, FillMode) for mode in _get_current_function_mode_stack())


Reader: TypeAlias = Callable[[tuple[Any, ...], Mapping[str, Any]], Fill | None]


# ----------------------------------------------------------------------------------------
# Which calls are handled
# ----------------------------------------------------------------------------------------


def is_filled(tensor: object, real: bool = False) -> bool:
    """Return whether this package fills the tensor: it is dense, floating-point and of a known class."""
    if not isinstance(tensor, Tensor) or not (is_plain(tensor) or _is_known(tensor)):
        return False
    dtypes = REAL_DTYPES if real else FLOATING_DTYPES
    return tensor.dtype in dtypes and tensor.layout is torch.strided and not tensor.is_nested


def _is_known(tensor: object) -> bool:
    """Return whether the tensor is of a class of torch whose elements a fill can write."""
    dtensor = class_if_imported("torch.distributed.tensor", "DTensor")
    fake = class_if_imported("torch._subclasses.fake_tensor", "FakeTensor")
    return type(tensor) in (dtensor, fake)


# The code of a module call, regardless of the name of the forward function.
_CALL_CODE = nn.Module._call_impl.__code__
# Prefixes of the names of methods that initialise a module, without leading underscores.
_BUILDING_METHODS = (
    "init",
    "reset_param",
    "build",
    "setup",
    "configure_model",
    "apply",
    "smart_apply",
    "post_init",
)


def is_building() -> bool | None:
    """Return True if the current code builds or initialises a module, False in a forward, None otherwise.

    A method whose name has one of these prefixes builds a module, unless a forward called the method.
    """
    frame: FrameType | None = sys._getframe(1)
    building = False
    while frame is not None:
        code = frame.f_code
        if code is _CALL_CODE:
            # A lazy module initialises itself in its call, before forward has a frame.
            return building
        name = code.co_name.lstrip("_")
        if code.co_argcount and (name == "forward" or (not building and name.startswith(_BUILDING_METHODS))):
            owner = frame.f_locals.get(code.co_varnames[0])
            if isinstance(owner, nn.Module):
                if name == "forward":
                    return False
                if code.co_name == "__init__":
                    return True
                building = True
        frame = frame.f_back
    return building or None


# ----------------------------------------------------------------------------------------
# One reader for each function
# ----------------------------------------------------------------------------------------


def bind_arguments(
    names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _reader_of_init(name: str) -> Reader:
    """Return the reader of a function of :mod:`paraminit_ext.init`, which checks its own arguments."""
    names = tuple(inspect.signature(getattr(init, name)).parameters)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        arguments = bind_arguments(names, args, kwargs)
        tensor = arguments.pop("tensor", None)
        return Fill(name, tensor, arguments, arguments.pop("generator", None)) if tensor is not None else None

    return read


def reader_of_stock(name: str, names: tuple[str, ...]) -> Reader:
    """Return the reader of a stock function with parameters ``names`` that corresponds to ``init.<name>``."""
    real = name in ("trunc_normal_", "orthogonal_")

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        arguments = bind_arguments(names, args, kwargs)
        tensor = arguments.pop("tensor", None)
        if not is_filled(tensor, real):
            return None
        return Fill(name, tensor, arguments, arguments.pop("generator", None))

    return read


def _reader_of_method(name: str, first: str, second: str, init_names: tuple[str, str]) -> Reader:
    """Return the reader of ``Tensor.normal_`` or ``uniform_``, whose two parameters have other names here."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        arguments = bind_arguments(("self", first, second), args, kwargs)
        tensor = arguments.pop("self", None)
        if len(args) > 3 or not is_filled(tensor):
            return None
        # torch refuses the call for a leaf and differentiates it otherwise. Neither is an initialisation.
        if tensor.requires_grad and torch.is_grad_enabled():
            return None
        if is_building() is False:
            return None
        generator = arguments.pop("generator", None)
        renamed = {init_names[(first, second).index(key)]: value for key, value in arguments.items()}
        return Fill(name, tensor, renamed, generator)

    return read


def _reader_of_factory(name: str, arguments: Mapping[str, float], like: bool) -> Reader:
    """Return the reader of a factory such as ``torch.randn``. It fills an empty tensor that torch makes."""
    make: Callable[..., Tensor] = torch.empty_like if like else torch.empty

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        if kwargs.get("out") is not None or kwargs.get("names") is not None or not is_building():
            return None
        if like and not is_filled(args[0] if args else kwargs.get("input")):
            return None
        options = dict(kwargs)
        generator, requires_grad = options.pop("generator", None), options.pop("requires_grad", False)
        tensor = make(*args, **options)
        if not is_filled(tensor):
            return None
        storage_log.log_allocation(tensor)
        return Fill(name, tensor.requires_grad_() if requires_grad else tensor, arguments, generator)

    return read


_read_randn = _reader_of_factory("normal_", {}, like=False)


def _read_torch_normal(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
    """Read ``torch.normal``: two numbers and a size, or tensors of means and standard deviations."""
    options = bind_arguments(("mean", "std", "size"), args, kwargs)
    mean, std, size = options.pop("mean", 0.0), options.pop("std", 1.0), options.pop("size", None)
    tensors = [number for number in (mean, std) if isinstance(number, Tensor)]
    # Outside of building, the call is torch's anyway, and its values must not be read.
    if not is_building() or _is_refused_as_std(std):
        return None
    if not tensors:
        fill = _read_randn((size,), options) if size is not None else None
        return fill and fill._replace(arguments={"mean": mean, "std": std})
    if size is not None or not all(map(is_filled, tensors)):
        return None
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    fill = _read_randn((shape,), {**options, "dtype": tensors[0].dtype, "device": tensors[0].device})
    return fill and fill._replace(then=lambda noise: noise.mul_(std).add_(mean))


def _is_refused_as_std(std: Any) -> bool:
    """Return whether ``torch.normal`` refuses the standard deviation, with an error of its own."""
    if not isinstance(std, Tensor):
        try:
            return not std >= 0
        except TypeError:
            return True
    if std.is_complex():
        return True
    has_values = not (std.is_meta or is_fake(std) or torch.compiler.is_compiling())
    if not has_values or not storage_log.has_storage(std) or std.numel() == 0:
        return False
    return not bool(std.min() >= 0)


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
# Private helpers of torch.nn.init that other packages import.
_HELPERS = {
    "_no_grad_fill_": "constant_",
    "_no_grad_normal_": "normal_",
    "_no_grad_trunc_normal_": "trunc_normal_",
    "_no_grad_uniform_": "uniform_",
    "_no_grad_zero_": "zeros_",
}
# The original functions of torch.nn.init and similar ones. transformers temporarily replaces them in
# torch.nn.init and keeps the originals in its own table.
STOCK: set[Callable[..., Any]] = set()
READERS: dict[Callable[..., Any], Reader] = {}


def register_stock(function: Callable[..., Any], name: str, reader: Reader | None = None) -> None:
    """Read calls of a Python function with a parameter ``tensor`` as the fill ``name``."""
    STOCK.add(function)
    READERS[function] = reader or reader_of_stock(name, tuple(inspect.signature(function).parameters))


def _fill_readers() -> None:
    kept_by_transformers = getattr(sys.modules.get("transformers.initialization"), "TORCH_INIT_FUNCTIONS", {})
    for name in _STOCK:
        register_stock(kept_by_transformers.get(name) or getattr(nn.init, name), name)
    for helper, name in _HELPERS.items():
        if hasattr(nn.init, helper):
            register_stock(getattr(nn.init, helper), name)
    READERS.update({getattr(init, name): _reader_of_init(name) for name in FUNCTION_NAMES})
    READERS[Tensor.normal_] = _reader_of_method("normal_", "mean", "std", ("mean", "std"))
    READERS[Tensor.uniform_] = _reader_of_method("uniform_", "from", "to", ("a", "b"))
    READERS[torch.randn] = _reader_of_factory("normal_", {}, like=False)
    READERS[torch.rand] = _reader_of_factory("uniform_", {}, like=False)
    READERS[torch.randn_like] = _reader_of_factory("normal_", {}, like=True)
    READERS[torch.rand_like] = _reader_of_factory("uniform_", {}, like=True)
    READERS[torch.normal] = _read_torch_normal


_fill_readers()

# Functions that create a new tensor. It does not belong to a module until the module registers it.
FACTORIES: frozenset[Callable[..., Any]] = frozenset(
    {torch.randn, torch.rand, torch.randn_like, torch.rand_like, torch.normal}
)


FillFunction: TypeAlias = Callable[[Fill, Callable[[], Any]], Any]


class FillMode(TorchFunctionMode):
    """A mode that handles the fills of the thread that entered it and passes on all other calls.

    Args:
        fill: a function that receives a fill and the original call, and runs one of them
        source: a function that returns the source of a fill's numbers, for a recorder inside this mode
        factories: whether ``torch.randn`` and similar factories are read as fills
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
        result = func(*args, **kwargs) if kwargs else func(*args)
        if not self.records:
            watcher = storage_log.WATCHED.get(func)
            if watcher is not None:
                watcher(result, args)
            dtensor_views.after_call(func, args, kwargs or {}, result)
        return result
