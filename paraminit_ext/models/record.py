"""Runs a model's code on meta, and records what happens to its parameters and buffers.

Two of torch's modes see it: fills as calls of functions, everything else as operators. Storages are what is
followed; views need no record, since a tensor on meta has its sizes, strides and offset.
"""

from __future__ import annotations

import copy
import functools
import heapq
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from paraminit_ext.geometry import Shard
from paraminit_ext.key import Key, refuse_generator, take_key
from paraminit_ext.many import DRAWING
from paraminit_ext.models import steps as programs
from paraminit_ext.models import stock
from paraminit_ext.models.fills import Fill, FillMode
from paraminit_ext.models.layout import Geometry
from paraminit_ext.models.steps import View

_P = ParamSpec("_P")
_Module = TypeVar("_Module", bound=nn.Module)

# Results of random operators that are no fills are recorded as values up to this size, in bytes.
_SMALL = 1 << 20

_META = torch.device("meta")


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
    device: torch.device | None
    made: bool  # by a call, or allocated empty
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

    def add_storage(self, tensor: Tensor, device: torch.device | None, made: bool) -> At:
        """Follow the storage of a new tensor on meta."""
        storage = tensor.untyped_storage()
        base = Geometry.of(tensor)
        at = At(len(self.storages), base)
        if at.extent != (0, storage.nbytes()):
            flat = storage.nbytes() // base.dtype.itemsize
            base = Geometry(base.dtype, (flat,), (1,))
        self._index[storage._cdata] = len(self.storages)
        self.storages.append(_Storage(storage, base, device, made))
        return at

    def look_again(self, tensor: Tensor) -> None:
        """Follow a tensor whose storage is another now, or another size."""
        index = self._index_of(tensor)
        if index is None:
            self.add_storage(tensor, None, made=False)
            return
        known = self.storages[index]
        flat = known.kept.nbytes() // known.base.dtype.itemsize
        if known.base.extent[1] < known.kept.nbytes():
            known.base = Geometry(known.base.dtype, (flat,), (1,))

    def add(self, happened: Happened) -> None:
        for at in (*happened.writes, *happened.made):
            writers = self.storages[at.storage].writers
            if not writers or writers[-1] != len(self.log):
                writers.append(len(self.log))
        self.log.append(happened)

    def add_value(self, value: Tensor, device: torch.device | None) -> Tensor:
        """A tensor on meta that has a recorded value."""
        tensor = torch.empty(value.shape, dtype=value.dtype, device=_META)
        at = self.add_storage(tensor, device, made=True)
        self.add(Happened("value", (), made=(at,), value=value.detach().cpu().contiguous()))
        return tensor

    # -- what is alive ---------------------------------------------------------------------

    def live(self, wanted: Iterable[At]) -> list[int]:
        """Which entries of the log the values of these tensors come from, in order."""
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
# The modes
# ----------------------------------------------------------------------------------------

_OURS = (Path(torch.__file__).parent, Path(__file__).parents[1])


def _line() -> str:
    """The line of the model's code that is at work: the innermost one outside torch and this package."""
    frame: FrameType | None = sys._getframe(1)
    inside = "unknown line"
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith("<"):
            inside = f"{name}:{frame.f_lineno}"
            if not any(Path(name).is_relative_to(folder) for folder in _OURS):
                break
        frame = frame.f_back
    return inside


def _refuse(what: str, line: str | None = None) -> NoReturn:
    raise RuntimeError(
        f"paraminit_ext.deferred_init: expected code that can be recorded, got {what} at {line or _line()}. "
        "Build the model on a real device under paraminit_ext.patch()."
    )


