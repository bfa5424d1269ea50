"""`python -m benchmarks.reading`: time the reading of a tensor's statistics against two references.

A plain read is torch's sum of the same bytes as int64, which is bound by memory bandwidth. The other
reference is the torch functions that give the same numbers: mean, standard deviation, extremes, and counts of
zero, NaN and inf. All three are timed in interleaved rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

import paraminit_ext
from benchmarks import machine

DTYPES = ("float32", "bfloat16", "float16", "float64", "complex64", "float8_e4m3fn")


def torch_functions(tensor: Tensor) -> None:
    """Compute the same numbers with functions of torch, each of which reads the tensor."""
    tensor.mean()
    tensor.std()
    tensor.aminmax()
    tensor.count_nonzero()
    tensor.isnan().sum()
    tensor.isinf().sum()


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def row(dtype_name: str, elements: int, rounds: int) -> str:
    dtype: torch.dtype = getattr(torch, dtype_name)
    kind = dtype if dtype.is_complex else torch.float32
    tensor = torch.randn(elements, dtype=kind).to(dtype)
    words = tensor.view(torch.int64)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: torch.ops.paraminit_ext.statistics(tensor),
        "read": words.sum,
    }
    if dtype.is_floating_point and dtype.itemsize > 1:
        calls["torch"] = lambda: torch_functions(tensor)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    median = {name: statistics.median(seen) for name, seen in times.items()}
    share = 100 * median["read"] / median["ours"]
    torch_ratio = f"{median['torch'] / median['ours']:.0f} times" if "torch" in median else "-"
    return (
        f"{dtype_name:<14}  {tensor.nbytes / median['ours'] / 1e9:>7.1f} GB/s  "
        f"{tensor.nbytes / median['read'] / 1e9:>7.1f} GB/s  {share:>5.0f} %  {torch_ratio:>9}"
    )


def main(
    elements: Annotated[int, typer.Option(min=8, help="elements of a tensor, a multiple of 8")] = 1 << 26,
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds, whose median is shown")] = 9,
) -> None:
    """Time the reading of a tensor's statistics against a plain read and against functions of torch."""
    if elements % 8:
        raise typer.BadParameter(f"expected a multiple of 8, got {elements}", param_hint="--elements")
    facts = machine.facts(torch.device("cpu"))
    print("; ".join(f"{name}: {fact}" for name, fact in facts.items()))
    print(
        f"{elements} elements, {rounds} interleaved rounds, instruction set {paraminit_ext.cpu_capability()}"
    )
    print(f"{'dtype':<14}  {'statistics':>12}  {'plain read':>12}  {'share':>7}  {'torch':>9}")
    for name in DTYPES:
        print(row(name, elements, rounds), flush=True)


if __name__ == "__main__":
    typer.run(main)
