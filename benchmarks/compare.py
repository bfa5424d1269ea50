"""`python -m benchmarks compare BEFORE AFTER`: what a second run of the same rows says of the first."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import Table, duration, facts_line, share
from benchmarks.rows import Row, read


def in_both(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The rows of ours that both runs have, in the order of the second."""
    known = {row.name: row for row in before if "ours" in row.seconds}
    return [(known[row.name], row) for row in after if row.name in known and "ours" in row.seconds]


def slowdown(before: Row, after: Row) -> float:
    """How many times as long ours takes after, beside a plain fill where both rows have one.

    A machine has fast and slow minutes, and two machines of one model differ; what the plain fill took in the
    same turns divides that out.
    """
    own = after.seconds["ours"] / before.seconds["ours"]
    if "fill" in before.seconds and "fill" in after.seconds:
        return own / (after.seconds["fill"] / before.seconds["fill"])
    return own


def compared(pairs: Sequence[tuple[Row, Row]]) -> Table:
    """Times before and after, the change, and shares of the store ceiling where they were measured."""
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
        "change beside a plain fill",
        "of the store ceiling, before",
        "after",
    ]
    if not any(row.share_of_ceiling for pair in pairs for row in pair):
        headers, cells = headers[:4], [row[:4] for row in cells]
    return Table("two runs", headers, cells)


def main(
    before: Annotated[Path, typer.Argument(help="a file of --json, such as a committed one")],
    after: Annotated[Path, typer.Argument(help="another one")],
    tolerance: Annotated[
        float | None, typer.Option(help="fail where the median change is above this share, such as 0.1")
    ] = None,
) -> None:
    """Prints what ours took in two runs, row by row; rows that only one of them has are left out."""
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
