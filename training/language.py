"""Training of the language model, and with it of the decoder that makes mel of its hidden states.

Losses are added: of the audio codes, of the mel, of refined texts, and of where the first heads of two layers look. The
last one is what makes the text be followed (compare guided attention, Tachibana et al. 2017): flite knows when each
word is said, so one head is to look at the word that is said, the other one at what is said a little later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from chattts_serving.audio import FRAMES_PER_TOKEN
from chattts_serving.request import NUM_AUDIO_TOKENS
from training.batches import CURRICULUM, Batch, Corpus
from training.loop import load, train
from training.modules import Codec, Language, LogMel, MelDecoder, repeated
from training.settings import SIZES
from training.sound import CODEC_FILE
from training.utterances import VOICES
from training.vocabulary import CHECKSUM, IDS
from training.vocabulary import FILE as VOCABULARY_FILE

FILE = "language.pt"
END = NUM_AUDIO_TOKENS - 1
GUIDED = {1: 2, 2: 2}  # layer -> heads
EVALUATED = 8  # batches
MEL_WEIGHT, GUIDE_WEIGHT, TEXT_WEIGHT = 1.0, 0.3, 0.2
CODEBOOK_WEIGHTS = (1.0, 0.2, 1.0, 0.2)  # what a residual adds is mostly noise
# Of the audio tokens that the model reads, so that it lives on the text and bears its own mistakes:
NOISE = 0.15  # are random ones
MOST_OWN = 0.8  # are what it would have said itself, at most; each utterance has a share of its own,
OWN_BATCHES = 0.5  # and so many batches have such ones
OWN_TEMPERATURE = 0.7


class Speaker(nn.Module):
    """The language model and the decoder, and their losses."""

    def __init__(self) -> None:
        """Random weights."""
        super().__init__()
        self.language = Language(SIZES.gpt, len(VOICES))
        self.decoder = MelDecoder(SIZES.decoder)

    def losses(self, batch: Batch, mel: torch.Tensor) -> dict[str, torch.Tensor]:
        """All losses, each a mean over audio tokens; `mel` float32 [B, NUM_MELS, 2 T] is what is to be heard."""
        language = self.language
        num_prompt, num_tokens = batch.ids.shape[1], batch.codes.shape[1]
        rows = language.text.rows()
        prompt = F.embedding(batch.ids, rows)
        is_voice = (batch.ids == IDS["[spk_emb]"])[..., None]
        prompt = torch.where(is_voice, language.voice_vectors()[batch.voices][:, None], prompt)
        read = self._disturbed(prompt, batch) if self.training else batch.codes
        embedded = torch.cat([prompt, language.embed_codes(read)], dim=1)
        hidden, attentions = language(embedded, batch.real, GUIDED)
        hidden = hidden[:, num_prompt - 1 :]  # [B, T + 1, H]: before each token and before the end
        place = torch.arange(num_tokens + 1, device=hidden.device)
        is_token, is_target = place[:-1] < batch.lengths[:, None], place <= batch.lengths[:, None]
        target = F.pad(batch.codes, (0, 0, 0, 1)).masked_fill((place == batch.lengths[:, None])[..., None], END)
        found: dict[str, torch.Tensor] = {}
        shown = hidden[is_target]
        entropies = [
            F.cross_entropy(head(shown).float(), target[..., i][is_target]) for i, head in enumerate(language.head_code)
        ]
        found |= {f"code_{i}": entropy for i, entropy in enumerate(entropies)}
        made = self.decoder(hidden[:, :-1] * is_token[..., None]).float()
        is_frame = is_token.repeat_interleave(FRAMES_PER_TOKEN, dim=1)
        difference = ((made - mel).abs() / self.decoder.coef).mean(dim=1)
        found["mel"] = difference[is_frame].mean()
        guide = []
        for attention in attentions:  # [B, heads, L, L], queries from the one that predicts the first token on
            looks = attention[:, :, num_prompt - 1 : num_prompt - 1 + num_tokens]
            looked = looks.gather(3, batch.places.transpose(1, 2)[..., None])[..., 0]  # [B, heads, T]
            guide.append(-looked.transpose(1, 2)[is_token].mean())
        found["guide"] = torch.stack(guide).mean()
        everything = torch.ones_like(batch.is_refined)
        refined, _ = language(F.embedding(batch.refining, rows), everything, {})
        is_next = batch.is_refined[:, 1:]
        logits = F.linear(refined[:, :-1][is_next], language.text.head_rows(rows))
        found["text"] = F.cross_entropy(logits.float(), batch.refining[:, 1:][is_next])
        return found

    @torch.no_grad()
    def _disturbed(self, prompt: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Codes as the model reads them: some its own, as in scheduled sampling in parallel (Duckworth et al. 2019)."""
        codes = batch.codes
        read = self._partly_own(prompt, batch) if torch.rand(()) < OWN_BATCHES else codes
        is_noise = torch.rand(codes.shape[:2], device=codes.device) < NOISE
        return torch.where(is_noise[..., None], torch.randint_like(codes, END), read)

    def _partly_own(self, prompt: torch.Tensor, batch: Batch) -> torch.Tensor:
        language, codes = self.language, batch.codes
        num_rows, num_tokens = codes.shape[:2]
        hidden, _ = language(torch.cat([prompt, language.embed_codes(codes)], dim=1), batch.real, {})
        hidden = hidden[:, prompt.shape[1] - 1 : -1]
        logits = torch.stack([head(hidden) for head in language.head_code], dim=2)[..., :END].float() / OWN_TEMPERATURE
        up_to = logits.softmax(dim=3).cumsum(dim=3)
        device = codes.device
        drawn = torch.rand(*up_to.shape[:3], 1, device=device)
        own = torch.searchsorted(up_to, drawn)[..., 0].clamp(max=END - 1)
        shares = MOST_OWN * torch.rand(num_rows, 1, device=device)
        is_own = torch.rand(num_rows, num_tokens, device=device) < shares
        return torch.where(is_own[..., None], own, codes)


