"""`make instructions`: count the instructions of each fill and compare them with the committed figures.

The driver is compiled from csrc/ alone, with the flags of setup.py and without torch, and runs once under
callgrind. AVX-512 is left out, because valgrind does not support it. A count is not a time: a change that
saves time may add instructions. Such a change updates the figures and gives its reason.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.compiler import ToolError, compiler, cxx_flags, output

ROOT = Path(__file__).resolve().parents[2]
FIGURES = Path(__file__).with_name("figures.json")
SOURCES = (
    "benchmarks/instructions/driver.cpp",
    "csrc/stream/constants.cpp",
    "csrc/cpu/fill_baseline.cpp",
    "csrc/cpu/fill_avx2.cpp",
)
SLACK = 0.05
# Another compiler or major version counts differently, so the figures do not apply exactly. Then only a much
# greater count fails, and no figure must be updated.
OTHER_COMPILER_SLACK = 0.25


@dataclass(frozen=True)
class Figures:
    """Instructions per element by case, and the tools that counted them."""

    compiler: str
    flags: str
    libc: str
    valgrind: str
    instructions: dict[str, float]


@dataclass(frozen=True)
class Finding:
    """One case: its committed figure, its count, and what is wrong, or ""."""

    name: str
    known: float | None
    counted: float | None
    wrong: str


def compiler_version(cxx: Sequence[str]) -> str:
    """Return the name and version of a compiler, such as "gcc 12.2.0"."""
    first = output([*cxx, "--version"]).partition("\n")[0]
    versions = re.findall(r"\b\d+\.\d+\.\d+", first)
    if not versions:
        raise ToolError(f"expected a version from {cxx[0]} --version, got {first!r}")
    return f"clang {versions[0]}" if "clang" in first else f"gcc {versions[-1]}"


def build(root: Path, folder: Path, cxx: Sequence[str], flags: Sequence[str]) -> Path:
    """Compile the driver into the folder; return its path."""

    def compiled(source: str) -> Path:
        out = folder / f"{Path(source).stem}.o"
        output([*cxx, *flags, "-c", root / source, "-o", out])
        return out

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, SOURCES))
    output([*cxx, *objects, "-o", folder / "driver"])
    return folder / "driver"


def count(driver: Path, folder: Path) -> dict[str, float]:
    """Return instructions per element by case: the difference of two counts over that of their elements."""
    options = ["--collect-atstart=no", "--toggle-collect=measured", "--dump-after=measured"]
    out = folder / "callgrind.out"
    printed = output(["valgrind", "--tool=callgrind", *options, f"--callgrind-out-file={out}", driver])
    points: dict[str, list[tuple[int, int]]] = {}
    # One dump for each call of `measured`, numbered from 1, in the order of the driver's lines.
    for number, line in enumerate(printed.splitlines(), 1):
        isa, case, dtype, size = line.split()
        dump = (folder / f"callgrind.out.{number}").read_text()
        total = re.search(r"^totals: (\d+)$", dump, re.MULTILINE)
        if total is None:
            raise ToolError(f"expected a total in callgrind's dump {number}, got none")
        name = f"instructions/{case}[isa={isa},dtype={dtype}]"
        points.setdefault(name, []).append((int(size), int(total.group(1))))
    return {
        name: round((big - small) / (more - less), 2) for name, ((less, small), (more, big)) in points.items()
    }


def measure(root: Path = ROOT) -> Figures:
    """Build the fills of the sources under `root`, and count their instructions."""
    if shutil.which("valgrind") is None:
        raise ToolError("expected valgrind, got none; run `apt-get install valgrind`")
    cxx, flags = compiler(), cxx_flags(root)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counted = count(build(root, folder, cxx, flags), folder)
    return Figures(
        compiler=compiler_version(cxx),
        flags=" ".join(flags),
        libc=" ".join(platform.libc_ver()),
        valgrind=output(["valgrind", "--version"]).strip(),
        instructions=counted,
    )


def same_compiler(a: str, b: str) -> bool:
    """Return whether compiler and major version are the same: gcc 12.2.0 and 12.3.0, but not 13.1.0."""
    return a.partition(".")[0] == b.partition(".")[0]


def compare(known: Figures, counted: Figures) -> list[Finding]:
    """Return a finding for each case that is known or counted."""
    ours = same_compiler(known.compiler, counted.compiler)
    slack = SLACK if ours else OTHER_COMPILER_SLACK
    findings = []
    for name in dict.fromkeys([*known.instructions, *counted.instructions]):
        before, now = known.instructions.get(name), counted.instructions.get(name)
        if before is None or now is None:
            wrong = "no figure: --update" if before is None else "not counted any more: --update"
        elif now > before * (1 + slack):
            wrong = f"slower by more than {slack:.0%}"
        elif ours and now < before * (1 - slack):
            wrong = f"faster by more than {slack:.0%}: --update the figure"
        else:
            wrong = ""
        findings.append(Finding(name, before, now, wrong))
    return findings


def read(path: Path) -> Figures:
    return Figures(**json.loads(path.read_text()))


def write(path: Path, figures: Figures) -> None:
    path.write_text(json.dumps(asdict(figures), indent=1) + "\n")


def draw(console: Console, findings: Sequence[Finding]) -> None:
    table = Table(title="instructions per element")
    table.add_column("case")
    for header in ("figure", "counted", "change"):
        table.add_column(header, justify="right")
    table.add_column("")
    for finding in findings:
        known, counted = finding.known, finding.counted
        change = "" if known is None or counted is None else f"{counted / known - 1:+.1%}"
        shown = ["" if value is None else f"{value:.2f}" for value in (known, counted)]
        style = "red" if finding.wrong else ""
        table.add_row(escape(finding.name), *shown, change, finding.wrong, style=style)
    console.print(table)


def supported(machine: str = platform.machine()) -> bool:
    return machine in ("x86_64", "AMD64")


def main(
    update: Annotated[bool, typer.Option("--update", help="write the figures instead of comparing")] = False,
    figures: Annotated[Path, typer.Option(help="the file of figures")] = FIGURES,
    sources: Annotated[Path, typer.Option(help="the root of the counted sources")] = ROOT,
) -> None:
    """Count the instructions of each fill and compare them with the committed figures."""
    console = Console(width=None if Console().is_terminal else 120)
    if not supported():
        console.print(f"instructions: not compared: the figures are for x86-64, this is {platform.machine()}")
        return
    try:
        counted = measure(sources)
    except ToolError as error:
        console.print(f"instructions: {error}", highlight=False, markup=False)
        raise typer.Exit(1) from None
    if update:
        write(figures, counted)
        console.print(
            f"{len(counted.instructions)} figures written, with {counted.compiler}", highlight=False
        )
        return
    known = read(figures)
    if not same_compiler(known.compiler, counted.compiler):
        console.print(
            f"instructions: the figures are for {known.compiler}, this is {counted.compiler}:"
            f" only cases that are slower by more than {OTHER_COMPILER_SLACK:.0%} fail",
            highlight=False,
        )
    findings = compare(known, counted)
    draw(console, findings)
    wrong = [finding for finding in findings if finding.wrong]
    for finding in wrong:
        console.print(f"{finding.name}: {finding.wrong}", highlight=False, markup=False)
    if wrong:
        raise typer.Exit(1)
    console.print(f"instructions: {len(findings)} cases within the slack", highlight=False)


if __name__ == "__main__":
    typer.run(main)
