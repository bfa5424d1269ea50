"""Models on meshes of gloo processes get the values of one process, and ranks that differ get an error."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict_loader as loader
import torch.distributed.checkpoint.state_dict_saver as saver
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ranks
import subprocesses
from fills import same
from paraminit_ext import (
    InitPlan,
    Key,
    audit,
    deferred_init,
    fill_many,
    init,
    keyed,
    materialize_module,
    patch,
    save_initialized,
)
from paraminit_ext.models import distributed_orthogonal, write
from test_shards import FILLS
from zoo import TRANSFORMERS

KEY = Key(2024)
HAS_LLAMA = importlib.util.find_spec("transformers") is not None


def llama() -> Any:
    return TRANSFORMERS["Llama"]()


def shard_model(model: Any, mesh: DeviceMesh, data: DeviceMesh) -> Any:
    """Apply tensor parallelism, if the mesh has a dimension for it, then FSDP2, as torchtitan does."""
    if "tensor" in (mesh.mesh_dim_names or ()):
        styles: dict[str, Any] = {
            "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
            "lm_head": ColwiseParallel(output_layouts=Replicate()),
        }
        for index in range(len(model.model.layers)):
            layer = f"model.layers.{index}"
            styles |= {f"{layer}.self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
            styles |= {f"{layer}.mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
            styles |= {f"{layer}.{name}": RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
        parallelize_module(model, mesh["tensor"], styles)
    for layer in model.model.layers:
        fully_shard(layer, mesh=data)
    fully_shard(model, mesh=data)
    return model


def on_fsdp_and_tp(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return shard_model(model, mesh, mesh["data"])


def on_hsdp_and_tp(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("replicate", "shard", "tensor"))
    return shard_model(model, mesh, mesh["replicate", "shard"])


def on_hsdp(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return shard_model(model, mesh, mesh)


def on_fsdp(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("data",))
    return shard_model(model, mesh, mesh)


LAYOUTS = {"FSDP2 x TP": on_fsdp_and_tp, "HSDP x TP": on_hsdp_and_tp, "HSDP": on_hsdp, "FSDP2": on_fsdp}


def whole_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_of(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def assert_same(module: nn.Module, whole: nn.Module) -> None:
    """Assert that the gathered parameters and buffers have the names and values of the unsharded module."""
    for kind in ("named_parameters", "named_buffers"):
        here, there = dict(getattr(module, kind)()), dict(getattr(whole, kind)())
        assert here.keys() == there.keys()
        for name, tensor in here.items():
            assert same(whole_of(tensor), whole_of(there[name])), name


def reference() -> Any:
    return materialize_module(deferred_init(llama, key=KEY))


def train_a_step(model: Any) -> None:
    tokens = torch.arange(20).view(1, 20)
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(torch.isfinite(whole_of(p.grad)).all() for p in model.parameters() if p.grad is not None)


def raised(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return str(error)
    raise AssertionError("nothing was raised")


# ----------------------------------------------------------------------------------------
# Functions
# ----------------------------------------------------------------------------------------


def meshes_and_placements() -> Iterator[tuple[DeviceMesh, list[Placement]]]:
    line = init_device_mesh("cpu", (dist.get_world_size(),))
    for placement in (Shard(0), Shard(1), Replicate()):
        yield line, [placement]
    if dist.get_world_size() == 4:
        square = init_device_mesh("cpu", (2, 2))
        for first in (Shard(0), Shard(1), Replicate()):
            for second in (Shard(0), Shard(1), Replicate()):
                yield square, [first, second]


def every_function_fills_its_shard(rank: int) -> None:
    for name, (shape, fill) in FILLS.items():
        whole = fill(torch.empty(shape))
        for mesh, placements in meshes_and_placements():
            tensor = distribute_tensor(torch.full(shape, float("nan")), mesh, placements)
            held = tensor.to_local().data_ptr()
            with CommDebugMode() as seen:
                assert fill(tensor) is tensor
            assert seen.get_total_counts() == 0
            assert tensor.to_local().data_ptr() == held
            assert same(tensor.full_tensor(), whole), (name, mesh, placements)


# ----------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------


def a_deferred_llama_is_materialised_into_shards(rank: int) -> None:
    for layout in LAYOUTS.values():
        model = layout(deferred_init(llama, key=KEY))
        parameters = list(model.parameters())
        with CommDebugMode() as seen:
            materialize_module(model)
        assert seen.get_total_counts() == 0
        assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
        assert_same(model, reference())
        assert list(audit(model)) == []
        train_a_step(model)


def in_bfloat16_the_values_are_rounded(rank: int) -> None:
    model = on_fsdp_and_tp(deferred_init(llama, key=KEY).bfloat16())
    assert_same(materialize_module(model), reference().bfloat16())


def a_plan_is_applied_to_shards(rank: int) -> None:
    plan = InitPlan.of(deferred_init(llama, key=KEY))
    for layout in LAYOUTS.values():
        with torch.device("meta"):
            model = llama()
        layout(model).to_empty(device="cpu")
        with CommDebugMode() as seen:
            plan.apply(model)
        assert seen.get_total_counts() == 0
        assert_same(model, reference())


def a_models_own_code_fills_shards(rank: int) -> None:
    for layout in LAYOUTS.values():
        with torch.device("meta"):
            model = llama()
        layout(model).to_empty(device="cpu")
        # This zeroes the padding token's row too, although DTensor's indexing copies the row.
        with patch(), keyed(model, KEY):
            model.init_weights()
        assert not whole_of(model.model.embed_tokens.weight)[3].any()
        assert_same(model, reference())


class Experts(nn.Module):
    """Stacked matrices of experts, each filled separately. Two rows of each ``down`` matrix are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.up: nn.Parameter = nn.Parameter(torch.empty(6, 16, 8))
        self.down: nn.Parameter = nn.Parameter(torch.empty(6, 8, 16))
        for expert in range(6):
            nn.init.kaiming_uniform_(self.up[expert], a=5**0.5)
            nn.init.normal_(self.down[expert], std=0.1 + expert)
        with torch.no_grad():
            self.down[:, 2:4].zero_()


