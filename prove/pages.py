"""Tables in a page of docs/, between markers that name them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from prove.claims import Claim, ProofError

BLOCK = re.compile(r"(<!-- prove: begin (\S+) -->\n\n)(.*?)(\n\n<!-- prove: end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are figures."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def hold(path: Path, tables: dict[str, str], update: bool) -> Claim:
    """That the page shows these tables; it is made to, if it is to be updated."""
    page = path.read_text()
    found = [name for _, name, _, _ in BLOCK.findall(page)]
    if found != list(tables):
        raise ProofError(f"expected blocks {', '.join(tables)} in {path.name}, got {', '.join(found)}")
    right = BLOCK.sub(lambda block: block[1] + tables[block[2]] + block[4], page)
    if update:
        path.write_text(right)
        page = right
    wrong = [line for line in right.splitlines() if line not in page.splitlines()]
    found_text = "the same" if page == right else f"another line: {wrong[0] if wrong else 'fewer lines'}"
    return Claim(f"docs/{path.name} shows these figures", found_text, "the same, or --update", page == right)
