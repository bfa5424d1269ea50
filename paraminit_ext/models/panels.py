"""What :func:`plot` shows as plain numbers: counts, deviations by layer, constants. Nothing is drawn here."""

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

from paraminit_ext.models.law import Law, law_of_fill
from paraminit_ext.models.look import Statistics, TensorSummary, merged, pattern_of, sharded_dims, summary
from paraminit_ext.models.names import local_tensor, mesh_of, named_tensors, unwrapped
from paraminit_ext.models.pieces import overwritten
from paraminit_ext.models.plan import InitPlan
from paraminit_ext.models.stored import Stored, stored

# Elements that are counted at once, in a core's cache and by one thread: several would wait for each other at
# each operator. Other devices take more.
PIECE, FAR_PIECE = 1 << 15, 1 << 22
# What a figure has room for: those with the most elements are kept.
MOST_PANELS = 48
MOST_DEPTHS = 12
# Layers from which a deviation by layer says something.
_FEWEST_LAYERS = 3
# The fewest and the most bins of a panel with elements enough: no more than it has points.
_BINS = 60, 240
# Share of zeros from which they stand apart: in a bin they would hide how the others lie around zero.
_MANY_ZEROS = 1e-3
# Constants of one kind of layer, from which they are rather values of a distribution.
_FEW_CONSTANTS = 3


class Bins(NamedTuple):
    """Equal bins from ``low`` to ``high``."""

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
    """The elements of a kind of layer, counted.

    Args:
        statistics: of all of them
        counts: how many are in each bin
        zeros: how many were put in no bin because they are zero; None where zeros stand in a bin as others
        stds: the deviation of each layer; None for one without finite elements
    """

    statistics: Statistics
    counts: tuple[int, ...]
    zeros: int | None
    stds: tuple[float | None, ...]

    def densities(self, bins: Bins) -> list[float]:
        """Of each bin; they integrate to the share of the elements that are in bins."""
        all_of_them = (sum(self.counts) + (self.zeros or 0)) * bins.width
        return [count / all_of_them if all_of_them else 0.0 for count in self.counts]


class Asked(NamedTuple):
    """What a plan says of a tensor: the law of its elements, but for a share that are constants in places."""

    law: Law
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Panel:
    """A kind of layer: all parameters of one pattern of names and one shape.

    Args:
        pattern: the name with stars
        shape: the sizes
        names: of the parameters
        bins: in which both states are counted
        now: what was counted
        before: the same of the state before
        asked: what each of the parameters was asked to be; None where that is not known
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
        """The laws that were asked for, each with its share of the elements; empty if one is not known."""
        found: dict[Law, float] = {}
        for one in self.asked:
            if one is None:
                return {}
            found[one.law] = found.get(one.law, 0.0) + one.share / len(self.asked)
        return found

    def asked_density(self, x: float) -> float:
        """The density that was asked for, at x."""
        return sum(share * law.density(x) for law, share in self.laws.items())


@dataclass(frozen=True, slots=True)
class Depth:
    """The deviations of repeated layers.

    Args:
        pattern: the name with stars
        layers: the number of each layer
        now: its deviation
        before: the same of the state before
        asked: the deviation that was asked for; None where that is not known
    """

    pattern: str
    layers: tuple[int, ...]
    now: tuple[float | None, ...]
    before: tuple[float | None, ...] | None
    asked: tuple[float | None, ...]


class Constant(NamedTuple):
    """Parameters of one pattern whose elements are all the same number, and were the same one before."""

    pattern: str
    value: float
    before: float | None
    number: int


@dataclass(frozen=True, slots=True)
class Panels:
    """All of a figure.

    Args:
        title: the class of the module, or the name of the path
        elements: of the parameters that there are
        panels: the kinds of layers
        depths: deviations by layer
        constants: what has no panel since it is one number
        more_panels: kinds of layers that there is no room for
        more_depths: the same of deviations
        unread: parameters that are complex, or have no values, on meta for example
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
    """The floating-point parameters of a module or a checkpoint: all that stands in the latter.

    Raises:
        OSError, ValueError: as of :func:`summary`.
    """

    def __init__(self, source: nn.Module | str | os.PathLike[str]) -> None:
        self.tensors: Mapping[str, Tensor | Stored]
        if isinstance(source, nn.Module):
            self.title = type(unwrapped(source)).__name__
            self.tensors = {one.name: one.tensor for one in named_tensors(source)}
        else:
            self.title = Path(source).resolve().name
            self.tensors = stored(source)
        found = summary(source)
        self.statistics = found.statistics
        # Another state may have buffers as parameters: a file has no kinds.
        self.others = {one.name for one in found if not _is_parameter(one)}
        parameters = {one.name: one for one in found if _is_parameter(one)}
        self.values = {name: one for name, one in parameters.items() if self._has_values(one)}
        # A tied tensor is shown under its first name alone.
        self.shown = {name: one for name, one in self.values.items() if one.tie is None}
        self.unread = [name for name, one in parameters.items() if name not in self.values and not one.tie]

    def _has_values(self, one: TensorSummary) -> bool:
        return self.statistics[one.name] is not None and not one.dtype.startswith("complex")

    def read(self, name: str) -> Statistics:
        found = self.statistics[name]
        assert found is not None
        return found


