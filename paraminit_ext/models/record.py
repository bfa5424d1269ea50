"""What happened to the tensors of a model's code, and the live part of it for one of them.

Storages are what is followed; views need no record, since a tensor on meta has its sizes, strides and offset.
"""

from __future__ import annotations

import heapq
import inspect
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
# What cannot be recorded
# ----------------------------------------------------------------------------------------

# Whose frames are not the model's code: torch's and this package's, the wrapper of what torch deprecates, and
# the standard library's, in whose folder other packages may lie.
_PLUMBING = (Path(torch.__file__).parent, Path(__file__).parents[1], Path(typing_extensions.__file__))
_STANDARD = Path(inspect.__file__).parent


def _is_plumbing(path: Path) -> bool:
    if any(path.is_relative_to(place) for place in _PLUMBING):
        return True
    return path.is_relative_to(_STANDARD) and "site-packages" not in path.parts


def line_of_code() -> str:
    """The line of the model's code that is at work: the innermost one outside torch and this package."""
    frame: FrameType | None = sys._getframe(1)
    inside = "unknown line"
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith("<"):
            inside = f"{name}:{frame.f_lineno}"
            if not _is_plumbing(Path(name)):
                break
        frame = frame.f_back
    return inside


def refuse(what: str, at_work: bool = True) -> NoReturn:
    """Raise, with the line that is at work unless the code has run by now."""
    place = f" at {line_of_code()}" if at_work else ""
    raise RuntimeError(
        f"paraminit_ext.deferred_init: expected code that can be recorded, got {what}{place}. "
        "Build the model on a real device under paraminit_ext.patch()."
    )


# ----------------------------------------------------------------------------------------
# The record
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class At:
    """A tensor on meta: a view of a storage."""

    storage: int
    geometry: Geometry

    @property
    def extent(self) -> tuple[int, int]:
        """The bytes of the storage that it reaches."""
        return self.geometry.extent

    @property
    def is_dense(self) -> bool:
        """Whether it has every byte of its extent."""
        return self.geometry.is_dense


@dataclass(slots=True)
class Happened:
    """Something that happened: a call, which tensors it read, wrote and made."""

    do: str
    arguments: tuple[tuple[str, Any], ...]
    reads: tuple[At, ...] = ()
    writes: tuple[At, ...] = ()
    made: tuple[At, ...] = ()
    draw: Drawn | None = None
    value: Tensor | None = None
    refused: str = ""  # why it is not to be replayed, if so


@dataclass(slots=True, eq=False)
class Drawn:
    """The draw of one fill: its key if one was taken, and whether the code passed it."""

    key: Key | None
    fixed: bool


@dataclass(slots=True)
class _Storage:
    kept: torch.UntypedStorage
    base: Geometry
    device: torch.device | None  # what the code takes it to be on; meta where it put it there itself
    writers: list[int] = field(default_factory=list)


class Record:
    """What happened, in order, and to which storages."""

    def __init__(self) -> None:
        self.log: list[Happened] = []
        self.storages: list[_Storage] = []
        self._index: dict[int, int] = {}

    def knows(self, tensor: Tensor) -> bool:
        return tensor.is_meta and self._index_of(tensor) is not None

    def _index_of(self, tensor: Tensor) -> int | None:
        if tensor.layout is not torch.strided:
            return None
        return self._index.get(tensor.untyped_storage()._cdata)

    def at(self, tensor: Tensor) -> At:
        index = self._index_of(tensor)
        assert index is not None
        return At(index, Geometry.of(tensor))

    def device_of(self, tensor: Tensor) -> torch.device | None:
        index = self._index_of(tensor)
        return None if index is None else self.storages[index].device

    def add_storage(self, tensor: Tensor, device: torch.device | None) -> At:
        """Follow the storage of a new tensor on meta."""
        storage = tensor.untyped_storage()
        base = Geometry.of(tensor)
        at = At(len(self.storages), base)
        if at.extent != (0, storage.nbytes()):
            flat = storage.nbytes() // base.dtype.itemsize
            base = Geometry(base.dtype, (flat,), (1,))
        self._index[storage._cdata] = len(self.storages)
        self.storages.append(_Storage(storage, base, device))
        return at

    def look_again(self, tensor: Tensor) -> None:
        """Follow a tensor whose storage is another now, or another size."""
        index = self._index_of(tensor)
        if index is None:
            self.add_storage(tensor, None)
            return
        known = self.storages[index]
        flat = known.kept.nbytes() // known.base.dtype.itemsize
        if known.base.extent[1] < known.kept.nbytes():
            if known.writers:
                refuse("a tensor made larger that has values")
            known.base = Geometry(known.base.dtype, (flat,), (1,))

    def add(self, happened: Happened) -> None:
        for at in (*happened.writes, *happened.made):
            writers = self.storages[at.storage].writers
            if not writers or writers[-1] != len(self.log):
                writers.append(len(self.log))
        self.log.append(happened)

    def add_value(self, value: Tensor, device: torch.device | None) -> Tensor:
        """A tensor on meta that has a recorded value."""
        tensor = torch.empty(value.shape, dtype=value.dtype, device=META)
        at = self.add_storage(tensor, device)
        self.add(Happened("value", (), made=(at,), value=value.detach().cpu().contiguous()))
        return tensor

    def is_on_meta_itself(self, tensor: Tensor) -> bool:
        """Whether the code put the tensor on meta, or it was there before."""
        return is_meta_device(self.device_of(tensor))

    # -- what is alive ---------------------------------------------------------------------

    def live(self, wanted: Iterable[At]) -> list[int]:
        """Which entries of the log the values of these tensors come from, in order.

        Raises:
            RuntimeError: some come from a tensor that the code itself has on meta.
        """
        needed: dict[int, list[tuple[int, int]]] = {}
        waiting: list[int] = []  # a heap of negated places in the log: the latest comes first
        seen: set[int] = set()
        alive: list[int] = []

        def want(at: At, before: int) -> None:
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
            happened = self.log[index]
            written = (*happened.writes, *happened.made)
            if not any(_meet(at.extent, needed.get(at.storage, ())) for at in written):
                continue
            alive.append(index)
            for at in written:
                # What is written without being read is not needed from before.
                if at not in happened.reads and at.storage in needed:
                    if at in happened.made:
                        needed[at.storage] = []
                    elif at.is_dense:
                        needed[at.storage] = _without(needed[at.storage], at.extent)
            for at in happened.reads:
                want(at, index)
        for storage, intervals in needed.items():
            if intervals and is_meta_device(self.storages[storage].device):
                refuse("the values of a tensor that the code itself put on meta", at_work=False)
        return alive[::-1]