def experts_are_filled_where_they_are(rank: int) -> None:
    whole = materialize_module(deferred_init(Experts, key=KEY))
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    layouts: list[tuple[DeviceMesh, list[Placement]]] = [
        (line, [Shard(0)]),
        (square, [Shard(0), Shard(1)]),
        (square, [Shard(2), Shard(0)]),
    ]
    for mesh, placements in layouts:
        for dtype in (torch.float32, torch.bfloat16):
            model = deferred_init(Experts, key=KEY).to(dtype)
            ranks.distribute(model, mesh, placements)
            materialize_module(model)
            for name, parameter in model.named_parameters():
                expected = whole.get_parameter(name).to(dtype)
                assert same(whole_of(parameter), expected), (name, placements, dtype)


class Orthogonal(nn.Module):
    """Orthogonal matrices, and one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.square: nn.Linear = nn.Linear(33, 33)
        self.tall: nn.Parameter = nn.Parameter(torch.empty(50, 20))
        self.wide: nn.Parameter = nn.Parameter(torch.empty(20, 10, 5))
        self.more: nn.ParameterList = nn.ParameterList(torch.empty(40, 40) for _ in range(3))
        for tensor in (self.square.weight, self.tall, self.wide, *self.more):
            nn.init.orthogonal_(tensor, gain=2.0)


def matrices_are_made_by_one_rank_each(rank: int) -> None:
    whole = materialize_module(deferred_init(Orthogonal, key=KEY))
    made: list[tuple[int, ...]] = []
    make = write.make

    def counted(*arguments: Any) -> Tensor:
        made.append(arguments[1].shape)
        return make(*arguments)

    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    layouts: list[tuple[DeviceMesh, list[Placement]]] = [
        (line, [Shard(0)]),
        (line, [Shard(1)]),
        (square, [Replicate(), Shard(0)]),
        (square, [Shard(1), Shard(0)]),
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed_orthogonal, "_SIZE", 20)
        patched.setattr(distributed_orthogonal, "_PANEL", 300)
        patched.setattr(write, "make", counted)
        for mesh, placements in layouts:
            for dtype in (torch.float32, torch.bfloat16):
                model = deferred_init(Orthogonal, key=KEY).to(dtype)
                ranks.distribute(model, mesh, placements)
                made.clear()
                materialize_module(model)
                # Of six matrices each rank makes one or two.
                assert len(made) == (2 if rank < 2 else 1)
                for name, parameter in model.named_parameters():
                    expected = whole.get_parameter(name).to(dtype)
                    assert same(whole_of(parameter), expected), (name, placements, dtype)


class OfViews(nn.Module):
    """Tensors with parts that are filled separately, as models' own code does."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding: nn.Embedding = nn.Embedding(13, 6, padding_idx=11)
        self.weight: nn.Parameter = nn.Parameter(torch.zeros(10, 6))

    def reset_parameters(self) -> None:
        self.embedding.reset_parameters()
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            nn.init.normal_(self.weight[2:5])
            nn.init.xavier_uniform_(self.weight.data[4:, 1:5])
            self.weight[7].normal_(std=3.0)
            nn.init.constant_(self.weight[:, 3], 7.0)
            self.weight.select(0, 9)[2:4].fill_(5.0)
            self.weight.t()[0, 6].zero_()
            self.weight[8:9].data.fill_(6.0)
            init.uniform_(self.weight[9].detach(), 2.0, 3.0, generator=Key(5))


