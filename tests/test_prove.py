"""A small `make prove`: one word in each 2^10 under the same bounds, and planted faults."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # neither prove nor benchmarks are installed
pytest.importorskip("typer", reason="needs requirements/bench.txt")

import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import paraminit_ext  # noqa: E402
from prove import __main__ as command  # noqa: E402
from prove import markdown_tables, numbers, sweeps, word_moments  # noqa: E402
from prove.accuracy import BLOCK, Comparator, Floats, Found, Tally, run  # noqa: E402
from prove.check_result import CheckResult, ProofError  # noqa: E402
from prove.sweeps import COSINE, SINE, STRIDE_SHIFT, SWEEPS, Sweep  # noqa: E402

COMMITTED = sweeps.read_checksums()
NAMES = [stream.name for sweep in SWEEPS for stream in sweep.streams]
swept = pytest.mark.parametrize("sweep", SWEEPS, ids=lambda s: s.name)


@pytest.fixture(scope="module")
def comparator() -> Comparator:
    return Comparator.build()


def failing(found: Found) -> set[str]:
    """Return the names of the failing claims, without the name of the stream."""
    check_results = numbers.check_results_of(found, COMMITTED["stride"][found.stream.name])
    return {claim.name.removeprefix(f"{found.stream.name}: ") for claim in check_results if not claim.holds}


@swept
def test_a_stride_of_words_holds_every_bound_on_every_instruction_set(
    sweep: Sweep, comparator: Comparator
) -> None:
    for found in run(comparator, sweep, STRIDE_SHIFT):
        assert failing(found) == set(), numbers.HOW_TO_CHANGE


def test_the_committed_checksums_are_of_these_sweeps_and_this_version() -> None:
    assert COMMITTED["stream_version"] == paraminit_ext.STREAM_VERSION
    assert list(COMMITTED["stride"]) == NAMES
    assert set(COMMITTED["all"]) <= set(NAMES)  # `make prove` and the GPU test need all of them


# --- planted faults -----------------------------------------------------------------------------

BITS = "the committed bits"
SETS = f"the same bits on {', '.join(paraminit_ext.available_cpu_capabilities())}"
ERROR, AGAIN = "greatest error", f"the worst case in mpmath, {word_moments.DIGITS} digits"
BEST = paraminit_ext.available_cpu_capabilities()[0]


def last_bit(values: Floats) -> None:
    values[12_345] = np.nextafter(values[12_345], np.float32(0))


def exchanged_words(values: Floats) -> None:
    values[[12_345, 12_375]] = values[[12_375, 12_345]]


def twenty_ulp(values: Floats) -> None:
    values[12_345:12_346].view(np.int32)[:] += 20


def no_number(values: Floats) -> None:
    values[12_345] = math.nan


# Each fault, and the claims that must fail because of it in addition to the checksums.
FAULTS: dict[str, tuple[Callable[[Floats], None], set[str]]] = {
    "last bit": (last_bit, set()),
    "exchanged words": (exchanged_words, {ERROR}),
    "twenty ulp": (twenty_ulp, {ERROR}),
    "not a number": (no_number, {ERROR, AGAIN}),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["radius", "truncated normal on [-2, 2]", "truncated normal on [1.5, inf]"])
def test_one_faulty_block_is_found(name: str, fault: str, comparator: Comparator) -> None:
    change, expected = FAULTS[fault]

    def plant(_: Sweep, capability: str, first: int, values: Floats) -> None:
        if capability == BEST and first == 0:
            change(values.reshape(BLOCK, -1)[:, 0] if name != "radius" else values[::2])

    sweep = next(sweep for sweep in SWEEPS if sweep.name == name)
    (found,) = run(comparator, sweep, STRIDE_SHIFT, plant)
    several = {SETS} if len(paraminit_ext.available_cpu_capabilities()) > 1 else set()
    assert failing(found) == {BITS} | several | expected


def test_a_judge_that_errs_is_found_by_mpmath(comparator: Comparator) -> None:
    (found,) = run(comparator, SWEEPS[1], STRIDE_SHIFT)
    for tally in found.tallies:
        tally.worst_ulp *= 1.001
    assert failing(found) == {AGAIN}


# --- measurements of a law ------------------------------------------------------------------------


def uniform_law(comparator: Comparator, change: Callable[[Floats], None] = lambda _: None) -> Tally:
    """Return the comparator's tally of 2^22 equally spaced values in [0, 1)."""
    values = (np.arange(BLOCK) / BLOCK).astype(np.float32)
    change(values)
    tally = Tally()
    comparator.library.compare(
        sweeps.UNIFORM, 0.0, 1.0, values.ctypes.data, 1, 0, BLOCK, 0, 0, 0, 0, BLOCK, tally
    )
    return tally