def _is_parameter(one: TensorSummary) -> bool:
    dtype = getattr(torch, one.dtype, None)
    real = isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)
    return real and one.kind in ("parameter", "stored") and one.numel > 0


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """All elements, flat, in small parts: in memory's order or a copy, never a copy of all."""
    most = PIECE if tensor.device.type == "cpu" else FAR_PIECE
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(most)
    elif tensor.numel() <= most:
        yield tensor.flatten()
    else:
        rows = most * len(tensor) // tensor.numel()
        for part in tensor.split(max(rows, 1)):
            yield from pieces(part if rows else part[0])


def _parts(tensor: Tensor | Stored) -> Iterator[Tensor]:
    if isinstance(tensor, Stored):
        for part in tensor.parts():
            yield from pieces(part)
    else:
        yield from pieces(local_tensor(tensor).detach())


def _counted(part: Tensor, bins: Bins, all_finite: bool, zeros_apart: bool) -> Tensor:
    """How many finite elements are in each bin."""
    values = part if part.dtype == torch.float64 else part.float()
    # Choosing costs more than counting.
    if not all_finite:
        values = values[values.isfinite()]
    if zeros_apart:
        values = values[values != 0]
    places = values.sub(bins.low).div_(bins.high - bins.low).mul_(bins.number).long()
    # The greatest is in the last bin; rounding may put the least before the first.
    return torch.bincount(places.clamp_(0, bins.number - 1), minlength=bins.number)


def _histogram(state: State, names: Sequence[str], bins: Bins, zeros_apart: bool) -> Histogram:
    """Of the tensors together. Of DTensors every rank has to call."""
    counts = torch.zeros(bins.number, dtype=torch.int64, device="cpu")
    for name in names:
        tensor, found = state.tensors[name], state.read(name)
        device = "cpu" if isinstance(tensor, Stored) else local_tensor(tensor).device
        own = torch.zeros(bins.number, dtype=torch.int64, device=device)
        for part in _parts(tensor):
            own += _counted(part, bins, found.finite == found.numel, zeros_apart)
        counts += _summed(own, tensor).cpu()
    read = [state.read(name) for name in names]
    together = merged(read)
    zeros = int(together.zeros) if zeros_apart else None
    return Histogram(together, tuple(counts.tolist()), zeros, tuple(one.std for one in read))