def views_of_shards_are_filled_where_they_are(rank: int) -> None:
    whole, drawn, alone = OfViews(), OfViews(), OfViews()
    with keyed(alone, KEY):
        alone.reset_parameters()
    with patch(), keyed(whole, KEY):
        whole.reset_parameters()
    torch.manual_seed(3)
    with patch():
        drawn.reset_parameters()
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    layouts: list[tuple[DeviceMesh, list[Placement]]] = [
        (line, [Shard(0)]),
        (line, [Shard(1)]),
        (square, [Shard(1), Shard(0)]),
        (square, [Replicate(), Shard(0)]),
    ]
    for mesh, placements in layouts:
        model = OfViews()
        ranks.distribute(model, mesh, placements)
        with patch(), keyed(model, KEY):
            model.reset_parameters()
        assert_same(model, whole)
        # The contexts may also nest in the other order, and keyed() works without patch().
        with keyed(model, KEY), patch():
            model.reset_parameters()
        assert_same(model, whole)
        with keyed(model, KEY):
            model.reset_parameters()
        assert_same(model, alone)
        torch.manual_seed(3)
        with patch():
            model.reset_parameters()
        assert_same(model, drawn)
        assert list(audit(model)) == []
        state = torch.get_rng_state()
        with patch():
            nn.init.normal_(model.weight[10:])
            for refused in (
                lambda w: nn.init.normal_(w[2:5], std=-1.0),
                lambda w: nn.init.sparse_(w[2], 0.1),
            ):
                assert "expected" in raised(functools.partial(refused, model.weight))
        assert torch.equal(torch.get_rng_state(), state)


def shards_on_the_host_are_filled_there(rank: int) -> None:
    model = deferred_init(nn.Linear, 8, 9, key=KEY)
    fully_shard(model, mesh=init_device_mesh("cpu", (4,)), offload_policy=CPUOffloadPolicy(pin_memory=False))
    materialize_module(model, device="cpu")
    model(torch.ones(2, 8)).sum().backward()
    assert same(whole_of(model.weight), materialize_module(deferred_init(nn.Linear, 8, 9, key=KEY)).weight)


def a_module_under_ddp_is_filled_by_name(rank: int) -> None:
    model = nn.Linear(8, 9)
    wrapped = nn.parallel.DistributedDataParallel(model)
    with patch(), keyed(wrapped, KEY):
        model.reset_parameters()
    assert same(model.weight, materialize_module(deferred_init(nn.Linear, 8, 9, key=KEY)).weight)


