"""`make gpu` without a GPU: its stages, limits, results and table, and its Python lines on stand-ins."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks and tools are not installed
pytest.importorskip("typer", reason="needs requirements/bench.txt")

from typer.testing import CliRunner  # noqa: E402

from benchmarks import cases, ceilings, machine, models, peers, rows, timing  # noqa: E402
from benchmarks.__main__ import app  # noqa: E402
from gpu_stand_in import MEMORY, Event, stand_in  # noqa: E402
from tools import gpu, gpu_build  # noqa: E402
from tools.gpu import FAILED, KILLED, LEFT_OUT, PASSED, Outcome, Step  # noqa: E402

CUDA = torch.device("cuda")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(code))


def step(name: str, code: str, stage: int = 3, need: float = 0.0, limit: float = 20.0, **more: Any) -> Step:
    return Step(stage, name, python(code), need, limit, **more)


def run_steps(tmp_path: Path, *steps: Step, seconds: float = 100.0) -> dict[str, Outcome]:
    run = gpu.Run(tmp_path, time.monotonic() + seconds, lambda _: None, tmp_path / "none")
    run.run(steps)
    on_disk = [json.loads(line) for line in (tmp_path / "gpu-steps.jsonl").read_text().splitlines()]
    assert on_disk == [outcome.__dict__ for outcome in run.outcomes]
    return {outcome.name: outcome for outcome in run.outcomes}


# ----------------------------------------------------------------------------------------
# Stages and limits
# ----------------------------------------------------------------------------------------


def test_a_step_that_fails_keeps_no_other_from_running(tmp_path: Path) -> None:
    outcomes = run_steps(
        tmp_path,
        step("raises", "print('before'); raise RuntimeError('no such thing')"),
        Step(3, "absent", ("no-such-tool-here",), 0, 5),
        step("passes", "print('all right')"),
    )
    assert outcomes["raises"].status == FAILED
    assert outcomes["raises"].note == "RuntimeError: no such thing"
    assert outcomes["absent"].status == FAILED
    assert outcomes["absent"].note == "no-such-tool-here: No such file or directory"
    assert (outcomes["passes"].status, outcomes["passes"].note) == (PASSED, "all right")
    log = (tmp_path / "gpu-log.txt").read_text()
    assert "== stage 3, raises\nbefore\n" in log
    assert log.index("stage 3, raises") < log.index("stage 3, passes")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_step_that_hangs_is_killed_with_its_children_and_its_rows_are_kept(tmp_path: Path) -> None:
    row = json.dumps({"name": "fill/normal[device=cuda]", "seconds": {"ours": 1.0}})
    code = f"""
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        open({str(tmp_path / "pids")!r}, "w").write(str(child.pid))
        open({str(tmp_path / "gpu.jsonl")!r}, "w").write({row!r} + "\\n" + '{{"name": "unfini')
        print("measuring", flush=True)
        time.sleep(100)
    """
    begin = time.monotonic()
    outcomes = run_steps(tmp_path, step("hangs", code, limit=3.0), step("next", "print('here')"))
    assert time.monotonic() - begin < 3 + 2 * gpu.GRACE + 5
    assert outcomes["hangs"].status == KILLED
    assert outcomes["hangs"].note == "over its limit of 3 s; last: measuring"
    assert outcomes["next"].status == PASSED
    assert [record["name"] for record in gpu.read_rows(tmp_path / "gpu.jsonl")] == [
        "fill/normal[device=cuda]"
    ]
    time.sleep(0.1)
    assert not alive(int((tmp_path / "pids").read_text()))


def test_what_does_not_fit_is_left_out_and_named_and_what_fits_still_runs(tmp_path: Path) -> None:
    outcomes = run_steps(
        tmp_path,
        step("large", "print('ran')", need=60.0),
        step("small", "print('ran')", need=1.0),
        seconds=gpu.CLOSING + 30,
    )
    assert outcomes["large"].status == LEFT_OUT
    assert re.fullmatch(r"needs 60 s, (29|30) s are left", outcomes["large"].note)
    assert outcomes["small"].status == PASSED


def test_no_step_outlasts_the_whole_run(tmp_path: Path) -> None:
    code = "import time; print('{seconds}', flush=True); time.sleep(100)"
    begin = time.monotonic()
    outcomes = run_steps(tmp_path, step("long", code, limit=90.0), seconds=gpu.CLOSING + 2)
    assert time.monotonic() - begin < gpu.CLOSING + 3
    assert outcomes["long"].status == KILLED


def test_steps_that_run_at_once_keep_their_output_apart(tmp_path: Path) -> None:
    def meets(me: str, other: str) -> str:
        return f"""
            import pathlib, time
            folder = pathlib.Path({str(tmp_path)!r})
            (folder / "{me}").touch()
            while not (folder / "{other}").exists():
                time.sleep(0.01)
            print("{me} has met {other}")
        """

    first, second = (step(a, meets(a, b), beside="pair", log="gpu-tests.txt") for a, b in ("ab", "ba"))
    outcomes = run_steps(tmp_path, first, second)
    assert outcomes["a"].note == "a has met b"
    assert outcomes["b"].note == "b has met a"
    log = (tmp_path / "gpu-tests.txt").read_text()
    assert "== stage 3, a\na has met b\n" in log
    assert "== stage 3, b\nb has met a\n" in log
    assert not (tmp_path / "parts").exists()


def test_without_a_build_nothing_else_is_tried(tmp_path: Path) -> None:
    outcomes = run_steps(
        tmp_path, step("build", "raise SystemExit('nvcc is missing')", stage=1), step("fills", "1/0")
    )
    assert outcomes["build"].note == "nvcc is missing"
    assert (outcomes["fills"].status, outcomes["fills"].note) == (LEFT_OUT, "there is no build")


def test_the_rows_of_a_step_are_counted_and_those_that_are_missing_named(tmp_path: Path) -> None:
    (tmp_path / "gpu.jsonl").write_text('{"name": "earlier"}\n')
    code = """
        import sys
        open(sys.argv[1], "a").write('{"name": "one"}\\n{"name": "two"}\\n')
        print("fill/uniform[device=cuda,dtype=bf16] is left out: no time is left for it")
        print("fill/normal[device=cuda,dtype=fp32] failed: RuntimeError: misaligned address")
        print("the end")
        sys.exit(1)
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    outcomes = run_steps(
        tmp_path, Step(3, "rows", (sys.executable, str(script), "{json}", "--append"), 0, 20)
    )
    assert outcomes["rows"].status == FAILED
    missing = "fill/uniform[device=cuda,dtype=bf16], fill/normal[device=cuda,dtype=fp32]"
    assert outcomes["rows"].note == f"2 rows, without {missing}; the end"


