"""Other Pythons of this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def find_python(version: str) -> Path | None:
    """Python `version` ("3.12") on the PATH or where pyenv installs; None where there is none that runs."""
    installed = Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")
    for python in filter(None, [shutil.which(f"python{version}"), *installed]):
        if subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0:
            return Path(python)  # pyenv has commands that only say how to install one
    return None
