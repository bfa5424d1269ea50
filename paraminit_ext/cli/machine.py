"""``demo``, ``info``, ``verify``: of this build on this machine."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import torch
import typer
from rich.table import Table

from paraminit_ext.cli import plain
from paraminit_ext.cli.facts import info as facts
from paraminit_ext.cli.llama import PRESETS
from paraminit_ext.cli.output import Json, console, has_width, print_json


class Device(str, Enum):
    """Where ``verify`` looks."""

    cpu = "cpu"
    cuda = "cuda"


def demo(
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.", metavar="NAME")] = "1b",
    device: Annotated[
        str,
        typer.Option(help="cpu or cuda; the best there is if not given.", metavar="NAME", show_default=False),
    ] = "",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32 or fp64.", metavar="NAME")] = "fp32",
    rounds: Annotated[int, typer.Option(help="Rounds that count.", min=1, metavar="N")] = 3,
    seed: Annotated[int, typer.Option(help="The seed of the values that are kept.", metavar="N")] = 1,
    as_json: Json = False,
) -> None:
    """Time stock and this package on a Llama, and check the values. Mean and deviation of every tensor are to
    be those asked for. Where memory is short, a smaller model is taken.

    For example:

      paraminit-ext demo --preset tiny
    """
    from paraminit_ext.cli import demo as demonstration

    if preset not in PRESETS:
        raise ValueError(f"expected a preset among {', '.join(PRESETS)}, got {preset}.")
    place = torch.device(device) if device else demonstration.best_device()
    out = console(width=None if has_width() else 120)
    out.quiet = as_json
    found = demonstration.run(preset, place, dtype, rounds, seed, out)
    if as_json:
        print_json(found)
    if found["wrong"]:
        raise typer.Exit(1)


def info(as_json: Json = False) -> None:
    """Print what was built and runs here, for a bug report. It tells versions, compilers, instruction sets,
    threads, GPUs and optional packages.

    For example:

      paraminit-ext info
    """
    if as_json or not has_width():
        plain.print_info(as_json)
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, fact in facts().items():
        table.add_row(name, fact)
    console().print(table)


def verify(
    device: Annotated[Device, typer.Option(help="cuda: the GPU as well.")] = Device.cpu,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller samples: under a minute.")] = False,
    as_json: Json = False,
) -> None:
    """Check the numbers of this build on this machine. Compared are known answers, golden values, every
    instruction set, threads, layouts and shards; a short statistical pass follows.

    For example:

      paraminit-ext verify --quick
    """
    status = plain.print_verdict(device.value, quick, as_json)
    if status:
        raise typer.Exit(status)
