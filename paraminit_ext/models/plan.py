"""``InitPlan``: the initialisation of a model as plain data."""

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
from paraminit_ext.models.layout import Geometry, dtype_name, same_bits, shape_text
from paraminit_ext.models.names import Kind, check_key, named_tensors, unwrapped
from paraminit_ext.models.steps import Draw, Step, View, is_allocated_first
from paraminit_ext.models.write import check_same_recordings, write


@dataclass(frozen=True, slots=True)
class Entry:
    """The part of a plan that describes one tensor.

    Args:
        name: the fully qualified name
        kind: ``"parameter"``, ``"buffer"``, ``"non-persistent buffer"`` or ``"attribute"``
        dtype: the dtype in which the steps run
        shape: the shape
        tie: for a tied tensor, the name of the earlier tensor that it is identical to
        steps: the live steps that write the values, in order. Empty for a tied tensor, and for a tensor that
            the model allocates and never writes
        draws: the sources of the random numbers of the fills among the steps
        layout: the strides and offset of the tensor in its storage; None for those of a new contiguous tensor
        storage: the name of an earlier tensor whose storage this one shares. The steps of this entry still
            give its values without that tensor
        device: the device that the model's code requested; None for torch's default
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
        """Whether the program starts from an empty tensor of the entry's shape (no step creates slot 0)."""
        return is_allocated_first(self.steps)

    @property
    def fill(self) -> Step | None:
        """The first step if it is a fill of the whole tensor; otherwise None."""
        first = self.steps[0] if self.steps and self.is_allocated_first else None
        return first if first and first.is_fill and dict(first.arguments)["tensor"] == View(0) else None


