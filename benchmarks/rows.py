"""`Case`, a description of calls to time; `Row`, its result; and rows as lines of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Call, Tick, time_in_turns

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
Fact = str | int | float


@dataclass(frozen=True)
class Trial:
    """A case with allocated memory: the calls to time, and a function that runs after the timing."""

    calls: Mapping[str, Call]
    inspect: Callable[[], dict[str, float]] = dict


@dataclass(frozen=True)
class Case:
    """One row to measure. Nothing is allocated before `prepare` is called."""

    name: str
    numel: int
    bytes: int
    prepare: Callable[[], Trial]
    threads: int = 0  # 0: torch's number of threads
    budget: float | None = None  # seconds; a longer call is timed once; None: the budget of the run


@dataclass(frozen=True)
class Row:
    """One result. Contenders have the same names in all rows: `ours`, `stock`, `fill`, and the peers."""

    name: str
    numel: int
    bytes: int  # written by one call
    seconds: dict[str, float]  # medians of one call, by contender
    spread: dict[str, float | None]  # the range of the rounds divided by the median
    measured: dict[str, float]  # other results than times, by contender: an error, bytes
    facts: dict[str, Fact] = field(default_factory=dict)  # machine.facts()

    @cached_property
    def parts(self) -> tuple[str, str, dict[str, str]]:
        """Group, case and parameters, read from the name."""
        found = re.fullmatch(r"([\w-]+)/(\w+)\[(.*)\]", self.name)
        if found is None:
            raise ValueError(f"benchmarks: expected a name such as group/case[key=value], got {self.name!r}")
        pairs = (pair.partition("=") for pair in found.group(3).split(",") if pair)
        return found.group(1), found.group(2), {key: value for key, _, value in pairs}

    @property
    def group(self) -> str:
        return self.parts[0]

    @property
    def case(self) -> str:
        return self.parts[1]

    @property
    def parameters(self) -> dict[str, str]:
        return self.parts[2]

    def against(self, contender: str) -> float | None:
        """Return how many times as long as ours a contender takes, or None if either is not in the row."""
        if "ours" not in self.seconds or contender not in self.seconds:
            return None
        return self.seconds[contender] / self.seconds["ours"]

    @property
    def gb_s(self) -> float | None:
        """The bytes that ours writes per second, in units of 1e9."""
        return self.bytes / self.seconds["ours"] / 1e9 if "ours" in self.seconds else None

    @property
    def share_of_ceiling(self) -> float | None:
        """The speed as a share of the fastest plain store, or None if none was measured (as on the CPU)."""
        ceiling = max((float(v) for k, v in self.facts.items() if k.startswith("ceiling_")), default=0.0)
        return self.gb_s / ceiling if self.gb_s and ceiling else None

    def record(self) -> dict[str, Any]:
        """Return the row as a JSON object: the facts, the fields, and numbers derived from the fields."""
        fields: dict[str, Any] = asdict(self)
        facts: dict[str, Any] = fields.pop("facts")
        derived = {
            "ratio_to_stock": self.against("stock"),
            "share_of_fill": self.against("fill"),
            "gb_s": self.gb_s,
            "share_of_ceiling": self.share_of_ceiling,
        }
        return facts | fields | derived


FIELDS = ("name", "numel", "bytes", "seconds", "spread", "measured")
DERIVED = ("ratio_to_stock", "share_of_fill", "gb_s", "share_of_ceiling")


def read(path: Path) -> list[Row]:
    """Return the rows of a file of JSON lines."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            facts = {key: value for key, value in record.items() if key not in FIELDS + DERIVED}
            rows.append(Row(**{name: record[name] for name in FIELDS}, facts=facts))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"benchmarks: {path}, line {number}: expected a row as --json writes it, got {line[:60]!r}"
                f" ({error}). Measure again with --json."
            ) from None
    return rows


def line(row: Row) -> str:
    """Return the row as one line of JSON."""
    return json.dumps(row.record()) + "\n"


def run(
    case: Case,
    device: torch.device,
    rounds: int,
    budget: float,
    facts: Mapping[str, Fact],
    progress: Callable[[float], None],
) -> Row:
    """Time a case. `progress` is called with the share of the work that was just completed."""
    trial = case.prepare()
    share = 1.0 / max(1, len(trial.calls) * (rounds + 1))
    tick: Tick = lambda _: progress(share)  # noqa: E731
    timings = time_in_turns(
        trial.calls,
        device,
        rounds,
        tick,
        budget=budget if case.budget is None else case.budget,
        threads=case.threads,
    )
    return Row(
        name=case.name,
        numel=case.numel,
        bytes=case.bytes,
        seconds={name: timing.median for name, timing in timings.items()},
        spread={name: timing.spread for name, timing in timings.items()},
        measured=trial.inspect(),
        facts=dict(facts) | ({"threads": case.threads} if case.threads else {}),
    )


def by_group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows by group, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups
