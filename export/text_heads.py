"""Which attention heads follow the text that is spoken, so that they tell when each word is said.

A few sentences are spoken, and each head is judged by where it looks: a path through the text, as `path` lays it,
should go through its looks at every token, the short ones as well as the long ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from chattts_serving.engine.gpt_config import GPTConfig, TextHead
from chattts_serving.text.prompts import Prompts
from chattts_serving.voice.speaker import SpeakerStatistics, normalize
from chattts_serving.words import path
from export.spoken import Integers, Speaking, SpeakingModel

# Everyday words in both of ChatTTS's languages; those that a checkpoint's vocabulary lacks are passed over.
SENTENCES = (
    "good morning, my name is john, and i come from england.",
    "please wait a moment, the manager will call you back.",
    "the train to london leaves at half past seven in the morning.",
    "今天天气很好，我们一起去公园散步吧。",
    "请您稍等一下，经理马上给您回电话。",
)
PROMPT = "[speed_5]"
SEED = 0  # of the voice and of what is drawn
MAX_TOKENS = 256  # of a sentence, 5.5 s
LEAST_SCORE = 0.7  # of a head that follows the text
MOST_HEADS = 4
MOST_LEAD = 16  # steps that a head may look ahead of another one, 0.34 s

Place = tuple[int, int]  # of a head: its layer, and which of that


class Spoken(NamedTuple):
    """A sentence that was spoken: where heads looked, [steps, layers, heads], and how many tokens it has."""

    looks: Integers
    num_tokens: int


def write_text_heads(frontend: Path, gpt: Path) -> None:
    """Find the heads of the model in `gpt`, and write them into its config.json; `frontend` knows its voices."""
    config = replace(GPTConfig.load(gpt), text_heads=find_text_heads(frontend, gpt))
    (gpt / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")


def find_text_heads(frontend: Path, gpt: Path) -> tuple[TextHead, ...]:
    """As `best_heads`, of the model in `gpt`."""
    config, prompts = GPTConfig.load(gpt), Prompts(gpt)
    statistics = json.loads((frontend / "frontend.json").read_text(encoding="utf-8"))["spk_stat"]
    voice = normalize(SpeakerStatistics.parse(statistics, config.hidden_size).sample(SEED))
    sentences = []
    for text in SENTENCES:
        prompt = prompts.code_prompt(text, PROMPT, "", has_speaker=True)
        places = prompts.places(text, PROMPT, "", has_speaker=True)
        if prompts.unknown_id not in prompt:
            sentences.append(Speaking(prompt, places.first, places.end))
    if sentences:
        model = SpeakingModel(config, load_file(gpt / "model.safetensors"), voice)
        model.speak(sentences, MAX_TOKENS, SEED)
    said = [one for one in sentences if one.has_ended]
    return best_heads([Spoken(np.stack(one.looks) - one.first, one.end - one.first) for one in said if one.looks])


def best_heads(spoken: Sequence[Spoken]) -> tuple[TextHead, ...]:
    """Up to MOST_HEADS heads that follow the text, the best one first; none where none does, as in random weights.

    Leads count from the one that looks ahead least, which is taken to look at what is being said.
    """
    spoken = [one for one in spoken if len(one.looks) >= one.num_tokens]
    if not spoken:
        return ()
    _, num_layers, num_heads = spoken[0].looks.shape
    scores = {
        (layer, head): float(np.mean([_score(one.looks[:, layer, head], one.num_tokens) for one in spoken]))
        for layer, head in product(range(num_layers), range(num_heads))
    }
    found = sorted((place for place in scores if scores[place] >= LEAST_SCORE), key=lambda place: -scores[place])
    found = found[:MOST_HEADS]
    leads = [_lead(spoken, found[0], place) for place in found]
    return tuple(TextHead(*place, lead - min(leads)) for place, lead in zip(found, leads, strict=True))


def _score(looks: Integers, num_tokens: int) -> float:
    """The share of looks that lie on the best path, every token counting alike, 0 to 1: how monotonic, how complete."""
    votes = (looks == np.arange(num_tokens)[:, None]).astype(np.int32)
    ends = path(votes)
    return float(np.mean([votes[token, start:end].mean() for token, (start, end) in enumerate(pairwise([0, *ends]))]))


def _lead(spoken: Sequence[Spoken], best: Place, other: Place) -> int:
    """The steps by which the head `other` looks ahead of `best`: those at which the two agree most."""

    def agreement(lead: int) -> float:
        shares = []
        for one in spoken:
            later, sooner = (
                one.looks[max(0, by) :, place[0], place[1]] for place, by in ((best, lead), (other, -lead))
            )
            length = min(len(later), len(sooner))
            shares.append(np.mean(later[:length] == sooner[:length]))
        return float(np.mean(shares))

    return max(range(-MOST_LEAD, MOST_LEAD + 1), key=agreement)
