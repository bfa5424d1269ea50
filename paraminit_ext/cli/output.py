"""What commands share: options, and where they print."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, and nothing else.")]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="A checkpoint, a config.json or module:function.")
]
Seed = Annotated[
    int | None,
    typer.Option(help="The seed of a model that is built; 0 if not given.", metavar="N"),
]

# By the names of torch, and by short ones.
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


def dtype_of(text: str) -> torch.dtype:
    """The floating-point dtype of that name."""
    found = getattr(torch, _DTYPES.get(text, text), None)
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise ValueError(f"expected a floating-point dtype, got {text}. Use bfloat16, float16 or float32.")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Else it ends the process, with a status that means something else here.
        raise BrokenPipeError


def console(stderr: bool = False, width: int | None = None) -> Console:
    """A console that shows text as it is."""
    return _Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def has_width() -> bool:
    """Whether what is printed has to fit something."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def print_found(found: object) -> None:
    """Print what can be printed and rendered: to fit a terminal, as it is to anything else."""
    if has_width():
        console().print(found)
    else:
        print(found, flush=True)


def print_json(found: Any) -> None:
    print(json.dumps(_finite(found), indent=2, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    """The value without what JSON has no number for: infinities and NaN are texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Say on a terminal what takes long. What other code prints meanwhile goes to standard error."""
    notes = console(stderr=True)
    shown = notes.status(what) if notes.is_terminal else contextlib.nullcontext()
    with contextlib.redirect_stdout(sys.stderr), shown:
        yield


@contextlib.contextmanager
def bytes_done(what: str) -> Iterator[Callable[[int, int], object] | None]:
    """What is to be called with bytes done and bytes in all; None where there is no terminal to show them."""
    notes = console(stderr=True)
    if not notes.is_terminal:
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
