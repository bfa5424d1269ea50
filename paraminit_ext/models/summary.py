"""``summary()``: statistics of the tensors of a module or a checkpoint, with one read of each tensor."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from paraminit_ext import _C
from paraminit_ext.geometry import FLOATING_DTYPES, is_plain
from paraminit_ext.models.checkpoint_reader import StoredTensor, read_checkpoint
from paraminit_ext.models.layout import dtype_name, shape_text
from paraminit_ext.models.names import local_tensor, named_tensors

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table


# ----------------------------------------------------------------------------------------
# Statistics
# ----------------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """The result of the statistics op: element counts, and the moments and extremes of the finite elements.

    ``squares`` is the sum of squared distances from the mean. For complex tensors, ``least`` and ``greatest``
    are over the real and imaginary parts.
    """

    finite: float = 0
    zeros: float = 0
    subnormals: float = 0
    nans: float = 0
    infinities: float = 0
    mean: float = 0.0
    mean_imag: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf

    @property
    def numel(self) -> int:
        return int(self.finite + self.nans + self.infinities)

    @property
    def std(self) -> float | None:
        """The standard deviation of the finite elements, with their number as the divisor."""
        return math.sqrt(self.squares / self.finite) if self.finite else None

    def merged(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of elements (Chan, Golub and LeVeque 1979, equations 2.1)."""
        if not other.finite or not self.finite:
            moments = self if self.finite else other
            counts = [a + b for a, b in zip(self[:5], other[:5], strict=True)]
            return Statistics._make([*counts, *moments[5:]])
        counts = [a + b for a, b in zip(self[:5], other[:5], strict=True)]
        share = other.finite / counts[0]
        distance, distance_imag = other.mean - self.mean, other.mean_imag - self.mean_imag
        return Statistics._make(
            [
                *counts,
                self.mean + distance * share,
                self.mean_imag + distance_imag * share,
                self.squares + other.squares + (distance**2 + distance_imag**2) * self.finite * share,
                min(self.least, other.least),
                max(self.greatest, other.greatest),
            ]
        )


def merge_statistics(parts: Iterable[Statistics]) -> Statistics:
    """Return the statistics of all parts, merged in order."""
    return functools.reduce(Statistics.merged, parts, Statistics())


@torch.no_grad()
def read(tensor: Tensor) -> Statistics:
    """Return the statistics of a plain tensor, in one pass over its memory."""
    return Statistics(*torch.ops.paraminit_ext.statistics(tensor.detach()).tolist())


def read_stored(in_file: StoredTensor) -> Statistics | None:
    """Return the statistics of a tensor in a file, or None if torch lacks its dtype."""
    if in_file.dtype is None:
        return None
    return merge_statistics(map(read, in_file.parts()))


@torch.no_grad()
def read_all(tensors: Sequence[Tensor]) -> list[Statistics | None]:
    """Return the statistics of each tensor, or None if it has no values. A DTensor counts as a whole.

    If there are DTensors, every rank of their meshes must call this function with the same tensors.
    """
    rows: list[Tensor | None] = []
    meshes: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        readable = is_readable(tensor)
        rows.append(torch.ops.paraminit_ext.statistics(local_tensor(tensor).detach()) if readable else None)
        dims = sharded_dims(tensor)
        if readable and dims:
            meshes.setdefault((tensor.device_mesh, dims), []).append(index)  # type: ignore[attr-defined]
    statistics = _to_statistics(rows)
    for (mesh, dims), indices in meshes.items():
        for index, whole in zip(
            indices, _reduce_over_mesh(mesh, dims, [statistics[index] for index in indices]), strict=True
        ):
            statistics[index] = whole
    return statistics


def is_readable(tensor: Tensor) -> bool:
    """Return whether the tensor has values on this process and the statistics op can read them."""
    local = local_tensor(tensor)
    if nn.parameter.is_lazy(tensor) or local.is_meta or local.layout is not torch.strided:
        return False
    if local.dtype not in READABLE_DTYPES or local.is_nested:
        return False
    return is_plain(local) and not _C.storage_too_small(local)


