"""The commands ``plan``, ``show``, ``checkpoint`` and ``diff``, which work with plans."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions
from rich.table import Table
from torch import nn

from paraminit_ext.cli.output import Json, bytes_done, dtype_of, print_found, print_json, working
from paraminit_ext.key import Key
from paraminit_ext.models import planfile
from paraminit_ext.models import target as targets
from paraminit_ext.models.compare import compare
from paraminit_ext.models.law import Law, law_of_fill
from paraminit_ext.models.layout import dtype_name, shape_text
from paraminit_ext.models.plan import Entry, InitPlan
from paraminit_ext.models.summary import bytes_text, count_text, layer_pattern, plain_table

PlanSeed = Annotated[int, typer.Option(help="Seed of the model.", metavar="N")]
Either = Annotated[
    str, typer.Argument(metavar="PLAN_OR_DIR", help="A plan, a checkpoint, a config.json or module:function.")
]


def plan(
    source: Annotated[
        str, typer.Argument(metavar="CONFIG_OR_FUNCTION", help="A config.json or module:function.")
    ],
    out: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan file to write.")],
    seed: PlanSeed = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing plan.")] = False,
    as_json: Json = False,
) -> None:
    """Record the initialisation of a model in a plan file. The tensors themselves are not created. The plan
    gives the same model on every machine. An existing file that is not a plan is never overwritten.

    For example:

      paraminit-ext plan config.json model.plan --seed 0
    """
    _refuse_to_overwrite(out, force)
    with working(f"recording {source}"):
        target = targets.parse(source)
        start = time.monotonic()
        made = InitPlan.of(targets.deferred(target, seed))
        made.save(out)
    seconds = time.monotonic() - start
    if as_json:
        print_json({"plan": str(out), **_sizes(made), "seconds": seconds})
    else:
        size = bytes_text(out.stat().st_size)
        print(f"{out}: {_foot(made)} of values; a plan of {size}, made in {seconds:.1f} s")


def _refuse_to_overwrite(out: Path, force: bool) -> None:
    if not out.parent.is_dir():
        raise FileNotFoundError(f"expected a directory for {out}, got none. Create {out.parent} first.")
    if not out.exists():
        return
    if not targets.is_plan(out):
        raise FileExistsError(
            f"expected a new file or a plan, got {out}, which is neither. Name another file."
        )
    if not force:
        raise FileExistsError(f"expected a new file, got {out}, a plan. Name another file, or pass --force.")


def _sizes(shown: InitPlan) -> dict[str, int]:
    own = [entry for entry in shown if entry.tie is None]
    return {
        "tensors": len(shown),
        "parameters": sum(math.prod(entry.shape) for entry in own if entry.kind == "parameter"),
        "nbytes": sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in own),
    }


def _foot(shown: InitPlan) -> str:
    sizes = _sizes(shown)
    parameters, nbytes = count_text(sizes["parameters"]), bytes_text(sizes["nbytes"])
    return f"{sizes['tensors']} tensors, {parameters} parameters, {nbytes}"


# ----------------------------------------------------------------------------------------
# show
# ----------------------------------------------------------------------------------------


def show(
    file: Annotated[str, typer.Argument(metavar="PLAN", help="The plan file.")], as_json: Json = False
) -> None:
    """Print a plan as a table. For each tensor, it shows the fill, and the mean, standard deviation and
    bounds of the filled values. Repeated layers share one row.

    For example:

      paraminit-ext show model.plan
    """
    found = targets.loaded_plan(targets.parse(file))
    if as_json:
        key = found.key and {"seed": found.key.seed, "offset": found.key.offset}
        print_json({"key": key, **_sizes(found), "entries": [_to_dict(entry) for entry in found]})
    else:
        print_found(_Shown(found))


def _law(entry: Entry) -> Law | None:
    """Return the law of the elements if the only step of the entry is a fill."""
    if len(entry.steps) != 1:
        return None
    with warnings.catch_warnings():
        # A fill emits its warnings when it runs, so ignore them here.
        warnings.simplefilter("ignore")
        return law_of_fill(entry)


def _to_dict(entry: Entry) -> dict[str, Any]:
    law = _law(entry)
    numbers = ("mean", "std", "low", "high")
    return {
        "name": entry.name,
        "kind": entry.kind,
        "dtype": dtype_name(entry.dtype),
        "shape": list(entry.shape),
        "tie": entry.tie,
        "storage": entry.storage,
        "device": entry.device,
        "steps": [planfile._step_to_json(step) for step in entry.steps],
        "draws": [planfile._draw_to_json(draw, entry.name) for draw in entry.draws],
        "law": law and {"name": law.name, **{name: getattr(law, name) for name in numbers}},
    }


_HEAD = ("name", "shape", "dtype", "filled by", "mean", "std", "min", "max")
_LEFT = ("name", "shape", "filled by")
# The columns that are left out on a narrow terminal, in this order.
_OPTIONAL = ("dtype", "max", "min", "mean", "shape", "std")


class _Shown:
    """A plan to print as a table that fits the terminal."""

    def __init__(self, shown: InitPlan) -> None:
        groups: dict[Any, list[Entry]] = {}
        for entry in shown:
            tie = entry.tie and layer_pattern(entry.tie)
            like = entry.kind, entry.dtype, entry.shape, entry.steps, entry.layout, tie
            groups.setdefault((layer_pattern(entry.name), repr(like)), []).append(entry)
        self._rows = [_row(pattern, entries) for (pattern, _), entries in groups.items()]
        source = "each draw has its own key" if shown.key is None else str(shown.key)
        self._foot = f"{_foot(shown)}; {source}"

    def __str__(self) -> str:
        return "\n".join([*plain_table([_HEAD, *self._rows]), self._foot])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | str]:
        rows = [_HEAD, *self._rows]
        widths = {name: max(len(row[place]) for row in rows) for place, name in enumerate(_HEAD)}
        notes: list[str] = []
        dtypes = {row[_HEAD.index("dtype")] for row in self._rows}
        if len(dtypes) == 1:
            del widths["dtype"]
            notes.append(f"all {dtypes.pop()}")
        left_out: list[str] = []
        for name in _OPTIONAL:
            if sum(widths.values()) + 2 * (len(widths) - 1) <= options.max_width:
                break
            if widths.pop(name, None):
                left_out.append(name)
        if left_out:
            notes.append(f"not shown for lack of space: {', '.join(left_out)}")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in widths:
            left = name in _LEFT
            table.add_column(
                name, justify="left" if left else "right", overflow="fold", no_wrap=name != "name"
            )
        for row in self._rows:
            table.add_row(*(row[_HEAD.index(name)] for name in widths))
        yield table
        yield self._foot
        if notes:
            yield "; ".join(notes)


def _row(pattern: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    first, many = entries[0], len(entries) > 1
    name = f"{pattern} x {len(entries)}" if many else first.name
    if first.tie:
        name = f"{name} = {layer_pattern(first.tie) if many else first.tie}"
    law = _law(first)
    numbers = [law.mean, law.std, law.low, law.high] if law else [math.nan] * 4
    return (
        name,
        shape_text(first.shape),
        dtype_name(first.dtype),
        _filled_by(first),
        *(f"{number:.3g}" if math.isfinite(number) else "-" for number in numbers),
    )


def _filled_by(entry: Entry) -> str:
    """Return the first step's function and the number of further steps, without allocations and copies."""
    if entry.tie:
        return "-"
    names = [step.do.split(".")[1] if step.do.startswith("aten.") else step.do for step in entry.steps]
    first, *more = [name for name in names if name not in ("empty", "clone")] or ["nothing"]
    return f"{first} + {len(more)}" if more else first


