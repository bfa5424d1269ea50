"""``compare()``: where two plans, two checkpoints, or a plan and a checkpoint differ.

Values are read piece by piece: of a tensor no more than two pieces are in memory, but for a plan's tensor
that is more than a fill, which is made whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from paraminit_ext.key import Key
from paraminit_ext.models.layout import bits, dtype_name, index_at
from paraminit_ext.models.look import pattern_of, told_bytes
from paraminit_ext.models.names import refuse_key
from paraminit_ext.models.plan import Entry, InitPlan
from paraminit_ext.models.saved import Saved, contents_of_module
from paraminit_ext.models.steps import Draw, Step
from paraminit_ext.models.stored import Stored, stored
from paraminit_ext.models.write import parts

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table
    from rich.text import Text

Advance: TypeAlias = Callable[[int, int], object]
Path: TypeAlias = str | os.PathLike[str]


# ----------------------------------------------------------------------------------------
# What is found
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Values:
    """How the elements of two tensors of one shape and dtype differ, bit by bit.

    Args:
        differing: how many do
        numel: of how many
        first: the index of the first one
        largest: the largest absolute difference; NaN where one of two is none
    """

    differing: int
    numel: int
    first: tuple[int, ...]
    largest: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which the tensors of one name differ.

    Args:
        name: of the tensor
        what: ``"only in A"``, ``"only in B"``, ``"kind"``, ``"dtype"``, ``"shape"``, ``"tie"``, ``"layout"``,
            ``"device"``, ``"steps"``, ``"numbers"`` or ``"values"``
        a: what the first one has, as text
        b: what the second one has
        values: for ``"values"``, how they differ
    """

    name: str
    what: str
    a: str = ""
    b: str = ""
    values: Values | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON has them."""
        found: dict[str, Any] = {"name": self.name, "what": self.what}
        if self.values is None:
            return {**found, "a": self.a, "b": self.b}
        largest = self.values.largest
        return {
            **found,
            "differing": self.values.differing,
            "numel": self.values.numel,
            "first": list(self.values.first),
            # JSON has no NaN and no infinity.
            "largest": largest if math.isfinite(largest) else str(largest),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What :func:`compare` found. ``print`` shows a table in which repeated layers stand together.

    Args:
        differences: in the order of the first one's tensors
        tensors: how many names there are in both together
        nbytes: how many bytes of values were compared
        rounded: how many of a plan's tensors were rounded to the checkpoint's dtype for that
    """

    differences: tuple[Difference, ...]
    tensors: int
    nbytes: int = 0
    rounded: int = 0

    @property
    def equal(self) -> bool:
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "equal": self.equal,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "rounded": self.rounded,
            "differences": [one.to_dict() for one in self.differences],
        }

    def _rows(self) -> list[tuple[str, str, str]]:
        """Name, what, and how: one row for all layers that differ alike."""
        groups: dict[tuple[str, ...], list[Difference]] = {}
        for one in self.differences:
            tie = (pattern_of(one.a), pattern_of(one.b)) if one.what == "tie" else (one.a, one.b)
            groups.setdefault((pattern_of(one.name), one.what, *tie), []).append(one)
        return [
            (
                members[0].name if len(members) == 1 else f"{pattern} x {len(members)}",
                what,
                _how(members, a, b),
            )
            for (pattern, what, a, b), members in groups.items()
        ]

    def _foot(self) -> str:
        names = len({one.name for one in self.differences})
        of = f"{self.tensors:,} tensors"
        said = f"equal: {of}" if self.equal else f"{names:,} of {of} differ"
        if self.nbytes:
            said += f"; {told_bytes(self.nbytes)} compared"
        if self.rounded:
            said += f", {self.rounded:,} rounded to the checkpoint's dtype"
        return said

    def __str__(self) -> str:
        lines = [f"{name}  {what}: {how}" for name, what, how in self._rows()]
        return "\n".join([*lines, self._foot()])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        from rich.table import Table
        from rich.text import Text

        # As texts: brackets in them are no markup.
        heads, rows = ("name", "what", "how"), self._rows()
        widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(3)]
        if rows and sum(widths) + 4 <= options.max_width:
            table = Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for (name, what, how), same in zip(rows, _repeated(rows), strict=True):
                table.add_row(*map(Text, ("" if same else name, what, how)))
            yield table
        elif rows:
            # Too narrow for columns: what differs stands under the name.
            for (name, what, how), same in zip(rows, _repeated(rows), strict=True):
                if not same:
                    yield Text(name)
                line = f"  {what}: {how}"
                if len(line) > options.max_width:
                    line = line.replace(" -> ", "\n    -> ").replace("; ", ";\n    ")
                yield Text(line)
        yield Text(self._foot())


