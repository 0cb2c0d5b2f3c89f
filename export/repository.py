"""Fills a Triton model repository with the artifacts of one checkpoint, all or nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chattts_serving.errors import ConfigError
from export.chattts_package import load_chat
from export.checkpoint import Checkpoint
from export.frontend_assets import FRONTEND_ASSETS, check_tokenizer, export_frontend_assets
from export.gpt import check_gpt, export_gpt
from export.onnx_models import export_onnx_models
from export.parity import ParityResult

SOURCE_REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
STAMP_FILE = "gpt_decoder/1/export.json"  # in a version folder: Triton reads nothing there that it is not told of
TEMPORARY_PREFIX = ".export-"


@dataclass(frozen=True)
class Artifact:
    """What was written for one model.

    Attributes:
        model: its name.
        num_bytes: size of its files.
        parity: the comparisons that it passed.
        seconds: how long the step that wrote it took, comparisons included.
    """

    model: str
    num_bytes: int
    parity: tuple[ParityResult, ...]
    seconds: float


def build_repository(checkpoint: Checkpoint, out_dir: Path) -> Iterator[Artifact]:
    """Write every artifact below `out_dir`, yielding each as it passes its check.

    Files are made in a temporary folder and take their names together at the end, so an export that fails or is
    interrupted leaves the repository as it was. Exhaust the iterator: its last step is that move.

    Raises:
        ConfigError: the checkpoint is not usable, or an artifact is too far from the module it came from.
    """
    version_folder = (out_dir / STAMP_FILE).parent
    version_folder.mkdir(parents=True, exist_ok=True)
    for leftover in version_folder.glob(f"{TEMPORARY_PREFIX}*"):  # of an export that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=version_folder, prefix=TEMPORARY_PREFIX) as temporary:
        build_dir = Path(temporary)
        for step in (_frontend_step, _gpt_step, export_onnx_models):
            yield from _run_step(step, checkpoint, build_dir)
        _move_into_place(build_dir, out_dir, _stamp_key(checkpoint))


def is_up_to_date(checkpoint: Checkpoint, out_dir: Path) -> bool:
    """Whether `out_dir` holds exactly what `build_repository` would write, by its stamp and the files' sizes."""
    try:
        stamp = json.loads((out_dir / STAMP_FILE).read_text(encoding="utf-8"))
        return stamp["key"] == _stamp_key(checkpoint) and all(
            (out_dir / name).stat().st_size == num_bytes for name, num_bytes in stamp["artifacts"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def copy_models(out_dir: Path) -> None:
    """Copy the models themselves (config.pbtxt, model.py, version folders) unless `out_dir` is where they come from.

    Raises:
        ConfigError: this is an installed package without the checkout's model_repository.
    """
    if not SOURCE_REPOSITORY.is_dir():
        raise ConfigError(f"there is no {SOURCE_REPOSITORY}; run the export from a checkout")
    if out_dir.resolve() == SOURCE_REPOSITORY:
        return
    for config in SOURCE_REPOSITORY.glob("*/config.pbtxt"):
        for version in config.parent.glob("*/"):  # an ensemble's is empty, but Triton asks for it
            (out_dir / version.relative_to(SOURCE_REPOSITORY)).mkdir(parents=True, exist_ok=True)
        for source in (config, *config.parent.glob("*/model.py")):
            shutil.copyfile(source, out_dir / source.relative_to(SOURCE_REPOSITORY))


def _run_step(
    step: Callable[[Checkpoint, Path], list[ParityResult]], checkpoint: Checkpoint, build_dir: Path
) -> Iterator[Artifact]:
    start = time.monotonic()
    results = step(checkpoint, build_dir)
    for result in results:
        result.check()
    seconds = time.monotonic() - start
    for model, parity in itertools.groupby(results, key=lambda result: result.name.partition(" ")[0]):
        yield Artifact(model, sum(_sizes(build_dir / model).values()), tuple(parity), seconds)


def _frontend_step(checkpoint: Checkpoint, build_dir: Path) -> list[ParityResult]:
    folder = build_dir / "text_frontend" / "1"
    folder.mkdir(parents=True)
    export_frontend_assets(checkpoint, folder)
    return [check_tokenizer(checkpoint, folder)]


def _gpt_step(checkpoint: Checkpoint, build_dir: Path) -> list[ParityResult]:
    folder = build_dir / "gpt_decoder" / "1"
    folder.mkdir(parents=True)
    for name in FRONTEND_ASSETS:  # it tokenizes refined text; a model finds its own version folder only
        shutil.copyfile(build_dir / "text_frontend" / "1" / name, folder / name)
    export_gpt(checkpoint, folder)
    return check_gpt(load_chat(checkpoint.directory), folder)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below `folder`, by its path inside."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _move_into_place(build_dir: Path, out_dir: Path, key: str) -> None:
    """Without a stamp first and with the new one last: an interruption in between is seen by `is_up_to_date`."""
    stamp = out_dir / STAMP_FILE
    stamp.unlink(missing_ok=True)
    sizes = _sizes(build_dir)
    for name in sizes:
        (out_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (build_dir / name).replace(out_dir / name)
    partial = build_dir / stamp.name
    partial.write_text(json.dumps({"key": key, "artifacts": sizes}, indent=1) + "\n", encoding="utf-8")
    partial.replace(stamp)


def _stamp_key(checkpoint: Checkpoint) -> str:
    """Stands for the checkpoint (its files' paths, sizes and times) and for the code that exports it."""
    digest = hashlib.sha256()
    for path in checkpoint.files():
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
