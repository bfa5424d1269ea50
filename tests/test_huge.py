"""Tensors past 2^31 and 2^32 elements: each element has the value of its index, and nothing repeats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fills import KEY, same
from paraminit_ext import Shard, init, shard

DTYPE = torch.bfloat16
NUMEL = 65_537**2  # 2^32 + 2^17 + 1
NEEDED = 10 << 30  # bytes: the tensor's 8.6 GB and some room


def available() -> int:
    """Return the bytes that are available without swapping, or 0 if the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)


@pytest.fixture(scope="module")
def memory() -> Tensor:
    """Allocate one tensor for all tests, because a second one would not fit."""
    if available() < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of available memory")
    return torch.empty(NUMEL, dtype=DTYPE)


def normal(tensor: Tensor | Shard) -> Tensor:
    return init.normal_(tensor, generator=KEY)


def uniform(tensor: Tensor | Shard) -> Tensor:
    return init.uniform_(tensor, -0.3, 0.55, generator=KEY)


def repeats(flat: Tensor, distance: int, count: int = 1077) -> bool:
    """Return whether elements recur at this distance, at the start or at the end of the tensor."""
    return any(
        torch.equal(flat[i : i + count], flat[i + distance :][:count])
        for i in (0, len(flat) - count - distance)
    )


def test_a_contiguous_tensor_past_2_to_the_32_elements(memory: Tensor) -> None:
    normal(memory)
    for place in (0, 2**31 - 500, 2**32 - 500, NUMEL - 1000):
        part = normal(shard(torch.empty(1000, dtype=DTYPE), (NUMEL,), (place,)))
        assert same(memory[place : place + 1000], part), place
    # An index or a byte offset that is truncated to 32 bits, of elements of 16 bits or of words of 32 bits,
    # would make the values recur at one of these distances.
    assert not any(repeats(memory, distance) for distance in (2**30, 2**31, 2**32))
    # No stretch was left out: of 2^20 values per piece, half are positive, within 6 deviations of 2^-11.
    for piece in memory.split(2**29)[:-1]:
        assert abs(float((piece[:: 2**9] > 0).double().mean()) - 0.5) < 6 * 2.0**-11
    memory[2**32 :] = memory[: NUMEL - 2**32]
    assert repeats(memory, 2**32)  # the check detects a repeat


@pytest.mark.parametrize("fill", [normal, uniform])
@pytest.mark.parametrize(
    "view",
    [
        lambda flat: flat.view(65_537, 65_537).t()[:, ::64],  # filled in tiles
        lambda flat: flat.as_strided((3, 700), (2**31 + 1077, 3), 1),  # rows further apart than 2^31
        lambda flat: flat.as_strided((2, 5, 2, 70), (2**31 + 7, 300, 2**32 - 2**31 - 3000, 3), 11),
    ],
    ids=["transposed", "far rows", "far blocks"],
)
def test_a_view_whose_elements_lie_past_2_to_the_32(
    memory: Tensor, view: Callable[[Tensor], Tensor], fill: Callable[[Tensor | Shard], Tensor]
) -> None:
    tensor = fill(view(memory))
    rows, columns = tensor.shape[0], tensor[0].numel()
    for row in {0, rows // 2, rows - 1}:
        for place in {0, max(columns - 700, 0)}:
            index = row * columns + place
            part = torch.empty(min(700, columns), dtype=DTYPE)
            fill(shard(part, (tensor.numel(),), (index,)))
            assert same(tensor[row].flatten()[place : place + len(part)], part), (row, place)
