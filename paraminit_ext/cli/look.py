"""``summary``, ``audit``, ``plot``: of what a checkpoint or a model holds."""

from __future__ import annotations

from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from paraminit_ext.cli.output import Json, Seed, Target, print_found, print_json, working
from paraminit_ext.key import Key
from paraminit_ext.models import target as targets
from paraminit_ext.models.look import Summary, TensorSummary
from paraminit_ext.models.look import summary as summary_of
from paraminit_ext.models.plan import InitPlan

PlanOption = Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="What the tensors are to be.")]


class Sort(str, Enum):
    """What rows are sorted by: names from the first on, numbers from the largest."""

    name = "name"
    numel = "numel"
    mean = "mean"
    std = "std"
    min = "min"
    max = "max"
    zeros = "zeros"


class _Flat(Summary):
    """A summary that prints one row a tensor."""

    def _rows(self, grouped: bool = False) -> list[tuple[str, ...]]:
        return super()._rows(grouped)


def summary(
    target: Target,
    seed: Seed = None,
    pattern: Annotated[
        str | None, typer.Option("--filter", metavar="PATTERN", help="Names that match, as in '*.weight'.")
    ] = None,
    sort: Annotated[Sort | None, typer.Option(help="Rows in this order.")] = None,
    flat: Annotated[bool, typer.Option("--flat", help="One row a tensor: repeated layers apart.")] = False,
    as_json: Json = False,
) -> None:
    """Print what the tensors of a checkpoint or a model hold. For each there are shape, dtype, mean,
    deviation, extremes, zeros and NaN; repeated layers are one row. A checkpoint is read once and piece by
    piece, a model is built with all its values.

    For example:

      paraminit-ext summary checkpoint/ --filter '*.weight'
    """
    source = _read(target, seed)
    with working(f"reading {target}"):
        found = summary_of(source)
    kept = [one for one in found if pattern is None or fnmatchcase(one.name, pattern)]
    if sort is not None:
        kept.sort(key=lambda one: _place(one, sort), reverse=sort is not Sort.name)
    statistics = found.statistics
    shown = (_Flat if flat else Summary)((one, statistics[one.name]) for one in kept)
    if as_json:
        print_json(shown.to_dict())
    else:
        print_found(shown)


def _place(one: TensorSummary, sort: Sort) -> Any:
    """What a tensor is sorted by; None comes last."""
    value = getattr(one, sort.value)
    if sort is Sort.name:
        return value
    return (value is not None, 0 if value is None else value.real)


def audit(target: Target, plan: PlanOption = None, seed: Seed = None, as_json: Json = False) -> None:
    """Find what looks uninitialised, or is not what was asked for. With a plan every tensor of the checkpoint
    or model is also compared with what the plan says, bit for bit; --seed is then the plan's too. The exit
    status is 1 if anything is found.

    For example:

      paraminit-ext audit checkpoint/ --plan model.plan
    """
    from paraminit_ext.models.audit import audit as audit_of

    given = _plan(plan)
    source = _read(target, seed, seeds_more=given is not None)
    with working(f"looking at {target}"):
        found = audit_of(source, given, None if given is None or seed is None else Key(seed))
    if as_json:
        print_json(found.to_dict())
    else:
        print_found(found)
    if len(found):
        raise typer.Exit(1)


def plot(
    target: Target,
    out: Annotated[Path, typer.Argument(metavar="OUT.png", help="The picture: .png, .svg or .pdf.")],
    plan: PlanOption = None,
    before: Annotated[
        str | None, typer.Option(metavar="TARGET", help="The same model before, to be drawn beside.")
    ] = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Draw the values of a checkpoint or a model. There is a panel for each kind of layer, and over its
    values the law that was asked for, where a plan says so.

    For example:

      paraminit-ext plot checkpoint/ model.png --plan model.plan
    """
    from paraminit_ext.models.picture import plot as plot_of

    given = _plan(plan)
    source = _read(target, seed)
    other = None if before is None else _read(before, seed, seeds_more=True)
    with working(f"drawing {out}"):
        plot_of(source, out, plan=given, before=other)
    if as_json:
        print_json({"out": str(out), "nbytes": out.stat().st_size})
    else:
        print(f"{out}: {out.stat().st_size:,} bytes")


def _read(text: str, seed: int | None, seeds_more: bool = False) -> Any:
    """What the text names, with its values: a module or a path.

    Args:
        text: the target
        seed: of a model that is built; for another target an error
        seeds_more: the seed is for something else too, so it is none
    """
    with working(f"reading {text}"):
        target = targets.parse(text)
        if seed is not None and not seeds_more and not isinstance(target, targets.Model):
            raise ValueError(f"expected a model that is built for --seed, got {text}. Leave --seed out.")
        return targets.readable(target, seed or 0)


def _plan(text: str | None) -> InitPlan | None:
    return None if text is None else targets.loaded_plan(targets.parse(text))
