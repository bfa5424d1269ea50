"""Runs a model's code on meta, and records what happens to its parameters and buffers.

Two of torch's modes see it: fills as calls of functions, everything else as operators. Storages are what is
followed; views need no record, since a tensor on meta has its sizes, strides and offset.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import heapq
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import typing_extensions
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from paraminit_ext import init
from paraminit_ext.geometry import Shard
from paraminit_ext.key import Key, refuse_generator, take_key
from paraminit_ext.many import DRAWING
from paraminit_ext.models import steps as programs
from paraminit_ext.models import stock
from paraminit_ext.models.fills import Fill, FillMode
from paraminit_ext.models.layout import Geometry, exchange
from paraminit_ext.models.steps import View

# Results of random operators that are no fills are recorded as values up to this size, in bytes.
_SMALL = 1 << 20

_META = torch.device("meta")


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


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
                _refuse("a tensor made larger that has values")
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
        at = self.add_storage(tensor, device)
        self.add(Happened("value", (), made=(at,), value=value.detach().cpu().contiguous()))
        return tensor

    def is_on_meta_itself(self, tensor: Tensor) -> bool:
        """Whether the code put the tensor on meta, or it was there before."""
        return _is_meta(self.device_of(tensor))

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
            if intervals and _is_meta(self.storages[storage].device):
                _refuse("the values of a tensor that the code itself put on meta", "")
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

# Whose frames are not the model's code: torch's and this package's, the wrapper of what torch deprecates, and
# the standard library's, in whose folder other packages may lie.
_PLUMBING = (Path(torch.__file__).parent, Path(__file__).parents[1], Path(typing_extensions.__file__))
_STANDARD = Path(inspect.__file__).parent


def _is_plumbing(path: Path) -> bool:
    if any(path.is_relative_to(place) for place in _PLUMBING):
        return True
    return path.is_relative_to(_STANDARD) and "site-packages" not in path.parts


def _line() -> str:
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


def _refuse(what: str, line: str | None = None) -> NoReturn:
    place = f" at {_line()}" if line is None else line and f" at {line}"
    raise RuntimeError(
        f"paraminit_ext.deferred_init: expected code that can be recorded, got {what}{place}. "
        "Build the model on a real device under paraminit_ext.patch()."
    )


@functools.cache
def _defaults(name: str) -> Mapping[str, Any]:
    """The defaults of a function of this package."""
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
        # Whether the call that is made asks for meta itself: operators pass on where their arguments are.
        self.asks_for_meta = False
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
        if isinstance(tensor, Shard) and tensor.local.is_meta:
            _refuse(f"{fill.name} of a shard")
        if (
            isinstance(tensor, Tensor)
            and not tensor.is_meta
            and self.key is not None
            and fill.name in DRAWING
        ):
            # Its numbers are to come from its name, which is not known yet.
            self._put_on_meta(tensor, fill.name)
        if not isinstance(tensor, Tensor) or not tensor.is_meta:
            return fill.run(self._source(fill))
        at = self.adopt(tensor)
        with self.paused():
            # On meta a fill checks its arguments, warns, and does nothing.
            fill._replace(then=None).run(fill.generator)
        if tensor.numel() and not self.record.is_on_meta_itself(tensor):
            defaults = _defaults(fill.name)
            arguments = tuple(
                (name, self._number(value))
                for name, value in fill.arguments.items()
                if name not in defaults or isinstance(value, Tensor) or value != defaults[name]
            )
            drawn = self._draw(fill, tensor) if fill.name in DRAWING else None
            self.record.add(Happened(fill.name, (("tensor", at), *arguments), writes=(at,), draw=drawn))
        return tensor if fill.then is None else fill.then(tensor)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing inside is recorded."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    @contextlib.contextmanager
    def asking(self, device: Any) -> Iterator[None]:
        """The call inside is made by the code itself, with this device."""
        before, self.asks_for_meta = self.asks_for_meta, _is_meta(device)
        try:
            yield
        finally:
            self.asks_for_meta = before

    def _put_on_meta(self, tensor: Tensor, name: str) -> None:
        """Have the object of a tensor with data be one on meta with that value from now on."""
        if tensor._base is not None:
            _refuse(f"torch.{name} of a view of a tensor that was made of numbers")
        value = self.on_meta(tensor)
        with self.paused():
            exchange(tensor, value)

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
        device = self.device_of(tensor)
        if self.key is not None:
            refuse_generator(fill.name, fill.generator, device)
            return Drawn(None, fixed=False)
        source = self._source(fill)
        if isinstance(source, Key):
            return Drawn(source, fixed=False)
        with self.paused():
            seed, offset = take_key(fill.name, source, device, plain=True)
        return Drawn(Key(int(seed) % 2**64, int(offset) % 2**64), fixed=False)

    def device_of(self, tensor: Tensor) -> torch.device:
        """What the code takes the tensor to be on."""
        if not tensor.is_meta:
            return tensor.device
        return self.record.device_of(tensor) or (
            torch.get_default_device() if self.record.knows(tensor) else _META
        )

    # -- tensors ---------------------------------------------------------------------------

    def adopt(self, tensor: Tensor) -> At:
        """Where a tensor on meta is; one that was there before is there for the code itself."""
        if not self.record.knows(tensor):
            if tensor.layout is not torch.strided:
                _refuse(f"a tensor of layout {tensor.layout}")
            self.record.add_storage(tensor, _META)
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
        with self.paused():
            value = program.run_on_cpu()
        value = value.conj() if tensor.is_conj() else value
        return torch._neg_view(value) if tensor.is_neg() else value

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
        is_meta = any(tensor.is_meta for tensor in tensors) or _is_meta(device)
        makes = not tensors and any(isinstance(r.type, torch.TensorType) for r in schema.returns)
        if not makes and not is_meta:
            # Of tensors with data alone: these stay what they are until one on meta meets them.
            return operator(*args, **kwargs)
        if makes and name == "empty" and 0 in given["size"]:
            # Nothing is in it, and torch.load and others give it a storage with data.
            return operator(*args, **kwargs)
        if name != "is_same_size" and schema.returns and isinstance(schema.returns[0].type, _NUMBERS):
            return operator(**{key: self._real(value, "a value read back") for key, value in given.items()})
        if torch.Tag.nondeterministic_seeded in operator.tags:
            return self._random(operator, name, given)
        if any(not tensor.is_meta for tensor in _written(operator, given)):
            return self._write_for_real(operator, name, given)
        given = {key: _map(value, self.on_meta) for key, value in given.items()}
        if "device" in names and (makes or device is not None):
            given["device"] = _META
            given.pop("pin_memory", None)
        result = self._call(operator, name, given)
        first = next((tensor for tensor in _tensors(given.values())), None)
        if device is None or (_is_meta(device) and not self.asks_for_meta):
            device = None if first is None else self.record.device_of(first)
        self._note(operator, name, given, result, device)
        return result

    def _write_for_real(self, operator: torch._ops.OpOverload, name: str, given: dict[str, Any]) -> Any:
        """A write to a tensor with data of values that stand for themselves: it is done, and not recorded."""
        if name in ("set_", "resize_as_"):
            _refuse(f"torch.{name} of a tensor with data")
        real = {
            key: self._real(value, f"torch.{name} of a tensor that was made of numbers")
            for key, value in given.items()
        }
        return operator(**real)

    def _call(self, operator: torch._ops.OpOverload, name: str, given: Mapping[str, Any]) -> Any:
        try:
            return operator(**given)
        except NotImplementedError:
            _refuse(f"torch.{name}, whose result hangs on values,")

    def _real(self, value: Any, why: str) -> Any:
        return _map(value, lambda tensor: self.evaluate(tensor, why))

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
        for tensor in _written(operator, given):
            self.record.look_again(tensor)  # which `out=` may have resized
        for tensor in _tensors(given.values()):
            if tensor.layout is torch.strided:
                self.adopt(tensor)
        writes = [self.record.at(tensor) for tensor in _written(operator, given)]
        results = list(_tensors([result]))
        fresh = [t for t in results if t.layout is not torch.strided or not self.record.knows(t)]
        is_empty = name.startswith(("empty", "new_empty"))
        if not writes and (not fresh or is_empty):
            for tensor in fresh:
                if tensor.layout is torch.strided:
                    self.record.add_storage(tensor, device)
            return
        refused = ""
        if name in _HIDDEN_WRITES:
            self._refuse_later(given, name)
        given = self._explicit(schema, given, fresh)
        if not programs.is_recordable(operator) or (fresh and len(fresh) != len(results)):
            refused = f"torch.{name}, which a plan cannot hold, at {_line()}"
        if any(t.is_conj() or t.is_neg() for t in _tensors(given.values())):
            refused = f"torch.{name} of a conjugate view at {_line()}"
        reads = [
            self.record.at(tensor)
            for argument in schema.arguments
            for tensor in _tensors([given.get(argument.name)])
            if tensor.layout is torch.strided
            and not (
                argument.alias_info is not None
                and argument.alias_info.is_write
                and programs.overwrites(operator)
            )
        ]
        if any(t.layout is not torch.strided for t in fresh):
            return
        made = tuple(self.record.add_storage(tensor, device) for tensor in fresh)
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

    def _explicit(self, schema: Any, given: Mapping[str, Any], fresh: list[Tensor]) -> dict[str, Any]:
        """The arguments, and in them what hangs on torch's default dtype while the code runs."""
        explicit = dict(given)
        floating = fresh[0].dtype if fresh and fresh[0].dtype.is_floating_point else None
        tensors = list(_tensors(given.values()))
        if any(argument.name == "dtype" for argument in schema.arguments):
            if not tensors and fresh and given.get("dtype") is None:
                explicit["dtype"] = fresh[0].dtype
        elif (
            floating is not None
            and tensors
            and not any(t.dtype.is_floating_point or t.dtype.is_complex for t in tensors)
        ):
            # Integers made floating: first converted, which is what the operator does.
            convert = torch.ops.aten._to_copy.default

            def converted(value: Any) -> Any:
                if isinstance(value, Tensor) and value.dtype is not torch.bool:
                    return self.operate(convert, (value,), {"dtype": floating})
                return value

            explicit = {key: converted(value) for key, value in given.items()}
        return explicit

    def _refuse_later(self, given: Mapping[str, Any], name: str) -> None:
        """Note that the call wrote its running statistics, which its schema does not say."""
        if not (given.get("training", given.get("train", False))):
            return
        at = tuple(
            self.adopt(given[key]) for key in ("running_mean", "running_var") if given.get(key) is not None
        )
        what = f"torch.{name} in training, which a plan cannot hold, at {_line()}"
        self.record.add(Happened(name, (), reads=at, writes=at, refused=what))

    def _random(self, operator: torch._ops.OpOverload, name: str, given: dict[str, Any]) -> Any:
        """A random operator that is no fill: done now, for real, if its result is small."""
        written = _written(operator, given)
        sizes = {key: _map(value, self.on_meta) for key, value in given.items()}
        if any(argument.name == "device" for argument in operator._schema.arguments):
            sizes["device"] = _META
            sizes.pop("pin_memory", None)
        if "generator" in sizes:
            sizes["generator"] = None
        shapes = [*_tensors([self._call(operator, name, sizes)]), *written]
        if sum(tensor.numel() * tensor.element_size() for tensor in shapes) > _SMALL:
            _refuse(f"torch.{name}, random values of more than {_SMALL >> 20} MiB that are no fill,")
        # What is written with data, for what on meta: by the id of the former.
        stands: dict[int, tuple[Tensor, Tensor]] = {}

        def real(value: Tensor) -> Tensor:
            if not value.is_meta or not any(value is one for one in written):
                return self.evaluate(value, f"torch.{name}")
            with self.paused():
                # As it lies: the order of memory decides which element gets which number.
                made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
                if not (programs.overwrites(operator) or name in _UNREAD):
                    made.copy_(self.evaluate(value, f"torch.{name}"))
            stands[id(made)] = made, value
            return made

        result = operator(**{key: _map(value, real) for key, value in given.items()})
        for made, target in stands.values():
            if made.shape != target.shape:
                target.resize_(made.shape)
                self.record.look_again(target)
            self.operate(torch.ops.aten.copy_.default, (target, self.on_meta(made)), {})
        return _map(
            result, lambda tensor: stands[id(tensor)][1] if id(tensor) in stands else self.on_meta(tensor)
        )


