"""`python -m benchmarks` times the groups; `report` draws what a run has written, `compare` compares two."""

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


def chosen(text: str, known: list[str], what: str) -> list[str]:
    """The names in a comma-separated list, in the order of those known; "" is all of them."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise typer.BadParameter(f"expected {what} among {', '.join(known)}, got {', '.join(unknown)}")
    return [name for name in known if name in asked or not asked]


def print_tables(console: Console, rows: list[Row]) -> None:
    for made in report.tables(rows, full=True):
        table = Table(title=made.title)
        for position, header in enumerate(made.headers):
            table.add_column(header, justify="left" if position == 0 else "right", overflow="fold")
        for cells in made.rows:
            table.add_row(*map(escape, cells))
        console.print(table)


@dataclass
class Run:
    """What becomes of the cases of one run: the rows, as they are made, and whether any failed."""

    options: Options
    rounds: int
    facts: Mapping[str, Fact]
    console: Console
    json_path: Path | None = None
    deadline: float | None = None  # by time.monotonic()
    rows: list[Row] = field(default_factory=list)
    failed: bool = False
    longest: float = 0.0  # seconds, of the cases so far

    def all_of(self, cases: Sequence[Case]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        # Drawn between the timed calls, not by a thread that would take a core from them.
        with Progress(*columns, console=self.console, transient=True, auto_refresh=False) as progress:
            task = progress.add_task("", total=len(cases))
            for done, case in enumerate(cases):
                progress.update(task, description=escape(case.name), completed=done, refresh=True)

                def advance(share: float) -> None:
                    progress.advance(task, share)
                    progress.refresh()

                begin = time.monotonic()
                # It may take as long as the longest one: a case is left out, not cut off.
                if self.deadline is not None and begin + self.longest > self.deadline:
                    self.options.say(f"{case.name} is left out: no time is left for it")
                    continue
                self.one(case, advance)
                self.longest = max(self.longest, time.monotonic() - begin)

    def one(self, case: Case, advance: Callable[[float], None]) -> None:
        """Its row, at once also on disk, so that a run that ends early leaves what it has."""
        if self.options.device.type == "cuda":
            torch.cuda.empty_cache()  # what other rows left in pools is not free for other sizes
        try:
            row = run(case, self.options.device, self.rounds, self.options.budget, self.facts, advance)
        except torch.OutOfMemoryError:
            self.options.say(f"{case.name} is left out: out of memory")
        except Exception as error:  # one row that fails must not hide the others
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
    group: Annotated[str, typer.Option(help=f"comma-separated: {','.join(GROUPS)}; all if not given")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(help=f"comma-separated: {','.join(DTYPES)}; if not given, fills in all, others in fp32"),
    ] = "",
    pattern: Annotated[
        str,
        typer.Option("--filter", help="only rows whose name holds this text, or one of several by commas"),
    ] = "",
    numel: Annotated[
        int | None,
        typer.Option(help="no tensor has more than 2 to this power elements; large fills have that many"),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="rounds that count; 5 if not given, 3 with --quick")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="small sizes: all groups in under a minute")] = False,
    with_peers: Annotated[
        bool | None,
        typer.Option(
            "--peers/--no-peers", help="other generators in the group fill; on, but off with --quick"
        ),
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="write JSON lines here")] = None,
    append: Annotated[bool, typer.Option("--append", help="to --json: keep what the file has")] = False,
    seconds: Annotated[
        float | None,
        typer.Option(help="begin no row that would end later than this; those left out are named"),
    ] = None,
    markdown_path: Annotated[Path | None, typer.Option("--markdown", help="write the tables here")] = None,
) -> None:
    """Times the fills against stock torch.nn.init and against a plain fill of the same tensor."""
    if context.invoked_subcommand is not None:
        return
    deadline = None if seconds is None else time.monotonic() + seconds
    groups = chosen(group, list(GROUPS), "groups")
    dtypes = tuple(chosen(dtype, list(DTYPES), "dtypes")) if dtype else ()
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected a device among cpu, cuda, got {device}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("expected a GPU for --device cuda, got none that torch can use")
    place = torch.device(device)
    rounds = rounds or (3 if quick else 5)
    console = Console(width=None if Console().is_terminal else 140)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    facts: dict[str, Fact] = dict(machine.facts(place))
    say(", ".join(f"{key} {value}" for key, value in facts.items() if value != ""))
    options = Options(device=place, dtypes=dtypes, exponent=numel, quick=quick, say=say)
    if "fill" in groups and (with_peers or (with_peers is None and not quick)):
        options = replace(options, peers=tuple(peers(place)))
        for peer in options.peers:
            if peer.missing:
                say(f"{peer.name} is left out: {peer.missing}")
    if place.type == "cuda":  # measured first, on a GPU that has not been at work for long
        torch.cuda.set_per_process_memory_fraction(machine.GPU_SHARE)
        found = ceilings.measure(place, min(options.fill_numel, 1 << 30), rounds, say)
        facts |= found
        say(", ".join(f"{name} {value:.1f}" for name, value in found.items()))

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
    made = Run(options, rounds, facts, console, json_path, deadline)
    made.all_of(cases)
    print_tables(console, made.rows)
    say(f"medians of {rounds} rounds in turns; a call that takes long is timed once")
    if markdown_path is not None:
        markdown_path.write_text(report.markdown(made.rows, full=True))
    if made.failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
