"""`make demo`: a model of 1.1 billion parameters, initialised by stock and by us, timed, then checked."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.models import PRESETS, Llama, Recipe, fill_calls, recipes
from benchmarks.rows import DTYPES
from benchmarks.timing import Timing, time_in_turns
from paraminit_ext import _C, Key

# Chance that a right initialisation fails the check, all its comparisons together.
FALSE_ALARM = 1e-9

Group = list[tuple[str, nn.Parameter, Recipe]]


def best_device() -> torch.device:
    """The GPU where there are kernels for it and one is there, else the CPU."""
    return torch.device("cuda" if _C.has_cuda() and torch.cuda.is_available() else "cpu")


def choose_preset(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, Llama, str]:
    """The preset that fits in the device's memory, its model on meta, and what to say if it is smaller."""
    names = list(PRESETS)
    said = ""
    for name in names[names.index(wanted) :]:
        with torch.device("meta"):
            model = Llama(PRESETS[name]).to(dtype)
        need = sum(parameter.nbytes for parameter in model.parameters()) + machine.MARGIN
        free = machine.available_memory(device)
        if need <= free or name == names[-1]:
            return name, model, said
        said = f"Memory is short: preset {name} needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free."
    raise AssertionError("the last preset is always taken")


@dataclass(frozen=True)
class Moments:
    """Mean, standard deviation, kurtosis (3 for a normal) and support of a recipe's distribution."""

    mean: float
    std: float
    kurtosis: float
    low: float
    high: float


def asked(recipe: Recipe) -> Moments:
    """The exact moments of what was asked for."""
    if recipe.function == "ones_":
        return Moments(1.0, 0.0, 0.0, 1.0, 1.0)
    mean, std = recipe.arguments[:2]
    if recipe.function == "normal_":
        return Moments(mean, std, 3.0, -math.inf, math.inf)
    low, high = recipe.arguments[2:]
    bound = (high - mean) / std  # the recipe's bounds lie symmetrically, so the odd moments vanish
    density = math.exp(-bound * bound / 2) / math.sqrt(2 * math.pi)
    inside = math.erf(bound / math.sqrt(2))
    second = 1 - 2 * bound * density / inside
    fourth = 3 * second - 2 * bound**3 * density / inside
    return Moments(mean, std * math.sqrt(second), fourth / second**2, low, high)


def found(tensor: Tensor) -> tuple[float, float, float, float]:
    """Mean, standard deviation, least and greatest value, in double, a part at a time."""
    count, total, squares = tensor.numel(), 0.0, 0.0
    low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
    for part in tensor.detach().view(-1).split(1 << 24):
        wide = part.double()
        total += float(wide.sum())
        squares += float(wide.square().sum())
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean * mean, 0.0)), low, high


def check(group: Group, quantile: float) -> list[str]:
    """One line for each tensor whose mean or deviation is more than `quantile` standard errors off."""
    wrong = []
    for name, parameter, recipe in group:
        want = asked(recipe)
        mean, std, low, high = found(parameter)
        # 2^-9 of a value is the most that rounding to a 16-bit dtype moves it.
        rounding = 2.0**-9 if parameter.dtype.itemsize == 2 else 0.0
        mean_error = want.std / math.sqrt(parameter.numel())
        std_error = want.std * math.sqrt((want.kurtosis - 1) / (4 * parameter.numel())) if want.std else 0.0
        # A NaN anywhere makes the sums NaN, and fails both comparisons.
        if not abs(mean - want.mean) <= quantile * mean_error:
            wrong.append(f"{name}: mean {mean:.3e}, asked {want.mean:.3e} +- {quantile * mean_error:.1e}")
        if not abs(std - want.std) <= quantile * std_error + rounding**2 * want.std:
            wrong.append(f"{name}: std {std:.6e}, asked {want.std:.6e} +- {quantile * std_error:.1e}")
        # The bounds that count are those rounded to float32, half an ulp off at most.
        if low < want.low - abs(want.low) * 2.0**-24 or high > want.high + abs(want.high) * 2.0**-24:
            wrong.append(
                f"{name}: least {low:.3e}, greatest {high:.3e}, asked {want.low:.3e}, {want.high:.3e}"
            )
    return wrong