def _meet(extent: tuple[int, int], intervals: Iterable[tuple[int, int]]) -> bool:
    begin, end = extent
    return any(begin < stop and start < end for start, stop in intervals)


def _without(intervals: Iterable[tuple[int, int]], extent: tuple[int, int]) -> list[tuple[int, int]]:
    begin, end = extent
    left: list[tuple[int, int]] = []
    for start, stop in intervals:
        left += [
            piece for piece in ((start, min(stop, begin)), (max(start, end), stop)) if piece[0] < piece[1]
        ]
    return left


# ----------------------------------------------------------------------------------------
# From the record to programs
# ----------------------------------------------------------------------------------------


class Program:
    """The live part of a record for one tensor, as steps of a plan.

    Args:
        record: what happened
        at: the tensor
        values: the recorded values that are in use, by their place in the log: the name of each is added
        wanted: what is to have its values in the end (default: ``at``)
        is_shared: whether other tensors lie in the storage, so that the layout is said in any case
    """

    def __init__(
        self,
        record: Record,
        at: At,
        values: dict[int, str],
        wanted: Iterable[At] = (),
        is_shared: bool = False,
    ) -> None:
        self.steps: list[programs.Step] = []
        self.draws: list[tuple[Drawn, At]] = []
        self._record = record
        self._values = values
        self._at = at
        base = record.storages[at.storage].base
        self.layout = None if at.geometry == base and not is_shared else at.geometry
        self._slots = {at.storage: 0}
        self._made: set[int] = set()
        # A new tensor of this shape is what the program begins with, unless it lies otherwise.
        if self.layout is None and base.is_contiguous:
            self._made.add(at.storage)
        alive = record.live(wanted or [at])
        for index in alive:
            if record.log[index].refused:
                refuse(record.log[index].refused, at_work=False)
            # One that a call makes is not allocated before.
            self._made.difference_update(made.storage for made in record.log[index].made)
        # The storages of which more is used than the tensor that was made with them.
        used = [
            at,
            *(one for index in alive for one in (*record.log[index].reads, *record.log[index].writes)),
        ]
        self._viewed = {one.storage for one in used if one.geometry != record.storages[one.storage].base}
        for index in alive:
            self._add(index, record.log[index])
        if at.storage not in self._made:
            self._allocate(at.storage)

    def _add(self, index: int, happened: Happened) -> None:
        arguments = tuple((name, self._view(value)) for name, value in happened.arguments)
        draw = None
        if happened.draw is not None:
            draw = len(self.draws)
            self.draws.append((happened.draw, happened.writes[0]))
        if happened.value is not None:
            name = self._values.setdefault(index, f"value.{len(self._values)}")
            arguments = (("value", name),)
        out = tuple(self._slot(at.storage) for at in happened.made)
        self._made.update(at.storage for at in happened.made)
        # A device's operator may lay its result out otherwise than meta's: where views of it follow, as here.
        lies = tuple(at.geometry if at.storage in self._viewed else None for at in happened.made)
        step = programs.Step(happened.do, arguments, out, draw, lies if any(lies) else ())
        self.steps.append(step)

    def _slot(self, storage: int) -> int:
        return self._slots.setdefault(storage, len(self._slots))

    def _view(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._view(one) for one in value)
        if not isinstance(value, At):
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
        lies = self._at.geometry
        values = {name: self._record.log[index].value for index, name in self._values.items()}
        return programs.make(self.steps, lies.size, lies.dtype, self.layout, _no_draw, values, "cpu")  # type: ignore[arg-type]


def _no_draw(index: int) -> Key:
    raise AssertionError(index)
