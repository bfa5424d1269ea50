"""The build backend of setuptools, with a torch to build against.

pip builds in an isolated environment, which hides the environment that it installs into. If that environment
has torch 2.11 or later, the build uses it: nothing is downloaded, and the CUDA version fits. Otherwise the
build requires torch. In both cases the build works with torch 2.11 and every later version.
"""

from __future__ import annotations

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
    return [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]


def find_torch() -> bool:
    """Return whether a supported torch can be imported. Add the environment's packages if necessary."""
    if importlib.util.find_spec("torch") is not None:
        return True
    for found in metadata.distributions(name="torch", path=environment_folders()):
        numbers = re.match(r"(\d+)\.(\d+)", found.version)
        if numbers is not None and tuple(map(int, numbers.groups())) >= OLDEST_TORCH:
            # Append the folder, so that the packages that the build requires come first.
            sys.path.append(str(found.locate_file("")))
            return True
    return False


def _torch_requirement() -> list[str]:
    return [] if find_torch() else [f"torch>={'.'.join(map(str, OLDEST_TORCH))}"]


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:  # noqa: ARG001
    return _torch_requirement()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:  # noqa: ARG001
    return _torch_requirement()


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:  # noqa: ARG001
    return _torch_requirement()