def _summed(own: Tensor, tensor: Tensor | Stored) -> Tensor:
    """The counts of all ranks that hold parts of the tensor."""
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
    """Count what is there.

    Args:
        now: what is shown
        before: a state before, with the same parameters
        plan: what was asked for

    Raises:
        ValueError: there are no values, or ``before`` has other names or shapes, or ``plan`` none of the
            names.
    """
    hidden = now.others | (before.others if before else set())
    if plan is not None:
        hidden |= {entry.name for entry in plan if entry.kind != "parameter"}
    shown = {name: one for name, one in now.shown.items() if name not in hidden}
    _refuse_empty(now, shown)
    if before is not None:
        _refuse_others(now, before, hidden)
    asked = {name: _asked(plan, one) if plan else None for name, one in shown.items()}
    if plan is not None and not any(name in plan.entries for name in shown):
        refuse(f"a plan that has {next(iter(shown))}", "one that has none of the names", "Pass its own plan.")

    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, one in shown.items():
        groups.setdefault((pattern_of(name), one.shape), []).append(name)
    constants: Counter[tuple[str, float, float | None]] = Counter()
    drawn: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for group, names in groups.items():
        values = [_constant(name, now, before) for name in names]
        known = {value for value in values if value is not None}
        if None in values or len(known) > _FEW_CONSTANTS:
            drawn[group] = names
        else:
            constants.update((group[0], *value) for value in values if value is not None)
    sizes = {group: sum(shown[name].numel for name in names) for group, names in drawn.items()}
    kept = _largest(sizes, MOST_PANELS)
    panels = [_panel(*group, drawn[group], now, before, asked) for group in drawn if group in kept]

    # Of one kind with several shapes the layers stand together, but for constants.
    by_pattern: dict[str, list[str]] = {panel.pattern: [] for panel in panels}
    for (pattern, _), names in drawn.items():
        if pattern in by_pattern:
            by_pattern[pattern] += names
    depths = [depth for one in by_pattern.items() if (depth := _depth(*one, now, before, asked))]
    largest = _largest(
        {one.pattern: sum(shown[name].numel for name in by_pattern[one.pattern]) for one in depths},
        MOST_DEPTHS,
    )
    return Panels(
        now.title,
        sum(one.numel for one in shown.values()),
        tuple(panels),
        tuple(one for one in depths if one.pattern in largest),
        tuple(Constant(*one, number) for one, number in constants.items()),
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
        got = f"{now.unread[0]}, which is complex or on meta, and no other"
        refuse("real parameters with values", got, "Call materialize_module first, if deferred_init made it.")
    refuse("floating-point parameters", "none", "Pass a module or a checkpoint that has some.")


def _refuse_others(now: State, before: State, hidden: set[str]) -> None:
    """Raise unless both have the same names and shapes, tied or not."""
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


def _asked(plan: InitPlan, one: TensorSummary) -> Asked | None:
    """The law of the first fill, where nothing follows it but constants in places."""
    if one.name not in plan.entries:
        return None
    entry = plan.resolved(plan.entries[one.name])
    if entry.shape != one.shape:
        return None
    law = law_of_fill(entry)
    ranges = [overwritten(entry, step) for step in entry.steps[1:]]
    known = [reach for reach in ranges if reach is not None]
    if law is None or len(known) < len(ranges):
        return None
    covered = done = 0
    for begin, end in sorted(known):
        covered += max(end - max(begin, done), 0)
        done = max(done, end)
    return Asked(law, 1 - covered / math.prod(entry.shape))


def _constant(name: str, now: State, before: State | None) -> tuple[float, float | None] | None:
    """The number that all elements are, and were; None if they are several."""
    found = [state.read(name) for state in (now, before) if state is not None]
    if any(one.finite != one.numel or one.least != one.greatest for one in found):
        return None
    return found[0].least, found[1].least if before else None


def _largest(sizes: Mapping[Any, int], most: int) -> set[Any]:
    """The keys of the greatest sizes."""
    return set(sorted(sizes, key=lambda key: sizes[key], reverse=True)[:most])


def _panel(
    pattern: str,
    shape: tuple[int, ...],
    names: Sequence[str],
    now: State,
    before: State | None,
    asked: Mapping[str, Asked | None],
) -> Panel:
    read = [merged(state.read(name) for name in names) for state in (now, before) if state is not None]
    bins = _bins(read)
    apart = any(one.zeros > _MANY_ZEROS * one.finite for one in read)
    return Panel(
        pattern,
        shape,
        tuple(names),
        bins,
        _histogram(now, names, bins, apart),
        _histogram(before, names, bins, apart) if before else None,
        tuple(asked[name] for name in names),
    )


def _bins(read: Sequence[Statistics]) -> Bins:
    """Bins that have all elements of both states: a fifth of a deviation wide, if they are not too many."""
    low = min(one.least for one in read)
    high = max(one.greatest for one in read)
    if not low < high:
        # One number, or none.
        middle = low if math.isfinite(low) else 0.0
        reach = abs(middle) / 100 or 1.0
        low, high = middle - reach, middle + reach
    deviation = min((one.std for one in read if one.std), default=high - low)
    number = round(min(max(5 * (high - low) / deviation, _BINS[0]), _BINS[1]))
    # Of few elements most bins would be empty.
    return Bins(low, high, min(number, max(8, round(2 * math.sqrt(read[0].finite)))))


def _depth(
    pattern: str,
    names: Sequence[str],
    now: State,
    before: State | None,
    asked: Mapping[str, Asked | None],
) -> Depth | None:
    """The deviations by the first number in which the names differ; None for too few layers, or constants."""
    numbers = [[int(part) for part in name.split(".") if part.isdecimal()] for name in names]
    differing = [place for place in zip(*numbers, strict=True) if len(set(place)) > 1]
    if not differing or len(set(differing[0])) < _FEWEST_LAYERS:
        return None
    stds = [tuple(state.read(name).std for name in names) for state in (now, before) if state is not None]
    if not any(any(one) for one in stds):
        return None
    known = [one.law.std if one and one.share == 1 else None for one in map(asked.__getitem__, names)]
    return Depth(pattern, differing[0], stds[0], stds[1] if before else None, tuple(known))
