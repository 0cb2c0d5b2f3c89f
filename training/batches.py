"""Batches of recordings with their prompts, as the language model learns from them."""

from __future__ import annotations

import random
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset, get_worker_info

from chattts_serving.audio import SAMPLES_PER_TOKEN
from export.layout import NUM_CODEBOOKS
from training.sentences import draw_words
from training.utterances import PIECE, VOICES, Utterance, recordings, utterances
from training.vocabulary import IDS, SOUNDS, VOCABULARY, ids_of

AHEAD = (0, 5)  # audio tokens from now to what each guided head looks for
SHORTEST = 60  # audio tokens, 1.3 s: utterances of up to so many come first
REFINED_SHARE = 16  # of this many texts one is refined, too
EVALUATED_SHARE = 64  # of this many utterances one is not for training
CURRICULUM = 10_000_000  # audio tokens until the longest have come


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
        audio: float32 [B, T * SAMPLES_PER_TOKEN]; [B, 0] where there are no recordings but only codes.
        refining: int64 [2 N, R], one in REFINED_SHARE of these texts and as many of any words, as the first pass
            refines them: prompt, refined text, [Ebreak], padding. Without the second half it would learn sentences by
            heart.
        is_refined: bool [2 N, R], the refined text and its end.
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

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


class Corpus(IterableDataset[Batch]):
    """The recordings of some voices; without end, batches of about `tokens` audio tokens each."""

    def __init__(
        self,
        folder: Path,
        voices: list[str],
        *,
        seed: int,
        longest: int,
        tokens: int,
        seen: int,
        held_out: bool = False,
    ) -> None:
        """Utterances of up to `longest` audio tokens.

        Args:
            folder: has the corpus, or what was unpacked of it.
            voices: of flite.
            seed: of what is drawn.
            longest: utterance in audio tokens; the longest come when CURRICULUM tokens were seen.
            tokens: of audio in a batch.
            seen: audio tokens that the model was trained on before.
            held_out: those utterances alone that are not for training, or none of them.

        Raises:
            ValueError: there is no such utterance.
        """
        self._seed, self._longest, self._tokens, self._seen = seed, longest, tokens, seen
        self._recordings = [
            recordings(folder, voice) if (folder / f"{voice}.i16").exists() else None for voice in voices
        ]
        self._codes = [np.load(folder / f"{voice}.codes.npy", mmap_mode="r") for voice in voices]
        self._rows = [VOICES.index(voice) for voice in voices]
        found = [(number, one) for number, voice in enumerate(voices) for one in utterances(folder, voice)]
        self._utterances = sorted(
            (
                (number, one)
                for number, one in found
                if one.tokens <= longest
                and one.start + one.tokens <= len(self._codes[number])
                and is_for_evaluation(one) == held_out
            ),
            key=lambda pair: pair[1].tokens,
        )
        if not self._utterances:
            raise ValueError(f"{folder} has no utterance of {', '.join(voices)} with up to {longest} audio tokens")
        self._lengths = [one.tokens for _, one in self._utterances]
        self._up_to = list(accumulate(self._lengths))
        self._words = sorted({piece for _, one in self._utterances for piece in PIECE.findall(one.text)} - {",", "."})
        self.is_recorded = all(one is not None for one in self._recordings)

    def __iter__(self) -> Iterator[Batch]:
        """For ever; of several workers, each draws its own."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rng, seen = random.Random(f"{self._seed}-{number}"), self._seen  # noqa: S311 - nothing secret
        while True:
            # By a token of all, so that every utterance comes as often as any other: the longer they are, the fewer
            # fit into a batch.
            known = max(1, bisect_right(self._lengths, reach(seen, self._longest)))
            start = bisect_right(self._up_to, rng.randrange(self._up_to[known - 1]))
            size = max(1, self._tokens // self._lengths[start])
            around = self._utterances[max(0, start - 2 * size) : start + 2 * size]
            yield self._batch(rng.sample(around, min(size, len(around))), rng)
            seen += workers * self._tokens

    def _batch(self, pairs: list[tuple[int, Utterance]], rng: random.Random) -> Batch:
        prompts = [prompt_of(one, rng) for _, one in pairs]
        longest = max(len(ids) for ids, _, _ in prompts)
        most = max(one.tokens for _, one in pairs)
        ids, real = (
            torch.zeros(len(pairs), longest, dtype=torch.long),
            torch.zeros(len(pairs), longest, dtype=torch.bool),
        )
        codes = torch.zeros(len(pairs), most, NUM_CODEBOOKS, dtype=torch.long)
        places = torch.zeros(len(pairs), most, len(AHEAD), dtype=torch.long)
        audio = torch.zeros(len(pairs), most * SAMPLES_PER_TOKEN if self.is_recorded else 0)
        for row, ((voice, one), (prompt, owners, ends)) in enumerate(zip(pairs, prompts, strict=True)):
            before, end = longest - len(prompt), one.start + one.tokens
            ids[row, before:], real[row, before:] = torch.tensor(prompt), True
            codes[row, : one.tokens] = torch.from_numpy(self._codes[voice][one.start : end].astype(np.int64))
            samples = self._recordings[voice]
            if self.is_recorded and samples is not None:
                part = samples[one.start * SAMPLES_PER_TOKEN : end * SAMPLES_PER_TOKEN]
                audio[row, : len(part)] = torch.from_numpy(part.astype(np.float32) / 32768)
            said = np.searchsorted(ends, np.arange(one.tokens + max(AHEAD)), side="right").clip(max=len(ends) - 1)
            place = before + torch.tensor(owners)[said]
            for head, ahead in enumerate(AHEAD):
                places[row, : one.tokens, head] = place[ahead : ahead + one.tokens]
        voices = torch.tensor([self._rows[voice] for voice, _ in pairs])
        lengths = torch.tensor([one.tokens for _, one in pairs])
        texts = [one.text for _, one in pairs[::REFINED_SHARE]]
        loose = [" ".join(draw_words(rng, self._words) for _ in range(rng.randint(1, 3))) for _ in texts]
        refining, is_refined = _refining([*texts, *loose])
        return Batch(ids, real, voices, codes, lengths, places, audio, refining, is_refined)


def is_for_evaluation(one: Utterance) -> bool:
    """Whether the language model does not learn from `one`, so that its losses tell how far it is."""
    return zlib.crc32(one.text.encode()) % EVALUATED_SHARE == 0


def reach(seen: int, longest: int) -> int:
    """How long utterances may be, in audio tokens, when the model was trained on `seen`."""
    return min(longest, SHORTEST + round((longest - SHORTEST) * min(1.0, seen / CURRICULUM)))


def prompt_of(one: Utterance, rng: random.Random) -> tuple[list[int], list[int], list[int]]:
    """Ids of the prompt that the server makes of a text; the places in it of its pieces of words, commas and full
    stops; and the audio token with which each of these ends (exclusive).

    A comma is as often the pause that refining makes of it.
    """
    ids = [IDS["[Stts]"], IDS["[spk_emb]"], *([IDS["[speed_5]"]] if rng.random() < 0.9 else [])]
    owners: list[int] = []
    ends: list[int] = []
    words = iter(one.sounds)
    for piece, end in zip(PIECE.findall(one.text), one.ends, strict=True):
        text = list(ids_of(piece)) if piece.isalpha() else [IDS[piece]]
        if piece == "," and rng.random() < 0.5:
            text = [IDS["[uv_break]"]]
        ends += piece_ends(text, next(words), end) if piece.isalpha() else [end]
        owners += range(len(ids), len(ids) + len(text))
        ids += text
    return [*ids, IDS["[Ptts]"]], owners, ends


def piece_ends(ids: list[int], begins: list[int], end: int) -> list[int]:
    """Where each piece of a word ends, whose phones begin at `begins` and whose last ends at `end`.

    Each piece has as many of the phones as it should have; all are stretched alike where that is not their number.
    """
    numbers = np.cumsum([len(SOUNDS[VOCABULARY[one]]) for one in ids])
    edges = [*begins, end]
    places = np.round(numbers * (len(begins) / max(1, numbers[-1]))).astype(int)
    return [edges[place] for place in places[:-1]] + [end]


def _refining(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """`Batch.refining` and `Batch.is_refined`: a comma becomes a pause, all else stays."""
    sequences, masks = [], []
    for one in texts:
        pieces = PIECE.findall(one)
        text = [number for piece in pieces for number in (ids_of(piece) if piece.isalpha() else (IDS[piece],))]
        prompt = [IDS["[Sbreak]"], *text, IDS["[Pbreak]"]]
        refined = [IDS["[uv_break]"] if token == IDS[","] else token for token in text] + [IDS["[Ebreak]"]]
        sequences.append(torch.tensor([*prompt, *refined]))
        masks.append(torch.tensor([False] * len(prompt) + [True] * len(refined)))
    return pad_sequence(sequences, batch_first=True), pad_sequence(masks, batch_first=True)
