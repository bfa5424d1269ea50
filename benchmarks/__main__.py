"""`python -m benchmarks` times groups of cases; `report` draws results, `compare` compares two runs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import ceilings, compare, machine, report
from benchmarks.cases import GROUPS, Options, in_one_line
from benchmarks.peers import peers
from benchmarks.rows import DTYPES, Case, Fact, Row, line, run

app = typer.Typer(add_completion=False)
app.command("report")(report.main)
app.command("compare")(compare.main)


def chosen(text: str, known: list[str], kind: str) -> list[str]:
    """Return the names in a comma-separated list, in the order of `known`. An empty list means all names."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise typer.BadParameter(f"expected {kind} among {', '.join(known)}, got {', '.join(unknown)}")
    return [name for name in known if name in names or not names]


def print_tables(console: Console, rows: list[Row]) -> None:
    for table in report.tables(rows, full=True):
        drawn = Table(title=table.title)
        for position, header in enumerate(table.headers):
            drawn.add_column(header, justify="left" if position == 0 else "right", overflow="fold")
        for cells in table.rows:
            drawn.add_row(*map(escape, cells))
        console.print(drawn)


@dataclass
class Run:
    """One run of the benchmarks: its settings, its rows so far, and whether a case has failed."""

    options: Options
    rounds: int
    facts: Mapping[str, Fact]
    console: Console
    json_path: Path | None = None
    deadline: float | None = None  # by time.monotonic()
    rows: list[Row] = field(default_factory=list)
    failed: bool = False
    longest: float = 0.0  # seconds of the longest case so far

    def run_cases(self, cases: Sequence[Case]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        # Refresh between the timed calls, because a refresh thread would take a core from them.
        with Progress(*columns, console=self.console, transient=True, auto_refresh=False) as progress:
            task = progress.add_task("", total=len(cases))
            for done, case in enumerate(cases):
                progress.update(task, description=escape(case.name), completed=done, refresh=True)

                def advance(share: float) -> None:
                    progress.advance(task, share)
                    progress.refresh()

                begin = time.monotonic()
                # A case may take as long as the longest one so far. Leave it out rather than interrupt it.
                if self.deadline is not None and begin + self.longest > self.deadline:
                    self.options.say(f"{case.name} is left out: no time is left for it")
                    continue
                self.run_case(case, advance)
                self.longest = max(self.longest, time.monotonic() - begin)

    def run_case(self, case: Case, advance: Callable[[float], None]) -> None:
        """Run one case, and write its row to disk at once, so that a run that ends early keeps its rows."""
        if self.options.device.type == "cuda":
            torch.cuda.empty_cache()  # cached blocks of earlier rows do not fit other sizes
        try:
            row = run(case, self.options.device, self.rounds, self.options.budget, self.facts, advance)
        except torch.OutOfMemoryError:
            self.options.say(f"{case.name} is left out: out of memory")
        except Exception as error:  # a failed row must not hide the others
            self.failed = True
            traceback.print_exc()
            self.options.say(f"{case.name} failed: {in_one_line(error)}")
        else:
            self.rows.append(row)
            if self.json_path is not None:
                with self.json_path.open("a") as results:
                    results.write(line(row))


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    group: Annotated[str, typer.Option(help=f"comma-separated: {','.join(GROUPS)}; default: all")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(help=f"comma-separated: {','.join(DTYPES)}; default: all for fills, fp32 for others"),
    ] = "",
    pattern: Annotated[
        str,
        typer.Option("--filter", help="only rows whose name contains one of these comma-separated texts"),
    ] = "",
    numel: Annotated[
        int | None,
        typer.Option(help="limit tensors to 2 to this power elements; large fills have exactly that many"),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="timed rounds; default: 5, or 3 with --quick")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="small sizes: all groups in under a minute")] = False,
    with_peers: Annotated[
        bool | None,
        typer.Option(
            "--peers/--no-peers", help="time other generators in the group fill; default: unless --quick"
        ),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="write the rows to this file, as JSON lines")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="keep the rows that the --json file has")] = False,
    seconds: Annotated[
        float | None,
        typer.Option(help="leave out rows that may end after this many seconds, and name them"),
    ] = None,
    markdown_path: Annotated[
        Path | None, typer.Option("--markdown", help="write the tables to this file")
    ] = None,
) -> None:
    """Time the fills against stock torch.nn.init and against a plain fill of the same tensor."""
    if context.invoked_subcommand is not None:
        return
    deadline = None if seconds is None else time.monotonic() + seconds
    groups = chosen(group, list(GROUPS), "groups")
    dtypes = tuple(chosen(dtype, list(DTYPES), "dtypes")) if dtype else ()
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected a device among cpu, cuda, got {device}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("expected a GPU for --device cuda, got none that torch can use")
    torch_device = torch.device(device)
    rounds = rounds or (3 if quick else 5)
    console = Console(width=None if Console().is_terminal else 140)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    facts: dict[str, Fact] = dict(machine.facts(torch_device))
    say(", ".join(f"{key} {value}" for key, value in facts.items() if value != ""))
    options = Options(device=torch_device, dtypes=dtypes, exponent=numel, quick=quick, say=say)
    if "fill" in groups and (with_peers or (with_peers is None and not quick)):
        options = replace(options, peers=tuple(peers(torch_device)))
        for peer in options.peers:
            if peer.missing:
                say(f"{peer.name} is left out: {peer.missing}")
    if torch_device.type == "cuda":  # measured first, before the GPU has worked for long
        torch.cuda.set_per_process_memory_fraction(machine.GPU_SHARE)
        limits = ceilings.measure(torch_device, min(options.fill_numel, 1 << 30), rounds, say)
        facts |= limits
        say(", ".join(f"{name} {value:.1f}" for name, value in limits.items()))

    texts = pattern.split(",")
    cases: list[Case] = [
        case for name in groups for case in GROUPS[name](options) if any(text in case.name for text in texts)
    ]
    if not cases:
        raise typer.BadParameter(f"expected --filter to match a row, got {pattern!r}, which matches none")
    for path in (json_path, markdown_path):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path != json_path or not append:
                path.write_text("")
    this_run = Run(options, rounds, facts, console, json_path, deadline)
    this_run.run_cases(cases)
    print_tables(console, this_run.rows)
    say(f"medians of {rounds} interleaved rounds; a slow call is timed once")
    if markdown_path is not None:
        markdown_path.write_text(report.markdown(this_run.rows, full=True))
    if this_run.failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