def test_stages_can_be_chosen_and_an_unknown_one_is_refused() -> None:
    steps = gpu.steps()
    assert {s.stage for s in gpu.chosen_steps("", steps)} == {1, 2, 3, 4}
    assert {s.stage for s in gpu.chosen_steps("3", steps)} == {3}
    assert {s.stage for s in gpu.chosen_steps("2, 4", steps)} == {2, 4}
    for only in ("5", "x"):
        with pytest.raises(Exception, match="expected stages among 1, 2, 3, 4, got"):
            gpu.chosen_steps(only, steps)


# ----------------------------------------------------------------------------------------
# The list of steps
# ----------------------------------------------------------------------------------------


def test_stages_come_in_order_and_what_they_need_fits_into_the_time() -> None:
    steps = gpu.steps()
    assert [s.stage for s in steps] == sorted(s.stage for s in steps)
    assert all(s.need <= s.limit for s in steps)
    assert len({s.name for s in steps}) == len(steps)
    needed = sum(max(s.need for s in wave) for wave in gpu.waves(steps))
    assert needed + gpu.CLOSING < 480
    files = {s.log for s in steps} | {"gpu.jsonl", "gpu-steps.jsonl", "gpu-table.txt"}
    assert len(files) <= 8  # the number of files that a machine may send back
    # A step that is timed runs alone.
    for wave in gpu.waves(steps):
        assert len(wave) == 1 or not any("benchmarks" in s.command or "ncu" in s.command for s in wave)


def test_every_gpu_test_is_run_by_exactly_one_step(tmp_path: Path) -> None:
    def collected(*arguments: str) -> set[str]:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout[-1000:]
        return {line for line in done.stdout.splitlines() if "::" in line}

    everything = collected("-m", "gpu", "tests")
    by_step = []
    for gpu_step in gpu.steps():
        words = gpu_step.command
        if words[:3] == (sys.executable, "-m", "pytest"):
            marks = words[3:].index("-m") + 3
            files = [word for word in words[marks:] if word.startswith("tests/")]
            by_step.append(collected("-m", words[marks + 1], *files))
    assert len(by_step) == 4
    assert set.union(*by_step) == everything
    assert sum(map(len, by_step)) == len(everything)


