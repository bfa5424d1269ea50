"""What ``patch`` and ``keyed`` saw of memory: what was allocated, filled, written, and what a fill missed.

Kept by storage for as long as the storage lives, and read by :func:`paraminit_ext.audit` alone. It knows what
happened inside these contexts; what it does not know it says nothing about.
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


class SeenFill(NamedTuple):
    """A call of a function of :mod:`paraminit_ext.init`."""

    name: str
    arguments: Mapping[str, Any]
    # Of the whole: what fans were computed from.
    shape: tuple[int, ...]
    # Where in the storage it begins, and how many bytes were filled.
    extent: tuple[int, int]
    # The how-many-th thing that was seen.
    order: int
    # Where in the code: "file:line"; empty where nothing can be wrong.
    line: str


class Missed(NamedTuple):
    """A fill that reached a copy of a tensor, or something computed of it, and not the tensor."""

    name: str
    line: str
    # Of the tensor, when that was.
    version: int
    order: int


class Temporary(NamedTuple):
    """A fill of a tensor of which it is not known where it came from."""

    ref: StorageWeakRef
    fill: SeenFill


class Memory:
    """What was seen of one storage. There are many, made in between calls that take microseconds."""

    # Allocated by torch.empty or its kin, and not written since.
    is_empty = False
    # A parameter that was there when keyed() was entered, and was never written; of a module of which none
    # was written before.
    is_left = False
    is_of_unwritten = False
    fills: tuple[SeenFill, ...] = ()
    # When something but a fill was written, or may have been, for the last time.
    changed_at = -1
    # When a parameter of this storage was first seen in a module, where, and when a second place took it.
    known_at: int | None = None
    owner: tuple[int, str] | None = None
    tied_at: int | None = None
    missed: Missed | None = None
    # Of a copy: what it is a copy of.
    source: StorageWeakRef | None = None
    source_version = 0
    # A few bytes, as they were when what was seen ended.
    sample: tuple[int, ...] | None = None

    def __init__(self, ref: StorageWeakRef) -> None:
        self.ref = ref

    @property
    def is_changed(self) -> bool:
        """Whether anything was written after the last fill."""
        return bool(self.fills) and self.changed_at > self.fills[-1].order


_PLAIN = (Tensor, nn.Parameter)
_memories: dict[int, Memory] = {}
# More of them are forgotten.
temporaries: deque[Temporary] = deque(maxlen=10_000)
_count = itertools.count()
# At which size what has been freed is dropped.
_most = 1024


def _memory(storage: torch.UntypedStorage) -> Memory:
    """What was seen of the storage, from now on kept."""
    global _most
    cdata = storage._cdata
    found = _memories.get(cdata)
    if found is None or found.ref.expired():
        if len(_memories) >= _most:
            for key in [key for key, memory in list(_memories.items()) if memory.ref.expired()]:
                _memories.pop(key, None)
            _most = max(1024, 2 * len(_memories))
        found = _memories[cdata] = Memory(StorageWeakRef(storage))
    return found


def _storage(tensor: object) -> torch.UntypedStorage | None:
    """The storage of a plain tensor, or of a DTensor's local one; None on meta and for what has none."""
    if type(tensor) not in _PLAIN:
        tensor = getattr(tensor, "_local_tensor", None)
        if type(tensor) not in _PLAIN:
            return None
    assert isinstance(tensor, Tensor)
    if tensor.is_meta or tensor.layout is not torch.strided:
        return None
    return tensor.untyped_storage()


def memory_of(tensor: object) -> Memory | None:
    """What was seen of a tensor's storage; None for nothing."""
    storage = _storage(tensor)
    found = None if storage is None else _memories.get(storage._cdata)
    return None if found is None or found.ref.expired() else found


def extent_of(tensor: Tensor) -> tuple[int, int]:
    """Where in its storage the tensor, or its local one, begins, and how many bytes it has."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return int(local.storage_offset()) * local.element_size(), local.nbytes


def version_of(tensor: Tensor) -> int:
    """How often it was written in place; of an inference tensor nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


# ----------------------------------------------------------------------------------------
# What is seen
# ----------------------------------------------------------------------------------------


def fill(name: str, arguments: Mapping[str, Any], shape: Iterable[int], tensor: Tensor) -> None:
    """A fill of ``tensor``, which is the whole of this shape or a part of it, has been done."""
    storage = None if torch.compiler.is_compiling() else _storage(tensor)
    if storage is None:
        return
    memory = _memory(storage)
    is_new = not (memory.is_empty or memory.fills or memory.owner)
    order = next(_count)
    # Asked of a view, torch would compute its grad_fn anew, which it refuses for some.
    is_computed = type(tensor) is Tensor and not tensor._is_view() and tensor.grad_fn is not None
    # The line is of use where something may be wrong, and takes longer than all the rest.
    is_odd = is_new or is_computed or memory.tied_at is not None or memory.source is not None
    line = _line() if is_odd else ""
    done = SeenFill(name, arguments, tuple(shape), extent_of(tensor), order, line)
    memory.fills = (*memory.fills[-3:], done)
    memory.is_empty = memory.is_left = False
    if memory.source is not None:
        origin = _memories.get(memory.source.cdata)
        if origin is not None:
            origin.missed = Missed(name, line, memory.source_version, order)
    elif is_computed:
        for leaf in _leaves(tensor):
            of = _storage(leaf)
            if of is not None:
                _memory(of).missed = Missed(name, line, version_of(leaf), order)
    elif is_new:
        temporaries.append(Temporary(memory.ref, done))


