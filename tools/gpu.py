"""`make gpu`: run everything that needs a GPU within a given time, in stages, the most important first.

Each step is a process with a time limit. If a step fails, hangs or loses the GPU, the others still run. A
step that does not fit in the remaining time is left out and named. Measured rows are written to disk one by
one. This program does not import torch, so that it works even if torch cannot be imported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
EARLIER = ROOT / "benchmarks" / "results" / "gpu.jsonl"
# The status of a step.
PASSED, FAILED, KILLED, LEFT_OUT = "passed", "failed", "killed", "left out"
CLOSING = 5.0  # seconds that are reserved for the table at the end
GRACE = 3.0  # seconds between SIGTERM and SIGKILL
MARGIN = 8.0  # seconds between {seconds}, when a command is told to stop, and its limit
TABLE_LINES = 60
NOTE = 64  # characters of a step's note in the table


@dataclass(frozen=True)
class Step:
    """One process. It is left out if fewer than `need` seconds remain, and killed after `limit` seconds.

    Consecutive steps of a stage with the same `beside` run at once; they must not measure times. In the
    command, {seconds} is replaced by the time after which to stop, {json} and {earlier} by files of rows.
    """

    stage: int
    name: str
    command: tuple[str, ...]
    need: float
    limit: float
    beside: str = ""
    log: str = "gpu-log.txt"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The status of a finished step, and a short note about the reason."""

    stage: int
    name: str
    seconds: float
    status: str
    note: str


# ----------------------------------------------------------------------------------------
# The steps
# ----------------------------------------------------------------------------------------

# The files with GPU tests, except those of all 2^32 words.
GPU_TESTS = tuple(
    f"tests/test_{name}.py" for name in ("benchmarks", "cuda", "many", "statistics_op", "verify")
)
# Each fill runs once, because the profiler replays every launch.
PROFILED = """
import torch
from paraminit_ext import init
tensor, half = torch.empty(1 << 28, device="cuda"), torch.empty(1 << 28, device="cuda", dtype=torch.bfloat16)
init.uniform_(tensor, -1.0, 1.0)
init.normal_(tensor, 0.0, 0.02)
init.trunc_normal_(tensor, 0.0, 0.02, -0.04, 0.04)
init.normal_(half, 0.0, 0.02)
torch.cuda.synchronize()
print("profiled")
"""
NCU_SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "SchedulerStats",
    "WarpStateStats",
    "InstructionStats",
    "LaunchStats",
    "Occupancy",
)


def pytest(*arguments: str, jobs: int = 0) -> tuple[str, ...]:
    """Return a pytest command. In a worker process, a test that loses the GPU or hangs ends only its worker.

    Args:
        arguments: arguments of pytest
        jobs: number of worker processes; 0 runs the tests in pytest's own process
    """
    words = ("-q", "-W", "default", "-p", "no:cacheprovider", "--require-gpu", "--timeout", "60")
    workers = ("--timeout-method", "thread", "-n", str(jobs)) if jobs else ()
    return (sys.executable, "-m", "pytest", *words, *workers, *arguments)


def measured(*arguments: str) -> tuple[str, ...]:
    """Return a command of the benchmarks that appends its rows to those of the run."""
    words = ("--device", "cuda", "--json", "{json}", "--append", "--seconds", "{seconds}")
    return (sys.executable, "-m", "benchmarks", *words, *arguments)


def sanitized(tool: str) -> tuple[str, ...]:
    """Return a command that runs a test of small fills of every kind under a tool of compute-sanitizer."""
    test = ("tests/test_cuda.py", "-k", "sanitizer", "-q", "-W", "default", "-p", "no:cacheprovider")
    program = (sys.executable, "-m", "pytest", *test, "--require-gpu")
    return ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *program)


def profiled() -> tuple[str, ...]:
    """Return a command that profiles four fills. It leaves the clocks as they are: the GPU is not ours."""
    sections = tuple(word for name in NCU_SECTIONS for word in ("--section", name))
    kernels = ("--kernel-name", "regex:dense_kernel", "--launch-count", "4")
    program = (sys.executable, "-c", PROFILED)
    return ("ncu", "--clock-control", "none", "--csv", "--page", "details", *sections, *kernels, *program)


