"""The group `fill`: one distribution on one tensor, stock, ours and a plain fill in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.timing import Timing, time_in_turns
from paraminit_ext import init

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
# Each is called with a module that has nn.init's functions: torch.nn.init itself, then ours.
FILLS: dict[str, Callable[[ModuleType, Tensor], Tensor]] = {
    "uniform": lambda module, tensor: module.uniform_(tensor, -1.0, 1.0),
    "normal": lambda module, tensor: module.normal_(tensor, 0.0, 0.02),
    "trunc_normal": lambda module, tensor: module.trunc_normal_(tensor, 0.0, 0.02, -0.04, 0.04),
}


@dataclass(frozen=True)
class Row:
    """One result; times are medians in seconds, spreads are the rounds' range as a share of the median."""

    name: str
    bytes: int
    ours: float
    ours_spread: float
    stock: float
    stock_spread: float
    fill: float
    fill_spread: float
    ceiling_gb_s: float

    @property
    def ratio(self) -> float:
        """How many times faster than stock."""
        return self.stock / self.ours

    @property
    def share_of_fill(self) -> float:
        """The speed as a share of a plain fill's on the same tensor."""
        return self.fill / self.ours

    @property
    def gb_s(self) -> float:
        """Bytes written in a second, in units of 1e9."""
        return self.bytes / self.ours / 1e9

    def record(self) -> dict[str, str | int | float]:
        """The row with what follows from it, for a line of JSON."""
        derived = {"ratio": self.ratio, "share_of_fill": self.share_of_fill, "gb_s": self.gb_s}
        ceiling = {"share_of_ceiling": self.gb_s / self.ceiling_gb_s} if self.ceiling_gb_s else {}
        return asdict(self) | derived | ceiling


def cases(
    device: torch.device, dtypes: list[str], exponent: int, pattern: str
) -> Iterator[tuple[str, str, str]]:
    """The names of the rows to run, each with its distribution and dtype."""
    threads = f",threads={torch.get_num_threads()}" if device.type == "cpu" else ""
    for distribution in FILLS:
        for dtype in dtypes:
            name = f"fill/{distribution}[device={device.type},dtype={dtype},numel=2^{exponent}{threads}]"
            if pattern in name:
                yield name, distribution, dtype


def store_ceiling(device: torch.device, exponent: int, rounds: int) -> dict[str, float]:
    """GB/s of the plainest stores there are: torch's `fill_`, and `zero_`, which is a memset."""
    tensor = torch.empty(1 << exponent, device=device)
    calls: dict[str, Callable[[], object]] = {"fill_": lambda: tensor.fill_(1.0), "zero_": tensor.zero_}
    timings = time_in_turns(calls, device, rounds)
    return {name: tensor.nbytes / timing.median / 1e9 for name, timing in timings.items()}


def run(
    name: str,
    distribution: str,
    dtype: str,
    *,
    device: torch.device,
    exponent: int,
    rounds: int,
    ceiling_gb_s: float,
    tick: Callable[[str], object],
) -> Row:
    """Times one row; the round that does not count touches every page first."""
    tensor = torch.empty(1 << exponent, dtype=DTYPES[dtype], device=device)
    call = FILLS[distribution]
    calls: dict[str, Callable[[], object]] = {
        "fill": lambda: tensor.fill_(1.0),
        "ours": lambda: call(init, tensor),
        "stock": lambda: call(nn.init, tensor),
    }
    taken: dict[str, Timing] = time_in_turns(calls, device, rounds, tick, budget=2.0)
    return Row(
        name=name,
        bytes=tensor.nbytes,
        ours=taken["ours"].median,
        ours_spread=taken["ours"].spread,
        stock=taken["stock"].median,
        stock_spread=taken["stock"].spread,
        fill=taken["fill"].median,
        fill_spread=taken["fill"].spread,
        ceiling_gb_s=ceiling_gb_s,
    )