def the_first_fsdp_is_filled_by_name(rank: int) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(33, 17), nn.LayerNorm(17), nn.Linear(17, 5))

    whole = dict(materialize_module(deferred_init(build, key=KEY)).named_parameters())
    plan = InitPlan.of(deferred_init(build, key=KEY))
    for original in (True, False):
        wrap: Any = functools.partial(
            FullyShardedDataParallel, use_orig_params=original, device_id=torch.device("cpu")
        )
        deferred = wrap(deferred_init(build, key=KEY), param_init_fn=materialize_module)
        applied = wrap(build())
        with FullyShardedDataParallel.summon_full_params(applied):
            plan.apply(applied)
        for module in (deferred, applied):
            with FullyShardedDataParallel.summon_full_params(module):
                filled = dict(module.module.named_parameters())
                assert filled.keys() == whole.keys()
                assert all(same(filled[name], parameter) for name, parameter in whole.items())


# ----------------------------------------------------------------------------------------
# A pipeline
# ----------------------------------------------------------------------------------------


def cut(model: Any, stage: int) -> Any:
    """Return one of three pipeline stages of a two-layer Llama, under the names of the whole model."""
    inner = model.model
    if stage != 0:
        inner.embed_tokens = None
    if stage != 2:
        inner.norm = model.lm_head = None
    inner.layers = nn.ModuleDict({str(i): layer for i, layer in enumerate(inner.layers) if i == stage - 1})
    return model


def stages_of_a_pipeline_have_the_wholes_weights(rank: int) -> None:
    whole = reference()
    plan = InitPlan.of(deferred_init(llama, key=KEY))
    deferred = materialize_module(cut(deferred_init(llama, key=KEY), rank))
    applied = plan.apply(cut(llama(), rank))
    with torch.device("meta"):
        filled = cut(llama(), rank)
    filled.to_empty(device="cpu")
    with patch(), keyed(filled, KEY):
        filled.init_weights()
    for model in (deferred, applied, filled):
        found = dict(model.named_parameters())
        assert len(found) == (1, 9, 11)[rank]
        for name, tensor in found.items():
            assert same(tensor, whole.get_parameter(name)), name


def a_stage_may_number_its_layers_itself(rank: int) -> None:
    def build(layers: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(5, 5) for _ in range(layers)))

    whole, stage = build(6), build(2)
    with patch(), keyed(whole, KEY):
        for layer in whole:
            layer.reset_parameters()  # type: ignore[operator]
    with patch(), keyed(stage, KEY, aliases={str(i): str(2 * rank + i) for i in range(2)}):
        for layer in stage:
            layer.reset_parameters()  # type: ignore[operator]
    assert_same(stage, nn.Sequential(*list(whole)[2 * rank : 2 * rank + 2]))


# ----------------------------------------------------------------------------------------
# Draws
# ----------------------------------------------------------------------------------------


def ranks_that_draw_alike_are_compared_once(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("one", "other"))
    tensor = distribute_tensor(torch.zeros(8, 8), mesh, [Shard(0), Replicate()])
    torch.manual_seed(3)
    counts = []
    for fill in (
        lambda: init.normal_(tensor),
        lambda: init.uniform_(tensor),
        lambda: fill_many([(tensor, "normal_")]),
        lambda: init.normal_(tensor, generator=KEY),
        lambda: init.zeros_(tensor),
    ):
        with CommDebugMode() as seen:
            fill()
        counts.append(seen.get_total_counts())
    assert counts == [1, 0, 0, 0, 0]
    torch.manual_seed(3)
    init.normal_(tensor)
    torch.manual_seed(3)
    assert same(tensor.full_tensor(), init.normal_(torch.empty(8, 8)))


