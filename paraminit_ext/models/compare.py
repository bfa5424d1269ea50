"""``compare()``: find the differences between two plans, two checkpoints, or a plan and a checkpoint.

Values are read piece by piece, so that at most two pieces of a tensor are in memory. Only a tensor of a plan
whose steps are more than a fill is made as a whole.
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
from paraminit_ext.models.checkpoint_contents import SavedTensor, contents_of_module
from paraminit_ext.models.checkpoint_reader import StoredTensor, read_checkpoint
from paraminit_ext.models.layout import bits, dtype_name, same_bits, shape_text, unravel_index
from paraminit_ext.models.names import check_key
from paraminit_ext.models.plan import Entry, InitPlan
from paraminit_ext.models.steps import Draw, Step
from paraminit_ext.models.summary import bytes_text, layer_pattern
from paraminit_ext.models.write import parts

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table
    from rich.text import Text

Advance: TypeAlias = Callable[[int, int], object]
Path: TypeAlias = str | os.PathLike[str]


# ----------------------------------------------------------------------------------------
# Results
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Values:
    """How the elements of two tensors of equal shape and dtype differ, bit by bit.

    Args:
        differing: the number of elements that differ
        numel: the number of elements
        first: the index of the first element that differs
        largest: the largest absolute difference, or NaN if one of two different elements is NaN
    """

    differing: int
    numel: int
    first: tuple[int, ...]
    largest: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between the tensors of one name.

    Args:
        name: the name of the tensor
        what: the kind of the difference: ``"only in A"``, ``"only in B"``, ``"kind"``, ``"dtype"``,
            ``"shape"``, ``"tie"``, ``"layout"``, ``"device"``, ``"steps"``, ``"numbers"`` or ``"values"``
        a: the first tensor's side of the difference, as text
        b: the second tensor's side of the difference, as text
        values: how the values differ, if ``what`` is ``"values"``
    """

    name: str
    what: str
    a: str = ""
    b: str = ""
    values: Values | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of JSON types."""
        fields: dict[str, Any] = {"name": self.name, "what": self.what}
        if self.values is None:
            return {**fields, "a": self.a, "b": self.b}
        largest = self.values.largest
        return {
            **fields,
            "differing": self.values.differing,
            "numel": self.values.numel,
            "first": list(self.values.first),
            # JSON cannot represent NaN and infinity.
            "largest": largest if math.isfinite(largest) else str(largest),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of :func:`.compare`. ``print`` shows a table with one row for repeated layers.

    Args:
        differences: the differences, in the order of the first object's tensors
        tensors: the number of distinct tensor names in the two objects
        nbytes: the number of bytes of the compared values
        rounded: the number of a plan's tensors that were rounded to the checkpoint's dtype
    """

    differences: tuple[Difference, ...]
    tensors: int
    nbytes: int = 0
    rounded: int = 0

    @property
    def equal(self) -> bool:
        """Whether there are no differences."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary of JSON types."""
        return {
            "equal": self.equal,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "rounded": self.rounded,
            "differences": [one.to_dict() for one in self.differences],
        }

    def _rows(self) -> list[tuple[str, str, str]]:
        """Return rows of name, kind and detail. Layers with equal differences share one row."""
        groups: dict[tuple[str, ...], list[Difference]] = {}
        for difference in self.differences:
            tie = (
                (layer_pattern(difference.a), layer_pattern(difference.b))
                if difference.what == "tie"
                else (difference.a, difference.b)
            )
            groups.setdefault((layer_pattern(difference.name), difference.what, *tie), []).append(difference)
        return [
            (
                members[0].name if len(members) == 1 else f"{pattern} x {len(members)}",
                what,
                _detail_text(members, a, b),
            )
            for (pattern, what, a, b), members in groups.items()
        ]

    def _foot(self) -> str:
        names = len({difference.name for difference in self.differences})
        total = f"{self.tensors:,} tensors"
        text = f"equal: {total}" if self.equal else f"{names:,} of {total} differ"
        if self.nbytes:
            text += f"; {bytes_text(self.nbytes)} compared"
        if self.rounded:
            text += f", {self.rounded:,} rounded to the checkpoint's dtype"
        return text

    def __str__(self) -> str:
        lines = [f"{name}  {what}: {how}" for name, what, how in self._rows()]
        return "\n".join([*lines, self._foot()])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        from rich.table import Table
        from rich.text import Text

        # Text objects, so that rich does not interpret brackets as markup.
        heads, rows = ("name", "what", "how"), self._rows()
        widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(3)]
        if rows and sum(widths) + 4 <= options.max_width:
            table = Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for (name, what, how), is_repeated in zip(rows, _repeats_name(rows), strict=True):
                table.add_row(*map(Text, ("" if is_repeated else name, what, how)))
            yield table
        elif rows:
            # The console is too narrow for columns, so the differences follow below the name.
            for (name, what, how), is_repeated in zip(rows, _repeats_name(rows), strict=True):
                if not is_repeated:
                    yield Text(name)
                line = f"  {what}: {how}"
                if len(line) > options.max_width:
                    line = line.replace(" -> ", "\n    -> ").replace("; ", ";\n    ")
                yield Text(line)
        yield Text(self._foot())


