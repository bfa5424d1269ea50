"""`make instructions`: counts the instructions of each fill and compares them with the committed figures.

The driver is compiled from csrc/ alone, with the flags of setup.py and without torch, and run once under
callgrind. AVX-512 is left out, since valgrind does not know it. A count is no time: a change that is meant to
gain time may cost instructions, and updates the figures with its reason.
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
# Another major version of the compiler counts differently, and the figures are not its own: only what is much
# slower is a finding then, and nothing is to be updated.
OTHER_COMPILER_SLACK = 0.25


@dataclass(frozen=True)
class Figures:
    """Instructions an element by case, and what they were counted with."""

    compiler: str
    flags: str
    libc: str
    valgrind: str
    instructions: dict[str, float]


@dataclass(frozen=True)
class Finding:
    """One case: what it took, what it takes, and what is wrong with that, or ""."""

    name: str
    known: float | None
    counted: float | None
    wrong: str


def compiler_version(cxx: Sequence[str]) -> str:
    """As in "gcc 12.2.0"."""
    first = output([*cxx, "--version"]).partition("\n")[0]
    versions = re.findall(r"\b\d+\.\d+\.\d+", first)
    if not versions:
        raise ToolError(f"expected a version from {cxx[0]} --version, got {first!r}")
    return f"clang {versions[0]}" if "clang" in first else f"gcc {versions[-1]}"


def build(root: Path, folder: Path, cxx: Sequence[str], flags: Sequence[str]) -> Path:
    """Compiles the driver into the folder."""

    def compiled(source: str) -> Path:
        out = folder / f"{Path(source).stem}.o"
        output([*cxx, *flags, "-c", root / source, "-o", out])
        return out

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, SOURCES))
    output([*cxx, *objects, "-o", folder / "driver"])
    return folder / "driver"


def count(driver: Path, folder: Path) -> dict[str, float]:
    """Instructions an element by case: the difference of two sizes, over the difference of their elements."""
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
    """Builds and counts the fills of the sources under `root`."""
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
    """The same compiler and major version: gcc 12.2.0 and gcc 12.3.0, not gcc 13.1.0."""
    return a.partition(".")[0] == b.partition(".")[0]


def compare(known: Figures, counted: Figures) -> list[Finding]:
    """A finding for each case, of those known and those counted."""
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
    table = Table(title="instructions an element")
    table.add_column("case")
    for header in ("figure", "counted", "change"):
        table.add_column(header, justify="right")
    table.add_column("")
    for one in findings:
        both = one.known is not None and one.counted is not None
        change = f"{one.counted / one.known - 1:+.1%}" if both else ""  # type: ignore[operator]
        shown = ["" if value is None else f"{value:.2f}" for value in (one.known, one.counted)]
        table.add_row(escape(one.name), *shown, change, one.wrong, style="red" if one.wrong else "")
    console.print(table)


def supported(machine: str = platform.machine()) -> bool:
    return machine in ("x86_64", "AMD64")


def main(
    update: Annotated[bool, typer.Option("--update", help="write the figures instead of comparing")] = False,
    figures: Annotated[Path, typer.Option(help="the file of figures")] = FIGURES,
    sources: Annotated[Path, typer.Option(help="the root of the sources that are counted")] = ROOT,
) -> None:
    """Counts the instructions of each fill and compares them with the committed figures."""
    console = Console(width=None if Console().is_terminal else 120)
    if not supported():
        console.print(f"instructions: not compared: the figures are of x86-64, this is {platform.machine()}")
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
            f"instructions: the figures are {known.compiler}'s, this is {counted.compiler}:"
            f" only what is slower by more than {OTHER_COMPILER_SLACK:.0%} fails",
            highlight=False,
        )
    findings = compare(known, counted)
    draw(console, findings)
    wrong = [one for one in findings if one.wrong]
    for one in wrong:
        console.print(f"{one.name}: {one.wrong}", highlight=False, markup=False)
    if wrong:
        raise typer.Exit(1)
    console.print(f"instructions: {len(findings)} cases within the slack", highlight=False)


if __name__ == "__main__":
    typer.run(main)
