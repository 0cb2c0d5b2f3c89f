"""The corpus without its recordings in one small file, for a machine that has a GPU and nothing else.

It is a zip archive: for each voice its lines, and its codes in 5 bytes an audio token, which are four of 625 values;
and the codec, by which the codes are heard there.
"""

from __future__ import annotations

import io
import json
import lzma
import random
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from chattts_serving.request import NUM_AUDIO_TOKENS
from training.sound import CODEC_FILE
from training.utterances import Utterance, utterances

CODES = NUM_AUDIO_TOKENS - 1  # the last one ends a sentence
BYTES = 5  # CODES**4 is less than 256**5
Codes = npt.NDArray[np.uint16]


def pack(folder: Path, voices: list[str], megabytes: float, out: Path) -> list[str]:
    """Write as many utterances, drawn at random, as `megabytes` (of 10^6 bytes) hold, of each voice alike.

    Returns:
        How many there are of each voice, for people.

    Raises:
        ValueError: the codec alone is larger.
    """
    codec = io.BytesIO()
    model = torch.load(folder / CODEC_FILE, weights_only=True, map_location="cpu")["model"]
    torch.save({"model": {name: tensor.half() for name, tensor in model.items()}}, codec)
    room = (int(megabytes * 1e6) - len(codec.getvalue()) - 10_000) // len(voices)
    if room <= 0:
        raise ValueError(f"a pack of {megabytes} MB does not hold the codec; allowed is more than 3")
    told = []
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(CODEC_FILE, codec.getvalue())
        for voice in voices:
            codes = np.load(folder / f"{voice}.codes.npy", mmap_mode="r")
            everything = [one for one in utterances(folder, voice) if one.start + one.tokens <= len(codes)]
            random.Random(0).shuffle(everything)  # noqa: S311 - nothing secret
            chosen = _chosen(everything, room)
            lines, kept = _together(chosen, codes)
            archive.writestr(f"{voice}.jsonl.xz", lzma.compress(lines.encode()))
            archive.writestr(f"{voice}.codes", squeeze(kept))
            told.append(f"{voice}: {len(chosen)} of {len(everything)} utterances, {len(kept)} audio tokens")
    return told


def unpack(file: Path, folder: Path) -> None:
    """Write what `file` holds to `folder` as the steps before leave it, but for recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith(".codes"):
                np.save(folder / f"{name}.npy", stretch(data))
            elif name.endswith(".xz"):
                (folder / name.removesuffix(".xz")).write_bytes(lzma.decompress(data))
            else:
                (folder / name).write_bytes(data)


def squeeze(codes: Codes) -> bytes:
    """[tokens, 4] -> BYTES a token."""
    numbers = (codes.astype(np.int64) * CODES ** np.arange(codes.shape[1])).sum(axis=1)
    return numbers.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :BYTES].tobytes()


def stretch(data: bytes) -> Codes:
    """What was squeezed, [tokens, 4]."""
    parts = np.frombuffer(data, np.uint8).reshape(-1, BYTES)
    numbers = np.pad(parts, ((0, 0), (0, 8 - BYTES))).view("<i8")
    return (numbers // CODES ** np.arange(4) % CODES).astype(np.uint16)


def _chosen(everything: list[Utterance], room: int) -> list[Utterance]:
    """The first that `room` bytes hold."""
    lines = "".join(map(_line, everything)).encode()
    a_line = len(lzma.compress(lines)) / max(1, len(everything))
    sizes = np.cumsum([a_line * 1.02 + BYTES * one.tokens for one in everything])
    return everything[: int(np.searchsorted(sizes, room, side="right"))]


def _together(chosen: list[Utterance], codes: Codes) -> tuple[str, Codes]:
    """Their lines and codes, one after another."""
    lines, start = [], 0
    for one in chosen:
        lines.append(_line(replace(one, start=start)))
        start += one.tokens
    return "".join(lines), np.concatenate([codes[one.start : one.start + one.tokens] for one in chosen])


def _line(one: Utterance) -> str:
    return json.dumps(asdict(one)) + "\n"
