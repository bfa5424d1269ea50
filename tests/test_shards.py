"""Shards that are filled with one key make up the whole tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fills import same
from paraminit_ext import Key, Shard, init, shard

KEY = Key(2024, 2**64 - 100)
MATRIX = (22, 37)
CONVOLUTION = (12, 10, 3, 5)

Fill = Callable[[Tensor | Shard], Tensor]
FILLS: dict[str, tuple[tuple[int, ...], Fill]] = {
    "uniform_": (MATRIX, lambda t: init.uniform_(t, -1.0, 2.0, generator=KEY)),
    "normal_": (MATRIX, lambda t: init.normal_(t, 0.5, 2.0, generator=KEY)),
    "trunc_normal_": (MATRIX, lambda t: init.trunc_normal_(t, generator=KEY)),
    "constant_": (MATRIX, lambda t: init.constant_(t, 0.3)),
    "ones_": (MATRIX, init.ones_),
    "zeros_": (MATRIX, init.zeros_),
    "eye_": (MATRIX, init.eye_),
    "dirac_": (CONVOLUTION, init.dirac_),
    "dirac_ in groups": (CONVOLUTION, lambda t: init.dirac_(t, 3)),
    "xavier_uniform_": (MATRIX, lambda t: init.xavier_uniform_(t, generator=KEY)),
    "xavier_normal_": (CONVOLUTION, lambda t: init.xavier_normal_(t, 2.0, generator=KEY)),
    "kaiming_uniform_": (CONVOLUTION, lambda t: init.kaiming_uniform_(t, generator=KEY)),
    "kaiming_normal_": (MATRIX, lambda t: init.kaiming_normal_(t, mode="fan_out", generator=KEY)),
    "orthogonal_": (MATRIX, lambda t: init.orthogonal_(t, generator=KEY)),
    "orthogonal_ of a convolution": (CONVOLUTION, lambda t: init.orthogonal_(t, 2.0, generator=KEY)),
    "sparse_": (MATRIX, lambda t: init.sparse_(t, 0.3, generator=KEY)),
}


def parts(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield uneven boxes that cover a whole of this shape, as (begin, size); some are thin or empty."""
    rows, columns = shape[:2]
    rest = shape[2:]
    for r0, r1 in ((0, 5), (5, 5), (5, 6), (6, rows)):
        for c0, c1 in ((0, 1), (1, columns)):
            yield (r0, c0, *(0 for _ in rest)), (r1 - r0, c1 - c0, *rest)


@pytest.mark.parametrize(("shape", "fill"), FILLS.values(), ids=FILLS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_shards_side_by_side_are_the_whole(shape: tuple[int, ...], fill: Fill, dtype: torch.dtype) -> None:
    whole = fill(torch.empty(shape, dtype=dtype))
    assembled = torch.full(shape, float("nan"), dtype=dtype)
    for begin, size in parts(shape):
        local = torch.full(size, float("nan"), dtype=dtype)
        assert fill(shard(local, shape, begin)) is local
        assembled[tuple(slice(b, b + n) for b, n in zip(begin, size, strict=True))] = local
    assert same(assembled, whole)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=lambda d: str(d)[6:])
def test_complex_shards_are_the_whole(dtype: torch.dtype) -> None:
    for name, arguments in (("normal_", ()), ("uniform_", ()), ("sparse_", (0.3,)), ("kaiming_normal_", ())):
        fill: Callable[..., Tensor] = getattr(init, name)
        whole = fill(torch.empty(MATRIX, dtype=dtype), *arguments, generator=KEY)
        local = torch.empty(9, 11, dtype=dtype)
        fill(shard(local, MATRIX, (7, 26)), *arguments, generator=KEY)
        assert torch.equal(local, whole[7:16, 26:37])


def test_a_strided_shard_is_the_part_too() -> None:
    whole = init.normal_(torch.empty(MATRIX), generator=KEY)
    local = torch.empty(11, 9).t()
    assert same(init.normal_(shard(local, MATRIX, (7, 26)), generator=KEY), whole[7:16, 26:37])