def ranks_that_draw_apart_are_named(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    seeds = {"rank 3 differs from rank 0": (0, 0, 0, 1), "ranks 1, 3 differ from rank 0": (0, 1, 0, 1)}
    for expected, seeded in seeds.items():
        generator = torch.Generator().manual_seed(seeded[rank])
        state = generator.get_state()
        tensor = distribute_tensor(torch.zeros(8, 8), mesh, [Shard(0), Replicate()])
        for call in (
            lambda: init.normal_(tensor, generator=generator),  # noqa: B023
            lambda: init.orthogonal_(tensor, generator=generator),  # noqa: B023
            lambda: fill_many([(tensor, "normal_", {}, generator)]),  # noqa: B023
        ):
            message = raised(call)
            assert expected in message
            assert "torch.manual_seed" in message
            assert "\n" not in message
        # Nothing is drawn or written, and a key needs no agreement.
        assert torch.equal(generator.get_state(), state)
        assert not tensor.to_local().any()
        init.normal_(tensor, generator=KEY)


def ranks_are_named_by_their_numbers(rank: int) -> None:
    # The groups of a mesh sort their ranks; a mesh may have them in any order.
    mesh = DeviceMesh("cpu", [[3, 1], [0, 2]])
    for other in range(1, 4):
        tensor = distribute_tensor(torch.zeros(8, 8), mesh, [Shard(0), Replicate()])
        generator = torch.Generator().manual_seed(int(rank == other))
        message = raised(lambda: init.normal_(tensor, generator=generator))  # noqa: B023
        assert f"rank {other} differs from rank 0" in message


def a_part_of_the_world_is_compared_by_itself(rank: int) -> None:
    for members in ([0, 1], [2, 3]):
        mesh = DeviceMesh("cpu", members)
        tensor = distribute_tensor(torch.zeros(8), mesh, [Shard(0)])
        if rank in members:
            # Ranks agree within each half, and the halves differ from each other.
            init.normal_(tensor, generator=torch.Generator().manual_seed(members[0]))
            other = torch.Generator().manual_seed(rank)
            message = raised(lambda: init.normal_(tensor, generator=other))  # noqa: B023
            assert f"rank {members[1]} differs from rank {members[0]}" in message
        else:
            assert "outside of it" in raised(lambda: init.normal_(tensor, generator=KEY))  # noqa: B023


def recorded_draws_that_differ_are_named(rank: int) -> None:
    torch.manual_seed(rank // 2)
    mesh = init_device_mesh("cpu", (4,))
    model = deferred_init(nn.Linear, 8, 8)
    plan = InitPlan.of(model)
    fully_shard(model, mesh=mesh)
    assert "ranks 2, 3 differ from rank 0" in raised(lambda: materialize_module(model))
    assert model.weight.is_meta
    built = nn.Linear(8, 8)
    fully_shard(built, mesh=mesh)
    before = local_of(built.weight).clone()
    assert "ranks 2, 3 differ from rank 0" in raised(lambda: plan.apply(built))
    assert same(local_of(built.weight), before)
    plan.apply(built, KEY)


# ----------------------------------------------------------------------------------------
# Checkpoints
# ----------------------------------------------------------------------------------------


def a_checkpoint_of_one_mesh_is_loaded_into_another(rank: int) -> None:
    folder = ranks.SHARED / "dcp"
    saved = materialize_module(on_fsdp_and_tp(deferred_init(llama, key=KEY)))
    saver.save(saved.state_dict(), checkpoint_id=folder)
    for layout in (on_fsdp, on_hsdp_and_tp):
        with torch.device("meta"):
            model = llama()
        layout(model).to_empty(device="cpu")
        # The checkpoint has no buffers, so the plan fills them.
        InitPlan.of(deferred_init(llama, key=KEY)).apply(model, Key(1))
        state = model.state_dict()
        loader.load(state, checkpoint_id=folder)
        model.load_state_dict(state)
        assert_same(model, materialize_module(layout(deferred_init(llama, key=KEY))))


def a_mesh_writes_each_byte_of_a_checkpoint_once(rank: int) -> None:
    of_mesh, of_one = ranks.SHARED / "together", ranks.SHARED / "alone"
    model = on_fsdp_and_tp(deferred_init(llama, key=KEY))
    files = save_initialized(model, of_mesh, "40KB")
    if rank == 0:
        save_initialized(deferred_init(llama, key=KEY), of_one, "40KB")
        assert len(files) > 8
        assert sorted(path.name for path in of_mesh.iterdir()) == sorted(path.name for path in files)
        for path in files:
            assert path.read_bytes() == (of_one / path.name).read_bytes(), path.name
        written = {path: path.stat().st_ino for path in files}
        files[3].unlink()
    dist.barrier()
    # Only the missing file is written again.
    save_initialized(model, of_mesh, "40KB")
    if rank == 0:
        same_files = [path for path in files if path.stat().st_ino == written[path]]
        assert set(files) - set(same_files) <= {files[3]}
        assert files[3].read_bytes() == (of_one / files[3].name).read_bytes()


def an_error_of_one_writer_is_raised_on_all(rank: int) -> None:
    folder = ranks.SHARED / "error"
    model = on_fsdp(deferred_init(llama, key=KEY))
    if rank == 0:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"another model's")
    dist.barrier()
    message = raised(lambda: save_initialized(model, folder))
    assert ("which is of another model" in message) == (rank == 0)
    assert ("an error on the rank at place 0" in message) == (rank != 0)
    message = raised(lambda: save_initialized(model, folder, "1TB" if rank == 2 else "a size"))
    assert ("an error on the rank at place 3" in message) == (rank == 2)
    own = ranks.SHARED / f"own of rank {rank}"
    own.mkdir()
    message = raised(lambda: save_initialized(model, own, "40KB"))
    assert ("which another rank wrote" in message) == (rank == 0)
    assert not list(own.glob("*.index.json"))
    assert "the same checkpoint on all 4 ranks" in raised(
        lambda: save_initialized(model, folder, key=Key(rank))
    )


# ----------------------------------------------------------------------------------------
# Faults
# ----------------------------------------------------------------------------------------


def what_is_refused_is_refused_on_every_rank_in_one_line(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    whole = distribute_tensor(torch.zeros(8, 8, dtype=torch.int64), mesh, [Shard(0), Replicate()])
    module = nn.Linear(8, 8)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    ranks.distribute(module, mesh, [Shard(0), Replicate()])
    for call, expected in (
        (lambda: init.normal_(whole), "expected a floating-point tensor, got torch.int64"),
        (lambda: init.orthogonal_(whole, generator=KEY), "expected a real floating-point tensor"),
        (lambda: init.normal_(module.weight, std=-1.0), "expected a finite std >= 0"),
        (
            lambda: InitPlan.of(deferred_init(nn.Linear, 8, 9, key=KEY)).apply(module),
            "expected shape (9, 8) for weight, got (8, 8)",
        ),
    ):
        message = raised(call)
        assert expected in message, message
        assert "\n" not in message
    assert not any(whole_of(tensor).any() for tensor in (whole, *module.parameters()))


DEATH = """
import os, sys, torch, torch.distributed as dist
from datetime import timedelta
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from paraminit_ext import init
import torch.multiprocessing as mp

def run(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=20))
    tensor = distribute_tensor(torch.zeros(8), init_device_mesh("cpu", (2,)), [Shard(0)])
    dist.barrier()
    if rank == 1:
        os._exit(3)
    try:
        init.normal_(tensor)
    except RuntimeError as error:
        assert not str(error).startswith("paraminit_ext"), error
        assert not tensor.to_local().any()
        open(folder + "/raised", "w").close()
    os._exit(0)

if __name__ == "__main__":
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        spawned = mp.spawn(run, (folder,), nprocs=2, join=False)
        for process in spawned.processes:
            process.join(60)
        print([process.exitcode for process in spawned.processes], os.path.exists(folder + "/raised"))
"""


def test_a_rank_that_dies_leaves_the_others_with_torchs_own_error(tmp_path: Path) -> None:
    script = tmp_path / "death.py"
    script.write_text(DEATH)
    done = subprocesses.run(str(script))
    assert done.stdout.splitlines() == ["[0, 3] True"], done.stderr[-2000:]


# ----------------------------------------------------------------------------------------
# Memory
# ----------------------------------------------------------------------------------------


def a_rank_holds_no_more_than_its_shards(rank: int) -> None:
    def build() -> nn.Sequential:
        # 64 MiB, with a row of zeros; 64 MiB of experts, filled one by one.
        return nn.Sequential(nn.Embedding(1 << 14, 1 << 10, padding_idx=5), ManyExperts())

    for dtype in (torch.float32, torch.bfloat16):
        model = deferred_init(build, key=KEY).to(dtype)
        for layer in model:
            fully_shard(layer, mesh=init_device_mesh("cpu", (4,)))
        before = peak()
        materialize_module(model)
        held = sum(local_of(p).nbytes for p in model.parameters())
        assert held == 2 * (64 << 20) * dtype.itemsize // 4 // 4
        # A fill also needs buffers of 2^18 elements and thread stacks.
        assert peak() - before <= held + (6 << 20), (peak() - before, held)


class ManyExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight: nn.Parameter = nn.Parameter(torch.empty(16, 1 << 10, 1 << 10))
        for expert in self.weight.unbind():
            nn.init.normal_(expert, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10


# ----------------------------------------------------------------------------------------

# The memory check runs first, because the peak of a process never falls.
FOUR = (
    a_rank_holds_no_more_than_its_shards,
    every_function_fills_its_shard,
    a_deferred_llama_is_materialised_into_shards,
    in_bfloat16_the_values_are_rounded,
    a_plan_is_applied_to_shards,
    a_models_own_code_fills_shards,
    experts_are_filled_where_they_are,
    matrices_are_made_by_one_rank_each,
    views_of_shards_are_filled_where_they_are,
    shards_on_the_host_are_filled_there,
    a_module_under_ddp_is_filled_by_name,
    the_first_fsdp_is_filled_by_name,
    ranks_that_draw_alike_are_compared_once,
    ranks_that_draw_apart_are_named,
    ranks_are_named_by_their_numbers,
    a_part_of_the_world_is_compared_by_itself,
    recorded_draws_that_differ_are_named,
    a_checkpoint_of_one_mesh_is_loaded_into_another,
    a_mesh_writes_each_byte_of_a_checkpoint_once,
    an_error_of_one_writer_is_raised_on_all,
    what_is_refused_is_refused_on_every_rank_in_one_line,
)
THREE = (
    every_function_fills_its_shard,
    stages_of_a_pipeline_have_the_wholes_weights,
    a_stage_may_number_its_layers_itself,
)
TWO = (every_function_fills_its_shard,)
CHECKS: dict[int, dict[str, ranks.Check]] = {
    count: {check.__name__: check for check in checks} for count, checks in ((4, FOUR), (3, THREE), (2, TWO))
}
# Checks that need the Llama of transformers.
OF_LLAMA = frozenset(
    check.__name__
    for check in (
        a_deferred_llama_is_materialised_into_shards,
        in_bfloat16_the_values_are_rounded,
        a_plan_is_applied_to_shards,
        a_models_own_code_fills_shards,
        a_checkpoint_of_one_mesh_is_loaded_into_another,
        a_mesh_writes_each_byte_of_a_checkpoint_once,
        an_error_of_one_writer_is_raised_on_all,
        stages_of_a_pipeline_have_the_wholes_weights,
    )
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int, str], None]]:
    logging.disable(logging.WARNING)  # torch warns that it gathers strided shards by two collectives
    started: dict[int, Callable[[str], None]] = {}

    def passed(count: int, name: str) -> None:
        if count not in started:
            known = {
                name: check for name, check in CHECKS[count].items() if HAS_LLAMA or name not in OF_LLAMA
            }
            started[count] = ranks.run(known, count, tmp_path_factory.mktemp("ranks"))
        started[count](name)

    yield passed
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("count", "check"), [(count, name) for count, checks in CHECKS.items() for name in checks]
)
def test_on_ranks(count: int, check: str, results: Callable[[int, str], None]) -> None:
    if check in OF_LLAMA and not HAS_LLAMA:
        pytest.skip("needs transformers (make build)")
    results(count, check)
