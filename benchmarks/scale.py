"""`python -m benchmarks.scale`: time one rank of thousands that initialises its shards of a very large Llama.

A fake process group replaces the other ranks: this rank does all of its own work, and never waits. The model
uses FSDP2 over tensor parallelism in groups of eight. Each number of ranks runs in its own process, because
torch remembers the rank of a process.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from benchmarks import machine
from benchmarks.fresh_memory import status_bytes
from benchmarks.rows import DTYPES
from benchmarks.whole_models import seconds
from paraminit_ext import InitPlan, Key, cpu_capability, deferred_init, materialize_module
from paraminit_ext.cli.build_facts import cpu_name

TENSOR = 8
# The sizes of Llama 405B, increased until the model has 10^12 parameters.
TRILLION = {
    "hidden_size": 20480,
    "intermediate_size": 65536,
    "num_hidden_layers": 203,
    "num_attention_heads": 160,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def build(layers: int) -> Any:
    """Build the model with transformers."""
    import transformers

    sizes = {**TRILLION, "num_hidden_layers": layers}
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=False)
    return transformers.AutoModelForCausalLM.from_config(config)


def shard(model: Any, ranks: int) -> None:
    """Apply tensor parallelism within groups, then FSDP2 across the groups."""
    mesh = init_device_mesh("cpu", (ranks // TENSOR, TENSOR), mesh_dim_names=("data", "tensor"))
    styles: dict[str, Any] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "lm_head": ColwiseParallel(),
    }
    for index in range(len(model.model.layers)):
        layer = f"model.layers.{index}"
        styles |= {f"{layer}.self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
        styles |= {f"{layer}.mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
        styles |= {f"{layer}.{name}": RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
    parallelize_module(model, mesh["tensor"], styles)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])


def local_tensors(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.to_local() for parameter in model.parameters()]  # type: ignore[attr-defined]


def measure(ranks: int, dtype: str, layers: int, rounds: int) -> dict[str, float]:
    """Measure the first of `ranks` ranks: seconds, bytes and collectives."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    logging.disable(logging.WARNING)
    deferred_init(functools.partial(build, 1))  # imports
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    models: list[Any] = []
    recording = seconds(
        lambda: models.append(deferred_init(functools.partial(build, layers), key=Key(1)).to(DTYPES[dtype]))
    )
    (model,) = models
    numel = sum(parameter.numel() for parameter in model.parameters())
    sharding = seconds(lambda: shard(model, ranks))
    before = status_bytes("VmHWM")
    with CommDebugMode() as collectives:
        first = seconds(lambda: materialize_module(model))
    shard_bytes = sum(tensor.nbytes for tensor in local_tensors(model))
    extra_bytes = status_bytes("VmHWM") - before - shard_bytes
    plan = InitPlan.of(model)
    calls: dict[str, Callable[[], Any]] = {
        "apply": lambda: plan.apply(model),
        "fill": lambda: [tensor.fill_(1.0) for tensor in local_tensors(model)],
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(seconds(call))
    # Each rank draws its own numbers, so that the values depend on the number of ranks.
    with torch.no_grad():
        stock = seconds(lambda: [nn.init.normal_(parameter, std=0.02) for parameter in model.parameters()])
    return {
        "ranks": ranks,
        "stock": stock,
        "numel": numel,
        "tensors": len(local_tensors(model)),
        "recording": recording,
        "sharding": sharding,
        "first": first,
        **{name: statistics.median(several) for name, several in times.items()},
        "held": shard_bytes,
        "beside": extra_bytes,
        "collectives": collectives.get_total_counts(),
    }


def main(
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, separated by commas.")] = "1024,4096,16384",
    dtype: Annotated[str, typer.Option(help="Dtype of the parameters: fp32, bf16 or fp16.")] = "fp32",
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model.")] = TRILLION["num_hidden_layers"],
    rounds: Annotated[int, typer.Option(min=1, help="Number of times that a fill is timed.")] = 3,
    one: Annotated[bool, typer.Option(help="Measure in this process, and print JSON.", hidden=True)] = False,
) -> None:
    """Time the first rank for several numbers of ranks: recording, sharding, the values of its shards."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if one:
        print(json.dumps(measure(int(ranks), dtype, layers, rounds)))
        return
    console = Console(width=100, highlight=False)
    console.print(
        f"{cpu_name()}, {cpu_capability()}, {torch.__version__}, {torch.get_num_threads()} threads, "
        f"commit {machine.commit()}"
    )
    table = Table(title=f"One rank, {dtype}", title_justify="left")
    for column in (
        "ranks",
        "its MB",
        "record",
        "shard",
        "first",
        "again",
        "fill_",
        "stock",
        "MB more",
        "sent",
    ):
        table.add_column(column, justify="right")
    found: dict[str, float] = {}
    for count in ranks.split(","):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale", "--one", "--ranks", count]
        command += ["--dtype", dtype, "--layers", str(layers), "--rounds", str(rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        table.add_row(
            f"{int(count):,}",
            f"{found['held'] / 1e6:,.0f}",
            *(f"{found[name]:.2f}" for name in ("recording", "sharding")),
            *(f"{found[name]:.3f}" for name in ("first", "apply", "fill")),
            f"{found['stock']:.2f}",
            f"{found['beside'] / 1e6:.0f}",
            f"{found['collectives']:.0f}",
        )
    console.print(f"{found['numel'] / 1e12:.4f} x 10^12 parameters in {found['tensors']:.0f} tensors.")
    console.print(table)
    console.print(
        "Columns in seconds: record is deferred_init; shard is torch's parallelize_module and fully_shard; "
        "first is materialize_module into new memory; again is plan.apply; fill_ and stock's normal_ write "
        "the same shards. MB more is the peak memory beyond the shards; sent is the number of collectives."
    )


if __name__ == "__main__":
    typer.run(main)