def steps() -> tuple[Step, ...]:
    """Return all steps, the most important first. Seconds are predictions for an H100 and 16 cores."""
    # Disable torch's caching allocator, so that a write past the end of a tensor is past its allocation.
    unpooled = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tests = "gpu-tests.txt"
    largest = ("--group", "fill", "--no-peers")
    two = ("--dtype", "fp32,bf16")
    return (
        Step(1, "build", (sys.executable, "-m", "tools.gpu_build"), 20, 240),
        Step(1, "facts", (sys.executable, "-m", "paraminit_ext", "info"), 5, 60),
        Step(2, "first tests", pytest("-m", "first", "tests/test_cuda.py", jobs=4), 15, 90, log=tests),
        Step(3, "fills fp32, bf16", measured(*largest, *two), 25, 120),
        Step(
            3,
            "matrices 8192x8192",
            measured("--group", "sparse,orthogonal", "--filter", "8192x8192", "--rounds", "3"),
            20,
            90,
        ),
        Step(3, "fill_many, 64x64", measured("--group", "many,small", "--filter", "64x64"), 12, 60),
        Step(
            4,
            "other tests",
            pytest("-m", "gpu and not first and not large", *GPU_TESTS, jobs=5),
            40,
            150,
            "tests",
            tests,
        ),
        Step(
            4,
            "all 2^32 words",
            pytest("-m", "gpu", "tests/test_prove.py", jobs=2),
            30,
            150,
            "tests",
            "gpu-words.txt",
        ),
        *(
            Step(4, tool, sanitized(tool), 30, 150, "tests", "gpu-sanitizer.txt", unpooled)
            for tool in ("memcheck", "racecheck", "initcheck")
        ),
        Step(
            4,
            "past 2^32 elements",
            pytest("-m", "large", "tests/test_cuda.py"),
            15,
            60,
            log=tests,
        ),
        Step(4, "models", measured("--group", "model", *two), 20, 90),
        Step(4, "fills fp64, fp16", measured(*largest, "--dtype", "fp64,fp16"), 20, 90),
        Step(4, "ncu", profiled(), 40, 120, log="gpu-ncu.csv"),
        Step(
            4,
            "peers",
            measured("--group", "fill", *two, "--filter", "fill/uniform,fill/normal", "--rounds", "3"),
            40,
            150,
        ),
        Step(
            4, "sizes bf16", measured("--group", "scaling", "--dtype", "bf16", "--filter", "/normal"), 15, 60
        ),
        Step(4, "compare", (sys.executable, "-m", "benchmarks", "compare", "{earlier}", "{json}"), 5, 30),
    )


# ----------------------------------------------------------------------------------------
# Running the steps
# ----------------------------------------------------------------------------------------


class Running:
    """The process of a step, in its own process group. Its output goes to a log."""

    def __init__(self, step: Step, limit: float, words: dict[str, str], log: IO[str]) -> None:
        self.step, self.log = step, log
        self.begin = time.monotonic()
        self.limit = limit
        self.killed = False
        log.write(f"\n== stage {step.stage}, {step.name}\n")
        log.flush()
        self.place = log.tell()
        command = (
            step.command if step.command[-2:-1] == ("-c",) else tuple(w.format(**words) for w in step.command)
        )
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **step.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def over(self) -> bool:
        """Return whether the process has ended. Kill it first if its limit has passed."""
        if self.process.poll() is not None:
            return True
        if time.monotonic() < self.begin + self.limit:
            return False
        self.end()
        return True

    def end(self) -> None:
        """Kill the process and all processes that it has started."""
        self.killed = True
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, kind)
                self.process.wait(GRACE)

    def printed(self) -> str:
        """Return everything that the process has printed."""
        with open(self.log.name, errors="replace") as log:
            log.seek(self.place)
            return log.read()

    def outcome(self) -> Outcome:
        status = KILLED if self.killed else PASSED if self.process.returncode == 0 else FAILED
        note = last_words(self.printed())
        if self.killed:
            note = f"over its limit of {self.limit:.0f} s; last: {note}"
        return Outcome(self.step.stage, self.step.name, time.monotonic() - self.begin, status, note)


def last_words(printed: str) -> str:
    """Return the last line with words, without the frames that some tools draw around text."""
    lines = (re.sub(r"[\s=│╭╮╰╯─]+", " ", line).strip() for line in printed.splitlines())
    return next((line for line in reversed(list(lines)) if re.search(r"\w", line)), "it said nothing")


