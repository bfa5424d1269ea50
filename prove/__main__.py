"""Run the steps of `make prove`, print a table of check results for each, and fail if any check fails."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from prove import dieharder, numbers, statistics
from prove.check_result import CheckResult, ProofError, Step, draw

STEPS: dict[str, Step] = {
    "numbers": numbers.prove,
    "statistics": statistics.prove,
    "battery": dieharder.prove,
}


def main(
    only: Annotated[str, typer.Option(help=f"steps to run, separated by commas: {', '.join(STEPS)}")] = "",
    update: Annotated[
        bool, typer.Option("--update", help="rewrite the published tables and add missing checksums")
    ] = False,
) -> None:
    """Run the checks that take minutes, one step after the other, and print a table of results for each."""
    console = Console(width=None if Console().is_terminal else 120)
    chosen = [name.strip() for name in only.split(",") if name.strip()] or list(STEPS)
    for name in chosen:
        if name not in STEPS:
            console.print(f"prove: expected steps of {', '.join(STEPS)}, got {name!r}", highlight=False)
            raise typer.Exit(2)
    failed: list[str] = []
    for name in chosen:
        start = time.monotonic()
        try:
            check_results = list(STEPS[name](console, update))
        except ProofError as error:
            check_results = [CheckResult("the step can be run", str(error), "", False)]
        check_results = check_results or [CheckResult("the step has checks", "none", "at least one", False)]
        draw(console, f"{name}: {time.monotonic() - start:.0f} s", check_results)
        failed += [f"{name}: {result.name}" for result in check_results if not result.holds]
    for line in failed:
        console.print(f"FAILS {line}", highlight=False, markup=False)
    if failed:
        raise typer.Exit(1)
    console.print(f"prove: all claims of {', '.join(chosen)} hold", highlight=False)


if __name__ == "__main__":
    typer.run(main)
