"""Redirect the functions of ``torch.nn.init`` to this package, under whatever name user code imported them.

A torch function mode does not see most of ``torch.nn.init``. So the ``__code__`` of the function objects is
replaced while a context of this package is active: all references to a function see the replacement. The
replaced code redirects only in threads that have entered a mode of this package, or after ``install()``.
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

from paraminit_ext.models import storage_log
from paraminit_ext.models.fill_calls import (
    READERS,
    STOCK,
    Fill,
    FillFunction,
    FillMode,
    Reader,
    bind_arguments,
    reader_of_stock,
    register_stock,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Call = Callable[..., Any]

_lock = threading.RLock()
_holders = 0
# The original code of each function whose code is replaced.
_codes: dict[Call, CodeType] = {}
# By qualified name: the function, a copy with its original code, and the names of its parameters.
_originals: dict[str, tuple[Call, Call, tuple[str, ...]]] = {}
# Does the fills of threads without a mode; `install()` sets it.
_installed: FillFunction | None = None


def set_installed(fill: FillFunction | None) -> None:
    """Set the function that does the fills of threads without a mode; None restores torch's own."""
    global _installed
    _installed = fill


def has_mode() -> bool:
    """Return whether a mode of this package is active in this thread."""
    return torch._C._is_torch_function_mode_enabled() and any(
        isinstance(mode, FillMode) for mode in _get_current_function_mode_stack()
    )


def rerouted(place: str, *values: Any) -> Any:
    """Run a call of a function with replaced code: by a mode, by ``install()``, or by the original code."""
    function, original, names = _originals[place]
    if has_mode():
        # As in torch.overrides, but without types: the tensor's class has no say in these functions.
        with _pop_mode_temporarily() as mode:
            return mode.__torch_function__(function, (), (), dict(zip(names, values, strict=True)))
    if _installed is not None:
        kwargs = dict(zip(names, values, strict=True))
        fill = READERS[function]((), kwargs)
        if fill is not None:
            return _installed(fill, lambda: original(*values))
    return original(*values)


def _replace_code(function: Any) -> None:
    """Replace the function's code by a call of :func:`rerouted` with the same signature."""
    own: CodeType = function.__code__
    place = f"{function.__module__}.{function.__name__}"
    names = tuple(inspect.signature(function).parameters)
    original = FunctionType(own, function.__globals__, function.__name__, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__
    _originals[place] = function, original, names
    _codes[function] = own
    lines = (
        f"def {function.__name__}({', '.join(names)}):",
        # The code runs with the globals of the function's module, so it must import the name.
        f"    from {__name__} import rerouted",
        f"    return rerouted({', '.join((repr(place), *names))})",
    )
    namespace: dict[str, Any] = {}
    exec("\n".join(lines), namespace)
    code: CodeType = namespace[function.__name__].__code__
    # Keep the location, so that inspect.getsource still finds the source of the function.
    function.__code__ = code.replace(co_filename=own.co_filename, co_firstlineno=own.co_firstlineno)


def install_hooks() -> None:
    """Replace the code, unless another holder has replaced it. Pair each call with :func:`remove_hooks`."""
    global _holders
    with _lock:
        _holders += 1
        if _holders == 1:
            _add_timm(sys.modules.get(_TIMM))
            for function in STOCK:
                _replace_code(function)
            sys.meta_path.insert(0, _finder)


def remove_hooks() -> None:
    """Restore the original code when the last holder releases it."""
    global _holders
    with _lock:
        _holders -= 1
        if _holders == 0:
            sys.meta_path.remove(_finder)
            for function, code in _codes.items():
                function.__code__ = code
            _codes.clear()


class ModeContext:
    """A context manager that enters a new mode each time, and replaces the code while it is active."""

    def __init__(self) -> None:
        self._entered: list[ExitStack] = []

    def _mode(self) -> FillMode:
        raise NotImplementedError

    def _watching(self) -> AbstractContextManager[None]:
        return storage_log.watching()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._watching())
            mode = self._mode()
            install_hooks()
            stack.callback(remove_hooks)
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
# timm has its own functions for truncated normals
# ----------------------------------------------------------------------------------------

_TIMM = "timm.layers.weight_init"


def _reader_of_timm_tf(names: tuple[str, ...]) -> Reader:
    """Return the reader of ``trunc_normal_tf_``, which truncates first, then scales by std and adds mean."""
    read_plain = reader_of_stock("trunc_normal_", names)
    defaults = {"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0}

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Fill | None:
        given = {**defaults, **bind_arguments(names, args, kwargs)}
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
            register_stock(function, "trunc_normal_", reader(names) if reader else None)


class _Loader(importlib.abc.Loader):
    """A loader that registers timm's functions after it has run the module."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module must see its original loader only.
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        with _lock:
            known = set(STOCK)
            _add_timm(module)
            if _holders:
                for function in STOCK - known:
                    _replace_code(function)


class _Finder(importlib.abc.MetaPathFinder):
    """Detects an import of timm's module while code is replaced."""

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