# The dtypes that the statistics op reads (holds_numbers in csrc/torch/statistics.cpp). Others are quantised,
# raw bits, or several numbers in one element.
READABLE_DTYPES = FLOATING_DTYPES | {
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
}


def _to_statistics(rows: Sequence[Tensor | None]) -> list[Statistics | None]:
    """Convert rows to statistics with one copy per device, which avoids one synchronisation per tensor."""
    by_device: dict[torch.device, list[int]] = {}
    for index, row in enumerate(rows):
        if row is not None:
            by_device.setdefault(row.device, []).append(index)
    statistics: list[Statistics | None] = [None] * len(rows)
    for indices in by_device.values():
        stacked = torch.stack([row for index in indices if (row := rows[index]) is not None])
        for index, numbers in zip(indices, stacked.tolist(), strict=True):
            statistics[index] = Statistics(*numbers)
    return statistics


def sharded_dims(tensor: Tensor) -> tuple[int, ...]:
    """Return the dimensions of a DTensor's mesh along which ranks hold different elements."""
    placements = getattr(tensor, "placements", ())
    return tuple(dim for dim, placement in enumerate(placements) if not placement.is_replicate())


def _reduce_over_mesh(
    mesh: Any, dims: tuple[int, ...], statistics: list[Statistics | None]
) -> list[Statistics]:
    """Return the statistics of whole tensors from those of their local parts, for several tensors at once."""
    import torch.distributed as dist

    parts = [one or Statistics() for one in statistics]
    if mesh.get_coordinate() is None:
        return parts
    for dim in dims:
        group = mesh.get_group(dim)
        local = torch.tensor(parts, dtype=torch.float64, device=mesh.device_type)
        gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, local, group=group)
        wholes = [Statistics()] * len(parts)
        for rows in gathered:
            wholes = [
                whole.merged(Statistics(*row)) for whole, row in zip(wholes, rows.tolist(), strict=True)
            ]
        parts = wholes
    return parts


# ----------------------------------------------------------------------------------------
# summary
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """The entry of one tensor in a :class:`.Summary`.

    ``mean``, ``std``, ``min`` and ``max`` are over the finite elements. They are None if there are none. All
    statistics are None if the tensor has no values.

    Args:
        name: the fully qualified name
        kind: ``"parameter"``, ``"buffer"``, ``"non-persistent buffer"``, or ``"stored"`` for a tensor in a
            file
        shape: the shape, which is the global shape if the tensor is sharded. It is empty for a scalar, and
            for a lazy or nested tensor, which has no shape
        dtype: the name of the dtype
        device: the device, or the file name of a tensor in a file
        requires_grad: whether the tensor requires a gradient
        has_grad: whether the tensor has a gradient
        tie: the first name of the tensor if this is another name of a tied tensor, otherwise None
        numel: the number of elements
        mean: the mean
        std: the standard deviation, with the number of elements as the divisor
        min: the minimum, over real and imaginary parts if the dtype is complex
        max: the maximum, over real and imaginary parts if the dtype is complex
        zeros: the fraction of elements that are zero
        nans: the number of elements that are NaN
        infs: the number of elements that are infinite
        subnormals: the number of elements that are subnormal in the dtype
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    requires_grad: bool = False
    has_grad: bool = False
    tie: str | None = None
    numel: int = 0
    mean: float | complex | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    zeros: float | None = None
    nans: int | None = None
    infs: int | None = None
    subnormals: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of JSON types. A complex mean is ``[real, imag]``."""
        fields = asdict(self)
        fields["shape"] = list(self.shape)
        if isinstance(self.mean, complex):
            fields["mean"] = [self.mean.real, self.mean.imag]
        return fields


