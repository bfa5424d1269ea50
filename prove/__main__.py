"""Runs the steps of the proof, draws a table of each, and fails if any claim does."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from prove import battery, numbers, statistics
from prove.claims import Claim, ProofError, Step, draw

STEPS: dict[str, Step] = {
    "numbers": numbers.prove,
    "statistics": statistics.prove,
    "battery": battery.prove,
}


def main(
    only: Annotated[str, typer.Option(help=f"steps to run, by commas: {', '.join(STEPS)}")] = "",
    update: Annotated[bool, typer.Option("--update", help="rewrite what the steps publish")] = False,
) -> None:
    """Proves what takes minutes to prove: one step after the other, a table of verdicts each."""
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
            claims = list(STEPS[name](console, update))
        except ProofError as error:
            claims = [Claim("the step can be run", str(error), "", False)]
        claims = claims or [Claim("the step claims something", "nothing", "a claim", False)]
        draw(console, f"{name}: {time.monotonic() - start:.0f} s", claims)
        failed += [f"{name}: {one.name}" for one in claims if not one.holds]
    for line in failed:
        console.print(f"FAILS {line}", highlight=False, markup=False)
    if failed:
        raise typer.Exit(1)
    console.print(f"prove: all claims of {', '.join(chosen)} hold", highlight=False)


if __name__ == "__main__":
    typer.run(main)