def test_the_law_of_equally_spaced_values_is_known_exactly(comparator: Comparator) -> None:
    tally = uniform_law(comparator)
    assert tally.distance == 1 / BLOCK
    n = BLOCK
    assert tally.moments[0] == n * (n - 1) / 2 / n
    assert tally.moments[1] == pytest.approx((n - 1) * n * (2 * n - 1) / 6 / n**2, rel=1e-13)


def test_the_order_of_a_law_s_values_does_not_matter(comparator: Comparator) -> None:
    assert uniform_law(comparator, np.random.default_rng(0).shuffle).distance == 1 / BLOCK


def test_a_heap_and_a_gap_show_as_distance(comparator: Comparator) -> None:
    def heap(values: Floats) -> None:
        values[values > 0.75] = 0.75

    def gap(values: Floats) -> None:
        values[(values > 0.25) & (values < 0.5)] = 0.5

    assert uniform_law(comparator, heap).distance == pytest.approx(0.25, abs=2 / BLOCK)
    assert uniform_law(comparator, gap).distance == pytest.approx(0.25, abs=2 / BLOCK)


@pytest.mark.parametrize("kind", [COSINE, SINE])
def test_pairs_beyond_a_threshold_are_counted_as_by_hand(kind: int, comparator: Comparator) -> None:
    rng = np.random.default_rng(kind)
    radii = np.sort(np.sqrt(-2 * np.log(rng.random(500)))).astype(np.float32)[::-1].copy()
    angles = np.sort(rng.random(3000).astype(np.float32) * np.float32(0.99) + np.float32(0.01))
    angles[-5:] = 1.0
    normal = word_moments.NormalLaw(
        {kind: np.zeros(word_moments.ONE_BITS - word_moments.LEAST_BITS + 1, np.uint32)}
    )
    counts = normal.at_least[kind]
    comparator.library.count_values(angles.ctypes.data, 1, angles.size, counts.ctypes.data)
    normal.sum_angles()
    tiny = word_moments.TINY[kind]
    for t in (0.125, 0.5, 1.0, 2.0, 3.0):
        start = radii.ctypes.data
        got = comparator.library.count_beyond(start, 1, radii.size, counts.ctypes.data, t, tiny)
        products = radii.astype(np.float64)[:, None] * angles  # exact
        above = ((products + tiny).astype(np.float32) > t).sum() + (
            (-products + tiny).astype(np.float32) < -t
        ).sum()
        assert got == above


def test_ideal_moments_are_those_of_the_laws() -> None:
    stats = pytest.importorskip("scipy.stats")
    laws = {
        "radius": stats.rayleigh(),
        "cosine": stats.arcsine(-1.0, 2.0),
        "uniform on [0, 1)": stats.uniform(0.0, 1.0),
        "truncated normal on [-2, 2]": stats.truncnorm(-2.0, 2.0),
        "truncated normal on [-0.5, inf]": stats.truncnorm(-0.5, math.inf),
        "truncated normal on [-9, -5]": stats.truncnorm(-9.0, -5.0),
    }
    for sweep in SWEEPS:
        for stream in sweep.streams:
            if stream.name in laws:
                for k in range(1, 9):
                    expected = laws[stream.name].moment(k)
                    assert float(word_moments.ideal_moment(stream, k)) == pytest.approx(
                        expected, rel=1e-6, abs=1e-9
                    )


@swept
def test_the_exact_value_agrees_with_the_kernels_value(sweep: Sweep) -> None:
    place = 3_141_592_653
    got = sweeps.values(sweep, place - 1, 4)[1]
    for value, stream in zip(got.tolist(), sweep.streams, strict=False):
        assert float(numbers.exact_value(stream, place, value)) == pytest.approx(value, rel=1e-5, abs=2e-45)