class Ear:
    """What a batch is to sound like, and how far a model is from it, on one device.

    Attributes:
        in_half: losses are computed in half precision (bf16): where that is quicker.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """`folder` has the codec, which is heard where there are no recordings."""
        self._device = device
        self.in_half = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
        self._log_mel = LogMel().to(device)
        self.codec = load(Codec(SIZES.dvae_encoder, SIZES.dvae_decoder), folder / CODEC_FILE).to(device)

    def losses(self, speaker: Speaker, batch: Batch) -> dict[str, torch.Tensor]:
        """Of `speaker`, which is on the device."""
        batch = batch.to(self._device)
        with torch.no_grad():
            mel = self._log_mel(batch.audio)[..., :-1] if batch.audio.numel() else self.codec.decode(batch.codes)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.in_half):
            return speaker.losses(batch, mel)

    @torch.no_grad()
    def evaluate(self, speaker: Speaker, batches: Iterator[Batch]) -> dict[str, float]:
        """Means over EVALUATED batches."""
        found = [self.losses(speaker.eval(), batch) for batch in islice(batches, EVALUATED)]
        speaker.train()
        return {name: sum(one[name].item() for one in found) / len(found) for name in found[0]}


def train_language(
    folder: Path,
    voices: list[str],
    minutes: float,
    *,
    rate: float,
    tokens: int,
    longest: int,
    device: torch.device,
    workers: int,
) -> Speaker:
    """Train for `minutes`, or go on, and print the losses of utterances that are not for training.

    Args:
        folder: has the corpus with its codes, and gets the model.
        voices: a later run may have others.
        minutes: of this run.
        rate: of learning, at most.
        tokens: of audio in a batch.
        longest: utterance, in audio tokens.
        device: that trains.
        workers: processes that prepare batches; with 0 it is done between steps.
    """
    ear, speaker, file = Ear(folder, device), Speaker(), folder / FILE
    speaker.decoder.coef = ear.codec.tail.coef.cpu()
    speaker.to(device)
    if device.type == "cuda":
        compile_parts(speaker)
    state = known_state(file) if file.exists() else {}
    seen, known = state.get("seen", 0), state.get("voices", [])
    corpus = Corpus(folder, voices, seed=int(time.time()), seen=seen, longest=longest, tokens=tokens)
    batches = iter(DataLoader(corpus, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda"))

    def losses() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        nonlocal seen
        batch = next(batches)
        seen += int(batch.lengths.sum())
        found = ear.losses(speaker, batch)
        return total(found), found

    def beside() -> dict[str, object]:
        return {"voices": sorted({*known, *voices}, key=VOICES.index), "seen": seen, "vocabulary": CHECKSUM}

    train(speaker, losses, file, minutes, rate=rate, beside=beside)
    apart = Corpus(folder, voices, seed=0, seen=CURRICULUM, longest=longest, tokens=tokens, held_out=True)
    found = ear.evaluate(speaker, iter(apart))
    print("not for training:", json.dumps({"seen": seen} | {name: round(loss, 4) for name, loss in found.items()}))
    return speaker


def compile_parts(speaker: Speaker, backend: str = "inductor") -> None:
    """Have PyTorch compile what is repeated, for any lengths. A CPU gains a twentieth, after a minute of compiling."""
    for module in repeated(speaker):
        module.compile(dynamic=True, fullgraph=True, backend=backend)


def known_state(file: Path) -> dict[str, Any]:
    """What a run has left in `file`.

    Raises:
        ValueError: its vocabulary was another one.
    """
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    if state["vocabulary"] != CHECKSUM:
        raise ValueError(f"{file} was trained with another {VOCABULARY_FILE}; allowed is the same, or to begin anew")
    return state


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """What is minimised."""
    codes = sum(weight * losses[f"code_{i}"] for i, weight in enumerate(CODEBOOK_WEIGHTS)) / sum(CODEBOOK_WEIGHTS)
    beside = MEL_WEIGHT * losses["mel"] + GUIDE_WEIGHT * losses["guide"] + TEXT_WEIGHT * losses["text"]
    return codes + beside
