"""The record of a model's operations on tensors, and the live part of the record for one tensor.

The record tracks storages. Views need no entries: a meta tensor has its own sizes, strides and offset.
"""

from __future__ import annotations

import heapq
import inspect
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import typing_extensions
from torch import Tensor

from paraminit_ext.key import Key
from paraminit_ext.models import steps as programs
from paraminit_ext.models.layout import Geometry
from paraminit_ext.models.steps import View

META = torch.device("meta")


def is_meta_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


# ----------------------------------------------------------------------------------------
# Code that cannot be recorded
# ----------------------------------------------------------------------------------------

# Files that are not the model's code: torch, this package, typing_extensions (it wraps deprecated functions
# of torch) and the standard library, whose directory may contain other packages.
_PLUMBING = (Path(torch.__file__).parent, Path(__file__).parents[1], Path(typing_extensions.__file__))
_STANDARD = Path(inspect.__file__).parent


def _is_plumbing(path: Path) -> bool:
    if any(path.is_relative_to(place) for place in _PLUMBING):
        return True
    return path.is_relative_to(_STANDARD) and "site-packages" not in path.parts


def line_of_code() -> str:
    """Return the current line of the model's code: the innermost one outside torch and this package."""
    frame: FrameType | None = sys._getframe(1)
    line = "unknown line"
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith("<"):
            line = f"{name}:{frame.f_lineno}"
            if not _is_plumbing(Path(name)):
                break
        frame = frame.f_back
    return line


def refuse(what: str, with_line: bool = True) -> NoReturn:
    """Raise, naming the current line of the model's code unless the code has already returned."""
    place = f" at {line_of_code()}" if with_line else ""
    raise RuntimeError(
        f"paraminit_ext.deferred_init: expected code that can be recorded, got {what}{place}. "
        "Build the model on a real device under paraminit_ext.patch()."
    )


# ----------------------------------------------------------------------------------------
# The record
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A meta tensor, identified as a view of a recorded storage."""

    storage: int
    geometry: Geometry

    @property
    def extent(self) -> tuple[int, int]:
        """The range of bytes of the storage that the tensor spans."""
        return self.geometry.extent

    @property
    def nbytes(self) -> int:
        """The size of the elements, in bytes."""
        return math.prod(self.geometry.size) * self.geometry.dtype.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether the tensor covers every byte of its extent."""
        return self.geometry.is_dense


@dataclass(slots=True)
class RecordedCall:
    """A call, and the tensors that it read, wrote and created."""

    do: str
    arguments: tuple[tuple[str, Any], ...]
    reads: tuple[TensorRef, ...] = ()
    writes: tuple[TensorRef, ...] = ()
    made: tuple[TensorRef, ...] = ()
    draw: RecordedDraw | None = None
    value: Tensor | None = None
    refused: str = ""  # why the call cannot be replayed; empty if it can


@dataclass(slots=True, eq=False)
class RecordedDraw:
    """The draw of one fill: its key, if one was drawn, and whether the model's code passed that key."""

    key: Key | None
    fixed: bool


@dataclass(slots=True)
class _Storage:
    storage: torch.UntypedStorage  # keeps it alive, so that its address is not used again
    base: Geometry
    device: torch.device | None  # the device that the code requested; meta only if the code requested meta
    writers: list[int] = field(default_factory=list)


