"""``python -m paraminit_ext``, and the command ``paraminit-ext``."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is returned."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(given)
    except KeyboardInterrupt:
        print("paraminit-ext: interrupted", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    try:
        # Those of the extra `cli`; torch is all that the package itself needs.
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError:
        from paraminit_ext.cli import plain

        return plain.main(arguments)
    from paraminit_ext.cli import app

    return app.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
