"""Errors of a build that cannot start, symbols of the binaries, contents of the source distribution."""

from __future__ import annotations

import importlib
import json
import re
import site
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import pytest
import setuptools

from paraminit_ext import _C

ROOT = Path(__file__).resolve().parents[1]


def setup(before: str, *arguments: str) -> Any:
    """Run setup.py in its own process, after the given lines of Python."""
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
            "import build_backend; build_backend.find_torch = lambda: False",
            "run `pip install -U torch` first",
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


HOOKS = ("wheel", "editable", "sdist")
# A program with the import path of an isolated build: setuptools, but no other installed package.
ISOLATED = """
import importlib.metadata, os, sys
import setuptools
hidden = {os.path.realpath(folder) for folder in sys.path if folder.endswith("site-packages")}
sys.path = [folder for folder in sys.path if os.path.realpath(folder) not in hidden]
sys.path += [%r, %r]
import build_backend
"""


QUERY = f"""
import importlib.util, json
requirements = [getattr(build_backend, "get_requires_for_build_" + hook)() for hook in {HOOKS}]
print(json.dumps([requirements, importlib.util.find_spec("torch") is not None]))
"""


def required(tmp_path: Path, before: str = "") -> tuple[list[list[str]], bool]:
    """Return what each hook requires in an isolated build, and whether torch is then importable."""
    packages = tmp_path / "only setuptools"
    packages.mkdir()
    (packages / "setuptools").symlink_to(Path(setuptools.__file__).parent)
    program = ISOLATED % (str(packages), str(ROOT)) + before
    program += QUERY
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    requirements, importable = json.loads(done.stdout)
    return requirements, importable


def test_an_isolated_build_takes_the_torch_of_its_environment(tmp_path: Path) -> None:
    assert required(tmp_path) == ([[], [], []], True)


def fake_torch(folder: Path, version: str) -> str:
    """Write the metadata of a torch; return the line that makes its folder the environment's only one."""
    info = folder / f"torch-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return f"build_backend.environment_folders = lambda: [{str(folder)!r}]"


# 2.13.0: metadata alone, which an uninstallation may leave behind.
@pytest.mark.parametrize("version", ["2.10.1", "2.13.0"])
def test_an_isolated_build_without_a_torch_that_serves_asks_for_one(tmp_path: Path, version: str) -> None:
    before = fake_torch(tmp_path / "site", version)
    assert required(tmp_path, before) == ([["torch>=2.11"]] * 3, False)


def test_a_build_among_packages_with_an_old_torch_asks_for_another(tmp_path: Path) -> None:
    fake_torch(tmp_path / "site", "2.10.1")
    (tmp_path / "site" / "torch").mkdir()
    (tmp_path / "site" / "torch" / "__init__.py").touch()
    before = f"sys.path.insert(0, {str(tmp_path / 'site')!r})"
    assert required(tmp_path, before) == ([["torch>=2.11"]] * 3, True)
    refused = setup(before, "bdist_wheel")
    assert refused.stderr.splitlines() == [
        "paraminit_ext: expected torch 2.11 or later, got 2.10.1; run `pip install -U torch` first"
    ]


def test_an_isolated_build_without_any_torch_asks_for_one(tmp_path: Path) -> None:
    before = "build_backend.environment_folders = lambda: []"
    assert required(tmp_path, before) == ([["torch>=2.11"]] * 3, False)


def test_an_isolated_build_finds_an_editable_torch(tmp_path: Path) -> None:
    before = fake_torch(tmp_path / "site", "2.13.0")
    (tmp_path / "source" / "torch").mkdir(parents=True)
    (tmp_path / "source" / "torch" / "__init__.py").touch()
    (tmp_path / "site" / "torch.pth").write_text(f"{tmp_path / 'source'}\n")
    assert required(tmp_path, before) == ([[], [], []], True)


@pytest.mark.parametrize(
    ("prefix", "sees_system", "sees_user"),
    [("base", True, True), ("venv", True, True), ("venv", False, False)],
)
def test_a_build_looks_where_the_environment_does(
    prefix: str, sees_system: bool, sees_user: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    build_backend = importlib.import_module("build_backend")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / prefix))

    def packages(of: str) -> str:
        return sysconfig.get_path("purelib", vars={"base": of, "platbase": of})

    folders = list(
        dict.fromkeys([packages(sys.prefix), *([packages(sys.base_prefix)] if sees_system else [])])
    )
    monkeypatch.setattr(site, "getsitepackages", lambda: list(folders))
    assert build_backend.environment_folders() == folders + [site.getusersitepackages()] * sees_user


def undefined_symbols(library: Path) -> list[str]:
    """Return the demangled names of the symbols that a library imports."""
    done = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", library], capture_output=True, text=True, check=True
    )
    return [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]


def unstable_symbols(names: list[str]) -> list[str]:
    """Return the symbols that a torch release may change: all except the C functions of its stable ABI."""
    stable = re.compile(r"(aoti_)?torch_\w+$")
    of_torch = re.compile(r"TH|.*\b(at|c10|torch|caffe2)(::|_)")
    return [name for name in names if of_torch.match(name) and not stable.match(name)]


def test_the_binaries_import_no_symbol_that_a_torch_release_may_change() -> None:
    libraries = [Path(_C.__file__), *Path(_C.__file__).parent.glob("_cuda*.so")]
    for library in libraries:
        names = undefined_symbols(library)
        assert "torch_call_dispatcher" in names, library
        assert unstable_symbols(names) == [], library


def test_an_unstable_symbol_is_noticed() -> None:
    names = ["at::_ops::mm::call(at::Tensor const&)", "THPVariable_Wrap", "torch_call_dispatcher", "memcpy"]
    assert unstable_symbols(names) == names[:2]


def test_the_source_distribution_holds_every_file_that_is_tracked(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    done = setup("", "-q", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        archived = {name.partition("/")[2] for name in file.getnames()}
    # Files that only the repository needs.
    left_out = {name for name in listed.stdout.split() if name.startswith(".") and name != ".clang-format"}
    assert set(listed.stdout.split()) - left_out - archived == set()
