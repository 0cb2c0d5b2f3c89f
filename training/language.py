"""Training of the language model, and with it of the decoder that makes mel of its hidden states.

Losses are added: of the audio codes, of the mel, of refined texts, and of where the first heads of two layers look. The
last one is what makes the text be followed (compare guided attention, Tachibana et al. 2017): flite knows when each
word is said, so one head is to look at the word that is said, the other one at what is said a little later.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from chattts_serving.audio import FRAMES_PER_TOKEN, SAMPLES_PER_TOKEN
from chattts_serving.request import NUM_AUDIO_TOKENS
from export.layout import NUM_CODEBOOKS
from training.corpus import PIECE, VOICES, Utterance, recordings, utterances
from training.loop import train
from training.modules import Language, LogMel, MelDecoder
from training.sentences import draw_words
from training.settings import SIZES
from training.sound import CODEC_FILE
from training.vocabulary import IDS

FILE = "language.pt"
END = NUM_AUDIO_TOKENS - 1
GUIDED = {1: 2, 2: 2}  # layer -> heads
AHEAD = (0, 5)  # audio tokens from now to what each guided head looks for
MEL_WEIGHT, GUIDE_WEIGHT, TEXT_WEIGHT = 1.0, 0.3, 0.2
CODEBOOK_WEIGHTS = (1.0, 0.4, 1.0, 0.4)  # what a residual adds is mostly noise
# Of the audio tokens that the model reads, so that it lives on the text and bears its own mistakes:
NOISE = 0.15  # are random ones
MOST_OWN = 0.8  # are what it would have said itself, at most; each utterance has a share of its own
OWN_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Batch:
    """Utterances of about the same length, padded.

    Attributes:
        ids: text ids [B, P], prompts flush right, so that audio begins at the same place; 0 before them.
        real: bool [B, P].
        voices: int64 [B], places in VOICES.
        codes: int64 [B, T, NUM_CODEBOOKS].
        lengths: int64 [B], audio tokens.
        places: int64 [B, T, heads], the place in `ids` where each guided head is to look.
        audio: float32 [B, T * SAMPLES_PER_TOKEN].
        refining: int64 [2 B, R], these texts and as many of words in any order, as the first pass refines them: prompt,
            refined text, [Ebreak], padding. Without the second half it would learn sentences by heart.
        is_refined: bool [2 B, R], the refined text and its end.
    """

    ids: torch.Tensor
    real: torch.Tensor
    voices: torch.Tensor
    codes: torch.Tensor
    lengths: torch.Tensor
    places: torch.Tensor
    audio: torch.Tensor
    refining: torch.Tensor
    is_refined: torch.Tensor


class Corpus:
    """Batches of the recordings of some voices."""

    def __init__(self, folder: Path, voices: list[str], seed: int, longest: int) -> None:
        """Utterances of up to `longest` audio tokens."""
        self._rng = random.Random(seed)  # noqa: S311 - nothing secret
        self._recordings = [recordings(folder, voice) for voice in voices]
        self._codes = [np.load(folder / f"{voice}.codes.npy", mmap_mode="r") for voice in voices]
        self._rows = [VOICES.index(voice) for voice in voices]
        found = [(number, one) for number, voice in enumerate(voices) for one in utterances(folder, voice)]
        self._utterances = sorted(
            (pair for pair in found if pair[1].tokens <= longest), key=lambda pair: pair[1].tokens
        )

    def batches(self, tokens: int) -> Iterator[Batch]:
        """For ever, of about `tokens` audio tokens each."""
        while True:
            start = self._rng.randrange(len(self._utterances))
            number = max(1, tokens // self._utterances[start][1].tokens)
            around = self._utterances[max(0, start - 2 * number) : start + 2 * number]
            yield self._batch(self._rng.sample(around, min(number, len(around))))

    def _batch(self, pairs: list[tuple[int, Utterance]]) -> Batch:
        prompts = [prompt_of(one, self._rng) for _, one in pairs]
        longest = max(len(ids) for ids, _ in prompts)
        most = max(one.tokens for _, one in pairs)
        ids, real = (
            torch.zeros(len(pairs), longest, dtype=torch.long),
            torch.zeros(len(pairs), longest, dtype=torch.bool),
        )
        codes = torch.zeros(len(pairs), most, NUM_CODEBOOKS, dtype=torch.long)
        places = torch.zeros(len(pairs), most, len(AHEAD), dtype=torch.long)
        audio = torch.zeros(len(pairs), most * SAMPLES_PER_TOKEN)
        for row, ((voice, one), (prompt, owners)) in enumerate(zip(pairs, prompts, strict=True)):
            before, end = longest - len(prompt), one.start + one.tokens
            ids[row, before:], real[row, before:] = torch.tensor(prompt), True
            codes[row, : one.tokens] = torch.from_numpy(self._codes[voice][one.start : end].astype(np.int64))
            part = self._recordings[voice][one.start * SAMPLES_PER_TOKEN : end * SAMPLES_PER_TOKEN]
            audio[row, : len(part)] = torch.from_numpy(part.astype(np.float32) / 32768)
            said = np.searchsorted(one.ends, np.arange(one.tokens + max(AHEAD)), side="right").clip(
                max=len(one.ends) - 1
            )
            place = before + torch.tensor(owners)[said]
            for head, ahead in enumerate(AHEAD):
                places[row, : one.tokens, head] = place[ahead : ahead + one.tokens]
        voices = torch.tensor([self._rows[voice] for voice, _ in pairs])
        lengths = torch.tensor([one.tokens for _, one in pairs])
        loose = [" ".join(draw_words(self._rng) for _ in range(self._rng.randint(1, 3))) for _ in pairs]
        refining, is_refined = _refining([*(one.text for _, one in pairs), *loose])
        return Batch(ids, real, voices, codes, lengths, places, audio, refining, is_refined)


def prompt_of(one: Utterance, rng: random.Random) -> tuple[list[int], list[int]]:
    """Ids of the prompt that the server makes of a text, and the place of each word, comma and full stop in it.

    A comma is as often the pause that refining makes of it.
    """
    ids = [IDS["[Stts]"], IDS["[spk_emb]"], *([IDS["[speed_5]"]] if rng.random() < 0.9 else [])]
    owners = []
    for piece in PIECE.findall(one.text):
        owners.append(len(ids))
        ids.append(IDS["[uv_break]"] if piece == "," and rng.random() < 0.5 else IDS[piece])
    return [*ids, IDS["[Ptts]"]], owners


def _refining(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """`Batch.refining` and `Batch.is_refined`: a comma becomes a pause, all else stays."""
    sequences, masks = [], []
    for one in texts:
        text = [IDS[piece] for piece in PIECE.findall(one)]
        prompt = [IDS["[Sbreak]"], *text, IDS["[Pbreak]"]]
        refined = [IDS["[uv_break]"] if token == IDS[","] else token for token in text] + [IDS["[Ebreak]"]]
        sequences.append(torch.tensor([*prompt, *refined]))
        masks.append(torch.tensor([False] * len(prompt) + [True] * len(refined)))
    return pad_sequence(sequences, batch_first=True), pad_sequence(masks, batch_first=True)


class Speaker(nn.Module):
    """The language model and the decoder, and their losses."""

    def __init__(self) -> None:
        """Random weights."""
        super().__init__()
        self.language = Language(SIZES.gpt, len(VOICES))
        self.decoder = MelDecoder(SIZES.decoder)
        self.log_mel = LogMel()

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """All losses, each a mean over audio tokens."""
        language = self.language
        num_prompt, num_tokens = batch.ids.shape[1], batch.codes.shape[1]
        prompt = language.emb_text(batch.ids)
        is_voice = (batch.ids == IDS["[spk_emb]"])[..., None]
        prompt = torch.where(is_voice, language.voice_vectors()[batch.voices][:, None], prompt)
        read = self._disturbed(prompt, batch) if self.training else batch.codes
        embedded = torch.cat([prompt, language.embed_codes(read)], dim=1)
        hidden, attentions = language(embedded, batch.real, GUIDED)
        hidden = hidden[:, num_prompt - 1 :]  # [B, T + 1, H]: before each token and before the end
        place = torch.arange(num_tokens + 1)
        is_token, is_target = place[:-1] < batch.lengths[:, None], place <= batch.lengths[:, None]
        target = F.pad(batch.codes, (0, 0, 0, 1)).masked_fill((place == batch.lengths[:, None])[..., None], END)
        found: dict[str, torch.Tensor] = {}
        shown = hidden[is_target]
        entropies = [
            F.cross_entropy(head(shown).float(), target[..., i][is_target]) for i, head in enumerate(language.head_code)
        ]
        found |= {f"code_{i}": entropy for i, entropy in enumerate(entropies)}
        mel = self.log_mel(batch.audio)[..., :-1]
        made = self.decoder((hidden[:, :-1] * is_token[..., None]).float())
        is_frame = is_token.repeat_interleave(FRAMES_PER_TOKEN, dim=1)
        difference = ((made - mel).abs() / self.decoder.coef).mean(dim=1)
        found["mel"] = difference[is_frame].mean()
        guide = []
        for attention in attentions:  # [B, heads, L, L], queries from the one that predicts the first token on
            rows = attention[:, :, num_prompt - 1 : num_prompt - 1 + num_tokens]
            looked = rows.gather(3, batch.places.transpose(1, 2)[..., None])[..., 0]  # [B, heads, T]
            guide.append(-looked.transpose(1, 2)[is_token].mean())
        found["guide"] = torch.stack(guide).mean()
        everything = torch.ones(batch.refining.shape, dtype=torch.bool)
        refined, _ = language(language.emb_text(batch.refining), everything, {})
        is_next = batch.is_refined[:, 1:]
        logits = language.head_text(refined[:, :-1][is_next])
        found["text"] = F.cross_entropy(logits, batch.refining[:, 1:][is_next])
        return found

    @torch.no_grad()
    def _disturbed(self, prompt: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Codes as the model reads them: some its own, as in scheduled sampling in parallel (Duckworth et al. 2019)."""
        language, codes = self.language, batch.codes
        num_rows, num_tokens = codes.shape[:2]
        hidden, _ = language(torch.cat([prompt, language.embed_codes(codes)], dim=1), batch.real, {})
        hidden = hidden[:, prompt.shape[1] - 1 : -1]
        logits = torch.stack([head(hidden) for head in language.head_code], dim=2)[..., :END] / OWN_TEMPERATURE
        up_to = logits.softmax(dim=3).cumsum(dim=3)
        own = torch.searchsorted(up_to, torch.rand(*up_to.shape[:3], 1))[..., 0].clamp(max=END - 1)
        shares = MOST_OWN * torch.rand(num_rows, 1)
        read = torch.where((torch.rand(num_rows, num_tokens) < shares)[..., None], own, codes)
        noise = torch.randint(END, codes.shape)
        return torch.where((torch.rand(num_rows, num_tokens) < NOISE)[..., None], noise, read)


