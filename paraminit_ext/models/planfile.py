"""Save and load a plan as one safetensors file; ``docs/plan.md`` describes the format.

Loading checks every field and runs no code from the file.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from paraminit_ext import init
from paraminit_ext.key import Key
from paraminit_ext.many import DRAWING_FUNCTIONS, FUNCTION_NAMES
from paraminit_ext.models.files import replacing
from paraminit_ext.models.layout import Geometry, dtype_name
from paraminit_ext.models.plan import Entry, InitPlan
from paraminit_ext.models.steps import Draw, Step, View, make, operator_of

VERSION = 1
# The only entry of the file's metadata.
METADATA = "paraminit_ext.InitPlan"
_KINDS = ("parameter", "buffer", "non-persistent buffer", "attribute")
_MAX_BYTES = (1 << 63) - 1
_DTYPES = {dtype_name(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_FORMATS = {
    str(memory_format).removeprefix("torch."): memory_format
    for memory_format in (
        torch.contiguous_format,
        torch.preserve_format,
        torch.channels_last,
        torch.channels_last_3d,
    )
}


def _safetensors(what: str) -> ModuleType:
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"paraminit_ext.InitPlan.{what}: expected the package safetensors, got none. Run "
            "`pip install safetensors`."
        ) from None
    return safetensors


# ----------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------


def save(plan: InitPlan, path: str | os.PathLike[str]) -> None:
    safetensors = _safetensors("save")
    text = json.dumps(_plan_to_json(plan), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    values = {name: value.contiguous() for name, value in plan.values.items()}
    with replacing("InitPlan.save", Path(path)) as temporary:
        try:
            safetensors.torch.save_file(values, temporary, metadata={METADATA: text})
        except KeyError as error:
            raise TypeError(
                "paraminit_ext.InitPlan.save: expected recorded values of a dtype that safetensors supports, "
                f"got {error}. Initialise the module without saving its plan."
            ) from None


def _plan_to_json(plan: InitPlan) -> dict[str, Any]:
    programs: dict[str, int] = {}
    listed: list[Any] = []
    tensors: dict[str, Any] = {}
    for entry in plan:
        if entry.tie:
            tensors[entry.name] = _without_none(kind=entry.kind, tie=entry.tie, device=entry.device)
            continue
        program = _without_none(
            dtype=dtype_name(entry.dtype),
            shape=list(entry.shape),
            steps=[_step_to_json(step) for step in entry.steps],
            layout=entry.layout and _geometry_to_json(entry.layout),
        )
        index = programs.setdefault(json.dumps(program), len(listed))
        if index == len(listed):
            listed.append(program)
        draws = [_draw_to_json(draw, entry.name) for draw in entry.draws]
        tensors[entry.name] = _without_none(
            kind=entry.kind,
            program=index,
            draws=draws if any(draws) else None,
            storage=entry.storage,
            device=entry.device,
        )
    key = plan.key and _key_to_json(plan.key)
    return {"version": VERSION, "key": key, "programs": listed, "tensors": tensors}


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _key_to_json(key: Key) -> str:
    return f"{key.seed:x}:{key.offset:x}"


def _draw_to_json(draw: Draw, name: str) -> dict[str, Any]:
    return _without_none(
        name=None if draw.name == name else draw.name,
        place=draw.place,
        key=draw.key and _key_to_json(draw.key),
        fixed=draw.fixed or None,
    )


def _step_to_json(step: Step) -> dict[str, Any]:
    arguments = {name: _value_to_json(value) for name, value in step.arguments}
    lies = [geometry and _geometry_to_json(geometry) for geometry in step.lies]
    return _without_none(
        do=step.do, arguments=arguments, out=list(step.out) or None, draw=step.draw, lies=lies or None
    )


def _geometry_to_json(geometry: Geometry) -> dict[str, Any]:
    return {
        "dtype": dtype_name(geometry.dtype),
        "size": list(geometry.size),
        "stride": list(geometry.stride),
        "offset": geometry.offset,
    }


def _value_to_json(value: Any) -> Any:
    if isinstance(value, View):
        return _without_none(slot=value.slot, view=value.geometry and _geometry_to_json(value.geometry))
    if isinstance(value, tuple | list):
        return [_value_to_json(one) for one in value]
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, complex):
        return {"complex": [repr(value.real), repr(value.imag)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"paraminit_ext.InitPlan.save: expected arguments that JSON can hold, got {type(value).__name__}. "
        "Initialise the module without saving its plan."
    )


# ----------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------


class _WrongError(ValueError):
    """A fault of a file. The message names the fault, not the file."""


def load(path: str | os.PathLike[str]) -> InitPlan:
    safetensors = _safetensors("load")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"paraminit_ext.InitPlan.load: expected a file, got {os.fspath(path)}. Pass a file that save "
            "wrote."
        )
    try:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise _WrongError(f"a file that is not a safetensors file or is truncated ({error})") from None
        if METADATA not in metadata:
            raise _WrongError("a safetensors file without a plan")
        try:
            listed = json.loads(metadata[METADATA])
        except (ValueError, RecursionError):
            raise _WrongError("a plan that is not JSON") from None
        return _plan_from_json(listed, values)
    except _WrongError as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"paraminit_ext.InitPlan.load: expected a plan of version {VERSION}, got {text} in "
            f"{os.fspath(path)}. Save the plan again with this version."
        ) from None


def _wrong(what: str) -> NoReturn:
    raise _WrongError(what)


def _take(fields: Any, what: str, names: Mapping[str, Any]) -> list[Any]:
    """Return the fields of a JSON object. ``names`` maps names to defaults; ``...`` means required."""
    if not isinstance(fields, dict):
        _wrong(f"{what} that is not a JSON object")
    unknown = fields.keys() - names.keys()
    if unknown:
        _wrong(f"{what} with the unknown field {min(unknown)!r:.60}")
    for name, default in names.items():
        if default is ... and name not in fields:
            _wrong(f"{what} without {name}")
    return [fields.get(name, default) for name, default in names.items()]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_BYTES


def _is_text(value: Any) -> bool:
    """Return whether the value is a string that can be encoded. Lone surrogates cannot."""
    return isinstance(value, str) and not any(0xD800 <= ord(letter) < 0xE000 for letter in value)


def _counts(value: Any, what: str) -> tuple[int, ...]:
    if not (isinstance(value, list) and all(map(_is_count, value))):
        _wrong(f"{what} that is not a list of counts")
    return tuple(value)


def _dtype_from_json(value: Any) -> torch.dtype:
    if not isinstance(value, str) or value not in _DTYPES:
        _wrong(f"the unknown dtype {value!r:.60}")
    return _DTYPES[value]


def _key_from_json(value: Any) -> Key:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{1,16}:[0-9a-f]{1,16}", value):
        _wrong(f"the key {value!r:.60}")
    seed, offset = (int(part, 16) for part in value.split(":"))
    return Key(seed, offset)


# Maximum depth of nested lists in arguments. The arguments of operators nest one or two deep.
_DEPTH = 8


def _geometry_from_json(value: Any) -> Geometry:
    dtype, size, stride, offset = _take(
        value, "a layout", {"dtype": ..., "size": ..., "stride": ..., "offset": ...}
    )
    geometry = Geometry(
        _dtype_from_json(dtype),
        _counts(size, "a size"),
        _counts(stride, "a stride"),
        _counts([offset], "an offset")[0],
    )
    if len(geometry.size) != len(geometry.stride):
        _wrong("a layout with different numbers of sizes and strides")
    if geometry.extent[1] > _MAX_BYTES:
        _wrong(f"a tensor of {geometry.extent[1]} bytes")
    return geometry


def _value_from_json(value: Any, depth: int = 0) -> Any:
    if depth > _DEPTH:
        _wrong("arguments nested too deep")
    if isinstance(value, list):
        return tuple(_value_from_json(one, depth + 1) for one in value)
    if not isinstance(value, dict):
        return value
    if "slot" in value:
        slot, view = _take(value, "a tensor", {"slot": ..., "view": None})
        if not _is_count(slot):
            _wrong("a slot that is not a count")
        return View(slot, None if view is None else _geometry_from_json(view))
    if len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == "dtype":
            return _dtype_from_json(inner)
        if kind == "memory_format" and isinstance(inner, str) and inner in _FORMATS:
            return _FORMATS[inner]
        if kind == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if kind == "complex" and isinstance(inner, list) and len(inner) == 2:
            try:
                return complex(float(inner[0]), float(inner[1]))
            except (TypeError, ValueError):
                pass
    _wrong(f"the argument {value!r:.60}")


def _step_from_json(value: Any, values: Mapping[str, Tensor]) -> Step:
    names = {"do": ..., "arguments": ..., "out": [], "draw": None, "lies": []}
    do, given, out, draw, lies = _take(value, "a step", names)
    if not isinstance(lies, list) or len(lies) not in (0, len(out)):
        _wrong("a step with a different number of layouts than of results")
    if not isinstance(do, str) or not isinstance(given, dict):
        _wrong("a step without a name or arguments")
    arguments = {name: _value_from_json(one) for name, one in given.items()}
    if do in FUNCTION_NAMES:
        known = set(inspect.signature(getattr(init, do)).parameters) - {"generator"}
        if not isinstance(arguments.get("tensor"), View):
            _wrong(f"{do} without a tensor")
        if (draw is not None) != (do in DRAWING_FUNCTIONS):
            _wrong(f"{do} with a wrong draw")
    elif do == "value":
        known = {"value"}
        if not isinstance(arguments.get("value"), str) or arguments["value"] not in values:
            _wrong("the name of a value that is not in the file")
    elif do == "empty":
        known = {"size", "stride", "dtype"}
        if known != arguments.keys() or not isinstance(arguments["dtype"], torch.dtype):
            _wrong("an allocation without size, stride and dtype")
        _geometry_from_json({**given, "dtype": dtype_name(arguments["dtype"]), "offset": 0})
    else:
        operator = operator_of(do)
        if operator is None:
            _wrong(f"the unknown function {do!r:.60}")
        known = {argument.name for argument in operator._schema.arguments} - _WHERE
    unknown = arguments.keys() - known
    if unknown:
        _wrong(f"the unknown argument {min(unknown)!r:.60} of {do}")
    if draw is not None and not _is_count(draw):
        _wrong("a draw that is not a count")
    if do in ("value", "empty") and len(_counts(out, "the results of a step")) != 1:
        _wrong(f"{do} without exactly one result")
    layouts = tuple(None if one is None else _geometry_from_json(one) for one in lies)
    return Step(do, tuple(arguments.items()), _counts(out, "the results of a step"), draw, layouts)


def _program_from_json(value: Any, values: Mapping[str, Tensor]) -> Entry:
    dtype, shape, listed, layout = _take(
        value, "a program", {"dtype": ..., "shape": ..., "steps": ..., "layout": None}
    )
    if not isinstance(listed, list):
        _wrong("steps that are not a list")
    steps = tuple(_step_from_json(one, values) for one in listed)
    draws = [step.draw for step in steps if step.draw is not None]
    if draws != list(range(len(draws))):
        _wrong("draws out of order")
    entry = Entry(
        "",
        "parameter",
        _dtype_from_json(dtype),
        _counts(shape, "a shape"),
        steps=steps,
        draws=tuple(Draw("") for _ in draws),
        layout=None if layout is None else _geometry_from_json(layout),
    )
    if math.prod(entry.shape) * entry.dtype.itemsize > _MAX_BYTES:
        _wrong(f"a tensor of shape {entry.shape}")
    _refuse_misfit(entry, values)
    return entry


def _refuse_misfit(entry: Entry, values: Mapping[str, Tensor]) -> None:
    """Raise unless the steps fit each other and give the entry's shape. Runs the steps on the meta device."""
    on_meta = {name: value.to("meta") for name, value in values.items()}
    try:
        with torch.no_grad():
            made = make(
                entry.steps, entry.shape, entry.dtype, entry.layout, lambda _: Key(0), on_meta, "meta"
            )
    except Exception as error:  # torch raises many types for arguments that do not fit
        _wrong(f"steps that do not fit ({error})"[:300])
    if tuple(made.shape) != entry.shape or made.dtype != entry.dtype:
        _wrong(
            f"steps that give {made.dtype} of shape {tuple(made.shape)} for {entry.dtype} of {entry.shape}"
        )


