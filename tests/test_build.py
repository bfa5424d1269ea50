"""What the build says where it cannot begin, and what the source distribution holds."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from paraminit_ext import _C

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
        ("sys.modules['torch'] = None", "install torch, then run `pip install --no-build-isolation .`"),
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


def undefined(library: Path) -> list[str]:
    """The names that a library looks for in others, in C++'s own words."""
    done = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", library], capture_output=True, text=True, check=True
    )
    return [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]


def of_one_torch(names: list[str]) -> list[str]:
    """Those that torch may change: all but the plain functions of its stable ABI."""
    stable = re.compile(r"(aoti_)?torch_\w+$")
    of_torch = re.compile(r"TH|.*\b(at|c10|torch|caffe2)(::|_)")
    return [name for name in names if of_torch.match(name) and not stable.match(name)]


def test_the_binaries_look_for_nothing_of_torch_that_may_change() -> None:
    libraries = [Path(_C.__file__), *Path(_C.__file__).parent.glob("_cuda*.so")]
    for library in libraries:
        names = undefined(library)
        assert "torch_call_dispatcher" in names, library
        assert of_one_torch(names) == [], library


def test_a_name_of_one_torch_would_be_seen() -> None:
    names = ["at::_ops::mm::call(at::Tensor const&)", "THPVariable_Wrap", "torch_call_dispatcher", "memcpy"]
    assert of_one_torch(names) == names[:2]


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