class InitPlan:
    r"""The recorded initialisation of each parameter and buffer of a model.

    :func:`.deferred_init` records a plan; :meth:`of` returns it. A plan is plain data. For each name, it
    holds the dtype, the shape, the kind, the tie to another tensor, and the live steps. A fill that a later
    fill overwrites completely is not a live step. Each step is the name of a function of
    :mod:`paraminit_ext.init`, or of an operator of torch, with its arguments by name. ``print(plan)`` shows
    the plan as a table.

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
        """The entries of the plan, by the name of the tensor, in the order of the model."""
        return self._entries

    @property
    def key(self) -> Key | None:
        """The key of the model. If it is None, each recorded draw has a key of its own."""
        return self._key

    @property
    def values(self) -> Mapping[str, Tensor]:
        """The recorded values that steps refer to, by name."""
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
            and all(same_bits(value, other._values[name]) for name, value in self._values.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return InitPlan, (dict(self._entries), self._key, dict(self._values))

    def __copy__(self) -> InitPlan:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> InitPlan:
        # A plan is immutable.
        return self

    def __str__(self) -> str:
        rows = [("name", "kind", "dtype", "shape", "steps")]
        for entry in self:
            steps = "; ".join(map(str, entry.steps)) or "left as allocated"
            rows.append(
                (
                    entry.name,
                    entry.kind,
                    dtype_name(entry.dtype),
                    shape_text(entry.shape),
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
        """Return the plan of a module that :func:`.deferred_init` returned, or of one of its submodules.

        The module may be wrapped (by FSDP, for example) and may be materialised.

        Args:
            module: the module that :func:`.deferred_init` returned, or one of its submodules

        Returns:
            The plan. The plan of a submodule has names relative to the submodule.

        Raises:
            TypeError: ``module`` is not a :class:`torch.nn.Module`.
            ValueError: no plan was recorded for ``module``.

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
                "the module that deferred_init returned."
            )
        found = plan_and_path(module)
        if found is None:
            raise ValueError(
                f"paraminit_ext.InitPlan.of: expected a module that deferred_init made, got a "
                f"{type(module).__name__} without a plan. Pass the module that deferred_init returned."
            )
        plan, prefix = found
        return plan._under(prefix) if prefix else plan

    def _under(self, prefix: str) -> InitPlan:
        """Return the plan of a submodule, with names relative to it. The keys of its tensors stay as is."""
        dot = f"{prefix}."
        kept: dict[str, Entry] = {}
        for entry in self:
            if not entry.name.startswith(dot):
                continue
            name = entry.name.removeprefix(dot)
            source = self.resolved(entry)
            tie = source.name.removeprefix(dot) if entry.tie and source.name.startswith(dot) else None
            # A tensor that is tied to a tensor outside of the submodule takes over the steps of that tensor.
            base = entry if tie else source
            storage = (
                base.storage.removeprefix(dot) if base.storage and base.storage.startswith(dot) else None
            )
            kept[name] = replace(base, name=name, kind=entry.kind, tie=tie, storage=storage)
        return InitPlan(kept, self._key, self._values)

    def resolved(self, entry: Entry) -> Entry:
        """Return the entry that holds the steps: for a tied entry, the entry that it is tied to."""
        return self._entries[entry.tie] if entry.tie else entry

    def apply(self, module: nn.Module, key: Key | None = None) -> nn.Module:
        """Initialise a module with the names and shapes of the plan.

        :func:`.deferred_init` need not have built the module. The parameters and buffers are written in
        place, on their own devices. If a tensor has another dtype than the plan, the values of the plan are
        rounded to that dtype.

        Args:
            module: the module, wrapped or not. It may have fewer tensors than the plan, with the same names
            key: the key of the model, which replaces the keys of the plan. A key that the model's code itself
                passed to a fill is not replaced. If None, the keys of the plan are used. Default: None

        Returns:
            ``module``.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: the plan lacks the name of a parameter or persistent buffer, or has another shape or
                another kind of dtype for it, or the tensor is on the meta device. Nothing is written.
            RuntimeError: the plan has no key, and the ranks of a mesh recorded different draws.

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
                "Pass the module to initialise."
            )
        check_key("InitPlan.apply", key)
        targets: dict[int, tuple[Entry, Tensor]] = {}
        for name, tensor, _, _, kind in named_tensors(module):
            if nn.parameter.is_lazy(tensor):
                continue
            entry = self._entries.get(name)
            if entry is None:
                if kind == "non-persistent buffer":
                    continue
                raise ValueError(
                    f"paraminit_ext.InitPlan.apply: expected the names of the plan, got {name}, which the "
                    "plan does not have. Apply a plan that was recorded from the same model."
                )
            _refuse_misfit(entry, tensor)
            targets.setdefault(id(tensor), (self.resolved(entry), tensor))
        if (key or self._key) is None:
            check_same_recordings("InitPlan.apply", targets.values())
        write(self, list(targets.values()), key)
        return module

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the plan to a safetensors file.

        The metadata of the file holds the steps as JSON. The tensors of the file are the recorded values. The
        file is written completely or not at all.

        Args:
            path: the path of the file

        Raises:
            ModuleNotFoundError: the package ``safetensors`` is not installed.
            OSError: the file cannot be written.
        """
        from paraminit_ext.models import planfile

        planfile.save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> InitPlan:
        """Load a plan from a file that :meth:`save` wrote.

        Every field of the file is checked. No code from the file is run.

        Args:
            path: the path of the file

        Returns:
            The plan.

        Raises:
            ModuleNotFoundError: the package ``safetensors`` is not installed.
            OSError: the file cannot be read.
            ValueError: the file is not a plan, has another version, is truncated, or names a function or an
                argument that a plan cannot hold.
        """
        from paraminit_ext.models import planfile

        return planfile.load(path)


def _refuse_misfit(entry: Entry, tensor: Tensor) -> None:
    """Raise unless the values of the entry can be written to the tensor."""
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
# The plan of each module
# ----------------------------------------------------------------------------------------

# The plan of each module that deferred_init made, and the module's prefix in it. A copy of the module is not
# in this table, but it has a copy of the `_apply` replacement, which holds the same pair as `recorded`.
_plans: weakref.WeakKeyDictionary[nn.Module, tuple[InitPlan, str]] = weakref.WeakKeyDictionary()


def remember(module: nn.Module, plan: InitPlan, prefix: str) -> None:
    _plans[module] = plan, prefix


def plan_and_path(module: nn.Module) -> tuple[InitPlan, str] | None:
    """Return the plan and the prefix in it of a module that deferred_init made, or of its wrapper."""
    inner = unwrapped(module)
    return _plans.get(inner) or getattr(inner.__dict__.get("_apply"), "recorded", None)