def _draws_from_json(value: Any, name: str, program: Entry, key: Key | None) -> tuple[Draw, ...]:
    listed: Sequence[Any] = [{}] * len(program.draws) if value is None else value
    if not isinstance(listed, list) or len(listed) != len(program.draws):
        _wrong(f"a different number of draws than of fills for {name}")
    draws: list[Draw] = []
    for one in listed:
        of, place, own, fixed = _take(
            one, "a draw", {"name": name, "place": None, "key": None, "fixed": False}
        )
        if not _is_text(of) or not isinstance(fixed, bool):
            _wrong(f"a wrong draw for {name}")
        if not (place is None or _is_count(place) or _is_text(place)):
            _wrong(f"a wrong place of a draw for {name}")
        if own is None and (key is None or fixed):
            _wrong(f"a draw without a key for {name}")
        draws.append(Draw(of, place, None if own is None else _key_from_json(own), fixed))
    return tuple(draws)


# Arguments that a plan must not hold, because it applies to any device.
_WHERE = {"device", "layout", "pin_memory", "generator", "non_blocking"}
_FIELDS = {"kind": ..., "program": None, "tie": None, "draws": None, "storage": None, "device": None}


def _plan_from_json(listed: Any, values: Mapping[str, Tensor]) -> InitPlan:
    if isinstance(listed, dict) and (type(listed.get("version")) is not int or listed["version"] != VERSION):
        _wrong(f"one of version {listed.get('version')!r:.60}")
    _, key_text, programs_listed, tensors = _take(
        listed, "a plan", {"version": ..., "key": ..., "programs": ..., "tensors": ...}
    )
    if not isinstance(programs_listed, list) or not isinstance(tensors, dict):
        _wrong("a plan without programs or tensors")
    key = None if key_text is None else _key_from_json(key_text)
    programs = [_program_from_json(one, values) for one in programs_listed]
    entries: dict[str, Entry] = {}
    for name, fields in tensors.items():
        kind, index, tie, draws, storage, device = _take(fields, f"the tensor {name!r:.60}", _FIELDS)
        if kind not in _KINDS:
            _wrong(f"the unknown kind {kind!r:.60}")
        if device is not None:
            try:
                torch.device(device)
            except (RuntimeError, TypeError):
                _wrong(f"the unknown device {device!r:.60}")
        if tie is not None:
            source = entries.get(tie) if isinstance(tie, str) else None
            if source is None or source.tie or index is not None:
                _wrong(f"{name!r:.60} tied to a tensor that is not listed before it")
            entries[name] = Entry(name, kind, source.dtype, source.shape, tie=tie, device=device)
            continue
        if not _is_count(index) or index >= len(programs):
            _wrong(f"the tensor {name!r:.60} without a program")
        program = programs[index]
        if storage is not None and (
            not isinstance(storage, str) or storage not in entries or program.layout is None
        ):
            _wrong(f"{name!r:.60} in the storage of a tensor that is not listed before it")
        entries[name] = Entry(
            name,
            kind,
            program.dtype,
            program.shape,
            steps=program.steps,
            draws=_draws_from_json(draws, name, program, key),
            layout=program.layout,
            storage=storage,
            device=device,
        )
    return InitPlan(entries, key, values)