def _repeats_name(rows: Sequence[tuple[str, str, str]]) -> list[bool]:
    """Return, for each row, whether it has the same name as the row before it."""
    return [place > 0 and row[0] == rows[place - 1][0] for place, row in enumerate(rows)]


def _detail_text(members: Sequence[Difference], a: str, b: str) -> str:
    values = [one.values for one in members if one.values is not None]
    if not values:
        return f"{a} -> {b}" if a and b else a or b
    differing, numel = sum(one.differing for one in values), sum(one.numel for one in values)
    share = f"all of {numel:,}" if differing == numel else f"{differing:,} of {numel:,}"
    largest = max((one.largest for one in values), key=_nan_last)
    text = f"{share}, by up to {largest:.3g}"
    return text if len(values) > 1 else f"{text}, first at {list(values[0].first)}"


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
    r"""Find the differences between two plans, two checkpoints, or a plan and a checkpoint.

    Two plans are compared by their entries: kind, dtype, shape, tie, layout, device, steps and the keys of
    the random numbers. Two checkpoints are compared bit by bit. A plan and a checkpoint are compared by the
    values that the plan produces, rounded to the dtype of the checkpoint. Tensors that a checkpoint omits
    are then not a difference: all except one of several tied tensors, non-persistent buffers and plain
    attributes.

    A module that :func:`.deferred_init` made stands for its plan. transformers renames some tensors when it
    saves a model, for example those of a ViT. A module is compared with a checkpoint under these saved
    names; a plan does not know them.

    Args:
        a: a plan, a module that has a plan, or a path. The path is a directory of safetensors files, the
            index file in such a directory, or one safetensors file.
        b: the object to compare ``a`` with, of any of the same types
        key: the key of the model, which replaces the plan's own key. It requires a plan and a checkpoint.
        ignore_keys: whether to ignore different keys of the random numbers. It requires two plans.
        advance: a function that is called repeatedly with the number of bytes that have been compared and
            their total number

    Raises:
        TypeError: an argument has the wrong type, or does not apply to these objects.
        OSError: a path cannot be read.
        ValueError: a path is not a checkpoint, or the checkpoint is damaged.

    Returns:
        A :class:`.Comparison`.

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
    check_key("compare", key)
    sides = [_side(value) for value in (a, b)]
    if not any(isinstance(side, dict) for side in sides):
        sides = [InitPlan.of(side) if isinstance(side, nn.Module) else side for side in sides]
    plans = [side for side in sides if not isinstance(side, dict)]
    if ignore_keys and len(plans) < 2:
        raise TypeError(_error_text("two plans with ignore_keys", "a checkpoint", "Leave ignore_keys out."))
    if key is not None and len(plans) != 1:
        raise TypeError(
            _error_text("a plan and a checkpoint with a key", f"{len(plans)} plans", "Leave key out.")
        )
    left_side, right_side = sides
    if isinstance(left_side, InitPlan) and isinstance(right_side, InitPlan):
        return _compare_plans(left_side, right_side, ignore_keys)
    left = _tensors(left_side, right_side, key)
    right = _tensors(right_side, left_side, key)
    return _compare_values(left, right, advance or _no_progress)


def _no_progress(*_: int) -> None:
    pass


_Side: TypeAlias = InitPlan | nn.Module | dict[str, StoredTensor]


def _side(value: object) -> _Side:
    if isinstance(value, InitPlan | nn.Module):
        return value
    if isinstance(value, str | os.PathLike):
        return read_checkpoint(value)
    raise TypeError(
        _error_text(
            "an InitPlan, a module or a path",
            type(value).__name__,
            "Pass a plan, or a directory of safetensors files.",
        )
    )


def _error_text(expected: str, got: str, remedy: str) -> str:
    return f"paraminit_ext.compare: expected {expected}, got {got}. {remedy}"


def _paired_names(
    a: Mapping[str, Entry | _Tensor], b: Mapping[str, Entry | _Tensor]
) -> Iterator[tuple[str, Difference | None]]:
    """Yield each name once, those of ``a`` first, with a difference if only one of the two has the name."""
    for name, tensor in a.items():
        yield name, None if name in b else Difference(name, "only in A", a=shape_text(tensor.shape))
    for name, tensor in b.items():
        if name not in a:
            yield name, Difference(name, "only in B", b=shape_text(tensor.shape))


# ----------------------------------------------------------------------------------------
# Two plans
# ----------------------------------------------------------------------------------------


def _compare_plans(a: InitPlan, b: InitPlan, ignore_keys: bool) -> Comparison:
    differences: list[Difference] = []
    names = 0
    for name, difference in _paired_names(a.entries, b.entries):
        names += 1
        if difference is None:
            differences += _compare_entries(a, a.entries[name], b, b.entries[name], ignore_keys)
        else:
            differences.append(difference)
    return Comparison(tuple(differences), names)


def _compare_entries(
    a_plan: InitPlan, a: Entry, b_plan: InitPlan, b: Entry, ignore_keys: bool
) -> Iterator[Difference]:
    for what, left, right in (
        ("kind", a.kind, b.kind),
        ("dtype", dtype_name(a.dtype), dtype_name(b.dtype)),
        ("shape", shape_text(a.shape), shape_text(b.shape)),
        ("tie", a.tie or "none", b.tie or "none"),
        ("device", a.device or "default", b.device or "default"),
    ):
        if left != right:
            yield Difference(a.name, what, left, right)
    if a.tie or b.tie:
        return
    if (a.layout, a.storage) != (b.layout, b.storage):
        yield Difference(a.name, "layout", _layout_text(a), _layout_text(b))
    if not _same_steps(a_plan, a.steps, b_plan, b.steps):
        yield Difference(a.name, "steps", *_step_texts(a.steps, b.steps))
    if not ignore_keys and _resolved_keys(a_plan, a) != _resolved_keys(b_plan, b):
        yield Difference(a.name, "numbers", *_source_texts(a_plan, a, b_plan, b))


def _layout_text(entry: Entry) -> str:
    strides = "default" if entry.layout is None else str(list(entry.layout.stride))
    return f"{strides} in {entry.storage}" if entry.storage else strides


def _same_steps(a_plan: InitPlan, a: Sequence[Step], b_plan: InitPlan, b: Sequence[Step]) -> bool:
    """Return whether the steps are the same, regardless of the names of the recorded values."""
    if len(a) != len(b):
        return False
    for a_step, b_step in zip(a, b, strict=True):
        if a_step.do == b_step.do == "value":
            left, right = a_plan.values[_value(a_step)], b_plan.values[_value(b_step)]
            if not same_bits(left, right) or replace(a_step, arguments=()) != replace(b_step, arguments=()):
                return False
        elif a_step != b_step:
            return False
    return True


def _value(step: Step) -> str:
    name: str = dict(step.arguments)["value"]
    return name


def _step_texts(a: Sequence[Step], b: Sequence[Step]) -> tuple[str, str]:
    """Return two different texts for the steps: the short ones, unless they are equal."""
    left, right = ("; ".join(map(str, steps)) or "left as allocated" for steps in (a, b))
    return (left, right) if left != right else (repr(a), repr(b))


def _resolved_keys(plan: InitPlan, entry: Entry) -> list[Key]:
    return [draw.resolve(plan.key) for draw in entry.draws]


def _source_texts(a_plan: InitPlan, a: Entry, b_plan: InitPlan, b: Entry) -> tuple[str, str]:
    """Return two different texts for the sources of the first draws that differ."""
    if len(a.draws) != len(b.draws):
        return f"{len(a.draws)} draws", f"{len(b.draws)} draws"
    a_draw, b_draw = next(
        (a_draw, b_draw)
        for a_draw, b_draw in zip(a.draws, b.draws, strict=True)
        if a_draw.resolve(a_plan.key) != b_draw.resolve(b_plan.key)
    )
    left, right = _source_text(a_plan.key, a_draw), _source_text(b_plan.key, b_draw)
    # With equal keys of the models, the draws belong to different names.
    return (left, right) if left != right else (_name_text(a_draw), _name_text(b_draw))


def _source_text(key: Key | None, draw: Draw) -> str:
    if draw.key is not None and (draw.fixed or key is None):
        return f"key {draw.key.seed:x}:{draw.key.offset:x}"
    assert key is not None
    return f"seed {key.seed}" + (f", offset {key.offset}" if key.offset else "")


def _name_text(draw: Draw) -> str:
    return f"numbers of {draw.name}" + ("" if draw.place is None else f" at {draw.place}")


# ----------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of a checkpoint, or the tensor that a plan would write to one.

    Args:
        dtype: the name of the dtype
        shape: the shape
        nbytes: the number of bytes of the values
        parts: a function that yields the values in parts, flat and in order; None if they are undefined
        rounded: whether the values come from a plan and are rounded to another dtype
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    parts: Callable[[], Iterator[Tensor]] | None
    rounded: bool = False


def _tensors(side: _Side, other_side: _Side, key: Key | None) -> dict[str, _Tensor]:
    if isinstance(side, dict):
        return {name: _tensor_of_file(in_file) for name, in_file in side.items()}
    assert isinstance(other_side, dict)
    if isinstance(side, nn.Module):
        return {
            saved.name: _tensor_of_saved(saved, other_side.get(saved.name), key)
            for saved in contents_of_module(side, None).tensors
        }
    return _tensors_of_plan(side, other_side, key)


def _compared_dtype(dtype: torch.dtype, in_file: StoredTensor | None) -> torch.dtype:
    """Return the dtype to which values of ``dtype`` are rounded for the comparison with a checkpoint."""
    if in_file and in_file.dtype and in_file.dtype.is_floating_point and dtype.is_floating_point:
        return in_file.dtype
    return dtype


def _tensor_of_saved(saved: SavedTensor, in_file: StoredTensor | None, key: Key | None) -> _Tensor:
    dtype = _compared_dtype(saved.dtype, in_file)
    return _Tensor(
        dtype_name(dtype),
        saved.shape,
        math.prod(saved.shape) * dtype.itemsize,
        lambda: (part.to(dtype) for part in saved.parts(key)),
        rounded=dtype != saved.dtype,
    )


def _tensor_of_file(in_file: StoredTensor) -> _Tensor:
    # If torch lacks the dtype, the bytes are compared.
    readable = (
        in_file if in_file.dtype is not None else replace(in_file, dtype=torch.uint8, shape=(in_file.nbytes,))
    )
    return _Tensor(
        in_file.kind if in_file.dtype is None else dtype_name(in_file.dtype),
        in_file.shape,
        in_file.nbytes,
        readable.parts,
    )


def _tensors_of_plan(
    plan: InitPlan, checkpoint: Mapping[str, StoredTensor], key: Key | None
) -> dict[str, _Tensor]:
    """Return the tensors that the plan would write to this checkpoint, under its names and in its dtypes."""
    names: dict[str, list[Entry]] = {}
    for entry in plan:
        names.setdefault(plan.resolved(entry).name, []).append(entry)
    tensors: dict[str, _Tensor] = {}
    for tied in names.values():
        in_checkpoint = [entry for entry in tied if entry.name in checkpoint]
        # A checkpoint holds one of several tied tensors, which is not always the first.
        saved = [entry for entry in tied if entry.kind in ("parameter", "buffer")][:1]
        for entry in in_checkpoint or saved:
            tensors[entry.name] = _tensor_of_entry(plan, entry, checkpoint.get(entry.name), key)
    return tensors


def _tensor_of_entry(plan: InitPlan, entry: Entry, in_file: StoredTensor | None, key: Key | None) -> _Tensor:
    dtype = _compared_dtype(entry.dtype, in_file)
    source = plan.resolved(entry)
    numel = math.prod(entry.shape)
    # A tensor without steps has undefined values.
    give_parts = (lambda: parts(plan, source, dtype, key)) if source.steps or not numel else None
    return _Tensor(
        dtype_name(dtype), entry.shape, numel * dtype.itemsize, give_parts, rounded=dtype != entry.dtype
    )


def _compare_values(a: Mapping[str, _Tensor], b: Mapping[str, _Tensor], advance: Advance) -> Comparison:
    differences: list[Difference] = []
    total = sum(one.nbytes for name, one in a.items() if _is_compared(one, b.get(name)))
    done = names = rounded = 0
    for name, difference in _paired_names(a, b):
        names += 1
        if difference is not None:
            differences.append(difference)
            continue
        one, other = a[name], b[name]
        for what, left, right in (
            ("dtype", one.dtype, other.dtype),
            ("shape", shape_text(one.shape), shape_text(other.shape)),
        ):
            if left != right:
                differences.append(Difference(name, what, left, right))
        if not _is_compared(one, other):
            continue
        rounded += one.rounded or other.rounded
        for count in _compare_tensors(name, one, other, differences):
            done += count
            advance(done, total)
    return Comparison(tuple(differences), names, total, rounded)


def _is_compared(one: _Tensor, other: _Tensor | None) -> bool:
    return (
        other is not None
        and (one.dtype, one.shape) == (other.dtype, other.shape)
        and one.parts is not None
        and other.parts is not None
    )


def _compare_tensors(name: str, a: _Tensor, b: _Tensor, differences: list[Difference]) -> Iterator[int]:
    """Compare bit by bit and append any difference. Yield the number of bytes of each compared piece."""
    assert a.parts is not None
    assert b.parts is not None
    differing = place = 0
    first: int | None = None
    largest = 0.0
    for left, right in _side_by_side(a.parts(), b.parts()):
        different = bits(left) != bits(right)
        if different.any():
            places = different.nonzero().flatten()
            differing += len(places)
            first = place + int(places[0]) if first is None else first
            distance = float((_widened(left[places]) - _widened(right[places])).abs().max())
            largest = max(largest, distance, key=_nan_last)
        place += left.numel()
        yield left.numel() * left.itemsize
    if first is not None:
        # If torch lacks the dtype, the elements are bytes.
        shape = a.shape if math.prod(a.shape) == place else (place,)
        values = Values(differing, place, unravel_index(first, shape), largest)
        differences.append(Difference(name, "values", values=values))


def _side_by_side(a: Iterator[Tensor], b: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Split two streams of flat parts into pairs of parts of equal length."""
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


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
