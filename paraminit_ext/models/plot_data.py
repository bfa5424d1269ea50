"""The data of :func:`.plot` as plain numbers: histograms, deviations by layer, constants. Draws nothing."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from paraminit_ext.models.checkpoint_reader import StoredTensor, read_checkpoint
from paraminit_ext.models.law import Law, law_of_fill
from paraminit_ext.models.names import local_tensor, mesh_of, named_tensors, unwrapped
from paraminit_ext.models.pieces import constant_range
from paraminit_ext.models.plan import InitPlan
from paraminit_ext.models.summary import (
    Statistics,
    TensorSummary,
    layer_pattern,
    merge_statistics,
    sharded_dims,
    summary,
)

# Number of elements to count at once. On the CPU, a piece fits in a core's cache and one thread counts it:
# several threads would synchronise at every operator. Other devices use larger pieces.
PIECE, FAR_PIECE = 1 << 15, 1 << 22
# The most panels that a figure shows. Those with the most elements are kept.
MOST_PANELS = 48
MOST_DEPTHS = 12
# Minimum number of layers for a panel of deviations by layer.
_FEWEST_LAYERS = 3
# Minimum and maximum number of bins of a panel with many elements. A panel is at least so many pixels wide.
_BINS = 60, 240
# If the share of zeros is larger, zeros are not put into a bin, where they would hide the values around zero.
_MANY_ZEROS = 1e-3
# If the constant parameters of one kind have more different values, they are plotted as a distribution.
_FEW_CONSTANTS = 3


class Bins(NamedTuple):
    """Bins of equal width from ``low`` to ``high``."""

    low: float
    high: float
    number: int

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.number

    @property
    def edges(self) -> list[float]:
        return [self.low + place * self.width for place in range(self.number)] + [self.high]


@dataclass(frozen=True, slots=True)
class Histogram:
    """The histogram of the elements of one kind of layer.

    Args:
        statistics: the statistics of all elements
        counts: the number of elements in each bin
        zeros: the number of zeros, which are in no bin; None if zeros are counted in the bins
        stds: the standard deviation of each layer; None for a layer without finite elements
    """

    statistics: Statistics
    counts: tuple[int, ...]
    zeros: int | None
    stds: tuple[float | None, ...]

    def densities(self, bins: Bins) -> list[float]:
        """Return the density of each bin. Their integral is the share of the elements that are in bins."""
        scale = (sum(self.counts) + (self.zeros or 0)) * bins.width
        return [count / scale if scale else 0.0 for count in self.counts]


class Asked(NamedTuple):
    """The law that a plan requests for a tensor, and the share of its elements that follow the law.

    The other elements are overwritten by constants.
    """

    law: Law
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Panel:
    """A kind of layer: all parameters of one shape whose names have one pattern.

    Args:
        pattern: the names, with stars in place of numbers
        shape: the shape of each parameter
        names: the names of the parameters
        bins: the bins of both histograms
        now: the histogram of the current values
        before: the histogram of the earlier values, if they are given
        asked: the requested law of each parameter; None if it is not known
    """

    pattern: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    bins: Bins
    now: Histogram
    before: Histogram | None
    asked: tuple[Asked | None, ...]

    @property
    def laws(self) -> Mapping[Law, float]:
        """The requested laws and their shares of the elements; empty if any parameter's law is unknown."""
        shares: dict[Law, float] = {}
        for asked in self.asked:
            if asked is None:
                return {}
            shares[asked.law] = shares.get(asked.law, 0.0) + asked.share / len(self.asked)
        return shares

    def asked_density(self, x: float) -> float:
        """Return the requested density at x."""
        return sum(share * law.density(x) for law, share in self.laws.items())


@dataclass(frozen=True, slots=True)
class Depth:
    """The standard deviations of repeated layers.

    Args:
        pattern: the names, with stars in place of numbers
        layers: the number of each layer
        now: the standard deviation of each layer
        before: the standard deviations in the earlier state, if it is given
        asked: the requested standard deviations; None if they are not known
    """

    pattern: str
    layers: tuple[int, ...]
    now: tuple[float | None, ...]
    before: tuple[float | None, ...] | None
    asked: tuple[float | None, ...]


class Constant(NamedTuple):
    """Constant parameters with one pattern of names and the same value (in the earlier state as well)."""

    pattern: str
    value: float
    before: float | None
    number: int


