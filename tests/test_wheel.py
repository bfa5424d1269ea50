"""The requirements of `make wheel` and `make wheel-trials`, and their reports if something is missing.

These tests build and install nothing; they pass in what a tool would have printed.
"""

from __future__ import annotations

import re
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # tools are not installed
typer = pytest.importorskip("typer", reason="needs requirements/bench.txt")

from benchmarks.compiler import ToolError  # noqa: E402
from tools import environments, rows, wheel  # noqa: E402

PROJECT = (ROOT / "pyproject.toml").read_text()


def ours(library: str) -> bool:
    """Return whether auditwheel would include a library in a wheel, by auditwheel's own test."""
    return not any(fnmatch(library, pattern) for pattern in wheel.EXCLUDED_LIBRARIES)


def library(name: str = "_C.so", **facts: Any) -> dict[str, Any]:
    """Return torch-abi-audit's report of one library, by default of a correct library."""
    right = {
        "uses_torch": True,
        "unstable_symbols": [],
        "unknown_shim_symbols": [],
        "min_torch_version": "2.10.0",
        "version_defining_symbols": ["torch_new"],
    }
    return {"path": f"/wheel/paraminit_ext/{name}", "error": facts.pop("error", None), "torch": right | facts}


def wheel_file(folder: Path, *names: str) -> Path:
    path = folder / "paraminit_ext-0.1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            "paraminit_ext-0.1.0.dist-info/METADATA", "Name: paraminit_ext\nRequires-Dist: torch>=2.11\n"
        )
        for name in names:
            file.writestr(name, "")
    return path


def finished(returncode: int = 0, stdout: str = "", stderr: str = "") -> SimpleNamespace:
    return SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr)


# What a wheel may hold


@pytest.mark.parametrize(
    "name",
    [
        "libtorch.so",
        "libtorch_cpu.so",
        "libtorch_cuda.so",
        "libc10.so",
        "libc10_cuda.so",
        "libcudart.so.13",
        "libcublas.so.13",
        "libcublasLt.so.13",
        "libcuda.so.1",
        "libgomp.so.1",
    ],
)
def test_a_library_that_torch_or_the_driver_brings_stays_out_of_a_wheel(name: str) -> None:
    assert not ours(name)


def test_a_library_that_nobody_else_brings_is_not_left_out_in_silence() -> None:
    # If left out, it would be missing at the first import. If included, `audit` refuses the wheel by name.
    assert all(map(ours, ("libomp.so.5", "libnuma.so.1", "libtbb.so.12", "libgfortran.so.5")))


def test_the_openmp_of_torchs_wheels_has_the_name_that_an_extension_asks_for() -> None:
    # torch's wheels once had a name with a hash. With such a name the loader would load a second OpenMP.
    bundled = [path.name for path in (Path(torch.__file__).parent / "lib").glob("libgomp*")]
    if not bundled:
        pytest.skip("needs a torch that brings libgomp")
    assert bundled == ["libgomp.so.1"]


def test_a_wheel_with_a_library_taken_in_is_refused(tmp_path: Path) -> None:
    file = wheel_file(tmp_path, "paraminit_ext/__init__.py", "paraminit_ext.libs/libgomp-24e2ab19.so.1.0.0")
    with pytest.raises(ToolError, match=r"got paraminit_ext\.libs/libgomp-24e2ab19\.so\.1\.0\.0"):
        wheel.audit(file)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"unstable_symbols": ["at::globalContext()", "x"]},
            "_C.so uses 2 symbols that torch may change, as at::",
        ),
        # The audit calls the next two stable, but the oldest torch that the wheel accepts lacks them.
        ({"min_torch_version": "2.12.0"}, "_C.so needs torch 2.12.0, and its wheel says 2.11.0: torch_new"),
        ({"unknown_shim_symbols": ["torch_newer"]}, "_C.so uses torch_newer, of a torch that"),
        ({"error": "'nm' not found"}, "could not read _C.so: 'nm' not found"),
        ({"uses_torch": False, "min_torch_version": None}, "expected a library that uses torch, got none"),
    ],
)
def test_a_wheel_that_does_not_serve_every_later_torch_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ToolError) as caught:
        wheel.audited({"extensions": [library(**wrong)], "bundled_libs": []}, (2, 11, 0))
    assert says in str(caught.value)


def test_every_library_of_a_wheel_is_looked_at_and_one_without_torch_is_no_fault() -> None:
    plain = library(uses_torch=False, min_torch_version=None)
    cuda = library("_cuda13.so", min_torch_version="2.11.0")
    report = {"extensions": [plain], "bundled_libs": [library("_ops.so"), cuda]}
    assert wheel.audited(report, (2, 11, 0)) == "stable ABI from torch 2.11.0 on"
    cuda["torch"]["unstable_symbols"] = ["c10::cuda::current_device()"]
    with pytest.raises(ToolError, match=r"_cuda13\.so uses 1 symbols"):
        wheel.audited(report, (2, 11, 0))


def test_versions_are_compared_as_numbers() -> None:
    report = {"extensions": [library(min_torch_version="2.9.0")], "bundled_libs": []}
    assert wheel.audited(report, (2, 11, 0)) == "stable ABI from torch 2.9.0 on"


