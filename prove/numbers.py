"""Checks of all 2^32 words through every float32 transform, on every instruction set of this machine.

The package's binary computes the values, accuracy.cpp compares them with exact ones, and mpmath checks
accuracy.cpp at the greatest error. `prove` compares the results with the committed checksums of the stream
(checksums.json) and with the tables of docs/numbers.md. `--update` rewrites the tables and adds missing
checksums. It replaces all checksums if STREAM_VERSION was raised.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mpmath
from rich.console import Console

from prove import markdown_tables
from prove.accuracy import ROOT, Comparator, Floats, Found, run
from prove.check_result import CheckResult
from prove.sweeps import (
    ALL,
    COSINE,
    RADIUS,
    SINE,
    STRIDE_SHIFT,
    SWEEPS,
    TRUNCATED,
    UNIFORM,
    Stream,
    hexed,
    read_checksums,
    renew_checksums,
)
from prove.word_moments import DIGITS, NormalLaw, deviation, ideal_moment

PAGE = ROOT / "docs" / "numbers.md"
THRESHOLDS = (1, 2, 3, 4, 5, 6)

# --- the worst cases in mpmath ----------------------------------------------------------------


def exact_value(stream: Stream, place: int, near: float) -> Any:
    """Return the exact value at a place, to 50 digits. `near` is an approximation of it."""
    mp = mpmath.mp
    p = (mp.mpf(place) + mp.mpf(1) / 2) / ALL
    if stream.kind == RADIUS:
        return mp.sqrt(-2 * mp.log(p))
    if stream.kind == COSINE:
        return mp.cos(2 * mp.pi * p)
    if stream.kind == SINE:
        return mp.sin(2 * mp.pi * p)
    if stream.kind == UNIFORM:
        return mp.mpf(stream.a) + mp.mpf(place % (1 << 24)) / (1 << 24) * mp.mpf(stream.b)

    def tail(x: Any) -> Any:
        return mp.erfc(x / mp.sqrt(2)) / 2

    a, b = mp.mpf(stream.a), mp.mpf(stream.b)
    # Newton's method on the smaller tail.
    z = mp.mpf(near)
    if near > 0:
        goal = (1 - p) * tail(a) + p * tail(b)
        for _ in range(6):
            z += (tail(z) - goal) / mp.npdf(z)
    else:
        goal = (1 - p) * tail(-a) + p * tail(-b)
        for _ in range(6):
            z -= (tail(-z) - goal) / mp.npdf(z)
    return z


def error_in_mpmath(found: Found) -> float:
    """Return the error of the worst case, computed by mpmath, in the unit of the limit."""
    place, value = found.worst
    with mpmath.mp.workdps(DIGITS):
        exact = exact_value(found.stream, place, value)
        error = abs(mpmath.mpf(value) - exact)
        if error and found.stream.limit.unit:
            error /= mpmath.mpf(2) ** (mpmath.floor(mpmath.log(abs(exact), 2)) - 23)
        return float(error)


# --- check results and tables ------------------------------------------------------------------------

HOW_TO_CHANGE = (
    "the stream has changed. If this is intended, raise STREAM_VERSION (csrc/stream/request.h, "
    "paraminit_ext/__init__.py), give the reason under Stream in CHANGELOG.md and run "
    "`make prove ARGS=--update`"
)


def check_results_of(found: Found, committed: str | None) -> Iterator[CheckResult]:
    """Check one stream: equal bits on all instruction sets, the committed bits, errors within the limit."""
    name, limit = found.stream.name, found.stream.limit
    sets, sums = ", ".join(found.checksums), {hexed(c) for c in found.checksums.values()}
    yield CheckResult(
        f"{name}: the same bits on {sets}", " ".join(sorted(sums)), "one checksum", len(sums) == 1
    )
    same = sums == {committed}
    yield CheckResult(
        f"{name}: the committed bits",
        "the same" if same else "others",
        "the same" if same else HOW_TO_CHANGE,
        same,
    )
    error, precise_error = found.error, error_in_mpmath(found)
    yield CheckResult(f"{name}: greatest error", shown(error, limit.unit), str(limit), error <= limit.size)
    # The comparator's doubles have rounding errors of about 2^-50 of a value of up to 40.
    slack = 1e-6 * precise_error + (1e-6 if limit.unit else 2.0**-45)
    difference = abs(error - precise_error)
    yield CheckResult(
        f"{name}: the worst case in mpmath, {DIGITS} digits",
        shown(precise_error, limit.unit), shown(error, limit.unit), difference <= slack,
    )  # fmt: skip


def shown(error: float, unit: str) -> str:
    if unit:
        return f"{error:.3g} {unit}"
    return f"2^{math.log2(error):.2f}" if error else "0"


def errors_table(results: Sequence[Found]) -> str:
    rows = [
        [
            result.stream.name,
            shown(result.error, result.stream.limit.unit),
            str(result.stream.limit),
            f"{min(t.least for t in result.tallies):.9g}",
            f"{max(t.greatest for t in result.tallies):.9g}",
        ]
        for result in results
    ]
    return markdown_tables.table(
        ["transform", "greatest error", "bound", "least value", "greatest value"], rows
    )


def moments_cells(got: Callable[[int], float], ideal: Callable[[int], Any]) -> list[str]:
    cells = []
    for k in range(1, 9):
        with mpmath.mp.workdps(DIGITS):
            off = deviation(got(k), ideal(k))
        cells.append(f"{off:+.1e}" if abs(off) >= 1e-12 else "0")
    return cells


def normal_ideal(k: int) -> Any:
    return mpmath.mpf(0) if k % 2 else mpmath.fac2(k - 1)


def law_table(by_kind: dict[int, Found], results: Sequence[Found], normal: NormalLaw) -> str:
    rows = []
    for name, kind in (("normal, even element", COSINE), ("normal, odd element", SINE)):
        radius, angle = by_kind[RADIUS], by_kind[kind]
        cells = moments_cells(lambda k, r=radius, c=angle: r.moment(k) * c.moment(k), normal_ideal)  # type: ignore[misc]
        rows.append([name, f"{normal.distance(kind):.1e}", *cells])
    for result in results:
        stream = result.stream
        if stream.kind in (UNIFORM, TRUNCATED) and stream.law_size:
            cells = moments_cells(result.moment, functools.partial(ideal_moment, stream))
            rows.append([stream.name, f"{result.distance:.1e}", *cells])
    return markdown_tables.table(["law", "distance", *(f"moment {k}" for k in range(1, 9))], rows)


def tails_table(normal: NormalLaw) -> str:
    rows = []
    for t in THRESHOLDS:
        ideal = math.erfc(t / math.sqrt(2))
        cells = [f"{t}", f"{ideal:.6e}"]
        for kind in (COSINE, SINE):
            share = normal.share(kind, t)
            cells += [f"{share:.6e}", f"{share / ideal - 1:+.1e}"]
        rows.append(cells)
    header = ["beyond, std", "ideal", "even element", "off by", "odd element", "off by"]
    return markdown_tables.table(header, rows)


def sweep_all(console: Console, comparator: Comparator, shift: int) -> tuple[list[Found], NormalLaw]:
    """Run every sweep. If all words are swept (shift 0), also count the law of the normal."""
    results: list[Found] = []
    normal = NormalLaw()
    counted: list[dict[tuple[int, float], int]] = []
    for sweep in SWEEPS:
        each_block: Callable[[Floats, int], None] | None = None
        if sweep.pair == "angle" and shift == 0:

            def each_block(array: Floats, _: int) -> None:
                normal.count_angles(comparator, array)
        elif sweep.pair == "radius" and shift == 0:
            normal.sum_angles()

            def each_block(array: Floats, _: int) -> None:
                counted.append(normal.count_pairs(comparator, array))

        console.print(f"sweeping {sweep.name}", highlight=False)
        results += run(comparator, sweep, shift, each_block=each_block)
    for part in counted:
        normal.add(part)
    return results, normal


def totals(results: Sequence[Found]) -> dict[str, str]:
    """Return the checksum of each stream on the first instruction set."""
    return {result.stream.name: hexed(next(iter(result.checksums.values()))) for result in results}


def prove(console: Console, update: bool) -> Sequence[CheckResult]:
    """Return the check results of all sweeps and of docs/numbers.md."""
    comparator = Comparator.build()
    results, normal = sweep_all(console, comparator, 0)
    if update:
        strided, _ = sweep_all(console, comparator, STRIDE_SHIFT)
        renew_checksums(totals(results), totals(strided))
    committed = read_checksums()["all"]
    check_results = [
        check for result in results for check in check_results_of(result, committed.get(result.stream.name))
    ]
    for result in results:
        if result.stream.law_size:
            enough = result.margin_was_enough()
            check_results.append(
                CheckResult(f"{result.stream.name}: its law is read off whole", str(enough), "True", enough)
            )
    by_kind = {result.stream.kind: result for result in results}
    tables = {
        "errors": errors_table(results),
        "law": law_table(by_kind, results, normal),
        "tails": tails_table(normal),
    }
    return [*check_results, markdown_tables.hold(PAGE, tables, update)]
