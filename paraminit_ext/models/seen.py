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
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_parameter_registration_hook

from paraminit_ext.models.layout import Geometry


class SeenFill(NamedTuple):
    """A call of a function of :mod:`paraminit_ext.init`."""

    name: str
    arguments: Mapping[str, Any]
    # Of the whole: what fans were computed from.
    shape: tuple[int, ...]
    # Bytes of the storage that were filled.
    extent: tuple[int, int]
    # The how-many-th thing that was seen.
    order: int
    # Where in the code: "file:line".
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


@dataclass
class Memory:
    """What was seen of one storage."""

    ref: StorageWeakRef
    # Allocated by torch.empty or its kin, and not written since.
    is_empty: bool = False
    # A parameter that was there when keyed() was entered, and was never written; of a module of which none
    # was written before.
    is_left: bool = False
    is_of_unwritten: bool = False
    fills: list[SeenFill] = field(default_factory=list)
    # When something but a fill was written, or may have been, for the last time.
    changed_at: int = -1
    # When a parameter of this storage was first seen in a module, and when a second place took it.
    known_at: int | None = None
    tied_at: int | None = None
    owners: set[tuple[int, str]] = field(default_factory=set)
    missed: list[Missed] = field(default_factory=list)
    # Of a copy: what it is a copy of.
    source: StorageWeakRef | None = None
    source_version: int = 0
    # A few bytes, as they were when what was seen ended.
    sample: tuple[int, ...] | None = None

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


def memory_of(tensor: Tensor) -> Memory | None:
    """What was seen of a plain tensor's storage; None for nothing."""
    if not _is_dense(tensor):
        return None
    found = _memories.get(tensor.untyped_storage()._cdata)
    return None if found is None or found.ref.expired() else found


def _is_dense(tensor: Tensor) -> bool:
    """Whether it has a storage that can be asked for: not on meta, sparse, or a transform's."""
    return type(tensor) in _PLAIN and not tensor.is_meta and tensor.layout is torch.strided


def extent_of(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage that are the tensor's, or its local one's."""
    return Geometry.of(_local(tensor)).extent


def version_of(tensor: Tensor) -> int:
    """How often it was written in place; of an inference tensor nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


# ----------------------------------------------------------------------------------------
# What is seen
# ----------------------------------------------------------------------------------------


def fill(name: str, arguments: Mapping[str, Any], shape: Iterable[int], tensor: Tensor) -> None:
    """A fill of ``tensor``, which is the whole of this shape or a part of it, has been done."""
    local = _local(tensor)
    if torch.compiler.is_compiling() or not _is_dense(local):
        return
    memory = _memory(local.untyped_storage())
    done = SeenFill(name, arguments, tuple(shape), Geometry.of(local).extent, next(_count), _line())
    is_new = not (memory.is_empty or memory.fills or memory.owners)
    memory.fills = [*memory.fills[-3:], done]
    memory.is_empty = memory.is_left = False
    if memory.source is not None:
        origin = _memories.get(memory.source.cdata)
        if origin is not None:
            origin.missed.append(Missed(name, done.line, memory.source_version, done.order))
        return
    # Asked of a view, torch would compute its grad_fn anew, which it refuses for some.
    leaves = [] if local._is_view() or local.grad_fn is None else list(_leaves(local))
    for leaf in leaves:
        if _is_dense(leaf):
            missed = Missed(name, done.line, version_of(leaf), done.order)
            _memory(leaf.untyped_storage()).missed.append(missed)
    if is_new and not leaves:
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


def allocated(made: Any, _: tuple[Any, ...] = ()) -> None:
    """A tensor was made without values."""
    if isinstance(made, Tensor) and _is_dense(_local(made)):
        _memory(_local(made).untyped_storage()).is_empty = True


def _write(_: Any, args: tuple[Any, ...]) -> None:
    """Something that is no fill of ours was written to the first argument."""
    memory = memory_of(_local(args[0])) if args and isinstance(args[0], Tensor) else None
    if memory is not None:
        memory.changed_at = next(_count)
        memory.is_empty = memory.is_left = False


def _copy(made: Any, args: tuple[Any, ...]) -> None:
    given = args[0] if args else None
    if not (isinstance(made, Tensor) and isinstance(given, Tensor)):
        return
    made, given = _local(made), _local(given)
    if _is_dense(made) and _is_dense(given):
        to, of = made.untyped_storage(), given.untyped_storage()
        if to._cdata != of._cdata:
            memory = _memory(to)
            origin = _memory(of)
            memory.source, memory.source_version = origin.ref, version_of(given)


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
    if not getattr(_depth, "value", 0) or not isinstance(parameter, Tensor):
        return
    if nn.parameter.is_lazy(parameter):
        return
    local = _local(parameter)
    if not _is_dense(local):
        return
    memory = _memory(local.untyped_storage())
    memory.owners.add((id(module), name))
    if memory.known_at is None:
        memory.known_at = next(_count)
    if len(memory.owners) > 1 and memory.tied_at is None:
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
    listed = [one for one in parameters if not nn.parameter.is_lazy(one) and _is_dense(_local(one))]
    found: set[int] = set()
    is_of_unwritten = not any(map(version_of, listed))
    for parameter in listed:
        memory = _memory(_local(parameter).untyped_storage())
        if id(parameter) in found:
            memory.tied_at = next(_count)
        elif memory.known_at is None:
            memory.known_at = next(_count)
        found.add(id(parameter))
    with watching():
        yield
    for parameter in listed:
        local = _local(parameter)
        if version_of(parameter) or not _is_dense(local):
            continue
        memory = _memory(local.untyped_storage())
        if not memory.fills and memory.changed_at < 0 and not memory.is_empty:
            memory.is_left, memory.sample = True, _sample(memory.ref)
            memory.is_of_unwritten = is_of_unwritten
