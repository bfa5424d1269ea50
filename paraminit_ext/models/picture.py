"""``plot()``: the values of a module or a checkpoint as one figure, beside what was asked for."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from torch import nn

from paraminit_ext.models import page
from paraminit_ext.models.names import mesh_of
from paraminit_ext.models.panels import Panels, State, panels_of, refuse
from paraminit_ext.models.plan import InitPlan, recorded

# What would enter the date, or a version, into a file of this kind.
_UNDATED: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}


def plot(
    module_or_path: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    plan: InitPlan | None = None,
    before: nn.Module | str | os.PathLike[str] | None = None,
) -> Path:
    r"""Draw the values of a module's parameters, or of a checkpoint's tensors, into one file.

    A panel for each kind of layer, that is for all parameters of one shape whose names differ in numbers
    alone: the density of their elements on a logarithmic scale, every element in it, and over it the density
    that was asked for, where the plan says so by a fill. Then, for layers that repeat, the deviation of each.
    Parameters that are one number are listed. Of more than 48 kinds those with the most elements are drawn.

    Elements are counted piece by piece, where they are. Of DTensors the whole is drawn: all ranks call
    together, and the first one of each mesh writes the file.

    Args:
        module_or_path: a module; or a directory of safetensors files, an index in it, or one such file
        out: the file; its suffix says what is written: ``.png``, ``.svg``, ``.pdf`` or another that
            matplotlib knows. The same input gives the same bytes in these three.
        plan: what was asked for; None for the module's own plan, if :func:`deferred_init` made it
        before: a module or a checkpoint of the same parameters, to be shown beside as the state before

    Raises:
        TypeError: an argument of another type.
        ValueError: there are no values, or ``before`` has other names or shapes, or matplotlib does not
            know the suffix.
        OSError: a path cannot be read, or the file cannot be written.
        ModuleNotFoundError: matplotlib is not installed.

    Returns:
        the path of the file.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from paraminit_ext import Key, deferred_init, materialize_module
        >>> from paraminit_ext.models.picture import plot
        >>> layer = materialize_module(deferred_init(torch.nn.Linear, 64, 64, key=Key(1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot(layer, Path(folder) / "layer.svg").name
        'layer.svg'
    """
    _refuse_types(module_or_path, out, plan, before)
    out = Path(out)
    _refuse_suffix(out)
    if plan is None and isinstance(module_or_path, nn.Module) and recorded(module_or_path):
        plan = InitPlan.of(module_or_path)
    if not (_is_first_rank(module_or_path) and _is_first_rank(before)):
        # Counting is done by all.
        _panels(module_or_path, before, plan)
        return out
    with _replacing(out) as file:
        _save(_panels(module_or_path, before, plan), file, out.suffix[1:].lower())
    return out


def _panels(
    module_or_path: nn.Module | str | os.PathLike[str],
    before: nn.Module | str | os.PathLike[str] | None,
    plan: InitPlan | None,
) -> Panels:
    return panels_of(State(module_or_path), None if before is None else State(before), plan)


# ----------------------------------------------------------------------------------------
# Arguments, files
# ----------------------------------------------------------------------------------------


def _refuse_types(source: object, out: object, plan: object, before: object) -> None:
    module_or_path = (nn.Module, str, os.PathLike)
    for value, kinds, expected, remedy in (
        (source, module_or_path, "a torch.nn.Module or a path", "Pass a model, or a folder of safetensors."),
        (out, (str, os.PathLike), "a path for out", 'Pass the name of a file, "model.png" for example.'),
        (plan, (InitPlan, type(None)), "an InitPlan or None for plan", "Pass InitPlan.of(module)."),
        (
            before,
            (*module_or_path, type(None)),
            "a torch.nn.Module or a path for before",
            "Pass a state of the same model.",
        ),
    ):
        if not isinstance(value, kinds):
            raise TypeError(f"paraminit_ext.plot: expected {expected}, got {type(value).__name__}. {remedy}")


def _refuse_suffix(out: Path) -> None:
    """Raise unless matplotlib is there and writes such files."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "paraminit_ext.plot: expected the package matplotlib, got none. Run `pip install matplotlib`."
        ) from None
    known = FigureCanvasAgg.get_supported_filetypes()
    if out.suffix[1:].lower() not in known:
        refuse("a suffix that matplotlib writes", out.name, f"Name a file with one of {', '.join(known)}.")


def _is_first_rank(source: nn.Module | str | os.PathLike[str] | None) -> bool:
    """Whether this process is the one of each mesh that writes."""
    if not isinstance(source, nn.Module):
        return True
    meshes = {id(mesh): mesh for p in source.parameters() if (mesh := mesh_of(p))}
    coordinates = [mesh.get_coordinate() for mesh in meshes.values()]
    return all(coordinate is not None and not any(coordinate) for coordinate in coordinates)


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, which becomes ``out`` when all went well."""
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise type(error)(
            f"paraminit_ext.plot: expected a file that can be written, got {out}: {error.strerror}. Name one "
            "in a directory that is there."
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(temporary, out)
    except BaseException:
        os.unlink(temporary)
        raise


def _save(found: Panels, file: BinaryIO, suffix: str) -> None:
    import matplotlib as mpl
    import matplotlib.style

    # In the default style, whatever the user has set, which is back in force after it.
    with matplotlib.style.context("default"):
        # Without it the ids in a file of SVG are random.
        mpl.rcParams["svg.hashsalt"] = "paraminit_ext"
        page.draw(found).savefig(file, format=suffix, metadata=_UNDATED.get(suffix, {}))
