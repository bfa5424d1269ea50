"""The command `demo`: initialise a model by stock and by this package, time both, and check the values."""

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
from paraminit_ext.cli.build_facts import cpu_name, host_memory
from paraminit_ext.cli.demo_model import PRESETS, Llama, Recipe, fill_calls, recipes
from paraminit_ext.cli.output import console, dtype_of, working
from paraminit_ext.models.summary import count_text

# Probability that a correct initialisation fails the check, for all its comparisons together.
FALSE_ALARM = 1e-9
# Bytes to keep free besides the model, for temporaries of the checks and of stock.
_MARGIN = 1 << 30
# A round repeats a short call for at least this long, so that the overhead of the clock is negligible.
_ROUND_SECONDS = 0.01

Group: TypeAlias = list[tuple[str, nn.Parameter, Recipe]]


# ----------------------------------------------------------------------------------------
# Device and model
# ----------------------------------------------------------------------------------------


def best_device() -> torch.device:
    """Return the GPU if there is one and this build has CUDA kernels. Otherwise return the CPU."""
    return torch.device("cuda" if _C.has_cuda() and torch.cuda.is_available() else "cpu")


def available_memory(device: torch.device) -> int:
    """Return the number of bytes that are free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_memory()


def choose_preset(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, Llama, str]:
    """Return a preset that fits into memory, its model on meta, and a message if it is not the wanted one."""
    names = list(PRESETS)
    message = ""
    for name in names[names.index(wanted) :]:
        with torch.device("meta"):
            model = Llama(PRESETS[name]).to(dtype)
        need = sum(parameter.nbytes for parameter in model.parameters()) + _MARGIN
        free = available_memory(device)
        if need <= free or name == names[-1]:
            return name, model, message
        message = f"Not enough memory: preset {name} needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free."
    raise AssertionError("the last preset is always returned")


# ----------------------------------------------------------------------------------------
# Checks
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Mean, standard deviation, kurtosis (3 for a normal) and bounds of a recipe's distribution."""

    mean: float
    std: float
    kurtosis: float
    low: float
    high: float


def requested_moments(recipe: Recipe) -> Moments:
    """Return the exact moments of the requested distribution."""
    if recipe.function == "ones_":
        return Moments(1.0, 0.0, 0.0, 1.0, 1.0)
    mean, std = recipe.arguments[:2]
    if recipe.function == "normal_":
        return Moments(mean, std, 3.0, -math.inf, math.inf)
    low, high = recipe.arguments[2:]
    bound = (high - mean) / std  # the bounds of a recipe are symmetric, so the odd moments are zero
    density = math.exp(-bound * bound / 2) / math.sqrt(2 * math.pi)
    inside = math.erf(bound / math.sqrt(2))
    second = 1 - 2 * bound * density / inside
    fourth = 3 * second - 2 * bound**3 * density / inside
    return Moments(mean, std * math.sqrt(second), fourth / second**2, low, high)


def measured_moments(tensor: Tensor) -> tuple[float, float, float, float]:
    """Return mean, standard deviation, minimum and maximum, computed in double precision part by part."""
    count, total, squares = tensor.numel(), 0.0, 0.0
    low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
    for part in tensor.detach().view(-1).split(1 << 24):
        wide = part.double()
        total += float(wide.sum())
        squares += float(wide.square().sum())
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean * mean, 0.0)), low, high


def check(group: Group, quantile: float) -> list[str]:
    """Return a line for each mean or deviation that is off by more than `quantile` standard errors."""
    wrong = []
    for name, parameter, recipe in group:
        want = requested_moments(recipe)
        mean, std, low, high = measured_moments(parameter)
        # Rounding to a 16-bit dtype changes a value by at most 2^-9 of it.
        rounding = 2.0**-9 if parameter.dtype.itemsize == 2 else 0.0
        mean_error = want.std / math.sqrt(parameter.numel())
        std_error = want.std * math.sqrt((want.kurtosis - 1) / (4 * parameter.numel())) if want.std else 0.0
        # A NaN anywhere makes the sums NaN, and fails both comparisons.
        if not abs(mean - want.mean) <= quantile * mean_error:
            wrong.append(f"{name}: mean {mean:.3e}, expected {want.mean:.3e} +- {quantile * mean_error:.1e}")
        if not abs(std - want.std) <= quantile * std_error + rounding**2 * want.std:
            wrong.append(f"{name}: std {std:.6e}, expected {want.std:.6e} +- {quantile * std_error:.1e}")
        # Compare with the bounds rounded to float32, which are off by at most half an ulp.
        if low < want.low - abs(want.low) * 2.0**-24 or high > want.high + abs(want.high) * 2.0**-24:
            wrong.append(f"{name}: min {low:.3e}, max {high:.3e}, expected {want.low:.3e} to {want.high:.3e}")
    return wrong


