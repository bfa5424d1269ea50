"""``InitPlan``: a model's initialisation as data."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from paraminit_ext.key import Key
from paraminit_ext.models.layout import Geometry
from paraminit_ext.models.names import Kind, named_tensors, refuse_key, unwrapped
from paraminit_ext.models.steps import Draw, Step, View, is_allocated_first
from paraminit_ext.models.write import refuse_other_recordings, write


@dataclass(frozen=True, slots=True)
class Entry:
    """What a plan holds of one tensor.

    Args:
        name: the fully qualified name
        kind: ``"parameter"``, ``"buffer"``, ``"non-persistent buffer"`` or ``"attribute"``
        dtype: the dtype in which the steps are done
        shape: the sizes
        tie: the name of the tensor that this one is another name of
        steps: what gives the values, in order: the live steps alone; empty for a tied tensor, and for one
            that the model left as it was allocated
        draws: where the fills among the steps get their numbers
        layout: how the tensor lies in its storage, where otherwise than a new one of this shape does
        storage: the name of an earlier tensor in whose storage this one lies; its steps are those that it
            needs alone
        device: the device that the model's code asked for; None for torch's default
    """

    name: str
    kind: Kind
    dtype: torch.dtype
    shape: tuple[int, ...]
    tie: str | None = None
    steps: tuple[Step, ...] = ()
    draws: tuple[Draw, ...] = ()
    layout: Geometry | None = None
    storage: str | None = None
    device: str | None = None

    @property
    def is_allocated_first(self) -> bool:
        """Whether the first thing is an empty tensor of the entry's own shape (no step makes slot 0)."""
        return is_allocated_first(self.steps)

    @property
    def fill(self) -> Step | None:
        """The first step, where that is a fill of the whole tensor."""
        first = self.steps[0] if self.steps and self.is_allocated_first else None
        return first if first and first.is_fill and dict(first.arguments)["tensor"] == View(0) else None


