"""Options and output functions that the commands share."""

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

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to standard output.")]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="A checkpoint, a config.json or module:function.")
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the model, if TARGET builds one (default: 0).", metavar="N"),
]

# Short names, which are accepted besides the names of torch.
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


def dtype_of(text: str) -> torch.dtype:
    """Return the floating-point dtype with this name."""
    dtype = getattr(torch, _DTYPES.get(text, text), None)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    raise ValueError(f"expected a floating-point dtype, got {text}. Use bfloat16, float16 or float32.")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would exit with status 1, which has another meaning here.
        raise BrokenPipeError


def console(stderr: bool = False, width: int | None = None) -> Console:
    """Return a console that prints text without markup."""
    return _Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def has_width() -> bool:
    """Return whether the output must fit a width: on a terminal, or if COLUMNS is set."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def print_found(found: object) -> None:
    """Print an object: rendered by rich to fit a terminal, or as plain text to a file or pipe."""
    if has_width():
        console().print(found)
    else:
        print(found, flush=True)


def print_json(found: Any) -> None:
    print(json.dumps(_finite(found), indent=2, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    """Return the value with infinities and NaN replaced by strings, because JSON has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show a status on a terminal during a slow operation, and redirect stdout of other code to stderr."""
    notes = console(stderr=True)
    shown = notes.status(what) if notes.is_terminal else contextlib.nullcontext()
    with contextlib.redirect_stdout(sys.stderr), shown:
        yield


@contextlib.contextmanager
def bytes_done(what: str) -> Iterator[Callable[[int, int], object] | None]:
    """Yield a function that shows progress (bytes done, total bytes); None if stderr is not a terminal."""
    notes = console(stderr=True)
    if not notes.is_terminal:
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
