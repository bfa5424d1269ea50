"""The commands ``demo``, ``info`` and ``verify``, which examine this build on this machine."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import torch
import typer
from rich.table import Table

from paraminit_ext.cli import without_extras
from paraminit_ext.cli.build_facts import info as facts
from paraminit_ext.cli.demo_model import PRESETS
from paraminit_ext.cli.output import Json, console, has_width, print_json


class Device(str, Enum):
    """The devices that ``verify`` checks."""

    cpu = "cpu"
    cuda = "cuda"


def demo(
    preset: Annotated[
        str, typer.Option(help=f"Size of the model: {', '.join(PRESETS)}.", metavar="NAME")
    ] = "1b",
    device: Annotated[
        str,
        typer.Option(help="cpu or cuda (default: cuda if available).", metavar="NAME", show_default=False),
    ] = "",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32 or fp64.", metavar="NAME")] = "fp32",
    rounds: Annotated[int, typer.Option(help="Number of timed rounds.", min=1, metavar="N")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the values that are checked.", metavar="N")] = 1,
    as_json: Json = False,
) -> None:
    """Time torch.nn.init and this package on a Llama-shaped model. Then check the mean and the standard
    deviation of every tensor. If there is not enough memory, a smaller model is used.

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
    """Print facts about this build and machine, for a bug report. These are versions, compilers, instruction
    sets, threads, GPUs and optional packages.

    For example:

      paraminit-ext info
    """
    if as_json or not has_width():
        without_extras.print_info(as_json)
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, fact in facts().items():
        table.add_row(name, fact)
    console().print(table)


def verify(
    device: Annotated[Device, typer.Option(help="cuda checks the GPU as well.")] = Device.cpu,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use smaller samples; takes less than a minute.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that this build computes the right numbers here. The checks cover known answers, golden values,
    all instruction sets, threads, layouts and shards. They end with a short statistical test.

    For example:

      paraminit-ext verify --quick
    """
    status = without_extras.print_verdict(device.value, quick, as_json)
    if status:
        raise typer.Exit(status)
