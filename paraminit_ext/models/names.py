"""The names of a module's tensors, and the one rule that makes keys of them.

A name is the fully qualified one, without what wrappers add. ``keyed`` fills by it; plans ask here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from paraminit_ext.geometry import Shard, loaded
from paraminit_ext.key import Key
from paraminit_ext.many import DRAWING
from paraminit_ext.models import seen, stock
from paraminit_ext.models.fills import Fill, FillMode
from paraminit_ext.models.layout import Geometry
from paraminit_ext.models.views import view_of

Kind: TypeAlias = Literal["parameter", "buffer", "non-persistent buffer", "attribute"]


class Named(NamedTuple):
    """A tensor of a module: its name, where it is held, and as what."""

    name: str
    tensor: Tensor
    owner: nn.Module
    attribute: str
    kind: Kind


# ----------------------------------------------------------------------------------------
# Keys
# ----------------------------------------------------------------------------------------


def key_of(key: Key, name: str, place: int | str | None = None) -> Key:
    """The key of the tensor called ``name``: the one rule for which numbers a parameter gets.

    Args:
        key: the key of the model
        name: the fully qualified name
        place: None for the fill of the tensor as a whole; the offset of a view from the tensor's beginning
            in storage, in elements, for a fill of that view; ``"#1"``, ``"#2"``, ... for further random
            values that flow into the tensor
    """
    own = key.fold_in(name)
    return own if place is None else own.fold_in(place)


def refuse_key(name: str, key: object) -> None:
    """Raise TypeError unless the function called ``name`` was given a key or None."""
    if not (key is None or isinstance(key, Key)):
        raise TypeError(
            f"paraminit_ext.{name}: expected a paraminit_ext.Key or None for key, got {type(key).__name__}. "
            "For a fixed seed pass paraminit_ext.Key(seed)."
        )


# ----------------------------------------------------------------------------------------
# Names
# ----------------------------------------------------------------------------------------

# Wrappers whose module is what they wrap, by the attribute that holds it: (module, class, attribute).
_WRAPPERS = (
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    (
        "torch.distributed.fsdp.fully_sharded_data_parallel",
        "FullyShardedDataParallel",
        "_fsdp_wrapped_module",
    ),
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    (
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
        "ActivationWrapper",
        "_checkpoint_wrapped_module",
    ),
    ("lightning_fabric.wrappers", "_FabricModule", "_forward_module"),
    ("lightning.fabric.wrappers", "_FabricModule", "_forward_module"),
)


def _wrapped(module: nn.Module) -> str | None:
    """The attribute under which a wrapper holds its module; None for a module that is no wrapper."""
    for place, name, attribute in _WRAPPERS:
        kind = loaded(place, name)
        if kind is not None and isinstance(module, kind):
            return attribute
    return None


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, without wrappers around it."""
    while (attribute := _wrapped(module)) is not None:
        module = module._modules[attribute]  # type: ignore[assignment]
    return module


def named_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Each module once, under its first name, parents first: torch's ``named_modules`` but for wrappers."""
    seen: set[int] = set()
    waiting = [(prefix, module)]
    while waiting:
        path, current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield path, current
        inner = _wrapped(current)
        children = [
            (path if name == inner else f"{path}.{name}" if path else name, child)
            for name, child in current._modules.items()
            if child is not None
        ]
        # What is wrapped comes first: a wrapper may hold it a second time.
        children.sort(key=lambda child: child[0] != path)
        waiting += reversed(children)


def named_tensors(module: nn.Module, prefix: str = "") -> Iterator[Named]:
    """All parameters and buffers, tied ones under each of their names; a module's parameters come first."""
    for path, owner in named_modules(module, prefix):
        dot = f"{path}." if path else ""
        for attribute, parameter in owner._parameters.items():
            if parameter is not None:
                yield Named(dot + attribute, parameter, owner, attribute, "parameter")
        for attribute, buffer in owner._buffers.items():
            if buffer is not None:
                persistent = attribute not in owner._non_persistent_buffers_set
                kind: Kind = "buffer" if persistent else "non-persistent buffer"
                yield Named(dot + attribute, buffer, owner, attribute, kind)


def named_attributes(module: nn.Module, prefix: str = "") -> Iterator[Named]:
    """Tensors that modules hold as plain attributes, or in lists and dicts of such, and nowhere else."""
    own = {id(tensor) for _, tensor, *_ in named_tensors(module)}
    for path, owner in named_modules(module, prefix):
        dot = f"{path}." if path else ""
        for attribute, value in vars(owner).items():
            if attribute not in _OF_MODULES:
                for place, tensor in _within(value, depth=3):
                    if id(tensor) not in own:
                        yield Named(f"{dot}{attribute}{place}", tensor, owner, attribute, "attribute")


# What torch itself keeps in every module.
_OF_MODULES = frozenset(vars(nn.Module()))


