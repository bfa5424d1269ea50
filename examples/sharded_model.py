"""A model on a mesh: FSDP2 over tensor parallelism, initialised directly in the shards.

    torchrun --nproc-per-node 4 examples/sharded_model.py

Each rank uses one GPU. On a machine without GPUs, the ranks are processes on the CPU.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional

from paraminit_ext import InitPlan, Key, deferred_init, keyed, materialize_module, patch, save_initialized

KEY = Key(2024)


class Block(nn.Module):
    """A feed-forward layer on a normalised residual. Its last matrix is scaled down by the depth."""

    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.norm: nn.RMSNorm = nn.RMSNorm(width)
        self.up: nn.Linear = nn.Linear(width, hidden, bias=False)
        self.down: nn.Linear = nn.Linear(hidden, width, bias=False)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.norm.weight)
        nn.init.trunc_normal_(self.up.weight, std=0.02)
        nn.init.trunc_normal_(self.down.weight, std=0.02 / math.sqrt(2 * self.depth))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(functional.silu(self.up(self.norm(x))))
        return x + y


class Model(nn.Module):
    """Maps tokens to logits. Checkpoints do not contain the table of positions: each model computes it."""

    positions: Tensor

    def __init__(self, vocabulary: int = 1000, width: int = 64, hidden: int = 176, depth: int = 2) -> None:
        super().__init__()
        self.embedding: nn.Embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.blocks: Any = nn.ModuleList(Block(width, hidden, depth) for _ in range(depth))
        self.head: nn.Linear = nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("positions", torch.empty(128, width), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.embedding.reset_parameters()
        for block in self.blocks:
            block.reset_parameters()
        nn.init.trunc_normal_(self.head.weight, std=self.head.in_features**-0.5)
        length, width = self.positions.shape
        place = torch.arange(length, device=self.positions.device)
        channel = torch.arange(width, device=self.positions.device)
        self.positions.copy_(torch.sin(torch.outer(place, 1e4 ** (-channel / width))))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions[: tokens.shape[-1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def shard(model: Model, mesh: DeviceMesh) -> Model:
    """Apply tensor parallelism first, then FSDP2, as torchtitan does. The model may be on meta."""
    styles: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(),
    }
    for index in range(len(model.blocks)):
        styles[f"blocks.{index}.up"] = ColwiseParallel()
        styles[f"blocks.{index}.down"] = RowwiseParallel()
    parallelize_module(model, mesh["tensor"], styles)
    for block in model.blocks:
        fully_shard(block, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    return model


def is_whole(model: Model, whole: Model) -> bool:
    """Return whether the shards of all ranks are bit for bit the model that one process would have."""
    same = [torch.equal(model.positions.cpu(), whole.positions)]
    for name, parameter in model.named_parameters():
        gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        same.append(torch.equal(gathered.cpu(), whole.get_parameter(name)))
    return all(same)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(1)
    dist.init_process_group()
    tensor = 2 if dist.get_world_size() % 2 == 0 else 1
    names = ("data", "tensor")
    mesh = init_device_mesh(device, (dist.get_world_size() // tensor, tensor), mesh_dim_names=names)
    whole = materialize_module(deferred_init(Model, key=KEY), device="cpu")

    def report(line: str) -> None:
        if dist.get_rank() == 0:
            print(line, flush=True)

    # 1. Record and shard the model on meta, then materialise it: a rank allocates and fills only its shards.
    model = shard(deferred_init(Model, key=KEY), mesh)
    materialize_module(model, device=device)
    weight = model.blocks[0].up.weight
    report(f"{weight.placements}: {tuple(weight.to_local().shape)} of {tuple(weight.shape)} on this rank")
    report(f"materialize_module: the values of the whole model, bit for bit: {is_whole(model, whole)}")

    # 2. A model that other code has built: to_empty allocates memory, and the plan writes values and buffers.
    with torch.device("meta"):
        model = Model()
    shard(model, mesh).to_empty(device=device)
    InitPlan.of(deferred_init(Model, key=KEY)).apply(model)
    report(f"InitPlan.apply: {is_whole(model, whole)}")

    # 3. Run the model's own code: the values of a parameter depend on its name, not on its sharding.
    with torch.device("meta"):
        model = Model()
    shard(model, mesh).to_empty(device=device)
    with torch.no_grad(), patch(), keyed(model, KEY):
        model.reset_parameters()
    report(f"reset_parameters: {is_whole(model, whole)}")

    # 4. Write the checkpoint of step 0: each rank writes some of the files.
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        dist.broadcast_object_list(folder)
        files = save_initialized(shard(deferred_init(Model, key=KEY), mesh), folder[0], "100KB")
        report(f"save_initialized: {len(files)} files, {sum(Path(f).stat().st_size for f in files):,} bytes")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