class Record:
    """The recorded calls, in order, and the storages that they use."""

    def __init__(self) -> None:
        self.log: list[RecordedCall] = []
        self.storages: list[_Storage] = []
        self._index: dict[int, int] = {}

    def knows(self, tensor: Tensor) -> bool:
        return tensor.is_meta and self._index_of(tensor) is not None

    def _index_of(self, tensor: Tensor) -> int | None:
        if tensor.layout is not torch.strided:
            return None
        return self._index.get(tensor.untyped_storage()._cdata)

    def at(self, tensor: Tensor) -> TensorRef:
        index = self._index_of(tensor)
        assert index is not None
        return TensorRef(index, Geometry.of(tensor))

    def device_of(self, tensor: Tensor) -> torch.device | None:
        index = self._index_of(tensor)
        return None if index is None else self.storages[index].device

    def add_storage(self, tensor: Tensor, device: torch.device | None) -> TensorRef:
        """Start to track the storage of a new meta tensor."""
        storage = tensor.untyped_storage()
        base = Geometry.of(tensor)
        at = TensorRef(len(self.storages), base)
        if at.extent != (0, storage.nbytes()):
            flat = storage.nbytes() // base.dtype.itemsize
            base = Geometry(base.dtype, (flat,), (1,))
        self._index[storage._cdata] = len(self.storages)
        self.storages.append(_Storage(storage, base, device))
        return at

    def refresh(self, tensor: Tensor) -> None:
        """Update the record of a tensor whose storage was replaced or resized."""
        index = self._index_of(tensor)
        if index is None:
            self.add_storage(tensor, None)
            return
        known = self.storages[index]
        flat = known.storage.nbytes() // known.base.dtype.itemsize
        if known.base.extent[1] < known.storage.nbytes():
            if known.writers:
                refuse("a resize that enlarges a tensor with values")
            known.base = Geometry(known.base.dtype, (flat,), (1,))

    def add(self, call: RecordedCall) -> None:
        for at in (*call.writes, *call.made):
            writers = self.storages[at.storage].writers
            if not writers or writers[-1] != len(self.log):
                writers.append(len(self.log))
        self.log.append(call)

    def add_value(self, value: Tensor, device: torch.device | None) -> Tensor:
        """Record a value, and return a meta tensor that stands for it."""
        tensor = torch.empty(value.shape, dtype=value.dtype, device=META)
        at = self.add_storage(tensor, device)
        self.add(RecordedCall("value", (), made=(at,), value=value.detach().cpu().contiguous()))
        return tensor

    def is_on_meta_itself(self, tensor: Tensor) -> bool:
        """Return whether the model's code put the tensor on meta, or the tensor existed on meta before."""
        return is_meta_device(self.device_of(tensor))

    # -- live calls ------------------------------------------------------------------------

    def live(self, wanted: Iterable[TensorRef]) -> list[int]:
        """Return the indices of the calls that determine the values of these tensors, in order.

        Raises:
            RuntimeError: some values depend on a tensor that the code itself put on meta.
        """
        # By storage, the ranges of bytes whose values are needed.
        needed: dict[int, list[tuple[int, int]]] = {}
        waiting: list[int] = []  # a heap of negated indices in the log: the latest call comes first
        seen: set[int] = set()
        alive: list[int] = []

        def want(at: TensorRef, before: int) -> None:
            begin, end = at.extent
            if begin == end:
                return
            needed.setdefault(at.storage, []).append((begin, end))
            for writer in self.storages[at.storage].writers:
                if writer < before and writer not in seen:
                    seen.add(writer)
                    heapq.heappush(waiting, -writer)

        for at in wanted:
            want(at, len(self.log))
        while waiting:
            index = -heapq.heappop(waiting)
            call = self.log[index]
            written = (*call.writes, *call.made)
            if not any(_overlaps(at.extent, needed.get(at.storage, ())) for at in written):
                continue
            alive.append(index)
            for at in written:
                # Bytes that the call overwrites without reading: their earlier values are not needed.
                if at not in call.reads and at.storage in needed:
                    if at in call.made:
                        needed[at.storage] = []
                    elif at.is_dense:
                        needed[at.storage] = _subtract(needed[at.storage], at.extent)
            for at in call.reads:
                want(at, index)
        for storage, intervals in needed.items():
            if intervals and is_meta_device(self.storages[storage].device):
                refuse("the values of a tensor that the code itself put on meta", with_line=False)
        return alive[::-1]


def _overlaps(extent: tuple[int, int], intervals: Iterable[tuple[int, int]]) -> bool:
    begin, end = extent
    return any(begin < stop and start < end for start, stop in intervals)


