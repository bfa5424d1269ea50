"""The tensors of a checkpoint on disk: read in pieces, never whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

# Bytes that are read at once.
PIECE = 1 << 24
# The format's own limit on the size of a header.
_MAX_HEADER = 100_000_000
# By safetensors' names, in the order in which it puts tensors into a file; those that the running torch lacks
# are left out.
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, dtype)
    for name, dtype in {
        "U64": "uint64",
        "I64": "int64",
        "F64": "float64",
        "C64": "complex64",
        "F32": "float32",
        "U32": "uint32",
        "I32": "int32",
        "BF16": "bfloat16",
        "F16": "float16",
        "U16": "uint16",
        "I16": "int16",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "I8": "int8",
        "U8": "uint8",
        "BOOL": "bool",
    }.items()
    if hasattr(torch, dtype)
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a safetensors file.

    Args:
        name: its name
        shape: its sizes
        dtype: its dtype; None for one that torch does not have
        kind: what the file calls the dtype
        file: where it is
        begin: of its first byte in the file
        nbytes: how many it has
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    kind: str
    file: Path
    begin: int
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def elements(self, begin: int, end: int, buffer: bytearray | None = None) -> Tensor:
        """The elements from ``begin`` to ``end`` in row-major order, in ``buffer`` if there is one."""
        assert self.dtype is not None
        size = self.dtype.itemsize
        if buffer is None:
            buffer = bytearray((end - begin) * size)
        view = memoryview(buffer)[: (end - begin) * size]
        read = 0
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.begin + begin * size)
            while read < len(view):
                got = file.readinto(view[read:])
                if not got:
                    _wrong(f"{self.nbytes} bytes of {self.name}", f"a file that ends before, {self.file}")
                read += got
        return torch.frombuffer(view, dtype=self.dtype) if view else torch.empty(0, dtype=self.dtype)

    def parts(self, nbytes: int = PIECE) -> Iterator[Tensor]:
        """The elements, flat and in row-major order, part by part, each in the memory of the last one."""
        assert self.dtype is not None
        step = max(nbytes // self.dtype.itemsize, 1)
        buffer = bytearray(min(step, self.numel) * self.dtype.itemsize)
        for begin in range(0, self.numel, step):
            yield self.elements(begin, min(begin + step, self.numel), buffer)


def stored(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """The tensors of a checkpoint by name.

    Args:
        path: a directory as transformers lays it out, an index in it, or a safetensors file

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such checkpoint, or a file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json"))
        files = _indexed(indices[0]) if indices else sorted(path.glob("*.safetensors"))
        if not files:
            _wrong("a directory with safetensors files", f"none in {path}")
    elif path.name.endswith(".json"):
        files = _indexed(path)
    else:
        files = [path]
    found: dict[str, Stored] = {}
    for file in files:
        for one in _header(file):
            if one.name in found:
                _wrong("each tensor in one file", f"{one.name} in {found[one.name].file} and {file}")
            found[one.name] = one
    return found


def _indexed(index: Path) -> list[Path]:
    try:
        listed = json.loads(index.read_text())["weight_map"].values()
        names = sorted(set(listed))
    except (ValueError, KeyError, TypeError, AttributeError):
        _wrong("an index with a weight_map", f"another file, {index}")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            _wrong("names of files beside the index", f"{name!r:.60} in {index}")
    return [index.parent / name for name in names]


def header_of(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of itself and its tensors, and where their bytes begin.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or a damaged one.
    """
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            _wrong("a safetensors file", f"another or a damaged one, {file}")
        text = opened.read(length)
    try:
        listed = json.loads(text)
    except ValueError:
        listed = None
    if not isinstance(listed, dict):
        _wrong("a safetensors file", f"one with a damaged header, {file}")
    return listed, 8 + length


def _header(file: Path) -> list[Stored]:
    listed, data = header_of(file)
    try:
        found = [
            _entry(name, fields, file, data) for name, fields in listed.items() if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        _wrong("a safetensors file", f"one with a damaged header, {file}")
    size = file.stat().st_size
    if any(one.begin + one.nbytes > size for one in found):
        _wrong(f"{max(one.begin + one.nbytes for one in found)} bytes", f"a file of {size}, {file}")
    return sorted(found, key=lambda one: one.begin)


def _entry(name: str, fields: dict[str, Any], file: Path, data: int) -> Stored:
    begin, end = map(int, fields["data_offsets"])
    shape = tuple(map(int, fields["shape"]))
    kind = str(fields["dtype"])
    dtype = DTYPES.get(kind)
    if not 0 <= begin <= end or (dtype and math.prod(shape) * dtype.itemsize != end - begin):
        raise ValueError(name)
    return Stored(name, shape, dtype, kind, file, data + begin, end - begin)


def _wrong(expected: str, got: str) -> NoReturn:
    raise ValueError(
        f"paraminit_ext: expected {expected}, got {got}. Name a directory or a file of safetensors."
    )
