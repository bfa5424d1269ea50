"""The names of a module's tensors, and the rule that derives keys from names.

A name is the fully qualified name without the parts that wrappers add. ``keyed`` and plans use the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from paraminit_ext.geometry import Shard, class_if_imported
from paraminit_ext.key import Key
from paraminit_ext.many import DRAWING_FUNCTIONS
from paraminit_ext.models import init_hooks, storage_log
from paraminit_ext.models.dtensor_views import view_of
from paraminit_ext.models.fill_calls import Fill, FillMode
from paraminit_ext.models.layout import Geometry

Kind: TypeAlias = Literal["parameter", "buffer", "non-persistent buffer", "attribute"]


class NamedTensor(NamedTuple):
    """A tensor of a module: its name, the module and attribute that hold it, and its kind."""

    name: str
    tensor: Tensor
    owner: nn.Module
    attribute: str
    kind: Kind


# ----------------------------------------------------------------------------------------
# Keys
# ----------------------------------------------------------------------------------------


def key_of(key: Key, name: str, place: int | str | None = None) -> Key:
    """Return the key of the tensor called ``name``. This rule decides which numbers a parameter gets.

    Args:
        key: the key of the model
        name: the fully qualified name
        place: None for a fill of the whole tensor. For a fill of a view, the storage offset of the view from
            the tensor's first element, in elements. For further random values that flow into the tensor,
            ``"#1"``, ``"#2"`` and so on.
    """
    own = key.fold_in(name)
    return own if place is None else own.fold_in(place)


def check_key(name: str, key: object) -> None:
    """Raise TypeError if the ``key`` argument of the function called ``name`` is neither a key nor None."""
    if not (key is None or isinstance(key, Key)):
        raise TypeError(
            f"paraminit_ext.{name}: expected a paraminit_ext.Key or None for key, got {type(key).__name__}. "
            "For a fixed seed pass paraminit_ext.Key(seed)."
        )


# ----------------------------------------------------------------------------------------
# Names
# ----------------------------------------------------------------------------------------

# Wrapper classes and the attribute that holds the wrapped module: (module, class, attribute).
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
    """Return the attribute that holds the wrapped module, or None if the module is not a wrapper."""
    for place, name, attribute in _WRAPPERS:
        kind = class_if_imported(place, name)
        if kind is not None and isinstance(module, kind):
            return attribute
    return None


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module without the wrappers around it."""
    while (attribute := _wrapped(module)) is not None:
        module = module._modules[attribute]  # type: ignore[assignment]
    return module