@swept
def test_the_two_checksums_are_the_same_and_know_order(sweep: Sweep, comparator: Comparator) -> None:
    block = sweeps.values(sweep, 1000, 4096, STRIDE_SHIFT)
    (total, *_) = sweeps.checksum(block, 1000)
    start, step = block.data_ptr(), block.shape[1]
    assert comparator.library.checksum(start, step, len(block), 1000) == total
    first, second = sweeps.checksum(block[:96], 1000)[0], sweeps.checksum(block[96:], 1096)[0]
    assert (first + second) % (1 << 64) == total
    different = int((block[:, 0] != block[0, 0]).nonzero()[0, 0])
    order = torch.arange(len(block))
    order[[0, different]] = order[[different, 0]]
    assert sweeps.checksum(block[order], 1000)[0] != total


@swept
def test_a_checksum_does_not_depend_on_the_parts(sweep: Sweep) -> None:
    first = 1 << 20
    whole = sweeps.checksum(sweeps.values(sweep, first, 5000), first)[: len(sweep.streams)]
    for part in (5000, 1024):
        assert sweeps.totals(sweep, first, first + 5000, part) == list(map(sweeps.hexed, whole))


@pytest.mark.gpu
@pytest.mark.gpu_alone
@swept
def test_cuda_gives_the_committed_bits_of_all_words(sweep: Sweep) -> None:
    expected = [COMMITTED["all"][stream.name] for stream in sweep.streams]
    assert sweeps.totals(sweep, 0, sweeps.ALL, 1 << 26, "cuda") == expected


# --- the page and the command -------------------------------------------------------------------

PAGE = "# A page\n\n<!-- prove: begin one -->\n\n| a |\n\n<!-- prove: end -->\n\nWords.\n"


def test_a_page_that_shows_another_figure_fails_until_it_is_updated(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert markdown_tables.hold(page, {"one": "| a |"}, False).holds
    claim = markdown_tables.hold(page, {"one": "| b |"}, False)
    assert not claim.holds
    assert "| b |" in claim.found
    assert page.read_text() == PAGE
    assert markdown_tables.hold(page, {"one": "| b |"}, True).holds
    assert page.read_text() == PAGE.replace("| a |", "| b |")
    with pytest.raises(ProofError, match="expected blocks two in page.md, got one"):
        markdown_tables.hold(page, {"two": ""}, False)


def test_the_page_of_numbers_has_a_table_for_each_name() -> None:
    names = [name for _, name, *_ in markdown_tables.BLOCK.findall(numbers.PAGE.read_text())]
    assert names == ["errors", "law", "tails"]


def invoke(monkeypatch: pytest.MonkeyPatch, steps: dict[str, Any], *arguments: str) -> Any:
    monkeypatch.setattr(command, "STEPS", steps)
    app = typer.Typer()
    app.command()(command.main)
    return CliRunner().invoke(app, list(arguments))


def step(*holds: bool) -> Callable[[Console, bool], list[CheckResult]]:
    return lambda *_: [CheckResult(f"claim {n}", "1", "2", held) for n, held in enumerate(holds)]


def unable(console: Console, update: bool) -> list[CheckResult]:
    raise ProofError("expected a compiler, got none")


def test_the_command_fails_where_a_claim_does(monkeypatch: pytest.MonkeyPatch) -> None:
    good = invoke(monkeypatch, {"a": step(True), "b": step(True, True)})
    assert good.exit_code == 0
    assert "all claims of a, b hold" in good.output
    bad = invoke(monkeypatch, {"a": step(True), "b": step(True, False)})
    assert bad.exit_code == 1
    assert "FAILS b: claim 1" in bad.output
    assert invoke(monkeypatch, {"a": step(True), "b": step(False)}, "--only", "a").exit_code == 0
    assert invoke(monkeypatch, {"a": step(True)}, "--only", "x").exit_code == 2
    assert invoke(monkeypatch, {"a": step()}).exit_code == 1
    assert invoke(monkeypatch, {"a": unable}).exit_code == 1


def test_an_update_adds_checksums_and_changes_none_within_a_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "checksums.json"
    monkeypatch.setattr(sweeps, "CHECKSUMS", file)
    old = {
        "stream_version": paraminit_ext.STREAM_VERSION,
        "all": {"a": "old"},
        "stride": {"a": "old", "b": "old"},
    }
    new = {"a": "new", "b": "new"}
    file.write_text(json.dumps(old))
    sweeps.renew_checksums(new, new)
    assert json.loads(file.read_text()) == old | {"all": {"a": "old", "b": "new"}}
    file.write_text(json.dumps(old | {"stream_version": 0}))
    sweeps.renew_checksums(new, new)
    assert json.loads(file.read_text()) == old | {"all": new, "stride": new}
