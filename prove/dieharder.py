"""Runs of dieharder, a public battery of tests, on streams of raw words and on streams with planted faults.

Each test reads its own stream, at a key derived from the test's options, through a pipe. dieharder's p-values
are asymptotic, and some are coarse. Tests that dieharder calls suspect (OPSO, OQSO, DNA) or not to be used
(sums) are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from prove.check_result import CheckResult, ProofError
from prove.checks import ALARM, FALSE_ALARM
from prove.raw_words import FAULTS, STREAMS


@dataclass(frozen=True)
class Trial:
    """One run of dieharder: the name of a stream, and the number of a test with its options."""

    stream: str
    options: str

    @property
    def name(self) -> str:
        return f"{self.stream}: dieharder -d {self.options}"


# dieharder's test numbers, with the tuple size (-n) for tests that take one. Minimum distances (201) take
# minutes with the default of 1000 repetitions (-p).
TESTS = (
    *map(str, (0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 15, 16, 17, 100, 101, 102)),
    *(f"200 -n {n}" for n in (1, 2, 4, 8, 12)),
    *(f"201 -n {n} -p 100" for n in (2, 3, 4, 5)),
    *(f"202 -n {n}" for n in (2, 3, 4, 5)),
    *(f"203 -n {n}" for n in (0, 1, 3, 7, 15, 31)),
    *map(str, (204, 205, 206, 207, 208, 209)),
)
# For each planted fault, the tests that must all find it.
FAULT_TESTS = {
    "each group twice": ("2", "4", "8"),
    "lane of a counter": ("0", "4"),
    "bit too rare": ("100",),
}
RESULT = re.compile(r"^\s*(\w+)\|\s*(\d+)\|\s*\d+\|\s*\d+\|([0-9.]+)\|", re.MULTILINE)


def run(trial: Trial) -> dict[str, float]:
    """Return the p-values of one trial by name."""
    # prove.raw_words derives the key of the stream from the test's options.
    writer = [sys.executable, "-m", "prove.raw_words", trial.stream, trial.options]
    with subprocess.Popen(writer, stdout=subprocess.PIPE) as words:
        reader = ["dieharder", "-g", "200", "-d", *trial.options.split()]
        answer = subprocess.run(reader, stdin=words.stdout, capture_output=True, text=True, check=False)
        words.kill()
    p_values = {
        f"{trial.name}, {test} {ntuple}, line {line}": float(p)
        for line, (test, ntuple, p) in enumerate(RESULT.findall(answer.stdout), 1)
    }
    if answer.returncode or not p_values:
        raise ProofError(f"{trial.name} gave no p-value: {(answer.stdout + answer.stderr)[-200:]!r}")
    return p_values


def prove(console: Console, update: bool) -> Sequence[CheckResult]:
    """Check that every stream passes every test, and that every planted fault fails its tests."""
    del update
    if shutil.which("dieharder") is None:
        raise ProofError("dieharder is missing; as root, run: apt-get install dieharder")
    trials = [Trial(stream, options) for stream in STREAMS for options in TESTS]
    planted = [Trial(fault, options) for fault in FAULTS for options in FAULT_TESTS[fault]]
    found: dict[Trial, dict[str, float]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for trial, scores in zip([*trials, *planted], pool.map(run, [*trials, *planted]), strict=True):
            found[trial] = scores
            line = f"battery: {trial.name}: {len(scores)} p-values, least {min(scores.values()):.1e}"
            console.print(line, highlight=False, markup=False)
    check_results = []
    for stream in STREAMS:
        scores = {name: p for t in trials if t.stream == stream for name, p in found[t].items()}
        least = min(scores, key=lambda name: scores[name])
        summary = f"{len(scores)} p-values, least {scores[least]:.1e} ({least.partition(': ')[2]})"
        check_results.append(
            CheckResult(f"words of {stream}", summary, f">= {ALARM:.0e}", scores[least] >= ALARM)
        )
    for trial in planted:
        least_p = min(found[trial].values())
        check_results.append(
            CheckResult(f"finds {trial.name}", f"{least_p:.1e}", f"< {ALARM:.0e}", least_p < ALARM)
        )
    total = sum(len(found[trial]) for trial in trials)
    summary = f"{total} p-values, at most {total * ALARM:.1e}"
    unlikely = CheckResult(
        "a false alarm is unlikely", summary, f"<= {FALSE_ALARM}", total * ALARM <= FALSE_ALARM
    )
    return [*check_results, unlikely]