def named_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield each module once, under its first name, parents first. Wrappers add nothing to a name."""
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
        # The wrapped module comes first, because a wrapper may hold it under a second name.
        children.sort(key=lambda child: child[0] != path)
        waiting += reversed(children)


def named_tensors(module: nn.Module, prefix: str = "") -> Iterator[NamedTensor]:
    """Yield the parameters, then the buffers, of each module in turn.

    A tied tensor is yielded under each of its names, a module that occurs twice only under its first name.
    """
    for path, owner in named_modules(module, prefix):
        dot = f"{path}." if path else ""
        for attribute, parameter in owner._parameters.items():
            if parameter is not None:
                yield NamedTensor(dot + attribute, parameter, owner, attribute, "parameter")
        for attribute, buffer in owner._buffers.items():
            if buffer is not None:
                persistent = attribute not in owner._non_persistent_buffers_set
                kind: Kind = "buffer" if persistent else "non-persistent buffer"
                yield NamedTensor(dot + attribute, buffer, owner, attribute, kind)


def named_attributes(module: nn.Module, prefix: str = "") -> Iterator[NamedTensor]:
    """Yield the unregistered tensors in attributes of modules, also inside lists, tuples and dicts."""
    registered = {id(tensor) for _, tensor, *_ in named_tensors(module)}
    for path, owner in named_modules(module, prefix):
        dot = f"{path}." if path else ""
        for attribute, value in vars(owner).items():
            if attribute not in _MODULE_ATTRIBUTES:
                for place, tensor in _nested_tensors(value, depth=3):
                    if id(tensor) not in registered:
                        yield NamedTensor(f"{dot}{attribute}{place}", tensor, owner, attribute, "attribute")


# The attributes that torch itself sets on every module.
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


def _nested_tensors(value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield "", value
    elif depth and isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            for place, tensor in _nested_tensors(item, depth - 1):
                yield f"[{key!r}]{place}", tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the local tensor of a DTensor, or the tensor itself if it is not a DTensor."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def mesh_of(tensor: object) -> Any:
    """Return the mesh of a DTensor, or None."""
    return getattr(tensor, "device_mesh", None)


class NamedSpan(NamedTuple):
    """The range of bytes that a named tensor spans in its storage, and the bytes of its elements in all."""

    name: str
    begin: int
    end: int
    nbytes: int


def name_and_place(
    geometry: Geometry, nbytes: int, spans: Iterable[NamedSpan]
) -> tuple[str, int | None] | None:
    """Return the name of the tensor that a fill writes, and for a fill of a part its place in that tensor.

    The place is the offset from the beginning of the tensor, in elements of the fill. The tensor is the
    smallest one that encloses the fill, and the first of several. Return None if no tensor encloses it.

    Args:
        geometry: the filled elements
        nbytes: their size in bytes, of all ranks if they are distributed. By it, the real view of a complex
            tensor is the whole tensor, and its real part is not
        spans: the named tensors in the storage
    """
    begin, end = geometry.extent
    enclosing = [span for span in spans if span.begin <= begin and end <= span.end]
    if not enclosing:
        return None
    span = min(enclosing, key=lambda span: span.end - span.begin)
    covers = geometry.is_dense and (begin, end) == (span.begin, span.end)
    if covers or nbytes == span.nbytes:
        return span.name, None
    return span.name, (begin - span.begin) // geometry.dtype.itemsize


class Names:
    """Finds the name of a tensor that belongs to a module or is a view of such a tensor.

    Args:
        module: the module whose tensors have names
        prefix: the prefix of each name, without the dot
        aliases: replacements for the module's own names, for a tensor or for a whole submodule
    """

    def __init__(self, module: nn.Module, prefix: str = "", aliases: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._prefix = prefix
        self._aliases = dict(aliases or {})
        self._read()

    def _read(self) -> None:
        # The storages are held, so that no other storage can get the address of one of them.
        self._held: dict[int, tuple[torch.UntypedStorage, list[NamedSpan]]] = {}
        for name, tensor, *_ in named_tensors(self._module):
            if nn.parameter.is_lazy(tensor):
                continue
            local = local_tensor(tensor)
            if not storage_log.has_storage(local):
                continue
            storage = local.untyped_storage()
            span = NamedSpan(self._full(name), *Geometry.of(local).extent, tensor.nbytes)
            self._held.setdefault(storage._cdata, (storage, []))[1].append(span)

    def _full(self, name: str) -> str:
        # The longest name with an alias wins: that of the tensor, then that of its module, and so on.
        head, tail = name, ""
        while head and head not in self._aliases:
            head, _, last = head.rpartition(".")
            tail = f".{last}{tail}"
        full = self._aliases[head] + tail if head else name
        return f"{self._prefix}.{full}" if self._prefix else full

    def find(self, tensor: Tensor) -> tuple[str, int | None] | None:
        """Return the name of a tensor, and for a proper view its offset from the whole tensor, in elements.

        Return None if the tensor does not belong to the module.

        Raises:
            NotImplementedError: the tensor is a proper view of a DTensor, at an unknown place in the whole.
        """
        view = view_of(tensor)
        if view is not None:
            # The offset in the whole tensor, as it would lie in a single process.
            whole = self.find(view.whole)
            return whole and (whole[0], (whole[1] or 0) + int(view.shadow.storage_offset()))
        local = local_tensor(tensor)
        if nn.parameter.is_lazy(local) or not storage_log.has_storage(local):
            # The fill itself refuses it, if torch does not.
            return None
        address = local.untyped_storage()._cdata
        if address not in self._held:
            # The module may have new tensors by now, for example from to_empty.
            self._read()
        _, spans = self._held.get(address, (None, ()))
        found = name_and_place(Geometry.of(local), tensor.nbytes, spans)
        if found is not None and found[1] is not None and local is not tensor:
            raise NotImplementedError(
                f"paraminit_ext.keyed: expected a fill of all of {found[0]}, a DTensor, got one of a view "
                f"of shape {tuple(tensor.shape)}. Fill it as a whole."
            )
        return found


# ----------------------------------------------------------------------------------------
# keyed
# ----------------------------------------------------------------------------------------


class keyed(init_hooks.ModeContext):  # noqa: N801
    r"""Context manager that makes each fill of a tensor of ``module`` use the key of its name.

    The key of a tensor is ``key.fold_in(name)``. The values then do not depend on the order of the layers, on
    other fills, or on the pipeline stage that holds the tensor.

    The context manager affects only the thread that enters it, and only fills of the module's tensors. Such
    fills are calls of this package's functions and of the torch functions that :class:`patch` replaces. Fills
    of other tensors work as outside the context.

    The name is the fully qualified name of ``named_parameters`` or ``named_buffers``, without the parts that
    DistributedDataParallel, FullyShardedDataParallel, ``torch.compile`` and checkpoint wrappers add. A tied
    tensor uses its first name. A fill of a proper view of a tensor uses ``key.fold_in(name).fold_in(d)``,
    where ``d`` is the storage offset of the view from the tensor, in elements. If the code passes a
    :class:`Key` itself, that key is used. If it passes a generator, the generator is ignored.

    Args:
        module: the module whose parameters and buffers are filled by name
        key: the key of the model
        prefix: the path of the module in the model. It is prepended to each name with a dot (default: no
            prefix).
        aliases: replacements for the module's own names, for a tensor or for a whole submodule. They apply
            before the prefix. Example: ``{"layers.0": "layers.8"}`` on the second stage of a pipeline.

    Raises:
        TypeError: an argument has the wrong type.

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
        return storage_log.watching_parameters([one.tensor for one in named if one.kind == "parameter"])

    def _mode(self) -> FillMode:
        names = Names(*self._arguments)

        def fill(fill: Fill, call: Callable[[], Any]) -> Any:
            tensor = fill.tensor.local if type(fill.tensor) is Shard else fill.tensor
            if (
                fill.name in DRAWING_FUNCTIONS
                and not isinstance(fill.generator, Key)
                and isinstance(tensor, Tensor)
            ):
                name_and_place = names.find(tensor)
                if name_and_place is not None:
                    return fill.run(key_of(self._key, *name_and_place))
            if view_of(tensor) is not None:
                # torch's own function would fill a copy of the view.
                return fill.run(fill.generator)
            result = call()
            if isinstance(tensor, Tensor):
                storage_log.fill(fill.name, fill.arguments, fill.tensor.shape, tensor)
            return result

        return FillMode(fill, factories=False)


def _refuse(what: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(
            f"paraminit_ext.keyed: expected {expected} for {what}, got {type(value).__name__}. "
            "Write keyed(module, Key(seed))."
        )
