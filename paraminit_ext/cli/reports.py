"""The commands ``summary``, ``audit`` and ``plot``, which examine the values of a checkpoint or a model."""

from __future__ import annotations

from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from paraminit_ext.cli.output import Json, Seed, Target, print_found, print_json, working
from paraminit_ext.key import Key
from paraminit_ext.models import target as targets
from paraminit_ext.models.plan import InitPlan
from paraminit_ext.models.summary import Summary, TensorSummary
from paraminit_ext.models.summary import summary as summary_of

PlanOption = Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="The plan of the model.")]


class Sort(str, Enum):
    """The column by which rows are sorted: names in ascending order, numbers in descending order."""

    name = "name"
    numel = "numel"
    mean = "mean"
    std = "std"
    min = "min"
    max = "max"
    zeros = "zeros"


class _Flat(Summary):
    """A summary that prints one row for each tensor."""

    def _rows(self, grouped: bool = False) -> list[tuple[str, ...]]:
        return super()._rows(grouped)


def summary(
    target: Target,
    seed: Seed = None,
    pattern: Annotated[
        str | None,
        typer.Option("--filter", metavar="PATTERN", help="Only names that match, such as '*.weight'."),
    ] = None,
    sort: Annotated[Sort | None, typer.Option(help="Sort the rows by this column.")] = None,
    flat: Annotated[bool, typer.Option("--flat", help="Print one row per tensor, without grouping.")] = False,
    as_json: Json = False,
) -> None:
    """Print statistics of the tensors of a checkpoint or a model. For each tensor, these are the shape, the
    dtype, the mean, the standard deviation, the extremes, and the numbers of zeros and NaN. Repeated layers
    share one row. A checkpoint is read once, piece by piece. A model is built with all its values.

    For example:

      paraminit-ext summary checkpoint/ --filter '*.weight'
    """
    source = _read(target, seed)
    with working(f"reading {target}"):
        found = summary_of(source)
    rows = [row for row in found if pattern is None or fnmatchcase(row.name, pattern)]
    if sort is not None:
        rows.sort(key=lambda row: _sort_key(row, sort), reverse=sort is not Sort.name)
    statistics = found.statistics
    shown = (_Flat if flat else Summary)((row, statistics[row.name]) for row in rows)
    if as_json:
        print_json(shown.to_dict())
    else:
        print_found(shown)


def _sort_key(row: TensorSummary, sort: Sort) -> Any:
    """Return the sort key of a tensor. Missing values come last."""
    value = getattr(row, sort.value)
    if sort is Sort.name:
        return value
    return (value is not None, 0 if value is None else value.real)


def audit(target: Target, plan: PlanOption = None, seed: Seed = None, as_json: Json = False) -> None:
    """Find tensors that look uninitialised or wrongly initialised. With --plan, every tensor is also compared
    bit by bit with the values of the plan, and --seed applies to the plan as well. The exit status is 1 if
    there are findings.

    For example:

      paraminit-ext audit checkpoint/ --plan model.plan
    """
    from paraminit_ext.models.audit import audit as audit_of

    loaded = _plan(plan)
    source = _read(target, seed, seed_has_other_use=loaded is not None)
    with working(f"auditing {target}"):
        found = audit_of(source, loaded, None if loaded is None or seed is None else Key(seed))
    if as_json:
        print_json(found.to_dict())
    else:
        print_found(found)
    if len(found):
        raise typer.Exit(1)


def plot(
    target: Target,
    out: Annotated[Path, typer.Argument(metavar="OUT.png", help="The figure: .png, .svg or .pdf.")],
    plan: PlanOption = None,
    before: Annotated[
        str | None, typer.Option(metavar="TARGET", help="An earlier state of the model, for comparison.")
    ] = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Plot the values of a checkpoint or a model. Each kind of layer has a panel with the density of its
    values. If a plan is known, the panel also shows the density that the plan requests.

    For example:

      paraminit-ext plot checkpoint/ model.png --plan model.plan
    """
    from paraminit_ext.models.plot import plot as plot_of

    loaded = _plan(plan)
    source = _read(target, seed)
    earlier = None if before is None else _read(before, seed, seed_has_other_use=True)
    with working(f"plotting {out}"):
        plot_of(source, out, plan=loaded, before=earlier)
    if as_json:
        print_json({"out": str(out), "nbytes": out.stat().st_size})
    else:
        print(f"{out}: {out.stat().st_size:,} bytes")


def _read(text: str, seed: int | None, seed_has_other_use: bool = False) -> Any:
    """Return the module or the path that the target names, with values.

    Args:
        text: the target
        seed: the seed of a model that is built; an error for any other target
        seed_has_other_use: whether the seed is also used elsewhere, so that it is no error
    """
    with working(f"reading {text}"):
        target = targets.parse(text)
        if seed is not None and not seed_has_other_use and not isinstance(target, targets.Model):
            raise ValueError(f"expected a model that is built for --seed, got {text}. Omit --seed.")
        return targets.readable(target, seed or 0)


def _plan(text: str | None) -> InitPlan | None:
    return None if text is None else targets.loaded_plan(targets.parse(text))
