"""What every test file shares: one reason to skip GPU tests, and a fixture for every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import paraminit_ext
from paraminit_ext import _C

GPU_REASON = "needs an NVIDIA GPU and a build with CUDA kernels (make gpu)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `gpu` where there is no GPU or no kernel for it."""
    if _C.has_cuda() and torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason=GPU_REASON))


@pytest.fixture(params=paraminit_ext.available_cpu_capabilities())
def cpu_capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each instruction set of this machine; the value is its name."""
    before = paraminit_ext.cpu_capability()
    paraminit_ext.set_cpu_capability(request.param)
    yield str(request.param)
    paraminit_ext.set_cpu_capability(before)
