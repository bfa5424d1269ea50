"""``plot()``: a figure of the values of a module or a checkpoint, with the requested distributions."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from paraminit_ext.models import plot_figure
from paraminit_ext.models.files import replacing
from paraminit_ext.models.names import mesh_of
from paraminit_ext.models.plan import InitPlan, plan_and_path
from paraminit_ext.models.plot_data import Panels, State, panels_of, refuse

# Metadata to remove by file format: fields in which matplotlib would write a date or a version.
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
    r"""Plot the values of a module's parameters, or of a checkpoint's tensors, and save the figure.

    The figure has one panel for each kind of layer. A kind of layer consists of all parameters of one shape
    whose names differ only in numbers. The panel shows the density of all elements on a logarithmic scale. If
    the plan fills these parameters from a known distribution, the panel also shows the requested density. For
    repeated layers, further panels show the standard deviation of each layer. Constant parameters are listed
    below the panels. Of more than 48 kinds of layers, the figure shows those with the most elements.

    The elements are counted in pieces, on the device of each tensor. If parameters are DTensors, the figure
    shows the whole tensors. All ranks of the mesh must then call this function, and the first rank of the
    mesh writes the file.

    Args:
        module_or_path: a module, a directory of safetensors files, an index file in such a directory, or one
            safetensors file
        out: the path of the figure. Its suffix selects the format: ``.png``, ``.svg``, ``.pdf``, or another
            format of matplotlib. For these three, the same input gives the same bytes
        plan: the plan that gives the requested distributions. If None, the plan of the module is used, if
            :func:`.deferred_init` made the module. Default: None
        before: a module or a checkpoint with the same parameters, whose values are shown for comparison as
            the earlier state. Default: None

    Returns:
        The path of the figure.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there are no values to plot, ``before`` has other names or shapes, ``plan`` has none of
            the names, or matplotlib does not know the suffix.
        OSError: a path cannot be read, or the figure cannot be written.
        ModuleNotFoundError: matplotlib is not installed.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from paraminit_ext import Key, deferred_init, materialize_module
        >>> from paraminit_ext.models.plot import plot
        >>> layer = materialize_module(deferred_init(torch.nn.Linear, 64, 64, key=Key(1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot(layer, Path(folder) / "layer.svg").name
        'layer.svg'
    """
    _refuse_types(module_or_path, out, plan, before)
    out = Path(out)
    _refuse_suffix(out)
    if plan is None and isinstance(module_or_path, nn.Module) and plan_and_path(module_or_path):
        plan = InitPlan.of(module_or_path)
    if not (_is_first_rank(module_or_path) and _is_first_rank(before)):
        # All ranks must take part in counting.
        _panels(module_or_path, before, plan)
        return out
    with replacing("plot", out) as temporary:
        _save(_panels(module_or_path, before, plan), temporary, out.suffix[1:].lower())
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
    """Raise unless matplotlib is installed and supports the suffix."""
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
    """Return whether this process is the first rank of every mesh of the module, which writes the file."""
    if not isinstance(source, nn.Module):
        return True
    meshes = {id(mesh): mesh for p in source.parameters() if (mesh := mesh_of(p))}
    coordinates = [mesh.get_coordinate() for mesh in meshes.values()]
    return all(coordinate is not None and not any(coordinate) for coordinate in coordinates)


def _save(found: Panels, path: Path, suffix: str) -> None:
    import matplotlib as mpl
    import matplotlib.style

    # Draw in the default style. The context manager restores the user's style afterwards.
    with matplotlib.style.context("default"):
        # Without a salt, the ids in an SVG file are random.
        mpl.rcParams["svg.hashsalt"] = "paraminit_ext"
        plot_figure.draw(found).savefig(path, format=suffix, metadata=_UNDATED.get(suffix, {}))
