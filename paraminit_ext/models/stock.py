"""Has the functions of ``torch.nn.init`` ask this package first, under whatever name they were captured.

A mode of torch's sees what goes through its override machinery, and most of ``torch.nn.init`` does not. So
the code of the function objects themselves is exchanged while anybody needs it: whoever holds one holds the
same object. The exchanged code asks only in threads that have a mode of ours, or after ``install()``.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import inspect
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode_temporarily

from paraminit_ext.models import seen
from paraminit_ext.models.fills import (
    READERS,
    STOCK,
    Fill,
    FillFunction,
    FillMode,
    Reader,
    add_stock,
    by_name,
    reader_of_stock,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Call = Callable[..., Any]

_lock = threading.RLock()
_holders = 0
# Of each function whose code is exchanged: its own code.
_codes: dict[Call, CodeType] = {}
# The same functions as they were, by name in their module.
_originals: dict[str, tuple[Call, Call, tuple[str, ...]]] = {}
# What fills in threads without a mode; set by `install()`.
_installed: FillFunction | None = None


def set_installed(fill: FillFunction | None) -> None:
    """Have every thread's fills done by ``fill``, or none."""
    global _installed
    _installed = fill


def has_mode() -> bool:
    """Whether a mode of ours is active in this thread."""
    return torch._C._is_torch_function_mode_enabled() and any(
        isinstance(mode, FillMode) for mode in _get_current_function_mode_stack()
    )


def rerouted(place: str, *values: Any) -> Any:
    """What a function whose code is exchanged does: ask the modes, then ``install()``, then do its own."""
    function, original, names = _originals[place]
    if has_mode():
        # As torch.overrides does it, but without the word of the tensor's class, which never had one here.
        with _pop_mode_temporarily() as mode:
            return mode.__torch_function__(function, (), (), dict(zip(names, values, strict=True)))
    if _installed is not None:
        kwargs = dict(zip(names, values, strict=True))
        fill = READERS[function]((), kwargs)
        if fill is not None:
            return _installed(fill, lambda: original(*values))
    return original(*values)


def _exchange(function: Any) -> None:
    """Give the function other code, of the same signature."""
    own: CodeType = function.__code__
    place = f"{function.__module__}.{function.__name__}"
    names = tuple(inspect.signature(function).parameters)
    original = FunctionType(own, function.__globals__, function.__name__, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__
    _originals[place] = function, original, names
    _codes[function] = own
    lines = (
        f"def {function.__name__}({', '.join(names)}):",
        # The globals are those of another module, so the name is imported where it is used.
        f"    from {__name__} import rerouted",
        f"    return rerouted({', '.join((repr(place), *names))})",
    )
    made: dict[str, Any] = {}
    exec("\n".join(lines), made)
    code: CodeType = made[function.__name__].__code__
    # inspect.getsource still finds the function's own text.
    function.__code__ = code.replace(co_filename=own.co_filename, co_firstlineno=own.co_firstlineno)


def hold() -> None:
    """Exchange the code, unless somebody has."""
    global _holders
    with _lock:
        _holders += 1
        if _holders == 1:
            _add_timm(sys.modules.get(_TIMM))
            for function in STOCK:
                _exchange(function)
            sys.meta_path.insert(0, _finder)


def release() -> None:
    """Put the code back when the last holder is done."""
    global _holders
    with _lock:
        _holders -= 1
        if _holders == 0:
            sys.meta_path.remove(_finder)
            for function, code in _codes.items():
                function.__code__ = code
            _codes.clear()


class Entering:
    """A context that has a mode of its own each time that it is entered, and the code exchanged meanwhile."""

    def __init__(self) -> None:
        self._entered: list[ExitStack] = []

    def _mode(self) -> FillMode:
        raise NotImplementedError

    def _watching(self) -> AbstractContextManager[None]:
        return seen.watching()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._watching())
            mode = self._mode()
            hold()
            stack.callback(release)
            stack.enter_context(mode)
            self._entered.append(stack.pop_all())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered.pop().__exit__(kind, error, trace)


# ----------------------------------------------------------------------------------------
# timm, which has functions of its own for truncated normals
# ----------------------------------------------------------------------------------------

_TIMM = "timm.layers.weight_init"


def _reader_of_timm_tf(names: tuple[str, ...]) -> Reader:
    """Of ``trunc_normal_tf_``, which scales and shifts after the cut, the bounds with the values."""
    read_plain = reader_of_stock("trunc_normal_", names)
    defaults = {"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0}

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        given = {**defaults, **by_name(names, args, kwargs)}
        mean, std = given["mean"], given["std"]
        return read_plain((), {**given, "a": mean + std * given["a"], "b": mean + std * given["b"]})

    return read


def _add_timm(module: ModuleType | None) -> None:
    if module is None:
        return
    for name, reader in (("_trunc_normal_", None), ("trunc_normal_tf_", _reader_of_timm_tf)):
        function = getattr(module, name, None)
        if isinstance(function, FunctionType) and function not in STOCK:
            names = tuple(inspect.signature(function).parameters)
            add_stock(function, "trunc_normal_", reader(names) if reader else None)


class _Loader(importlib.abc.Loader):
    """The loader of a module, and what is to be done when it has run."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is to know its own loader alone.
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        with _lock:
            known = set(STOCK)
            _add_timm(module)
            if _holders:
                for function in STOCK - known:
                    _exchange(function)


class _Finder(importlib.abc.MetaPathFinder):
    """Sees timm's module imported while code is exchanged."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TIMM:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


_finder = _Finder()