@dataclass(frozen=True, slots=True)
class Panels:
    """The data of a whole figure.

    Args:
        title: the class of the module, or the name of the path
        elements: the number of elements of all shown parameters
        panels: the kinds of layers
        depths: the deviations by layer
        constants: the constant parameters, which have no panel
        more_panels: the number of kinds of layers that are left out for lack of space
        more_depths: the number of panels of deviations that are left out
        unread: the number of parameters that are complex or have no values (on meta, for example)
    """

    title: str
    elements: int
    panels: tuple[Panel, ...]
    depths: tuple[Depth, ...]
    constants: tuple[Constant, ...]
    more_panels: int
    more_depths: int
    unread: int


# ----------------------------------------------------------------------------------------
# A state: a module or a checkpoint
# ----------------------------------------------------------------------------------------


class State:
    """The floating-point parameters of a module, or all floating-point tensors of a checkpoint.

    Raises:
        OSError, ValueError: see :func:`.summary`.
    """

    def __init__(self, source: nn.Module | str | os.PathLike[str]) -> None:
        self.tensors: Mapping[str, Tensor | StoredTensor]
        if isinstance(source, nn.Module):
            self.title = type(unwrapped(source)).__name__
            self.tensors = {named.name: named.tensor for named in named_tensors(source)}
        else:
            self.title = Path(source).resolve().name
            self.tensors = read_checkpoint(source)
        rows = summary(source)
        self.statistics = rows.statistics
        # A checkpoint has no kinds, so the buffers of a module look like parameters in its checkpoint.
        self.others = {row.name for row in rows if not _is_parameter(row)}
        parameters = {row.name: row for row in rows if _is_parameter(row)}
        self.values = {name: row for name, row in parameters.items() if self._has_values(row)}
        # A tied tensor is shown only under its first name.
        self.shown = {name: row for name, row in self.values.items() if row.tie is None}
        self.unread = [name for name, row in parameters.items() if name not in self.values and not row.tie]

    def _has_values(self, row: TensorSummary) -> bool:
        return self.statistics[row.name] is not None and not row.dtype.startswith("complex")

    def read(self, name: str) -> Statistics:
        """Return the statistics of a tensor that has values."""
        statistics = self.statistics[name]
        assert statistics is not None
        return statistics


