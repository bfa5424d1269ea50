"""`python -m benchmarks.whole_models`: time a Llama of transformers: stock, patched, deferred, saved.

Contenders are timed in interleaved rounds, after a first build that makes the host back the memory.
"""

from __future__ import annotations

import functools
import gc
import os
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import machine
from benchmarks.fresh_memory import status_bytes
from benchmarks.rows import DTYPES, Fact, Row, line
from paraminit_ext import (
    InitPlan,
    Key,
    cpu_capability,
    deferred_init,
    materialize_module,
    patch,
    save_initialized,
)
from paraminit_ext.cli.build_facts import cpu_name

# By preset, the sizes of LlamaConfig.
PRESETS: dict[str, dict[str, int]] = {
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 101,
    },
}


def builder(preset: str, dtype: str) -> Callable[[], nn.Module]:
    """Return a function that builds the model with transformers in this dtype."""
    import transformers

    config = transformers.LlamaConfig(**PRESETS[preset], tie_word_embeddings=False, dtype=DTYPES[dtype])
    return lambda: transformers.AutoModelForCausalLM.from_config(config)


def seconds(call: Callable[[], Any]) -> float:
    """Return the seconds of one call. Freeing its result is not timed."""
    begin = time.perf_counter()
    result = call()
    end = time.perf_counter()
    del result
    gc.collect()
    return end - begin


def time_building(preset: str, dtype: str, rounds: int, stock_rounds: int) -> dict[str, float]:
    """Return the median seconds of each way to build the model, and of plain fills of its sizes."""
    build = builder(preset, dtype)
    with torch.device("meta"):
        shapes = [(parameter.shape, parameter.dtype) for parameter in build().parameters()]
    calls: dict[str, Callable[[], Any]] = {
        "patch": lambda: patch()(build)(),
        "deferred": lambda: materialize_module(deferred_init(build)),
        "recording alone": lambda: deferred_init(build),
        "fill_ of new tensors": lambda: [torch.empty(shape, dtype=kind).fill_(1.0) for shape, kind in shapes],
    }
    times: dict[str, list[float]] = {name: [] for name in ("stock", *calls)}
    calls["deferred"]()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    for _ in range(stock_rounds):
        times["stock"].append(seconds(build))
    module = materialize_module(deferred_init(build, key=Key(1)))
    plan, parameters = InitPlan.of(module), [parameter.data for parameter in module.parameters()]
    times["plan.apply"], times["fill_ of the same tensors"] = [], []
    for _ in range(rounds):
        times["plan.apply"].append(seconds(lambda: plan.apply(module)))
        times["fill_ of the same tensors"].append(seconds(lambda: [p.fill_(1.0) for p in parameters]))
    return {name: statistics.median(several) for name, several in times.items() if several}


# By case of a row: what is timed, and the plain fill that it is compared with.
CASES = {
    "patch": ("patch", "fill_ of new tensors"),
    "deferred": ("deferred", "fill_ of new tensors"),
    "apply": ("plan.apply", "fill_ of the same tensors"),
}


def rows_of(preset: str, dtype: str, times: dict[str, float]) -> list[Row]:
    """Return the times of a model as rows, for tables and figures."""
    with torch.device("meta"):
        numel = sum(parameter.numel() for parameter in builder(preset, dtype)().parameters())
    facts: dict[str, Fact] = {**machine.facts(torch.device("cpu"))}
    return [
        Row(
            name=f"whole-model/{case}[device=cpu,dtype={dtype},preset={preset}]",
            numel=numel,
            bytes=numel * DTYPES[dtype].itemsize,
            seconds={"ours": times[ours], "stock": times["stock"], "fill": times[fill]},
            spread={},
            measured={},
            facts=facts,
        )
        for case, (ours, fill) in CASES.items()
    ]


def record(preset: str) -> dict[str, float]:
    """Record a model of a preset; return seconds, MiB of memory, bytes of its plan, and parameters."""
    build = builder(preset, "bf16")
    deferred_init(builder("tiny", "bf16"))  # imports
    before = status_bytes("VmHWM")
    begin = time.perf_counter()
    module = deferred_init(build)
    duration = time.perf_counter() - begin
    memory = status_bytes("VmHWM") - before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan"
        InitPlan.of(module).save(path)
        size = path.stat().st_size
    numel = sum(parameter.numel() for parameter in module.parameters())
    return {"seconds": duration, "MiB": memory / 2**20, "bytes": size, "numel": numel}