def _repeated(rows: Sequence[tuple[str, str, str]]) -> list[bool]:
    """Whether each row has the name of the one before it."""
    return [place > 0 and row[0] == rows[place - 1][0] for place, row in enumerate(rows)]


def _how(members: Sequence[Difference], a: str, b: str) -> str:
    found = [one.values for one in members if one.values is not None]
    if not found:
        return f"{a} -> {b}" if a and b else a or b
    differing, numel = sum(one.differing for one in found), sum(one.numel for one in found)
    share = f"all of {numel:,}" if differing == numel else f"{differing:,} of {numel:,}"
    largest = max((one.largest for one in found), key=_nan_last)
    said = f"{share}, by up to {largest:.3g}"
    return said if len(found) > 1 else f"{said}, first at {list(found[0].first)}"


def _nan_last(value: float) -> tuple[bool, float]:
    return math.isnan(value), value


# ----------------------------------------------------------------------------------------
# compare
# ----------------------------------------------------------------------------------------


def compare(
    a: InitPlan | nn.Module | Path,
    b: InitPlan | nn.Module | Path,
    *,
    key: Key | None = None,
    ignore_keys: bool = False,
    advance: Advance | None = None,
) -> Comparison:
    r"""Find where two plans, two checkpoints, or a plan and a checkpoint differ.

    Plans are compared by what they say of each name: kind, dtype, shape, tie, layout, device, steps, and
    where numbers come from. Checkpoints are compared bit by bit. A plan and a checkpoint are compared by the
    values that the plan gives, rounded to the dtype that the checkpoint has; what checkpoints leave out (all
    but one of tied tensors, non-persistent buffers, plain attributes) is no difference. A module that
    :func:`deferred_init` made stands for its plan; beside a checkpoint it also has the names that
    transformers changes when it saves a model, as those of a ViT, which a plan has not.

    Args:
        a: a plan, or a module with one; or the path of a directory of safetensors files, of an index in it,
            or of one such file
        b: another
        key: beside a checkpoint, the key of the model in place of the plan's own
        ignore_keys: of two plans, whether numbers may come from other keys
        advance: called now and then with how many bytes are compared, and of how many

    Raises:
        TypeError: an argument of another type, or one that is for other arguments.
        OSError: a path cannot be read.
        ValueError: there is no checkpoint, or a damaged one.

    Examples:
        >>> import torch
        >>> from paraminit_ext import InitPlan, Key, deferred_init
        >>> from paraminit_ext.models.compare import compare
        >>> plans = [InitPlan.of(deferred_init(torch.nn.Linear, 3, 4, key=Key(seed))) for seed in (1, 2)]
        >>> print(compare(*plans))
        weight  numbers: seed 1 -> seed 2
        bias  numbers: seed 1 -> seed 2
        2 of 2 tensors differ
        >>> compare(*plans, ignore_keys=True).equal
        True
    """
    refuse_key("compare", key)
    sides = [_side(one) for one in (a, b)]
    if not any(isinstance(one, dict) for one in sides):
        sides = [InitPlan.of(one) if isinstance(one, nn.Module) else one for one in sides]
    plans = [one for one in sides if not isinstance(one, dict)]
    if ignore_keys and len(plans) < 2:
        raise TypeError(_wrong("two plans with ignore_keys", "a checkpoint", "Leave ignore_keys out."))
    if key is not None and len(plans) != 1:
        raise TypeError(_wrong("a plan and a checkpoint with a key", f"{len(plans)} plans", "Leave it out."))
    one, other = sides
    if isinstance(one, InitPlan) and isinstance(other, InitPlan):
        return _of_plans(one, other, ignore_keys)
    left = _tensors(one, other, key)
    right = _tensors(other, one, key)
    return _of_values(left, right, advance or _ignore)


def _ignore(*_: int) -> None:
    pass


_Side: TypeAlias = InitPlan | nn.Module | dict[str, Stored]


def _side(one: object) -> _Side:
    if isinstance(one, InitPlan | nn.Module):
        return one
    if isinstance(one, str | os.PathLike):
        return stored(one)
    raise TypeError(
        _wrong(
            "an InitPlan, a module or a path",
            type(one).__name__,
            "Pass a plan, or a directory of safetensors.",
        )
    )


def _wrong(expected: str, got: str, remedy: str) -> str:
    return f"paraminit_ext.compare: expected {expected}, got {got}. {remedy}"


def _only(
    a: Mapping[str, Entry | _Tensor], b: Mapping[str, Entry | _Tensor]
) -> Iterator[tuple[str, Difference | None]]:
    """Each name once, those of ``a`` first; with the difference if it is in one alone."""
    for name, one in a.items():
        yield name, None if name in b else Difference(name, "only in A", a=_sizes(one.shape))
    for name, other in b.items():
        if name not in a:
            yield name, Difference(name, "only in B", b=_sizes(other.shape))


