"""What the whole server needs on a machine with a GPU and PyTorch, but without a network: `python -m bench pack`.

Wheels for Python 3.12 of what such a machine lacks, in the versions that are installed here; nvidia-pytriton's
tritonserver without what other Pythons need; an exported repository; and the script that puts them together there.
Each file is small enough for ways that bound what they carry at once.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path, PurePosixPath

from bench.report import table
from chattts_serving.errors import ConfigError
from chattts_serving.launcher.tritonserver import check_repository

PYTHON = "3.12"  # of the machine
PIECE_BYTES = 29_000_000
XZ_PRESET = 6
SCRIPT = Path(__file__).with_name("unpack.sh")
SCRIPT_NAME, SUMS = "install.sh", "SHA256SUMS"
# Beside PyTorch with torchaudio and Triton, transformers, numba, onnx, onnxruntime, matplotlib and what those need.
# NumPy is there, but the tritonserver's Python models crash with its second version.
SERVER = ("numpy", "wetext", "kaldifst", "contractions", "textsearch", "pyahocorasick", "anyascii", "soxr")
CLIENT = (
    *("tritonclient", "python-rapidjson", "grpcio", "protobuf", "gevent", "geventhttpclient", "greenlet", "brotli"),
    *("zope.event", "zope.interface", "soundfile", "cffi", "pycparser"),
)
CHATTTS = (
    *("ChatTTS", "vocos", "encodec", "vector-quantize-pytorch", "torch-einops-utils", "einx", "frozendict", "loguru"),
    *("pybase16384", "spox"),
)
NO_WHEELS = ("ChatTTS", "encodec")  # the index has their sources alone, which are Python alone
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 26, 24, 17)), "manylinux2014_x86_64")
TRITONSERVER = "nvidia-pytriton"


def pack(out: Path, repository: Path, *, python: Path | None = None, more: Sequence[str] = ()) -> None:
    """Fill `out` with pieces and the script, and print what there is.

    Args:
        out: a new folder, or that of an earlier pack, which is replaced.
        repository: an export.
        python: prefix of a Python 3.12 with a shared library, to be taken along for a machine whose Python has none.
        more: further requirements to download, as pip takes them.

    Raises:
        ConfigError: `repository` or `python` is not what it must be, `out` holds something else, or pip fails.
    """
    check_repository(repository)
    if python is not None and not (python / "lib" / f"libpython{PYTHON}.so.1.0").is_file():
        raise ConfigError(f"--with-python is {python}, which has no lib/libpython{PYTHON}.so.1.0")
    if out.exists() and any(out.iterdir()) and not (out / SUMS).is_file():
        raise ConfigError(f"{out} exists and is no pack; remove it or choose another folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheels = folder / "wheels"
        _download(wheels, more)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        _write(out, "wheels.tar", lambda tar: tar.add(wheels, "wheels"))
        _write(out, "tritonserver.tar.xz", _add_tritonserver)
        _write(out, "repository.tar.xz", lambda tar: tar.add(repository, repository.name))
        if python is not None:
            _write(out, "python.tar.xz", lambda tar: _add_python(tar, python))
    shutil.copyfile(SCRIPT, out / SCRIPT_NAME)
    files = sorted(path for path in out.iterdir())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]
    (out / SUMS).write_text("\n".join(sums) + "\n")
    print(table(("file", "MB"), [(path.name, path.stat().st_size / 1e6) for path in files]))
    print(f"there, in the root of the checkout: sh {out}/{SCRIPT_NAME} FOLDER-OF-THE-ENVIRONMENT")


def _download(folder: Path, more: Sequence[str]) -> None:
    """Wheels for PYTHON, each alone: what they need in turn is in the lists above."""
    pinned = [f"{name}=={metadata.version(name)}" for name in (*SERVER, *CLIENT, *CHATTTS)]
    sources = [one for one in pinned if one.partition("==")[0] in NO_WHEELS]
    wheels = [one for one in pinned if one not in sources]
    target = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    _pip("download", "--dest", str(folder), *target, *wheels, *more)
    _pip("wheel", "--wheel-dir", str(folder), *sources)


def _pip(command: str, *arguments: str) -> None:
    line = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-deps", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        errors = [text for text in done.stderr.splitlines() if text.startswith("ERROR")]
        raise ConfigError(f"pip {command} failed: {' '.join(errors) or done.stderr.strip()}")


def _write(out: Path, name: str, fill: Callable[[tarfile.TarFile], object]) -> None:
    """An archive in `out`, cut into name.00, name.01, ..."""
    with tempfile.TemporaryFile(dir=out) as whole:
        with ExitStack() as closing:
            target = closing.enter_context(lzma.open(whole, "wb", preset=XZ_PRESET)) if name.endswith(".xz") else whole
            fill(closing.enter_context(tarfile.open(fileobj=target, mode="w", dereference=True)))
        whole.seek(0)
        for number, piece in enumerate(iter(lambda: whole.read(PIECE_BYTES), b"")):
            (out / f"{name}.{number:02d}").write_bytes(piece)


def _add_tritonserver(tar: tarfile.TarFile) -> None:
    """What the launcher starts of nvidia-pytriton: the binary, its backend, the stub of PYTHON and their libraries."""
    distribution = metadata.distribution(TRITONSERVER)
    for path in distribution.files or ():
        if _is_wanted(PurePosixPath(path)):
            tar.add(distribution.locate_file(path), str(path))  # type: ignore[arg-type]


def _is_wanted(path: PurePosixPath) -> bool:
    if path.parts[:3] == ("pytriton", "tritonserver", "python_backend_stubs"):
        return path.parts[3] == PYTHON
    if path.parts[0] == "nvidia_pytriton.libs":
        return not path.name.startswith("libpython")  # of a stub for another Python
    is_launched = path.parts[:2] in (("pytriton", "tritonserver"), ("pytriton", "__init__.py"))
    return is_launched or path.name == "METADATA"


def _add_python(tar: tarfile.TarFile, prefix: Path) -> None:
    """Under its full path, where it is unpacked again: its programs look for their library there."""
    library = prefix / "lib" / f"python{PYTHON}"
    left_out = {"test", "idlelib", "site-packages", "__pycache__", "ensurepip", "tkinter"}

    def keep(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = PurePosixPath(info.name).parts
        return None if left_out & set(parts) or any(part.startswith("config-") for part in parts) else info

    for path in _pythons(prefix, library):
        tar.add(path, str(path).lstrip("/"), filter=keep)


def _pythons(prefix: Path, library: Path) -> Iterator[Path]:
    yield from (prefix / "bin" / name for name in (f"python{PYTHON}", "python3"))
    yield prefix / "lib" / f"libpython{PYTHON}.so.1.0"
    yield library
