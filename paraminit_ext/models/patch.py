"""``patch()``: existing code, filled by this package without an edit."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._device import _device_constructors

from paraminit_ext.key import Key
from paraminit_ext.models import stock
from paraminit_ext.models.fills import FACTORIES, READERS, Fill, FillMode, Source
from paraminit_ext.models.names import refuse_key

_F = TypeVar("_F", bound=Callable[..., Any])


class _Numbers:
    """Where fills get their numbers: from torch's generator, or each from the next of a key's numbers."""

    def __init__(self, key: Key | None) -> None:
        self.key = key
        self.count = itertools.count()

    def source(self, fill: Fill) -> Source:
        """Of a fill that draws."""
        if self.key is None or fill.generator is not None:
            return fill.generator
        return self.key.fold_in(next(self.count))

    def fill(self, fill: Fill, _call: Callable[[], Any]) -> Tensor:
        return fill.run(self.source(fill) if fill.draws else fill.generator)


class patch(stock.Entering, ContextDecorator):  # noqa: N801
    r"""Have the code inside filled by this package: its own calls, unchanged, under whatever name they stand.

    A context manager and a decorator, for the thread that enters it. Ours are then the functions of
    ``torch.nn.init`` however they were captured (``from torch.nn.init import ...``, default arguments,
    partials, the tables of transformers, timm's truncated normals), ``Tensor.normal_`` and ``uniform_``, and
    ``torch.randn``, ``rand``, ``normal``, ``randn_like`` and ``rand_like`` where a module is being built: in
    its ``__init__`` or a method named ``init...``, ``reset_param...``, ``build...``, ``setup`` or ``apply``.

    Everything else is torch's, with torch's numbers: what a module's forward draws, data that is made outside
    of modules, other distributions, integer tensors, and tensors of classes that this package does not know.

    Args:
        key: the n-th fill that draws uses ``key.fold_in(n)``, n counted from 0; with None (the default) each
            takes its one draw from torch's generator, as ``torch.manual_seed`` set it. A generator that the
            code passes itself stays where its numbers come from.

    Raises:
        TypeError: ``key`` is neither a :class:`Key` nor None.

    Examples:
        >>> import torch
        >>> import paraminit_ext
        >>> _ = torch.manual_seed(0)
        >>> with paraminit_ext.patch():
        ...     model = torch.nn.TransformerEncoderLayer(64, 4)
        >>> @paraminit_ext.patch(key=paraminit_ext.Key(2024))
        ... def build():
        ...     return torch.nn.LSTM(8, 16)
        >>> torch.equal(build().weight_hh_l0, build().weight_hh_l0)
        True
    """

    def __init__(self, key: Key | None = None) -> None:
        refuse_key("patch", key)
        super().__init__()
        self.key = key

    def __call__(self, function: _F) -> _F:
        kinds = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
        if any(kind(function) for kind in kinds):
            raise TypeError(
                f"paraminit_ext.patch: expected a plain function to decorate, got {function.__name__}, whose "
                "body runs after it returns. Enter patch() inside it."
            )
        decorated: _F = super().__call__(function)
        return decorated

    def _recreate_cm(self) -> patch:
        return patch(self.key)

    def _mode(self) -> FillMode:
        numbers = _Numbers(self.key)
        return FillMode(numbers.fill, numbers.source)


# ----------------------------------------------------------------------------------------
# The process
# ----------------------------------------------------------------------------------------

# What was bound to the names that `install()` binds anew: (owner, name, what was there or None).
_bound: list[tuple[Any, str, Any]] = []


def _asking(function: Callable[..., Any], numbers: _Numbers) -> Callable[..., Any]:
    """``function``, asked first whether the call is a fill of ours."""
    reader = READERS[function]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # A mode sees the call of the function itself, and a graph that is traced is to hold it.
        if not torch.compiler.is_compiling() and not stock.has_mode():
            fill = reader(args, kwargs)
            if fill is not None:
                return numbers.fill(fill, lambda: function(*args, **kwargs))
        return function(*args, **kwargs)

    # A mode is told of a method by what the class has under its name.
    READERS[wrapper] = reader
    return wrapper


def install(key: Key | None = None) -> None:
    """Do for all threads of the process what :class:`patch` does for one, until :func:`uninstall`.

    Other calls of torch cost nothing more. What was captured by name before is reached in ``torch.nn.init``
    alone: a ``from torch import randn`` of earlier stays torch's. Calling it again begins anew.

    Args:
        key: as for :class:`patch`; with several threads, which fill is the n-th is a matter of their pace

    Raises:
        TypeError: ``key`` is neither a :class:`Key` nor None.

    Examples:
        >>> import torch
        >>> import paraminit_ext
        >>> paraminit_ext.install()
        >>> layer = torch.nn.Linear(1024, 4096)
        >>> paraminit_ext.uninstall()
    """
    refuse_key("install", key)
    numbers = _Numbers(key)
    uninstall()
    # torch remembers its factories, by what their names are bound to when it is first asked.
    _device_constructors()
    stock.hold()
    stock.set_installed(numbers.fill)
    for name in ("normal_", "uniform_"):
        _bind(Tensor, name, _asking(getattr(Tensor, name), numbers))
    for function in FACTORIES:
        _bind(torch, function.__name__, _asking(function, numbers))


def _bind(owner: Any, name: str, value: Any) -> None:
    _bound.append((owner, name, vars(owner).get(name)))
    setattr(owner, name, value)


def uninstall() -> None:
    """Undo :func:`install`; without one it does nothing.

    Examples:
        >>> import paraminit_ext
        >>> paraminit_ext.uninstall()
    """
    if not _bound:
        return
    while _bound:
        owner, name, value = _bound.pop()
        READERS.pop(getattr(owner, name), None)
        # A name that the class inherits is taken from it again.
        if value is None:
            delattr(owner, name)
        else:
            setattr(owner, name, value)
    stock.set_installed(None)
    stock.release()