# ----------------------------------------------------------------------------------------
# Two plans
# ----------------------------------------------------------------------------------------


def _of_plans(a: InitPlan, b: InitPlan, ignore_keys: bool) -> Comparison:
    found: list[Difference] = []
    names = 0
    for name, only in _only(a.entries, b.entries):
        names += 1
        if only is None:
            found += _of_entries(a, a.entries[name], b, b.entries[name], ignore_keys)
        else:
            found.append(only)
    return Comparison(tuple(found), names)


def _of_entries(
    a_plan: InitPlan, a: Entry, b_plan: InitPlan, b: Entry, ignore_keys: bool
) -> Iterator[Difference]:
    for what, one, other in (
        ("kind", a.kind, b.kind),
        ("dtype", dtype_name(a.dtype), dtype_name(b.dtype)),
        ("shape", _sizes(a.shape), _sizes(b.shape)),
        ("tie", a.tie or "none", b.tie or "none"),
        ("device", a.device or "default", b.device or "default"),
    ):
        if one != other:
            yield Difference(a.name, what, one, other)
    if a.tie or b.tie:
        return
    if (a.layout, a.storage) != (b.layout, b.storage):
        yield Difference(a.name, "layout", _lies(a), _lies(b))
    if not _same_steps(a_plan, a.steps, b_plan, b.steps):
        yield Difference(a.name, "steps", *_told_apart(a.steps, b.steps))
    if not ignore_keys and _keys(a_plan, a) != _keys(b_plan, b):
        yield Difference(a.name, "numbers", *_sources(a_plan, a, b_plan, b))


def _lies(entry: Entry) -> str:
    how = "as a new one" if entry.layout is None else str(list(entry.layout.stride))
    return f"{how} in {entry.storage}" if entry.storage else how


def _same_steps(a_plan: InitPlan, a: Sequence[Step], b_plan: InitPlan, b: Sequence[Step]) -> bool:
    """Whether the steps are the same, whatever the plans call the values that they recorded."""
    if len(a) != len(b):
        return False
    for one, other in zip(a, b, strict=True):
        if one.do == other.do == "value":
            left, right = a_plan.values[_value(one)], b_plan.values[_value(other)]
            same = left.dtype == right.dtype and torch.equal(left, right)
            if not same or replace(one, arguments=()) != replace(other, arguments=()):
                return False
        elif one != other:
            return False
    return True


def _value(step: Step) -> str:
    name: str = dict(step.arguments)["value"]
    return name


def _told_apart(a: Sequence[Step], b: Sequence[Step]) -> tuple[str, str]:
    """The steps as texts that differ: short ones, where these do."""
    left, right = ("; ".join(map(str, steps)) or "left as allocated" for steps in (a, b))
    return (left, right) if left != right else (repr(a), repr(b))


def _keys(plan: InitPlan, entry: Entry) -> list[Key]:
    return [draw.resolve(plan.key) for draw in entry.draws]


def _sources(a_plan: InitPlan, a: Entry, b_plan: InitPlan, b: Entry) -> tuple[str, str]:
    """Where the first numbers that differ come from, as two texts that differ."""
    if len(a.draws) != len(b.draws):
        return f"{len(a.draws)} draws", f"{len(b.draws)} draws"
    one, other = next(
        (one, other)
        for one, other in zip(a.draws, b.draws, strict=True)
        if one.resolve(a_plan.key) != other.resolve(b_plan.key)
    )
    left, right = _source(a_plan.key, one), _source(b_plan.key, other)
    # Of one model's key it is another name's numbers.
    return (left, right) if left != right else (_whose(one), _whose(other))


def _source(key: Key | None, draw: Draw) -> str:
    if draw.key is not None and (draw.fixed or key is None):
        return f"key {draw.key.seed:x}:{draw.key.offset:x}"
    assert key is not None
    return f"seed {key.seed}" + (f", offset {key.offset}" if key.offset else "")


def _whose(draw: Draw) -> str:
    return f"those of {draw.name}" + ("" if draw.place is None else f" at {draw.place}")


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


# ----------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of a checkpoint, or what a plan would write there.

    Args:
        dtype: its name
        shape: its sizes
        nbytes: how many bytes the values have
        parts: gives them, flat and in order; None where they may be any
        rounded: whether they are a plan's in another dtype than its own
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    parts: Callable[[], Iterator[Tensor]] | None
    rounded: bool = False