def main(
    preset: Annotated[str, typer.Option(help=f"one of {', '.join(PRESETS)}")] = "1b",
    device: Annotated[str, typer.Option(help="cpu or cuda; the best there is if not given")] = "",
    dtype: Annotated[str, typer.Option(help=f"one of {', '.join(DTYPES)}")] = "fp32",
    rounds: Annotated[int, typer.Option(help="rounds that count")] = 3,
    seed: Annotated[int, typer.Option(help="the seed of the values that are kept")] = 1,
) -> None:
    """Initialises a Llama-shaped model with stock torch.nn.init and with this package, and checks it."""
    if preset not in PRESETS or dtype not in DTYPES:
        raise typer.BadParameter(f"presets: {', '.join(PRESETS)}; dtypes: {', '.join(DTYPES)}")
    console = Console(width=None if Console().is_terminal else 120)
    place = torch.device(device) if device else best_device()
    chosen, model, said = choose_preset(preset, place, DTYPES[dtype])
    if said:
        console.print(f"[bold]{said} Taking preset {chosen}.[/bold]", highlight=False)
    facts = machine.facts(place)
    elements = sum(parameter.numel() for parameter in model.parameters())
    running = ", ".join(str(facts[name]) for name in ("machine", "cpu_capability", "torch"))
    console.print(f"{running}, {facts['threads']} threads", highlight=False)
    console.print(f"Llama-shaped model, preset {chosen}: {elements:,} parameters, {dtype}, on {place.type}")

    model.to_empty(device=place)
    groups: dict[str, Group] = {}
    for name, parameter, recipe in recipes(model):
        groups.setdefault(recipe.kind, []).append((name, parameter, recipe))
    timings: dict[str, dict[str, Timing]] = {}
    columns = (TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn())
    # Drawn between the timed calls, not by a thread that would take a core from them.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress, torch.no_grad():
        task = progress.add_task("", total=len(groups) * 3 * (rounds + 1))

        def tick(_: str) -> None:
            progress.advance(task)
            progress.refresh()

        for kind, group in groups.items():
            progress.update(task, description=kind)
            timings[kind] = time_in_turns(fill_calls(group, Key(seed)), place, rounds, tick)

    table = Table(title=f"median of {rounds} rounds in turns, on pages that a first round has touched")
    table.add_column("kind of layer")
    for header in ("tensors", "elements", "stock", "ours", "times", "share of fill_"):
        table.add_column(header, justify="right")

    def written(seconds: float) -> str:
        return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"

    def add(kind: str, tensors: int, count: int, taken: dict[str, float]) -> None:
        ratio, share = taken["stock"] / taken["ours"], taken["fill"] / taken["ours"]
        table.add_row(
            kind,
            str(tensors),
            f"{count:,}",
            written(taken["stock"]),
            written(taken["ours"]),
            f"{ratio:.1f}",
            f"{share:.0%}",
        )

    medians = {
        kind: {name: timing.median for name, timing in taken.items()} for kind, taken in timings.items()
    }
    for kind, group in groups.items():
        add(kind, len(group), sum(parameter.numel() for _, parameter, _ in group), medians[kind])
    table.add_section()
    total = {name: sum(taken[name] for taken in medians.values()) for name in ("fill", "stock", "ours")}
    add("the whole model", sum(map(len, groups.values())), elements, total)
    console.print(table)

    tensors = sum(map(len, groups.values()))
    # Two moments a tensor, two sides each.
    quantile = -statistics.NormalDist().inv_cdf(FALSE_ALARM / (2 * 2 * tensors))
    with console.status("checking mean and standard deviation of every tensor"):
        wrong = [line for group in groups.values() for line in check(group, quantile)]
    for line in wrong:
        console.print(f"[red]wrong[/red]: {line}", highlight=False)
    if wrong:
        raise typer.Exit(1)
    console.print(
        f"Checked: mean and standard deviation of all {tensors} tensors are those asked for, within"
        f" {quantile:.1f} standard errors (one false alarm in {1 / FALSE_ALARM:.0e} runs);"
        " no NaN; bounds kept; norms exactly one.",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