def test_what_torch_abi_audit_does_not_see_of_torchs_python_binding_is_found() -> None:
    symbols = "PyErr_SetString\nTHPDtypeType\naoti_torch_empty_strided\n_ZN3THPEv\nTHPVariableClass\n"
    assert wheel.of_torchs_python(symbols) == ["THPDtypeType", "THPVariableClass"]


@pytest.mark.parametrize(
    ("line", "least"),
    [
        ("torch>=2.11", (2, 11, 0)),
        ("torch<2.16,>=2.11", (2, 11, 0)),
        ("torch (>=2.11.1)", (2, 11, 1)),
        ("torch-xla>=1.0\nRequires-Dist: torch>=2.11", (2, 11, 0)),
    ],
)
def test_the_oldest_torch_of_a_wheel_is_read_from_its_metadata(line: str, least: tuple[int, ...]) -> None:
    assert wheel.least_torch(f"Name: paraminit_ext\nRequires-Dist: {line}\n") == least


@pytest.mark.parametrize("line", ["torchvision>=0.3", "torch", "torch<3", "torch_other>=1.0"])
def test_a_wheel_that_names_no_oldest_torch_is_refused(line: str) -> None:
    with pytest.raises(ToolError, match="requires some torch and later, got none"):
        wheel.least_torch(f"Name: paraminit_ext\nRequires-Dist: {line}\n")


def test_an_untracked_file_that_would_be_published_is_named() -> None:
    held = ["setup.py", "PKG-INFO", "setup.cfg", "paraminit_ext.egg-info/SOURCES.txt", "csrc/notes.h"]
    assert wheel.untracked(held, ["setup.py", "README.md"]) == ["csrc/notes.h"]


def test_wheels_are_for_the_pythons_and_from_the_torch_that_the_package_names() -> None:
    assert list(wheel.PYTHONS) == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    oldest = re.search(r'dependencies = \["torch>=([\d.]+)', PROJECT)
    assert oldest is not None
    assert wheel.TORCH.startswith(f"{oldest.group(1)}.")


# What is in dist/


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([], 0),
        (["cp310-cp310-linux_x86_64", "cp313-cp313-linux_x86_64"], 0),
        (["cp311-cp311-linux_x86_64", "cp311-cp311-manylinux_2_28_x86_64"], 2),
    ],
)
def test_a_wheel_that_is_missing_or_not_the_only_one_is_not_guessed_at(
    names: list[str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "ROOT", tmp_path)
    for name in names:
        (tmp_path / f"paraminit_ext-0.1.0-{name}.whl").touch()
    with pytest.raises(ToolError, match=rf"one wheel for Python 3\.11 in \., got {count}: run make wheel"):
        wheel.wheel_for("3.11", tmp_path)


def test_a_wheel_of_an_earlier_run_is_not_left_where_this_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "DIST", tmp_path)

    def refuses(*_: Any) -> Path:
        raise ToolError("no environment")

    monkeypatch.setattr(wheel, "environment", refuses)
    other = tmp_path / "paraminit_ext-0.1.0-cp312-cp312-linux_x86_64.whl"
    for path in (other, wheel_file(tmp_path)):
        path.touch()
    with pytest.raises(ToolError, match="no environment"):
        wheel.make_wheel("3.11", wheel.TORCH, False, "auto")
    assert list(tmp_path.iterdir()) == [other]


# Trials


def test_a_row_can_be_asked_for_by_its_name_and_runs_tests_that_are_there() -> None:
    names = [trial.name for trial in wheel.TRIALS]
    assert len(set(names)) == len(names)
    assert not any("," in name for name in names)
    assert {trial.how for trial in wheel.TRIALS} == set(wheel.HOW)
    assert all((ROOT / "tests" / name).exists() for name in wheel.TESTS)


def test_an_environment_is_removed_after_the_last_row_that_uses_it_and_not_before() -> None:
    trials = wheel.TRIALS
    homes = [wheel.home(trial) for trial in trials]
    removed = [homes[index] for index in range(len(trials)) if wheel.last_use(trials, index)]
    assert sorted(removed) == sorted(set(homes))
    assert len(set(homes)) == len(homes) - 2  # the sdist and the upgrade reuse that of another row
    # A trial that runs alone removes its own environment.
    assert all(wheel.last_use([trial], 0) for trial in trials)


def test_a_newer_torch_comes_into_an_environment_after_the_row_of_the_older_one() -> None:
    names = [trial.name for trial in wheel.TRIALS]
    assert names.index("torch 2.13.0") < names.index("pip install timm")
    assert names.index("torch 2.11.0") < names.index("sdist")  # which uninstalls the wheel


