"""``save_initialized``: write the checkpoint of a model from its plan, without the model.

A file is written under a temporary name, flushed to disk and renamed, so that a file under its own name is
complete. Its first bytes identify it: a safetensors header holds the names, dtypes and shapes, and a digest
of everything on which the values depend.
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
from paraminit_ext.models import checkpoint_contents
from paraminit_ext.models.checkpoint_contents import Contents, SavedTensor
from paraminit_ext.models.checkpoint_reader import DTYPES
from paraminit_ext.models.checkpoint_writers import Writers
from paraminit_ext.models.layout import dtype_name
from paraminit_ext.models.names import check_key, unwrapped
from paraminit_ext.models.plan import InitPlan

# The metadata key of the digest that identifies the values of a shard.
_DIGEST_KEY = "paraminit_ext.save_initialized"
_INDEX = "model.safetensors.index.json"
_PARTIAL = ".paraminit_ext.partial"
_LOCK = ".paraminit_ext.lock"
# The number of bytes of a write. Writes start at multiples of it, which takes 0.8 of the time of writes that
# start anywhere.
_WRITE_SIZE = 1 << 18
# The number of bytes after which the system is asked to start writing to disk.
_FLUSH_SIZE = 1 << 25
# The suffixes of checkpoint files. Such a file belongs to another model if this checkpoint does not have it.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json")

_Advance: TypeAlias = Callable[[int], None]

_DTYPES = {dtype: name for name, dtype in DTYPES.items()}
_DTYPE_ORDER = {dtype: place for place, dtype in enumerate(_DTYPES)}


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
    their index. They hold the same names, tensors, order and bits as those of the model that
    :func:`.materialize_module` makes, and ``from_pretrained`` loads them.

    Values are made part by part and written from a buffer that stays in the cache. A tensor whose steps are
    more than a fill is made as a whole, one at a time. Only one of several tied tensors is saved.
    Non-persistent buffers and plain attributes are not saved. If transformers renames, splits or joins the
    tensors of a model when it saves them, this function does the same. If you pass a plan, the tensors are
    saved under the plan's names, which ``from_pretrained`` also loads.

    Each file has a temporary name until it is complete and on disk. After a crash, the same call resumes. It
    does not write a shard again if the size and the header of the shard are as expected. The header includes
    a digest of the steps, keys, dtypes and shapes. Files of another model, another plan or another
    ``max_shard_size`` are never overwritten.

    If the module is sharded over a mesh, all ranks of that mesh and no others must call this function, with a
    directory that all of them see. Each rank writes some of the shards, and no byte is written twice. For a
    pipeline, whose stages are separate modules, and for replicas on several meshes, which would all write the
    same files, save the plan on one rank instead.

    Args:
        module_or_plan: a plan, or the module that :func:`.deferred_init` returned, wrapped or not, or a
            submodule. The current names, ties and conversions of a module (``.to(torch.bfloat16)``) take
            effect. Its current values do not: if it was materialised and trained, this function still saves
            the values of its plan.
        directory: the directory of the checkpoint, which is created if necessary
        max_shard_size: the maximum size of a file, as a number of bytes or as a text such as ``"5GB"``,
            ``"200MB"`` or ``"1GiB"``. A larger tensor gets its own file.
        dtype: the dtype to which floating-point parameters and persistent buffers are converted
        key: the key of the model, which replaces the plan's own key, as in :meth:`InitPlan.apply`
        config: the content of ``config.json``, as a mapping or as the path of a file (default: the
            configuration of a transformers module). If you pass ``dtype``, the configuration states it. The
            generation configuration of a transformers module is saved as well.
        progress: whether to show the written bytes, the rate and the remaining time, which requires
            ``rich``. If None (the default), they are shown if the standard error is a terminal and ``rich``
            is installed.

    Raises:
        TypeError: an argument has the wrong type, or a tensor has a dtype that safetensors lacks.
        ValueError: a module has no plan or does not match its plan, the model left a tensor as it was
            allocated, or a size or a configuration is invalid.
        FileExistsError: the directory holds files that do not belong to this checkpoint.
        BlockingIOError: another process is writing to the directory.
        OSError: there is no space, no permission or no directory. Finished shards are kept, and unfinished
            ones are removed.
        ModuleNotFoundError: ``progress`` is True and ``rich`` is not installed.

    Returns:
        The paths of the files in the order in which they are written, the index last.

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
    check_key("save_initialized", key)
    directory = Path(directory)
    writers = Writers(() if isinstance(module_or_plan, InitPlan) else module_or_plan.parameters())
    with writers.step():
        limit = _size_of(max_shard_size)
        show = _shows_progress(progress)
        if isinstance(module_or_plan, InitPlan):
            contents = checkpoint_contents.contents_of_plan(module_or_plan, dtype)
        else:
            contents = checkpoint_contents.contents_of_module(module_or_plan, dtype)
        files = _weight_files(contents, limit, key) + _config_files(module_or_plan, dtype, config)
    # The index comes last, so that it exists only if all other files exist.
    files.sort(key=lambda file: file.name == _INDEX)
    writers.refuse_others(b"".join(file.head for file in files))
    shards = [file for file in files if file.tensors]
    with contextlib.ExitStack() as lock:
        with writers.step(), _readable_errors(directory):
            if writers.is_first:
                _missing(directory, files)
                os.makedirs(directory, exist_ok=True)
                lock.enter_context(_exclusive_access(directory))
                _refuse_full_disk(directory, sum(file.size for file in _missing(directory, files)))
        with writers.step(), _readable_errors(directory):
            _write_all(directory, writers.own(shards), key, show and writers.is_first)
        with writers.step(), _readable_errors(directory):
            if writers.is_first:
                _refuse_missing_shards(directory, shards)
                _write_all(directory, [file for file in files if not file.tensors], key, shown=False)
    return [directory / file.name for file in files]


# ----------------------------------------------------------------------------------------
# Arguments
# ----------------------------------------------------------------------------------------

_UNITS = {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)} | {
    f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)
}


def _error_text(expected: str, got: str, remedy: str) -> str:
    return f"paraminit_ext.save_initialized: expected {expected}, got {got}. {remedy}"


def _refuse_arguments(module_or_plan: object, directory: object, dtype: object, config: object) -> None:
    if not isinstance(module_or_plan, nn.Module | InitPlan):
        raise TypeError(
            _error_text(
                "a torch.nn.Module or an InitPlan",
                type(module_or_plan).__name__,
                "Pass the module that deferred_init returned.",
            )
        )
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(
            _error_text("a path for directory", type(directory).__name__, "Pass a str or a Path.")
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            _error_text("a floating-point dtype", str(dtype), "Pass torch.bfloat16, for example.")
        )
    if not (config is None or isinstance(config, str | os.PathLike | Mapping)):
        raise TypeError(
            _error_text(
                "a path or a dict for config",
                type(config).__name__,
                "Pass config.to_dict(), for a configuration of transformers.",
            )
        )


def _size_of(value: object) -> int:
    """Return ``max_shard_size`` in bytes."""
    remedy = 'Pass a number of bytes, or a text such as "5GB", "200MB" or "1GiB".'
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(_error_text("an int or a str for max_shard_size", type(value).__name__, remedy))
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B)\s*", str(value).upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else value if isinstance(value, int) else 0
    if size <= 0:
        raise ValueError(_error_text("a size above zero for max_shard_size", repr(value), remedy))
    return size


def _shows_progress(progress: bool | None) -> bool:
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return False
    try:
        import rich.progress  # noqa: F401
    except ModuleNotFoundError:
        if progress is None:
            return False
        raise ModuleNotFoundError(
            _error_text("the package rich for progress", "none", "Run `pip install rich`.")
        ) from None
    return True


# ----------------------------------------------------------------------------------------
# Contents of the files
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the checkpoint: its first bytes, which identify it, and the tensors that follow them."""

    name: str
    head: bytes
    tensors: tuple[SavedTensor, ...] = ()

    @property
    def size(self) -> int:
        return len(self.head) + sum(tensor.nbytes for tensor in self.tensors)

    def is_at(self, path: Path) -> bool:
        """Return whether this file is at the path and complete."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            return file.read(len(self.head)) == self.head


def _weight_files(contents: Contents, limit: int, key: Key | None) -> list[_File]:
    """Return the shards and, if there are several, their index."""
    if not contents.tensors:
        raise ValueError(
            _error_text(
                "a model with parameters or buffers",
                "none to save",
                "Pass the module that deferred_init returned.",
            )
        )
    for tensor in contents.tensors:
        _refuse_unsavable(tensor)
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


def _refuse_unsavable(tensor: SavedTensor) -> None:
    for source in tensor.sources.values():
        if not source.entry.steps and 0 not in source.entry.shape:
            raise ValueError(
                _error_text(
                    "steps for each tensor",
                    f"{tensor.name}, which the model left as it was allocated",
                    "Initialise it inside deferred_init.",
                )
            )
    if tensor.dtype not in _DTYPES:
        raise TypeError(
            _error_text(
                "dtypes that safetensors supports",
                f"{tensor.dtype} for {tensor.name}",
                "Materialise the model and save it by torch.save.",
            )
        )


def _split(tensors: Sequence[SavedTensor], limit: int) -> list[list[SavedTensor]]:
    """Split the tensors into shards like ``split_torch_state_dict_into_shards`` of huggingface_hub."""
    by_storage: dict[object, list[SavedTensor]] = {}
    for tensor in tensors:
        by_storage.setdefault(tensor.storage, []).append(tensor)
    shards: list[list[SavedTensor]] = []
    open_shard: list[SavedTensor] = []
    size = 0
    for group in by_storage.values():
        nbytes = group[0].storage_bytes
        if nbytes > limit:
            shards.append(group)
            continue
        if size + nbytes > limit:
            shards.append(open_shard)
            open_shard, size = [], 0
        open_shard = [*open_shard, *group]
        size += nbytes
    return [*shards, open_shard] if open_shard else shards


def _shard(name: str, tensors: Iterable[SavedTensor], key: Key | None) -> _File:
    """Return a safetensors file: the length of the header in eight bytes, the header and the tensors."""
    ordered = sorted(tensors, key=lambda tensor: (_DTYPE_ORDER[tensor.dtype], tensor.name))
    definitions = [paraminit_ext.STREAM_VERSION, name, *(tensor.definition(key) for tensor in ordered)]
    digest = hashlib.sha256(repr(definitions).encode()).hexdigest()
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _DIGEST_KEY: digest}}
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


def _config_files(
    module_or_plan: nn.Module | InitPlan,
    dtype: torch.dtype | None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None,
) -> list[_File]:
    """Return the configuration files of the checkpoint."""
    contents: dict[str, bytes] = {}
    if isinstance(module_or_plan, nn.Module) and checkpoint_contents.is_pretrained(
        inner := unwrapped(module_or_plan)
    ):
        contents |= checkpoint_contents.config_files(inner, dtype, own=config is None)
    if config is not None:
        contents["config.json"] = _config_content(config, dtype)
    return [_File(name, content) for name, content in sorted(contents.items())]


def _config_content(config: str | os.PathLike[str] | Mapping[str, Any], dtype: torch.dtype | None) -> bytes:
    """Return the content of ``config.json``."""
    if isinstance(config, Mapping):
        fields = dict(config)
    else:
        text = _config_text(config)
        if dtype is None:
            return text
        fields = json.loads(text)
    if dtype is not None:
        # The former name of the field in transformers.
        fields.pop("torch_dtype", None)
        fields["dtype"] = dtype_name(dtype)
    try:
        return _json(fields)
    except (TypeError, ValueError) as error:
        raise TypeError(
            _error_text("a config that JSON can hold", str(error), "Pass the content of a config.json.")
        ) from None


def _config_text(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a configuration file. Raise unless it is a JSON object."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        message = _error_text(
            "a file for config", f"{os.fspath(path)} ({error.strerror})", "Pass another path."
        )
        raise OSError(error.errno, message) from None
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise ValueError(
            _error_text("a JSON object for config", os.fspath(path), "Pass the path of a config.json.")
        )
    return text


def _json(value: Mapping[str, Any]) -> bytes:
    """Return JSON in the format that transformers writes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


