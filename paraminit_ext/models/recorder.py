"""Run a model's code on the meta device and record the operations on its tensors.

A function mode of torch records fills; a dispatch mode records all other operators.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from paraminit_ext import init
from paraminit_ext.geometry import Shard
from paraminit_ext.key import Key, refuse_generator, take_key
from paraminit_ext.many import DRAWING_FUNCTIONS
from paraminit_ext.models import init_hooks
from paraminit_ext.models import steps as programs
from paraminit_ext.models.fill_calls import Fill, FillMode
from paraminit_ext.models.layout import swap_data
from paraminit_ext.models.record import (
    META,
    Program,
    Record,
    RecordedCall,
    RecordedDraw,
    TensorRef,
    is_meta_device,
    line_of_code,
    refuse,
)

# Random operators that are not fills are recorded by their results, up to this size in bytes.
_SMALL = 1 << 20


@functools.cache
def _defaults(name: str) -> Mapping[str, Any]:
    """Return the default values of the parameters of a function of this package."""
    parameters = inspect.signature(getattr(init, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


class Recorder:
    """A context manager that records all operations on tensors inside it.

    Args:
        key: the key of the model. If None, each fill takes its draw from torch's generator
    """

    def __init__(self, key: Key | None) -> None:
        self.key = key
        self.record = Record()
        self.is_paused = False
        # Whether the model's code itself requests meta in the current call. The operator alone does not tell:
        # it also gets the device meta from its arguments.
        self.asks_for_meta = False
        self._functions = _FunctionMode(self)
        self._operators = _OperatorMode(self)

    def __enter__(self) -> Recorder:
        init_hooks.install_hooks()
        self._operators.__enter__()  # type: ignore[no-untyped-call]
        self._functions.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._functions.__exit__(*error)  # type: ignore[no-untyped-call]
        self._operators.__exit__(*error)  # type: ignore[no-untyped-call]
        init_hooks.remove_hooks()

    # -- fills -----------------------------------------------------------------------------

    def fill(self, fill: Fill, _call: Callable[[], Any]) -> Any:
        """Record a fill. If the tensor has data, run the fill, unless it draws under the model's key."""
        tensor = fill.tensor
        if isinstance(tensor, Shard) and tensor.local.is_meta:
            refuse(f"{fill.name} of a shard")
        if (
            isinstance(tensor, Tensor)
            and not tensor.is_meta
            and self.key is not None
            and fill.name in DRAWING_FUNCTIONS
        ):
            # The key comes from the name of the tensor, which is not known yet, so the fill is recorded.
            self._put_on_meta(tensor, fill.name)
        if not isinstance(tensor, Tensor) or not tensor.is_meta:
            return fill.run(self._source(fill))
        at = self.adopt(tensor)
        with self.paused():
            # A fill of a meta tensor only checks its arguments and emits warnings.
            fill._replace(then=None).run(fill.generator)
        if tensor.numel() and not self.record.is_on_meta_itself(tensor):
            defaults = _defaults(fill.name)
            arguments = tuple(
                (name, self._number(value))
                for name, value in fill.arguments.items()
                if name not in defaults or isinstance(value, Tensor) or value != defaults[name]
            )
            drawn = self._draw(fill, tensor) if fill.name in DRAWING_FUNCTIONS else None
            self.record.add(RecordedCall(fill.name, (("tensor", at), *arguments), writes=(at,), draw=drawn))
        return tensor if fill.then is None else fill.then(tensor)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside this context."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    @contextlib.contextmanager
    def asking(self, device: Any) -> Iterator[None]:
        """Mark the call inside as a call of the model's code itself that requests this device."""
        before, self.asks_for_meta = self.asks_for_meta, is_meta_device(device)
        try:
            yield
        finally:
            self.asks_for_meta = before

    def _put_on_meta(self, tensor: Tensor, name: str) -> None:
        """Turn a tensor with data, in place, into a meta tensor with its value recorded."""
        if tensor._base is not None:
            refuse(f"torch.{name} of a view of a tensor that was created from numbers")
        value = self.on_meta(tensor)
        with self.paused():
            swap_data(tensor, value)

    def _number(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            value = self.evaluate(value, "an argument of a fill").item()
        if isinstance(value, bool | int | str) or value is None:
            return value
        return float(value)

    def _source(self, fill: Fill) -> torch.Generator | Key | None:
        """Return the source that the code passed, or else the source of the innermost enclosing mode."""
        if fill.generator is not None:
            return fill.generator
        for mode in reversed(_get_current_function_mode_stack()):
            source = getattr(mode, "source", None)
            if isinstance(mode, FillMode) and source is not None:
                chosen: torch.Generator | Key | None = source(fill)
                if chosen is not None:
                    return chosen
        return None

    def _draw(self, fill: Fill, tensor: Tensor) -> RecordedDraw:
        if isinstance(fill.generator, Key):
            return RecordedDraw(fill.generator, fixed=True)
        device = self.device_of(tensor)
        if self.key is not None:
            refuse_generator(fill.name, fill.generator, device)
            return RecordedDraw(None, fixed=False)
        source = self._source(fill)
        if isinstance(source, Key):
            return RecordedDraw(source, fixed=False)
        with self.paused():
            seed, offset = take_key(fill.name, source, device, plain=True)
        return RecordedDraw(Key(int(seed) % 2**64, int(offset) % 2**64), fixed=False)

    def device_of(self, tensor: Tensor) -> torch.device:
        """Return the device that the tensor would have if the code were not recorded."""
        if not tensor.is_meta:
            return tensor.device
        return self.record.device_of(tensor) or (
            torch.get_default_device() if self.record.knows(tensor) else META
        )

    # -- tensors ---------------------------------------------------------------------------

    def adopt(self, tensor: Tensor) -> TensorRef:
        """Return the place of a meta tensor in the record.

        A tensor that the record does not know is added as one that the code itself put on meta.
        """
        if not self.record.knows(tensor):
            if tensor.layout is not torch.strided:
                refuse(f"a tensor of layout {tensor.layout}")
            self.record.add_storage(tensor, META)
        return self.record.at(tensor)

    def on_meta(self, tensor: Tensor) -> Tensor:
        """Return the tensor if it is on meta. Otherwise record its value and return a meta tensor for it."""
        if tensor.is_meta:
            return tensor
        if tensor.layout is not torch.strided:
            refuse(f"a tensor of layout {tensor.layout}")
        # Record a copy, because the code may write to the tensor later.
        return self.record.add_value(tensor.detach().clone(), tensor.device)

    def evaluate(self, tensor: Tensor, why: str) -> Tensor:
        """Compute the values of a meta tensor. Raise if they depend on random numbers."""
        if not tensor.is_meta:
            return tensor
        program = Program(self.record, self.adopt(tensor), {})
        if program.draws:
            refuse(f"{why}, which depends on random values,")
        with self.paused():
            value = program.run_on_cpu()
        value = value.conj() if tensor.is_conj() else value
        return torch._neg_view(value) if tensor.is_neg() else value

    # -- operators -------------------------------------------------------------------------

    def operate(
        self, operator: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run an operator, on meta or for real, and record it if a meta tensor takes part."""
        schema = operator._schema
        names = [argument.name for argument in schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        name = schema.name.removeprefix("aten::")
        tensors = list(_tensors(given.values()))
        device = given.get("device")
        is_meta = any(tensor.is_meta for tensor in tensors) or is_meta_device(device)
        makes = not tensors and any(isinstance(r.type, torch.TensorType) for r in schema.returns)
        if not makes and not is_meta:
            # All tensors have data. They are recorded only when they are combined with a meta tensor.
            return operator(*args, **kwargs)
        if makes and name == "empty" and 0 in given["size"]:
            # The tensor has no elements, and torch.load and others give it a storage with data.
            return operator(*args, **kwargs)
        if name != "is_same_size" and schema.returns and isinstance(schema.returns[0].type, _NUMBERS):
            return operator(**{key: self._real(value, "a value read back") for key, value in given.items()})
        if torch.Tag.nondeterministic_seeded in operator.tags:
            return self._random(operator, name, given)
        if any(not tensor.is_meta for tensor in _written(operator, given)):
            return self._write_for_real(operator, name, given)
        given = {key: _map(value, self.on_meta) for key, value in given.items()}
        if "device" in names and (makes or device is not None):
            given["device"] = META
            given.pop("pin_memory", None)
        result = self._call(operator, name, given)
        first = next((tensor for tensor in _tensors(given.values())), None)
        if device is None or (is_meta_device(device) and not self.asks_for_meta):
            device = None if first is None else self.record.device_of(first)
        self._note(operator, name, given, result, device)
        return result

    def _write_for_real(self, operator: torch._ops.OpOverload, name: str, given: dict[str, Any]) -> Any:
        """Run a write to a tensor with data without recording it. Meta arguments are evaluated first."""
        if name in ("set_", "resize_as_"):
            refuse(f"torch.{name} of a tensor with data")
        real = {
            key: self._real(value, f"torch.{name} of a tensor that was created from numbers")
            for key, value in given.items()
        }
        return operator(**real)

    def _call(self, operator: torch._ops.OpOverload, name: str, given: Mapping[str, Any]) -> Any:
        try:
            return operator(**given)
        except NotImplementedError:
            refuse(f"torch.{name}, whose result depends on values,")

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
        """Record the call, unless it only created views or empty tensors."""
        if name in ("set_", "resize_", "resize_as_") or torch.Tag.inplace_view in operator.tags:
            # The call changes the storage or the layout of the tensor, and no values.
            self.record.refresh(given["self"])
            return
        schema = operator._schema
        for tensor in _written(operator, given):
            self.record.refresh(tensor)  # `out=` may have resized it
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
            self._note_hidden_writes(given, name)
        given = self._explicit(schema, given, fresh)
        if not programs.is_recordable(operator) or (fresh and len(fresh) != len(results)):
            refused = f"torch.{name}, which a plan cannot hold, at {line_of_code()}"
        if any(t.is_conj() or t.is_neg() for t in _tensors(given.values())):
            refused = f"torch.{name} of a conjugate view at {line_of_code()}"
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
        self.record.add(RecordedCall(do, arguments, tuple(reads), tuple(writes), made, refused=refused))

    def _frozen(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.record.at(value)
        if isinstance(value, list | tuple):
            return tuple(self._frozen(item) for item in value)
        return value

    def _explicit(self, schema: Any, given: Mapping[str, Any], fresh: list[Tensor]) -> dict[str, Any]:
        """Return the arguments with all dtypes explicit, so that they do not depend on the default dtype."""
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
            # The operator converts integers to floating point. Record this as a separate step.
            convert = torch.ops.aten._to_copy.default

            def converted(value: Any) -> Any:
                if isinstance(value, Tensor) and value.dtype is not torch.bool:
                    return self.operate(convert, (value,), {"dtype": floating})
                return value

            explicit = {key: converted(value) for key, value in given.items()}
        return explicit

    def _note_hidden_writes(self, given: Mapping[str, Any], name: str) -> None:
        """Record that the call wrote its running statistics, which its schema does not declare."""
        if not (given.get("training", given.get("train", False))):
            return
        at = tuple(
            self.adopt(given[key]) for key in ("running_mean", "running_var") if given.get(key) is not None
        )
        what = f"torch.{name} in training, which a plan cannot hold, at {line_of_code()}"
        self.record.add(RecordedCall(name, (), reads=at, writes=at, refused=what))

    def _random(self, operator: torch._ops.OpOverload, name: str, given: dict[str, Any]) -> Any:
        """Run, on the CPU, a random operator that is not a fill, and record its result. It must be small."""
        written = _written(operator, given)
        sizes = {key: _map(value, self.on_meta) for key, value in given.items()}
        if any(argument.name == "device" for argument in operator._schema.arguments):
            sizes["device"] = META
            sizes.pop("pin_memory", None)
        if "generator" in sizes:
            sizes["generator"] = None
        shapes = [*_tensors([self._call(operator, name, sizes)]), *written]
        if sum(tensor.numel() * tensor.element_size() for tensor in shapes) > _SMALL:
            refuse(f"torch.{name}, random values of more than {_SMALL >> 20} MiB that are not a fill,")
        # By id of a tensor with data: this tensor, and the written meta tensor that it stands in for.
        stand_ins: dict[int, tuple[Tensor, Tensor]] = {}

        def real(value: Tensor) -> Tensor:
            if not value.is_meta or not any(value is tensor for tensor in written):
                return self.evaluate(value, f"torch.{name}")
            with self.paused():
                # Keep the strides: the order in memory decides which element gets which number.
                made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
                if not (programs.overwrites(operator) or name in _UNREAD):
                    made.copy_(self.evaluate(value, f"torch.{name}"))
            stand_ins[id(made)] = made, value
            return made

        result = operator(**{key: _map(value, real) for key, value in given.items()})
        for made, target in stand_ins.values():
            if made.shape != target.shape:
                target.resize_(made.shape)
                self.record.refresh(target)
            self.operate(torch.ops.aten.copy_.default, (target, self.on_meta(made)), {})
        return _map(
            result,
            lambda tensor: stand_ins[id(tensor)][1] if id(tensor) in stand_ins else self.on_meta(tensor),
        )


def _written(operator: torch._ops.OpOverload, given: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that a call writes, according to its schema."""
    return [
        tensor
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors([given.get(argument.name)])
    ]


# Random operators that do not read the tensor that they write.
_UNREAD = frozenset(
    {"bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"}
)
# Operators that write running statistics although their schemas do not declare it.
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
        return type(value)(_map(item, function) for item in value)
    return value


def _same(value: Any, default: Any) -> bool:
    """Return whether an argument equals its default. A tensor never does."""
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
        # The recorder needs the real properties of tensors, not the devices that the model's code sees.
        with torch._C.DisableTorchFunction():
            if isinstance(func, torch._ops.OpOverload) and func.namespace == "aten":
                return self._recorder.operate(func, args, kwargs or {})
            if any(tensor.is_meta for tensor in _tensors([*args, *(kwargs or {}).values()])):
                refuse(f"{func}, which a plan cannot hold,")
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
                # A write to the array would be lost.
                value.flags.writeable = False
            return value
        is_cast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        if is_cast and any(tensor.is_meta for tensor in _tensors([*args, *(kwargs or {}).values()])):
            refuse(f"torch.{getattr(func, '__name__', func)} under autocast")
        property_of = _DEVICE_PROPERTIES.get(func)
        if property_of is not None and args[0].is_meta:
            return property_of(recorder.device_of(args[0]))
        if func in _MOVES:
            return self._move(func, args, dict(kwargs or {}))
        if func == _SET_DATA and args[0].is_meta != args[1].is_meta:
            if args[0].is_meta:
                return func(args[0], recorder.on_meta(args[1]))
            with recorder.paused():
                swap_data(args[0], args[1])
            return None
        if func in _FROM_NUMBERS:
            return self._from_numbers(func, args, dict(kwargs or {}))
        if func is Tensor.__deepcopy__ and args[0].layout is torch.strided:
            return _copied(*args)
        with recorder.asking((kwargs or {}).get("device") or torch.get_default_device()):
            return super().__torch_function__(func, types, args, kwargs)

    def _move(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``Tensor.to``, ``cpu`` or ``type_as``. Return the tensor itself if it needs no conversion."""
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
        current = self._recorder.device_of(tensor)
        same = (
            (device is None or device == current)
            and (dtype is None or dtype == tensor.dtype)
            and form in (None, torch.preserve_format)
        )
        if same and not copy:
            return tensor
        with self._recorder.asking(device):
            return tensor.to(
                device=device or current,
                dtype=dtype or tensor.dtype,
                copy=copy,
                memory_format=form or torch.preserve_format,
            )

    def _from_numbers(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``torch.tensor`` or a similar function, whose result keeps its data."""
        own, rest = (args[:1], args[1:]) if func is Tensor.new_tensor else ((), args)
        data = rest[0] if rest else kwargs.get("data", kwargs.get("obj"))
        if isinstance(data, Tensor):
            return func(*args, **kwargs)
        recorder = self._recorder
        device = kwargs.get("device") or (recorder.device_of(own[0]) if own else torch.get_default_device())
        if is_meta_device(device):
            # The code itself requests meta, where torch would drop the numbers.
            kwargs["device"] = torch.device("cpu")
        elif own:
            kwargs["device"] = device
        with torch._C.DisableTorchFunction():
            rest = _map(rest, lambda tensor: recorder.evaluate(tensor, "a value read back"))
        return func(*own, *rest, **kwargs)


_MOVES = frozenset({Tensor.to, Tensor.cpu, Tensor.type_as})
_SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__
# The properties of a meta tensor that must show the model's code the device that the tensor would have.
_DEVICE_PROPERTIES: dict[Any, Callable[[torch.device], Any]] = {
    Tensor.device.__get__: lambda device: device,
    Tensor.is_meta.__get__: lambda device: device.type == "meta",  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda device: device.type == "cpu",  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda device: device.type == "cuda",  # type: ignore[attr-defined]
}
# Functions that create tensors from numbers or NumPy arrays. The results keep their data until they are
# combined with a meta tensor.
_FROM_NUMBERS = frozenset({torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor})
# Methods that read values out of a tensor without an operator.
_READS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__})


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Deep-copy a tensor by the operator ``clone``, which is recorded. torch would copy the storage."""
    if id(tensor) in memo:
        found: Tensor = memo[id(tensor)]
        return found
    made = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    memo[id(tensor)] = made
    made.__dict__.update(copy.deepcopy(tensor.__dict__, memo))
    return made