class InitPlan:
    r"""How each parameter and buffer of a model gets its values: what :func:`deferred_init` recorded.

    A plan is plain data. It holds, for each name, dtype, shape, kind, tie, and the steps that are live: a
    fill that a later one overwrites whole is gone. A step is the name of a function of
    :mod:`paraminit_ext.init`, or of an operator of torch, and its arguments by name. ``print(plan)`` shows
    it as a table.

    Examples:
        >>> import torch
        >>> from paraminit_ext import InitPlan, Key, deferred_init
        >>> plan = InitPlan.of(deferred_init(torch.nn.Linear, 3, 4, key=Key(1)))
        >>> [entry.name for entry in plan]
        ['weight', 'bias']
        >>> layer = torch.nn.Linear(3, 4)
        >>> plan.apply(layer) is layer
        True
    """

    __slots__ = ("_entries", "_key", "_values")

    def __init__(
        self, entries: Mapping[str, Entry], key: Key | None = None, values: Mapping[str, Tensor] | None = None
    ) -> None:
        self._entries = MappingProxyType(dict(entries))
        self._key = key
        self._values = MappingProxyType(dict(values or {}))

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What the plan holds of each tensor, by name, in the order of the model."""
        return self._entries

    @property
    def key(self) -> Key | None:
        """The key of the model; None if each draw was taken from a generator."""
        return self._key

    @property
    def values(self) -> Mapping[str, Tensor]:
        """The recorded values that steps name."""
        return self._values

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InitPlan):
            return NotImplemented
        return (
            self._key == other._key
            and list(self) == list(other)
            and self._values.keys() == other._values.keys()
            and all(torch.equal(value, other._values[name]) for name, value in self._values.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return InitPlan, (dict(self._entries), self._key, dict(self._values))

    def __copy__(self) -> InitPlan:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> InitPlan:
        # Nothing in it changes.
        return self

    def __str__(self) -> str:
        rows = [("name", "kind", "dtype", "shape", "steps")]
        for entry in self:
            steps = "; ".join(map(str, entry.steps)) or "left as allocated"
            rows.append(
                (
                    entry.name,
                    entry.kind,
                    str(entry.dtype).removeprefix("torch."),
                    " x ".join(map(str, entry.shape)) or "scalar",
                    f"= {entry.tie}" if entry.tie else steps,
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]])
            for row in rows
        )

    def __repr__(self) -> str:
        return f"InitPlan({len(self)} tensors, key={self._key})"

    @staticmethod
    def of(module: nn.Module) -> InitPlan:
        """Return the plan of a module that :func:`deferred_init` made, or of a part of one.

        Args:
            module: the module or one of its submodules, wrapped or not, materialised or not

        Raises:
            TypeError: ``module`` is not a module.
            ValueError: no plan was recorded for it.

        Examples:
            >>> import torch
            >>> from paraminit_ext import InitPlan, Key, deferred_init
            >>> model = deferred_init(torch.nn.Linear, 3, 4, key=Key(1))
            >>> InitPlan.of(model)
            InitPlan(2 tensors, key=Key(seed=1, offset=0))
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"paraminit_ext.InitPlan.of: expected a torch.nn.Module, got {type(module).__name__}. Pass "
                "what deferred_init returned."
            )
        found = recorded(module)
        if found is None:
            raise ValueError(
                f"paraminit_ext.InitPlan.of: expected a module that deferred_init made, got a "
                f"{type(module).__name__} without a plan. Pass what deferred_init returned."
            )
        plan, prefix = found
        return plan._under(prefix) if prefix else plan

    def _under(self, prefix: str) -> InitPlan:
        """The part of a submodule, its names without the prefix; keys stay those of the whole."""
        dot = f"{prefix}."
        kept: dict[str, Entry] = {}
        for entry in self:
            if not entry.name.startswith(dot):
                continue
            name = entry.name.removeprefix(dot)
            source = self.resolved(entry)
            tie = source.name.removeprefix(dot) if entry.tie and source.name.startswith(dot) else None
            # One that is tied to a tensor outside has that one's steps.
            of = entry if tie else source
            storage = of.storage.removeprefix(dot) if of.storage and of.storage.startswith(dot) else None
            kept[name] = replace(of, name=name, kind=entry.kind, tie=tie, storage=storage)
        return InitPlan(kept, self._key, self._values)

    def resolved(self, entry: Entry) -> Entry:
        """The entry that has the steps: the one that this one is tied to, if it is."""
        return self._entries[entry.tie] if entry.tie else entry

    def apply(self, module: nn.Module, key: Key | None = None) -> nn.Module:
        """Initialise a module that has these names and shapes, whatever built it.

        Its parameters and buffers are written in place, on the device where each is. One of another dtype
        than the plan's gets the plan's values, rounded.

        Args:
            module: the module, wrapped or not; it may be a part of the plan's model that has the same names
            key: the key of the model in place of the plan's own: the numbers of each name then are this
                key's. Keys that the model's code passed itself stay.

        Raises:
            TypeError: an argument of another type.
            ValueError: a parameter or persistent buffer that the plan does not know or knows with another
                shape or another kind of dtype, or that is on meta. Nothing has then been written.
            RuntimeError: a plan without a key that ranks of a mesh recorded with other draws.

        Returns:
            ``module``.

        Examples:
            >>> import torch
            >>> from paraminit_ext import InitPlan, Key, deferred_init
            >>> plan = InitPlan.of(deferred_init(torch.nn.Linear, 3, 4, key=Key(1)))
            >>> one, two = plan.apply(torch.nn.Linear(3, 4)), plan.apply(torch.nn.Linear(3, 4))
            >>> torch.equal(one.weight, two.weight)
            True
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"paraminit_ext.InitPlan.apply: expected a torch.nn.Module, got {type(module).__name__}. "
                "Pass the module that is to be initialised."
            )
        refuse_key("InitPlan.apply", key)
        targets: dict[int, tuple[Entry, Tensor]] = {}
        for name, tensor, _, _, kind in named_tensors(module):
            if nn.parameter.is_lazy(tensor):
                continue
            entry = self._entries.get(name)
            if entry is None:
                if kind == "non-persistent buffer":
                    continue
                raise ValueError(
                    f"paraminit_ext.InitPlan.apply: expected the names of the plan, got {name}, which it does"
                    " not have. Apply a plan that was recorded from the same model."
                )
            _refuse_misfit(entry, tensor)
            targets.setdefault(id(tensor), (self.resolved(entry), tensor))
        if (key or self._key) is None:
            refuse_other_recordings("InitPlan.apply", targets.values())
        write(self, list(targets.values()), key)
        return module

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to one safetensors file: steps as JSON in its metadata, recorded values as tensors.

        Args:
            path: the file, which is written whole or not at all

        Raises:
            ModuleNotFoundError: safetensors is not installed.
            OSError: the file cannot be written.
        """
        from paraminit_ext.models import planfile

        planfile.save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> InitPlan:
        """Read a plan that :meth:`save` wrote. Everything in it is checked, and nothing is run.

        Args:
            path: the file

        Raises:
            ModuleNotFoundError: safetensors is not installed.
            OSError: the file cannot be read.
            ValueError: it is not a plan, or not of this version, or truncated, or names what a plan cannot
                hold.
        """
        from paraminit_ext.models import planfile

        return planfile.load(path)


def _refuse_misfit(entry: Entry, tensor: Tensor) -> None:
    """Raise unless the entry's values can be written to the tensor."""
    if tuple(tensor.shape) != entry.shape:
        raise ValueError(
            f"paraminit_ext.InitPlan.apply: expected shape {entry.shape} for {entry.name}, got "
            f"{tuple(tensor.shape)}. Apply a plan that was recorded from the same model."
        )
    both_real = tensor.dtype.is_floating_point and entry.dtype.is_floating_point
    both_complex = tensor.dtype.is_complex and entry.dtype.is_complex
    if tensor.dtype != entry.dtype and not both_real and not both_complex:
        raise ValueError(
            f"paraminit_ext.InitPlan.apply: expected {entry.dtype} for {entry.name}, got {tensor.dtype}. "
            "Apply a plan that was recorded from the same model."
        )
    if tensor.is_meta:
        raise ValueError(
            f"paraminit_ext.InitPlan.apply: expected {entry.name} on a device that holds data, got it on "
            "meta. Call module.to_empty(device=...) first, or materialize_module if deferred_init made it."
        )


# ----------------------------------------------------------------------------------------
# Whose plan is which
# ----------------------------------------------------------------------------------------

# The plan of each module that deferred_init made, and the module's place in it. A copy of such a module is in
# no table, but has a copy of what stands in place of its `_apply`.
_plans: weakref.WeakKeyDictionary[nn.Module, tuple[InitPlan, str]] = weakref.WeakKeyDictionary()


def remember(module: nn.Module, plan: InitPlan, prefix: str) -> None:
    _plans[module] = plan, prefix


def recorded(module: nn.Module) -> tuple[InitPlan, str] | None:
    """The plan and the place in it, for a module that deferred_init made or a wrapper of one."""
    inner = unwrapped(module)
    return _plans.get(inner) or getattr(inner.__dict__.get("_apply"), "recorded", None)
