"""The benchmarks at toy sizes, so that they run when needed, and the documented tables of results."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are not installed
pytest.importorskip("typer", reason="needs requirements/bench.txt")

from typer.testing import CliRunner  # noqa: E402

import subprocesses  # noqa: E402
from benchmarks import cases, ceilings, fresh_memory, machine, models, report, rows, timing  # noqa: E402
from benchmarks import peers as peers_module  # noqa: E402
from benchmarks.__main__ import app  # noqa: E402
from paraminit_ext import init  # noqa: E402

TOY = ["--numel", "12", "--rounds", "1"]
CPU = torch.device("cpu")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all groups at toy size and return the file with their results."""
    path = tmp_path_factory.mktemp("results") / "toy.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ROUND_SECONDS", 1e-4)  # no test reads these timings
        outcome = invoke(*TOY, "--no-peers", "--json", str(path), "--markdown", str(path.with_suffix(".md")))
    assert outcome.exit_code == 0, outcome.output
    return path


def discard(text: str) -> None:
    """Discard a message about an omitted row."""


def set_free_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Report ``size`` bytes of free memory in addition to the margin."""
    monkeypatch.setattr(machine, "available_memory", lambda _: machine.MARGIN + size)


def make_row(
    name: str = "fill/normal[device=cpu,dtype=fp32,numel=2^10,threads=2]", **seconds: float
) -> rows.Row:
    return rows.Row(name, 1024, 4096, seconds, dict.fromkeys(seconds, 0.1), {}, {"torch": "2.13.0"})


# ----------------------------------------------------------------------------------------
# Groups and rows
# ----------------------------------------------------------------------------------------


def test_every_group_gives_rows_that_say_what_was_measured_and_where(results: Path) -> None:
    found = rows.read(results)
    assert list(dict.fromkeys(row.group for row in found)) == list(cases.GROUPS)
    for result in found:
        assert result.parameters["device"] == "cpu"
        assert int(result.parameters["threads"]) > 0
        assert result.parameters["dtype"] in rows.DTYPES
        assert {"machine", "compiler", "torch", "commit", "threads", "cpu_capability"} <= set(result.facts)
        assert result.facts["torch"] == torch.__version__
        assert all(seconds > 0 for seconds in result.seconds.values())
        assert result.seconds.keys() >= {"ours", "stock", "fill"} or result.measured.keys() >= {
            "ours",
            "stock",
        }
    assert len({result.name for result in found}) == len(found)


def test_a_line_carries_the_derived_figures(results: Path) -> None:
    for text in results.read_text().splitlines():
        record = json.loads(text)
        if not record["seconds"]:
            continue
        seconds = record["seconds"]
        assert record["ratio_to_stock"] == seconds["stock"] / seconds["ours"]
        assert record["share_of_fill"] == seconds["fill"] / seconds["ours"]
        assert record["gb_s"] == record["bytes"] / seconds["ours"] / 1e9
        assert record["spread"].keys() == seconds.keys()


def test_rows_are_the_same_after_they_are_written_and_read(results: Path, tmp_path: Path) -> None:
    found = rows.read(results)
    again = tmp_path / "again.jsonl"
    again.write_text("".join(map(rows.line, found)))
    assert rows.read(again) == found


def test_fills_are_in_all_dtypes_and_other_groups_in_float32_unless_asked(results: Path) -> None:
    by_group: dict[str, set[str]] = {}
    for result in rows.read(results):
        by_group.setdefault(result.group, set()).add(result.parameters["dtype"])
    assert by_group.pop("fill") == set(rows.DTYPES)
    assert all(dtypes == {"fp32"} for dtypes in by_group.values())


def test_groups_dtypes_and_rows_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    chosen = ["--group", "sparse,orthogonal", "--dtype", "bf16", "--filter", "square", "--json", str(path)]
    outcome = invoke(*TOY, *chosen)
    assert outcome.exit_code == 0, outcome.output
    found = rows.read(path)
    assert {result.group for result in found} == {"sparse", "orthogonal"}
    assert all("square" in result.name and "dtype=bf16" in result.name for result in found)
    # torch's QR does not support bfloat16: the row stays, without a time of stock.
    orthogonal = next(result for result in found if result.group == "orthogonal")
    assert "stock" not in orthogonal.seconds
    assert orthogonal.against("stock") is None
    assert report.table("orthogonal", found).rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group", "fills"], "expected groups among fill, model,"),
        (["--dtype", "fp8"], "expected dtypes among fp32, bf16,"),
        (["--device", "tpu"], "expected a device among cpu, cuda"),
        (["--filter", "nothing"], "expected --filter to match a row"),
        (["report", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(arguments: list[str], message: str) -> None:
    outcome = invoke(*arguments)
    assert outcome.exit_code == 2
    printed = re.sub(r"[\s│╭╮╰╯─]+", " ", outcome.output)
    assert message in printed


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(rows.line(make_row(ours=1.0)) + '{"name": "x"}\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 2: expected a row"):
        rows.read(path)


def test_a_malformed_name_of_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a name such as"):
        _ = make_row("normal").group


def test_quick_sizes_are_a_part_of_the_whole() -> None:
    quick = cases.Options(CPU, quick=True, say=discard)
    for name, of_group in cases.GROUPS.items():
        listed = list(of_group(quick))
        assert listed, name
        assert all(case.bytes <= 1 << 30 for case in listed), name


def test_a_vit_has_as_many_parameters_as_timm_s() -> None:
    # vit_large_patch16_224 and vit_base_patch16_224
    for preset, parameters in (("l", 304_326_632), ("b", 86_567_656)):
        entries = models.vit_entries(preset)
        assert sum(torch.Size(shape).numel() for _, shape, _ in entries) == parameters
        assert len({name for name, _, _ in entries}) == len(entries)


def test_a_model_that_does_not_fit_gives_way_to_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    options = cases.Options(CPU, say=discard)
    set_free_memory(monkeypatch, 1 << 60)
    assert [case.name.partition("[")[0] for case in cases.model_cases(options)] == [
        "model/llama_1b",
        "model/vit_l",
    ]
    set_free_memory(monkeypatch, 400_000_000)
    assert [case.name.partition("[")[0] for case in cases.model_cases(options)] == [
        "model/llama_tiny",
        "model/vit_b",
    ]


def test_sizes_reach_the_memory_s_limit_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free_memory(monkeypatch, 1 << 34)
    options = cases.Options(CPU, say=discard)
    assert max(case.bytes for case in cases.scaling_cases(options)) == 1 << 34


# ----------------------------------------------------------------------------------------
# Timing
# ----------------------------------------------------------------------------------------


def test_calls_take_turns() -> None:
    order: list[str] = []

    def take(name: str) -> float:
        order.append(name)
        return 0.5

    calls = {name: timing.SelfTimed(partial(take, name)) for name in "abc"}
    timings = timing.time_in_turns(calls, CPU, rounds=2)
    assert "".join(order) == "a" + "abc" * 3  # the very first call touches the memory
    assert timings["a"] == timing.Timing((0.5, 0.5))


def test_a_call_over_the_budget_is_timed_once_and_has_no_spread() -> None:
    seconds = iter([0.0, 3.0, 0.1, 0.2, 0.3])
    slow, fast = (timing.SelfTimed(lambda: next(seconds)) for _ in range(2))
    timings = timing.time_in_turns({"slow": slow, "fast": fast}, CPU, rounds=2, budget=2.0)
    assert timings["slow"].seconds == (3.0,)
    assert timings["slow"].spread is None
    assert timings["fast"].seconds == (0.2, 0.3)


def test_a_case_runs_on_the_threads_that_it_names() -> None:
    seen = []
    timing.time_in_turns({"x": lambda: seen.append(torch.get_num_threads())}, CPU, rounds=1, threads=1)
    assert set(seen) == {1}


def huge_page_kib(numel: int) -> int:
    """Fill a tensor and return how many KiB of this process are in huge pages."""
    tensor = init.normal_(torch.empty(numel))
    match = re.search(
        r"^AnonHugePages:\s*(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE
    )
    assert match is not None
    assert tensor.numel() == numel
    return int(match.group(1))


@pytest.mark.skipif(machine.huge_pages() != "madvise", reason="needs transparent huge pages in madvise mode")
def test_a_fresh_process_reads_the_choice_of_huge_pages_anew() -> None:
    for variables, huge in (({}, True), ({"PARAMINIT_HUGEPAGES": "0"}, False)):
        with fresh_memory.process(variables) as executor:
            assert (executor.submit(huge_page_kib, 1 << 24).result() > 0) == huge


@pytest.mark.parametrize("case", ["normal", "trunc_normal"])
def test_a_fill_takes_no_memory_beside_the_tensor_s(case: str) -> None:
    arguments = (cases.FILLS[case], 1 << 24, "fp32", 1)
    with fresh_memory.process() as executor:
        # The page counters of a process lag slightly.
        assert abs(executor.submit(fresh_memory.peak_over, "ours", *arguments).result()) < 4 << 20


def test_the_peak_of_a_fill_with_temporaries_is_seen() -> None:
    arguments = (cases.FILLS["trunc_normal"], 1 << 24, "fp32", 1)
    with fresh_memory.process() as executor:
        assert executor.submit(fresh_memory.peak_over, "stock", *arguments).result() > 1 << 26


# ----------------------------------------------------------------------------------------
# Peers
# ----------------------------------------------------------------------------------------


def failing_peer(recipe: models.Recipe, tensor: torch.Tensor) -> timing.Call | None:
    raise RuntimeError("this peer breaks")


def test_a_peer_that_is_missing_is_left_out_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def few_peers(device: torch.device) -> Iterator[peers_module.Peer]:
        for peer in peers_module.peers(device):
            if peer.name.startswith("NumPy"):
                yield peer
        yield peers_module.Peer("Absent", peers_module.missing("absent_module"), failing_peer)
        yield peers_module.Peer("Broken", "", failing_peer)

    monkeypatch.setattr("benchmarks.__main__.peers", few_peers)
    path = tmp_path / "peers.jsonl"
    arguments = ["--group", "fill", "--filter", "/normal", "--dtype", "fp32,bf16", "--json", str(path)]
    outcome = invoke(*TOY, *arguments, "--peers")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.count("Absent is left out: absent_module is not installed") == 1
    assert "Broken is left out of a row: RuntimeError: this peer breaks" in outcome.output
    full, half = rows.read(path)
    assert {"NumPy SFC64", "NumPy Philox"} <= full.seconds.keys()
    assert half.seconds.keys() == {"fill", "stock", "ours"}  # NumPy has no bfloat16
    table = report.table("peers", [full, half])
    assert table.headers == ["ns per element", "ours", "stock", "NumPy SFC64", "NumPy Philox"]
    assert len(table.rows) == 1


def test_numpy_writes_into_the_tensor_that_it_is_timed_on() -> None:
    pytest.importorskip("numpy")
    for recipe in (cases.FILLS["uniform"], cases.FILLS["normal"]):
        tensor = torch.full((1000,), torch.nan)
        call = peers_module.numpy_generator("Philox")(recipe, tensor)
        assert call is not None
        call()
        assert torch.isfinite(tensor).all()


# ----------------------------------------------------------------------------------------
# The report
# ----------------------------------------------------------------------------------------


def test_the_report_prints_every_group_and_draws_figures_that_do_not_change(
    results: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="needs requirements/bench.txt")
    outcome = invoke("report", str(results), "--figures", str(tmp_path / "a"))
    assert outcome.exit_code == 0, outcome.output
    for group, (title, *_) in report.TIMED.items():
        # `python -m benchmarks.whole_models` writes the rows of this group.
        assert (f"### {title}" in outcome.output) == (group != "whole-model")
    drawn = report.draw(rows.read(results), tmp_path / "b")
    names = {path.name for path in drawn}
    assert {"cpu-ratio.svg", "cpu-size.svg"} <= names
    assert ("cpu-threads.svg" in names) == (torch.get_num_threads() > 1)
    for path in drawn:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
        assert path.stat().st_size < 100_000


def test_tables_show_the_ratio_the_share_and_the_spread() -> None:
    result = make_row(ours=1e-6, stock=5e-6, fill=5e-7)
    table = report.table("fill", [result], full=True)
    shown = dict(zip(table.headers, table.rows[0], strict=True))
    assert shown["fill"] == "`normal_`, fp32"
    assert shown["ours, ns per element"] == "0.98"
    assert shown["speedup over stock"] == "5.0"
    assert shown["speed, of `fill_`"] == "50 %"
    assert shown["GB/s"] == "4.1"
    assert shown["spread ours/stock/fill_"] == "10%/10%/10%"


def test_a_share_of_the_store_ceiling_is_shown_where_one_was_measured() -> None:
    result = make_row(ours=1e-6, stock=5e-6, fill=5e-7)
    result.facts.update({"ceiling_fill_gb_s": 6.0, "ceiling_zero_gb_s": 8.192})
    table = report.table("fill", [result], full=True)
    assert dict(zip(table.headers, table.rows[0], strict=True))["of the store ceiling"] == "50 %"


def test_two_runs_are_compared_by_what_a_plain_fill_took(tmp_path: Path) -> None:
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    only_before = make_row("fill/uniform[device=cpu,dtype=fp32,numel=2^10,threads=2]", ours=1.0)
    before.write_text(rows.line(make_row(ours=1e-6, stock=5e-6, fill=5e-7)) + rows.line(only_before))
    # First twice the time on a machine that is half as fast, then three times the time on the same machine.
    for ours, fill, change, status in ((2e-6, 1e-6, "+0%", 0), (3e-6, 5e-7, "+200%", 1)):
        after.write_text(rows.line(make_row(ours=ours, stock=5e-6, fill=fill)))
        outcome = invoke("compare", str(before), str(after), "--tolerance", "0.1")
        assert outcome.exit_code == status, outcome.output
        assert f"| {change} |" in outcome.output
        assert "1 rows, median change" in outcome.output
    after.write_text(rows.line(only_before).replace("uniform", "normal_x"))
    assert invoke("compare", str(before), str(after)).exit_code == 2


def test_the_kernels_of_the_ceilings_compile(tmp_path: Path) -> None:
    try:
        ceilings.nvcc()
    except ceilings.CeilingsError as error:
        pytest.skip(f"needs a CUDA compiler ({error})")
    assert ceilings.build(tmp_path, "sm_90").exists()
    with pytest.raises(ceilings.CeilingsError, match="nvcc failed with status"):
        ceilings.build(tmp_path, "sm_1")


@pytest.mark.gpu
@pytest.mark.gpu_alone
def test_the_ceilings_are_those_of_stores_and_not_below_torch_s_own() -> None:
    messages: list[str] = []
    found = ceilings.measure(torch.device("cuda"), 1 << 28, 3, messages.append)
    assert not messages
    stores = {name: value for name, value in found.items() if name.startswith("ceiling_")}
    assert max(stores, key=lambda name: stores[name]) != "ceiling_fill_gb_s" or (
        stores["ceiling_store16_gb_s"] > 0.95 * stores["ceiling_fill_gb_s"]
    )
    # rate_both counts as many instructions of one kind as of the other, so half of it is at most the rate
    # of each kind.
    half = found["rate_both_g_s"] / 2
    assert half < 1.05 * min(found["rate_imad_wide_g_s"], found["rate_lop3_g_s"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.50 s"), (0.0356, "35.6 ms"), (1.5e-4, "150 µs"), (4e-9, "4.00 ns")]
)
def test_durations_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_every_table_of_results_matches_the_committed_results(name: str) -> None:
    page = ROOT / name
    assert report.BLOCK.search(page.read_text())
    updated = report.updated(page.read_text(), page.parent)
    assert updated == page.read_text(), f"run `python -m benchmarks report --update {name}`"


def test_every_table_of_figures_is_in_a_block() -> None:
    measured = (ROOT / "README.md").read_text().partition("## Measured\n")[2].partition("\n## ")[0]
    for text in (measured, (ROOT / "docs/benchmarks.md").read_text()):
        assert not re.search(r"^\|", report.BLOCK.sub("", text), re.MULTILINE)


def test_a_block_whose_figures_were_edited_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text(rows.line(make_row(ours=1e-6, stock=5e-6, fill=5e-7)))
    page = "before\n<!-- benchmarks: begin fill some.jsonl -->\n{}<!-- benchmarks: end -->\nafter\n"
    updated = report.updated(page.format(""), tmp_path)
    assert "| `normal_`, fp32 | 0.98 | 4.88 | 5.0 | 50 % |" in updated
    assert report.updated(page.format("| `normal_`, fp32 | 0.10 |\n"), tmp_path) == updated
    assert report.updated(updated, tmp_path) == updated


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- benchmarks: begin fill some.jsonl -->\n", "1 begins, 0 ends"),
        ("<!-- benchmarks: begin fill none.jsonl -->\n<!-- benchmarks: end -->", "got no file none.jsonl"),
        (
            "<!-- benchmarks: begin fil some.jsonl -->\n<!-- benchmarks: end -->",
            "expected a table among fill,",
        ),
    ],
)
def test_a_block_that_cannot_be_made_is_an_error(page: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text(rows.line(make_row(ours=1.0)))
    with pytest.raises(ValueError, match=re.escape(message)):
        report.updated(page, tmp_path)


@pytest.mark.filterwarnings("ignore")  # transformers warns when it is imported
def test_whole_models_are_timed_in_every_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers (make build)")
    import typer
    from typer.testing import CliRunner

    from benchmarks import whole_models

    monkeypatch.setattr(whole_models, "cost_of_a_call", lambda: 0.5)
    app = typer.Typer()
    app.command()(whole_models.main)
    arguments = [
        "--preset",
        "tiny",
        "--large",
        "tiny",
        "--dtype",
        "bf16",
        "--rounds",
        "1",
        "--stock-rounds",
        "1",
        "--json",
        str(tmp_path / "rows.jsonl"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    timed = rows.read(tmp_path / "rows.jsonl")
    assert [row[0] for row in report.table("whole-model", timed).rows] == [
        f"{way}, bf16" for way in report.WAYS.values()
    ]
    assert report.whole_model_figure(timed) is not None
    assert report.whole_model_figure(timed[1:]) is None
    for label in (
        "stock",
        "patch",
        "deferred",
        "plan.apply",
        "fill_ of the same tensors",
        "Recording 0.0 billion",
    ):
        assert label in result.output


@pytest.mark.filterwarnings("ignore")  # transformers and torch.distributed warn when they are imported
def test_a_rank_of_thousands_is_timed() -> None:
    pytest.importorskip("transformers", reason="needs transformers (make build)")
    done = subprocesses.run(
        "-m", "benchmarks.scale", "--ranks", "1024,16384", "--layers", "1", "--rounds", "1"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == ["1,024", "16,384"]
    # No collectives. The MB per rank follow: at 1,024 ranks, the embedding has half of the 40 MB.
    assert [row[-2].strip() for row in rows] == ["0", "0"]
    assert [int(row[2]) for row in rows] == [40, 3]
