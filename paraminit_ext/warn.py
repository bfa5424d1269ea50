"""Warnings that name the line which called this package, whatever stands in between."""

from __future__ import annotations

import sys
import warnings

import torch

# A warning names the first frame outside these: the line that called the function, whatever mode was in
# between.
_PLUMBING = frozenset(
    {
        __name__,
        "paraminit_ext.beside",
        "paraminit_ext.calls",
        "paraminit_ext.geometry",
        "paraminit_ext.init",
        "paraminit_ext.many",
        "paraminit_ext.models.fills",
        "paraminit_ext.models.names",
        "paraminit_ext.models.patch",
        "paraminit_ext.models.recorder",
        "paraminit_ext.models.stock",
        "torch._tensor",
        "torch.nn.init",
        "torch.overrides",
        "torch.utils._device",
    }
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    level = 2
    if not torch.compiler.is_compiling():
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__") in _PLUMBING:
            frame = frame.f_back
            level += 1
    warnings.warn(message, category, stacklevel=level)
