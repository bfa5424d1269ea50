"""Fills and autograd: version counters of filled tensors, inference mode, copies of modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fills import every_function, filler, same, shape_for
from paraminit_ext import Key, fill_many, init, shard


@every_function
@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode_changes_no_value(name: str, arguments: tuple[Any, ...], inside: bool) -> None:
    fill = filler(name, arguments)
    expected = fill(torch.empty(shape_for(name)))
    normal = torch.empty(shape_for(name))
    with torch.inference_mode():
        tensor = torch.empty(shape_for(name)) if inside else normal
        assert tensor.is_inference() == inside
        assert fill(tensor) is tensor
        assert same(tensor, expected)


def test_a_copy_of_a_filled_module_is_filled_alike() -> None:
    model = nn.TransformerEncoderLayer(8, 2)
    twin = copy.deepcopy(model)
    for module in (model, twin):
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                init.xavier_uniform_(parameter, generator=Key(1).fold_in(name))
    assert all(same(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


# ----------------------------------------------------------------------------------------
# Version counters: a fill invalidates tensors that were saved for backward
# ----------------------------------------------------------------------------------------


@pytest.fixture
def mesh() -> Iterator[Any]:
    distributed = torch.distributed
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        distributed.destroy_process_group()


def tensor_of_kind(kind: str, shape: tuple[int, ...], mesh: Any) -> Tensor:
    if kind == "plain":
        return torch.full(shape, 3.0)
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor import Shard as ShardPlacement

    placement = ShardPlacement(0) if kind == "sharded" else Replicate()
    local = torch.full((shape[0] // 2, *shape[1:]) if kind == "sharded" else shape, 3.0)
    sharded: Tensor = DTensor.from_local(local, mesh, [placement], run_check=False)
    return sharded


@pytest.mark.parametrize("in_a_list", [False, True], ids=["call", "fill_many"])
@pytest.mark.parametrize("kind", ["plain", "sharded", "replicated"])
@every_function
def test_a_product_that_was_saved_before_a_fill_is_refused_its_backward(
    name: str, arguments: tuple[Any, ...], kind: str, in_a_list: bool, mesh: Any
) -> None:
    parameter = nn.Parameter(tensor_of_kind(kind, shape_for(name), mesh))
    product = (parameter * parameter).sum()
    before = parameter._version
    if in_a_list:
        names = {"constant_": "val", "sparse_": "sparsity", "dirac_": "groups"}
        fill_many([(parameter, name, {names[name]: arguments[0]} if arguments else {}, Key(1))])
    else:
        filler(name, arguments)(parameter)
    assert parameter._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_stock_refuses_such_a_backward_as_well(mesh: Any) -> None:
    parameter = nn.Parameter(tensor_of_kind("sharded", (6, 4), mesh))
    product = (parameter * parameter).sum()
    nn.init.constant_(parameter, 100.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_shard_moves_its_tensors_counter() -> None:
    whole = torch.zeros(6, 4)
    init.normal_(shard(whole[2:], (60, 4), (6, 0)))
    assert whole._version == 1


def test_a_dtensor_of_inference_mode_is_filled(mesh: Any) -> None:
    with torch.inference_mode():
        tensor = tensor_of_kind("sharded", (6, 4), mesh)
        init.normal_(tensor, generator=Key(1))
        init.ones_(tensor)