# How far back from a tensor its leaves are looked for.
_NODES = 200


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The leaves of autograd's graph that a tensor was computed from."""
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
        waiting += [after for after, _ in node.next_functions]


# Packages whose code hands calls on.
_PASSED_ON = ("torch", "paraminit_ext", "contextlib", "functools", "typing_extensions")


def _line() -> str:
    """The line of the code outside of torch and of this package that made the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in _PASSED_ON and frame.f_globals.get("__name__") != "transformers.initialization":
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def allocated(made: object, _: tuple[Any, ...] = ()) -> None:
    """A tensor was made without values."""
    storage = _storage(made)
    if storage is not None:
        _memory(storage).is_empty = True


def _write(_: object, args: tuple[Any, ...]) -> None:
    """Something that is no fill of ours was written to the first argument."""
    if args:
        written(args[0])


def written(tensor: object) -> None:
    """Something that is no fill of the whole was written to the tensor."""
    memory = memory_of(tensor)
    if memory is not None:
        memory.changed_at = next(_count)
        memory.is_empty = memory.is_left = False


def _copy(made: object, args: tuple[Any, ...]) -> None:
    """Of memory of which something is known: other copies are of no parameter."""
    origin = memory_of(args[0]) if args else None
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
    # Whoever takes .data may write to it without a trace, but for what is seen of that; NumPy shares memory.
    found[Tensor.data.__get__] = found[Tensor.numpy] = _write  # type: ignore[attr-defined]
    for function in (torch.empty, torch.empty_like, torch.empty_strided, torch.empty_permuted):
        found[function] = allocated
    found[Tensor.new_empty] = found[Tensor.new_empty_strided] = allocated
    for name in ("float", "double", "half", "bfloat16", "to", "type", "type_as", "clone", "contiguous"):
        found[getattr(Tensor, name)] = _copy
    for function in (torch.clone, Tensor.cpu, Tensor.cuda):
        found[function] = _copy
    return found


# Functions of torch after which something is noted, given what they return and their arguments.
WATCHED = _watched()


# ----------------------------------------------------------------------------------------
# From when to when
# ----------------------------------------------------------------------------------------


def _registered(module: nn.Module, name: str, parameter: Tensor | None) -> None:
    """A module takes a parameter: perhaps one that another one has."""
    if not getattr(_depth, "value", 0) or parameter is None:
        return
    # A mode would see each question that is asked of the tensor.
    with torch._C.DisableTorchFunction():
        storage = _storage(parameter)
        if storage is None:
            return
        memory = _memory(storage)
    owner = id(module), name
    if memory.known_at is None:
        memory.known_at, memory.owner = next(_count), owner
    elif memory.owner != owner and memory.tied_at is None:
        memory.tied_at = next(_count)


# In how many contexts a thread is.
_depth = threading.local()
_lock = threading.Lock()
_is_hooked = False


def _hook() -> None:
    """Have torch tell of each parameter that a module takes, from the first context of the process on.

    It stays: removed while another thread builds a module, torch would fail in going through its hooks.
    """
    global _is_hooked
    with _lock:
        if not _is_hooked:
            register_module_parameter_registration_hook(_registered)
            _is_hooked = True


@contextmanager
def watching() -> Iterator[None]:
    """While inside, it is seen which parameters modules take; afterwards a sample of what was not written."""
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
    """A few bytes of a storage on the CPU."""
    size = storage.nbytes()
    step = max(1, size // 16)
    return tuple(storage[place] for place in range(0, size, step))


@contextmanager
def watching_parameters(parameters: Iterable[Tensor]) -> Iterator[None]:
    """The same, for parameters that are there: which are tied, and which were never written by the end."""
    # Of lazy ones and those on meta there is nothing to say.
    listed = [one for one in parameters if _storage(one) is not None]
    found: set[int] = set()
    is_of_unwritten = not any(map(version_of, listed))
    for parameter in listed:
        memory = _remembered(parameter)
        if id(parameter) in found:
            memory.tied_at = next(_count)
        elif memory.known_at is None:
            memory.known_at = next(_count)
        found.add(id(parameter))
    with watching():
        yield
    for parameter in listed:
        if _storage(parameter) is None or version_of(parameter):
            continue
        memory = _remembered(parameter)
        if not memory.fills and memory.changed_at < 0 and not memory.is_empty:
            memory.is_left, memory.sample = True, _sample(memory.ref)
            memory.is_of_unwritten = is_of_unwritten


def _remembered(parameter: Tensor) -> Memory:
    storage = _storage(parameter)
    assert storage is not None
    return _memory(storage)
