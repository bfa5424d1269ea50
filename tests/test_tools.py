"""The checks that `make sanitize` and `make matrix` run: what they compare and what they report."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # tools are not installed
pytest.importorskip("typer", reason="needs requirements/bench.txt")

from benchmarks.compiler import ToolError, output  # noqa: E402
from tools import matrix, rows, sanitize  # noqa: E402
from tools.driver import SOURCES, checksums, disagreements  # noqa: E402

PRINTED = "avx2;normal, dense;fp32;00ff\nbaseline;normal, dense;fp32;00ff\nbaseline;normal, dense;bf16;01\n"


def test_instruction_sets_and_machines_that_disagree_are_named() -> None:
    assert checksums(PRINTED)["normal, dense;fp32"] == {"avx2": "00ff", "baseline": "00ff"}
    assert disagreements(PRINTED) == []
    assert disagreements(PRINTED.replace("avx2;normal, dense;fp32;00ff", "avx2;normal, dense;fp32;00fe")) == [
        "normal, dense;fp32"
    ]
    assert disagreements(PRINTED, PRINTED.replace(";01\n", ";02\n")) == ["normal, dense;bf16"]


def test_the_driver_is_built_from_every_file_of_the_cpu() -> None:
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc/cpu").glob("*.cpp")}
    assert sources <= set(SOURCES)


def test_every_fault_that_a_tool_is_shown_is_one_that_the_driver_commits() -> None:
    source = Path(sanitize.__file__).read_text()
    shown = set(re.findall(r'fault_found\((?:\[driver\]|command), "(\w+)"', source))
    committed = set(re.findall(r'fault == "(\w+)"', (ROOT / "tools/driver/driver.cpp").read_text()))
    assert shown == committed


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["no-such-tool"], "expected to run no-such-tool, got"),
        ([sys.executable, "-c", "raise SystemExit('first\\nan error: x')"], "status 1: an error: x"),
    ],
)
def test_a_tool_that_fails_gives_a_one_line_error(command: list[str | Path], says: str) -> None:
    with pytest.raises(ToolError) as caught:
        output(command)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_that_cannot_be_run_says_why_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "ROWS", (matrix.Row("python 2.7", python="2.7"),))
    monkeypatch.setattr(matrix, "torch_of", lambda _: "")
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setenv("PYENV_ROOT", "/nowhere")
    result = matrix.one("python 2.7")
    assert result.verdict == "not run"
    assert result.ran == "no Python 2.7 is here"
    assert (
        rows.markdown("built with", [result]).splitlines()[-1]
        == "| python 2.7 |  | no Python 2.7 is here | not run |"
    )
