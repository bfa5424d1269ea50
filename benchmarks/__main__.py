"""`python -m benchmarks`: times the groups, draws a table, writes JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import fill, machine

HEADERS = [
    "fill",
    "ours ns/element",
    "stock",
    "times stock",
    "GB/s",
    "share of fill_",
    "spread ours/stock/fill_",
]


def cells(row: fill.Row, numel: int) -> list[str]:
    """One row of the table."""
    nanoseconds = 1e9 / numel
    spreads = "/".join(f"{spread:.0%}" for spread in (row.ours_spread, row.stock_spread, row.fill_spread))
    cost = [
        f"{row.ours * nanoseconds:.3f}",
        f"{row.stock * nanoseconds:.3f}",
        f"{row.ratio:.1f}",
        f"{row.gb_s:.1f}",
    ]
    if row.ceiling_gb_s:
        return [row.name, *cost, f"{row.share_of_fill:.0%}", f"{row.gb_s / row.ceiling_gb_s:.0%}", spreads]
    return [row.name, *cost, f"{row.share_of_fill:.0%}", spreads]


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="comma-separated: fp32,bf16,fp16,fp64")] = ",".join(fill.DTYPES),
    pattern: Annotated[str, typer.Option("--filter", help="only rows whose name holds this text")] = "",
    numel: Annotated[int, typer.Option(help="tensors have 2 to the power of this many elements")] = 26,
    rounds: Annotated[int, typer.Option(help="rounds that count")] = 5,
    quick: Annotated[bool, typer.Option(help="2^22 elements, three rounds")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="write JSON lines here")] = None,
    markdown_path: Annotated[Path | None, typer.Option("--markdown", help="write the table here")] = None,
) -> None:
    """Times the fills against stock torch.nn.init and against a plain fill of the same tensor."""
    if quick:
        numel, rounds = min(numel, 22), 3
    chosen = dtype.split(",")
    unknown = sorted(set(chosen) - set(fill.DTYPES))
    if unknown:
        raise typer.BadParameter(f"unknown dtype {', '.join(unknown)}; there are {', '.join(fill.DTYPES)}")
    place = torch.device(device)
    facts = machine.facts(place)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(", ".join(f"{key} {value}" for key, value in facts.items() if value != ""), highlight=False)

    ceilings: dict[str, float] = {}
    if place.type == "cuda":  # measured first, on a GPU that has not been at work for long
        ceilings = fill.store_ceiling(place, numel, rounds)
        console.print("stores, GB/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in ceilings.items()))
    ceiling = max(ceilings.values(), default=0.0)

    rows: list[fill.Row] = []
    todo = list(fill.cases(place, chosen, numel, pattern))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawn between the timed calls, not by a thread that would take a core from them.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(todo) * 3 * (rounds + 1))

        def tick(_: str) -> None:
            progress.advance(task)
            progress.refresh()

        for name, distribution, kind in todo:
            progress.update(task, description=escape(name))
            row = fill.run(
                name,
                distribution,
                kind,
                device=place,
                exponent=numel,
                rounds=rounds,
                ceiling_gb_s=ceiling,
                tick=tick,
            )
            rows.append(row)

    headers = HEADERS if not ceiling else [*HEADERS[:-1], "share of store ceiling", HEADERS[-1]]
    table = Table(title=f"median of {rounds} rounds in turns; a call above 2 s is timed once")
    for position, header in enumerate(headers):
        table.add_column(header, justify="left" if position == 0 else "right", overflow="fold")
    lines = ["| " + " | ".join(headers) + " |", "|---|" + "---:|" * (len(headers) - 1)]
    for row in rows:
        table.add_row(*map(escape, cells(row, 1 << numel)))  # a name's brackets are no markup
        lines.append("| " + " | ".join(cells(row, 1 << numel)) + " |")
    console.print(table)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        shared = facts | {f"ceiling_{name}gb_s": rate for name, rate in ceilings.items()}
        records = [shared | row.record() for row in rows]
        json_path.write_text("".join(json.dumps(record) + "\n" for record in records))
    if markdown_path is not None:
        markdown_path.parent.mkdir(parents=True, exist_ok=True)
        markdown_path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
