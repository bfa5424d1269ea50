"""Programs: the steps that give one tensor its values, as plain data, and the functions that run them.

A step is a fill of :mod:`paraminit_ext.init`, an operator of torch (``aten.mul.Tensor``), an allocation or a
recorded value. Slot 0 is the tensor itself. Other slots are temporaries of the program.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paraminit_ext import init
from paraminit_ext.key import Key
from paraminit_ext.many import DRAWING_FUNCTIONS, FUNCTION_NAMES
from paraminit_ext.models.layout import Geometry
from paraminit_ext.models.names import key_of


@dataclass(frozen=True, slots=True)
class View:
    """A tensor in a program: the tensor of a slot, or another view of that tensor's storage."""

    slot: int
    geometry: Geometry | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """The source of a fill's random numbers.

    Args:
        name: the name of the tensor whose key the fill uses, under the model's key
        place: selects one of the keys of that tensor (see :func:`paraminit_ext.models.names.key_of`)
        key: the key that was drawn when the fill was recorded, for a plan without a key of the model
        fixed: whether the model's code passed ``key`` itself, so that no other key replaces it
    """

    name: str
    place: int | str | None = None
    key: Key | None = None
    fixed: bool = False

    def resolve(self, key: Key | None) -> Key:
        """Return the key of the fill under the key of the model."""
        if self.key is not None and (self.fixed or key is None):
            return self.key
        assert key is not None
        return key_of(key, self.name, self.place)


@dataclass(frozen=True, slots=True)
class Step:
    """One call.

    Args:
        do: the name of a function of :mod:`paraminit_ext.init`, or ``aten.<operator>.<overload>``, or
            ``empty`` (allocate an uninitialised tensor), or ``value`` (copy a recorded value)
        arguments: the arguments by name; a tensor is a :class:`View`
        out: the slots of the new tensors that the call returns
        draw: for a fill that draws, the index of its draw among the draws of the tensor
        lies: the required layout of each new tensor, or None for any layout. Empty if all are None
    """

    do: str
    arguments: tuple[tuple[str, Any], ...] = ()
    out: tuple[int, ...] = ()
    draw: int | None = None
    lies: tuple[Geometry | None, ...] = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Step):
            return NotImplemented
        if (self.do, self.out, self.draw, self.lies) != (other.do, other.out, other.draw, other.lies):
            return False
        # A NaN among the arguments does not equal another NaN, but both have the same text.
        return self.arguments == other.arguments or repr(self.arguments) == repr(other.arguments)

    def __hash__(self) -> int:
        return hash((self.do, self.out, self.draw, self.lies))

    def __reduce__(self) -> tuple[Any, ...]:
        # torch.save uses a protocol of pickle that cannot store a memory format.
        formats = {
            name: str(value)[6:] for name, value in self.arguments if type(value) is torch.memory_format
        }
        arguments = tuple((name, None if name in formats else value) for name, value in self.arguments)
        return _unpickled, (self.do, arguments, self.out, self.draw, self.lies, formats)

    @property
    def is_fill(self) -> bool:
        return self.do in FUNCTION_NAMES

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of a fill, except the tensor."""
        return {name: value for name, value in self.arguments if name != "tensor"}

    def __str__(self) -> str:
        shown = (
            _formatted(value) if name in ("tensor", "self") else f"{name}={_formatted(value)}"
            for name, value in self.arguments
            if not (name in ("tensor", "self") and value == View(0))
        )
        name = self.do.split(".")[1] if self.do.startswith("aten.") else self.do
        return f"{name}({', '.join(shown)})"


def _unpickled(
    do: str, arguments: tuple[tuple[str, Any], ...], out: Any, draw: Any, lies: Any, formats: dict[str, str]
) -> Step:
    restored = (
        (name, getattr(torch, formats[name]) if name in formats else value) for name, value in arguments
    )
    return Step(do, tuple(restored), out, draw, lies)


def _formatted(value: Any) -> str:
    if isinstance(value, View):
        own = "self" if value.slot == 0 else f"t{value.slot}"
        if value.geometry is None:
            return own
        return f"{own}@{value.geometry.offset}{list(value.geometry.size)}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_formatted, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).removeprefix("torch.")


# ----------------------------------------------------------------------------------------
# Which operators a program may call
# ----------------------------------------------------------------------------------------

# The permitted operators besides the pointwise ones, which torch tags: pure functions of their arguments.
_NAMES = """
created from numbers: arange eye full full_like linspace logspace new_full new_ones new_zeros ones
    ones_like scalar_tensor tril_indices triu_indices zeros zeros_like
copies and constants: _to_copy clone copy copy_ fill fill_ lift_fresh_copy zero_
moved or selected elements: cat constant_pad_nd diag_embed diagonal_scatter flip gather index index_add
    index_add_ index_copy index_copy_ index_fill index_fill_ index_put index_put_ index_select
    masked_fill masked_fill_ masked_scatter masked_scatter_ repeat repeat_interleave roll scatter
    scatter_ scatter_add scatter_add_ select_scatter slice_scatter sort stack take topk tril tril_ triu
    triu_ unfold_copy _unsafe_index where