# ----------------------------------------------------------------------------------------
# Timing
# ----------------------------------------------------------------------------------------


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, tick: Callable[[], object]
) -> dict[str, float]:
    """Return the median seconds of each call. Each round times every call once, after a warm-up round."""
    threads = torch.get_num_threads()
    clocks = {
        name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()
    }
    for call in calls.values():
        call()  # touches every page
        tick()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, clock in clocks.items():
            times[name].append(clock.blocked_autorange(min_run_time=_ROUND_SECONDS).median)
            tick()
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _timed(groups: Mapping[str, Group], rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each call for each kind of layer. Ours runs last, so that its values stay."""
    medians: dict[str, dict[str, float]] = {}
    notes = console(stderr=True)
    columns = (TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn())
    # Refresh between the timed calls. A refresh thread would take a core from them.
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


def _formatted(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _row(
    kind: str, group: Sequence[tuple[str, Tensor, Recipe]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    elements = sum(parameter.numel() for _, parameter, _ in group)
    return {"kind": kind, "tensors": len(group), "elements": elements, "seconds": dict(seconds)}


def _table(rows: Sequence[Mapping[str, Any]], rounds: int) -> Table:
    title = f"median of {rounds} alternating rounds after a warm-up round"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("kind of layer", no_wrap=True)
    for header in ("tensors", "elements", "stock", "ours", "ratio", "of fill_"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        seconds = row["seconds"]
        table.add_row(
            row["kind"],
            str(row["tensors"]),
            count_text(row["elements"]),
            _formatted(seconds["stock"]),
            _formatted(seconds["ours"]),
            f"{seconds['stock'] / seconds['ours']:.1f}",
            f"{seconds['fill'] / seconds['ours']:.0%}",
        )
    return table


def run(
    preset: str, device: torch.device, dtype: str, rounds: int, seed: int, out: Console
) -> dict[str, Any]:
    """Initialise, time and check a model. Print the results, and return them for JSON output.

    Args:
        preset: the largest preset to use
        device: the device of the model
        dtype: the name of the dtype
        rounds: the number of timed rounds
        seed: the seed of the values that are checked
        out: the console to print to
    """
    chosen, model, message = choose_preset(preset, device, dtype_of(dtype))
    if message:
        out.print(f"{message} Using preset {chosen}.", style="bold")
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
    whole = [item for group in groups.values() for item in group]
    total = {name: sum(median[name] for median in medians.values()) for name in ("fill", "stock", "ours")}
    rows = [_row(kind, group, medians[kind]) for kind, group in groups.items()]
    rows.append(_row("the whole model", whole, total))
    out.print(_table(rows, rounds))

    # Two moments per tensor, with two tails each.
    quantile = -statistics.NormalDist().inv_cdf(FALSE_ALARM / (2 * 2 * len(whole)))
    with working("checking mean and standard deviation of every tensor"):
        wrong = check(whole, quantile)
    for line in wrong:
        out.print(f"wrong: {line}", style="red")
    if not wrong:
        out.print(
            f"Checked: mean and standard deviation of all {len(whole)} tensors are within {quantile:.1f}"
            f" standard errors of the requested ones (one false alarm in {1 / FALSE_ALARM:.0e} runs)."
            " There are no NaN, no value is out of bounds, and the weights of all norms are exactly one."
        )
    facts = {"machine": name, "threads": threads, "preset": chosen, "dtype": dtype, "device": device.type}
    return {**facts, "rounds": rounds, "kinds": rows, "wrong": wrong}
