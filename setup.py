"""What pyproject.toml cannot say: files that a wheel carries beside packages, and archives that are always the same."""

import gzip
import os
import tarfile
import time
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

SHIPPED = (
    "backends/*/model.py",
    "docker/haproxy/haproxy.cfg",
    "model_repository/*/config.pbtxt",
    "model_repository/*/1/model.py",
    "model_repository/*/1/.gitkeep",  # Triton asks for an ensemble's version folder, too
    "voices/*.json",
)


class Sdist(sdist):
    """Packs the archive itself: setuptools writes times, owners and modes of this machine into it."""

    def make_archive(self, base_name, _format, base_dir, **_owner):
        """Put `base_dir` into `base_name`.tar.gz, all as old as SOURCE_DATE_EPOCH says; the path."""
        seconds = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))

        def plain(info):
            info.mtime, info.uid, info.gid, info.uname, info.gname = seconds, 0, 0, "", ""
            info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
            return info

        path = f"{base_name}.tar.gz"
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with gzip.GzipFile(path, "wb", mtime=seconds) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(base_dir, filter=plain)
        return path


files = [path for pattern in SHIPPED for path in sorted(Path().glob(pattern))]
setup(
    cmdclass={"sdist": Sdist},
    data_files=[(f"share/chattts-triton/{path.parent.as_posix()}", [str(path)]) for path in files],
)
