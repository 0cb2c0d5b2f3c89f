"""What ChatTTS itself makes of a sentence, on the same checkpoint: the measure of everything here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from chattts_serving.text.verbalizer import Verbalizer
from export.chattts_package import load_chat

NEAR_ZERO = 1e-7  # temperature: the likeliest token always wins, and float32 still divides by it


@dataclass(frozen=True)
class OracleSpeech:
    """One sentence spoken by ChatTTS.

    Attributes:
        text: as it was spoken, refined where asked for.
        codes: int64 [num_tokens, 4].
        hidden: float32 [num_tokens, hidden].
        audio: float32 [num_samples], before ChatTTS cuts near-silent samples out.
    """

    text: str
    codes: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.float32]
    audio: npt.NDArray[np.float32]


class Oracle:
    """ChatTTS on one checkpoint, with numbers spoken by the same rules as ours."""

    def __init__(self, checkpoint: Path) -> None:
        self.chat = load_chat(checkpoint)
        for language in ("zh", "en"):
            self.chat.normalizer.register(language, lambda text, language=language: Verbalizer()(text, language))

    def random_speaker(self, seed: int) -> str:
        torch.manual_seed(seed)
        return self.chat.sample_random_speaker()

    def speak(
        self,
        text: str,
        speaker: str | None,
        *,
        refine: bool,
        min_new_tokens: int,
        max_new_tokens: int,
        refine_max_new_tokens: int,
        speaker_sample: str | None = None,
        sample_text: str | None = None,
    ) -> OracleSpeech:
        """One sentence at near-zero temperature, by the steps of `ChatTTS.Chat._infer`."""
        chat = self.chat
        text = chat.normalizer(text)
        if refine:
            params = chat.RefineTextParams(temperature=NEAR_ZERO, max_new_token=refine_max_new_tokens, show_tqdm=False)
            refined = chat._refine_text([text], chat.device, params)
            ids = refined.ids[0]
            text = chat.tokenizer.decode([ids[ids.less(chat.tokenizer.break_0_ids)]])[0]
        params = chat.InferCodeParams(
            spk_emb=speaker,
            spk_smp=speaker_sample,
            txt_smp=sample_text,
            temperature=NEAR_ZERO,
            min_new_token=min_new_tokens,
            max_new_token=max_new_tokens,
            show_tqdm=False,
        )
        result = next(chat._infer_code([text], False, chat.device, True, params))
        codes, hidden = result.ids[0].numpy(), result.hiddens[0].numpy().copy()
        audio = chat._decode_to_wavs(list(result.hiddens), True)[0]
        return OracleSpeech(text, codes, hidden, audio)
