"""What was trained as a checkpoint in the official layout, in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from chattts_serving.voice import base16384
from chattts_serving.voice.speaker import encode_speaker
from chattts_serving.voice.voices import DEFAULT_VOICE, Voice, voice_path
from export.layout import (
    DECODER_FILE,
    DVAE_FILE,
    EMBED_FILE,
    GPT_CONFIG_FILE,
    GPT_FILE,
    SPEAKER_STATISTICS_FILE,
    VOCOS_FILE,
    tensor_shapes,
)
from export.synthetic import write_gpt_config
from export.synthetic_tokenizer import write_tokenizer
from export.voice_library import VOICES_FOLDER
from training import language, sound
from training.loop import load
from training.modules import Codec, Vocoder
from training.settings import SIZES
from training.utterances import VOICES
from training.vocabulary import VOCABULARY

DESCRIPTIONS = {
    "slt": "A woman from the United States, after flite's voice slt.",
    "rms": "A man from the United States, after flite's voice rms.",
    "awb": "A man from Scotland, after flite's voice awb.",
    "kal16": "A man from the United States, rather a machine, after flite's voice kal16.",
}


def write(folder: Path, out_dir: Path) -> None:
    """Write the parts that `folder` has to `out_dir`, which is replaced, and voices; the first is the default."""
    codec = load(Codec(SIZES.dvae_encoder, SIZES.dvae_decoder), folder / sound.CODEC_FILE)
    vocoder = load(Vocoder(SIZES.vocos), folder / sound.VOCODER_FILE)
    state = language.known_state(folder / language.FILE)
    speaker = language.Speaker()
    speaker.load_state_dict(state["model"])
    files = {
        DECODER_FILE: speaker.decoder.state_dict(),
        DVAE_FILE: codec.tensors(),
        EMBED_FILE: speaker.language.embed_tensors(),
        VOCOS_FILE: vocoder.tensors(),
        GPT_FILE: speaker.language.gpt_tensors(),
    }
    shutil.rmtree(out_dir, ignore_errors=True)
    for name, shapes in tensor_shapes(SIZES).items():
        tensors = files[name]
        found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if found != shapes:
            raise ValueError(f"{name}: {sorted(set(found.items()) ^ set(shapes.items()))[:4]} differ from the layout")
        path = out_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.detach().half().contiguous() for key, tensor in tensors.items()}, path, {"format": "pt"})
    write_gpt_config(SIZES.gpt, out_dir / GPT_CONFIG_FILE)
    write_tokenizer(VOCABULARY, out_dir / "asset" / "tokenizer")
    vectors = speaker.language.voice_vectors().detach()[[VOICES.index(voice) for voice in state["voices"]]]
    statistics = torch.cat([vectors.std(dim=0), vectors.mean(dim=0)]) if len(vectors) > 1 else vectors[0].repeat(2)
    text = base16384.encode(statistics.half().numpy().tobytes())
    (out_dir / SPEAKER_STATISTICS_FILE).write_text(text, encoding="utf-8")
    names = [DEFAULT_VOICE, *state["voices"]]
    (out_dir / VOICES_FOLDER).mkdir()
    for name, vector in zip(names, [vectors[0], *vectors], strict=True):
        of = state["voices"][0] if name == DEFAULT_VOICE else name
        voice = Voice(name, DESCRIPTIONS[of], speaker=encode_speaker(vector.half().numpy()))
        voice_path(out_dir / VOICES_FOLDER, name).write_text(voice.to_json() + "\n", encoding="utf-8")
