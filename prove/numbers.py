"""The numbers: every 32-bit word through every transform, on every instruction set."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from prove.claims import Claim


def prove(console: Console, update: bool) -> Sequence[Claim]:
    """The claims of docs/numbers.md."""
    return []
