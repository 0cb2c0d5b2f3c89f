"""When flite says each word of the held-out sentences, beside the codes of its recordings: `held_out.jsonl`.

By these the times of words are judged that the server gives; flite is not needed for that.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from chattts_serving.voice.speaker import encode_sample
from training.corpus import speak
from training.loop import load
from training.modules import Codec, LogMel
from training.sentences import held_out
from training.settings import SIZES
from training.sound import CODEC_FILE
from training.utterances import VOICES, read_text

FILE = Path(__file__).parent / "held_out.jsonl"


@dataclass(frozen=True)
class Timing:
    """One sentence as flite says it.

    Attributes:
        voice: which of flite's.
        text: as `utterances.Utterance` has it.
        ends: likewise: of each word, comma and full stop, in audio tokens.
        codes: of the recording, as ChatTTS's `spk_smp` string.
    """

    voice: str
    text: str
    ends: list[int]
    codes: str


@cache
def timings() -> tuple[Timing, ...]:
    """Every held-out sentence in one of the voices."""
    return tuple(Timing(**json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines())


@torch.inference_mode()
def write(folder: Path) -> None:
    """Have flite say the sentences, voices in turns, and write `FILE`; `folder` has the codec."""
    codec, log_mel = load(Codec(SIZES.dvae_encoder, SIZES.dvae_decoder), folder / CODEC_FILE), LogMel()
    lines = []
    for number, sentence in enumerate(held_out()):
        voice = VOICES[number % len(VOICES)]
        audio, ends, _ = speak(voice, sentence)
        mel = log_mel(torch.from_numpy(audio.astype(np.float32) / 32768)[None])[..., :-1]
        codes = encode_sample(codec.encode(mel)[1][0].numpy())
        lines.append(json.dumps(asdict(Timing(voice, read_text(sentence), ends, codes)), ensure_ascii=False) + "\n")
    FILE.write_text("".join(lines), encoding="utf-8")