reductions and products: addmm all amax amin any argmax argmin baddbmm bmm cumprod cumsum dot linalg_qr
    linalg_vector_norm max mean min mm mv norm prod std sum var _softmax _is_all_true
    _is_any_true
"""
_OPERATORS = frozenset(re.sub("^.*?:", "", _NAMES, flags=re.MULTILINE).split())


@functools.cache
def operator_of(do: str) -> torch._ops.OpOverload | None:
    """Return the operator that a step names; None if it is unknown or a program may not call it."""
    parts = do.split(".")
    if len(parts) != 3 or parts[0] != "aten":
        return None
    packet = getattr(torch.ops.aten, parts[1], None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or parts[2] not in packet.overloads():
        return None
    operator: torch._ops.OpOverload = getattr(packet, parts[2])
    return operator if is_recordable(operator) else None


def is_recordable(operator: torch._ops.OpOverload) -> bool:
    """Return whether a program may call the operator. Random operators are not permitted."""
    if operator.namespace != "aten" or torch.Tag.nondeterministic_seeded in operator.tags:
        return False
    name = operator._schema.name.removeprefix("aten::")
    return torch.Tag.pointwise in operator.tags or name in _OPERATORS or name.startswith("_foreach_")


# Operators that overwrite their whole argument and do not read it.
_OVERWRITES = frozenset({"copy_", "fill_", "zero_"})


def overwrites(operator: torch._ops.OpOverload) -> bool:
    """Return whether the operator overwrites its written arguments without reading them."""
    name = operator._schema.name.removeprefix("aten::")
    return name in _OVERWRITES or any(argument.is_out for argument in operator._schema.arguments)


# ----------------------------------------------------------------------------------------
# Running
# ----------------------------------------------------------------------------------------


def is_allocated_first(steps: Sequence[Step]) -> bool:
    """Return whether the program starts from an empty tensor of its shape: no step creates slot 0."""
    return all(0 not in step.out for step in steps)


def make(
    steps: Sequence[Step],
    shape: Sequence[int],
    dtype: torch.dtype,
    layout: Geometry | None,
    draw: Callable[[int], Key],
    values: Mapping[str, Tensor],
    device: torch.device | str,
) -> Tensor:
    """Run the steps for a new tensor of this shape and dtype. Return it in ``layout``, if that is given."""
    slots: dict[int, Tensor] = {}
    if is_allocated_first(steps):
        slots[0] = torch.empty(tuple(shape), dtype=dtype, device=device)
    run(steps, slots, draw, values, device)
    return slots[0] if layout is None else layout.view(slots[0])


def no_draw(index: int) -> Key:
    """Stand for the keys of a program without draws."""
    raise AssertionError(index)


def _resolved(value: Any, slots: Mapping[int, Tensor]) -> Any:
    """Return an argument with its views replaced by tensors."""
    if isinstance(value, View):
        tensor = slots[value.slot]
        return tensor if value.geometry is None else value.geometry.view(tensor)
    return [_resolved(item, slots) for item in value] if isinstance(value, tuple) else value


def run(
    steps: Iterable[Step],
    slots: dict[int, Tensor],
    draw: Callable[[int], Key],
    values: Mapping[str, Tensor],
    device: torch.device | str,
) -> None:
    """Run the steps in order.

    Args:
        steps: the steps
        slots: the tensors by slot. The steps add the slots that they create
        draw: returns the key of the n-th draw
        values: the recorded values by name
        device: the device of new slots
    """
    for step in steps:
        arguments = {name: _resolved(value, slots) for name, value in step.arguments}
        if step.is_fill:
            if step.do in DRAWING_FUNCTIONS:
                arguments["generator"] = None if step.draw is None else draw(step.draw)
            getattr(init, step.do)(**arguments)
        elif step.do == "value":
            slots[step.out[0]] = values[arguments["value"]].to(device, copy=True)
        elif step.do == "empty":
            slots[step.out[0]] = torch.empty_strided(
                arguments["size"], arguments["stride"], dtype=arguments["dtype"], device=device
            )
        else:
            operator = operator_of(step.do)
            assert operator is not None
            if any(argument.name == "device" for argument in operator._schema.arguments):
                arguments["device"] = torch.device(device)
            made = operator(**arguments)
            fresh = [made] if isinstance(made, Tensor) else list(made or ())
            if step.out:
                lies = step.lies or (None,) * len(fresh)
                for slot, tensor, geometry in zip(step.out, fresh, lies, strict=True):
                    slots[slot] = tensor
                    if geometry is not None and geometry != Geometry.of(tensor):
                        slots[slot] = geometry.empty(device).copy_(tensor)
