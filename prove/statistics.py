"""Statistical checks of long samples: laws at 2^26 values, counts of 2^32, dependence, words, faults.

The checks are those of tests/test_statistics.py. A check result covers several p-values, none of which may be
an alarm. The last result counts all p-values. Results whose names begin with "finds" are of planted faults
that are so small that only this many values show them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from rich.console import Console

from prove import checks, counts, laws
from prove.check_result import CheckResult
from prove.checks import ALARM, FALSE_ALARM, Scores
from prove.laws import CASES, Counts, Histogram
from prove.raw_words import CHUNK, STREAMS, chunks

SHAPE = (16384, 4096)
LONG = 1 << 32
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Results:
    """Converts p-values to check results, and counts the p-values."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.counted = 0

    def holds(self, name: str, scores: Scores) -> CheckResult:
        self.counted += len(scores)
        return self._result(name, scores, f">= {ALARM:.0e}", lambda p: p >= ALARM)

    def finds(self, name: str, scores: Scores) -> Iterator[CheckResult]:
        for check, p in scores.items():
            yield self._result(f"finds {name}", {check: p}, f"< {ALARM:.0e}", lambda p: p < ALARM)

    def _result(self, name: str, scores: Scores, bound: str, holds: Callable[[float], bool]) -> CheckResult:
        least = min(scores, key=lambda check: scores[check])
        found = f"{len(scores)} p-values, least {scores[least]:.1e} ({least})"
        self.console.print(f"statistics: {name}: {found}", highlight=False, markup=False)
        return CheckResult(name, found, bound, all(map(holds, scores.values())))

    def total(self) -> CheckResult:
        chance = self.counted * ALARM
        found = f"{self.counted} p-values, at most {chance:.1e}"
        return CheckResult("a false alarm is unlikely", found, f"<= {FALSE_ALARM}", chance <= FALSE_ALARM)


# ----------------------------------------------------------------------------------------
# 2^26 values
# ----------------------------------------------------------------------------------------


def against_law(shape: tuple[int, int], case: tuple[str, torch.dtype]) -> Scores:
    return checks.marginal(laws.draw(*case, *shape))


def samples(results: Results, shape: tuple[int, int] = SHAPE) -> Iterator[CheckResult]:
    """Check each function and dtype against its law. Two run at a time, because each takes 2.5 GB."""
    size = f"2^{(shape[0] * shape[1]).bit_length() - 1}"
    cases = list(itertools.product(CASES, DTYPES))
    with ThreadPoolExecutor(2) as pool:
        for (name, dtype), scores in zip(cases, pool.map(partial(against_law, shape), cases), strict=True):
            yield results.holds(f"{name}, {str(dtype)[6:]}, {size} values", scores)


def dependence(results: Results, shape: tuple[int, int] = SHAPE, side: int = 4096) -> Iterator[CheckResult]:
    for name in ("uniform_", "normal_", "trunc_normal_ at 2 std"):
        sample = laws.draw(name, torch.float32, *shape)
        yield results.holds(
            f"values of {name} are independent", checks.serial(sample) | checks.tuples(sample)
        )
    matrix = laws.draw("normal_", torch.float32, side, side).y.reshape(side, side)
    yield results.holds("rows and columns of a matrix are independent", checks.rows_and_columns(matrix))


def raw_words(results: Results, count: int = 64) -> Iterator[CheckResult]:
    for name in STREAMS:
        stream = np.concatenate(list(itertools.islice(chunks(name, counts.KEY.fold_in(name)), count)))
        yield results.holds(f"words of {name}, {count * CHUNK} words", checks.of_words(stream))


def small_faults(results: Results, shape: tuple[int, int] = SHAPE) -> Iterator[CheckResult]:
    """Check a correct sample against slightly wrong laws, which is the same as a fault of the sample."""
    tensor = laws.draw("normal_", torch.float32, *shape).tensor
    scaled = laws.Sample(tensor, laws.normal(0.1, 0.02 * 1.001))
    yield from results.finds(
        "a standard deviation 1 in 1000 off", {"moment 2": checks.moments(scaled)["moment 2"]}
    )
    shifted = laws.Sample(tensor, laws.normal(0.1 + 0.02 * 0.003, 0.02))
    for check in (checks.kolmogorov, checks.anderson_darling, checks.equiprobable):
        yield from results.finds("a mean 3 in 1000 standard deviations off", check(shifted))


# ----------------------------------------------------------------------------------------
# 2^32 values
# ----------------------------------------------------------------------------------------


LONG_CASES = (
    ("uniform_", torch.float32),
    ("normal_", torch.float32),
    ("normal_", torch.bfloat16),
    ("trunc_normal_ at 2 std", torch.float32),
)


def clamped(h: Histogram) -> Histogram:
    """Return a histogram whose values beyond 5 standard deviations are moved to 5."""
    heaped = h.counts.copy()
    edge = int(np.searchsorted(h.cells.standard, 5.0))
    heaped[edge] += heaped[edge + 1 :].sum()
    heaped[edge + 1 :] = 0
    return Histogram(h.law, h.cells, heaped, h.error)


def long_counts(results: Results, total: int = LONG) -> Iterator[CheckResult]:
    size = f"2^{total.bit_length() - 1}"
    for name, dtype in LONG_CASES:
        patterns = counts.count(name, dtype, total)
        h = counts.histogram(patterns, CASES[name].law(1, 1), dtype)
        yield results.holds(f"{name}, {str(dtype)[6:]}, {size} values counted", counts.of_counts(h))
        if (name, dtype) == ("normal_", torch.float32):
            yield from long_faults(results, patterns, h)


def long_faults(results: Results, patterns: Counts, h: Histogram) -> Iterator[CheckResult]:
    mean, std = h.law.mean, h.law.std
    shifted = counts.histogram(patterns, laws.normal(mean + 3e-4 * std, std), torch.float32)
    for check in (checks.counted_kolmogorov, partial(checks.every_value, least=2.0**-7)):
        yield from results.finds("a mean 3e-4 standard deviations off", check(shifted))
    scaled = counts.histogram(patterns, laws.normal(mean, std * 1.0002), torch.float32)
    yield from results.finds(
        "a standard deviation 2e-4 off", {"moment 2": checks.counted_moments(scaled)["moment 2"]}
    )
    heap = {name: p for name, p in checks.counted_tails(clamped(h), (2.0**-26,)).items() if "highest" in name}
    yield from results.finds("a heap at 5 standard deviations", heap)


# ----------------------------------------------------------------------------------------


def never_too_small(results: Results, replicates: int = 200) -> Iterator[CheckResult]:
    """Check that p-values of words of another generator are below p no more often than p."""
    seen = [
        checks.of_words(np.random.default_rng(seed).integers(0, 2**32, 1 << 18, dtype=np.uint32))
        for seed in range(replicates)
    ]
    scores = {name: checks.no_smaller_than_chance([run[name] for run in seen]) for name in seen[0]}
    yield results.holds("p-values of another generator's words are no smaller than chance", scores)


def prove(console: Console, update: bool) -> Sequence[CheckResult]:
    """Run all statistical checks. They publish no file, so that `update` has no effect."""
    del update
    results = Results(console)
    steps = (samples, dependence, raw_words, small_faults, long_counts, never_too_small)
    check_results = [check for step in steps for check in step(results)]
    return [*check_results, results.total()]
