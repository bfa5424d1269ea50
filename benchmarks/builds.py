"""`python -m benchmarks.builds BEFORE AFTER`: compare the times of calls with two builds of the package.

BEFORE and AFTER are folders that contain a built `paraminit_ext`. Each build runs in its own process; one
measures while the other waits. The time of a row is the median over its turns. A turn takes the minimum over
several runs of the call.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.compiler import ROOT
from paraminit_ext.cli.build_facts import cpu_name

TURNS = 9
# Imports the package of one folder, and this file from another.
WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import paraminit_ext
sys.path[0] = sys.argv[2]
from benchmarks.builds import serve
serve()
"""
# The duration of a turn of one row, after one untimed call.
SECONDS = 0.05
LARGE = 1 << 24


def rows() -> dict[str, tuple[Callable[[], object], float]]:
    """Return the calls by name, each with a divisor of its time: 1, or the elements of a large fill."""
    import torch

    import paraminit_ext as ours
    from paraminit_ext import Key, init, shard

    key, generator = Key(1), torch.Generator()
    eight, sixty_four = torch.empty(8, 8), torch.nn.Parameter(torch.empty(64, 64))
    part = shard(eight, (16, 8), (8, 0))
    floats, bfloats = torch.empty(LARGE), torch.empty(LARGE, dtype=torch.bfloat16)
    wide, square = torch.empty(4096, 4096), torch.empty(2048, 2048)
    layers = [torch.empty(64, 64) for _ in range(1000)]
    entries: list[Any] = [(layer, "normal_", {"std": 0.02}, key) for layer in layers]
    drawn: list[Any] = [(layer, "normal_", {"std": 0.02}, None) for layer in layers]
    calls: dict[str, Callable[[], object]] = {
        "8 x 8 uniform_": lambda: init.uniform_(eight),
        "8 x 8 normal_": lambda: init.normal_(eight),
        "8 x 8 normal_, a generator": lambda: init.normal_(eight, generator=generator),
        "8 x 8 normal_, a key": lambda: init.normal_(eight, generator=key),
        "8 x 8 trunc_normal_, a key": lambda: init.trunc_normal_(eight, generator=key),
        "8 x 8 orthogonal_, a key": lambda: init.orthogonal_(eight, generator=key),
        "8 x 8 of 16 x 8 normal_, a key": lambda: init.normal_(part, generator=key),
        "64 x 64 normal_": lambda: init.normal_(sixty_four),
        "64 x 64 normal_, a key": lambda: init.normal_(sixty_four, generator=key),
        "64 x 64 xavier_uniform_": lambda: init.xavier_uniform_(sixty_four),
        "64 x 64 kaiming_uniform_, a key": lambda: init.kaiming_uniform_(sixty_four, generator=key),
        "64 x 64 sparse_, a key": lambda: init.sparse_(sixty_four, 0.1, generator=key),
        "fill_many, 1000 of 64 x 64, a key": lambda: ours.fill_many(entries),
        "fill_many, 1000 of 64 x 64": lambda: ours.fill_many(drawn),
        "4096 x 4096 sparse_": lambda: init.sparse_(wide, 0.1, generator=key),
        "2048 x 2048 orthogonal_": lambda: init.orthogonal_(square, generator=key),
    }
    large: dict[str, Callable[[], object]] = {
        "2^24 uniform_ float32": lambda: init.uniform_(floats, generator=key),
        "2^24 normal_ float32": lambda: init.normal_(floats, generator=key),
        "2^24 trunc_normal_ float32": lambda: init.trunc_normal_(floats, generator=key),
        "2^24 normal_ bfloat16": lambda: init.normal_(bfloats, generator=key),
    }
    return {name: (call, 1.0) for name, call in calls.items()} | {
        name: (call, float(LARGE)) for name, call in large.items()
    }


def least_seconds(call: Callable[[], object]) -> float:
    """Return the seconds of a call: the minimum over several runs of about a fifth of a turn each."""
    call()
    begin = time.perf_counter()
    call()
    count = max(1, int(SECONDS / 5 / max(time.perf_counter() - begin, 1e-7)))
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - begin) / count)
    return min(times)


def serve() -> None:
    """Measure each row that is named on standard input, and print its seconds."""
    calls = rows()
    print(json.dumps(list(calls)), flush=True)
    for line in sys.stdin:
        call, elements = calls[line.strip()]
        print(least_seconds(call) / elements, flush=True)


class Build:
    """A process that imports one build."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, folder, ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tempfile.gettempdir(),
        )
        self.rows: list[str] = json.loads(self._line())

    def __enter__(self) -> Build:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                "benchmarks.builds: expected a time, got the end of a process. See its error above."
            )
        return line

    def seconds(self, row: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(row + "\n")
        self.process.stdin.flush()
        return float(self._line())


def main(
    before: Annotated[Path, typer.Argument(exists=True, help="the folder that contains the first build")],
    after: Annotated[Path, typer.Argument(exists=True, help="the folder that contains the second build")],
) -> None:
    """Compare the times of the same calls with two builds of the package."""
    with ExitStack() as stack:
        builds = [stack.enter_context(Build(folder.resolve())) for folder in (before, after)]
        print(f"{cpu_name()}, {TURNS} turns; microseconds per call, for 2^24 elements ns per element")
        print(f"{'':<36}{'before':>10}{'after':>10}{'after/before':>14}")
        for name in builds[0].rows:
            seconds: list[list[float]] = [[], []]
            for turn in range(TURNS):
                order = (0, 1) if turn % 2 == 0 else (1, 0)
                for which in order:
                    seconds[which].append(builds[which].seconds(name))
            old, new = (statistics.median(times) for times in seconds)
            ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
            scale = 1e9 if name.startswith("2^24") else 1e6
            print(f"{name:<36}{old * scale:>10.2f}{new * scale:>10.2f}{ratio:>14.2f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