def test_an_upgrade_that_upgrades_nothing_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "DIST", tmp_path)
    wheel_file(tmp_path)
    monkeypatch.setattr(wheel, "fresh", lambda _: Path("python"))
    monkeypatch.setattr(wheel, "run", lambda *_: finished())
    monkeypatch.setattr(wheel, "install", lambda *_: None)
    monkeypatch.setattr(wheel, "torch_of", lambda _: "2.13.0 3.11")
    trial = next(trial for trial in wheel.TRIALS if trial.how == "upgrade")
    result = rows.result_of(trial.name, lambda: wheel.try_upgrade(trial))
    assert result.verdict == "not run"
    assert result.ran == "timm left torch at 2.13.0, nothing newer was to be tried"


@pytest.mark.parametrize(
    ("printed", "right"),
    [("/a/libgomp.so.1\n", True), ("/a/libgomp.so.1 /b/libomp.so\n", False), ("\n", False)],
)
def test_a_process_with_a_second_openmp_is_a_fault(printed: str, right: bool) -> None:
    if right:
        wheel.one_pool(printed)
        return
    with pytest.raises(ToolError, match="expected one OpenMP library in a process, got"):
        wheel.one_pool(printed)


def test_a_package_from_elsewhere_than_the_wheel_is_refused(tmp_path: Path) -> None:
    for folder, text in (("sources", ""), ("broken", "raise ImportError('built for another torch')")):
        (tmp_path / folder / "paraminit_ext").mkdir(parents=True)
        (tmp_path / folder / "paraminit_ext" / "__init__.py").write_text(text)
    sources, broken, python = tmp_path / "sources", tmp_path / "broken", Path(sys.executable)
    environments.look_at_import(python, sources, tmp_path, {"PYTHONPATH": str(sources)})
    with pytest.raises(ToolError, match=r"got .*sources/paraminit_ext/__init__\.py"):
        environments.look_at_import(python, broken, tmp_path, {"PYTHONPATH": str(sources)})
    with pytest.raises(ToolError, match="got ImportError: built for another torch"):
        environments.look_at_import(python, broken, tmp_path, {"PYTHONPATH": str(broken)})


# Missing interpreters and torches


def test_a_python_that_is_not_here_is_no_fault_of_the_wheel_that_is_missing_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "DIST", tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setenv("PYENV_ROOT", "/nowhere")
    result = rows.result_of(
        "python 2.7", lambda: wheel.tried(wheel.Trial("python 2.7", python="2.7", how="beside"))
    )
    assert result.verdict == "not run"
    assert (
        rows.markdown("file", [result]).splitlines()[-1]
        == "| python 2.7 |  | no Python 2.7 is here | not run |"
    )


@pytest.mark.parametrize(
    ("pip_error", "constraint", "pip_config", "verdict", "ran"),
    [
        (
            "ERROR: Cannot install torch==2.15.0 because these versions have conflicting dependencies.",
            None,
            "global.cert='x'\nglobal.constraint='/etc/limits.txt'\n",
            "not run",
            "pip finds no torch 2.15.0 for Python 3.11; /etc/limits.txt may keep it away: "
            "run again with PIP_CONSTRAINT=/dev/null",
        ),
        (
            "ERROR: No matching distribution found for torch==2.15.0",
            "/dev/null",  # which overrides pip's file
            "global.constraint='/etc/limits.txt'\n",
            "not run",
            "pip finds no torch 2.15.0 for Python 3.11",
        ),
        (
            "WARNING: retrying\nERROR: [Errno 28] No space left on device",
            None,
            "global.constraint='/etc/limits.txt'\n",
            "failed",
            "pip could not install torch 2.15.0: ERROR: [Errno 28] No space left on device",
        ),
    ],
)
def test_a_torch_that_pip_does_not_find_names_the_remedy_and_other_faults_are_faults(
    pip_error: str,
    constraint: str | None,
    pip_config: str,
    verdict: str,
    ran: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half_made = tmp_path / "environment"
    half_made.mkdir()
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    if constraint is not None:
        monkeypatch.setenv("PIP_CONSTRAINT", constraint)
    monkeypatch.setattr(environments, "interpreter", lambda _: Path("python"))
    monkeypatch.setattr(environments, "output", lambda *_: "")
    monkeypatch.setattr(
        environments,
        "run",
        lambda command: finished(1, "", pip_error) if "install" in command else finished(0, pip_config),
    )
    result = rows.result_of(
        "torch 2.15.0", lambda: ("", str(environments.new_environment("3.11", "2.15.0", half_made)))
    )
    assert (result.verdict, result.ran) == (verdict, ran)
    assert not half_made.exists()  # otherwise the next row would take it for a complete one


@pytest.mark.parametrize(
    ("verdicts", "fails"),
    [
        (["passed", "not run"], False),
        (["passed", "failed"], True),
        (["not run", "not run"], True),  # nothing was proved
    ],
)
def test_a_run_that_shows_nothing_or_a_fault_fails(verdicts: list[str], fails: bool, tmp_path: Path) -> None:
    results = [rows.Result(str(number), "a.whl", "", 1, verdict) for number, verdict in enumerate(verdicts)]
    to = tmp_path / "table.md"
    if fails:
        with pytest.raises(typer.Exit):
            rows.finish("wheels", "file", results, to, rows.terminal())
    else:
        rows.finish("wheels", "file", results, to, rows.terminal())
    assert len(to.read_text().splitlines()) == 2 + len(results)
