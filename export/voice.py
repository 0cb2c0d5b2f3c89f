"""Command line for a new voice of the library: `python -m export.voice NAME --seed N --description TEXT`."""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.voice.speaker import MAX_HIDDEN_SIZE, encode_speaker
from chattts_serving.voice.voices import Voice, voice_path
from export.voice_library import SOURCE_VOICES

MAX_PT_BYTES = 1_000_000  # of a .pt file, packed and unpacked; one with 768 float32 values has under 5,000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parse(arguments)
    try:
        speaker = read_pt(options.pt) if options.pt else options.speaker or ""
        voice = Voice(options.name, options.description, speaker, options.seed, options.mixture or "")
        path = voice_path(options.voices, voice.name)
        write_voice(voice, path, replace=options.force)
    except (ConfigError, OSError) as error:
        print(f"voice: {error}", file=sys.stderr)
        return 1
    values = f"{voice.hidden_size} values" if voice.speaker else "fits every checkpoint"
    if voice.mixture:
        values = f"fits checkpoints with the voices {', '.join(voice.ingredients)}"
    print(f"wrote {path} ({values}); run the export again and restart the server to offer it")
    return 0


def write_voice(voice: Voice, path: Path, *, replace: bool) -> None:
    """Write `voice` as a file of the library.

    Raises:
        ConfigError: there is one already, and it is not to be replaced.
        OSError: it cannot be written.
    """
    if path.exists() and not replace:
        raise ConfigError(f"there is {path} already; --force replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(json.loads(voice.to_json()), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_pt(path: Path) -> str:
    """The speaker string of a voice that was saved with torch.save: one tensor of floats, [hidden] or [1, hidden].

    Nothing in the file is run: pickled objects other than tensors are refused.

    Raises:
        ConfigError: the file holds something else, is too large, or its values are no finite float16; or PyTorch is
            not installed.
    """
    _check_size(path)
    try:
        import torch  # noqa: PLC0415 - voices from seeds and strings do without
    except ImportError as error:
        raise ConfigError("reading a .pt file needs PyTorch; install the extra 'export'") from error
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise whatever they come upon
        raise ConfigError(f"{path} holds no tensor alone, and nothing else is read ({type(error).__name__})") from error
    allowed = f"one tensor of floats of shape [hidden] or [1, hidden], hidden 1 to {MAX_HIDDEN_SIZE}"
    if not isinstance(tensor, torch.Tensor):
        raise ConfigError(f"{path} holds {type(tensor).__name__}; allowed is {allowed}")
    shape = list(tensor.shape)
    is_vector = len(shape) == 1 or (len(shape) == 2 and shape[0] == 1)
    is_plain = tensor.is_floating_point() and tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_vector or not 1 <= shape[-1] <= MAX_HIDDEN_SIZE or not is_plain:
        raise ConfigError(f"{path} holds a tensor of {tensor.dtype} and shape {shape}; allowed is {allowed}")
    vector = tensor.detach().reshape(-1).to(torch.float16)
    if not vector.isfinite().all():
        raise ConfigError(f"{path} holds values that are not finite in float16")
    return encode_speaker(vector.numpy())


def _check_size(path: Path) -> None:
    """Refuse what is no archive of torch.save, or would take more than MAX_PT_BYTES to read."""
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = max(path.stat().st_size, sum(file.file_size for file in archive.infolist()))
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{path} is no file of torch.save (PyTorch 1.6 or later): {error}") from error
    if num_bytes > MAX_PT_BYTES:
        raise ConfigError(f"{path} has {num_bytes:,} bytes; allowed is {MAX_PT_BYTES:,} at most")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.voice",
        description="Add a voice to the library. `python -m export` puts it into a model repository.",
    )
    parser.add_argument("name", metavar="NAME", help="what callers ask for: a to z, 0 to 9, _ and -")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--speaker", metavar="STRING", help="a ChatTTS speaker string")
    source.add_argument("--seed", type=int, metavar="N", help="sample it from the checkpoint's statistics")
    source.add_argument("--mixture", metavar="SLT:2+RMS:1", help="mix voices of the library by weight")
    source.add_argument("--pt", type=Path, metavar="FILE", help="a speaker embedding that was saved with torch.save")
    parser.add_argument("--description", required=True, metavar="TEXT", help="one line for those who choose a voice")
    parser.add_argument(
        "--voices", type=Path, default=SOURCE_VOICES, metavar="DIR", help="folder of the library (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace a voice of the same name")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
