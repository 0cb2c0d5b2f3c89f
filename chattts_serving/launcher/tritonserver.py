"""What tritonserver needs before it can start: its binary, a backend folder, an environment, a whole model repository.

Two installations are known. The system's own (NVIDIA's container) is taken where there is one. Otherwise it is the
binary inside the wheel `nvidia-pytriton`, which must be told where its libraries are and which Python to embed.
Nothing in this module starts a server.
"""

from __future__ import annotations

import ctypes.util
import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.shipped import shipped
from chattts_serving.variables import SERVER_VERSION

PACKAGE = Path(__file__).resolve().parents[1]  # chattts_serving
ROOT = PACKAGE.parent  # the checkout, or a folder of installed packages
CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")  # NVIDIA's images
STUB_NAME = "triton_python_backend_stub"
ONNX_BACKEND = "backends/onnxruntime/model.py"
# A program: what `_models_find` says, as JSON.
MODELS_FIND = """
import importlib.metadata, importlib.util, json
numpy = next(importlib.metadata.distributions(name="numpy"), None)
onnxruntime = importlib.util.find_spec("onnxruntime")
found = {"numpy": numpy and numpy.version, "onnxruntime": onnxruntime and onnxruntime.origin}
print(json.dumps({name: value or "" for name, value in found.items()}))
"""
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

_FRONTEND_ASSETS = ("tokenizer.json", "homophones.json", "frontend.json")
# What `python -m export` writes beside the model.py of a Python model; nothing in its config says so.
EXPORTED_FILES = {
    "gpt_decoder": ("model.safetensors", "config.json", *_FRONTEND_ASSETS),
    "text_frontend": (*_FRONTEND_ASSETS, "voices.json"),
}
DEFAULT_FILES = {"onnxruntime": "model.onnx", "onnxruntime_onnx": "model.onnx", "python": "model.py"}


@dataclass(frozen=True)
class Installation:
    """One tritonserver.

    Attributes:
        binary: the executable.
        backends: its folder of backends.
        stub: the program that runs Python models, built for PYTHON_VERSION.
        libraries: folder with the shared libraries it was built with, or None where the system finds them.
    """

    binary: Path
    backends: Path
    stub: Path
    libraries: Path | None


def find_installation() -> Installation:
    """The tritonserver to run: $TRITONSERVER, the PATH's, NVIDIA's container's, else nvidia-pytriton's.

    Raises:
        ConfigError: there is none, or none that runs the models with this Python and its packages.
    """
    system = _system_binary()
    installation = _bundled_installation() if system is None else _system_installation(system)
    if has_onnx_backend(installation):
        return installation
    found = _models_find(installation)
    if system is None:
        _check_numpy(found["numpy"])
    if not found["onnxruntime"]:
        raise ConfigError(
            f"the tritonserver at {installation.binary} has no ONNX Runtime of its own, and in {sys.prefix} there is "
            "no package with it: install onnxruntime, or onnxruntime-gpu for models on a GPU"
        )
    return installation


def _models_find(installation: Installation) -> dict[str, str]:
    """What the Python that runs the models finds: NumPy's version, and where ONNX Runtime is; "" for neither.

    The bundled stub sees neither PYTHONPATH nor packages of the user (`environment`), which this process may.
    """
    isolated = ["-I"] if installation.libraries is not None else []
    command = [sys.executable, *isolated, "-c", MODELS_FIND]
    answer: dict[str, str] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)  # noqa: S603
    return answer


def _system_binary() -> Path | None:
    named = os.environ.get("TRITONSERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise ConfigError(f"the environment variable TRITONSERVER names {named}, which is no executable file")
        return Path(named)
    on_path = shutil.which("tritonserver")
    if on_path:
        return Path(on_path)
    return CONTAINER_BINARY if CONTAINER_BINARY.is_file() else None


def _system_installation(binary: Path) -> Installation:
    backends = binary.resolve().parent.parent / "backends"
    stub = backends / "python" / STUB_NAME
    if not stub.is_file():
        raise ConfigError(f"the tritonserver at {binary} has no Python backend: there is no {stub}")
    built_for = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    if built_for and built_for[1].decode() != PYTHON_VERSION:
        raise ConfigError(
            f"the tritonserver at {binary} runs models with Python {built_for[1].decode()}, this is Python "
            f"{PYTHON_VERSION}: start it with python{built_for[1].decode()}"
        )
    return Installation(binary, backends, stub, libraries=None)


def _bundled_installation() -> Installation:
    package = importlib.util.find_spec("pytriton")
    if package is None or package.origin is None:
        raise ConfigError(
            "no tritonserver found: not in the environment variable TRITONSERVER, not on the PATH, not at "
            f"{CONTAINER_BINARY}, and the package nvidia-pytriton is not installed (`make setup` installs it)"
        )
    root = Path(package.origin).parent / "tritonserver"
    stubs = root / "python_backend_stubs"
    stub = stubs / PYTHON_VERSION / STUB_NAME
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in stubs.glob("3.*"))) or "no version"
        raise ConfigError(f"nvidia-pytriton has no stub for Python {PYTHON_VERSION} (it has {known}): use Python 3.11")
    return Installation(
        root / "bin" / "tritonserver", root / "backends", stub, root.parent.parent / "nvidia_pytriton.libs"
    )


def _check_numpy(version: str) -> None:
    """The bundled stub was built before NumPy 2 and crashes with it at the first tensor."""
    if version.split(".", maxsplit=1)[0] != "1":
        raise ConfigError(
            f"models of nvidia-pytriton's tritonserver find {f'NumPy {version}' if version else 'no NumPy'} in "
            f"{sys.prefix}; allowed is 'numpy>=1.26,<2', as 2 crashes them: install it there (they do not look at "
            "PYTHONPATH; a .pth file in site-packages leads to other folders)"
        )