# ----------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------


def _missing(directory: Path, files: Iterable[_File]) -> list[_File]:
    """Return the files that must still be written.

    Raises:
        FileExistsError: a file with one of these names has other contents, or another weight file exists.
    """
    if not directory.exists():
        return list(files)
    wanted = {file.name: file for file in files}
    existing = os.listdir(directory)
    for name in sorted(existing):
        file = wanted.get(name)
        if file is None and not name.endswith(_WEIGHT_SUFFIXES):
            continue
        if file is None or not file.is_at(directory / name):
            raise FileExistsError(
                errno.EEXIST,
                _error_text(
                    f"no other files than this checkpoint's in {directory}",
                    f"{name}, which is of another model, plan, shard size or configuration",
                    "Pass another directory, or remove the file.",
                ),
            )
    return [file for file in files if file.name not in existing]


def _refuse_missing_shards(directory: Path, shards: Iterable[_File]) -> None:
    missing = [file.name for file in shards if not file.is_at(directory / file.name)]
    if missing:
        message = _error_text(
            f"a directory that all ranks see for {directory}",
            f"one without {missing[0]}, which another rank wrote",
            "Pass a directory on a shared file system.",
        )
        raise FileNotFoundError(errno.ENOENT, message)


def _refuse_full_disk(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if size > free:
        message = _error_text(
            f"{size} bytes of free space in {directory}",
            f"{free}",
            "Free some space, or pass another directory.",
        )
        raise OSError(errno.ENOSPC, message)


@contextlib.contextmanager
def _exclusive_access(directory: Path) -> Iterator[None]:
    """Keep other processes from writing to the directory, and remove temporary files before and after."""
    path = directory / _LOCK
    descriptor = _lock(path)
    try:
        _remove_partial(directory)
        yield
    finally:
        _remove_partial(directory)
        path.unlink()
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Lock the file and return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous owner may have removed the file before the lock was taken.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            message = _error_text(
                f"no other process that writes to {path.parent}", "one", "Wait until it ends."
            )
            raise OSError(error.errno, message) from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove_partial(directory: Path) -> None:
    for path in directory.glob(f".*{_PARTIAL}"):
        path.unlink()


def _write_all(directory: Path, files: Iterable[_File], key: Key | None, shown: bool) -> None:
    """Write the files that do not exist, in order. The caller has checked the existing ones."""
    missing = [file for file in files if not (directory / file.name).exists()]
    with _progress(sum(file.size for file in missing), shown) as advance, _single_thread() as executor:
        for file in missing:
            _write(directory, file, key, executor, advance)


def _write(directory: Path, file: _File, key: Key | None, executor: Executor, advance: _Advance) -> None:
    """Write a file under a temporary name, and rename it when it is on disk."""
    temporary = directory / f".{file.name}{_PARTIAL}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        output = _OutputFile(descriptor, advance)
        output.write(memoryview(file.head))
        for tensor in file.tensors:
            parts = tensor.parts(key)
            for part in _make_ahead(parts, executor) if tensor.is_in_parts else parts:
                output.write(checkpoint_contents.memory(part))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, directory / file.name)
    # Flushing the directory puts the new name on disk.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _OutputFile:
    """A file that is written sequentially from its beginning.

    Args:
        descriptor: the descriptor of the file
        advance: a function that is called with the number of bytes of each write
    """

    def __init__(self, descriptor: int, advance: _Advance) -> None:
        self._descriptor = descriptor
        self._advance = advance
        self._written = 0
        self._flushed = 0

    def write(self, content: memoryview) -> None:
        while content:
            # Up to the next multiple of the write size in the file.
            written = os.write(self._descriptor, content[: _WRITE_SIZE - self._written % _WRITE_SIZE])
            self._written += written
            self._advance(written)
            content = content[written:]
        unflushed = self._written - self._flushed
        if unflushed >= _FLUSH_SIZE:
            # The system starts to write these bytes to disk, which leaves little work for fsync.
            os.posix_fadvise(self._descriptor, self._flushed, unflushed, os.POSIX_FADV_DONTNEED)
            self._flushed = self._written