def test_the_benchmarks_accept_the_commands_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    case_names = []
    monkeypatch.setattr(machine, "available_memory", lambda _: 50 << 30)
    for gpu_step in gpu.steps():
        if "--append" not in gpu_step.command:
            continue
        words = [w.format(seconds="50", json="unused", earlier="") for w in gpu_step.command[3:]]
        # Without a GPU, the missing GPU is the only error of these commands.
        outcome = CliRunner().invoke(app, words)
        assert outcome.exit_code == 2
        assert "expected a GPU for --device cuda, got none that torch can use" in re.sub(
            r"[\s│╭╮╰╯─]+", " ", outcome.output
        )
        options = dict(pairwise(words))
        dtypes = tuple(options["--dtype"].split(",")) if "--dtype" in options else ()
        chosen = cases.Options(CUDA, dtypes=dtypes, say=lambda _: None)
        names = [case.name for group in options["--group"].split(",") for case in cases.GROUPS[group](chosen)]
        texts = options.get("--filter", "").split(",")
        case_names += [name for name in names if any(text in name for text in texts)]
    for name in (
        "fill/uniform[device=cuda,dtype=fp32,numel=2^30]",
        "fill/normal[device=cuda,dtype=bf16,numel=2^30]",
        "fill/normal[device=cuda,dtype=fp64,numel=2^30]",
        "orthogonal/square[device=cuda,dtype=fp32,shape=8192x8192]",
        "sparse/square[device=cuda,dtype=fp32,shape=8192x8192,sparsity=0.1]",
        "many/normal[device=cuda,dtype=fp32,shape=64x64]",
        "small/normal[device=cuda,dtype=fp32,shape=64x64]",
        "scaling/normal[device=cuda,dtype=bf16,numel=2^34]",  # past 2^32 elements
    ):
        assert name in case_names
    assert any(name.startswith("model/llama_8b[device=cuda,dtype=fp32") for name in case_names)


def test_a_profiler_leaves_the_clocks_as_they_are() -> None:
    for gpu_step in gpu.steps():
        if "ncu" in gpu_step.command:
            assert gpu_step.command[gpu_step.command.index("--clock-control") + 1] == "none"
            assert gpu_step.command[-1] == gpu.PROFILED


# ----------------------------------------------------------------------------------------
# The table
# ----------------------------------------------------------------------------------------


def record(number: int) -> dict[str, Any]:
    row = rows.Row(
        f"fill/normal[device=cuda,dtype=fp32,numel={number}]",
        1 << 30,
        1 << 32,
        {"fill": 1.42e-3, "stock": 2.3e-3, "ours": 1.5e-3, "Triton": 3e-3},
        {},
        {},
        {"ceiling_store16_gb_s": 3050.0, "ceiling_fill_gb_s": 3000.0, "rate_lop3_g_s": 16000.0},
    )
    read: dict[str, Any] = json.loads(rows.line(row))
    return read


def test_the_table_says_everything_in_sixty_lines() -> None:
    outcomes = [Outcome(s.stage, s.name, 12.3, PASSED, "4 passed in 3 s" + "!" * 100) for s in gpu.steps()]
    outcomes[4] = Outcome(3, "matrices 8192x8192", 90.0, KILLED, "over its limit of 90 s; last: x")
    records = [record(n) for n in range(100)]
    text = gpu.closing(outcomes, [*records, record(3)], 471.0)
    lines = text.splitlines()
    assert len(lines) == gpu.TABLE_LINES
    assert max(map(len, lines)) <= 140
    assert all(
        any(line.split()[:1] == [str(s.stage)] and s.name in line for line in lines) for s in gpu.steps()
    )
    assert "ceilings, GB/s: store16 3050, fill 3000, rate_lop3_g_s 16000" in lines
    (row,) = (line for line in lines if "numel=3]" in line or "fp32,3]" in line)
    # 4.29 GB in 1.5 ms; 2863 of 3050 GB/s
    assert row.split() == ["fill/normal[fp32,3]", "1.5", "2863", "1.53", "93.9%", "Triton", "2.00"]
    assert re.fullmatch(r"and \d+ rows more in gpu.jsonl", lines[-2])
    assert lines[-1] == "471 s, 100 rows; not passed: matrices 8192x8192"
    assert gpu.closing([], [], 1.0).splitlines()[-1] == "1 s, 0 rows; all passed"


