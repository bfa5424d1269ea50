"""Timing in interleaved rounds, so that a machine that changes its pace does so for all that is compared."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.common import set_torch_threads

# A round repeats a short call until this much time has gone by: the clock's own cost is then nothing.
ROUND_SECONDS = 0.01

Call = Callable[[], object]
Tick = Callable[[str], object]


@dataclass(frozen=True)
class SelfTimed:
    """A call that gives its own seconds: one in another process, or one that waits for its own stream."""

    seconds: Callable[[], float]

    def __call__(self) -> float:
        return self.seconds()


@dataclass(frozen=True)
class Timing:
    """The seconds of one call, over the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float | None:
        """The range of the rounds as a share of their median; None for a call that was timed once."""
        if len(self.seconds) < 2:
            return None
        return (max(self.seconds) - min(self.seconds)) / self.median


def wall_seconds(call: Call) -> float:
    """The time of one call by the wall clock."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def event_seconds(call: Call, repeats: int = 1) -> float:
    """The time of a call on the current CUDA stream, by events around as many as are asked for."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def stopwatch(call: Call, device: torch.device, threads: int, first: float) -> Callable[[], float]:
    """What times the call once a round; `first` is about how long it takes."""
    if isinstance(call, SelfTimed):
        return call.seconds
    if device.type == "cuda":
        repeats = max(1, min(1000, math.ceil(ROUND_SECONDS / max(first, 1e-6))))
        return lambda: event_seconds(call, repeats)
    timer = Timer(stmt="call()", globals={"call": call}, num_threads=threads)
    return lambda: float(timer.blocked_autorange(min_run_time=ROUND_SECONDS).median)


def time_in_turns(
    calls: Mapping[str, Call],
    device: torch.device,
    rounds: int,
    tick: Tick = lambda _: None,
    *,
    budget: float = math.inf,
    threads: int = 0,
) -> dict[str, Timing]:
    """Times each call once a round, after one round that does not count.

    Args:
        calls: what to time, by name, in the order of a round
        device: where the work is done: CUDA events there, `torch.utils.benchmark` elsewhere
        rounds: how many rounds count
        tick: called with the name of each call once it is done, the first round's included
        budget: a call that takes longer than this many seconds is timed only once, its first time
        threads: torch's threads while it is done; 0 leaves them
    """
    threads = threads or torch.get_num_threads()
    first: dict[str, float] = {}
    with set_torch_threads(threads):
        for name, call in calls.items():
            if not first:
                call()  # touches every page, which no time that may be kept is to have in it
            if isinstance(call, SelfTimed):
                first[name] = call.seconds()
            elif device.type == "cuda":
                first[name] = event_seconds(call)
                if first[name] <= budget:  # the first time also loads its kernels
                    first[name] = event_seconds(call)
            else:
                first[name] = wall_seconds(call)
            tick(name)
        clocks = {name: stopwatch(call, device, threads, first[name]) for name, call in calls.items()}
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, clock in clocks.items():
                if first[name] <= budget:
                    taken[name].append(clock())
                tick(name)
    return {name: Timing(tuple(taken[name] or [first[name]])) for name in calls}
