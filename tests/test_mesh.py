"""A rank fills the elements of the global tensor that it holds, on fake process groups of any size."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import subprocesses
from fills import same
from paraminit_ext import Key, fill_many, init, patch
from paraminit_ext.geometry import copy_part
from test_shards import FILLS, Fill

dist = pytest.importorskip("torch.distributed", reason="torch was built without distributed")
fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor, Placement, Replicate  # noqa: E402
from torch.distributed.tensor import Shard as Placed  # noqa: E402
from torch.distributed.tensor.placement_types import _StridedShard  # noqa: E402

from paraminit_ext import mesh as meshes  # noqa: E402

KEY = Key(2024, 2**64 - 100)
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture(autouse=True)
def no_group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def become(rank: int, world: int) -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=fake.FakeStore(), rank=rank, world_size=world)


def held_by_torch(whole: Tensor, mesh: DeviceMesh, placements: Sequence[Any]) -> Tensor:
    """Return this rank's part of a tensor, by torch's own placements applied from left to right."""
    for dim, placement in enumerate(placements):
        if not placement.is_replicate():
            parts, _ = placement._split_tensor(whole, mesh.size(dim), with_padding=False, contiguous=True)
            whole = parts[mesh.get_local_rank(dim)]
    return whole


def dtensor_of(
    local: Tensor, mesh: DeviceMesh, placements: Sequence[Placement], whole: tuple[int, ...]
) -> DTensor:
    strides = torch.empty(whole, device="meta").stride()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(whole), stride=strides
    )


def with_strides_of_a_view(tensor: DTensor) -> DTensor:
    """Give _StridedShard the meaning that it has after a view: each of the split_factor pieces is sharded."""
    tensor._spec.use_strided_shard_as_shard_order = False
    return tensor


@pytest.mark.parametrize("seed", range(8))
def test_a_rank_holds_what_torch_gives_it(seed: int) -> None:
    chosen = random.Random(seed)
    several_boxes = 0
    for _ in range(60):
        shape = tuple(chosen.randint(1, 13) for _ in range(chosen.randint(1, 3)))
        rank = chosen.randrange(8)
        become(rank, 8)
        mesh = init_device_mesh("cpu", chosen.choice([(8,), (2, 4), (4, 2), (2, 2, 2)]))
        placements: list[Any] = [
            chosen.choice(
                [
                    Replicate(),
                    Placed(chosen.randrange(len(shape))),
                    _StridedShard(chosen.randrange(len(shape)), split_factor=chosen.choice([2, 3, 4])),
                ]
            )
            for _ in range(mesh.ndim)
        ]
        whole = torch.arange(math.prod(shape)).view(shape)
        expected = held_by_torch(whole, mesh, placements)
        tensor = with_strides_of_a_view(dtensor_of(torch.full_like(expected, -1), mesh, placements, shape))
        part = meshes.locate("normal_", tensor)
        several_boxes += len(part.boxes) > 1
        copy_part(whole, part)
        assert torch.equal(tensor.to_local(), expected), (shape, mesh, placements, rank)
    assert several_boxes >= 5


@pytest.mark.parametrize("rows", [8, 9, 5, 3, 41])
@pytest.mark.parametrize("sizes", [(4, 2), (2, 4)])
def test_fsdp_after_tensor_parallelism_shards_the_shard(rows: int, sizes: tuple[int, int]) -> None:
    # Apply tensor parallelism, then FSDP. For 9 rows on (4, 2) torch's own arithmetic gives another result.
    whole = init.normal_(torch.empty(rows, 3), generator=KEY)
    for rank in range(8):
        become(rank, 8)
        mesh = init_device_mesh("cpu", sizes)
        local = whole
        for dim in (1, 0):
            pieces = list(local.chunk(sizes[dim]))
            at = mesh.get_local_rank(dim)
            local = pieces[at] if at < len(pieces) else local[:0]
        placements = [_StridedShard(0, split_factor=sizes[1]), Placed(0)]
        tensor = dtensor_of(torch.full_like(local, -1), mesh, placements, (rows, 3))
        init.normal_(tensor, generator=KEY)
        assert same(tensor.to_local(), local)


@pytest.mark.parametrize(("shape", "fill"), FILLS.values(), ids=FILLS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_every_function_fills_all_runs_of_a_strided_shard(
    shape: tuple[int, ...], fill: Fill, dtype: torch.dtype
) -> None:
    whole = fill(torch.empty(shape, dtype=dtype))
    for rank in range(4):
        become(rank, 4)
        mesh = init_device_mesh("cpu", (2, 2))
        placements = [_StridedShard(0, split_factor=3), _StridedShard(1, split_factor=2)]
        expected = held_by_torch(whole, mesh, placements)
        local = torch.full_like(expected, float("nan"))
        tensor = with_strides_of_a_view(dtensor_of(local, mesh, placements, shape))
        assert len(meshes.locate("fill", tensor).boxes) == 6
        assert fill(tensor) is tensor
        assert same(tensor.to_local(), expected)
        assert tensor.to_local().data_ptr() == local.data_ptr()


def test_delta_orthogonal_fills_all_runs_of_a_strided_shard() -> None:
    whole = init.delta_orthogonal_(torch.empty(12, 6, 3), generator=KEY)
    become(1, 2)
    mesh = init_device_mesh("cpu", (2,))
    placements = [_StridedShard(0, split_factor=3)]
    expected = held_by_torch(whole, mesh, placements)
    tensor = dtensor_of(torch.full_like(expected, float("nan")), mesh, placements, (12, 6, 3))
    init.delta_orthogonal_(tensor, generator=KEY)
    assert same(tensor.to_local(), expected)


def test_a_dimension_may_be_sharded_by_mesh_dimensions_in_any_order() -> None:
    spec = pytest.importorskip("torch.distributed.tensor._dtensor_spec")
    if not hasattr(spec, "ShardOrderEntry"):
        pytest.skip("needs a torch that can shard by mesh dimensions in any order")
    whole = init.normal_(torch.empty(13, 3), generator=KEY)
    for rank in range(6):
        become(rank, 6)
        mesh = init_device_mesh("cpu", (2, 3))
        thirds = whole.chunk(3)[mesh.get_local_rank(1)]
        local = thirds.chunk(2)[mesh.get_local_rank(0)]
        made = dtensor_of(torch.full_like(local, -1), mesh, [Placed(0), Placed(0)], (13, 3))
        ordered = spec.DTensorSpec(
            mesh,
            made._spec.placements,
            tensor_meta=made._spec.tensor_meta,
            shard_order=(spec.ShardOrderEntry(tensor_dim=0, mesh_dims=(1, 0)),),
        )
        tensor: Any = DTensor(made._local_tensor, ordered, requires_grad=False)
        init.normal_(tensor, generator=KEY)
        assert same(tensor.to_local(), local)


def test_a_local_tensor_that_is_no_part_is_refused() -> None:
    become(0, 4)
    mesh = init_device_mesh("cpu", (4,))
    tensor = dtensor_of(torch.zeros(5, 3), mesh, [Placed(0)], (16, 3))
    with pytest.raises(NotImplementedError, match=r"of shape \(4, 3\), got \(5, 3\)"):
        init.normal_(tensor, generator=KEY)
    assert not tensor.to_local().any()


def test_a_rank_outside_the_mesh_is_told_so() -> None:
    become(3, 4)
    tensor = dtensor_of(torch.empty(0), DeviceMesh("cpu", [0, 1]), [Placed(0)], (8,))
    for call in (init.normal_, init.zeros_):
        with pytest.raises(RuntimeError, match=r"^paraminit_ext\.\w+: expected a rank of the DTensor's mesh"):
            call(tensor)


# Check one rank's shards, by FSDP2 and tensor parallelism, of a layer of Llama 405B with a smaller width.
LAYER = """
import logging, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
from paraminit_ext import Key, deferred_init, init, materialize_module, shard