def _tensors(one: _Side, other: _Side, key: Key | None) -> dict[str, _Tensor]:
    if isinstance(one, dict):
        return {name: _of_file(found) for name, found in one.items()}
    if isinstance(one, nn.Module):
        return {saved.name: _of_saved(saved, key) for saved in contents_of_module(one, None).tensors}
    assert isinstance(other, dict)
    return _of_plan(one, other, key)


def _of_saved(saved: Saved, key: Key | None) -> _Tensor:
    return _Tensor(dtype_name(saved.dtype), saved.shape, saved.nbytes, lambda: saved.parts(key))


def _of_file(one: Stored) -> _Tensor:
    # Of a dtype that torch does not have, the bytes are compared.
    readable = one if one.dtype is not None else replace(one, dtype=torch.uint8, shape=(one.nbytes,))
    return _Tensor(
        one.kind if one.dtype is None else dtype_name(one.dtype), one.shape, one.nbytes, readable.parts
    )


def _of_plan(plan: InitPlan, beside: Mapping[str, Stored], key: Key | None) -> dict[str, _Tensor]:
    """What the plan would write to a checkpoint that has these names, in the dtypes that it has."""
    names: dict[str, list[Entry]] = {}
    for entry in plan:
        names.setdefault(plan.resolved(entry).name, []).append(entry)
    found: dict[str, _Tensor] = {}
    for tied in names.values():
        there = [entry for entry in tied if entry.name in beside]
        # Of tied ones a checkpoint has one, which need not be the first.
        saved = [entry for entry in tied if entry.kind in ("parameter", "buffer")][:1]
        for entry in there or saved:
            found[entry.name] = _of_entry(plan, entry, beside.get(entry.name), key)
    return found


def _of_entry(plan: InitPlan, entry: Entry, beside: Stored | None, key: Key | None) -> _Tensor:
    dtype = entry.dtype
    if beside and beside.dtype and beside.dtype.is_floating_point and dtype.is_floating_point:
        dtype = beside.dtype
    source = plan.resolved(entry)
    numel = math.prod(entry.shape)
    # What was left as it was allocated has no values of its own.
    give = (lambda: parts(plan, source, dtype, key)) if source.steps or not numel else None
    return _Tensor(dtype_name(dtype), entry.shape, numel * dtype.itemsize, give, rounded=dtype != entry.dtype)


def _of_values(a: Mapping[str, _Tensor], b: Mapping[str, _Tensor], advance: Advance) -> Comparison:
    found: list[Difference] = []
    total = sum(one.nbytes for name, one in a.items() if _is_compared(one, b.get(name)))
    done = names = rounded = 0
    for name, only in _only(a, b):
        names += 1
        if only is not None:
            found.append(only)
            continue
        one, other = a[name], b[name]
        for what, left, right in (
            ("dtype", one.dtype, other.dtype),
            ("shape", _sizes(one.shape), _sizes(other.shape)),
        ):
            if left != right:
                found.append(Difference(name, what, left, right))
        if not _is_compared(one, other):
            continue
        rounded += one.rounded or other.rounded
        for count in _differing(name, one, other, found):
            done += count
            advance(done, total)
    return Comparison(tuple(found), names, total, rounded)


def _is_compared(one: _Tensor, other: _Tensor | None) -> bool:
    return (
        other is not None
        and (one.dtype, one.shape) == (other.dtype, other.shape)
        and one.parts is not None
        and other.parts is not None
    )


def _differing(name: str, a: _Tensor, b: _Tensor, found: list[Difference]) -> Iterator[int]:
    """Compare bit by bit, and append what differs; gives the bytes of each piece when it is done."""
    assert a.parts is not None
    assert b.parts is not None
    differing = place = 0
    first: int | None = None
    largest = 0.0
    for left, right in _side_by_side(a.parts(), b.parts()):
        apart = bits(left) != bits(right)
        if apart.any():
            where = apart.nonzero().flatten()
            differing += len(where)
            first = place + int(where[0]) if first is None else first
            gap = float((_wide(left[where]) - _wide(right[where])).abs().max())
            largest = max(largest, gap, key=_nan_last)
        place += left.numel()
        yield left.numel() * left.itemsize
    if first is not None:
        # Bytes are counted of a dtype that torch does not have.
        shape = a.shape if math.prod(a.shape) == place else (place,)
        values = Values(differing, place, index_at(first, shape), largest)
        found.append(Difference(name, "values", values=values))


def _side_by_side(a: Iterator[Tensor], b: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Two streams of flat parts, cut where either has a cut."""
    left = right = torch.empty(0)
    while True:
        if not left.numel():
            left = next(a, left)
        if not right.numel():
            right = next(b, right)
        length = min(left.numel(), right.numel())
        if not length:
            return
        yield left[:length], right[:length]
        left, right = left[length:], right[length:]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
