"""Timing in interleaved rounds, so that a change of the machine's speed affects all compared calls alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.common import set_torch_threads

# A round repeats a short call for this long, so that the overhead of the clock is negligible.
ROUND_SECONDS = 0.01

Call = Callable[[], object]
Tick = Callable[[str], object]


@dataclass(frozen=True)
class SelfTimed:
    """A call that returns its own seconds, because it runs in another process or on its own stream."""

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
    """Return the wall-clock time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def event_seconds(call: Call, repeats: int = 1) -> float:
    """Return the time of a call on the current CUDA stream, by events around `repeats` calls."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def stopwatch(call: Call, device: torch.device, threads: int, first: float) -> Callable[[], float]:
    """Return a function that times the call once a round. `first` is the approximate time of the call."""
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
    """Time each call once a round, after a first round that does not count.

    Args:
        calls: the calls to time, by name, in the order of a round
        device: the device of the work; CUDA is timed by events, others by `torch.utils.benchmark`
        rounds: number of rounds that count
        tick: called with the name of each completed call, also in the first round
        budget: a call that takes longer than this many seconds is timed only in the first round
        threads: torch's number of threads during the calls; 0 leaves it unchanged
    """
    threads = threads or torch.get_num_threads()
    first: dict[str, float] = {}
    with set_torch_threads(threads):
        for name, call in calls.items():
            if not first:
                call()  # touches every page, so that no time includes page faults
            if isinstance(call, SelfTimed):
                first[name] = call.seconds()
            elif device.type == "cuda":
                first[name] = event_seconds(call)
                if first[name] <= budget:  # the first call also loads its kernels
                    first[name] = event_seconds(call)
            else:
                first[name] = wall_seconds(call)
            tick(name)
        clocks = {name: stopwatch(call, device, threads, first[name]) for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, clock in clocks.items():
                if first[name] <= budget:
                    times[name].append(clock())
                tick(name)
    return {name: Timing(tuple(times[name] or [first[name]])) for name in calls}
