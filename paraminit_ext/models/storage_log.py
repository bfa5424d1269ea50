"""A log of what ``patch`` and ``keyed`` observe: allocations, fills, writes, and fills that missed a tensor.

There is one record for each storage, as long as the storage lives. Only :func:`paraminit_ext.audit` reads the
log. The log covers only what happens inside these contexts.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_parameter_registration_hook

from paraminit_ext.geometry import is_plain


class SeenFill(NamedTuple):
    """A call of a function of :mod:`paraminit_ext.init`."""

    name: str
    arguments: Mapping[str, Any]
    # The global shape, from which fans were computed.
    shape: tuple[int, ...]
    # The offset in the storage, and the number of bytes that were filled.
    extent: tuple[int, int]
    # The position of this event among all observed events.
    order: int
    # The caller's line, "file:line"; empty if nothing suggests a mistake.
    line: str


class Missed(NamedTuple):
    """A fill that reached a copy of a tensor, or a result computed from it, instead of the tensor."""

    name: str
    line: str
    # The version counter of the tensor at that time.
    version: int
    order: int


class Temporary(NamedTuple):
    """A fill of a tensor of unknown origin."""

    ref: StorageWeakRef
    fill: SeenFill


class StorageRecord:
    """The record of one storage. Class attributes are the defaults, which keeps its creation fast."""

    # Allocated by torch.empty or a similar function, and not written since.
    is_empty = False
    # A parameter that existed when keyed() was entered and was never written.
    is_unwritten_parameter = False
    # In addition, no parameter of that module had been written before.
    module_was_unwritten = False
    fills: tuple[SeenFill, ...] = ()
    # The order of the last write, or possible write, that is not a fill.
    other_write_at = -1
    # The order of the event in which a module first registered a parameter of this storage; the id of that
    # module and the name; and the order of the event in which a second owner registered it.
    registered_at: int | None = None
    owner: tuple[int, str] | None = None
    tied_at: int | None = None
    missed: Missed | None = None
    # If this storage is a copy: the storage that it is a copy of, and the version of the copied tensor.
    source: StorageWeakRef | None = None
    source_version = 0
    # A few bytes of the storage, taken at the end of the observation.
    sample: tuple[int, ...] | None = None

    def __init__(self, ref: StorageWeakRef) -> None:
        self.ref = ref

    @property
    def is_changed(self) -> bool:
        """Whether anything else was written after the last fill."""
        return bool(self.fills) and self.other_write_at > self.fills[-1].order


_memories: dict[int, StorageRecord] = {}
# If there are more, the oldest are dropped.
temporaries: deque[Temporary] = deque(maxlen=10_000)
_count = itertools.count()
# When there are this many records, those of freed storages are dropped.
_limit = 1024


def _memory(storage: torch.UntypedStorage) -> StorageRecord:
    """Return the record of the storage. Create it if there is none."""
    global _limit
    cdata = storage._cdata
    found = _memories.get(cdata)
    if found is None or found.ref.expired():
        if len(_memories) >= _limit:
            for key in [key for key, memory in list(_memories.items()) if memory.ref.expired()]:
                _memories.pop(key, None)
            _limit = max(1024, 2 * len(_memories))
        found = _memories[cdata] = StorageRecord(StorageWeakRef(storage))
    return found


def _storage(tensor: object) -> torch.UntypedStorage | None:
    """Return the storage of a plain tensor or of a DTensor's local tensor; None if it has no memory."""
    if torch.compiler.is_compiling():
        return None  # the tensors of a trace have no storages
    if not is_plain(tensor):
        tensor = getattr(tensor, "_local_tensor", None)
        if not is_plain(tensor):
            return None
    return None if tensor.is_meta or not has_storage(tensor) else tensor.untyped_storage()


def has_storage(tensor: Tensor) -> bool:
    """Return whether a tensor that is not lazy is a view of one storage, with sizes and strides.

    A nested or sparse tensor is none, nor is a tensor that a transform of ``torch.func`` wraps.
    """
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def record_of(tensor: object) -> StorageRecord | None:
    """Return the record of a tensor's storage; None if there is none."""
    storage = _storage(tensor)
    found = None if storage is None else _memories.get(storage._cdata)
    return None if found is None or found.ref.expired() else found


