"""Fills a Triton model repository with the artifacts of one checkpoint, all at once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chattts_serving.shipped import shipped
from chattts_serving.voice.voices import Voice, library_text
from export.chattts_package import is_installed
from export.checkpoint import Checkpoint
from export.frontend_assets import FRONTEND_ASSETS, export_frontend_assets
from export.gpt import export_gpt
from export.lock import locked
from export.onnx_models import export_onnx_models
from export.parity import ParityResult
from export.text_heads import write_text_heads
from export.voice_library import VOICES_FILE

ROOT = Path(__file__).resolve().parent.parent
SOURCE_REPOSITORY = shipped("model_repository")
# The export's own files lie in a version folder: Triton reads nothing there that it is not told of, while it takes
# every folder beside the models, hidden ones too, for one more model.
STAMP_FILE = "gpt_decoder/1/export.json"
LOCK_FILE = "gpt_decoder/1/.export.lock"
TEMPORARY_PREFIX = ".export-"
ARTIFACT_MODELS = ("text_frontend", "gpt_decoder", "dvae_decoder", "vocos", "dvae_encoder")
# What decides the artifacts besides the checkpoint and this package.
SERVING_SOURCES = (  # of chattts_serving
    "audio",
    "engine.gpt_config",
    "engine.gpu.gpt",
    "request",
    "shipped",
    "text.prompts",
    "voice.base16384",
    "voice.speaker",
    "voice.voices",
    "words",
)
PACKAGES = ("ChatTTS", "onnx", "spox", "tokenizers", "transformers")


@dataclass(frozen=True)
class Artifact:
    """What was written for one model.

    Attributes:
        model: its name.
        num_bytes: size of its files.
        parity: the comparisons that it passed; none without the ChatTTS package.
    """

    model: str
    num_bytes: int
    parity: tuple[ParityResult, ...]


def lock_repository(out_dir: Path) -> AbstractContextManager[None]:
    """Keep other exports away from `out_dir`, which the functions below read and write, for the length of a block."""
    return locked(out_dir / LOCK_FILE)


def build_repository(
    checkpoint: Checkpoint, out_dir: Path, vocoder_precision: str, voices: Sequence[Voice]
) -> list[Artifact]:
    """Write the models and every artifact below `out_dir`, and compare each artifact with what it comes from.

    `vocoder_precision` is that of `export_onnx_models`; `voices` are what callers may ask for, and fit the checkpoint.

    All is made in a temporary folder and takes its names at the end, so an export that fails or is interrupted before
    leaves the models as they were. One that ends during these last renames leaves no stamp: the next one starts over.

    Raises:
        ConfigError: the checkpoint is not usable, or an artifact is too far from the module it came from.
        OSError, SafetensorError: a file cannot be written.
    """
    with _temporary_folder(out_dir) as temporary:
        models, artifacts = temporary / "models", temporary / "artifacts"
        artifacts.mkdir()
        _write_models(models, out_dir, voices)
        _write_artifacts(checkpoint, artifacts, vocoder_precision)
        results = _compared(checkpoint, artifacts, vocoder_precision)
        sizes = _sizes(artifacts)
        stamp = out_dir / STAMP_FILE
        stamp.unlink(missing_ok=True)  # without one first and with the new one last
        _move_into_place(models, out_dir)
        _move_into_place(artifacts, out_dir)
        unfinished = temporary / stamp.name
        key = _stamp_key(checkpoint, vocoder_precision)
        unfinished.write_text(json.dumps({"key": key, "artifacts": sizes}, indent=1) + "\n", "utf-8")
        unfinished.replace(stamp)
    return [
        Artifact(
            model,
            num_bytes=sum(size for name, size in sizes.items() if name.startswith(f"{model}/")),
            parity=tuple(result for result in results if result.name.partition(" ")[0] == model),
        )
        for model in ARTIFACT_MODELS
    ]


def update_models(out_dir: Path, voices: Sequence[Voice]) -> None:
    """Replace the models (config.pbtxt, model.py) in `out_dir` by this project's with `voices`; its artifacts stay.

    Raises:
        OSError: a file cannot be written.
    """
    with _temporary_folder(out_dir) as models:
        _write_models(models, out_dir, voices)
        _move_into_place(models, out_dir)


def is_up_to_date(checkpoint: Checkpoint, out_dir: Path, vocoder_precision: str) -> bool:
    """Whether `out_dir` holds the artifacts that `build_repository` would write, by its stamp and the files' sizes."""
    try:
        stamp = json.loads((out_dir / STAMP_FILE).read_text(encoding="utf-8"))
        return stamp["key"] == _stamp_key(checkpoint, vocoder_precision) and all(
            (out_dir / name).stat().st_size == num_bytes for name, num_bytes in stamp["artifacts"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _temporary_folder(out_dir: Path) -> Iterator[Path]:
    """On the file system of `out_dir`, so that files can be moved; the caller holds the lock."""
    version_folder = (out_dir / STAMP_FILE).parent
    for leftover in version_folder.glob(f"{TEMPORARY_PREFIX}*"):  # of an export that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=version_folder, prefix=TEMPORARY_PREFIX) as temporary:
        yield Path(temporary)


def _write_models(folder: Path, out_dir: Path, voices: Sequence[Voice]) -> None:
    """Write to `folder` what `out_dir` needs of this project's models, and the list of `voices`."""
    if out_dir.resolve() != SOURCE_REPOSITORY:
        _copy_models(folder)
    (folder / VOICES_FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / VOICES_FILE).write_text(library_text(voices), encoding="utf-8")


def _copy_models(folder: Path) -> None:
    """Copy this project's models (config.pbtxt, model.py, version folders) to `folder`."""
    for config in SOURCE_REPOSITORY.glob("*/config.pbtxt"):
        for version in config.parent.glob("[0-9]*"):  # an ensemble's is empty, but Triton asks for it
            (folder / version.relative_to(SOURCE_REPOSITORY)).mkdir(parents=True)
        for source in (config, *config.parent.glob("*/model.py")):
            shutil.copyfile(source, folder / source.relative_to(SOURCE_REPOSITORY))


def _write_artifacts(checkpoint: Checkpoint, folder: Path, vocoder_precision: str) -> None:
    """Write every artifact below `folder`, which exists."""
    frontend, gpt = (folder / model / "1" for model in ("text_frontend", "gpt_decoder"))
    for version in (frontend, gpt):
        version.mkdir(parents=True)
    export_frontend_assets(checkpoint, frontend)
    for name in FRONTEND_ASSETS:  # gpt_decoder tokenizes refined text; a model finds its own version folder only
        shutil.copyfile(frontend / name, gpt / name)
    export_gpt(checkpoint, gpt)
    write_text_heads(frontend, gpt)
    export_onnx_models(checkpoint, folder, vocoder_precision)


def _compared(checkpoint: Checkpoint, folder: Path, vocoder_precision: str) -> list[ParityResult]:
    """How far the artifacts in `folder` are from their sources, which is little enough; [] without the ChatTTS package.

    Raises:
        ConfigError: one is too far.
    """
    if not is_installed():
        return []
    from export.comparison import compare  # noqa: PLC0415 - imports PyTorch, which nothing else of an export needs

    results = compare(checkpoint, folder, vocoder_precision)
    for result in results:
        result.check()
    return results


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below `folder`, by its path inside."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _move_into_place(folder: Path, out_dir: Path) -> None:
    for source in sorted(folder.rglob("*")):  # folders before what they hold
        target = out_dir / source.relative_to(folder)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            source.replace(target)


def _stamp_key(checkpoint: Checkpoint, vocoder_precision: str) -> str:
    """Stands for the checkpoint (its files' paths, sizes and times), the precision, the code and its packages."""
    digest = hashlib.sha256(f"{vocoder_precision}\n".encode())
    for path in checkpoint.files():
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    serving = [ROOT / "chattts_serving" / f"{module.replace('.', '/')}.py" for module in SERVING_SOURCES]
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *serving):
        digest.update(path.read_bytes())
    for package in PACKAGES:
        digest.update(f"{package} {_version(package)}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    """Its version, "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
