"""Upper limits of a GPU's speed, measured before anything else: stores, instructions, matrix products.

The kernels are in ceilings.cu. nvcc compiles them on first use (a few seconds), and ctypes calls them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.timing import Call, time_in_turns

SOURCE = Path(__file__).with_name("ceilings.cu")
BUILT = Path(__file__).resolve().parents[1] / "build"
ROUNDS_OF_CHAINS = 20_000
MATRIX_SIZE = 8192


class CeilingsError(Exception):
    """The kernels cannot be built. The message is one line that says why."""


def nvcc() -> str:
    """Return nvcc of CUDA_HOME or CUDA_PATH if set, otherwise of PATH, and otherwise of /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    found = found or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise CeilingsError(
            "ceilings: expected nvcc on PATH or in CUDA_HOME, got none. Only torch's stores are measured."
        )
    return found


def build(folder: Path, architecture: str) -> Path:
    """Return the kernels as a shared library for an architecture such as sm_90. Compile it if missing."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    library = folder / f"ceilings-{architecture}-{digest}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [nvcc(), "-O3", "-std=c++17", f"-arch={architecture}", "-shared", "-Xcompiler", "-fPIC"]
    done = subprocess.run(
        [*command, "-o", str(unfinished), str(SOURCE)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CeilingsError(f"ceilings: nvcc failed with status {done.returncode}: {last}")
    return unfinished.replace(library)


def checked(function: Callable[..., int], *arguments: object) -> None:
    """Call a function on the current stream, and raise RuntimeError if CUDA returns an error."""
    code = function(*arguments, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
    if code != 0:
        raise RuntimeError(f"ceilings: expected CUDA to launch {function}, got error {code}")


def measure(device: torch.device, numel: int, rounds: int, say: Callable[[str], object]) -> dict[str, float]:
    """Return the limits by name: `ceiling_*` are stores in GB/s, the names of `rate_*` contain the unit.

    Args:
        device: the GPU
        numel: float32 elements of the tensor that the stores fill
        rounds: number of timed rounds
        say: called with one line if the kernels cannot be built; torch's own stores are measured then
    """
    tensor = torch.empty(numel, device=device)
    calls: dict[str, Call] = {"fill": partial(tensor.fill_, 1.0), "zero": tensor.zero_}
    issued = {"imad_wide": ctypes.c_int64(), "lop3": ctypes.c_int64(), "both": ctypes.c_int64()}
    with torch.cuda.device(device):
        try:
            major, minor = torch.cuda.get_device_capability(device)
            library = ctypes.CDLL(str(build(BUILT, f"sm_{major}{minor}")))
        except CeilingsError as error:
            say(str(error))
        else:
            data, size = ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.nbytes)
            calls["memset"] = partial(checked, library.ceiling_memset, data, size)
            calls["store16"] = partial(checked, library.ceiling_store, data, size, 0)
            calls["store16_cs"] = partial(checked, library.ceiling_store, data, size, 1)
            for kind, (name, count) in enumerate(issued.items()):
                calls[name] = partial(
                    checked, library.ceiling_issue, kind, ROUNDS_OF_CHAINS, data, ctypes.byref(count)
                )
        matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device)
        calls["matmul"] = partial(torch.mm, matrix, matrix)
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            timings = time_in_turns(calls, device, rounds)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    facts = {}
    for name, timing in timings.items():
        if name == "matmul":
            facts["rate_matmul_fp32_tflop_s"] = 2 * MATRIX_SIZE**3 / timing.median / 1e12
        elif name in issued:
            facts[f"rate_{name}_g_s"] = issued[name].value / timing.median / 1e9
        else:
            facts[f"ceiling_{name}_gb_s"] = tensor.nbytes / timing.median / 1e9
    return facts