def extent_of(tensor: Tensor) -> tuple[int, int]:
    """Return the offset in its storage and the size, in bytes, of the tensor or its local tensor."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return int(local.storage_offset()) * local.element_size(), local.nbytes


def version_of(tensor: Tensor) -> int:
    """Return the version counter of the tensor; 0 for an inference tensor, which has no counter."""
    return 0 if tensor.is_inference() else tensor._version


# ----------------------------------------------------------------------------------------
# Events
# ----------------------------------------------------------------------------------------


def fill(name: str, arguments: Mapping[str, Any], shape: Iterable[int], tensor: Tensor) -> None:
    """Log a fill of ``tensor``, which is a tensor of global shape ``shape`` or a part of one."""
    storage = _storage(tensor)
    if storage is None:
        return
    memory = _memory(storage)
    is_new = not (memory.is_empty or memory.fills or memory.owner)
    order = next(_count)
    # For a view, reading grad_fn would make torch recompute it, which raises for some views.
    is_computed = type(tensor) is Tensor and not tensor._is_view() and tensor.grad_fn is not None
    # Finding the line is slow compared with all the rest, so do it only if something may be wrong.
    is_odd = is_new or is_computed or memory.tied_at is not None or memory.source is not None
    line = _line() if is_odd else ""
    seen = SeenFill(name, arguments, tuple(shape), extent_of(tensor), order, line)
    memory.fills = (*memory.fills[-3:], seen)
    memory.is_empty = memory.is_unwritten_parameter = False
    # A copy that became a parameter itself is filled for its own sake.
    if memory.source is not None and memory.registered_at is None:
        origin = _memories.get(memory.source.cdata)
        if origin is not None:
            origin.missed = Missed(name, line, memory.source_version, order)
    elif is_computed:
        for leaf in _leaves(tensor):
            leaf_storage = _storage(leaf)
            if leaf_storage is not None:
                _memory(leaf_storage).missed = Missed(name, line, version_of(leaf), order)
    elif is_new:
        temporaries.append(Temporary(memory.ref, seen))


# Maximum number of autograd nodes to search for the leaves of a tensor.
_NODES = 200


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the leaves of the autograd graph that a tensor was computed from."""
    waiting: list[Any] = [tensor.grad_fn]
    seen: set[Any] = set()
    while waiting and len(seen) < _NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            yield variable
        waiting += [next_node for next_node, _ in node.next_functions]


# Packages whose frames are skipped in the search for the caller.
_SKIPPED_PACKAGES = ("torch", "paraminit_ext", "contextlib", "functools", "typing_extensions")