def has_onnx_backend(installation: Installation) -> bool:
    """Whether the installation has a C++ ONNX Runtime backend of its own."""
    return (installation.backends / "onnxruntime" / "libtriton_onnxruntime.so").is_file()


def lay_out_backends(installation: Installation, folder: Path) -> Path:
    """The backend folder to start with: the installation's own where complete, else `folder`, filled.

    The bundled one lacks the stub beside the Python backend, and both it and a system without the C++ ONNX Runtime
    backend lack a backend for `platform: "onnxruntime_onnx"`.
    """
    if has_onnx_backend(installation):
        return installation.backends
    folder.mkdir()
    for backend in installation.backends.iterdir():
        if backend.name not in ("python", "onnxruntime"):
            (folder / backend.name).symlink_to(backend)
    # Copies: Triton refuses a library that a link brings into the folder of a Python-based backend.
    shutil.copytree(installation.backends / "python", folder / "python", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(installation.stub, folder / "python" / STUB_NAME)
    (folder / "onnxruntime").mkdir()
    shutil.copy2(shipped(ONNX_BACKEND), folder / "onnxruntime")
    return folder


def environment(installation: Installation, folder: Path) -> dict[str, str]:
    """The environment of the server and its Python models; `folder`, made here, takes links to Python and libpython.

    Python models run in a program that embeds Python. Triton 2.51's ignores PYTHONPATH (measured), 26.x heeds it. It
    takes its `sys.prefix`, and with it the packages, from the first `python3` on the PATH, so that must be this one.
    Its encoding of file names is ASCII whatever the locale says (an isolated configuration of Python), and a library
    in C++ cannot be told the path of its data below a folder with a Chinese name: the path must be ASCII, too.

    Raises:
        ConfigError: the bundled stub's libpython does not exist.
    """
    result = dict(os.environ)
    folder.mkdir()
    programs = Path(sys.executable).parent
    if not str(programs).isascii():
        (folder / "python").symlink_to(programs.parent)
        programs = folder / "python" / programs.name
    _prepend(result, "PATH", str(programs))
    if installation.libraries is not None:
        result.pop(SERVER_VERSION, None)  # of an image whose own server this is not
        _link_libpython(folder)
        _prepend(result, "LD_LIBRARY_PATH", str(folder), str(installation.libraries))
    return result


def _prepend(variables: dict[str, str], name: str, *paths: str) -> None:
    old = variables.get(name)
    variables[name] = os.pathsep.join(dict.fromkeys(paths if not old else (*paths, old)))


def _link_libpython(folder: Path) -> None:
    """Link the running Python's shared library into `folder`, alone: its own folder may hold a whole system.

    The system's folders may have another of the same version (Debian's beside pyenv's); this one goes first.
    """
    name = f"libpython{PYTHON_VERSION}.so.1.0"
    for place in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"):
        if place and Path(place, name).is_file():
            (folder / name).symlink_to(Path(place, name))
            return
    if ctypes.util.find_library(f"python{PYTHON_VERSION}") is None:
        raise ConfigError(
            f"{name} not found: tritonserver embeds Python, so it needs the shared library (on Debian and Ubuntu "
            f"the package libpython{PYTHON_VERSION}; with pyenv a Python built with --enable-shared)"
        )


def check_repository(repository: Path) -> list[str]:
    """The names of the models in `repository`, each with its config and every file that it cannot load without.

    Raises:
        ConfigError: names each missing file and how to make it, or what this user may not read.
    """
    try:
        return _checked(repository)
    except PermissionError as error:
        raise ConfigError(
            f"user {os.geteuid()} may not read {error.filename} of the model repository: chmod -R a+rX {repository}"
        ) from error


def _checked(repository: Path) -> list[str]:
    if not repository.is_dir():
        raise ConfigError(f"the model repository {repository} does not exist: {_export_hint(repository)}")
    models = sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    if not models:
        raise ConfigError(f"the model repository {repository} has no models: {_export_hint(repository)}")
    missing = [path for model in models for path in _missing_files(model)]
    if missing:
        names = ", ".join(str(path.relative_to(repository)) for path in missing)
        raise ConfigError(f"the model repository {repository} lacks {names}: {_export_hint(repository)}")
    return [model.name for model in models]


def _export_hint(repository: Path) -> str:
    return (
        f"run `python -m export --checkpoint NAME --out {repository}` "
        "(`make export CHECKPOINT=NAME` fills the checkout's model_repository)"
    )


def _missing_files(model: Path) -> list[Path]:
    config = model / "config.pbtxt"
    if not config.is_file():
        return [config]
    text = config.read_text(encoding="utf-8")
    versions = [path for path in model.iterdir() if path.is_dir() and path.name.isdecimal()] or [model / "1"]
    kind = _config_value(text, "backend") or _config_value(text, "platform")
    artifact = _config_value(text, "default_model_filename") or DEFAULT_FILES.get(kind)
    wanted = (*([artifact] if artifact else []), *EXPORTED_FILES.get(model.name, ()))
    if not wanted:  # an ensemble: Triton wants its version folder all the same
        return [version for version in versions if not version.is_dir()]
    files = [version / name for version in versions for name in wanted]
    for path in files:
        if path.exists() and not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return [path for path in files if not path.exists()]


def _config_value(config: str, key: str) -> str:
    """The string that `key` has at the top level of a config.pbtxt, "" where it has none."""
    found = re.search(rf'^{key}\s*:\s*"([^"]*)"', config, re.MULTILINE)
    return found[1] if found else ""
