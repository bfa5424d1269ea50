"""The command ``paraminit-ext``: its subcommands, and the one place that reports errors and exit statuses."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from paraminit_ext.cli import machine, plans, reports

# Errors of this package, torch or a model's code, which are printed as one line without a traceback.
_EXPECTED = (OSError, ValueError, TypeError, RuntimeError, ImportError)
_WRONG, _INTERRUPTED = 2, 130


# After a line with \b, the next paragraph is printed without rewrapping.
_HELP = """
Initialise PyTorch models, inspect their values, and check this build.

TARGET is a checkpoint or a model:

\b
  checkpoint/              a directory of safetensors files, an index file
                           in it, or one safetensors file
  config.json              a transformers configuration, or a directory that
                           contains one and no weights
  package.module:function  a function that returns a torch.nn.Module, or a
                           module; the current directory is searched first

PLAN is a file written by the command plan. If TARGET is a configuration or a function, the model is built
with the values that the command checkpoint writes for the same seed.

Exit status:

\b
  0    success
  1    audit has findings, diff has differences, or verify or demo failed
  2    wrong usage, or an error
  130  interrupted
"""


class _Commands(TyperGroup):
    """The group of all commands. Prints an error of any command as one line on standard error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Accept --traceback after the name of the command as well.
        args = sorted(args, key=lambda word: word != "--traceback")
        with _errors_as_one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _errors_as_one_line(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _errors_as_one_line(ctx: Any) -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        print(f"{_command(ctx)}: interrupted", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has closed the pipe. Redirect stdout so that the flush at exit does not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_WRONG) from None
    except Exception as error:
        if hasattr(error, "format_message"):
            # An error of the parser: a wrong option, a missing argument or an unknown command.
            message = _joined(error.format_message()).removesuffix(".")
            print(f"{_command(ctx)}: {message}. See `{_command(ctx)} --help`.", file=sys.stderr)
        elif isinstance(error, _EXPECTED) and not ctx.obj:
            print(_one_line_of(_command(ctx), error), file=sys.stderr)
        else:
            traceback.print_exc()
        raise typer.Exit(_WRONG) from None


def _command(ctx: Any) -> str:
    return " ".join(filter(None, ("paraminit-ext", ctx.invoked_subcommand)))


def _one_line_of(command: str, error: Exception) -> str:
    """Return the error as one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = _joined(text)
    # Messages of this package already begin with the name of the function.
    if text.startswith("paraminit_ext"):
        return text
    is_clear = isinstance(error, OSError) or text.startswith("expected ")
    kind = "" if is_clear else f"{type(error).__name__}: "
    return f"{command}: {kind}{text}"


def _joined(text: str) -> str:
    return " ".join(text.split())


app = typer.Typer(
    name="paraminit-ext",
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=_HELP,
    epilog="Example: paraminit-ext checkpoint config.json checkpoint/ --seed 0",
)


@app.callback(invoke_without_command=True)
def top(
    ctx: typer.Context,
    with_traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            envvar="PARAMINIT_TRACEBACK",
            help="Show the traceback of an error. Works with any command.",
        ),
    ] = False,
) -> None:
    ctx.obj = with_traceback
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(_WRONG)


for command in (
    machine.demo,
    machine.info,
    machine.verify,
    reports.summary,
    reports.audit,
    reports.plot,
    plans.plan,
    plans.show,
    plans.checkpoint,
    plans.diff,
):
    app.command()(command)


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit status."""
    return int(get_command(app).main(arguments, prog_name="paraminit-ext", standalone_mode=False) or 0)