logging.disable(logging.WARNING)
rank, data, tensor = DATA
SIZES = {"up": (53248, 1024), "down": (1024, 53248), "out": (1024, 1024), "head": (128256, 1024)}
key = Key(2024)

def build():
    return nn.ModuleDict({name: nn.Linear(*reversed(size), bias=False) for name, size in SIZES.items()})

dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=data * tensor)
mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data", "tensor"))
model = deferred_init(build, key=key)
by_rows, by_columns = ColwiseParallel(), RowwiseParallel()
styles = {"up": by_rows, "down": by_columns, "out": by_columns, "head": by_rows}
parallelize_module(model, mesh["tensor"], styles)
for layer in model.values():
    fully_shard(layer, mesh=mesh["data"])
materialize_module(model)

def part(size, count, place):
    step = -(-size // count)
    return min(step * place, size), min(step * (place + 1), size)

at_data, at_tensor = divmod(rank, tensor)
held = 0
for name, size in SIZES.items():
    local = model[name].weight.to_local()
    first, last = (0, size[0]), (0, size[1])
    if name in ("up", "head"):
        first = part(size[0], tensor, at_tensor)
    else:
        last = part(size[1], tensor, at_tensor)
    low, high = part(first[1] - first[0], data, at_data)
    rows = (first[0] + low, first[0] + high)
    expected = torch.empty(rows[1] - rows[0], last[1] - last[0])
    init.kaiming_uniform_(
        shard(expected, size, (rows[0] if len(expected) else 0, last[0])),
        a=5**0.5, generator=key.fold_in(f"{name}.weight"),
    )
    assert torch.equal(local, expected), name
    held += local.numel()
print(held)
"""


@pytest.mark.parametrize(("data", "tensor"), [(8, 8), (128, 8), (2048, 8)])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_the_shards_of_a_rank_of_thousands_are_the_parts_of_the_whole(
    data: int, tensor: int, where: str
) -> None:
    world = data * tensor
    rank = {"first": 0, "middle": world // 2 + 3, "last": world - 1}[where]
    (held,) = subprocesses.lines(LAYER.replace("DATA", f"({rank}, {data}, {tensor})"))
    whole = 2 * 53248 * 1024 + 1024 * 1024 + 128256 * 1024
    # Uneven dimensions are rounded up: the first ranks hold more than their share, the last may hold nothing.
    assert int(held) <= 1.3 * whole / world
    assert int(held) >= whole / world or where != "first"


@pytest.mark.parametrize("placement", [Placed(0), Replicate()], ids=str)
def test_a_fake_tensor_is_filled_by_torchs_generator(placement: Placement) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    become(0, 2)
    mesh = init_device_mesh("cpu", (2,))
    with FakeTensorMode():
        tensor = dtensor_of(torch.empty(4 if placement.is_shard() else 8, 3), mesh, [placement], (8, 3))
        assert init.normal_(tensor) is tensor
        with patch():
            torch.nn.init.normal_(tensor[1:2])


def test_a_compiled_function_takes_views_of_a_dtensor_under_patch() -> None:
    become(0, 2)
    mesh = init_device_mesh("cpu", (2,))
    tensor = dtensor_of(torch.ones(4, 3), mesh, [Replicate()], (4, 3))

    def function(x: Tensor) -> Tensor:
        return x[1:3].t() * 2

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    with patch():
        made: Any = compiled(tensor)
    assert torch.equal(made.to_local(), torch.full((3, 2), 2.0))


def test_views_are_saved_and_copied_as_without_patch(tmp_path: Path) -> None:
    become(0, 2)
    tensor = dtensor_of(torch.ones(4, 3), init_device_mesh("cpu", (2,)), [Placed(1)], (4, 6))
    with patch():
        view: Any = tensor.t()
    torch.save(view, tmp_path / "view")
    assert torch.equal(torch.load(tmp_path / "view", weights_only=True).to_local(), view.to_local())
    assert not vars(view).keys() - {"_local_tensor", "_spec"}


def test_a_shard_on_the_host_of_a_mesh_of_gpus_is_filled_there() -> None:
    # FSDP2's CPUOffloadPolicy gives such tensors. The test needs no GPU.
    spec = pytest.importorskip("torch.distributed.tensor._dtensor_spec")
    become(1, 4)
    mesh = init_device_mesh("cuda", (4,))
    meta = spec.TensorMeta(torch.Size((8, 6)), (6, 1), torch.float32)
    fills: list[Fill] = [
        init.normal_,
        init.xavier_uniform_,
        init.orthogonal_,
        init.eye_,
        lambda t: init.sparse_(t, 0.3),
        lambda t: fill_many([(t, "trunc_normal_")])[0],
    ]
    for fill in fills:
        tensor: Any = DTensor(
            torch.full((2, 6), float("nan")),
            spec.DTensorSpec(mesh, (Placed(0),), tensor_meta=meta),
            requires_grad=False,
        )
        torch.manual_seed(0)
        filled: Any = fill(tensor)
        assert filled is tensor
        torch.manual_seed(0)
        assert same(filled.to_local(), fill(torch.empty(8, 6))[2:4])
