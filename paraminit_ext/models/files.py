"""``save_initialized``: the checkpoint of a model, written from its plan without the model.

A file is written under a temporary name, flushed to the disk, and then renamed, so that one under its own
name is whole. It is known again by its first bytes: a safetensors header says names, dtypes and shapes, and
holds a digest of what the values hang on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import paraminit_ext
from paraminit_ext.key import Key
from paraminit_ext.models import saved
from paraminit_ext.models.names import refuse_key, unwrapped
from paraminit_ext.models.plan import InitPlan
from paraminit_ext.models.saved import Contents, Saved
from paraminit_ext.models.stored import DTYPES
from paraminit_ext.models.writers import Writers

# What a shard's metadata have beside transformers' own: the digest of what its values hang on.
_METADATA = "paraminit_ext.save_initialized"
_INDEX = "model.safetensors.index.json"
_PARTIAL = ".paraminit_ext.partial"
_LOCK = ".paraminit_ext.lock"
# Bytes of a write, all of which begin at a multiple of it: 0.8 of the time of writes that begin anywhere.
_PIECE = 1 << 18
# Bytes after which the disk is told to begin.
_FLUSHED = 1 << 25
# Files of a checkpoint: one that is not ours is another model's.
_WEIGHTS = (".safetensors", ".bin", ".index.json")

_Advance: TypeAlias = Callable[[int], None]

_DTYPES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(_DTYPES)}


def save_initialized(
    module_or_plan: nn.Module | InitPlan,
    directory: str | os.PathLike[str],
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
    *,
    key: Key | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> list[Path]:
    r"""Write the checkpoint of an initialised model from its plan, without the model in memory.

    The files are those of transformers' ``save_pretrained``: ``model.safetensors``, or numbered shards and
    their index, with the same names, tensors, order and bits as those of the model that
    :func:`materialize_module` makes; ``from_pretrained`` loads them. Values are made part by part, and go to
    the file from a buffer that stays in the cache. A tensor that is more than a fill is made whole, one at a
    time. Of tied tensors one is saved; non-persistent buffers and plain attributes are not. Where
    transformers saves a model's tensors under other names, or cut or joined, so does this; of a plan alone,
    they are saved as the plan has them, which ``from_pretrained`` loads as well.

    Each file has a temporary name until it is whole and on the disk. After a crash the same call goes on
    where the last one was: a shard whose header, with the digest of steps, keys, dtypes and shapes in its
    metadata, and whose size are what they are to be is not written again. Files of another model, of
    another plan or of another ``max_shard_size`` are never overwritten.

    Of a module that is sharded over a mesh, all ranks of that mesh call together and no others, with a
    directory that all of them see: each writes some of the shards, and no byte is written twice. The stages
    of a pipeline are several modules, and replicas on other meshes would write the same again: there save
    the plan, on one rank.

    Args:
        module_or_plan: what :func:`deferred_init` returned, wrapped or not, or a part of it, or a plan. Of a
            module, conversions since (``.to(torch.bfloat16)``) count, and so do the names and ties that it
            has now; values do not: where it was materialised, and trained, the plan is what is saved.
        directory: where to; it is made if need be
        max_shard_size: of a file: bytes, or a text as ``"5GB"``, ``"200MB"``, ``"1GiB"``; a tensor that is
            larger has a file of its own
        dtype: what floating-point parameters and persistent buffers are converted to
        key: the key of the model in place of the plan's own, as for :meth:`InitPlan.apply`
        config: what becomes ``config.json``: a file, or what one would hold (default: a transformers
            module's own configuration, and its generation configuration). With ``dtype``, it says that.
        progress: whether bytes, rate and time left are shown (needs ``rich``); None: where the standard
            error is a terminal, and rich is there

    Raises:
        TypeError: an argument of another type, a tensor of a dtype that safetensors does not have.
        ValueError: a module without a plan, or one that its plan does not fit; a tensor that the model left
            as it was allocated; a size or a configuration that is none.
        FileExistsError: the directory holds files that are not this checkpoint's.
        BlockingIOError: another process is writing to it.
        OSError: no room, no permission, no directory. Finished shards stay, others are removed.
        ModuleNotFoundError: ``progress=True`` without rich.

    Returns:
        The files of the checkpoint in the order in which they are written, the index last.

    Examples:
        >>> import tempfile, torch
        >>> from paraminit_ext import Key, deferred_init, materialize_module, save_initialized
        >>> from safetensors.torch import load_file
        >>> model = deferred_init(torch.nn.Linear, 3, 4, key=Key(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = save_initialized(model, folder)
        ...     tensors = load_file(files[0])
        >>> [path.name for path in files]
        ['model.safetensors']
        >>> torch.equal(tensors["weight"], materialize_module(model).weight)
        True
    """
    _refuse_arguments(module_or_plan, directory, dtype, config)
    refuse_key("save_initialized", key)
    directory = Path(directory)
    writers = Writers(() if isinstance(module_or_plan, InitPlan) else module_or_plan.parameters())
    with writers.step():
        limit = _size_of(max_shard_size)
        shown = _is_shown(progress)
        if isinstance(module_or_plan, InitPlan):
            contents = saved.contents_of_plan(module_or_plan, dtype)
        else:
            contents = saved.contents_of_module(module_or_plan, dtype)
        files = _files(contents, limit, key) + _beside(module_or_plan, dtype, config)
    # The index comes last: who finds it finds all.
    files.sort(key=lambda file: file.name == _INDEX)
    writers.refuse_others(b"".join(file.head for file in files))
    shards = [file for file in files if file.tensors]
    with contextlib.ExitStack() as locked:
        with writers.step(), _telling(directory):
            if writers.is_first:
                _missing(directory, files)
                os.makedirs(directory, exist_ok=True)
                locked.enter_context(_alone_in(directory))
                _refuse_full(directory, sum(file.size for file in _missing(directory, files)))
        with writers.step(), _telling(directory):
            _write_all(directory, writers.own(shards), key, shown and writers.is_first)
        with writers.step(), _telling(directory):
            if writers.is_first:
                _refuse_absent(directory, shards)
                _write_all(directory, [file for file in files if not file.tensors], key, shown=False)
    return [directory / file.name for file in files]


# ----------------------------------------------------------------------------------------
# Arguments
# ----------------------------------------------------------------------------------------

_UNITS = {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)} | {
    f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)
}


def _wrong(expected: str, got: str, remedy: str) -> str:
    return f"paraminit_ext.save_initialized: expected {expected}, got {got}. {remedy}"


def _refuse_arguments(module_or_plan: object, directory: object, dtype: object, config: object) -> None:
    if not isinstance(module_or_plan, nn.Module | InitPlan):
        raise TypeError(
            _wrong(
                "a torch.nn.Module or an InitPlan",
                type(module_or_plan).__name__,
                "Pass what deferred_init returned.",
            )
        )
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(_wrong("a path for directory", type(directory).__name__, "Pass a str or a Path."))
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(_wrong("a floating-point dtype", str(dtype), "Pass torch.bfloat16, for example."))
    if not (config is None or isinstance(config, str | os.PathLike | Mapping)):
        raise TypeError(
            _wrong(
                "a path or a dict for config",
                type(config).__name__,
                "Pass config.to_dict(), for a configuration of transformers.",
            )
        )


def _size_of(value: object) -> int:
    """Bytes of what was passed as ``max_shard_size``."""
    remedy = 'Pass a number of bytes, or a text as "5GB", "200MB" or "1GiB".'
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(_wrong("an int or a str for max_shard_size", type(value).__name__, remedy))
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B)\s*", str(value).upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else value if isinstance(value, int) else 0
    if size <= 0:
        raise ValueError(_wrong("a size above zero for max_shard_size", repr(value), remedy))
    return size


def _is_shown(progress: bool | None) -> bool:
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return False
    try:
        import rich.progress  # noqa: F401
    except ModuleNotFoundError:
        if progress is None:
            return False
        raise ModuleNotFoundError(
            _wrong("the package rich for progress", "none", "Run `pip install rich`.")
        ) from None
    return True


# ----------------------------------------------------------------------------------------
# What the files are
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the checkpoint: its first bytes, which it is known by, and the tensors that follow."""

    name: str
    head: bytes
    tensors: tuple[Saved, ...] = ()

    @property
    def size(self) -> int:
        return len(self.head) + sum(tensor.nbytes for tensor in self.tensors)

    def is_at(self, path: Path) -> bool:
        """Whether the file is there, whole."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            return file.read(len(self.head)) == self.head


def _files(contents: Contents, limit: int, key: Key | None) -> list[_File]:
    """The shards and, where there are several, their index."""
    if not contents.tensors:
        raise ValueError(
            _wrong("a model with parameters or buffers", "none to save", "Pass what deferred_init returned.")
        )
    for tensor in contents.tensors:
        _refuse_tensor(tensor)
    shards = _split(contents.tensors, limit)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{place:05d}-of-{len(shards):05d}.safetensors" for place in range(1, len(shards) + 1)]
    files = [_shard(name, shard, key) for name, shard in zip(names, shards, strict=True)]
    if len(shards) > 1:
        index = {
            "metadata": {
                "total_parameters": contents.parameters,
                "total_size": sum(tensor.nbytes for tensor in contents.tensors),
            },
            "weight_map": {tensor.name: file.name for file in files for tensor in file.tensors},
        }
        files.append(_File(_INDEX, _json(index)))
    return files


def _refuse_tensor(tensor: Saved) -> None:
    for source in tensor.sources.values():
        if not source.entry.steps and 0 not in source.entry.shape:
            raise ValueError(
                _wrong(
                    "steps for each tensor",
                    f"{tensor.name}, which the model left as it was allocated",
                    "Initialise it inside deferred_init.",
                )
            )
    if tensor.dtype not in _DTYPES:
        raise TypeError(
            _wrong(
                "dtypes that safetensors has",
                f"{tensor.dtype} for {tensor.name}",
                "Materialise the model and save it by torch.save.",
            )
        )


def _split(tensors: Sequence[Saved], limit: int) -> list[list[Saved]]:
    """The tensors of each shard: as ``split_torch_state_dict_into_shards`` of huggingface_hub has it."""
    together: dict[object, list[Saved]] = {}
    for tensor in tensors:
        together.setdefault(tensor.storage, []).append(tensor)
    shards: list[list[Saved]] = []
    open_shard: list[Saved] = []
    size = 0
    for same in together.values():
        nbytes = same[0].storage_bytes
        if nbytes > limit:
            shards.append(same)
            continue
        if size + nbytes > limit:
            shards.append(open_shard)
            open_shard, size = [], 0
        open_shard = [*open_shard, *same]
        size += nbytes
    return [*shards, open_shard] if open_shard else shards


def _shard(name: str, tensors: Iterable[Saved], key: Key | None) -> _File:
    """A safetensors file: eight bytes of its header's length, the header, and the tensors side by side."""
    ordered = sorted(tensors, key=lambda tensor: (_ORDER[tensor.dtype], tensor.name))
    defined = [paraminit_ext.STREAM_VERSION, name, *(tensor.definition(key) for tensor in ordered)]
    digest = hashlib.sha256(repr(defined).encode()).hexdigest()
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _METADATA: digest}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return _File(name, struct.pack("<Q", len(text)) + text, tuple(ordered))


def _beside(
    module_or_plan: nn.Module | InitPlan,
    dtype: torch.dtype | None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None,
) -> list[_File]:
    """The configurations that lie beside the tensors."""
    contents: dict[str, bytes] = {}
    if isinstance(module_or_plan, nn.Module) and saved.is_pretrained(inner := unwrapped(module_or_plan)):
        contents |= saved.config_files(inner, dtype, own=config is None)
    if config is not None:
        contents["config.json"] = _config(config, dtype)
    return [_File(name, content) for name, content in sorted(contents.items())]


def _config(config: str | os.PathLike[str] | Mapping[str, Any], dtype: torch.dtype | None) -> bytes:
    """What is written to ``config.json`` for what was passed."""
    if isinstance(config, Mapping):
        fields = dict(config)
    else:
        text = _text(config)
        if dtype is None:
            return text
        fields = json.loads(text)
    if dtype is not None:
        # The name that transformers had for it before.
        fields.pop("torch_dtype", None)
        fields["dtype"] = str(dtype).removeprefix("torch.")
    try:
        return _json(fields)
    except (TypeError, ValueError) as error:
        raise TypeError(
            _wrong("a config that JSON can hold", str(error), "Pass what a config.json would hold.")
        ) from None


def _text(path: str | os.PathLike[str]) -> bytes:
    """What a file of configuration holds."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        what = _wrong("a file for config", f"{os.fspath(path)} ({error.strerror})", "Pass another path.")
        raise OSError(error.errno, what) from None
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise ValueError(
            _wrong("a JSON object for config", os.fspath(path), "Pass the path of a config.json.")
        )
    return text


def _json(value: Mapping[str, Any]) -> bytes:
    """A text as transformers writes it."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


# ----------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------


def _missing(directory: Path, files: Iterable[_File]) -> list[_File]:
    """The files that are still to be written.

    Raises:
        FileExistsError: one of that name is there which is another, or another model's file of weights.
    """
    if not directory.exists():
        return list(files)
    wanted = {file.name: file for file in files}
    there = os.listdir(directory)
    for name in sorted(there):
        file = wanted.get(name)
        if file is None and not name.endswith(_WEIGHTS):
            continue
        if file is None or not file.is_at(directory / name):
            raise FileExistsError(
                errno.EEXIST,
                _wrong(
                    f"no other files than this checkpoint's in {directory}",
                    f"{name}, which is of another model, plan, size of shards or configuration",
                    "Pass another directory, or remove the file.",
                ),
            )
    return [file for file in files if file.name not in there]


def _refuse_absent(directory: Path, shards: Iterable[_File]) -> None:
    absent = [file.name for file in shards if not file.is_at(directory / file.name)]
    if absent:
        what = _wrong(
            f"a directory that all ranks see for {directory}",
            f"one without {absent[0]}, which another rank wrote",
            "Pass one on a file system that they share.",
        )
        raise FileNotFoundError(errno.ENOENT, what)


def _refuse_full(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if size > free:
        what = _wrong(
            f"{size} bytes of room in {directory}", f"{free}", "Free some, or pass another directory."
        )
        raise OSError(errno.ENOSPC, what)


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Let no other process write to the directory meanwhile, and leave no temporary file in it."""
    path = directory / _LOCK
    descriptor = _locked(path)
    try:
        _remove_partial(directory)
        yield
    finally:
        _remove_partial(directory)
        path.unlink()
        os.close(descriptor)


def _locked(path: Path) -> int:
    """The descriptor of the file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed the file in between.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            what = _wrong(f"to be alone in writing to {path.parent}", "another process there", "Wait for it.")
            raise OSError(error.errno, what) from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove_partial(directory: Path) -> None:
    for path in directory.glob(f".*{_PARTIAL}"):
        path.unlink()


def _write_all(directory: Path, files: Iterable[_File], key: Key | None, shown: bool) -> None:
    """Write those that are not there, in order; what is there has been looked at."""
    missing = [file for file in files if not (directory / file.name).exists()]
    with _progress(sum(file.size for file in missing), shown) as advance, _one_thread() as ahead:
        for file in missing:
            _write(directory, file, key, ahead, advance)


def _write(directory: Path, file: _File, key: Key | None, ahead: Executor, advance: _Advance) -> None:
    """Write a file under a temporary name, and give it its own when it is on the disk."""
    temporary = directory / f".{file.name}{_PARTIAL}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        output = _Output(descriptor, advance)
        output.write(memoryview(file.head))
        for tensor in file.tensors:
            parts = tensor.parts(key)
            for part in _made_ahead(parts, ahead) if tensor.is_in_parts else parts:
                output.write(saved.memory(part))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, directory / file.name)
    # The name is on the disk when the directory is.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Output:
    """A file that is written from its beginning.

    Args:
        descriptor: where to
        advance: is called with the bytes of each write
    """

    def __init__(self, descriptor: int, advance: _Advance) -> None:
        self._descriptor = descriptor
        self._advance = advance
        self._written = 0
        self._flushed = 0

    def write(self, content: memoryview) -> None:
        while content:
            # To the next multiple in the file.
            written = os.write(self._descriptor, content[: _PIECE - self._written % _PIECE])
            self._written += written
            self._advance(written)
            content = content[written:]
        ahead = self._written - self._flushed
        if ahead >= _FLUSHED:
            # The disk begins with what is there, so that fsync finds little left.
            os.posix_fadvise(self._descriptor, self._flushed, ahead, os.POSIX_FADV_DONTNEED)
            self._flushed = self._written


@contextlib.contextmanager
def _one_thread() -> Iterator[Executor]:
    """A thread that makes parts, alone: several wait for each other at each part, where cores are busy."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as executor:
        # A thread takes the common number when it is first asked for, whatever it was given before.
        executor.submit(torch.get_num_threads).result()
        executor.submit(torch.set_num_threads, 1).result()
        # The number is each thread's own from then on, but what threads to come take was changed with it.
        torch.set_num_threads(threads)
        yield executor


def _made_ahead(parts: Iterator[Tensor], ahead: Executor) -> Iterator[Tensor]:
    """The parts, each made by the other thread while the one before it is in use."""
    made = ahead.submit(next, parts, None)
    while (part := made.result()) is not None:
        made = ahead.submit(next, parts, None)
        yield part


@contextlib.contextmanager
def _telling(directory: Path) -> Iterator[None]:
    """Raise what the system says as one line of this function, of the type that its number has."""
    try:
        yield
    except OSError as error:
        if "paraminit_ext.save_initialized" in str(error):
            raise
        remedy = "Call again when that is mended: finished files stay, and are not written again."
        where = error.filename or directory
        raise OSError(error.errno, _wrong(f"to write to {where}", str(error.strerror), remedy)) from None


@contextlib.contextmanager
def _progress(size: int, shown: bool) -> Iterator[_Advance]:
    """What is to be called with the bytes of each write: it shows them, if asked for."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as shown_progress:
        task = shown_progress.add_task("", total=size)
        yield lambda written: shown_progress.advance(task, written)
