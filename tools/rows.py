"""The rows of `make matrix`, `make wheel` and `make wheel-trials`: how one is run, and their table."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.compiler import ToolError
from tools.environments import MissingError


@dataclass(frozen=True)
class Result:
    """The outcome of a row: what it used, what ran with it, and whether that passed."""

    row: str
    used: str
    ran: str
    seconds: float
    verdict: str  # passed, failed, not run


def terminal() -> Console:
    return Console(width=None if Console().is_terminal else 140)


def chosen(tool: str, only: str, names: Sequence[str], console: Console) -> list[str]:
    """Return the names of the rows to run: those in `only`, separated by commas, or all."""
    wanted = only.split(",") if only else list(names)
    for name in wanted:
        if name not in names:
            console.print(f"{tool}: expected some of {', '.join(names)}, got '{name}'", highlight=False)
            raise typer.Exit(1)
    return wanted


def result_of(name: str, work: Callable[[], tuple[str, str]]) -> Result:
    """Do the work of a row, which returns what it used and what ran."""
    begin = time.monotonic()
    try:
        used, ran = work()
        verdict = "passed"
    except MissingError as error:
        used, ran, verdict = "", str(error), "not run"
    except (ToolError, subprocess.SubprocessError) as error:
        used, ran, verdict = "", str(error), "failed"
    return Result(name, used, ran, time.monotonic() - begin, verdict)


def show(tool: str, result: Result, console: Console) -> None:
    console.print(f"{tool}: {result.row}: {result.verdict}: {result.ran}", highlight=False, markup=False)


def markdown(used: str, results: Sequence[Result]) -> str:
    """Return the table in Markdown. `used` is the header of the column of what each row used."""
    lines = [f"| row | {used} | ran | |", "|---|---|---|---|"]
    lines += [f"| {r.row} | {r.used} | {r.ran} | {r.verdict} |" for r in results]
    return "\n".join(lines) + "\n"


def finish(title: str, used: str, results: Sequence[Result], to: Path, console: Console) -> None:
    """Print and write the table. Exit with status 1 if a row failed or no row ran."""
    table = Table(title=title)
    for header in ("row", used, "ran", "seconds", ""):
        table.add_column(header, overflow="fold")
    for r in results:
        style = {"passed": "", "failed": "red", "not run": "yellow"}[r.verdict]
        table.add_row(r.row, r.used, r.ran, f"{r.seconds:.0f}", r.verdict, style=style)
    console.print(table)
    to.write_text(markdown(used, results))
    if any(r.verdict == "failed" for r in results) or all(r.verdict == "not run" for r in results):
        raise typer.Exit(1)
