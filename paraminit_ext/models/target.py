"""What a text of the command line names: a checkpoint, a plan, or a model that is built.

============================  ==========================================================================
``checkpoint/``               a directory of safetensors files; an index in one; one such file
``config.json``               a configuration of transformers; a directory that has no checkpoint beside it
``package.module:function``   what returns a ``torch.nn.Module``, or is one; the current directory is looked
                              in first
``model.plan``                a file that :meth:`InitPlan.save` wrote, whatever it is called
============================  ==========================================================================
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from torch import nn

from paraminit_ext.key import Key
from paraminit_ext.models.deferred import deferred_init, materialize_module
from paraminit_ext.models.plan import InitPlan
from paraminit_ext.models.planfile import METADATA
from paraminit_ext.models.stored import header_of


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory of safetensors files, an index in one, or one such file."""

    path: Path


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A file that :meth:`InitPlan.save` wrote."""

    path: Path


@dataclass(frozen=True, slots=True)
class Model:
    """What builds a model, and the text that named it."""

    text: str
    build: Callable[[], nn.Module]


Target: TypeAlias = Checkpoint | PlanFile | Model | nn.Module


def parse(text: str) -> Target:
    """What the text names; of ``module:function`` the module is imported, nothing else is run or read.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: a file, a directory or an attribute that is none of what is known.
        TypeError: an attribute that cannot be called.
        ImportError: a module, or transformers, that cannot be imported.
    """
    path = Path(text)
    if path.is_dir():
        return _of_directory(path)
    if path.exists():
        return _of_file(path)
    if re.fullmatch(r"[\w.]+:[\w.]+", text):
        return _imported(text)
    what = (
        f"paraminit_ext: expected a checkpoint, a config.json, a plan or module:function, got {text}, which "
        "is not there. Name another one."
    )
    raise FileNotFoundError(errno.ENOENT, what)


def deferred(target: Target, seed: int = 0) -> nn.Module:
    """The model on meta with its plan, whose numbers are those of ``Key(seed)``.

    Raises:
        TypeError: what is named is no model that can be built.
    """
    if isinstance(target, Model):
        return deferred_init(target.build, key=Key(seed))
    raise TypeError(
        f"paraminit_ext: expected a config.json or module:function, got {_told(target)}. Name what builds "
        "the model."
    )


def readable(target: Target, seed: int = 0) -> nn.Module | Path:
    """What has values: a path, or a module; a model is built, with the numbers of ``Key(seed)``.

    Raises:
        TypeError: a plan, which has no values.
    """
    if isinstance(target, PlanFile):
        raise TypeError(
            f"paraminit_ext: expected a checkpoint or a model, got {_told(target)}. Write its checkpoint "
            "first, or show the plan."
        )
    if isinstance(target, Model):
        return materialize_module(deferred(target, seed))
    return target.path if isinstance(target, Checkpoint) else target


def loaded_plan(target: Target) -> InitPlan:
    """The plan in a file.

    Raises:
        TypeError: what is named is no plan.
    """
    if isinstance(target, PlanFile):
        return InitPlan.load(target.path)
    raise TypeError(f"paraminit_ext: expected a plan, got {_told(target)}. Name what plan.save wrote.")


def _told(target: Target) -> str:
    if isinstance(target, Checkpoint):
        return f"{target.path}, a checkpoint"
    if isinstance(target, PlanFile):
        return f"{target.path}, a plan"
    return f"{target.text}, a model" if isinstance(target, Model) else f"a {type(target).__name__}"


# ----------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------


def _of_directory(path: Path) -> Target:
    if any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json")):
        return Checkpoint(path)
    if (path / "config.json").is_file():
        return _of_config(path / "config.json")
    raise ValueError(
        f"paraminit_ext: expected safetensors files or a config.json in {path}, got neither. Name another "
        "directory."
    )


def _of_file(path: Path) -> Target:
    if path.suffix == ".json":
        fields = _json(path)
        if "model_type" in fields:
            return _of_config(path)
        if "weight_map" in fields:
            return Checkpoint(path)
        raise ValueError(
            f"paraminit_ext: expected a configuration with a model_type, or an index with a weight_map, got "
            f"neither in {path}. Name a config.json of transformers."
        )
    return PlanFile(path) if METADATA in _metadata(path) else Checkpoint(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError:
        fields = None
    return fields if isinstance(fields, dict) else {}


def _metadata(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself; nothing for a damaged one, of which its reader tells."""
    try:
        found = header_of(path)[0].get("__metadata__")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


# ----------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------


def _of_config(path: Path) -> Model:
    transformers = _transformers(path)
    # Code that comes with a configuration is not run.
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    names = config.architectures or []
    if any(name.endswith("ForCausalLM") for name in names):
        build = transformers.AutoModelForCausalLM.from_config
    else:
        kind = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
        build = kind._from_config if kind else transformers.AutoModel.from_config
    return Model(str(path), lambda: build(config))


def _transformers(path: Path) -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"paraminit_ext: expected the package transformers for {path}, got none. Run "
            "`pip install transformers`."
        ) from None
    module: ModuleType = transformers
    return module


def _imported(text: str) -> Target:
    name, _, attribute = text.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"paraminit_ext: expected a module {name} for {text}, got: {error}. Install what is missing, or "
            "run this where the module is."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"paraminit_ext: expected {attribute} in the module {name}, got no {part}. Name another "
                "function."
            )
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise TypeError(
            f"paraminit_ext: expected a function that returns a torch.nn.Module for {text}, got a "
            f"{type(found).__name__}. Name another one."
        )
    return Model(text, found)