def _subtract(intervals: Iterable[tuple[int, int]], extent: tuple[int, int]) -> list[tuple[int, int]]:
    begin, end = extent
    remaining: list[tuple[int, int]] = []
    for start, stop in intervals:
        remaining += [
            piece for piece in ((start, min(stop, begin)), (max(start, end), stop)) if piece[0] < piece[1]
        ]
    return remaining


# ----------------------------------------------------------------------------------------
# From the record to programs
# ----------------------------------------------------------------------------------------


class Program:
    """The live part of a record for one tensor, as steps of a plan.

    Args:
        record: the record
        at: the tensor
        values: the names of the recorded values in use, by index in the log. New names are added to it
        wanted: the tensors whose values the steps must give (default: ``at``)
        is_shared: whether other tensors share the storage; the layout is then always stored
    """

    def __init__(
        self,
        record: Record,
        at: TensorRef,
        values: dict[int, str],
        wanted: Iterable[TensorRef] = (),
        is_shared: bool = False,
    ) -> None:
        self.steps: list[programs.Step] = []
        self.draws: list[tuple[RecordedDraw, TensorRef]] = []
        self._record = record
        self._values = values
        self._at = at
        base = record.storages[at.storage].base
        self.layout = None if at.geometry == base and not is_shared else at.geometry
        self._slots = {at.storage: 0}
        self._made: set[int] = set()
        # The program starts from a new contiguous tensor, unless the tensor has another layout.
        if self.layout is None and base.is_contiguous:
            self._made.add(at.storage)
        alive = record.live(wanted or [at])
        for index in alive:
            if record.log[index].refused:
                refuse(record.log[index].refused, with_line=False)
            # A storage that a call creates needs no allocation before it.
            self._made.difference_update(made.storage for made in record.log[index].made)
        # The storages that are used through another view than the tensor that they were created with.
        used = [
            at,
            *(view for index in alive for view in (*record.log[index].reads, *record.log[index].writes)),
        ]
        self._viewed = {view.storage for view in used if view.geometry != record.storages[view.storage].base}
        for index in alive:
            self._add(index, record.log[index])
        if at.storage not in self._made:
            self._allocate(at.storage)

    def _add(self, index: int, call: RecordedCall) -> None:
        arguments = tuple((name, self._view(value)) for name, value in call.arguments)
        draw = None
        if call.draw is not None:
            draw = len(self.draws)
            self.draws.append((call.draw, call.writes[0]))
        if call.value is not None:
            name = self._values.setdefault(index, f"value.{len(self._values)}")
            arguments = (("value", name),)
        out = tuple(self._slot(at.storage) for at in call.made)
        self._made.update(at.storage for at in call.made)
        # On another device, an operator may give its result another layout than on meta. If later steps use
        # views of the result, record the layout that it has on meta.
        lies = tuple(at.geometry if at.storage in self._viewed else None for at in call.made)
        step = programs.Step(call.do, arguments, out, draw, lies if any(lies) else ())
        self.steps.append(step)

    def _slot(self, storage: int) -> int:
        return self._slots.setdefault(storage, len(self._slots))

    def _view(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._view(item) for item in value)
        if not isinstance(value, TensorRef):
            return value
        if value.storage not in self._made:
            self._allocate(value.storage)
        whole = value.geometry == self._record.storages[value.storage].base
        return View(self._slot(value.storage), None if whole else value.geometry)

    def _allocate(self, storage: int) -> None:
        self._made.add(storage)
        base = self._record.storages[storage].base
        arguments = (("size", base.size), ("stride", base.stride), ("dtype", base.dtype))
        self.steps.append(programs.Step("empty", arguments, (self._slot(storage),)))

    def run_on_cpu(self) -> Tensor:
        geometry = self._at.geometry
        values = {name: self._record.log[index].value for index, name in self._values.items()}
        return programs.make(
            self.steps,
            geometry.size,
            geometry.dtype,
            self.layout,
            programs.no_draw,
            values,  # type: ignore[arg-type]
            "cpu",
        )
