"""The build backend of setuptools, with a torch to build against.

pip builds in an isolated environment, which hides the environment that it installs into. If that environment
has torch 2.11 or later, the build uses it: nothing is downloaded, and the CUDA version fits. Otherwise the
build requires torch. In both cases the build works with torch 2.11 and every later version.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import site
import sys
import sysconfig
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from setuptools.build_meta import *  # noqa: F403

Settings = Mapping[str, Any] | None
OLDEST_TORCH = (2, 11)


def environment_folders() -> list[str]:
    """Return the folders with the packages of this Python's environment, which an isolated build hides."""
    folders = site.getsitepackages()
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    # A virtual environment sees the packages of the user only if it sees those of the system.
    if sys.prefix == sys.base_prefix or sysconfig.get_path("purelib", vars=base) in folders:
        folders.append(site.getusersitepackages())
    return folders


def is_supported(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= OLDEST_TORCH


def version_of_torch() -> str:
    """Return the version of the torch that is imported, or "none"."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "none"


def find_torch() -> bool:
    """Return whether a supported torch can be imported. Add the environment's packages if necessary."""
    if importlib.util.find_spec("torch") is not None:
        return is_supported(version_of_torch())
    before = list(sys.path)
    for found in metadata.distributions(name="torch", path=environment_folders()):
        if not is_supported(found.version):
            continue
        # The folder comes last, so that the packages that the build requires come first. One of its .pth
        # files may lead to an editable install of torch.
        site.addsitedir(str(found.locate_file("")))
        importlib.invalidate_caches()
        if importlib.util.find_spec("torch") is not None:
            return True
        sys.path[:] = before
    return False


def _torch_requirement() -> list[str]:
    return [] if find_torch() else [f"torch>={'.'.join(map(str, OLDEST_TORCH))}"]


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:  # noqa: ARG001
    return _torch_requirement()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:  # noqa: ARG001
    return _torch_requirement()


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:  # noqa: ARG001
    return _torch_requirement()
