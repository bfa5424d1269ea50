"""Resolve an argument of the command line to a checkpoint, a plan, or a model.

============================  ==========================================================================
``checkpoint/``               a directory of safetensors files, an index file in it, or one safetensors file
``config.json``               a configuration of transformers, or a directory with one and no checkpoint
``package.module:function``   a function that returns a ``torch.nn.Module``, or a module; the current
                              directory is searched first
``model.plan``                a file that :meth:`InitPlan.save` wrote, with any name
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
from paraminit_ext.models.checkpoint_reader import header_of
from paraminit_ext.models.deferred import deferred_init, materialize_module
from paraminit_ext.models.plan import InitPlan
from paraminit_ext.models.planfile import METADATA


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory of safetensors files, an index file in it, or one safetensors file."""

    path: Path


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A file that :meth:`InitPlan.save` wrote."""

    path: Path


@dataclass(frozen=True, slots=True)
class Model:
    """A function that builds a model, and the argument that named it."""

    text: str
    build: Callable[[], nn.Module]


Target: TypeAlias = Checkpoint | PlanFile | Model | nn.Module


def parse(text: str) -> Target:
    """Return the target that the text names.

    For ``module:function``, the module is imported and the function is not called.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file or directory has no known format, or the attribute does not exist.
        TypeError: the attribute is not callable.
        ImportError: the module, or transformers, cannot be imported.
    """
    path = Path(text)
    if path.is_dir():
        return _of_directory(path)
    if path.exists():
        return _of_file(path)
    if re.fullmatch(r"[\w.]+:[\w.]+", text):
        return _imported(text)
    message = (
        f"paraminit_ext: expected a checkpoint, a config.json, a plan or module:function, got {text}, which "
        "does not exist. Name another one."
    )
    raise FileNotFoundError(errno.ENOENT, message)


def deferred(target: Target, seed: int = 0) -> nn.Module:
    """Return the model on the meta device, with its plan under ``Key(seed)``.

    Raises:
        TypeError: the target is not a model that can be built.
    """
    if isinstance(target, Model):
        return deferred_init(target.build, key=Key(seed))
    raise TypeError(
        f"paraminit_ext: expected a config.json or module:function, got {_described(target)}. Name a "
        "function or a configuration that builds the model."
    )


def readable(target: Target, seed: int = 0) -> nn.Module | Path:
    """Return a path or a module that has values. A model is built and initialised under ``Key(seed)``.

    Raises:
        TypeError: the target is a plan, which has no values.
    """
    if isinstance(target, PlanFile):
        raise TypeError(
            f"paraminit_ext: expected a checkpoint or a model, got {_described(target)}. Write its "
            "checkpoint first, or use the command show."
        )
    if isinstance(target, Model):
        return materialize_module(deferred(target, seed))
    return target.path if isinstance(target, Checkpoint) else target


def loaded_plan(target: Target) -> InitPlan:
    """Return the plan in a plan file.

    Raises:
        TypeError: the target is not a plan file.
    """
    if isinstance(target, PlanFile):
        return InitPlan.load(target.path)
    raise TypeError(
        f"paraminit_ext: expected a plan, got {_described(target)}. Name a file that plan.save wrote."
    )


def _described(target: Target) -> str:
    if isinstance(target, Checkpoint):
        return f"{target.path}, a checkpoint"
    if isinstance(target, PlanFile):
        return f"{target.path}, a plan"
    return f"{target.text}, a model" if isinstance(target, Model) else f"a {type(target).__name__}"


# ----------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------


def is_plan(path: Path) -> bool:
    """Return whether the path is a file that :meth:`InitPlan.save` wrote."""
    return path.is_file() and METADATA in _metadata(path)


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
    return PlanFile(path) if is_plan(path) else Checkpoint(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError:
        fields = None
    return fields if isinstance(fields, dict) else {}


def _metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors file; empty if it is damaged, which its reader reports later."""
    try:
        metadata = header_of(path)[0].get("__metadata__")
    except ValueError:
        metadata = None
    return metadata if isinstance(metadata, dict) else {}


# ----------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------


def _of_config(path: Path) -> Model:
    transformers = _transformers(path)
    # Never run code that comes with a configuration.
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
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found: Any = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"paraminit_ext: expected a module {name} for {text}, got: {error}. Install the missing package, "
            "or run this command in the directory of the module."
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
