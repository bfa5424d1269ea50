"""Timing in interleaved rounds, so that a machine that changes its pace does so for all that is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """The seconds of one call, over the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The range of the rounds as a share of their median."""
        return (max(self.seconds) - min(self.seconds)) / self.median if self.median else 0.0


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """The time of one call: CUDA events on the current stream, a wall clock elsewhere."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    tick: Callable[[str], object] = lambda _: None,
    budget: float = float("inf"),
) -> dict[str, Timing]:
    """Times each call once a round, after one round that does not count.

    Args:
        calls: what to time, by name, in the order of a round
        device: where the work is done
        rounds: how many rounds count
        tick: called with the name of each call once it is done, the first round's included
        budget: a call that takes longer than this many seconds is timed only once, its first time
    """
    first: dict[str, float] = {}
    for name, call in calls.items():
        first[name] = seconds_of(call, device)
        tick(name)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if first[name] <= budget:
                taken[name].append(seconds_of(call, device))
            tick(name)
    return {name: Timing(tuple(taken[name] or [first[name]])) for name in calls}
