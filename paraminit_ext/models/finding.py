"""The findings of an audit, the :class:`.Audit` that collects them, and the tensors that it examines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paraminit_ext.models import storage_log
from paraminit_ext.models.checkpoint_reader import StoredTensor
from paraminit_ext.models.law import Law
from paraminit_ext.models.plan import Entry, InitPlan
from paraminit_ext.models.summary import Statistics, layer_pattern

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

# The kinds of findings, worst first, each with a short description.
KINDS = {
    "meta": "on the meta device, without values",
    "unwritten": "allocated and never written",
    "partitioned": "no elements on this process",
    "nan": "not a number",
    "inf": "infinite",
    "junk": "values that no initialisation produces",
    "differs": "not equal to the plan",
    "constant": "one number where random numbers were requested",
    "missed": "a fill that wrote a copy",
    "shard": "scaled by the fan of a shard",
    "law": "not the requested law",
    "replicas": "replicas that differ",
    "tied twice": "one tensor that was filled twice, by different laws",
    "equal": "equal tensors that are not tied",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem that :func:`.audit` found.

    Args:
        kind: one of the kinds that :func:`.audit` lists
        names: the names of the affected tensors
        reason: what is wrong with them
        remedy: how to fix it
    """

    kind: str
    names: tuple[str, ...]
    reason: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of JSON types."""
        return {"kind": self.kind, "names": list(self.names), "reason": self.reason, "remedy": self.remedy}

    def __str__(self) -> str:
        return f"{self.kind}: {', '.join(self.names)}: {self.reason}. {self.remedy}"


class Audit:
    """The result of :func:`.audit`: an iterable of :class:`.Finding` objects, worst first.

    ``len(result)`` is the number of findings. ``bool(result)`` is always true. ``is_proven`` is true if a
    plan was given, every tensor was read, and each has the bits that the plan says.

    Args:
        findings: the findings, in any order
        tensors: the number of tensors
        unread: the names of the tensors whose values could not be read
        has_plan: whether the tensors that could be read were compared with a plan
    """

    def __init__(
        self, findings: Iterable[Finding], tensors: int, unread: Iterable[str], has_plan: bool
    ) -> None:
        order = {kind: place for place, kind in enumerate(KINDS)}
        self.findings = tuple(sorted(findings, key=lambda finding: order[finding.kind]))
        self.tensors = tensors
        self.unread = tuple(unread)
        # Nothing is known about the values of a tensor that was not read.
        differs = any(finding.kind == "differs" for finding in self.findings)
        self.is_proven = has_plan and not self.unread and not differs

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        # Otherwise __len__ would make an audit without findings false.
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary of JSON types."""
        return {
            "tensors": self.tensors,
            "unread": list(self.unread),
            "proven": self.is_proven,
            "findings": [finding.to_dict() for finding in self],
        }

    def _grouped(self) -> list[tuple[str, Finding]]:
        """Group the findings of repeated layers: for each group, its names as text and its first finding."""
        groups: dict[tuple[str, ...], list[Finding]] = {}
        for finding in self:
            groups.setdefault((finding.kind, *map(layer_pattern, finding.names)), []).append(finding)
        return [
            (
                ", ".join(members[0].names)
                if len(members) == 1
                else f"{', '.join(patterns)} x {len(members)}",
                members[0],
            )
            for (_, *patterns), members in groups.items()
        ]

    def _foot(self) -> str:
        count = len(self)
        text = f"{count or 'no'} finding{'' if count == 1 else 's'} in {self.tensors} tensors"
        unread = self._unread_without_finding()
        if unread:
            names = ", ".join(dict.fromkeys(unread if len(unread) == 1 else map(layer_pattern, unread)))
            return f"{text}; {len(unread)} {'was' if len(unread) == 1 else 'were'} not read ({names})"
        return f"{text}: bit for bit what the plan says" if self.is_proven else text

    def _unread_without_finding(self) -> list[str]:
        """Return the unread tensors, except those of which a finding says that they have no values."""
        without_values = (finding for finding in self if finding.kind in ("meta", "partitioned"))
        found = {name for finding in without_values for name in finding.names}
        return [name for name in self.unread if name not in found]

    def __str__(self) -> str:
        lines = [
            f"{finding.kind}: {names}: {finding.reason}. {finding.remedy}"
            for names, finding in self._grouped()
        ]
        return "\n".join([*lines, self._foot()])

    def __repr__(self) -> str:
        return f"Audit({self._foot()})"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.padding import Padding
        from rich.text import Text

        for names, finding in self._grouped():
            yield Text.assemble((finding.kind, "bold red"), "  ", (names, "bold"))
            yield Padding(f"{finding.reason}. {finding.remedy}", (0, 0, 0, 2))  # type: ignore[misc]
        colour = "red" if self.findings else "yellow" if self.unread else "green"
        yield Text(self._foot(), style=colour)


# ----------------------------------------------------------------------------------------
# Audited tensors
# ----------------------------------------------------------------------------------------


@dataclass
class AuditedTensor:
    """A tensor of a module or a checkpoint, with everything that an audit knows about it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    tensor: Tensor | None = None
    file: StoredTensor | None = None
    names: list[str] = field(default_factory=list)
    statistics: Statistics | None = None
    memory: storage_log.StorageRecord | None = None
    plan: InitPlan | None = None
    entry: Entry | None = None
    law: Law | None = None

    @property
    def is_parameter(self) -> bool:
        # A checkpoint does not say which of its tensors are parameters, but a plan does.
        if self.kind == "stored" and self.entry is not None:
            return self.entry.kind == "parameter"
        return self.kind in ("parameter", "stored")

    @property
    def is_read(self) -> bool:
        """Whether the values could be read."""
        return self.statistics is not None

    @property
    def is_floating(self) -> bool:
        return self.dtype is not None and (self.dtype.is_floating_point or self.dtype.is_complex)

    def finding(self, kind: str, reason: str, remedy: str) -> Finding:
        return Finding(kind, (self.name,), reason, remedy)
