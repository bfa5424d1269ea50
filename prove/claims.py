"""A claim with its verdict, and what a step of `make prove` is: a function that returns claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Claim:
    """What is claimed, what was found, what had to hold, and whether it did."""

    name: str
    found: str
    bound: str
    holds: bool


# A step prints what it is at, if it takes long, and rewrites what it publishes where it is told to update.
Step = Callable[[Console, bool], Sequence[Claim]]


class ProofError(Exception):
    """What keeps a step from being run, in one line."""


def draw(console: Console, title: str, claims: Sequence[Claim]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("claim")
    table.add_column("found", justify="right")
    table.add_column("bound", justify="right")
    table.add_column("verdict")
    for one in claims:
        verdict = "holds" if one.holds else "FAILS"
        row = [escape(text) for text in (one.name, one.found, one.bound)]
        table.add_row(*row, verdict, style="" if one.holds else "red")
    console.print(table)
