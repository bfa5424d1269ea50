"""`CheckResult`, the result of one check, and `Step`, a function of `make prove` that returns results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class CheckResult:
    """The name of a check, the value that it found, the bound of that value, and whether the bound holds."""

    name: str
    found: str
    bound: str
    holds: bool


# The arguments are the console, for the progress of long steps, and whether to rewrite published files.
Step = Callable[[Console, bool], Sequence[CheckResult]]


class ProofError(Exception):
    """A step cannot run. The message is one line that says why."""


def draw(console: Console, title: str, check_results: Sequence[CheckResult]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("claim")
    table.add_column("found", justify="right")
    table.add_column("bound", justify="right")
    table.add_column("verdict")
    for result in check_results:
        row = [escape(text) for text in (result.name, result.found, result.bound)]
        status = "holds" if result.holds else "FAILS"
        table.add_row(*row, status, style="" if result.holds else "red")
    console.print(table)