def train_language(
    folder: Path, voices: list[str], minutes: float, *, rate: float, tokens: int, longest: int
) -> Speaker:
    """Train for `minutes`, or go on.

    Args:
        folder: has the corpus with its codes, and gets the model.
        voices: a later run may have others.
        minutes: of this run.
        rate: of learning, at most.
        tokens: of audio in a batch.
        longest: utterance, in audio tokens.
    """
    speaker = Speaker()
    speaker.decoder.coef = torch.load(folder / CODEC_FILE, weights_only=True)["model"]["tail.coef"]
    batches = Corpus(folder, voices, int(time.time()), longest).batches(tokens)

    def losses() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        found = speaker.losses(next(batches))
        return total(found), found

    file = folder / FILE
    known = torch.load(file, weights_only=True)["voices"] if file.exists() else []
    train(speaker, losses, file, minutes, rate=rate, voices=sorted({*known, *voices}, key=VOICES.index))
    return speaker


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """What is minimised."""
    codes = sum(weight * losses[f"code_{i}"] for i, weight in enumerate(CODEBOOK_WEIGHTS)) / sum(CODEBOOK_WEIGHTS)
    beside = MEL_WEIGHT * losses["mel"] + GUIDE_WEIGHT * losses["guide"] + TEXT_WEIGHT * losses["text"]
    return codes + beside
