"""``paraminit-ext``: its commands, and the one place where an error becomes a line and an exit status."""

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

from paraminit_ext.cli import look, machine, plans

# Of our functions, of torch, of a model's code: one line says it all.
_EXPECTED = (OSError, ValueError, TypeError, RuntimeError, ImportError)
_WRONG, _INTERRUPTED = 2, 130


# \b: what follows is printed as it stands.
_HELP = """
Initialise models of PyTorch, look at what they hold, and check this build.

TARGET names what is looked at:

\b
  checkpoint/              a directory of safetensors files, an index in it,
                           or one such file
  config.json              a configuration of transformers, or a directory
                           without weights that has one
  package.module:function  what returns a torch.nn.Module, or is one; the
                           current directory is looked in first

PLAN is a file that the command plan has written. A model that is built from a configuration or by a function
has the values that the command checkpoint writes for the same seed.

Exit status:

\b
  0    all is well, or equal
  1    findings of audit, differences of diff, failed checks of verify, demo
  2    wrong usage, or an error
  130  interrupted
"""


class _Commands(TyperGroup):
    """All commands. An error in any of them is a line on standard error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # --traceback is for every command, and may stand behind its name.
        args = sorted(args, key=lambda word: word != "--traceback")
        with _one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _one_line(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _one_line(ctx: Any) -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        print(f"{_command(ctx)}: interrupted", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read it has gone. Nothing is to be flushed there at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_WRONG) from None
    except Exception as error:
        if hasattr(error, "format_message"):
            # The parser's own: of a wrong option, a missing argument, an unknown command.
            said = _joined(error.format_message()).removesuffix(".")
            print(f"{_command(ctx)}: {said}. See `{_command(ctx)} --help`.", file=sys.stderr)
        elif isinstance(error, _EXPECTED) and not ctx.obj:
            print(_told(_command(ctx), error), file=sys.stderr)
        else:
            traceback.print_exc()
        raise typer.Exit(_WRONG) from None


def _command(ctx: Any) -> str:
    return " ".join(filter(None, ("paraminit-ext", ctx.invoked_subcommand)))


def _told(command: str, error: Exception) -> str:
    """The error as one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = _joined(text)
    # Ours say of which function they are.
    if text.startswith("paraminit_ext"):
        return text
    is_told = isinstance(error, OSError) or text.startswith("expected ")
    kind = "" if is_told else f"{type(error).__name__}: "
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
            help="Show where an error comes from; for any command.",
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
    look.summary,
    look.audit,
    look.plot,
    plans.plan,
    plans.show,
    plans.checkpoint,
    plans.diff,
):
    app.command()(command)


def main(arguments: list[str]) -> int:
    """Run the command line; the exit status is returned."""
    return int(get_command(app).main(arguments, prog_name="paraminit-ext", standalone_mode=False) or 0)