def test_the_last_words_are_those_inside_a_frame() -> None:
    output = "Usage: x\n╭─ Error ───╮\n│ Invalid value: expected a GPU │\n╰────────────╯\n\n"
    assert gpu.last_words(output) == "Invalid value: expected a GPU"
    assert gpu.last_words("===== 3 passed in 2.1s =====\n") == "3 passed in 2.1s"
    assert gpu.last_words("\n \n") == "it said nothing"


def test_the_command_ends_with_the_table_and_fails_where_a_step_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    steps = (step("one", "print('fine')", stage=1), step("two", "raise SystemExit('bad')", stage=2))
    monkeypatch.setattr(gpu, "steps", lambda: steps)
    command = typer.Typer()
    command.command()(gpu.main)
    (tmp_path / "gpu-old.txt").write_text("of another run")
    outcome = CliRunner().invoke(command, ["--out", str(tmp_path), "--seconds", "60"])
    assert outcome.exit_code == 1
    assert outcome.output.splitlines()[-1].endswith("not passed: two")
    assert (tmp_path / "gpu-table.txt").read_text() in outcome.output + "\n"
    assert not (tmp_path / "gpu-old.txt").exists()
    # A run of one stage keeps the existing files.
    outcome = CliRunner().invoke(command, ["--out", str(tmp_path), "--seconds", "60", "--only", "1"])
    assert outcome.exit_code == 0, outcome.output
    assert len((tmp_path / "gpu-steps.jsonl").read_text().splitlines()) == 3


# ----------------------------------------------------------------------------------------
# The build
# ----------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "paraminit_ext").mkdir()
    return tmp_path


def put_binary(folder: Path, **facts: str) -> None:
    (folder / "paraminit_ext").mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name} = {value!r}\n" for name, value in facts.items())
    (folder / "paraminit_ext" / "_build_info.py").write_text(text)
    (folder / "paraminit_ext" / f"_C{gpu_build.SUFFIX}").write_text("a binary")


FACTS = {"TORCH_VERSION": "2.11.0+cu130", "ARCH": "9.0", "SOURCES": "0123"}


@pytest.mark.parametrize("name", FACTS)
def test_a_binary_fits_only_if_all_its_facts_do(name: str, package: Path) -> None:
    assert gpu_build.misfit(package, FACTS) == "there is none for this Python"
    put_binary(package, **FACTS, COMPILER="any")
    assert gpu_build.misfit(package, FACTS) == ""
    put_binary(package, **{**FACTS, name: "other"})
    assert gpu_build.misfit(package, FACTS) == f"its {name} is 'other', not {FACTS[name]!r}"


def test_a_binary_that_was_carried_along_is_used_where_it_fits(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carried = package / "build" / "gpu"
    monkeypatch.setattr(gpu_build, "wanted", lambda _: FACTS)
    monkeypatch.setattr(gpu_build, "imports", lambda root: (root / "paraminit_ext/_build_info.py").exists())
    monkeypatch.setattr(gpu_build, "compile_in_place", lambda _: 7)

    def said() -> str:
        return capsys.readouterr().out.splitlines()[-1]

    assert gpu_build.main(package, carried) == 7
    assert said() == "the binary in gpu is not used: there is none for this Python"
    put_binary(carried, **{**FACTS, "ARCH": "8.0"})
    assert gpu_build.main(package, carried) == 7
    assert said() == "the binary in gpu is not used: its ARCH is '8.0', not '9.0'"
    put_binary(carried, **FACTS)
    assert gpu_build.main(package, carried) == 0
    assert said() == "the binary carried along fits"
    assert gpu_build.main(package, package / "nowhere") == 0
    assert said() == "the binary in place fits"
    monkeypatch.setattr(gpu_build, "imports", lambda _: False)
    assert gpu_build.main(package, carried) == 7
    assert said() == "the binary in gpu is not used: it cannot be imported"


def test_a_setuptools_that_is_too_old_gives_way_to_one_that_was_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "here")
    assert gpu_build.environment(tmp_path)["PYTHONPATH"] == "here"
    (tmp_path / "site").mkdir()
    assert gpu_build.environment(tmp_path)["PYTHONPATH"] == "here"
    monkeypatch.setattr("importlib.metadata.version", lambda _: "70.2.0")
    variables = gpu_build.environment(tmp_path)
    assert variables["PYTHONPATH"] == f"{tmp_path / 'site'}{os.pathsep}here"
    assert variables["FORCE_CUDA"] == "1"
    assert variables["TORCH_CUDA_ARCH_LIST"] == os.environ.get("TORCH_CUDA_ARCH_LIST", "native")


