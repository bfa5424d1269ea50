"""Stage 1 of `make gpu`: provide the extension for the GPUs of this machine, and compile it only if needed.

An existing binary fits if its `_build_info.py` has the facts that `setup.py facts` prints here, and if it can
be imported. It may be in place, or in build/gpu, where `make gpu-binary` puts a binary for another machine.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ROOT / "build" / "gpu"
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


def environment(carried: Path = CARRIED) -> dict[str, str]:
    """Return the environment of a build for the GPUs of this machine, unless architectures are named.

    The build uses every core. If this setuptools is too old for pyproject.toml, it uses the carried one.
    """
    variables = {"TORCH_CUDA_ARCH_LIST": "native", "MAX_JOBS": str(os.cpu_count()), **os.environ}
    if int(metadata.version("setuptools").split(".")[0]) < 77 and (carried / "site").exists():
        variables["PYTHONPATH"] = os.pathsep.join([str(carried / "site"), os.environ.get("PYTHONPATH", "")])
    return variables | {"FORCE_CUDA": "1"}


def wanted(root: Path) -> dict[str, str]:
    """Return the facts of a build on this machine now."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "facts"],
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit((done.stderr.strip().splitlines() or ["setup.py facts: no message"])[-1])
    facts: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return facts


def misfit(folder: Path, facts: dict[str, str]) -> str:
    """Return why the binary in a folder's package cannot be used, or ""."""
    info = folder / "paraminit_ext" / "_build_info.py"
    if not info.exists() or not (folder / "paraminit_ext" / f"_C{SUFFIX}").exists():
        return "there is none for this Python"
    built: dict[str, Any] = runpy.run_path(str(info))
    for name, value in facts.items():
        if built.get(name) != value:
            return f"its {name} is {built.get(name)!r}, not {value!r}"
    return ""


def imports(root: Path) -> bool:
    """Return whether the package in place can be imported and has CUDA kernels."""
    code = "import sys; from paraminit_ext import _C; sys.exit(not _C.has_cuda())"
    return subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def put_in_place(carried: Path, root: Path) -> None:
    for pattern in ("_cuda*.so", "_capture*.so"):
        for old in (root / "paraminit_ext").glob(pattern):
            old.unlink()
    for path in [*(carried / "paraminit_ext").glob("_*.so"), carried / "paraminit_ext" / "_build_info.py"]:
        shutil.copy2(path, root / "paraminit_ext" / path.name)


def compile_in_place(root: Path) -> int:
    """Run the build and print all of its output, then one line that sums it up; return its exit status."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    warnings = 0
    with subprocess.Popen(
        command, cwd=root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as build:
        assert build.stdout is not None
        for line in build.stdout:
            print(line, end="", flush=True)
            warnings += bool(re.search(r"[0-9)]: warning", line))
    if build.returncode != 0:
        print(f"the build failed with status {build.returncode}")
    else:
        print(f"compiled with {environment()['MAX_JOBS']} jobs, {warnings} warnings")
    return build.returncode


def main(root: Path = ROOT, carried: Path = CARRIED) -> int:
    facts = wanted(root)
    print(f"wanted: {facts}")
    wrong = misfit(root, facts)
    if not wrong and imports(root):
        print("the binary in place fits")
        return 0
    print(f"the binary in place is not used: {wrong or 'it cannot be imported'}")
    wrong = misfit(carried, facts)
    if not wrong:
        put_in_place(carried, root)
        if imports(root):
            print("the binary carried along fits")
            return 0
        wrong = "it cannot be imported"
    print(f"the binary in {carried.name} is not used: {wrong}")
    return compile_in_place(root)


if __name__ == "__main__":
    sys.exit(main())
