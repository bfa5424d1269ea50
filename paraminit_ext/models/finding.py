"""A finding of an audit, what it is about, and all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paraminit_ext.models import seen
from paraminit_ext.models.law import Law
from paraminit_ext.models.look import Statistics, pattern_of
from paraminit_ext.models.plan import Entry, InitPlan
from paraminit_ext.models.stored import Stored

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

# The kinds of findings, worst first: what each is called.
KINDS = {
    "meta": "on meta, without values",
    "unwritten": "never written since it was allocated",
    "partitioned": "no elements here",
    "nan": "not a number",
    "inf": "infinite",
    "junk": "numbers that no initialisation gives",
    "differs": "not what the plan says",
    "constant": "one number where random ones were asked for",
    "missed": "a fill that reached a copy",
    "shard": "scaled by a part of the tensor",
    "law": "not the law that was asked for",
    "replicas": "replicas that differ",
    "tied twice": "one tensor, filled twice by different laws",
    "equal": "equal tensors that are not tied",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that looks wrong.

    Args:
        kind: what it is, one of those that ``audit`` lists
        names: of which tensors
        reason: why it is one
        remedy: what to do
    """

    kind: str
    names: tuple[str, ...]
    reason: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON has them."""
        return {"kind": self.kind, "names": list(self.names), "reason": self.reason, "remedy": self.remedy}

    def __str__(self) -> str:
        return f"{self.kind}: {', '.join(self.names)}: {self.reason}. {self.remedy}"


class Audit:
    """What :func:`audit` found, worst first; ``len()`` is the number of findings."""

    def __init__(self, findings: Iterable[Finding], tensors: int, is_proven: bool) -> None:
        order = {kind: place for place, kind in enumerate(KINDS)}
        self.findings = tuple(sorted(findings, key=lambda one: order[one.kind]))
        self.tensors = tensors
        self.is_proven = is_proven

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        # An audit is there, whether it found something or not.
        return True

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "tensors": self.tensors,
            "proven": self.is_proven,
            "findings": [finding.to_dict() for finding in self],
        }

    def _grouped(self) -> list[tuple[str, Finding]]:
        """Findings of repeated layers as one: of which tensors, and the first of them."""
        groups: dict[tuple[str, ...], list[Finding]] = {}
        for finding in self:
            groups.setdefault((finding.kind, *map(pattern_of, finding.names)), []).append(finding)
        return [
            (", ".join(of[0].names) if len(of) == 1 else f"{', '.join(patterns)} x {len(of)}", of[0])
            for (_, *patterns), of in groups.items()
        ]

    def _foot(self) -> str:
        if self.findings:
            count = len(self)
            return f"{count} finding{'s' if count > 1 else ''} in {self.tensors} tensors"
        said = f"nothing found in {self.tensors} tensors"
        return f"{said}: bit for bit what the plan says" if self.is_proven else said

    def __str__(self) -> str:
        lines = [f"{one.kind}: {names}: {one.reason}. {one.remedy}" for names, one in self._grouped()]
        return "\n".join([*lines, self._foot()])

    def __repr__(self) -> str:
        return f"Audit({self._foot()})"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.padding import Padding
        from rich.text import Text

        for names, one in self._grouped():
            yield Text.assemble((one.kind, "bold red"), "  ", (names, "bold"))
            yield Padding(f"{one.reason}. {one.remedy}", (0, 0, 0, 2))  # type: ignore[misc]
        yield Text(self._foot(), style="red" if self.findings else "green")


# ----------------------------------------------------------------------------------------
# What is looked at
# ----------------------------------------------------------------------------------------


@dataclass
class Looked:
    """A tensor of a module or of a checkpoint, with all that is known of it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    tensor: Tensor | None = None
    file: Stored | None = None
    names: list[str] = field(default_factory=list)
    read: Statistics | None = None
    memory: seen.Memory | None = None
    plan: InitPlan | None = None
    entry: Entry | None = None
    law: Law | None = None

    @property
    def is_parameter(self) -> bool:
        return self.kind in ("parameter", "stored")

    @property
    def is_floating(self) -> bool:
        return self.dtype is not None and (self.dtype.is_floating_point or self.dtype.is_complex)

    def finding(self, kind: str, reason: str, remedy: str) -> Finding:
        return Finding(kind, (self.name,), reason, remedy)
