"""Command line of the export: `python -m export --checkpoint hf|demo|synthetic|tiny|slim|DIR --out DIR`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError

from chattts_serving.errors import ConfigError, shown
from export.chattts_package import is_installed
from export.checkpoint import Checkpoint
from export.lock import locked
from export.onnx_models import PRECISIONS
from export.repository import Artifact, build_repository, is_up_to_date, lock_repository, update_models
from export.sizes import SIZES
from export.synthetic import ensure_checkpoint
from export.voice_library import SOURCE_VOICES, VOICES_FOLDER, voices_for, why_left_out

DEMO = Path(__file__).parent / "demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parse(arguments)
    try:
        export(
            options.checkpoint,
            options.out,
            cache_dir=options.cache,
            seed=options.seed,
            vocoder_precision=options.vocoder_precision,
            voices_dir=options.voices,
            force=options.force,
        )
    except (ConfigError, OSError, SafetensorError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("export: interrupted; the next one starts over", file=sys.stderr)
        return 130
    return 0


def export(
    source: str,
    out_dir: Path,
    *,
    cache_dir: Path,
    seed: int = 0,
    vocoder_precision: str = "fp32",
    voices_dir: Path | None = None,
    force: bool = False,
) -> None:
    """Make `out_dir` a complete model repository of the checkpoint `source`, unless it is one already.

    Args:
        source: "hf", "demo", "synthetic", "tiny", "slim", or a folder in the official layout.
        out_dir: the model repository.
        cache_dir: where checkpoints that are downloaded or made are kept.
        seed: of the random weights of "synthetic", "tiny" and "slim".
        vocoder_precision: of decoder and vocoder, one of PRECISIONS.
        voices_dir: the voices that callers may ask for by name; those of another hidden size are left out, and named.
            None takes those beside the checkpoint, or else the library of this project.
        force: export again where nothing has changed.

    Raises:
        ConfigError: the checkpoint cannot be had or used, a voice is wrong, or an artifact differs too much from its
            source.
        OSError, SafetensorError: a file cannot be written.
    """
    start = time.monotonic()
    if source != "demo" and not is_installed():
        raise ConfigError(
            f"checkpoint is {shown(source)}, which needs the package ChatTTS for its Chinese homophones and to compare "
            "what is written; install the extra 'export' (`make setup`). Without it only demo can be exported"
        )
    checkpoint = _checkpoint(source, cache_dir, seed)
    hidden_size = checkpoint.sizes.gpt.hidden
    own_voices = checkpoint.directory / VOICES_FOLDER
    voices, left_out = voices_for(voices_dir or (own_voices if own_voices.is_dir() else SOURCE_VOICES), hidden_size)
    for voice in left_out:
        print(f"left out: {why_left_out(voice, hidden_size)}", file=sys.stderr)
    with lock_repository(out_dir):
        if not force and is_up_to_date(checkpoint, out_dir, vocoder_precision):
            update_models(out_dir, voices)
            print(f"{out_dir} is up to date with {checkpoint.directory}")
            return
        print(f"exporting {checkpoint.directory} to {out_dir}")
        for artifact in build_repository(checkpoint, out_dir, vocoder_precision, voices):
            print(_line(artifact))
    print(f"exported in {time.monotonic() - start:.1f} s")


def _checkpoint(source: str, cache_dir: Path, seed: int) -> Checkpoint:
    if source == "demo":
        return Checkpoint.load(DEMO)
    if source in SIZES or source == "hf":
        with locked(cache_dir / f".{source}.lock"):
            if source in SIZES:
                return ensure_checkpoint(source, cache_dir / source, seed)
            from export.download import download_checkpoint  # noqa: PLC0415 - needs requests

            download_checkpoint(cache_dir / source)
            return Checkpoint.load(cache_dir / source)
    if not Path(source).is_dir():
        allowed = ", ".join(("hf", "demo", *SIZES))
        raise ConfigError(f"checkpoint is {shown(source)}; allowed is {allowed} or an existing folder")
    return Checkpoint.load(Path(source))


def _line(artifact: Artifact) -> str:
    parity = ", ".join(f"{result.difference:.2g} (allowed {result.allowed:.2g})" for result in artifact.parity)
    compared = f"differs by {parity}" if parity else "not compared: the package ChatTTS is not installed"
    return f"{artifact.model:<14} {artifact.num_bytes / 1e6:8.2f} MB  {compared}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a ChatTTS checkpoint into a Triton model repository. Every artifact is compared with the "
        "module that it comes from; the demo checkpoint is exported without that where ChatTTS is not installed. "
        "Every config.pbtxt and model.py in --out is replaced by this project's.",
    )
    parser.add_argument("--version", action="version", version=f"chattts-triton {version('chattts-triton')}")
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="hf|demo|synthetic|tiny|slim|DIR",
        help="hf: download 2Noise/ChatTTS; demo: the small one that comes with the project and speaks English; "
        "synthetic, tiny, slim: random weights; DIR: a folder in the official layout",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("model_repository"), metavar="DIR", help="model repository (%(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("checkpoints"),
        metavar="DIR",
        help="where checkpoints are kept (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (%(default)s)")
    parser.add_argument(
        "--vocoder-precision",
        choices=list(PRECISIONS),
        default=next(iter(PRECISIONS)),
        help="of dvae_decoder and vocos inside; fp16 is for GPUs, slower on a CPU; int8 is for CPUs (%(default)s)",
    )
    parser.add_argument(
        "--voices",
        type=Path,
        metavar="DIR",
        help=f"the voices that callers may ask for by name (default: the checkpoint's own, or {SOURCE_VOICES.name}/)",
    )
    parser.add_argument("--force", action="store_true", help="export again even where nothing has changed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