def rows_note(before: int, json_path: Path, printed: str) -> str:
    """Return how many rows a step has measured, and the names of those that are missing."""
    rows = len(read_rows(json_path)) - before
    missing = [
        match[1] for match in re.finditer(r"^(\S+\[\S*\]) (?:is left out|failed): ", printed, re.MULTILINE)
    ]
    return f"{rows} rows" + (f", without {', '.join(missing)}" if missing else "")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, without a line that a killed process left unfinished."""
    rows = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(text))
        except ValueError:
            continue
    return rows


def waves(steps: Iterable[Step]) -> list[list[Step]]:
    """Return groups of steps. The steps of a group run at once, the groups one after the other."""
    groups: list[list[Step]] = []
    for step in steps:
        before = groups[-1][-1] if groups else None
        if before and step.beside and (step.stage, step.beside) == (before.stage, before.beside):
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


@dataclass
class Run:
    """One run: its folder, its deadline, and the outcomes of its steps."""

    out: Path
    deadline: float
    say: Callable[[str], object]
    earlier: Path = EARLIER
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def json_path(self) -> Path:
        return self.out / "gpu.jsonl"

    def note(self, outcome: Outcome) -> None:
        """Keep an outcome, and write it to disk at once."""
        self.outcomes.append(outcome)
        with (self.out / "gpu-steps.jsonl").open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        self.say(f"{outcome.stage} {outcome.name}: {outcome.status}, {outcome.seconds:.0f} s, {outcome.note}")

    def run(self, chosen: Sequence[Step]) -> None:
        for wave in waves(chosen):
            remaining = self.deadline - CLOSING - time.monotonic()
            why = self.unbuilt()
            running: list[Running] = []
            before = len(read_rows(self.json_path))
            for step in wave:
                if step.name == "compare" and not self.earlier.exists():
                    continue
                if why or step.need > remaining:
                    reason = why or f"needs {step.need:.0f} s, {max(0, remaining):.0f} s are left"
                    self.note(Outcome(step.stage, step.name, 0.0, LEFT_OUT, reason))
                    continue
                running += self.begin(step, min(step.limit, remaining))
            try:
                while running:
                    time.sleep(0.02)
                    for process in [process for process in running if process.over()]:
                        running.remove(process)
                        self.note(self.finished(process, before))
            finally:  # an interrupted run must leave no process behind
                for process in running:
                    process.end()
                    self.note(self.finished(process, before))

    def unbuilt(self) -> str:
        """Return why no other step can run, or ""."""
        built = [outcome.status for outcome in self.outcomes if outcome.name == "build"]
        return "" if built in ([], [PASSED]) else "there is no build"

    def begin(self, step: Step, limit: float) -> list[Running]:
        """Start the process of a step. Return it in a list, which is empty if it cannot be started."""
        words = {
            "seconds": f"{max(1.0, limit - MARGIN):.0f}",
            "json": str(self.json_path),
            "earlier": str(self.earlier),
        }
        path = self.out / step.log
        if step.beside:  # a separate log until the step has finished
            path = self.out / "parts" / f"{step.name}.txt"
            path.parent.mkdir(exist_ok=True)
        log = path.open("a")
        try:
            return [Running(step, limit, words, log)]
        except OSError as error:
            log.close()
            if step.beside:
                path.unlink()
            self.note(Outcome(step.stage, step.name, 0.0, FAILED, f"{step.command[0]}: {error.strerror}"))
            return []

    def finished(self, running: Running, before: int) -> Outcome:
        outcome, printed = running.outcome(), running.printed()
        running.log.close()
        if running.step.beside:
            with (self.out / running.step.log).open("a") as log:
                log.write(f"\n== stage {outcome.stage}, {outcome.name}\n{printed}")
            Path(running.log.name).unlink()
            with suppress(OSError):  # other steps may still have logs there
                (self.out / "parts").rmdir()
        if "--append" not in running.step.command:
            return outcome
        rows = rows_note(before, self.json_path, printed)
        return replace(outcome, note=rows if outcome.status == PASSED else f"{rows}; {outcome.note}")


# ----------------------------------------------------------------------------------------
# The table at the end
# ----------------------------------------------------------------------------------------


def rate(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row: name, time, GB/s, times stock, share of the ceiling, other contenders."""
    seconds = record["seconds"]
    if "ours" not in seconds:
        return (record["name"], "", "", "", "", "")
    others = [
        f"{name} {value / seconds['ours']:.2f}"
        for name, value in seconds.items()
        if name not in ("ours", "stock", "fill")
    ]

    def shown(name: str, form: str) -> str:
        return "" if record.get(name) is None else form.format(record[name])

    name = re.sub(r"device=cuda,?|dtype=|numel=|shape=", "", record["name"])
    return (
        name,
        f"{seconds['ours'] * 1e3:.4g}",
        shown("gb_s", "{:.0f}"),
        shown("ratio_to_stock", "{:.2f}"),
        shown("share_of_ceiling", "{:.1%}"),
        ", ".join(others),
    )