@functools.cache
def _defaults(name: str) -> Mapping[str, Any]:
    """The defaults of a function of this package."""
    from paraminit_ext import init

    parameters = inspect.signature(getattr(init, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


class Recorder:
    """Follows everything that the code inside does to tensors.

    Args:
        key: the key of the model; None takes each fill's draw from torch's generator
    """

    def __init__(self, key: Key | None) -> None:
        self.key = key
        self.record = Record()
        self.is_paused = False
        self._functions = _FunctionMode(self)
        self._operators = _OperatorMode(self)

    def __enter__(self) -> Recorder:
        stock.hold()
        self._operators.__enter__()  # type: ignore[no-untyped-call]
        self._functions.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._functions.__exit__(*error)  # type: ignore[no-untyped-call]
        self._operators.__exit__(*error)  # type: ignore[no-untyped-call]
        stock.release()

    # -- fills -----------------------------------------------------------------------------

    def fill(self, fill: Fill, _call: Callable[[], Any]) -> Any:
        tensor = fill.tensor
        if not isinstance(tensor, Tensor) or not tensor.is_meta:
            if isinstance(tensor, Shard) and tensor.local.is_meta:
                _refuse(f"{fill.name} of a shard")
            return fill.run(self._source(fill))
        at = self.adopt(tensor)
        self.is_paused = True
        try:
            # On meta a fill checks its arguments, warns, and does nothing.
            fill._replace(then=None).run(fill.generator)
        finally:
            self.is_paused = False
        if tensor.numel():
            defaults = _defaults(fill.name)
            arguments = tuple(
                (name, self._number(value))
                for name, value in fill.arguments.items()
                if name not in defaults or isinstance(value, Tensor) or value != defaults[name]
            )
            drawn = self._draw(fill, tensor) if fill.name in DRAWING else None
            self.record.add(Happened(fill.name, (("tensor", at), *arguments), writes=(at,), draw=drawn))
        return tensor if fill.then is None else fill.then(tensor)

    def _number(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            value = self.evaluate(value, "an argument of a fill").item()
        if isinstance(value, bool | int | str) or value is None:
            return value
        return float(value)

    def _source(self, fill: Fill) -> torch.Generator | Key | None:
        """What the code gave, else what the modes around have for it."""
        if fill.generator is not None:
            return fill.generator
        for mode in reversed(_get_current_function_mode_stack()):
            source = getattr(mode, "source", None)
            if isinstance(mode, FillMode) and source is not None:
                given: torch.Generator | Key | None = source(fill)
                if given is not None:
                    return given
        return None

    def _draw(self, fill: Fill, tensor: Tensor) -> Drawn:
        if isinstance(fill.generator, Key):
            return Drawn(fill.generator, fixed=True)
        device = self.record.device_of(tensor) or torch.get_default_device()
        if self.key is not None:
            refuse_generator(fill.name, fill.generator, device)
            return Drawn(None, fixed=False)
        source = self._source(fill)
        if isinstance(source, Key):
            return Drawn(source, fixed=False)
        if device.type == "meta":
            device = torch.device("cpu")
        self.is_paused = True
        try:
            seed, offset = take_key(fill.name, source, device, plain=True)
        finally:
            self.is_paused = False
        return Drawn(Key(int(seed) % 2**64, int(offset) % 2**64), fixed=False)

    # -- tensors ---------------------------------------------------------------------------

    def adopt(self, tensor: Tensor) -> At:
        """Where a tensor on meta is; one that was there before is followed as if it were allocated now."""
        if not self.record.knows(tensor):
            if tensor.layout is not torch.strided:
                _refuse(f"a tensor of layout {tensor.layout}")
            self.record.add_storage(tensor, None, made=False)
        return self.record.at(tensor)

    def on_meta(self, tensor: Tensor) -> Tensor:
        """The tensor, or for one with data another on meta that has its value."""
        if tensor.is_meta:
            return tensor
        if tensor.layout is not torch.strided:
            _refuse(f"a tensor of layout {tensor.layout}")
        # A copy, since it may be written later.
        return self.record.add_value(tensor.detach().clone(), tensor.device)

    def evaluate(self, tensor: Tensor, why: str) -> Tensor:
        """The values that a tensor on meta stands for, where these do not hang on random numbers."""
        if not tensor.is_meta:
            return tensor
        program = Program(self.record, self.adopt(tensor), {})
        if program.draws:
            _refuse(f"{why}, which hangs on random values,")
        self.is_paused = True
        try:
            return program.run_on_cpu()
        finally:
            self.is_paused = False

    # -- operators -------------------------------------------------------------------------

    def operate(
        self, operator: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        schema = operator._schema
        names = [argument.name for argument in schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        name = schema.name.removeprefix("aten::")
        tensors = list(_tensors(given.values()))
        device = given.get("device")
        is_meta = any(tensor.is_meta for tensor in tensors) or (device is not None and device.type == "meta")
        if (
            is_meta
            and name != "is_same_size"
            and schema.returns
            and isinstance(schema.returns[0].type, _NUMBERS)
        ):
            real = {key: self._real(value, "a value read back") for key, value in given.items()}
            return operator(**real)
        makes = not tensors and any(isinstance(r.type, torch.TensorType) for r in schema.returns)
        if not makes and not is_meta:
            # Of tensors with data alone: these stay what they are until one on meta meets them.
            return operator(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in operator.tags:
            return self._random(operator, name, given)
        given = {key: self._on_meta(value) for key, value in given.items()}
        if "device" in names and (makes or device is not None):
            given["device"] = _META
            given.pop("pin_memory", None)
        result = self._call(operator, name, given)
        first = next((tensor for tensor in _tensors(given.values())), None)
        claimed = (
            device if device is not None else self.record.device_of(first) if first is not None else None
        )
        if claimed is not None and claimed.type == "meta":
            claimed = None
        self._note(operator, name, given, result, claimed)
        return result

    def _call(self, operator: torch._ops.OpOverload, name: str, given: Mapping[str, Any]) -> Any:
        try:
            return operator(**given)
        except NotImplementedError:
            _refuse(f"torch.{name}, whose result hangs on values,")

    def _on_meta(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.on_meta(value)
        if isinstance(value, list | tuple):
            return [self._on_meta(one) for one in value]
        return value

    def _real(self, value: Any, why: str) -> Any:
        if isinstance(value, Tensor):
            return self.evaluate(value, why)
        if isinstance(value, list | tuple):
            return [self._real(one, why) for one in value]
        return value

    def _note(
        self,
        operator: torch._ops.OpOverload,
        name: str,
        given: Mapping[str, Any],
        result: Any,
        device: torch.device | None,
    ) -> None:
        """Record the call, unless it only made views or empty tensors."""
        if name in ("set_", "resize_", "resize_as_") or torch.Tag.inplace_view in operator.tags:
            # No values: where the tensor lies, and how much there is.
            self.record.look_again(given["self"])
            return
        schema = operator._schema
        taken = {id(t): self.adopt(t) for t in _tensors(given.values()) if t.layout is torch.strided}
        writes = [
            self.record.at(tensor)
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors([given.get(argument.name)])
        ]
        results = list(_tensors([result]))
        fresh = [t for t in results if t.layout is not torch.strided or not self.record.knows(t)]
        is_empty = name.startswith(("empty", "new_empty"))
        if not writes and (not fresh or is_empty):
            for tensor in fresh:
                if tensor.layout is torch.strided:
                    self.record.add_storage(tensor, device, made=False)
            return
        refused = ""
        if not programs.is_recordable(operator) or (fresh and len(fresh) != len(results)):
            refused = f"torch.{name}, which a plan cannot hold, at {_line()}"
        if any(t.is_conj() or t.is_neg() for t in _tensors(given.values())):
            refused = f"torch.{name} of a conjugate view at {_line()}"
        reads = [
            at
            for argument in schema.arguments
            for tensor in _tensors([given.get(argument.name)])
            if (at := taken.get(id(tensor))) is not None
            and not (
                argument.alias_info is not None
                and argument.alias_info.is_write
                and programs.overwrites(operator)
            )
        ]
        if any(t.layout is not torch.strided for t in fresh):
            return
        made = tuple(self.record.add_storage(tensor, device, made=True) for tensor in fresh)
        arguments = tuple(
            (argument.name, self._frozen(given[argument.name]))
            for argument in schema.arguments
            if argument.name in given
            and argument.name not in ("device", "pin_memory", "layout", "non_blocking")
            and not (argument.has_default_value() and _same(given[argument.name], argument.default_value))
        )
        do = f"aten.{name}.{operator._overloadname}"
        self.record.add(Happened(do, arguments, tuple(reads), tuple(writes), made, refused=refused))

    def _frozen(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.record.at(value)
        if isinstance(value, list | tuple):
            return tuple(self._frozen(one) for one in value)
        return value

    def _random(self, operator: torch._ops.OpOverload, name: str, given: dict[str, Any]) -> Any:
        """A random operator that is no fill: done now, for real, if its result is small."""
        schema = operator._schema
        written = [
            argument.name
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        sizes = {key: self._on_meta(value) for key, value in given.items() if key != "device"}
        if any(argument.name == "device" for argument in schema.arguments):
            sizes["device"] = _META
            sizes.pop("pin_memory", None)
        sizes.pop("generator", None)
        shapes = list(_tensors([self._call(operator, name, sizes)]))
        shapes += _tensors(given[argument] for argument in written)
        if sum(tensor.numel() * tensor.element_size() for tensor in shapes) > _SMALL:
            _refuse(f"torch.{name}, random values of more than {_SMALL >> 20} MiB that are no fill,")
        in_place = written == ["self"]
        real: dict[str, Any] = {}
        for key, value in given.items():
            if key in written and in_place:
                # It is overwritten unread.
                real[key] = torch.empty(value.shape, dtype=value.dtype, device="cpu")
            else:
                real[key] = self._real(value, f"torch.{name}")
        result = operator(**real)
        if in_place:
            target = given["self"]
            self.operate(torch.ops.aten.copy_.default, (target, self.on_meta(result)), {})
            return target
        return _map(result, self.on_meta)


_NUMBERS = (torch.BoolType, torch.IntType, torch.FloatType, torch.NumberType)


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map(one, function) for one in value)
    return value


def _same(value: Any, default: Any) -> bool:
    """Whether an argument is its default; tensors never are."""
    return not list(_tensors([value])) and type(value) is type(default) and bool(value == default)


class _OperatorMode(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if (
            self._recorder.is_paused
            or not isinstance(func, torch._ops.OpOverload)
            or func.namespace != "aten"
        ):
            return func(*args, **(kwargs or {}))
        return self._recorder.operate(func, args, kwargs or {})


class _FunctionMode(FillMode):
    records = True

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder.fill)
        self._recorder = recorder

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _READS and args[0].is_meta:
            value = self._recorder.evaluate(args[0], "a value read back")
            return func(value, *args[1:], **(kwargs or {}))
        if func in _FROM_NUMBERS and not any(
            isinstance(value, Tensor) for value in args[func is Tensor.new_tensor :]
        ):
            # On meta, where the code has them because its other tensors are there, the numbers would be lost.
            given = dict(kwargs or {})
            device = given.get("device") or (
                args[0] if func is Tensor.new_tensor else torch.get_default_device()
            )
            if torch.device(getattr(device, "device", device)).type == "meta":
                given["device"] = torch.device("cpu")
            return func(*args, **given)
        if func is Tensor.__deepcopy__ and args[0].layout is torch.strided:
            return _copied(*args)
        return super().__torch_function__(func, types, args, kwargs)


# What makes tensors of Python's numbers or NumPy's arrays: they have values until they meet one on meta.
_FROM_NUMBERS = frozenset({torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor})
# Ways out of torch that are no operators.
_READS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__})


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """``copy.deepcopy`` of a tensor, by an operator: torch copies the storage."""
    if id(tensor) in memo:
        found: Tensor = memo[id(tensor)]
        return found
    made = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    memo[id(tensor)] = made
    made.__dict__.update(copy.deepcopy(tensor.__dict__, memo))
    return made


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
                _refuse_late(record.log[index].refused)
            # One that a call makes is not allocated before.
            self._made.difference_update(made.storage for made in record.log[index].made)
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
        self.steps.append(programs.Step(happened.do, arguments, out, draw))

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
        slots: dict[int, Tensor] = {}
        if all(0 not in step.out for step in self.steps):
            slots[0] = self._at.geometry.empty("cpu")
        values = {name: self._record.log[index].value for index, name in self._values.items()}
        programs.run(self.steps, slots, _no_draw, values, "cpu")  # type: ignore[arg-type]
        return slots[0] if self.layout is None else self.layout.view(slots[0])


def _no_draw(index: int) -> Key:
    raise AssertionError(index)


def _refuse_late(what: str) -> NoReturn:
    raise RuntimeError(
        f"paraminit_ext.deferred_init: expected code that can be recorded, got {what}. "
        "Build the model on a real device under paraminit_ext.patch()."
    )