def time_saving(preset: str, dtype: str, rounds: int, folder: Path | None) -> dict[str, float]:
    """Return the median seconds of writing a plan's checkpoint to disk, and zeros to files of its sizes.

    In each round, each runs twice and the second run counts. Its page cache is then the memory that the first
    run has just freed.
    """
    module = deferred_init(builder(preset, dtype), key=Key(1))
    zeros = memoryview(bytes(1 << 18))

    def write_zeros(directory: Path) -> None:
        for place, size in enumerate(sizes):
            with (directory / str(place)).open("wb", buffering=0) as file:
                for begin in range(0, size, len(zeros)):
                    file.write(zeros[: size - begin])
                os.fsync(file.fileno())

    calls: dict[str, Callable[[Path], Any]] = {
        "save_initialized": lambda directory: save_initialized(module, directory, progress=False),
        "zeros to files of these sizes": write_zeros,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    with tempfile.TemporaryDirectory(dir=folder) as first:
        sizes = [path.stat().st_size for path in save_initialized(module, first, progress=False)]
    for _ in range(rounds):
        for name, call in calls.items():
            for several in ([], times[name]):
                with tempfile.TemporaryDirectory(dir=folder) as directory:
                    several.append(seconds(functools.partial(call, Path(directory))))
                os.sync()
    return {name: statistics.median(several) for name, several in times.items()}


def cost_of_a_call() -> float:
    """Return how many microseconds `patch()` adds to a torch call that is not a fill: a median."""
    x, y = torch.ones(1), torch.ones(1)
    several = (lambda: x.add(y), lambda: torch.add(x, y), lambda: x.detach(), lambda: torch.empty(1))

    def once(call: Callable[[], Any]) -> float:
        return timeit.timeit(call, number=20_000) / 20_000 * 1e6

    costs: list[float] = []
    for call in several:
        outside, inside = [], []
        for _ in range(9):
            outside.append(once(call))
            with patch():
                inside.append(once(call))
        costs.append(statistics.median(inside) - statistics.median(outside))
    return statistics.median(costs)


def main(
    preset: Annotated[str, typer.Option(help=", ".join(PRESETS))] = "1b",
    large: Annotated[str, typer.Option(help="The preset that is recorded but never built.")] = "70b",
    dtype: Annotated[str, typer.Option(help="Dtypes, separated by commas: fp32, bf16, fp16.")] = "fp32,bf16",
    rounds: Annotated[int, typer.Option(min=1, help="Number of times that ours is timed.")] = 5,
    stock_rounds: Annotated[int, typer.Option(min=1, help="Number of times that stock is timed.")] = 2,
    folder: Annotated[Path | None, typer.Option(help="The folder where checkpoints are written.")] = None,
    json: Annotated[Path | None, typer.Option(help="A file for the rows of `benchmarks report`.")] = None,
) -> None:
    """Time `AutoModelForCausalLM.from_config` of a Llama: stock, under `patch()`, deferred."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    console = Console(width=100, highlight=False)
    console.print(
        f"{cpu_name()}, {cpu_capability()}, {torch.__version__}, {torch.get_num_threads()} threads, "
        f"commit {machine.commit()}"
    )
    # Run first, so that the peak of this process's memory belongs to the recording.
    found = record(large)
    console.print(
        f"Recording {found['numel'] / 1e9:.1f} billion parameters: {found['seconds']:.2f} s, "
        f"{found['MiB']:.0f} MiB, a plan of {found['bytes'] / 1e3:.0f} kB."
    )
    rows: list[Row] = []
    for name in dtype.split(","):
        times = time_building(preset, name, rounds, stock_rounds)
        rows += rows_of(preset, name, times)
        table = Table(
            title=f"from_config, Llama {preset}, {name}, {torch.get_num_threads()} threads",
            title_justify="left",
        )
        for column in ("what", "seconds", "speedup over stock"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for label, duration in times.items():
            of_stock = "" if label == "stock" else f"{times['stock'] / duration:.1f}"
            table.add_row(label, f"{duration:.3f}", of_stock)
        console.print(table)
        share = times["fill_ of the same tensors"] / times["plan.apply"]
        console.print(f"The plan on existing tensors: {share:.0%} of the speed of fill_ on them.\n")
        times = time_saving(preset, name, rounds, folder)
        table = Table(title=f"checkpoint, Llama {preset}, {name}", title_justify="left")
        for column in ("what", "seconds"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for label, duration in times.items():
            table.add_row(label, f"{duration:.3f}")
        console.print(table)
        share = times["zeros to files of these sizes"] / times["save_initialized"]
        console.print(f"The checkpoint: {share:.0%} of the speed of writing zeros.\n")
    if json is not None:
        json.write_text("".join(map(line, rows)))
    console.print(f"A torch call that is not a fill takes {cost_of_a_call():.2f} us longer under patch().")


if __name__ == "__main__":
    typer.run(main)