def _line() -> str:
    """Return the line of the caller, outside of torch and this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if (
            package not in _SKIPPED_PACKAGES
            and frame.f_globals.get("__name__") != "transformers.initialization"
        ):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def log_allocation(made: object, _: tuple[Any, ...] = ()) -> None:
    """Log that a tensor was allocated without values."""
    storage = _storage(made)
    if storage is not None:
        _memory(storage).is_empty = True


def _write(_: object, args: tuple[Any, ...]) -> None:
    """Log a write to the first argument that is not a fill of this package."""
    if args:
        log_write(args[0])


def log_write(tensor: object) -> None:
    """Log a write to the tensor that is not a fill of the whole tensor."""
    memory = record_of(tensor)
    if memory is not None:
        memory.other_write_at = next(_count)
        memory.is_empty = memory.is_unwritten_parameter = False


def _copy(made: object, args: tuple[Any, ...]) -> None:
    """Log a copy of a storage that has a record. Other storages belong to no known parameter."""
    origin = record_of(args[0]) if args else None
    storage = None if origin is None else _storage(made)
    if origin is not None and storage is not None and storage._cdata != origin.ref.cdata:
        memory = _memory(storage)
        memory.source, memory.source_version = origin.ref, version_of(args[0])


def _watched() -> dict[Callable[..., Any], Callable[[Any, tuple[Any, ...]], None]]:
    found: dict[Callable[..., Any], Callable[[Any, tuple[Any, ...]], None]] = {}
    for name in dir(Tensor):
        function = getattr(Tensor, name)
        if callable(function) and name.endswith("_") and not name.endswith("__"):
            found[function] = _write
    for name in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"):
        found[getattr(Tensor, name)] = _write
    for function in (Tensor.requires_grad_, Tensor.detach_, Tensor.retain_grad):
        found.pop(function, None)
    # Writes through .data or a NumPy array leave no trace, so taking either counts as a write.
    found[Tensor.data.__get__] = found[Tensor.numpy] = _write  # type: ignore[attr-defined]
    for function in (torch.empty, torch.empty_like, torch.empty_strided, torch.empty_permuted):
        found[function] = log_allocation
    found[Tensor.new_empty] = found[Tensor.new_empty_strided] = log_allocation
    for name in ("float", "double", "half", "bfloat16", "to", "type", "type_as", "clone", "contiguous"):
        found[getattr(Tensor, name)] = _copy
    for function in (torch.clone, Tensor.cpu, Tensor.cuda):
        found[function] = _copy
    return found


# Maps functions of torch to their observers, which are called afterwards with the result and the arguments.
WATCHED = _watched()


# ----------------------------------------------------------------------------------------
# Contexts
# ----------------------------------------------------------------------------------------


def _registered(module: nn.Module, name: str, parameter: Tensor | None) -> None:
    """Log that a module registers a parameter, which another module may own already."""
    if not getattr(_depth, "value", 0) or parameter is None:
        return
    # Keep the modes of torch from seeing the following accesses to the tensor.
    with torch._C.DisableTorchFunction():
        storage = _storage(parameter)
        if storage is None:
            return
        memory = _memory(storage)
    owner = id(module), name
    if memory.registered_at is None:
        memory.registered_at, memory.owner = next(_count), owner
    elif memory.owner != owner and memory.tied_at is None:
        memory.tied_at = next(_count)


# The number of contexts that the thread has entered.
_depth = threading.local()
_lock = threading.Lock()
_is_hooked = False


def _hook() -> None:
    """Install a hook for the registration of parameters, once for the process.

    The hook is never removed: torch would fail if it iterated over its hooks in another thread meanwhile.
    """
    global _is_hooked
    with _lock:
        if not _is_hooked:
            register_module_parameter_registration_hook(_registered)
            _is_hooked = True


@contextmanager
def watching() -> Iterator[None]:
    """Log which parameters modules register inside; at the end, sample the storages that nothing wrote."""
    _hook()
    _depth.value = getattr(_depth, "value", 0) + 1
    try:
        yield
    finally:
        _depth.value -= 1
        for memory in list(_memories.values()):
            if memory.is_empty and memory.sample is None:
                memory.sample = _sample(memory.ref)


def _sample(ref: StorageWeakRef) -> tuple[int, ...] | None:
    storage = torch.UntypedStorage._new_with_weak_ptr(ref.cdata)
    if storage is None or storage.device.type != "cpu" or storage.nbytes() == 0:
        return None
    return sample_of(storage)


def sample_of(storage: torch.UntypedStorage) -> tuple[int, ...]:
    """Return a few bytes of a storage on the CPU."""
    size = storage.nbytes()
    step = max(1, size // 16)
    return tuple(storage[place] for place in range(0, size, step))


@contextmanager
def watching_parameters(parameters: Iterable[Tensor]) -> Iterator[None]:
    """As :func:`watching`, for existing parameters: also log which are tied and which stay unwritten."""
    # Lazy parameters and parameters on meta have no memory to log.
    listed = [parameter for parameter in parameters if _storage(parameter) is not None]
    seen: set[int] = set()
    module_was_unwritten = not any(map(version_of, listed))
    for parameter in listed:
        memory = _memory_of_parameter(parameter)
        if id(parameter) in seen:
            memory.tied_at = next(_count)
        elif memory.registered_at is None:
            memory.registered_at = next(_count)
        seen.add(id(parameter))
    with watching():
        yield
    for parameter in listed:
        if _storage(parameter) is None or version_of(parameter):
            continue
        memory = _memory_of_parameter(parameter)
        if not memory.fills and memory.other_write_at < 0 and not memory.is_empty:
            memory.is_unwritten_parameter, memory.sample = True, _sample(memory.ref)
            memory.module_was_unwritten = module_was_unwritten


def _memory_of_parameter(parameter: Tensor) -> StorageRecord:
    storage = _storage(parameter)
    assert storage is not None
    return _memory(storage)
