"""`python -m benchmarks compare BEFORE AFTER`: compare two runs of the same rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import Table, duration, facts_line, share
from benchmarks.rows import Row, read


def in_both(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return pairs of the rows with a time of ours that both runs have, in the order of the second run."""
    known = {row.name: row for row in before if "ours" in row.seconds}
    return [(known[row.name], row) for row in after if row.name in known and "ours" in row.seconds]


def slowdown(before: Row, after: Row) -> float:
    """Return how many times as long ours takes after, relative to a plain fill if both rows have one.

    The speed of a machine varies over minutes, and two machines of one model differ. Dividing by the time of
    the plain fill in the same rounds cancels this.
    """
    own = after.seconds["ours"] / before.seconds["ours"]
    if "fill" in before.seconds and "fill" in after.seconds:
        return own / (after.seconds["fill"] / before.seconds["fill"])
    return own


def compared(pairs: Sequence[tuple[Row, Row]]) -> Table:
    """Return a table of times before and after, the change, and shares of the store ceiling if measured."""
    cells = [
        [
            after.name,
            *(duration(row.seconds["ours"]) for row in (before, after)),
            f"{slowdown(before, after) - 1:+.0%}",
            *(share(row.share_of_ceiling) for row in (before, after)),
        ]
        for before, after in pairs
    ]
    headers = [
        "row",
        "before",
        "after",
        "change relative to a plain fill",
        "of the store ceiling, before",
        "after",
    ]
    if not any(row.share_of_ceiling for pair in pairs for row in pair):
        headers, cells = headers[:4], [row[:4] for row in cells]
    return Table("two runs", headers, cells)


def main(
    before: Annotated[Path, typer.Argument(help="the --json file of a run, such as a committed one")],
    after: Annotated[Path, typer.Argument(help="the --json file of another run")],
    tolerance: Annotated[
        float | None, typer.Option(help="fail if the median change is above this share, such as 0.1")
    ] = None,
) -> None:
    """Print the times of ours in two runs, row by row. Rows that only one run has are left out."""
    try:
        first, second = read(before), read(after)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    pairs = in_both(first, second)
    if not pairs:
        raise typer.BadParameter(f"expected rows of the same names in {before} and {after}, got none")
    typer.echo(f"before: {facts_line(first)}\nafter: {facts_line(second)}\n\n{compared(pairs).markdown()}")
    median = statistics.median(slowdown(*pair) for pair in pairs) - 1
    typer.echo(f"{len(pairs)} rows, median change {median:+.1%}")
    if tolerance is not None and median > tolerance:
        raise typer.Exit(1)