def test_the_facts_of_a_binary_are_those_of_its_build_and_of_the_sources(tmp_path: Path) -> None:
    misfit = gpu_build.misfit(ROOT, {"SOURCES": "another"})
    assert misfit.startswith(("its SOURCES is '", "there is none"))
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    for name in ("build_backend.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)
    (copy / "paraminit_ext").mkdir()
    (copy / "paraminit_ext" / "__init__.py").write_text('__version__ = "0"\n')

    def facts() -> Any:
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "facts"],
            cwd=copy,
            env={**os.environ, "PARAMINIT_CUDA": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    before = facts()
    assert before["TORCH_VERSION"] == torch.__version__
    (copy / "csrc" / "philox.h").write_text("// changed\n")
    after = facts()
    assert after.pop("SOURCES") != before.pop("SOURCES")
    assert after == before


# ----------------------------------------------------------------------------------------
# Loss of the GPU, and tests that require one
# ----------------------------------------------------------------------------------------

LOST = """
import torch
exec(compile(open({conftest!r}).read(), "conftest", "exec"))
torch.cuda.is_initialized = lambda: True
def synchronize():
    if lost: raise RuntimeError("CUDA error: an illegal memory access was encountered")
torch.cuda.synchronize = synchronize
lost = []
"""
LOSING = """
import time, pytest, conftest
def test_before(): pass
def test_fails_and_keeps_the_gpu(): assert False, "a wrong value"
def test_loses_the_gpu():
    conftest.lost.append(1)
    raise RuntimeError("an illegal memory access")
def test_after(): assert not conftest.lost
@pytest.mark.timeout(2, method="thread")
def test_hangs(): time.sleep(60)
def test_last(): assert not conftest.lost
"""


def test_a_test_that_loses_the_gpu_or_hangs_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(LOST.format(conftest=str(ROOT / "tests" / "conftest.py")))
    (tmp_path / "test_losing.py").write_text(LOSING)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n  gpu_alone\n")
    command = gpu.pytest("-rA", jobs=1)
    words = [word for word in command if word != "--require-gpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    passed = set(re.findall(r"PASSED test_losing\.py::(\w+)", done.stdout))
    assert passed == {"test_before", "test_after", "test_last"}, done.stdout
    failed = set(re.findall(r"FAILED test_losing\.py::(\w+)", done.stdout))
    assert failed == {"test_fails_and_keeps_the_gpu", "test_loses_the_gpu", "test_hangs"}
    assert "an illegal memory access" in done.stdout


def test_gpu_tests_that_are_required_fail_without_one() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "first", "--require-gpu", "tests/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert done.returncode == 4
    assert "expected an NVIDIA GPU and a build with CUDA kernels (make gpu), got none" in done.stderr


# ----------------------------------------------------------------------------------------
# Lines that need a GPU, on stand-ins
# ----------------------------------------------------------------------------------------


@pytest.fixture
def gpu_patch() -> Iterator[pytest.MonkeyPatch]:
    """Install the stand-in for a GPU, and yield its monkeypatch for further changes."""
    with pytest.MonkeyPatch.context() as patch, stand_in(patch):
        yield patch


def test_the_gpu_tests_run_on_stand_ins() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--stand-in", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *gpu.GPU_TESTS], cwd=ROOT, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 700
    # A test is skipped only if it needs the behaviour of a GPU, a second GPU, or more memory.
    skipped = re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", done.stdout, re.MULTILINE)
    assert set(skipped) <= {
        "tests behaviour that only a GPU has",
        "needs two GPUs",
        "needs the memory of one tensor of 2^32 elements on the GPU",
    }


STORES = """
#include <stdint.h>
#include <string.h>
int ceiling_store(void* out, int64_t bytes, int streaming, void* stream) {
  memset(out, 1 + streaming, bytes);
  return 0;
}
int ceiling_memset(void* out, int64_t bytes, void* stream) { return memset(out, 0, bytes) == 0; }
int ceiling_issue(int kind, int rounds, void* sink, int64_t* instructions, void* stream) {
  *instructions = rounds * (kind == 2 ? 2 : 1);
  return fails;
}
"""


def host_library(folder: Path, fails: int = 0) -> Path:
    """Compile stand-ins for the functions of ceilings.cu for the host."""
    source = folder / f"stores{fails}.c"
    source.write_text(STORES.replace("fails", str(fails)))
    library = source.with_suffix(".so")
    compiler = os.environ.get("CC", "cc").split()
    subprocess.run([*compiler, "-shared", "-fPIC", "-w", "-o", library, source], check=True)
    return library


def test_a_run_of_the_benchmarks_on_a_stand_in(gpu_patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu_patch.setattr(timing, "ROUND_SECONDS", 1e-4)
    gpu_patch.setattr(ceilings, "MATRIX_SIZE", 64)
    gpu_patch.setattr(ceilings, "build", lambda *_: host_library(tmp_path))
    path = tmp_path / "gpu.jsonl"
    words = ["--device", "cuda", "--numel", "12", "--rounds", "1", "--json", str(path)]
    first = CliRunner().invoke(app, [*words, "--group", "fill,small,many,sparse,model", "--no-peers"])
    assert first.exit_code == 0, first.output
    found = rows.read(path)
    assert {row.group for row in found} == {"fill", "small", "many", "sparse", "model"}
    for row in found:
        assert row.parameters["device"] == "cuda"
        assert "threads" not in row.parameters
        assert row.facts["machine"] == "a stand-in"
        assert row.share_of_ceiling
        assert {"rate_imad_wide_g_s", "rate_lop3_g_s", "rate_both_g_s", "rate_matmul_fp32_tflop_s"} <= set(
            row.facts
        )
    # --append adds rows to the file, but none when the time is over.
    again = CliRunner().invoke(app, [*words, "--group", "orthogonal", "--append"])
    assert again.exit_code == 0, again.output
    assert len(rows.read(path)) > len(found)
    late = CliRunner().invoke(app, [*words, "--group", "many", "--append", "--seconds", "0"])
    assert late.exit_code == 0
    assert late.output.count("is left out: no time is left for it") == 4
    compared = CliRunner().invoke(app, ["compare", str(path), str(path)])
    assert compared.exit_code == 0
    assert "of the store ceiling, before" in compared.output


def test_a_row_that_fails_hides_no_other_and_fails_the_run(
    gpu_patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(recipe: models.Recipe, tensor: torch.Tensor) -> Any:
        if recipe.function == "normal_":
            raise RuntimeError("CUDA error: misaligned address\nand more")
        if recipe.function == "trunc_normal_":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return before(recipe, tensor)

    before = cases.three_ways
    gpu_patch.setattr(cases, "three_ways", fails)
    gpu_patch.setattr(ceilings, "measure", lambda *_: {"ceiling_fill_gb_s": 1.0})
    path = tmp_path / "gpu.jsonl"
    words = ["--device", "cuda", "--numel", "12", "--rounds", "1", "--group", "fill", "--dtype", "fp32"]
    outcome = CliRunner().invoke(app, [*words, "--no-peers", "--json", str(path)])
    assert outcome.exit_code == 1
    name = "fill/normal[device=cuda,dtype=fp32,numel=2^12]"
    assert f"{name} failed: RuntimeError: CUDA error: misaligned address\n" in outcome.output
    assert outcome.output.count("is left out: out of memory") == 3
    assert [row.case for row in rows.read(path)] == ["uniform", "xavier_uniform", "kaiming_normal"]


def test_ceilings_without_a_compiler_are_torchs_own_and_errors_of_launches_are_raised(
    gpu_patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu_patch.setattr(timing, "ROUND_SECONDS", 1e-4)
    gpu_patch.setattr(ceilings, "MATRIX_SIZE", 64)
    gpu_patch.setattr(ceilings, "nvcc", lambda: (_ for _ in ()).throw(ceilings.CeilingsError("no nvcc")))
    gpu_patch.setattr(ceilings, "BUILT", tmp_path)
    messages: list[str] = []
    found = ceilings.measure(CUDA, 1 << 12, 1, messages.append)
    assert messages == ["no nvcc"]
    assert found.keys() == {"ceiling_fill_gb_s", "ceiling_zero_gb_s", "rate_matmul_fp32_tflop_s"}
    gpu_patch.setattr(ceilings, "build", lambda *_: host_library(tmp_path, fails=700))
    with pytest.raises(RuntimeError, match="got error 700"):
        ceilings.measure(CUDA, 1 << 12, 1, messages.append)


def test_every_contender_on_a_gpu_is_warm_before_its_repeats_are_counted(
    gpu_patch: pytest.MonkeyPatch,
) -> None:
    clock = [1.0]
    gpu_patch.setattr(time, "perf_counter", lambda: clock[0])
    calls: dict[str, int] = {"first": 0, "second": 0}

    def call(name: str) -> None:
        calls[name] += 1
        clock[0] += 2**-4 if calls[name] == 1 else 2**-10  # the first call loads the kernels

    timed = timing.time_in_turns({name: partial(call, name) for name in calls}, CUDA, rounds=1)
    assert timed["second"].median == 2**-10
    # Both are repeated equally often: for ROUND_SECONDS, after the calls that warm them.
    assert calls == {"first": 3 + 11, "second": 2 + 11}


def test_no_process_takes_more_of_a_gpu_than_its_share(gpu_patch: pytest.MonkeyPatch) -> None:
    gpu_patch.setattr(torch.cuda, "mem_get_info", lambda _: (60 << 30, 80 << 30))
    assert machine.available_memory(CUDA) == pytest.approx((56 << 30) - (20 << 30), abs=1)
    options = cases.Options(CUDA, dtypes=("bf16",), say=lambda _: None)
    gpu_patch.setattr(torch.cuda, "mem_get_info", lambda _: (79 << 30, 79 << 30))
    sizes = [case.bytes for case in cases.scaling_cases(options)]
    assert 2**33 < max(sizes) / 2 <= 0.35 * (79 << 30)


def test_events_must_be_able_to_tell_the_time() -> None:
    begin, end = Event(), Event(enable_timing=True)
    begin.record()
    end.record()
    with pytest.raises(ValueError, match="enable_timing"):
        begin.elapsed_time(end)


# --- peers ---------------------------------------------------------------------------------


class OnGpu(torch.Tensor):
    """A tensor that claims to be on a GPU."""

    is_cuda = True
    device = CUDA


def gpu_tensor(numel: int = 1000, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((numel,), float("nan"), dtype=dtype).as_subclass(OnGpu)


def fake_cupy() -> types.ModuleType:
    """Return a stand-in for CuPy, with its signatures. Without a size, its generators draw one number."""
    import numpy as np

    class Generator:
        def __init__(self, _: object) -> None:
            self.numpy = np.random.default_rng(0)

        def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
            out[...] = self.numpy.random(size=size, dtype=dtype)
            return out

        def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
            out[...] = self.numpy.standard_normal(size=size, dtype=dtype)
            return out

    class ExternalStream:
        def __init__(self, pointer: int) -> None:
            assert pointer == 0

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    cupy: Any = types.ModuleType("cupy")
    cupy.random = types.SimpleNamespace(Generator=Generator, Philox4x3210=lambda seed: seed)
    cupy.cuda = types.SimpleNamespace(ExternalStream=ExternalStream)
    cupy.from_dlpack = lambda tensor: tensor.as_subclass(torch.Tensor).numpy()
    return cupy  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", ["uniform", "normal"])
def test_cupy_draws_a_number_for_each_element(case: str, gpu_patch: pytest.MonkeyPatch) -> None:
    gpu_patch.setitem(sys.modules, "cupy", fake_cupy())
    tensor = gpu_tensor()
    call = peers.cupy_generator(cases.FILLS[case], tensor)
    assert call is not None
    call()
    assert len(tensor.as_subclass(torch.Tensor).unique()) > 990
    assert peers.cupy_generator(cases.FILLS[case], gpu_tensor(dtype=torch.bfloat16)) is None
    assert peers.cupy_generator(cases.FILLS["trunc_normal"], tensor) is None


def test_triton_is_called_only_for_fills_that_it_has(gpu_patch: pytest.MonkeyPatch) -> None:
    calls = []

    def factory(name: str) -> Any:
        return lambda _, *arguments: lambda: calls.append((name, arguments))

    kernels = types.SimpleNamespace(uniform=factory("uniform"), normal=factory("normal"))
    gpu_patch.setitem(sys.modules, "benchmarks.triton_kernels", kernels)
    for case in ("uniform", "normal"):
        call = peers.triton_random(cases.FILLS[case], gpu_tensor())
        assert call is not None
        call()
    assert calls == [("uniform", (-1.0, 1.0)), ("normal", (0.0, 0.02))]
    assert peers.triton_random(cases.FILLS["normal"], gpu_tensor(dtype=torch.float64)) is None
    assert peers.triton_random(cases.FILLS["trunc_normal"], gpu_tensor()) is None


def test_jax_times_itself_on_a_gpu(gpu_patch: pytest.MonkeyPatch) -> None:
    class Compiled:
        def __init__(self, draw: Any) -> None:
            self.draw = draw

        def lower(self, key: Any) -> Compiled:
            self.draw(key)
            return self

        def compile(self) -> Any:
            return lambda key: types.SimpleNamespace(block_until_ready=lambda: self.draw(key))

    drawn: list[tuple[Any, ...]] = []
    jax: Any = types.ModuleType("jax")
    jax.random = types.SimpleNamespace(
        key=lambda seed: seed,
        uniform=lambda *a: drawn.append(("uniform", *a)),
        normal=lambda *a: drawn.append(("normal", *a)),
        truncated_normal=lambda *a: drawn.append(("truncated", *a)),
    )
    places: list[str] = []

    @contextmanager
    def default_device(place: str) -> Iterator[None]:
        places.append(place)
        yield

    jax.devices = lambda kind: [kind]
    jax.default_device = default_device
    jax.enable_x64 = lambda _: nullcontext()
    jax.jit = Compiled
    gpu_patch.setitem(sys.modules, "jax", jax)
    for case, dtype in (
        ("uniform", torch.float32),
        ("normal", torch.float64),
        ("trunc_normal", torch.float16),
    ):
        call = peers.jax_random(cases.FILLS[case], gpu_tensor(10, dtype))
        assert isinstance(call, timing.SelfTimed)
        assert call() >= 0
    assert set(places) == {"gpu"}
    assert [name for name, *_ in drawn] == ["uniform"] * 2 + ["normal"] * 2 + ["truncated"] * 2
    assert drawn[-1] == ("truncated", 0, -2.0, 2.0, (10,), "float16")
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_a_peer_that_fails_at_its_call_is_left_out_of_the_row(gpu_patch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("unsupported annotation\nfor out")

    messages: list[str] = []
    broken = peers.Peer("Broken", "", lambda *_: fail)
    options = cases.Options(CUDA, peers=(broken,), say=messages.append)
    calls = cases.with_peers(options, cases.FILLS["normal"], torch.empty(10))
    assert list(calls) == ["fill", "stock", "ours"]
    assert messages == ["Broken is left out of a row: ValueError: unsupported annotation"]


def test_the_peers_of_a_gpu_are_those_that_have_one() -> None:
    assert [peer.name for peer in peers.peers(CUDA)] == [
        "torch.compile",
        "torch.func._random",
        "JAX",
        "CuPy",
        "Triton",
    ]


def test_the_profiled_program_runs_on_a_stand_in(
    gpu_patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = gpu.PROFILED.replace("1 << 28", "1 << 12")
    assert small != gpu.PROFILED
    exec(small, {})
    assert capsys.readouterr().out == "profiled\n"


def test_the_functions_of_the_ceilings_take_what_their_stand_ins_take() -> None:
    source = (ROOT / "benchmarks" / "ceilings.cu").read_text()
    for name in ("ceiling_store", "ceiling_memset", "ceiling_issue"):
        actual = re.search(rf"int {name}\((.*?)\)", source, re.DOTALL)
        assert actual is not None
        stand_in_match = re.search(rf"int {name}\((.*?)\)", STORES, re.DOTALL)
        assert stand_in_match is not None
        assert re.sub(r"\s+", " ", actual[1]) == stand_in_match[1]


def test_facts_without_git_take_the_commit_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PARAMINIT_COMMIT", "0123abc")
    assert machine.commit() == "0123abc"
    monkeypatch.delenv("PARAMINIT_COMMIT")
    assert machine.commit() == ""


def test_memory_of_the_stand_in_has_room_for_2_to_the_32_elements_of_16_bits() -> None:
    assert 0.7 * MEMORY > 2**33 + (1 << 28)
