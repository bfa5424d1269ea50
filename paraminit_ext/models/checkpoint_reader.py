"""Reads the tensors of a checkpoint on disk in pieces, never as a whole."""

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

# The number of bytes of one read.
PIECE = 1 << 24
# The size limit of a header in the safetensors format.
_MAX_HEADER = 100_000_000
# The dtypes by their safetensors names, in the order in which safetensors sorts tensors into a file. dtypes
# that the running torch lacks are left out.
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
class StoredTensor:
    """A tensor in a safetensors file.

    Args:
        name: the name of the tensor
        shape: the shape
        dtype: the dtype, or None if torch lacks it
        kind: the safetensors name of the dtype
        file: the path of the file
        begin: the position of the first byte in the file
        nbytes: the number of bytes
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
        """Return the elements from ``begin`` to ``end`` in row-major order, in ``buffer`` if it is passed."""
        assert self.dtype is not None
        size = self.dtype.itemsize
        if buffer is None:
            buffer = bytearray((end - begin) * size)
        view = memoryview(buffer)[: (end - begin) * size]
        read = 0
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.begin + begin * size)
            while read < len(view):
                count = file.readinto(view[read:])
                if not count:
                    _refuse(f"{self.nbytes} bytes of {self.name}", f"{self.file}, which ends earlier")
                read += count
        return torch.frombuffer(view, dtype=self.dtype) if view else torch.empty(0, dtype=self.dtype)

    def parts(self, nbytes: int = PIECE) -> Iterator[Tensor]:
        """Yield the elements in flat parts in row-major order. Each part reuses the memory of the last."""
        assert self.dtype is not None
        step = max(nbytes // self.dtype.itemsize, 1)
        buffer = bytearray(min(step, self.numel) * self.dtype.itemsize)
        for begin in range(0, self.numel, step):
            yield self.elements(begin, min(begin + step, self.numel), buffer)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint by name.

    Args:
        path: a directory in the layout of transformers, the index file in it, or one safetensors file

    Raises:
        OSError: a file cannot be read.
        ValueError: the path is not such a checkpoint, or a file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json"))
        files = _files_of_index(indices[0]) if indices else sorted(path.glob("*.safetensors"))
        if not files:
            _refuse("a directory with safetensors files", f"none in {path}")
    elif path.name.endswith(".json"):
        files = _files_of_index(path)
    else:
        files = [path]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _header(file):
            if tensor.name in tensors:
                _refuse("each tensor in one file", f"{tensor.name} in {tensors[tensor.name].file} and {file}")
            tensors[tensor.name] = tensor
    return tensors


def _files_of_index(index: Path) -> list[Path]:
    try:
        listed = json.loads(index.read_text())["weight_map"].values()
        names = sorted(set(listed))
    except (ValueError, KeyError, TypeError, AttributeError):
        _refuse("an index with a weight_map", f"{index}, which has none")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            _refuse("file names in the directory of the index", f"{name!r:.60} in {index}")
    return [index.parent / name for name in names]


def header_of(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and the position of the first byte of its tensors.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a safetensors file, or it is damaged.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            _refuse("a safetensors file", f"{file}, which is of another format or damaged")
        text = stream.read(length)
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        _refuse("a safetensors file", f"{file}, which has a damaged header")
    return header, 8 + length


def _header(file: Path) -> list[StoredTensor]:
    header, data = header_of(file)
    try:
        tensors = [
            _entry(name, fields, file, data) for name, fields in header.items() if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        _refuse("a safetensors file", f"{file}, which has a damaged header")
    size = file.stat().st_size
    if any(tensor.begin + tensor.nbytes > size for tensor in tensors):
        _refuse(
            f"{max(tensor.begin + tensor.nbytes for tensor in tensors)} bytes", f"{file}, which has {size}"
        )
    return sorted(tensors, key=lambda tensor: tensor.begin)


def _entry(name: str, fields: dict[str, Any], file: Path, data: int) -> StoredTensor:
    begin, end = map(int, fields["data_offsets"])
    shape = tuple(map(int, fields["shape"]))
    kind = str(fields["dtype"])
    dtype = DTYPES.get(kind)
    if not 0 <= begin <= end or (dtype and math.prod(shape) * dtype.itemsize != end - begin):
        raise ValueError(name)
    return StoredTensor(name, shape, dtype, kind, file, data + begin, end - begin)


def _refuse(expected: str, got: str) -> NoReturn:
    raise ValueError(
        f"paraminit_ext: expected {expected}, got {got}. Pass a safetensors file, or a directory of them."
    )
