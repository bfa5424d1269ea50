"""Tables in a page of docs/, each between markers that name it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from prove.check_result import CheckResult, ProofError

BLOCK = re.compile(r"(<!-- prove: begin (\S+) -->\n\n)(.*?)(\n\n<!-- prove: end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown. All columns except the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def hold(path: Path, tables: dict[str, str], update: bool) -> CheckResult:
    """Check that the page shows these tables. With `update`, write them to the page first."""
    page = path.read_text()
    names = [name for _, name, _, _ in BLOCK.findall(page)]
    if names != list(tables):
        raise ProofError(f"expected blocks {', '.join(tables)} in {path.name}, got {', '.join(names)}")
    expected = BLOCK.sub(lambda block: block[1] + tables[block[2]] + block[4], page)
    if update:
        path.write_text(expected)
        page = expected
    missing = [line for line in expected.splitlines() if line not in page.splitlines()]
    found = "the same" if page == expected else f"another line: {missing[0] if missing else 'fewer lines'}"
    return CheckResult(
        f"docs/{path.name} shows these figures", found, "the same, or --update", page == expected
    )
