"""What `demo` does: a model, initialised by stock and by us, timed in turns, then checked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from paraminit_ext import _C, Key, cpu_capability
from paraminit_ext.cli.facts import cpu_name, host_memory
from paraminit_ext.cli.llama import PRESETS, Llama, Recipe, fill_calls, recipes
from paraminit_ext.cli.output import console, dtype_of, working
from paraminit_ext.models.look import told_count

# Chance that a right initialisation fails the check, all its comparisons together.
FALSE_ALARM = 1e-9
# Bytes that stay free beside what is filled: temporaries of checks and of stock functions.
_MARGIN = 1 << 30
# A round repeats a short call until this much time has gone by: the clock's own cost is then nothing.
_ROUND_SECONDS = 0.01

Group: TypeAlias = list[tuple[str, nn.Parameter, Recipe]]


# ----------------------------------------------------------------------------------------
# Where, and which model
# ----------------------------------------------------------------------------------------


def best_device() -> torch.device:
    """The GPU where there are kernels for it and one is there, else the CPU."""
    return torch.device("cuda" if _C.has_cuda() and torch.cuda.is_available() else "cpu")


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_memory()


def choose_preset(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, Llama, str]:
    """The preset that fits in the device's memory, its model on meta, and what to say if it is smaller."""
    names = list(PRESETS)
    said = ""
    for name in names[names.index(wanted) :]:
        with torch.device("meta"):
            model = Llama(PRESETS[name]).to(dtype)
        need = sum(parameter.nbytes for parameter in model.parameters()) + _MARGIN
        free = available_memory(device)
        if need <= free or name == names[-1]:
            return name, model, said
        said = f"Memory is short: preset {name} needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free."
    raise AssertionError("the last preset is always taken")


# ----------------------------------------------------------------------------------------
# Checks
# ----------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------
# Timing
# ----------------------------------------------------------------------------------------


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, tick: Callable[[], object]
) -> dict[str, float]:
    """Median seconds of each call, timed once a round, after a round that does not count."""
    threads = torch.get_num_threads()
    clocks = {
        name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()
    }
    for call in calls.values():
        call()  # touches every page
        tick()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, clock in clocks.items():
            taken[name].append(clock.blocked_autorange(min_run_time=_ROUND_SECONDS).median)
            tick()
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _timed(groups: Mapping[str, Group], rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """Seconds of each way to fill each kind of layer; ours comes last, so that its values stay."""
    medians: dict[str, dict[str, float]] = {}
    notes = console(stderr=True)
    columns = (TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn())
    # Drawn between the timed calls, not by a thread that would take a core from them.
    hidden = not notes.is_terminal
    progress = Progress(*columns, console=notes, transient=True, auto_refresh=False, disable=hidden)
    with progress, torch.no_grad():
        task = progress.add_task("", total=len(groups) * 3 * (rounds + 1))

        def tick() -> None:
            progress.advance(task)
            progress.refresh()

        for kind, group in groups.items():
            progress.update(task, description=kind)
            medians[kind] = time_in_turns(fill_calls(group, Key(seed)), rounds, tick)
    return medians


# ----------------------------------------------------------------------------------------
# The demonstration
# ----------------------------------------------------------------------------------------


def _written(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _row(
    kind: str, group: Sequence[tuple[str, Tensor, Recipe]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    elements = sum(parameter.numel() for _, parameter, _ in group)
    return {"kind": kind, "tensors": len(group), "elements": elements, "seconds": dict(seconds)}


def _table(rows: Sequence[Mapping[str, Any]], rounds: int) -> Table:
    title = f"median of {rounds} rounds in turns, on pages that a first round has touched"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("kind of layer", no_wrap=True)
    for header in ("tensors", "elements", "stock", "ours", "times", "of fill_"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        taken = row["seconds"]
        table.add_row(
            row["kind"],
            str(row["tensors"]),
            told_count(row["elements"]),
            _written(taken["stock"]),
            _written(taken["ours"]),
            f"{taken['stock'] / taken['ours']:.1f}",
            f"{taken['fill'] / taken['ours']:.0%}",
        )
    return table


def run(
    preset: str, device: torch.device, dtype: str, rounds: int, seed: int, out: Console
) -> dict[str, Any]:
    """Initialise, time and check a model; what is found is printed, and returned as JSON has it.

    Args:
        preset: the largest model that may be taken
        device: where
        dtype: the name of a dtype, as it is printed
        rounds: how many are timed
        seed: of the values that are kept
        out: where to print
    """
    chosen, model, said = choose_preset(preset, device, dtype_of(dtype))
    if said:
        out.print(f"{said} Taking preset {chosen}.", style="bold")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    threads = torch.get_num_threads()
    out.print(f"{name}, {cpu_capability()}, {torch.__version__}, {threads} threads")
    elements = sum(parameter.numel() for parameter in model.parameters())
    out.print(f"Llama-shaped model, preset {chosen}: {elements:,} parameters, {dtype}, on {device.type}")

    model.to_empty(device=device)
    groups: dict[str, Group] = {}
    for place, parameter, recipe in recipes(model):
        groups.setdefault(recipe.kind, []).append((place, parameter, recipe))
    medians = _timed(groups, rounds, seed)
    whole = [one for group in groups.values() for one in group]
    total = {name: sum(taken[name] for taken in medians.values()) for name in ("fill", "stock", "ours")}
    rows = [_row(kind, group, medians[kind]) for kind, group in groups.items()]
    rows.append(_row("the whole model", whole, total))
    out.print(_table(rows, rounds))

    # Two moments a tensor, two sides each.
    quantile = -statistics.NormalDist().inv_cdf(FALSE_ALARM / (2 * 2 * len(whole)))
    with working("checking mean and standard deviation of every tensor"):
        wrong = check(whole, quantile)
    for line in wrong:
        out.print(f"wrong: {line}", style="red")
    if not wrong:
        out.print(
            f"Checked: mean and standard deviation of all {len(whole)} tensors are those asked for, within"
            f" {quantile:.1f} standard errors (one false alarm in {1 / FALSE_ALARM:.0e} runs);"
            " no NaN; bounds kept; norms exactly one."
        )
    facts = {"machine": name, "threads": threads, "preset": chosen, "dtype": dtype, "device": device.type}
    return {**facts, "rounds": rounds, "kinds": rows, "wrong": wrong}
