"""`make sanitize`: run the CPU fills under three sanitizers and valgrind, the operators under two sanitizers.

The fills run in a driver without torch (driver/driver.cpp). There each tool must first report a planted fault
of its kind. The operators run in a separate build of the extension, by a part of the tests.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.compiler import ROOT, ToolError, output, run
from tools.build import build_package
from tools.driver import build, disagreements

FOLDER = ROOT / "build" / "sanitize"
CXX = "g++"
# An error ends the process, because results after an error prove nothing. Leaks are not checked: torch has
# its own.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1:abort_on_error=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
MEMORY = [
    "-O1",
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]
THREADS = ["-O1", "-g1", "-fsanitize=thread"]
VALGRIND = ["valgrind", "--quiet", "--error-exitcode=9", "--fair-sched=yes"]

# Tests of the memory that operators read and write. Left out are tests that start a process, which would
# import the plain build, and tests of threads or memory, which would see those of the sanitizer.
TESTS = (
    "test_ops.py",
    "test_stream.py",
    "test_shards.py",
    "test_bad_input.py",
    "test_views.py",
    "test_surface.py",
)
LEFT_OUT = (
    "takes_no_memory or own_threads or interpreter_lock or compiled or opcheck or environment or info or "
    "binary_for_another or large or golden or upper_bound or dtensor or DTensor or share_of_the_parameters"
)
# The tensor has one element more than its block of malloc: the sanitizer must report the second fill.
PLANTED = """
import ctypes, torch
from paraminit_ext import Key, init
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(ctypes.c_size_t(400))
tensor = torch.frombuffer((ctypes.c_char * 404).from_address(block), dtype=torch.float32)
init.normal_(tensor[:100], generator=Key(1))
print("filled", flush=True)
init.normal_(tensor, generator=Key(1))
"""


@dataclass(frozen=True)
class Result:
    name: str
    seconds: float
    wrong: str


def fault_found(command: list[str | Path], fault: str, says: str) -> str:
    """Return "" if the tool ends the driver with the message `says`, otherwise what is wrong."""
    done = run([*command, "--fault", fault], OPTIONS)
    found = done.returncode != 0 and says in done.stderr
    return "" if found else f"the planted fault '{fault}' was not reported"


def clean(command: list[str | Path]) -> str:
    """Return "" if the tool reports nothing and all instruction sets agree, otherwise what is wrong."""
    done = run(command, OPTIONS)
    if done.returncode != 0 or done.stderr:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        Path(FOLDER / "report.txt").write_text(done.stderr)
        return f"{lines[min(1, len(lines) - 1)].strip()} (build/sanitize/report.txt)"
    different = disagreements(done.stdout)
    return f"instruction sets disagree on {different[0]}" if different else ""


def first(*found: str) -> str:
    return next((wrong for wrong in found if wrong), "")


def memory_of_the_fills() -> str:
    driver = build(FOLDER / "memory", CXX, MEMORY)
    return first(
        fault_found([driver], "overrun", "heap-buffer-overflow"),
        fault_found([driver], "undefined", "shift exponent 64 is too large"),
        clean([driver]),
    )


def threads_of_the_fills() -> str:
    driver = build(FOLDER / "threads", CXX, THREADS)
    return first(
        fault_found([driver], "race", "data race"),
        clean([driver, "--together"]),
        clean([driver, "--threads", "3"]),
    )


def valgrind() -> str:
    if shutil.which("valgrind") is None:
        return "expected valgrind, got none; run `apt-get install valgrind`"
    driver = build(FOLDER / "valgrind", CXX, ["-O2", "-g1"])
    command: list[str | Path] = [*VALGRIND, driver]
    return first(
        fault_found(command, "overrun", "Invalid write"),
        fault_found(command, "uninitialised", "uninitialised value"),
        # valgrind does not support AVX-512.
        *(clean([*command, "--small", "--isa", isa]) for isa in ("baseline", "avx2")),
    )


def operators() -> str:
    library = build_package(Path(sys.executable), FOLDER / "operators", CXX, MEMORY)
    preloaded = [output([CXX, f"-print-file-name={name}"]).strip() for name in ("libasan.so", "libstdc++.so")]
    environment = {**OPTIONS, "LD_PRELOAD": " ".join(preloaded), "PYTHONPATH": str(library)}
    planted = run([sys.executable, "-c", PLANTED], environment, FOLDER)
    if planted.stdout.strip() != "filled" or "heap-buffer-overflow" not in planted.stderr:
        return "a planted write past the end of a tensor was not reported"
    tests = [ROOT / "tests" / name for name in TESTS]
    pytest: list[str | Path] = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    pytest += ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT]
    done = run([sys.executable, *pytest, "-k", f"not ({LEFT_OUT})", *tests], environment, FOLDER)
    (FOLDER / "operators.txt").write_text(done.stdout + done.stderr)
    lines = done.stdout.strip().splitlines() or ["no output"]
    Console().print(f"operators: {lines[-1]}", highlight=False)
    return "" if done.returncode == 0 else f"{lines[-1]} (build/sanitize/operators.txt)"


PROOFS: Mapping[str, Callable[[], str]] = {
    "memory": memory_of_the_fills,
    "threads": threads_of_the_fills,
    "valgrind": valgrind,
    "operators": operators,
}
DESCRIPTIONS = {
    "memory": "fills under AddressSanitizer and UndefinedBehaviorSanitizer",
    "threads": "fills on std::thread under ThreadSanitizer",
    "valgrind": "fills under valgrind's memcheck, scalar path and AVX2",
    "operators": "operator tests under AddressSanitizer and UndefinedBehaviorSanitizer",
}


def main(
    only: Annotated[str, typer.Option(help="some of memory, threads, valgrind, operators")] = "",
) -> None:
    """Run the fills and the operators under sanitizers, each of which must first report a planted fault."""
    console = Console(width=None if Console().is_terminal else 120)
    results = []
    for name in only.split(",") if only else PROOFS:
        if name not in PROOFS:
            console.print(f"sanitize: expected one of {', '.join(PROOFS)}, got '{name}'", highlight=False)
            raise typer.Exit(1)
        begin = time.monotonic()
        try:
            wrong = PROOFS[name]()
        except ToolError as error:
            wrong = str(error)
        results.append(Result(DESCRIPTIONS[name], time.monotonic() - begin, wrong))
        console.print(f"sanitize: {DESCRIPTIONS[name]}: {wrong or 'clean'}", highlight=False, markup=False)
    table = Table(title="sanitizers")
    table.add_column("proof")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for result in results:
        table.add_row(
            result.name, f"{result.seconds:.0f}", result.wrong or "clean", style="red" if result.wrong else ""
        )
    console.print(table)
    if any(result.wrong for result in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
