"""Where the files are that travel beside the packages: `model_repository`, `backends`, `voices` and the balancer's."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from chattts_serving.errors import ConfigError

_BESIDE_PACKAGES = Path(__file__).resolve().parents[1]  # a checkout, or a folder of installed packages
_IN_WHEELS = Path("share", "chattts-triton")  # below the data folder of an installation, by setup.py


def shipped(name: str) -> Path:
    """The file or folder `name` of this project, a path with slashes, in the checkout or as a wheel installed it.

    Raises:
        ConfigError: there is none.
    """
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    installed = [Path(sysconfig.get_path("data", scheme)) / _IN_WHEELS for scheme in schemes]
    for folder in (_BESIDE_PACKAGES, *installed):
        if (folder / name).exists():
            return folder / name
    raise ConfigError(f"there is no {name} in {_BESIDE_PACKAGES}, {', '.join(map(str, installed))}: install it again")
