"""``patch()`` and ``install()``: let this package do the fills of existing code, without an edit."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.jit._builtins import _get_builtin_table, _register_builtin
from torch.utils._device import _device_constructors

from paraminit_ext.key import Key
from paraminit_ext.models import init_hooks
from paraminit_ext.models.fill_calls import FACTORIES, READERS, Fill, FillMode, Source
from paraminit_ext.models.names import check_key

_F = TypeVar("_F", bound=Callable[..., Any])


class _Numbers:
    """Chooses the source of each fill: torch's generator, or the next key folded from the given key."""

    def __init__(self, key: Key | None) -> None:
        self.key = key
        self.count = itertools.count()

    def source(self, fill: Fill) -> Source:
        """Return the source of the random numbers of a fill that draws."""
        if self.key is None or fill.generator is not None:
            return fill.generator
        return self.key.fold_in(next(self.count))

    def fill(self, fill: Fill, _call: Callable[[], Any]) -> Tensor:
        return fill.run(self.source(fill) if fill.draws else fill.generator)


class patch(init_hooks.ModeContext, ContextDecorator):  # noqa: N801
    r"""Let this package initialise the parameters in existing code, which stays unchanged.

    This class is a context manager and a decorator. It affects only the thread that enters it. Inside, this
    package replaces the following functions of torch:

    * The functions of ``torch.nn.init``, however the code refers to them: by ``from torch.nn.init import``,
      default arguments, partials, or the tables of transformers. The truncated normal functions of timm are
      replaced as well.
    * :meth:`torch.Tensor.normal_` and :meth:`torch.Tensor.uniform_`.
    * :func:`torch.randn`, :func:`torch.rand`, :func:`torch.normal`, :func:`torch.randn_like` and
      :func:`torch.rand_like`, while a module is being built: in its ``__init__``, or in a method whose name
      starts with ``init``, ``reset_param``, ``build``, ``setup``, ``configure_model``, ``apply``,
      ``smart_apply`` or ``post_init`` (leading underscores do not count).

    All other calls run in torch and return the numbers of torch. This applies to the draws of a module's
    forward, to data created outside of modules, to other distributions, to integer tensors, and to tensor
    subclasses that override calls of torch and that this package does not know.

    Args:
        key: the n-th fill that draws uses ``key.fold_in(n)``, where n counts from 0. If None, each fill that
            draws takes one draw from torch's default generator, which :func:`torch.manual_seed` seeds. If the
            code itself passes a generator, the fill always uses that generator. Default: None

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
        check_key("patch", key)
        super().__init__()
        self.key = key

    def __call__(self, function: _F) -> _F:
        if inspect.isclass(function):
            raise TypeError(
                f"paraminit_ext.patch: expected a function to decorate, got the class {function.__name__}. "
                "Decorate its __init__."
            )
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
# The whole process
# ----------------------------------------------------------------------------------------

# The attributes that `install()` has replaced: (owner, name, previous value, or None if it was inherited).
_bound: list[tuple[Any, str, Any]] = []


def _redirected(function: Callable[..., Any], numbers: _Numbers) -> Callable[..., Any]:
    """Return a wrapper of ``function`` that fills with this package if the call is one of its fills."""
    reader = READERS[function]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # A mode handles the call of the original function. A traced graph must contain the original function.
        if not torch.compiler.is_compiling() and not init_hooks.has_mode():
            fill = reader(args, kwargs)
            if fill is not None:
                return numbers.fill(fill, lambda: function(*args, **kwargs))
        return function(*args, **kwargs)

    # torch passes the current attribute of the class to a mode, which is this wrapper for a method.
    READERS[wrapper] = reader
    return wrapper


def install(key: Key | None = None) -> None:
    """Apply :class:`patch` to all threads of the process, until :func:`uninstall` is called.

    Other calls of torch have no overhead. References that the code took before this call are replaced only
    for functions of ``torch.nn.init``: after an earlier ``from torch import randn``, that ``randn`` stays
    torch's. A second call replaces the first one and restarts the count of fills.

    Args:
        key: see :class:`patch`. If several threads fill tensors, the order of the fills, and so the key of
            each fill, depends on thread scheduling. Default: None

    Raises:
        TypeError: ``key`` is neither a :class:`Key` nor None.

    Examples:
        >>> import torch
        >>> import paraminit_ext
        >>> paraminit_ext.install()
        >>> layer = torch.nn.Linear(1024, 4096)
        >>> paraminit_ext.uninstall()
    """
    check_key("install", key)
    numbers = _Numbers(key)
    uninstall()
    # torch caches its list of factory functions at the first call, so call it before replacing any of them.
    _device_constructors()
    init_hooks.install_hooks()
    init_hooks.set_installed(numbers.fill)
    for name in ("normal_", "uniform_"):
        _bind(Tensor, name, _redirected(getattr(Tensor, name), numbers))
    for function in FACTORIES:
        wrapper = _redirected(function, numbers)
        # TorchScript compiles a call of the wrapper into the operator, as it does for the function itself. It
        # lists the functions at the first use, so this call must come before the wrapper is in place.
        _register_builtin(wrapper, f"aten::{function.__name__}")
        _bind(torch, function.__name__, wrapper)


def _bind(owner: Any, name: str, value: Any) -> None:
    # pickle stores a function by its module and name. A process without install() then finds torch's own.
    value.__module__, value.__qualname__ = "torch", name if owner is torch else f"Tensor.{name}"
    _bound.append((owner, name, vars(owner).get(name)))
    setattr(owner, name, value)


def uninstall() -> None:
    """Undo :func:`install`. Does nothing if :func:`install` was not called.

    Examples:
        >>> import paraminit_ext
        >>> paraminit_ext.uninstall()
    """
    if not _bound:
        return
    while _bound:
        owner, name, value = _bound.pop()
        wrapper = getattr(owner, name)
        READERS.pop(wrapper, None)
        # The table has the id of the wrapper, which a later object may get.
        _get_builtin_table().pop(id(wrapper), None)
        # The attribute was inherited, so remove the override.
        if value is None:
            delattr(owner, name)
        else:
            setattr(owner, name, value)
    init_hooks.set_installed(None)
    init_hooks.remove_hooks()
