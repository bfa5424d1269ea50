"""Parameter initialisation for PyTorch: the functions of ``torch.nn.init`` on compiled kernels.

This module exports every name of :mod:`paraminit_ext.init`, so that ``import paraminit_ext as init`` is a
drop-in replacement for ``torch.nn.init``. The values of a fill depend only on its :class:`Key`, its
parameters and the index of each element in the global tensor. They do not depend on the device, the number of
threads, the instruction set, the strides or the sharding.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from paraminit_ext.models.audit import audit
    from paraminit_ext.models.checkpoint import save_initialized
    from paraminit_ext.models.plot import plot
    from paraminit_ext.models.summary import summary

__version__ = "0.1.0"
STREAM_VERSION = 1


def _how_to_reinstall() -> str:
    """Return an instruction that reinstalls the extension, for a checkout or an installed package."""
    folder = Path(__file__).resolve().parents[1]
    if (folder / "csrc").exists():
        return f"Build it: pip install --no-deps -e {folder}"
    return "Reinstall it: pip install --force-reinstall --no-deps paraminit_ext"


def _load_binary() -> None:
    """Import the compiled extension, and load the CUDA kernels that match the installed torch.

    One extension serves every torch from 2.11 on.

    Raises:
        ImportError: if torch is too old, or the compiled extension is missing or of another version.
    """
    torch_version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if torch_version < (2, 11):
        raise ImportError(
            f"paraminit_ext {__version__}: expected torch 2.11 or later, got torch {torch.__version__}. "
            "Upgrade it: pip install --upgrade torch"
        )
    rebuild = _how_to_reinstall()
    try:
        binary = importlib.import_module("paraminit_ext._C")
    except ModuleNotFoundError:
        raise ImportError(
            f"paraminit_ext {__version__}: expected a compiled extension for Python "
            f"{sys.version_info.major}.{sys.version_info.minor}, got none. {rebuild}"
        ) from None
    version = binary.build_info()["version"]
    if version != __version__:
        raise ImportError(
            f"paraminit_ext {__version__}: expected a compiled extension of the same version, got one of "
            f"{version}. {rebuild}"
        )
    if torch.version.cuda is not None:
        library = Path(__file__).with_name(f"_cuda{torch.version.cuda.partition('.')[0]}.so")
        if library.exists():
            problem = binary.load_cuda(str(library))
            if problem:
                raise ImportError(
                    f"paraminit_ext {__version__}: expected CUDA kernels that load, got: {problem}. {rebuild}"
                )


_load_binary()

from paraminit_ext import init  # noqa: E402
from paraminit_ext._C import (  # noqa: E402
    available_cpu_capabilities,
    cpu_capability,
    set_cpu_capability,
)
from paraminit_ext.geometry import Shard, shard  # noqa: E402
from paraminit_ext.init import (  # noqa: E402
    _calculate_correct_fan,
    _calculate_fan_in_and_fan_out,
    calculate_gain,
    constant,
    constant_,
    delta_orthogonal_,
    dirac,
    dirac_,
    eye,
    eye_,
    kaiming_normal,
    kaiming_normal_,
    kaiming_uniform,
    kaiming_uniform_,
    lecun_normal_,
    lecun_uniform_,
    normal,
    normal_,
    ones_,
    orthogonal,
    orthogonal_,
    sparse,
    sparse_,
    trunc_normal_,
    uniform,
    uniform_,
    variance_scaling_,
    xavier_normal,
    xavier_normal_,
    xavier_uniform,
    xavier_uniform_,
    zeros_,
)
from paraminit_ext.key import Key  # noqa: E402
from paraminit_ext.many import fill_many  # noqa: E402
from paraminit_ext.models.deferred import deferred_init, materialize_module, materialize_tensor  # noqa: E402
from paraminit_ext.models.names import keyed  # noqa: E402
from paraminit_ext.models.patch import install, patch, uninstall  # noqa: E402
from paraminit_ext.models.plan import InitPlan  # noqa: E402

# Fills do not need these functions, so their modules are imported at first use.
_LAZY_IMPORTS = {
    "audit": "paraminit_ext.models.audit",
    "plot": "paraminit_ext.models.plot",
    "save_initialized": "paraminit_ext.models.checkpoint",
    "summary": "paraminit_ext.models.summary",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'paraminit_ext' has no attribute {name!r}")
    return globals().setdefault(name, getattr(importlib.import_module(_LAZY_IMPORTS[name]), name))


# Key is plain data, so a checkpoint that contains keys loads under weights_only=True.
torch.serialization.add_safe_globals([Key])

__all__ = [
    "STREAM_VERSION",
    "InitPlan",
    "Key",
    "Shard",
    "__version__",
    "_calculate_correct_fan",
    "_calculate_fan_in_and_fan_out",
    "audit",
    "available_cpu_capabilities",
    "calculate_gain",
    "constant",
    "constant_",
    "cpu_capability",
    "deferred_init",
    "delta_orthogonal_",
    "dirac",
    "dirac_",
    "eye",
    "eye_",
    "fill_many",
    "init",
    "install",
    "kaiming_normal",
    "kaiming_normal_",
    "kaiming_uniform",
    "kaiming_uniform_",
    "keyed",
    "lecun_normal_",
    "lecun_uniform_",
    "materialize_module",
    "materialize_tensor",
    "normal",
    "normal_",
    "ones_",
    "orthogonal",
    "orthogonal_",
    "patch",
    "plot",
    "save_initialized",
    "set_cpu_capability",
    "shard",
    "sparse",
    "sparse_",
    "summary",
    "trunc_normal_",
    "uniform",
    "uniform_",
    "uninstall",
    "variance_scaling_",
    "xavier_normal",
    "xavier_normal_",
    "xavier_uniform",
    "xavier_uniform_",
    "zeros_",
]
