"""Raw words through dieharder, a public battery of tests: one stream, several, and streams with faults.

Each test reads a stream of its own, at a key that belongs to the test, through a pipe. dieharder's p-values
are limits, and some are coarse; what it calls suspect (OPSO, OQSO, DNA) or not to be used (sums) is left out.
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

from prove.checks import ALARM, FALSE_ALARM
from prove.claims import Claim, ProofError
from prove.words import FAULTS, STREAMS


@dataclass(frozen=True)
class Trial:
    """One run of dieharder: a test by its number and options, on a stream by its name."""

    stream: str
    options: str

    @property
    def name(self) -> str:
        return f"{self.stream}: dieharder -d {self.options}"


# Numbers of tests, with the sizes of tuples for those that take one. Minimum distances (201) take minutes at
# their usual 1000 repetitions.
TESTS = (
    *map(str, (0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 15, 16, 17, 100, 101, 102)),
    *(f"200 -n {n}" for n in (1, 2, 4, 8, 12)),
    *(f"201 -n {n} -p 100" for n in (2, 3, 4, 5)),
    *(f"202 -n {n}" for n in (2, 3, 4, 5)),
    *(f"203 -n {n}" for n in (0, 1, 3, 7, 15, 31)),
    *map(str, (204, 205, 206, 207, 208, 209)),
)
# Which tests find which planted fault: all of those that are named, not just one.
FOUND = {
    "each group twice": ("2", "4", "8"),
    "lane of a counter": ("0", "4"),
    "bit too rare": ("100",),
}
RESULT = re.compile(r"^\s*(\w+)\|\s*(\d+)\|\s*\d+\|\s*\d+\|([0-9.]+)\|", re.MULTILINE)


def run(trial: Trial) -> dict[str, float]:
    """The p-values of one trial by name."""
    # The test's options are the text that the stream's key belongs to.
    writer = [sys.executable, "-m", "prove.words", trial.stream, trial.options]
    with subprocess.Popen(writer, stdout=subprocess.PIPE) as words:
        reader = ["dieharder", "-g", "200", "-d", *trial.options.split()]
        answer = subprocess.run(reader, stdin=words.stdout, capture_output=True, text=True, check=False)
        words.kill()
    found = {
        f"{trial.name}, {test} {ntuple}, line {line}": float(p)
        for line, (test, ntuple, p) in enumerate(RESULT.findall(answer.stdout), 1)
    }
    if answer.returncode or not found:
        raise ProofError(f"{trial.name} gave no p-value: {(answer.stdout + answer.stderr)[-200:]!r}")
    return found


def prove(console: Console, update: bool) -> Sequence[Claim]:
    """Every stream passes every test, every planted fault fails its tests."""
    del update
    if shutil.which("dieharder") is None:
        raise ProofError("dieharder is missing; as root, run: apt-get install dieharder")
    trials = [Trial(stream, options) for stream in STREAMS for options in TESTS]
    planted = [Trial(fault, options) for fault in FAULTS for options in FOUND[fault]]
    found: dict[Trial, dict[str, float]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for trial, scores in zip([*trials, *planted], pool.map(run, [*trials, *planted]), strict=True):
            found[trial] = scores
            line = f"battery: {trial.name}: {len(scores)} p-values, least {min(scores.values()):.1e}"
            console.print(line, highlight=False, markup=False)
    claims = []
    for stream in STREAMS:
        scores = {name: p for t in trials if t.stream == stream for name, p in found[t].items()}
        least = min(scores, key=lambda name: scores[name])
        summary = f"{len(scores)} p-values, least {scores[least]:.1e} ({least.partition(': ')[2]})"
        claims.append(Claim(f"words of {stream}", summary, f">= {ALARM:.0e}", scores[least] >= ALARM))
    for trial in planted:
        least_p = min(found[trial].values())
        claims.append(Claim(f"finds {trial.name}", f"{least_p:.1e}", f"< {ALARM:.0e}", least_p < ALARM))
    total = sum(len(found[trial]) for trial in trials)
    summary = f"{total} p-values, at most {total * ALARM:.1e}"
    unlikely = Claim("a false alarm is unlikely", summary, f"<= {FALSE_ALARM}", total * ALARM <= FALSE_ALARM)
    return [*claims, unlikely]