def aligned(headers: Sequence[str], cells: Iterable[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Return the lines of a table, one for each row."""
    table = Table(box=None, pad_edge=False, show_header=True)
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place in right else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console = Console(width=140, force_terminal=False, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def closing(outcomes: Sequence[Outcome], records: Sequence[dict[str, Any]], seconds: float) -> str:
    """Return the table: at most TABLE_LINES lines, steps and then rows. Rows that do not fit are counted."""

    def cut(text: str, most: int = NOTE) -> str:
        return text if len(text) <= most else text[: most - 3] + "..."

    lines = aligned(
        ("stage", "step", "s", "status", "what it says"),
        ((str(o.stage), o.name, f"{o.seconds:.0f}", o.status, cut(o.note)) for o in outcomes),
        (2,),
    )
    wrong = [o.name for o in outcomes if o.status != PASSED]
    ceilings: dict[str, Any] = next(
        (r for r in reversed(records) if any(k.startswith("ceiling_") for k in r)), {}
    )
    facts = [
        f"{name.removeprefix('ceiling_').removesuffix('_gb_s')} {value:.0f}"
        for name, value in ceilings.items()
        if name.startswith(("ceiling_", "rate_"))
    ]
    if facts:
        lines.append("ceilings, GB/s: " + ", ".join(facts))
    last = {record["name"]: record for record in records}  # the last row of a name counts
    rows = list(map(rate, last.values()))
    passed = f"not passed: {', '.join(wrong)}" if wrong else "all passed"
    summary = cut(f"{seconds:.0f} s, {len(last)} rows; {passed}", 2 * NOTE)
    room = TABLE_LINES - len(lines) - 3  # the header of the rows, the count of other rows, the summary
    if rows:
        headers = ("row", "ms", "GB/s", "x stock", "of ceiling", "others' time by ours")
        lines += aligned(headers, rows[:room], (1, 2, 3, 4))
    if len(rows) > room:
        lines.append(f"and {len(rows) - room} rows more in gpu.jsonl")
    return "\n".join([*lines, summary])


def chosen_steps(only: str, steps: Sequence[Step]) -> list[Step]:
    """Return the steps of the named stages, such as "3" or "2,4", or all steps if no stage is named."""
    stages = {step.stage for step in steps}
    try:
        named = {int(word) for word in only.split(",") if word.strip()}
    except ValueError:
        named = {0}
    if named - stages:
        raise typer.BadParameter(f"expected stages among {', '.join(map(str, sorted(stages)))}, got {only}")
    return [step for step in steps if not named or step.stage in named]


def main(
    out: Annotated[Path, typer.Option(help="the folder for results")] = ROOT / "benchmarks" / "results",
    seconds: Annotated[float, typer.Option(help="the time limit of the whole run")] = 480.0,
    only: Annotated[
        str, typer.Option(help="stages, separated by commas, with an existing build; default: all")
    ] = "",
) -> None:
    """Build, test and measure on a machine with a GPU and its own torch, without a network."""
    begin = time.monotonic()
    chosen = chosen_steps(only, steps())
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    earlier = ROOT / "build" / "gpu-before.jsonl"
    if EARLIER.exists():  # keep the committed rows of an earlier run for the comparison
        earlier.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(EARLIER, earlier)
    if not only:
        for path in out.glob("gpu*"):
            path.unlink()
        shutil.rmtree(out / "parts", ignore_errors=True)
    run = Run(out, begin + seconds, lambda text: typer.echo(text), earlier)
    try:
        run.run(chosen)
    finally:  # also if the run is interrupted
        table = closing(run.outcomes, read_rows(run.json_path), time.monotonic() - begin)
        (out / "gpu-table.txt").write_text(table + "\n")
        typer.echo(table)
    if any(outcome.status != PASSED for outcome in run.outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
