"""What every test file shares: one reason to skip GPU tests, and a fixture for every instruction set."""

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


# Of a GPU's memory, what a process takes at most.
GPU_SHARE = 0.7


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="an error where GPU tests cannot run")
    parser.addoption("--stand-in", action="store_true", help="GPU tests on the CPU: that their lines run")


def has_gpu() -> bool:
    return _C.has_cuda() and torch.cuda.is_available()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-gpu") and not has_gpu():
        raise pytest.UsageError(f"expected {GPU_REASON.removeprefix('needs ')}, got none")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the tests marked `gpu` where there is no GPU or no kernel for it."""
    if has_gpu():
        torch.cuda.set_per_process_memory_fraction(GPU_SHARE)
        return
    for item in items:
        if item.get_closest_marker("gpu") is None:
            continue
        if not config.getoption("--stand-in"):
            item.add_marker(pytest.mark.skip(reason=GPU_REASON))
        elif item.get_closest_marker("gpu_alone") is not None:
            item.add_marker(pytest.mark.skip(reason="claims what only a GPU does"))


@pytest.fixture(autouse=True)
def _gpu_stand_in(request: pytest.FixtureRequest) -> Iterator[None]:
    """Under --stand-in, what is asked for on a GPU is had on the CPU."""
    if request.node.get_closest_marker("gpu") is None or not request.config.getoption("--stand-in"):
        yield
        return
    from gpu_stand_in import stand_in

    with pytest.MonkeyPatch.context() as patch, stand_in(patch):
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Ends a worker of pytest-xdist that has lost the GPU: the tests to come get another one.

    After an illegal access every call of CUDA fails in a process, until its end.
    """
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        global _ask_the_gpu
        _ask_the_gpu = True


_ask_the_gpu = False


def pytest_runtest_logfinish() -> None:
    global _ask_the_gpu
    if not _ask_the_gpu:
        return
    _ask_the_gpu = False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        os._exit(3)  # by now the failure has been reported; the test is also named as the one that crashed


@pytest.fixture(params=paraminit_ext.available_cpu_capabilities())
def cpu_capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each instruction set of this machine; the value is its name."""
    before = paraminit_ext.cpu_capability()
    paraminit_ext.set_cpu_capability(request.param)
    yield str(request.param)
    paraminit_ext.set_cpu_capability(before)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of processes of which this one is all."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