def _written(operator: torch._ops.OpOverload, given: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a call writes, by its schema."""
    return [
        tensor
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors([given.get(argument.name)])
    ]


# Random operators that read nothing of the tensor that they write.
_UNREAD = frozenset(
    {"bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"}
)
# Operators that write statistics which their schemas do not say they write.
_HIDDEN_WRITES = frozenset(
    {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm_update_stats"}
)
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
        if self._recorder.is_paused:
            return func(*args, **(kwargs or {}))
        # What the recorder asks of tensors is what they are, not what the code is told.
        with torch._C.DisableTorchFunction():
            if isinstance(func, torch._ops.OpOverload) and func.namespace == "aten":
                return self._recorder.operate(func, args, kwargs or {})
            if any(tensor.is_meta for tensor in _tensors([*args, *(kwargs or {}).values()])):
                _refuse(f"{func}, which a plan cannot hold,")
            return func(*args, **(kwargs or {}))


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
        recorder = self._recorder
        if recorder.is_paused:
            return func(*args, **(kwargs or {}))
        if func in _READS and args[0].is_meta:
            with torch._C.DisableTorchFunction():
                value = func(recorder.evaluate(args[0], "a value read back"), *args[1:], **(kwargs or {}))
            if func is not Tensor.tolist:
                # A write to it would be lost.
                value.flags.writeable = False
            return value
        is_cast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        if is_cast and any(tensor.is_meta for tensor in _tensors([*args, *(kwargs or {}).values()])):
            _refuse(f"torch.{getattr(func, '__name__', func)} under autocast")
        told = _DEVICES.get(func)
        if told is not None and args[0].is_meta:
            return told(recorder.device_of(args[0]))
        if func in _MOVES:
            return self._move(func, args, dict(kwargs or {}))
        if func == _SET_DATA and args[0].is_meta != args[1].is_meta:
            if args[0].is_meta:
                return func(args[0], recorder.on_meta(args[1]))
            with recorder.paused():
                exchange(args[0], args[1])
            return None
        if func in _FROM_NUMBERS:
            return self._from_numbers(func, args, dict(kwargs or {}))
        if func is Tensor.__deepcopy__ and args[0].layout is torch.strided:
            return _copied(*args)
        with recorder.asking((kwargs or {}).get("device") or torch.get_default_device()):
            return super().__torch_function__(func, types, args, kwargs)

    def _move(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``Tensor.to``, ``cpu`` and ``type_as``: the tensor itself where it is already what is asked for."""
        tensor = args[0]
        if func is Tensor.cpu:
            device, dtype, form, copy = torch.device("cpu"), None, kwargs.get("memory_format"), False
        else:
            copy = bool(kwargs.pop("copy", False))
            rest = args[1:]
            if rest and isinstance(rest[0], Tensor):  # to(other)
                device, dtype, form = (
                    self._recorder.device_of(rest[0]),
                    rest[0].dtype,
                    kwargs.get("memory_format"),
                )
            else:
                device, dtype, _, form = torch._C._nn._parse_to(*rest, **kwargs)
        here = self._recorder.device_of(tensor)
        same = (
            (device is None or device == here)
            and (dtype is None or dtype == tensor.dtype)
            and form in (None, torch.preserve_format)
        )
        if same and not copy:
            return tensor
        with self._recorder.asking(device):
            return tensor.to(
                device=device or here,
                dtype=dtype or tensor.dtype,
                copy=copy,
                memory_format=form or torch.preserve_format,
            )

    def _from_numbers(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``torch.tensor`` and its kin: they have values until they meet a tensor on meta."""
        own, rest = (args[:1], args[1:]) if func is Tensor.new_tensor else ((), args)
        data = rest[0] if rest else kwargs.get("data", kwargs.get("obj"))
        if isinstance(data, Tensor):
            return func(*args, **kwargs)
        recorder = self._recorder
        device = kwargs.get("device") or (recorder.device_of(own[0]) if own else torch.get_default_device())
        if _is_meta(device):
            # The code's own wish; torch would drop the numbers.
            kwargs["device"] = torch.device("cpu")
        elif own:
            kwargs["device"] = device
        with torch._C.DisableTorchFunction():
            rest = _map(rest, lambda tensor: recorder.evaluate(tensor, "a value read back"))
        return func(*own, *rest, **kwargs)


_MOVES = frozenset({Tensor.to, Tensor.cpu, Tensor.type_as})
_SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__
# What the code is told of a tensor on meta: where it would be.
_DEVICES: dict[Any, Callable[[torch.device], Any]] = {
    Tensor.device.__get__: lambda device: device,
    Tensor.is_meta.__get__: lambda device: device.type == "meta",  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda device: device.type == "cpu",  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda device: device.type == "cuda",  # type: ignore[attr-defined]
}
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
                _refuse(record.log[index].refused, "")
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
