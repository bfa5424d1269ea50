"""Options, hooks and fixtures that all test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import paraminit_ext
from paraminit_ext import _C

GPU_REASON = "needs an NVIDIA GPU and a build with CUDA kernels (make gpu)"


# The largest share of a GPU's memory that one process allocates.
GPU_SHARE = 0.7


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail if GPU tests cannot run")
    parser.addoption("--stand-in", action="store_true", help="run the Python lines of GPU tests on the CPU")


def has_gpu() -> bool:
    return _C.has_cuda() and torch.cuda.is_available()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-gpu") and not has_gpu():
        raise pytest.UsageError(f"expected {GPU_REASON.removeprefix('needs ')}, got none")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` if there is no GPU or the build has no CUDA kernels."""
    if has_gpu():
        torch.cuda.set_per_process_memory_fraction(GPU_SHARE)
        return
    for item in items:
        if item.get_closest_marker("gpu") is None:
            continue
        if not config.getoption("--stand-in"):
            item.add_marker(pytest.mark.skip(reason=GPU_REASON))
        elif item.get_closest_marker("gpu_alone") is not None:
            item.add_marker(pytest.mark.skip(reason="tests behaviour that only a GPU has"))


@pytest.fixture(autouse=True)
def _gpu_stand_in(request: pytest.FixtureRequest) -> Iterator[None]:
    """Redirect a GPU test to the CPU under --stand-in."""
    if request.node.get_closest_marker("gpu") is None or not request.config.getoption("--stand-in"):
        yield
        return
    from gpu_stand_in import stand_in

    with pytest.MonkeyPatch.context() as patch, stand_in(patch):
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Request a check of the GPU after a failure in a pytest-xdist worker that uses CUDA."""
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        global _must_check_gpu
        _must_check_gpu = True


_must_check_gpu = False


def pytest_runtest_logfinish() -> None:
    """End a worker that has lost the GPU, so that pytest-xdist starts another one for the remaining tests.

    After an illegal access, every CUDA call of a process fails until the process ends.
    """
    global _must_check_gpu
    if not _must_check_gpu:
        return
    _must_check_gpu = False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        os._exit(3)  # the failure is already reported; xdist also reports that this test crashed its worker


@pytest.fixture(params=paraminit_ext.available_cpu_capabilities())
def cpu_capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per instruction set of this machine. The value is the name of the instruction set."""
    before = paraminit_ext.cpu_capability()
    paraminit_ext.set_cpu_capability(request.param)
    yield str(request.param)
    paraminit_ext.set_cpu_capability(before)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """Initialise a process group whose only rank is this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
