"""Warnings that point to the line that called this package, past wrappers and modes."""

from __future__ import annotations

import sys
import warnings

import torch

# A warning points to the first frame outside these modules, which is the line that called the function.
_SKIPPED_MODULES = frozenset(
    {
        __name__,
        "paraminit_ext.extra_init",
        "paraminit_ext.dispatch",
        "paraminit_ext.geometry",
        "paraminit_ext.init",
        "paraminit_ext.many",
        "paraminit_ext.models.fill_calls",
        "paraminit_ext.models.names",
        "paraminit_ext.models.patch",
        "paraminit_ext.models.recorder",
        "paraminit_ext.models.init_hooks",
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
        while frame.f_back is not None and frame.f_globals.get("__name__") in _SKIPPED_MODULES:
            frame = frame.f_back
            level += 1
    warnings.warn(message, category, stacklevel=level)
