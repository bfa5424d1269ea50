"""The numbers: all 2^32 words through every float32 transform, on every instruction set of this machine.

Values come from the package's own binary, judge.cpp judges them, mpmath judges the judge where it found the
worst. `prove` compares with checksums.json, which stands for the stream, and with the tables of
docs/numbers.md; `--update` rewrites the tables, and the checksums where STREAM_VERSION has been raised.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mpmath
from rich.console import Console

from prove import pages
from prove.claims import Claim
from prove.judge import ROOT, Floats, Found, Judge, run
from prove.law import DIGITS, NormalLaw, deviation, ideal_moment
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

PAGE = ROOT / "docs" / "numbers.md"
THRESHOLDS = (1, 2, 3, 4, 5, 6)

# --- what mpmath says of the worst cases ------------------------------------------------------


def exact_value(stream: Stream, place: int, near: float) -> Any:
    """The exact value at that place, to 50 digits; `near` is close to it."""
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
    # By Newton's rule on the smaller tail.
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


def error_again(found: Found) -> float:
    """The error of the worst case, in the limit's unit."""
    place, value = found.worst
    with mpmath.mp.workdps(DIGITS):
        exact = exact_value(found.stream, place, value)
        error = abs(mpmath.mpf(value) - exact)
        if error and found.stream.limit.unit:
            error /= mpmath.mpf(2) ** (mpmath.floor(mpmath.log(abs(exact), 2)) - 23)
        return float(error)


# --- claims and tables ------------------------------------------------------------------------

HOW_TO_CHANGE = (
    "the stream has changed; if that is meant, raise STREAM_VERSION (csrc/stream/request.h, "
    "paraminit_ext/__init__.py), say why under Stream in CHANGELOG.md and run `make prove ARGS=--update`"
)


def claims_of(found: Found, committed: str | None) -> Iterator[Claim]:
    """Equal bits, and errors within their limit, of one stream."""
    name, limit = found.stream.name, found.stream.limit
    sets, sums = ", ".join(found.checksums), {hexed(c) for c in found.checksums.values()}
    yield Claim(f"{name}: the same bits on {sets}", " ".join(sorted(sums)), "one checksum", len(sums) == 1)
    right = sums == {committed}
    yield Claim(
        f"{name}: the committed bits",
        "the same" if right else "others",
        "the same" if right else HOW_TO_CHANGE,
        right,
    )
    error, again = found.error, error_again(found)
    yield Claim(f"{name}: greatest error", shown(error, limit.unit), str(limit), error <= limit.size)
    # What the judge's doubles leave: some 2^-50 of a value of up to 40, for any unit here.
    slack = 1e-6 * again + (1e-6 if limit.unit else 2.0**-45)
    difference = abs(error - again)
    yield Claim(
        f"{name}: the worst case in mpmath, {DIGITS} digits",
        shown(again, limit.unit), shown(error, limit.unit), difference <= slack,
    )  # fmt: skip


def shown(error: float, unit: str) -> str:
    if unit:
        return f"{error:.3g} {unit}"
    return f"2^{math.log2(error):.2f}" if error else "0"


def errors_table(results: Sequence[Found]) -> str:
    rows = [
        [
            one.stream.name,
            shown(one.error, one.stream.limit.unit),
            str(one.stream.limit),
            f"{min(t.least for t in one.tallies):.9g}",
            f"{max(t.greatest for t in one.tallies):.9g}",
        ]
        for one in results
    ]
    return pages.table(["transform", "greatest error", "bound", "least value", "greatest value"], rows)


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
    for one in results:
        stream = one.stream
        if stream.kind in (UNIFORM, TRUNCATED) and stream.law_size:
            cells = moments_cells(one.moment, functools.partial(ideal_moment, stream))
            rows.append([stream.name, f"{one.distance:.1e}", *cells])
    return pages.table(["law", "distance", *(f"moment {k}" for k in range(1, 9))], rows)


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
    return pages.table(header, rows)


def sweep_all(console: Console, judge: Judge, shift: int) -> tuple[list[Found], NormalLaw]:
    """Every sweep; the law of the normal is counted where all words are swept."""
    results: list[Found] = []
    normal = NormalLaw()
    counted: list[dict[tuple[int, float], int]] = []
    for sweep in SWEEPS:
        each_block: Callable[[Floats, int], None] | None = None
        if sweep.pair == "angle" and shift == 0:

            def each_block(array: Floats, _: int) -> None:
                normal.count_angles(judge, array)
        elif sweep.pair == "radius" and shift == 0:
            normal.sum_angles()

            def each_block(array: Floats, _: int) -> None:
                counted.append(normal.count_pairs(judge, array))

        console.print(f"sweeping {sweep.name}", highlight=False)
        results += run(judge, sweep, shift, each_block=each_block)
    for part in counted:
        normal.add(part)
    return results, normal


def totals(results: Sequence[Found]) -> dict[str, str]:
    """The checksum of each stream, on the first instruction set."""
    return {one.stream.name: hexed(next(iter(one.checksums.values()))) for one in results}


def prove(console: Console, update: bool) -> Sequence[Claim]:
    """The claims of docs/numbers.md."""
    judge = Judge.build()
    results, normal = sweep_all(console, judge, 0)
    if update:
        strided, _ = sweep_all(console, judge, STRIDE_SHIFT)
        renew_checksums(totals(results), totals(strided))
    committed = read_checksums()["all"]
    claims = [claim for one in results for claim in claims_of(one, committed.get(one.stream.name))]
    for one in results:
        if one.stream.law_size:
            enough = one.margin_was_enough()
            claims.append(Claim(f"{one.stream.name}: its law is read off whole", str(enough), "True", enough))
    by_kind = {one.stream.kind: one for one in results}
    tables = {
        "errors": errors_table(results),
        "law": law_table(by_kind, results, normal),
        "tails": tails_table(normal),
    }
    return [*claims, pages.hold(PAGE, tables, update)]