def _is_parameter(row: TensorSummary) -> bool:
    dtype = getattr(torch, row.dtype, None)
    is_floating = isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)
    return is_floating and row.kind in ("parameter", "stored") and row.numel > 0


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield all elements in small flat pieces, as views or as copies of a piece, in any order."""
    most = PIECE if tensor.device.type == "cpu" else FAR_PIECE
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(most)
    elif tensor.numel() <= most:
        yield tensor.flatten()
    else:
        rows = most * len(tensor) // tensor.numel()
        for part in tensor.split(max(rows, 1)):
            yield from pieces(part if rows else part[0])


def _parts(tensor: Tensor | StoredTensor) -> Iterator[Tensor]:
    if isinstance(tensor, StoredTensor):
        for part in tensor.parts():
            yield from pieces(part)
    else:
        yield from pieces(local_tensor(tensor).detach())


def _counted(part: Tensor, bins: Bins, all_finite: bool, zeros_apart: bool) -> Tensor:
    """Return the number of finite elements in each bin."""
    values = part if part.dtype == torch.float64 else part.float()
    # Select only if necessary: a selection takes longer than the count.
    if not all_finite:
        values = values[values.isfinite()]
    if zeros_apart:
        values = values[values != 0]
    places = values.sub(bins.low).div_(bins.high - bins.low).mul_(bins.number).long()
    # The largest element belongs to the last bin. Rounding may put the smallest one before the first bin.
    return torch.bincount(places.clamp_(0, bins.number - 1), minlength=bins.number)


def _histogram(state: State, names: Sequence[str], bins: Bins, zeros_apart: bool) -> Histogram:
    """Return the joint histogram of the tensors. For DTensors, all ranks must call this function."""
    counts = torch.zeros(bins.number, dtype=torch.int64, device="cpu")
    for name in names:
        tensor, statistics = state.tensors[name], state.read(name)
        device = "cpu" if isinstance(tensor, StoredTensor) else local_tensor(tensor).device
        own = torch.zeros(bins.number, dtype=torch.int64, device=device)
        for part in _parts(tensor):
            own += _counted(part, bins, statistics.finite == statistics.numel, zeros_apart)
        counts += _summed(own, tensor).cpu()
    read = [state.read(name) for name in names]
    total = merge_statistics(read)
    zeros = int(total.zeros) if zeros_apart else None
    return Histogram(total, tuple(counts.tolist()), zeros, tuple(statistics.std for statistics in read))


def _summed(own: Tensor, tensor: Tensor | StoredTensor) -> Tensor:
    """Return the sum of the counts over all ranks that hold shards of the tensor."""
    import torch.distributed as dist

    mesh = mesh_of(tensor)
    if isinstance(tensor, Tensor) and mesh is not None and mesh.get_coordinate() is not None:
        for dim in sharded_dims(tensor):
            dist.all_reduce(own, group=mesh.get_group(dim))
    return own


# ----------------------------------------------------------------------------------------
# From states to panels
# ----------------------------------------------------------------------------------------


def panels_of(now: State, before: State | None = None, plan: InitPlan | None = None) -> Panels:
    """Count the elements and return the data of the figure.

    Args:
        now: the current state
        before: an earlier state with the same parameters
        plan: the plan that gives the requested laws

    Raises:
        ValueError: there are no values, ``before`` has other names or shapes, or ``plan`` has none of the
            names.
    """
    hidden = now.others | (before.others if before else set())
    if plan is not None:
        hidden |= {entry.name for entry in plan if entry.kind != "parameter"}
    shown = {name: row for name, row in now.shown.items() if name not in hidden}
    _refuse_empty(now, shown)
    if before is not None:
        _refuse_others(now, before, hidden)
    asked = {name: _asked(plan, row) if plan else None for name, row in shown.items()}
    if plan is not None and not any(name in plan.entries for name in shown):
        refuse(
            f"a plan that has {next(iter(shown))}", "one that has none of the names", "Pass the model's plan."
        )

    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, row in shown.items():
        groups.setdefault((layer_pattern(name), row.shape), []).append(name)
    constants: Counter[tuple[str, float, float | None]] = Counter()
    drawn: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for group, names in groups.items():
        values = [_constant(name, now, before) for name in names]
        different = {value for value in values if value is not None}
        if None in values or len(different) > _FEW_CONSTANTS:
            drawn[group] = names
        else:
            constants.update((group[0], *value) for value in values if value is not None)
    sizes = {group: sum(shown[name].numel for name in names) for group, names in drawn.items()}
    kept = _largest(sizes, MOST_PANELS)
    panels = [_panel(*group, drawn[group], now, before, asked) for group in drawn if group in kept]

    # Layers with one pattern and several shapes share a panel of deviations. Constants are not included.
    by_pattern: dict[str, list[str]] = {panel.pattern: [] for panel in panels}
    for (pattern, _), names in drawn.items():
        if pattern in by_pattern:
            by_pattern[pattern] += names
    depths = [depth for item in by_pattern.items() if (depth := _depth(*item, now, before, asked))]
    largest = _largest(
        {depth.pattern: sum(shown[name].numel for name in by_pattern[depth.pattern]) for depth in depths},
        MOST_DEPTHS,
    )
    return Panels(
        now.title,
        sum(row.numel for row in shown.values()),
        tuple(panels),
        tuple(depth for depth in depths if depth.pattern in largest),
        tuple(Constant(*constant, number) for constant, number in constants.items()),
        len(drawn) - len(panels),
        len(depths) - len(largest),
        len(now.unread),
    )


def refuse(expected: str, got: str, remedy: str) -> NoReturn:
    raise ValueError(f"paraminit_ext.plot: expected {expected}, got {got}. {remedy}")


def _refuse_empty(now: State, shown: Mapping[str, TensorSummary]) -> None:
    if shown:
        return
    if now.unread:
        got = f"only parameters that are complex or on meta, {now.unread[0]} for example"
        refuse("real parameters with values", got, "Call materialize_module first, if deferred_init made it.")
    refuse("floating-point parameters", "none", "Pass a module or a checkpoint that has some.")


def _refuse_others(now: State, before: State, hidden: set[str]) -> None:
    """Raise unless both states have the same names and shapes. Ties may differ."""
    remedy = "Pass two states of the same model."
    for name in [*now.shown, *before.shown]:
        if name in hidden:
            continue
        for state, when in ((now, "now"), (before, "before")):
            if name not in state.values:
                refuse("the same parameters now and before", f"none with values called {name} {when}", remedy)
        shape, other = now.values[name].shape, before.values[name].shape
        if shape != other:
            refuse(f"shape {shape} before for {name}", str(other), remedy)


def _asked(plan: InitPlan, row: TensorSummary) -> Asked | None:
    """Return the law of the first fill, if all later steps only write constants to parts of the tensor."""
    if row.name not in plan.entries:
        return None
    entry = plan.resolved(plan.entries[row.name])
    if entry.shape != row.shape:
        return None
    law = law_of_fill(entry)
    ranges = [constant_range(entry, step) for step in entry.steps[1:]]
    constant_ranges = [element_range for element_range in ranges if element_range is not None]
    if law is None or len(constant_ranges) < len(ranges):
        return None
    covered = covered_end = 0
    for begin, end in sorted(constant_ranges):
        covered += max(end - max(begin, covered_end), 0)
        covered_end = max(covered_end, end)
    return Asked(law, 1 - covered / math.prod(entry.shape))


def _constant(name: str, now: State, before: State | None) -> tuple[float, float | None] | None:
    """Return the value of a constant parameter, now and before; None if it is not constant in both states."""
    read = [state.read(name) for state in (now, before) if state is not None]
    if any(
        statistics.finite != statistics.numel or statistics.least != statistics.greatest
        for statistics in read
    ):
        return None
    return read[0].least, read[1].least if before else None


def _largest(sizes: Mapping[Any, int], most: int) -> set[Any]:
    """Return the keys of the ``most`` largest sizes."""
    return set(sorted(sizes, key=lambda key: sizes[key], reverse=True)[:most])


def _panel(
    pattern: str,
    shape: tuple[int, ...],
    names: Sequence[str],
    now: State,
    before: State | None,
    asked: Mapping[str, Asked | None],
) -> Panel:
    read = [
        merge_statistics(state.read(name) for name in names) for state in (now, before) if state is not None
    ]
    bins = _bins(read)
    zeros_apart = any(statistics.zeros > _MANY_ZEROS * statistics.finite for statistics in read)
    return Panel(
        pattern,
        shape,
        tuple(names),
        bins,
        _histogram(now, names, bins, zeros_apart),
        _histogram(before, names, bins, zeros_apart) if before else None,
        tuple(asked[name] for name in names),
    )


def _bins(read: Sequence[Statistics]) -> Bins:
    """Return bins for all elements of both states, a fifth of a standard deviation wide within the limits."""
    low = min(statistics.least for statistics in read)
    high = max(statistics.greatest for statistics in read)
    if not low < high:
        # All elements are equal, or there are none.
        middle = low if math.isfinite(low) else 0.0
        reach = abs(middle) / 100 or 1.0
        low, high = middle - reach, middle + reach
    deviation = min((statistics.std for statistics in read if statistics.std), default=high - low)
    number = round(min(max(5 * (high - low) / deviation, _BINS[0]), _BINS[1]))
    # Use fewer bins for few elements, so that not most of the bins are empty.
    return Bins(low, high, min(number, max(8, round(2 * math.sqrt(read[0].finite)))))


def _depth(
    pattern: str,
    names: Sequence[str],
    now: State,
    before: State | None,
    asked: Mapping[str, Asked | None],
) -> Depth | None:
    """Return the deviations by layer: the layer is the first number in which the names differ.

    Returns None if there are too few layers, or if all are constants.
    """
    numbers = [[int(part) for part in name.split(".") if part.isdecimal()] for name in names]
    differing = [column for column in zip(*numbers, strict=True) if len(set(column)) > 1]
    if not differing or len(set(differing[0])) < _FEWEST_LAYERS:
        return None
    stds = [tuple(state.read(name).std for name in names) for state in (now, before) if state is not None]
    if not any(any(state_stds) for state_stds in stds):
        return None
    requests = [asked[name] for name in names]
    requested = [request.law.std if request and request.share == 1 else None for request in requests]
    return Depth(pattern, differing[0], stds[0], stds[1] if before else None, tuple(requested))
