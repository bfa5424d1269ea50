"""``summary()`` and ``audit()`` on a mesh of four ranks: two replicas of two shards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard

import ranks
from paraminit_ext import InitPlan, Key, audit, deferred_init, init, patch, summary

RANKS = 4
# The number of rows is odd, so some ranks hold one row more than others.
ROWS, COLUMNS = 67, 40


def square() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear: nn.Linear = nn.Linear(COLUMNS, ROWS)
        self.register_buffer("steps", torch.arange(10.0))


def a_dtensor_is_counted_once(rank: int) -> None:
    mesh = square()
    plan = InitPlan.of(deferred_init(Model, key=Key(1)))
    whole = plan.apply(Model())
    layouts: list[list[Placement]] = [
        [Replicate(), Shard(0)],
        [Shard(0), Shard(0)],
        [Shard(0), Shard(1)],
        [Replicate(), Replicate()],
    ]
    for placements in layouts:
        model = Model()
        plan.apply(model)
        if placements[-1] == Shard(1):
            model.linear.register_parameter("bias", None)
        ranks.distribute(model, mesh, placements)
        expected = summary(whole)
        for row in summary(model):
            whole_row = expected[row.name]
            for field in ("shape", "numel", "min", "max", "zeros", "nans", "infs"):
                assert getattr(row, field) == getattr(whole_row, field), (placements, row, whole_row)
            # float64 sums may be in another order.
            assert row.mean == pytest.approx(whole_row.mean, rel=1e-12, abs=1e-14)
            assert row.std == pytest.approx(whole_row.std, rel=1e-12)


def replicas_that_differ_are_found(rank: int) -> None:
    mesh = square()
    model = Model()
    for parameter in model.parameters():
        init.normal_(parameter, std=0.02, generator=Key(1))
    ranks.distribute(model, mesh, [Replicate(), Shard(0)])
    assert [finding for finding in audit(model) if finding.kind == "replicas"] == []
    if rank == 3:
        local(model.linear.weight).view(-1)[5] += 1e-3
    # All ranks that hold these replicas report it: those in the second column of the mesh.
    found = [finding.names for finding in audit(model) if finding.kind == "replicas"]
    assert found == ([("linear.weight",)] if rank in (1, 3) else [])


def replicas_under_ddp_are_compared(rank: int) -> None:
    model = Model()
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert [finding for finding in audit(wrapped) if finding.kind == "replicas"] == []
    with torch.no_grad():
        model.linear.bias[0] = float(rank == 2)
    assert [finding.names for finding in audit(wrapped) if finding.kind == "replicas"] == [("linear.bias",)]


def a_sharded_module_is_proven(rank: int) -> None:
    mesh = square()
    plan = InitPlan.of(deferred_init(Model, key=Key(1)))
    model = Model()
    ranks.distribute(model, mesh, [Replicate(), Shard(0)])
    plan.apply(model)
    assert list(audit(model, plan)) == []
    if rank in (0, 2):
        local(model.linear.weight).view(-1)[5] = 7
    kinds = [finding.kind for finding in audit(model, plan)]
    assert ("differs" in kinds) == (rank in (0, 2))


def a_fan_of_a_shard_is_found(rank: int) -> None:
    mesh = square()
    model = Model()
    model.linear.register_parameter("bias", None)
    ranks.distribute(model, mesh, [Replicate(), Shard(1)])
    with patch(key=Key(1)):
        init.kaiming_normal_(local(model.linear.weight))
    assert [finding.kind for finding in audit(model)] == ["shard"]


def local(tensor: Tensor) -> Tensor:
    found: Tensor = tensor._local_tensor  # type: ignore[attr-defined]
    return found.detach()


CHECKS: dict[str, ranks.Check] = {
    check.__name__: check
    for check in (
        a_dtensor_is_counted_once,
        replicas_that_differ_are_found,
        replicas_under_ddp_are_compared,
        a_sharded_module_is_proven,
        a_fan_of_a_shard_is_found,
    )
}


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    return ranks.run(CHECKS, RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("check", CHECKS)
def test_on_four_ranks(check: str, passed: Callable[[str], None]) -> None:
    passed(check)
