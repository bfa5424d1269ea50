"""The statistics on long samples: each law at 2^26 values, counts of 2^32, dependence, words, and faults.

The checks are those of tests/test_statistics.py. Each claim is some p-values, the least of which has to be no
alarm; the last claim counts them all. Claims that begin with "finds" are of planted faults of a size that
only so many values show.
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
from prove.checks import ALARM, FALSE_ALARM, Scores
from prove.claims import Claim
from prove.laws import CASES, Counts, Histogram
from prove.words import CHUNK, STREAMS, chunks

SHAPE = (16384, 4096)
LONG = 1 << 32
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Judge:
    """Makes claims of p-values, and counts these."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.counted = 0

    def holds(self, name: str, scores: Scores) -> Claim:
        self.counted += len(scores)
        return self._claim(name, scores, f">= {ALARM:.0e}", lambda p: p >= ALARM)

    def finds(self, name: str, scores: Scores) -> Iterator[Claim]:
        for check, p in scores.items():
            yield self._claim(f"finds {name}", {check: p}, f"< {ALARM:.0e}", lambda p: p < ALARM)

    def _claim(self, name: str, scores: Scores, bound: str, right: Callable[[float], bool]) -> Claim:
        least = min(scores, key=lambda check: scores[check])
        found = f"{len(scores)} p-values, least {scores[least]:.1e} ({least})"
        self.console.print(f"statistics: {name}: {found}", highlight=False, markup=False)
        return Claim(name, found, bound, all(map(right, scores.values())))

    def total(self) -> Claim:
        chance = self.counted * ALARM
        found = f"{self.counted} p-values, at most {chance:.1e}"
        return Claim("a false alarm is unlikely", found, f"<= {FALSE_ALARM}", chance <= FALSE_ALARM)


# ----------------------------------------------------------------------------------------
# 2^26 values
# ----------------------------------------------------------------------------------------


def against_law(shape: tuple[int, int], case: tuple[str, torch.dtype]) -> Scores:
    return checks.marginal(laws.draw(*case, *shape))


def samples(judge: Judge, shape: tuple[int, int] = SHAPE) -> Iterator[Claim]:
    """Each function and dtype. Two at a time: each takes 2.5 GB."""
    size = f"2^{(shape[0] * shape[1]).bit_length() - 1}"
    cases = list(itertools.product(CASES, DTYPES))
    with ThreadPoolExecutor(2) as pool:
        for (name, dtype), scores in zip(cases, pool.map(partial(against_law, shape), cases), strict=True):
            yield judge.holds(f"{name}, {str(dtype)[6:]}, {size} values", scores)


def dependence(judge: Judge, shape: tuple[int, int] = SHAPE, side: int = 4096) -> Iterator[Claim]:
    for name in ("uniform_", "normal_", "trunc_normal_ at 2 std"):
        sample = laws.draw(name, torch.float32, *shape)
        yield judge.holds(f"values of {name} are independent", checks.serial(sample) | checks.tuples(sample))
    matrix = laws.draw("normal_", torch.float32, side, side).y.reshape(side, side)
    yield judge.holds("rows and columns of a matrix are independent", checks.rows_and_columns(matrix))


def raw_words(judge: Judge, count: int = 64) -> Iterator[Claim]:
    for name in STREAMS:
        stream = np.concatenate(list(itertools.islice(chunks(name, counts.KEY.fold_in(name)), count)))
        yield judge.holds(f"words of {name}, {count * CHUNK} words", checks.of_words(stream))


def small_faults(judge: Judge, shape: tuple[int, int] = SHAPE) -> Iterator[Claim]:
    """A right sample against laws that are a little off: the same as a fault of the sample."""
    tensor = laws.draw("normal_", torch.float32, *shape).tensor
    scaled = laws.Sample(tensor, laws.normal(0.1, 0.02 * 1.001))
    yield from judge.finds(
        "a standard deviation 1 in 1000 off", {"moment 2": checks.moments(scaled)["moment 2"]}
    )
    shifted = laws.Sample(tensor, laws.normal(0.1 + 0.02 * 0.003, 0.02))
    for check in (checks.kolmogorov, checks.anderson_darling, checks.equiprobable):
        yield from judge.finds("a mean 3 in 1000 standard deviations off", check(shifted))


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
    """With what lies beyond 5 standard deviations heaped there."""
    heaped = h.counts.copy()
    edge = int(np.searchsorted(h.cells.standard, 5.0))
    heaped[edge] += heaped[edge + 1 :].sum()
    heaped[edge + 1 :] = 0
    return Histogram(h.law, h.cells, heaped, h.error)


def long_counts(judge: Judge, total: int = LONG) -> Iterator[Claim]:
    size = f"2^{total.bit_length() - 1}"
    for name, dtype in LONG_CASES:
        patterns = counts.count(name, dtype, total)
        h = counts.histogram(patterns, CASES[name].law(1, 1), dtype)
        yield judge.holds(f"{name}, {str(dtype)[6:]}, {size} values counted", counts.of_counts(h))
        if (name, dtype) == ("normal_", torch.float32):
            yield from long_faults(judge, patterns, h)


def long_faults(judge: Judge, patterns: Counts, h: Histogram) -> Iterator[Claim]:
    mean, std = h.law.mean, h.law.std
    shifted = counts.histogram(patterns, laws.normal(mean + 3e-4 * std, std), torch.float32)
    for check in (checks.counted_kolmogorov, partial(checks.every_value, least=2.0**-7)):
        yield from judge.finds("a mean 3e-4 standard deviations off", check(shifted))
    scaled = counts.histogram(patterns, laws.normal(mean, std * 1.0002), torch.float32)
    yield from judge.finds(
        "a standard deviation 2e-4 off", {"moment 2": checks.counted_moments(scaled)["moment 2"]}
    )
    heap = {name: p for name, p in checks.counted_tails(clamped(h), (2.0**-26,)).items() if "highest" in name}
    yield from judge.finds("a heap at 5 standard deviations", heap)


# ----------------------------------------------------------------------------------------


def never_too_small(judge: Judge, replicates: int = 200) -> Iterator[Claim]:
    """The p-values of words of another generator are below p no more often than p."""
    seen = [
        checks.of_words(np.random.default_rng(seed).integers(0, 2**32, 1 << 18, dtype=np.uint32))
        for seed in range(replicates)
    ]
    scores = {name: checks.no_smaller_than_chance([one[name] for one in seen]) for name in seen[0]}
    yield judge.holds("p-values of another generator's words are no smaller than chance", scores)


def prove(console: Console, update: bool) -> Sequence[Claim]:
    """All of them; nothing here is published in a file."""
    del update
    judge = Judge(console)
    steps = (samples, dependence, raw_words, small_faults, long_counts, never_too_small)
    claims = [claim for step in steps for claim in step(judge)]
    return [*claims, judge.total()]