def _within(value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield "", value
    elif depth and isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            for place, tensor in _within(inner, depth - 1):
                yield f"[{key!r}]{place}", tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """What of a tensor is held here: a DTensor's local one."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def mesh_of(tensor: object) -> Any:
    """The mesh of a DTensor, or None."""
    return getattr(tensor, "device_mesh", None)


class _Held(NamedTuple):
    """A tensor of the module in its storage."""

    name: str
    begin: int
    end: int
    numel: int
    # Kept, so that no other storage takes its place.
    storage: torch.UntypedStorage


class Names:
    """Finds the name of a tensor that is one of a module's, or a view of one.

    Args:
        module: whose tensors have names
        prefix: stands before each name, with a dot
        aliases: other names to use, for the module's own: for a tensor, or for all of a submodule
    """

    def __init__(self, module: nn.Module, prefix: str = "", aliases: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._prefix = prefix
        self._aliases = dict(aliases or {})
        self._read()

    def _read(self) -> None:
        self._held: dict[int, list[_Held]] = {}
        for name, tensor, *_ in named_tensors(self._module):
            if tensor.layout is not torch.strided or nn.parameter.is_lazy(tensor):
                continue
            local = local_tensor(tensor)
            storage = local.untyped_storage()
            held = _Held(self._full(name), *Geometry.of(local).extent, tensor.numel(), storage)
            self._held.setdefault(storage._cdata, []).append(held)

    def _full(self, name: str) -> str:
        # The longest name that an alias is for decides: the tensor's own, then its module's, and so on.
        head, tail = name, ""
        while head and head not in self._aliases:
            head, _, last = head.rpartition(".")
            tail = f".{last}{tail}"
        full = self._aliases[head] + tail if head else name
        return f"{self._prefix}.{full}" if self._prefix else full

    def find(self, tensor: Tensor) -> tuple[str, int | None] | None:
        """The name, and for a proper view its storage offset from the tensor's own, in elements.

        Raises:
            NotImplementedError: a proper view of a DTensor, whose place in the whole is not known.
        """
        view = view_of(tensor)
        if view is not None:
            # Of the whole as it would lie in one process.
            whole = self.find(view.whole)
            return whole and (whole[0], (whole[1] or 0) + int(view.shadow.storage_offset()))
        local = local_tensor(tensor)
        found = self._held.get(local.untyped_storage()._cdata)
        if found is None:
            # The module may have other tensors by now, from `to_empty` for example.
            self._read()
            found = self._held.get(local.untyped_storage()._cdata)
        if found is None:
            return None
        here = Geometry.of(local)
        begin, end = here.extent
        around = [held for held in found if held.begin <= begin and end <= held.end]
        if not around:
            return None
        held = min(around, key=lambda held: held.end - held.begin)
        covers = here.is_dense and (begin, end) == (held.begin, held.end)
        if covers or tensor.numel() == held.numel:
            return held.name, None
        if local is not tensor:
            raise NotImplementedError(
                f"paraminit_ext.keyed: expected a fill of all of {held.name}, a DTensor, got one of a view "
                f"of shape {tuple(tensor.shape)}. Fill it as a whole."
            )
        return held.name, (begin - held.begin) // local.element_size()


# ----------------------------------------------------------------------------------------
# keyed
# ----------------------------------------------------------------------------------------


class keyed(stock.Entering):  # noqa: N801
    r"""Have each fill of a tensor of ``module`` use the key of its name: ``key.fold_in(name)``.

    A context manager, for the thread that enters it. What fills is the code inside: the functions of this
    package, and those of torch that :class:`patch` makes ours, for tensors of the module alone. A fill of any
    other tensor goes on as outside. Values then depend neither on the order of layers nor on what else was
    filled, nor on which stage of a pipeline holds them.

    The name is the fully qualified one of ``named_parameters`` or ``named_buffers``, without what
    DistributedDataParallel, FullyShardedDataParallel, ``torch.compile`` and checkpoint wrappers add; tied
    tensors go by their first name. A fill of a proper view of a tensor uses
    ``key.fold_in(name).fold_in(d)``, ``d`` being the view's storage offset from the tensor's, in elements. A
    :class:`Key` that the code passes itself is kept; a generator is not.

    Args:
        module: whose parameters and buffers are meant
        key: the key of the model
        prefix: put before each name, with a dot: where the module stands in the model
        aliases: names to use in place of the module's own (before the prefix), for a tensor or for all of a
            submodule: ``{"layers.0": "layers.8"}`` on the second stage of a pipeline

    Raises:
        TypeError: an argument of another type.

    Examples:
        >>> import torch
        >>> from paraminit_ext import Key, init, keyed
        >>> layer = torch.nn.Linear(3, 4)
        >>> with keyed(layer, Key(1)):
        ...     layer.reset_parameters()
        >>> expected = init.kaiming_uniform_(
        ...     torch.empty(4, 3), a=5**0.5, generator=Key(1).fold_in("weight")
        ... )
        >>> torch.equal(layer.weight, expected)
        True
    """

    def __init__(
        self, module: nn.Module, key: Key, *, prefix: str = "", aliases: Mapping[str, str] | None = None
    ) -> None:
        _refuse("module", module, nn.Module, "a torch.nn.Module")
        _refuse("key", key, Key, "a paraminit_ext.Key")
        _refuse("prefix", prefix, str, "a str")
        _refuse("aliases", {} if aliases is None else aliases, Mapping, "a mapping of names, or None")
        super().__init__()
        self._arguments = module, prefix, aliases
        self._key = key

    def _watching(self) -> AbstractContextManager[None]:
        named = named_tensors(self._arguments[0])
        return seen.watching_parameters([one.tensor for one in named if one.kind == "parameter"])

    def _mode(self) -> FillMode:
        names = Names(*self._arguments)

        def fill(fill: Fill, call: Callable[[], Any]) -> Any:
            tensor = fill.tensor.local if type(fill.tensor) is Shard else fill.tensor
            if fill.name in DRAWING and not isinstance(fill.generator, Key) and isinstance(tensor, Tensor):
                found = names.find(tensor)
                if found is not None:
                    return fill.run(key_of(self._key, *found))
            if view_of(tensor) is not None:
                # torch's own call would reach a copy.
                return fill.run(fill.generator)
            made = call()
            if isinstance(tensor, Tensor):
                seen.fill(fill.name, fill.arguments, fill.tensor.shape, tensor)
            return made

        return FillMode(fill, factories=False)


def _refuse(what: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(
            f"paraminit_ext.keyed: expected {expected} for {what}, got {type(value).__name__}. "
            "Write keyed(module, Key(seed))."
        )
