"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(name: str, out: Path) -> Iterator[Path]:
    """Yield a new file of a temporary name to write to. If no exception is raised, rename it to ``out``.

    Args:
        name: the name of the caller, for errors
        out: the file to replace or create

    Raises:
        OSError: the file cannot be created.
    """
    try:
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
        # The system applies the umask. To read the umask is to change it for all threads of the process.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
    except OSError as error:
        raise type(error)(
            f"paraminit_ext.{name}: expected a file that can be written, got {out}: {error.strerror}. Name a "
            "file in an existing directory."
        ) from None
    try:
        yield temporary
        # safetensors replaces the file by one that only its owner can read.
        os.chmod(temporary, mode)
        os.replace(temporary, out)
    except BaseException:
        os.unlink(temporary)
        raise