@contextlib.contextmanager
def _single_thread() -> Iterator[Executor]:
    """Yield an executor with one thread, in which torch also uses a single thread.

    On busy cores, several threads would wait for each other at each part.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as executor:
        # A new thread takes the process-wide number at its first use, which would undo set_num_threads(1).
        executor.submit(torch.get_num_threads).result()
        executor.submit(torch.set_num_threads, 1).result()
        # The call above also changed the number that later threads take. Restore it.
        torch.set_num_threads(threads)
        yield executor


def _make_ahead(parts: Iterator[Tensor], executor: Executor) -> Iterator[Tensor]:
    """Yield the parts. The executor makes the next part while the caller uses the current one."""
    pending = executor.submit(next, parts, None)
    while (part := pending.result()) is not None:
        pending = executor.submit(next, parts, None)
        yield part


@contextlib.contextmanager
def _readable_errors(directory: Path) -> Iterator[None]:
    """Replace the message of an OSError by one line of this function. The exception type stays the same."""
    try:
        yield
    except OSError as error:
        if "paraminit_ext.save_initialized" in str(error):
            raise
        remedy = "Fix the cause and call again. Finished files are kept and not written again."
        place = error.filename or directory
        raise OSError(error.errno, _error_text(f"to write to {place}", str(error.strerror), remedy)) from None


@contextlib.contextmanager
def _progress(size: int, shown: bool) -> Iterator[_Advance]:
    """Yield a function to call with the number of bytes of each write. It shows the progress if ``shown``."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as shown_progress:
        task = shown_progress.add_task("", total=size)
        yield lambda written: shown_progress.advance(task, written)