def test_fans_are_those_of_the_whole() -> None:
    local = torch.empty(3, 10, 3, 5)
    part = shard(local, CONVOLUTION, (3, 0, 0, 0))
    assert init._calculate_fan_in_and_fan_out(part) == (10 * 15, 12 * 15)
    assert init._calculate_correct_fan(part, "fan_out") == 12 * 15
    assert init._calculate_fan_in_and_fan_out(local) == (10 * 15, 3 * 15)


def test_an_element_past_2_to_the_33_is_that_of_its_own_index() -> None:
    shape, begin = (1 << 20, 1 << 20), (123456, 654321)
    part = init.uniform_(shard(torch.empty(3, 9), shape, begin), generator=KEY)
    for row in range(3):
        index = (begin[0] + row) * shape[1] + begin[1]
        # The row alone, as a shard of the flat whole, and from a key that starts at the row's first counter.
        flat = init.uniform_(shard(torch.empty(9), (shape[0] * shape[1],), (index,)), generator=KEY)
        assert same(part[row], flat)
        moved = Key(KEY.seed, (KEY.offset + index // 4) % 2**64)
        assert same(flat, init.uniform_(torch.empty(16), generator=moved)[index % 4 :][:9])


def test_wrong_offsets_give_other_values() -> None:
    whole = init.normal_(torch.empty(MATRIX), generator=KEY)
    local = init.normal_(shard(torch.empty(3, 37), MATRIX, (4, 0)), generator=KEY)
    assert not torch.equal(local, whole[5:8])


# --- DTensor ---------------------------------------------------------------------------------


@pytest.fixture
def fake_world() -> Iterator[Callable[[int], Any]]:
    """Return a function that makes this process the given rank of a fake group of four."""
    distributed = pytest.importorskip("torch.distributed", reason="torch was built without distributed")
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")

    def become(rank: int) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        distributed.init_process_group("fake", store=fake.FakeStore(), rank=rank, world_size=4)

    yield become
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["normal_", "xavier_uniform_", "sparse_", "eye_", "orthogonal_"])
@pytest.mark.parametrize("layout", ["rows", "columns", "mesh", "replicated"])
def test_dtensors_of_all_ranks_are_the_whole(
    fake_world: Callable[[int], Any], name: str, layout: str
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor import Shard as Placed
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    def fill(tensor: Any) -> Tensor:
        arguments = (0.3,) if name == "sparse_" else ()
        keywords = {} if name == "eye_" else {"generator": KEY}
        out: Tensor = getattr(init, name)(tensor, *arguments, **keywords)
        return out

    whole = fill(torch.empty(MATRIX))
    for rank in range(4):
        fake_world(rank)
        mesh = init_device_mesh("cpu", (2, 2) if layout == "mesh" else (4,))
        placements: Any = {
            "rows": [Placed(0)],  # 22 rows over 4 ranks: 6, 6, 6, 4
            "columns": [Placed(1)],
            "mesh": [Placed(0), Placed(1)],
            "replicated": [Replicate()],
        }[layout]
        size, start = compute_local_shape_and_global_offset(torch.Size(MATRIX), mesh, placements)
        local = torch.full(tuple(size), float("nan"))
        tensor = DTensor.from_local(
            local, mesh, placements, run_check=False, shape=torch.Size(MATRIX), stride=(MATRIX[1], 1)
        )
        assert fill(tensor) is tensor
        held = tensor.to_local()
        expected = whole[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))]
        assert same(held, expected)
        assert held.data_ptr() == local.data_ptr()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_partial_dtensor_is_refused(fake_world: Callable[[int], Any]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    fake_world(0)
    local = torch.zeros(4, 6)
    tensor = DTensor.from_local(local, init_device_mesh("cpu", (4,)), [Partial()], run_check=False)
    with pytest.raises(NotImplementedError, match=r"^paraminit_ext\.normal_: expected .*, got P"):
        init.normal_(tensor)
    assert not local.any()
