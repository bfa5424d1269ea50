"""What the build says where it cannot begin, and what the source distribution holds."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def setup(before: str, *arguments: str) -> Any:
    """Runs setup.py in a process of its own, after some lines of Python."""
    lines = [
        "import runpy, sys",
        before,
        f"sys.argv = ['setup.py', *{arguments!r}]",
        "runpy.run_path('setup.py')",
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.mark.parametrize(
    ("before", "remedy"),
    [
        (
            "sys.modules['torch'] = None",
            "install torch, ninja and pybind11, then run `pip install --no-build-isolation .`",
        ),
        ("import setuptools; setuptools.__version__ = '76.1.0'", '`pip install "setuptools>=77.0.3,<82"`'),
    ],
)
def test_a_build_that_lacks_what_it_needs_says_so_in_one_line(before: str, remedy: str) -> None:
    refused = setup(before, "bdist_wheel")
    assert refused.returncode != 0
    (line,) = refused.stderr.splitlines()
    assert line.startswith("paraminit_ext: ")
    assert line.endswith(remedy)
    assert not refused.stdout


def test_the_source_distribution_holds_every_file_that_is_tracked(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no checkout, whose files git lists")
    made = setup("", "-q", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path))
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    # What serves the repository alone.
    left_out = {name for name in listed.stdout.split() if name.startswith(".") and name != ".clang-format"}
    assert set(listed.stdout.split()) - left_out - held == set()
