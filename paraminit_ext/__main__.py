"""The entry point of ``python -m paraminit_ext`` and of the command ``paraminit-ext``."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    argv = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("paraminit-ext: interrupted", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    try:
        # The extra `cli` installs these two; the package itself needs only torch.
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError:
        from paraminit_ext.cli import without_extras

        return without_extras.main(arguments)
    from paraminit_ext.cli import app

    return app.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