class Summary:
    """The result of :func:`.summary`: one :class:`.TensorSummary` for each tensor, in the order of the model.

    Iterating yields the entries, and ``result["name"]`` is the entry of one tensor. ``print`` shows a table
    with one row for repeated layers, and ``rich.print`` shows the same table in colour.
    """

    def __init__(self, tensors: Iterable[tuple[TensorSummary, Statistics | None]]) -> None:
        self._read = list(tensors)
        self._by_name = {tensor.name: tensor for tensor, _ in self._read}

    def __iter__(self) -> Iterator[TensorSummary]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, name: str) -> TensorSummary:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def statistics(self) -> dict[str, Statistics | None]:
        """The statistics of each tensor by name, or None for a tensor without values."""
        return {tensor.name: statistics for tensor, statistics in self._read}

    @property
    def parameters(self) -> int:
        """The number of elements of all parameters, or of all tensors of a checkpoint. Ties count once."""
        kinds = ("parameter", "stored")
        return sum(tensor.numel for tensor in self if tensor.kind in kinds and tensor.tie is None)

    @property
    def nbytes(self) -> int:
        """The number of bytes of all tensors, tied ones counted once."""
        return sum(tensor.numel * _itemsize(tensor.dtype) for tensor in self if tensor.tie is None)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary of JSON types."""
        return {
            "parameters": self.parameters,
            "nbytes": self.nbytes,
            "tensors": [tensor.to_dict() for tensor in self],
        }

    def _rows(self, grouped: bool = True) -> list[tuple[str, ...]]:
        rows = [_HEAD]
        groups: dict[Any, list[tuple[TensorSummary, Statistics | None]]] = {}
        for tensor, statistics in self._read:
            pattern = layer_pattern(tensor.name) if grouped else tensor.name
            tie = tensor.tie and layer_pattern(tensor.tie)
            # Repeated layers of a checkpoint share a row even if they are in different files.
            place = "" if tensor.kind == "stored" else tensor.device
            key = (pattern, tie, place, *(getattr(tensor, name) for name in _GROUPED_BY))
            groups.setdefault(key, []).append((tensor, statistics))
        return rows + [_row(pattern, members) for (pattern, *_), members in groups.items()]

    def _foot(self) -> str:
        return f"{count_text(self.parameters)} parameters, {bytes_text(self.nbytes)}"

    def __str__(self) -> str:
        return "\n".join([*plain_table(self._rows()), self._foot()])

    def __repr__(self) -> str:
        return f"Summary({len(self)} tensors, {self._foot()})"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | str]:
        from rich.table import Table

        rows = self._rows()
        shown, common, dropped = _columns(rows, options.max_width)
        table = Table(box=None, pad_edge=False)
        for column in shown:
            left = column in _LEFT_ALIGNED
            table.add_column(
                _HEAD[column],
                justify="left" if left else "right",
                overflow="fold" if left else "ellipsis",
                no_wrap=column != _NAME,
            )
        for row in rows[1:]:
            odd = row[_ODD] not in ("", "-")
            table.add_row(*(row[column] for column in shown), style="red" if odd else None)
        yield table
        yield "; ".join([self._foot(), *common])
        if dropped:
            yield f"not shown because the console is too narrow: {', '.join(dropped)}"


_HEAD = ("name", "shape", "dtype", "device", "grad", "mean", "std", "min", "max", "zeros", "odd")
_NAME, _SHAPE, _DTYPE, _DEVICE, _GRAD, _MEAN, _STD, _MIN, _MAX, _ZEROS, _ODD = range(len(_HEAD))
_LEFT_ALIGNED = (_NAME, _SHAPE)
# The columns that a narrow console drops, in this order.
_DROPPED_FIRST = (_DEVICE, _GRAD, _ZEROS, _DTYPE, _MIN, _MAX, _MEAN)
# Tensors in one row have equal values of these attributes.
_GROUPED_BY = ("kind", "shape", "dtype", "requires_grad", "has_grad")


def _columns(rows: Sequence[tuple[str, ...]], width: int) -> tuple[list[int], list[str], list[str]]:
    """Return the columns that fit, texts for columns with one common value, and the dropped columns."""
    common: list[str] = []
    shown = list(range(len(_HEAD)))
    for column, what in ((_DTYPE, "{}"), (_DEVICE, "on {}"), (_GRAD, "requires_grad: {}"), (_ODD, "{}")):
        values = {row[column] for row in rows[1:]}
        if len(values) == 1:
            (value,) = values
            shown.remove(column)
            if value not in ("", "-"):
                common.append(f"all {what.format(value)}")
    dropped: list[str] = []
    for column in _DROPPED_FIRST:
        if sum(max(len(row[index]) for row in rows) + 2 for index in shown) - 2 <= width:
            break
        if column in shown:
            shown.remove(column)
            dropped.append(_HEAD[column])
    return shown, common, dropped


def plain_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table with left-aligned columns, at any width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def layer_pattern(name: str) -> str:
    """Return the common name of repeated layers, with ``*`` in place of each number between dots."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _row(pattern: str, members: Sequence[tuple[TensorSummary, Statistics | None]]) -> tuple[str, ...]:
    first = members[0][0]
    name = first.name if len(members) == 1 else f"{pattern} x {len(members)}"
    if first.tie:
        tie = first.tie if len(members) == 1 else layer_pattern(first.tie)
        name = f"{name} = {tie}"
    statistics = [values for _, values in members if values is not None]
    # A lazy or nested tensor has no shape.
    shape = shape_text(first.shape) if first.shape or first.numel == 1 else "-"
    state = ("yes, there" if first.has_grad else "yes") if first.requires_grad else "no"
    devices = {one.device for one, _ in members}
    device_text = first.device if len(devices) == 1 else f"{len(devices)} files"
    start = (name, shape, first.dtype, device_text, "" if first.kind == "stored" else state)
    whole = merge_statistics(statistics)
    if not whole.numel:
        return (*start, *("-",) * 6)
    if not whole.finite:
        return (*start, *("-",) * 5, _odd_text(whole))
    stds = [values.std for values in statistics if values.std is not None]
    low, high = min(stds), max(stds)
    # If the standard deviations of the layers differ, the row shows their range.
    std = _number_text(whole.std) if high <= 1.1 * low else f"{_number_text(low)} to {_number_text(high)}"
    mean = complex(whole.mean, whole.mean_imag) if whole.mean_imag else whole.mean
    return (
        *start,
        _number_text(mean),
        std,
        _number_text(whole.least),
        _number_text(whole.greatest),
        f"{100 * whole.zeros / whole.numel:.3g} %" if whole.zeros else "0",
        _odd_text(whole),
    )


