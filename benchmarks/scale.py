"""`python -m benchmarks.scale`: one rank of thousands, that initialises its shards of a very large Llama.

The other ranks are a fake process group's: this one does all that it would do among them, and nothing waits.
FSDP2 over tensor parallelism in groups of eight. Each number of ranks has a process of its own, since torch
remembers the rank that it was.
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
from paraminit_ext.cli.facts import cpu_name

TENSOR = 8
# A Llama 405B's sizes made larger, until its parameters are a million millions.
TRILLION = {
    "hidden_size": 20480,
    "intermediate_size": 65536,
    "num_hidden_layers": 203,
    "num_attention_heads": 160,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def build(layers: int) -> Any:
    """The model by transformers' own code."""
    import transformers

    sizes = {**TRILLION, "num_hidden_layers": layers}
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=False)
    return transformers.AutoModelForCausalLM.from_config(config)


def shard(model: Any, ranks: int) -> None:
    """Tensor parallelism in groups, then FSDP2 across them."""
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


def locals_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.to_local() for parameter in model.parameters()]  # type: ignore[attr-defined]


def measure(ranks: int, dtype: str, layers: int, rounds: int) -> dict[str, float]:
    """What the first rank of so many does, in seconds, bytes and collectives."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    logging.disable(logging.WARNING)
    deferred_init(functools.partial(build, 1))  # imports
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    made: list[Any] = []
    recording = seconds(
        lambda: made.append(deferred_init(functools.partial(build, layers), key=Key(1)).to(DTYPES[dtype]))
    )
    (model,) = made
    numel = sum(parameter.numel() for parameter in model.parameters())
    sharding = seconds(lambda: shard(model, ranks))
    before = status_bytes("VmHWM")
    with CommDebugMode() as seen:
        first = seconds(lambda: materialize_module(model))
    held = sum(tensor.nbytes for tensor in locals_of(model))
    beside = status_bytes("VmHWM") - before - held
    plan = InitPlan.of(model)
    calls: dict[str, Callable[[], Any]] = {
        "apply": lambda: plan.apply(model),
        "fill": lambda: [tensor.fill_(1.0) for tensor in locals_of(model)],
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(seconds(call))
    # Each rank its own numbers, which are those of no other number of ranks.
    with torch.no_grad():
        stock = seconds(lambda: [nn.init.normal_(parameter, std=0.02) for parameter in model.parameters()])
    return {
        "ranks": ranks,
        "stock": stock,
        "numel": numel,
        "tensors": len(locals_of(model)),
        "recording": recording,
        "sharding": sharding,
        "first": first,
        **{name: statistics.median(several) for name, several in times.items()},
        "held": held,
        "beside": beside,
        "collectives": seen.get_total_counts(),
    }


def main(
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, separated by commas.")] = "1024,4096,16384",
    dtype: Annotated[str, typer.Option(help="Of the parameters: fp32, bf16 or fp16.")] = "fp32",
    layers: Annotated[int, typer.Option(min=1, help="Of the model.")] = TRILLION["num_hidden_layers"],
    rounds: Annotated[int, typer.Option(min=1, help="How often a fill is timed.")] = 3,
    one: Annotated[bool, typer.Option(help="Measure here, and print JSON.", hidden=True)] = False,
) -> None:
    """Times the first rank of several numbers of them: recording, sharding, its shards' values."""
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
    console.print(
        f"{found['numel'] / 1e12:.4f} million million parameters in {found['tensors']:.0f} tensors."
    )
    console.print(table)
    console.print(
        "Seconds: deferred_init; parallelize_module and fully_shard, which are torch's; materialize_module, "
        "to new memory; plan.apply; fill_ of the same shards; stock's normal_ of them. Then the most memory "
        "beside the shards, and collectives."
    )


if __name__ == "__main__":
    typer.run(main)
