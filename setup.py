"""What pyproject.toml cannot say without a line for each folder: the files that a wheel carries beside the packages."""

from pathlib import Path

from setuptools import setup

SHIPPED = (
    "backends/*/model.py",
    "docker/haproxy/haproxy.cfg",
    "model_repository/*/config.pbtxt",
    "model_repository/*/1/model.py",
    "model_repository/*/1/.gitkeep",  # Triton asks for an ensemble's version folder, too
    "voices/*.json",
)

files = [path for pattern in SHIPPED for path in sorted(Path().glob(pattern))]
setup(data_files=[(f"share/chattts-triton/{path.parent.as_posix()}", [str(path)]) for path in files])