# ----------------------------------------------------------------------------------------
# checkpoint, diff
# ----------------------------------------------------------------------------------------


def checkpoint(
    source: Annotated[
        str, typer.Argument(metavar="CONFIG_OR_PLAN", help="A config.json, module:function or a plan.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT/", help="The directory to write to.")],
    seed: Annotated[
        int | None, typer.Option(help="Seed of the model; by default 0 or the seed of the plan.", metavar="N")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Maximum size of a file.", metavar="SIZE")] = "5GB",
    dtype: Annotated[
        str | None,
        typer.Option(help="Dtype of the parameters, such as bfloat16.", metavar="NAME"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the checkpoint of an initialised model. The model is never entirely in memory. The files are the
    same as those of save_pretrained. To continue an interrupted run, run the same command again. Files of
    another model are never overwritten.

    For example:

      paraminit-ext checkpoint config.json checkpoint/ --seed 0
    """
    from paraminit_ext.models.checkpoint import save_initialized

    converted = None if dtype is None else dtype_of(dtype)
    with working(f"reading {source}"):
        made, key = _initialised(targets.parse(source), seed)
    start = time.monotonic()
    files = save_initialized(made, out, max_shard_size, converted, key=key)
    seconds, nbytes = time.monotonic() - start, sum(file.stat().st_size for file in files)
    if as_json:
        print_json({"files": [str(file) for file in files], "nbytes": nbytes, "seconds": seconds})
    else:
        print(f"{out}: {len(files)} file{'s' * (len(files) > 1)}, {bytes_text(nbytes)} in {seconds:.1f} s")


def _initialised(target: targets.Target, seed: int | None) -> tuple[InitPlan | nn.Module, Key | None]:
    """Return the plan or model to save, and the key that replaces the key of the plan."""
    if isinstance(target, targets.PlanFile):
        return targets.loaded_plan(target), None if seed is None else Key(seed)
    return targets.deferred(target, seed or 0), None


def diff(
    a: Either,
    b: Either,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of a model, or of a plan that is compared with a checkpoint.", metavar="N"),
    ] = None,
    ignore_keys: Annotated[
        bool, typer.Option("--ignore-keys", help="Ignore the keys when two plans are compared.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the differences between two plans or checkpoints. Two plans are compared by their entries, two
    checkpoints bit by bit. If a plan is compared with a checkpoint, the values of the plan are rounded to the
    dtype of the checkpoint. A config.json stands for the plan of its model under --seed. With a config.json,
    tensors that transformers renames in checkpoints are matched as well. The exit status is 1 if there are
    differences.

    For example:

      paraminit-ext diff model.plan checkpoint/
    """
    parsed = targets.parse(a), targets.parse(b)
    key = _key_of_plan(parsed, seed)
    if seed is not None and key is None and not any(isinstance(one, targets.Model) for one in parsed):
        raise ValueError(
            f"expected a model, or a plan and a checkpoint, for --seed, got {a} and {b}. Omit --seed."
        )
    sides = [_side(text, target, seed) for text, target in zip((a, b), parsed, strict=True)]
    with bytes_done("comparing") as advance:
        found = compare(*sides, key=key, ignore_keys=ignore_keys, advance=advance)
    if as_json:
        print_json({"a": a, "b": b, **found.to_dict()})
    else:
        if not found.equal:
            print(f"A is {a}, B is {b}")
        print_found(found)
    if not found.equal:
        raise typer.Exit(1)


def _key_of_plan(parsed: Sequence[targets.Target], seed: int | None) -> Key | None:
    """Return the key that replaces the key of a plan that is compared with a checkpoint."""
    are_plan_and_checkpoint = {type(one) for one in parsed} == {targets.PlanFile, targets.Checkpoint}
    return Key(seed) if seed is not None and are_plan_and_checkpoint else None


def _side(text: str, target: targets.Target, seed: int | None) -> InitPlan | nn.Module | Path:
    if isinstance(target, targets.Model):
        with working(f"recording {text}"):
            return targets.deferred(target, seed or 0)
    return target.path if isinstance(target, targets.Checkpoint) else targets.loaded_plan(target)