def _odd_text(whole: Statistics) -> str:
    """Return the numbers of NaN and infinite elements as text, which is empty if there are none."""
    texts = [
        f"{count_text(int(count))} {what}"
        for count, what in ((whole.nans, "NaN"), (whole.infinities, "inf"))
        if count
    ]
    return ", ".join(texts)


def _number_text(value: float | complex | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, complex):
        return f"{value.real:.3g}{value.imag:+.3g}j"
    return f"{value:.3g}"


def count_text(number: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,}"


def bytes_text(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _itemsize(dtype: str) -> int:
    torch_dtype = getattr(torch, dtype, None)
    return torch_dtype.itemsize if isinstance(torch_dtype, torch.dtype) else 0


def _with_statistics(base: TensorSummary, statistics: Statistics | None) -> TensorSummary:
    """Return ``base`` with the statistics added."""
    if statistics is None:
        return base
    numel = statistics.numel
    finite = bool(statistics.finite)
    complex_mean = base.dtype.startswith("complex")
    mean = complex(statistics.mean, statistics.mean_imag) if complex_mean else statistics.mean
    return replace(
        base,
        mean=mean if finite else None,
        std=statistics.std,
        min=statistics.least if finite else None,
        max=statistics.greatest if finite else None,
        zeros=statistics.zeros / numel if numel else None,
        nans=int(statistics.nans),
        infs=int(statistics.infinities),
        subnormals=int(statistics.subnormals),
    )


def summary(module_or_path: nn.Module | str | os.PathLike[str]) -> Summary:
    r"""Compute statistics of every parameter and buffer of a module, or of every tensor of a checkpoint.

    Each tensor is read once. The mean, standard deviation and extremes are over the finite elements. Sums are
    in float64 for every dtype. A tied tensor is read under its first name. A tensor on the meta device is not
    read. At most 16 MiB of a checkpoint are in memory at a time.

    A DTensor is reduced over its mesh, with each element counted once. All ranks of the mesh must call this
    function, and all get the same result.

    Args:
        module_or_path: a module, a directory of safetensors files, the index file in such a directory, or
            one safetensors file

    Raises:
        TypeError: ``module_or_path`` is neither a module nor a path.
        OSError: the path cannot be read.
        ValueError: the path is not a checkpoint, or the checkpoint is damaged.

    Returns:
        A :class:`.Summary`, which holds a :class:`.TensorSummary` for each tensor.

    Examples:
        >>> import torch
        >>> from paraminit_ext import Key, init, summary
        >>> layer = torch.nn.Linear(1000, 1000)
        >>> _ = init.normal_(layer.weight, std=0.02, generator=Key(1))
        >>> round(summary(layer)["weight"].std, 4)
        0.02
        >>> summary(layer)["weight"].nans
        0
    """
    if isinstance(module_or_path, nn.Module):
        return _summary_of_module(module_or_path)
    if not isinstance(module_or_path, str | os.PathLike):
        raise TypeError(
            f"paraminit_ext.summary: expected a torch.nn.Module or a path, got "
            f"{type(module_or_path).__name__}. Pass a model, or a directory of safetensors files."
        )
    tensors = []
    for in_file in read_checkpoint(module_or_path).values():
        dtype = in_file.kind if in_file.dtype is None else dtype_name(in_file.dtype)
        base = TensorSummary(
            in_file.name, "stored", in_file.shape, dtype, in_file.file.name, numel=math.prod(in_file.shape)
        )
        statistics = read_stored(in_file)
        tensors.append((_with_statistics(base, statistics), statistics))
    return Summary(tensors)


def _numel(tensor: Tensor) -> int:
    """Return the number of elements, of all parts of a nested tensor together."""
    if tensor.is_nested and tensor.layout is torch.jagged:
        return tensor.values().numel()
    return tensor.numel()


def _summary_of_module(module: nn.Module) -> Summary:
    bases: list[TensorSummary] = []
    first: dict[int, tuple[int, str]] = {}
    tensors: list[Tensor] = []
    for named in named_tensors(module):
        tensor = named.tensor
        lazy = nn.parameter.is_lazy(tensor)
        # A nested tensor has no shape of its own, because its parts differ in size.
        shape = () if lazy or tensor.is_nested else tuple(tensor.shape)
        _, source = first.setdefault(id(tensor), (len(tensors), named.name))
        bases.append(
            TensorSummary(
                named.name,
                named.kind,
                shape,
                dtype_name(tensor.dtype),
                str(tensor.device),
                tensor.requires_grad,
                tensor.is_leaf and tensor.grad is not None,
                tie=None if source == named.name else source,
                numel=0 if lazy else _numel(tensor),
            )
        )
        if source == named.name:
            tensors.append(tensor)
    statistics = read_all(tensors)
    indices = [first[id(named.tensor)][0] for named in named_tensors(module)]
    return Summary(
        (_with_statistics(base, statistics[index]), statistics[index])
        for base, index in zip(bases, indices, strict=True)
    )
