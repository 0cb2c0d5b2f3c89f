"""From a request to what `gpt_decoder` works on: normalised sentences, prompts of token ids, and a voice."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.request import INT63_MAX, MAX_NEW_TOKENS, GenerationRequest, SynthesisRequest
from chattts_serving.text.characters import to_known_characters
from chattts_serving.text.markup import without_markup
from chattts_serving.text.normalizer import Normalizer, load_homophones
from chattts_serving.text.part import Part
from chattts_serving.text.prompts import Prompts
from chattts_serving.text.scripts import Scripts
from chattts_serving.text.sentences import End, split_sentences
from chattts_serving.text.tags import check_only_tags, check_tags, is_speakable, split_tags, without_tags
from chattts_serving.text.unfinished import Languages
from chattts_serving.text.verbalizer import Verbalizer
from chattts_serving.voice.speaker import SpeakerStatistics, decode_sample
from chattts_serving.voice.voices import Voice, VoiceLibrary

# Silence after a piece of text, in audio tokens of 21.33 ms. What the model itself leaves at its ends comes on top.
PAUSES = {
    End.PARAGRAPH: 28,  # 597 ms
    End.SENTENCE: 12,  # 256 ms
    End.CUT: 4,  # 85 ms: the sentence goes on
}

# Audio tokens (21.3 ms each) of slow speech: of a letter, 10 a second; of a tag such as [laugh]; and of 2 s in all.
_LETTER_TOKENS = 5
_TAG_TOKENS = 47
_LEEWAY_TOKENS = 94


@dataclass(frozen=True)
class FrontendConfig:
    """What `frontend.json` holds.

    Attributes:
        spk_stat: base16384 over float16[2 * hidden_size], standard deviation and mean of voices.
        hidden_size: of the language model.
        max_prompt_tokens: longest prompt, codes of a reference recording included.
    """

    spk_stat: str
    hidden_size: int
    max_prompt_tokens: int

    @classmethod
    def load(cls, path: Path) -> FrontendConfig:
        """Read the file.

        Raises:
            ConfigError: it is missing, is not JSON, or its keys are not exactly the fields.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}; run python -m export") from error
        expected = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != expected:
            raise ConfigError(f"{path} must have the keys {sorted(expected)}; run python -m export again")
        return cls(**values)


class Prepared(NamedTuple):
    """What `gpt_decoder` is to do, and in whose voice.

    Attributes:
        generation: the work.
        speaker_embedding: the voice's vector at length 1, float32 [hidden].
        used_speaker: the voice's ChatTTS speaker string; "" where a recording alone decides, without the vector.
        warning: what of the text is not spoken, for people to read; "" where all is.
        work, pause: of a part of a text, what the next part has.
    """

    generation: GenerationRequest
    speaker_embedding: npt.NDArray[np.float32]
    used_speaker: str
    warning: str
    work: int = 0
    pause: int = 0


class TextFrontend:
    """Everything between a caller's words and the model's prompts. One instance serves one thread."""

    def __init__(self, assets_dir: Path, voices: Iterable[Voice] = ()) -> None:
        """Load tokenizer.json, homophones.json and frontend.json of `assets_dir`; callers may ask for `voices` by name.

        Raises:
            ConfigError: a file is missing, broken, or does not fit the others, or a voice does not fit them.
        """
        self._config = FrontendConfig.load(assets_dir / "frontend.json")
        self._voices = VoiceLibrary(voices, SpeakerStatistics.parse(self._config.spk_stat, self._config.hidden_size))
        self._prompts = Prompts(assets_dir)
        self._normalizer = Normalizer(load_homophones(assets_dir / "homophones.json"))

    def prepare(self, request: SynthesisRequest, part: Part | None = None) -> Prepared:
        """What `gpt_decoder` is to do for `request`, or for a `part` of its text, and in whose voice.

        Raises:
            InvalidInputError: an input is wrong in a way that only text and vocabulary show.
        """
        now_ns = time.monotonic_ns()
        _check_texts(request)
        sample_codes = decode_sample(request.speaker_sample) if request.speaker_sample else ()
        seed = secrets.randbelow(INT63_MAX) if request.seed is None else request.seed
        speaker = self._voices.find(request.speaker) if request.speaker else self._voices.sample(seed)
        warning = ""
        if part is None:
            text, warning = _speakable_text(request)
            languages = Languages()
            part = Part((*languages.add(split_sentences(text)), *languages.end()), beginning=request.text)
        verbalizer = Verbalizer(part.work)
        texts, pauses, pause_before = self._sentences(request, part, verbalizer if request.normalize else None)
        pause = pauses[-1] if pauses else pause_before
        if not (part.goes_on or pause):  # that of a sentence is never 0
            allowed = "text with at least one word, Chinese character or number"
            raise InvalidInputError("text", part.beginning, allowed)
        generation = GenerationRequest(
            prompts=tuple(self._first_prompt(request, text) for text in texts),
            texts=texts,
            pauses=pauses,
            fewest_tokens=tuple(map(fewest_tokens, texts)),
            most_tokens=tuple(most_tokens(text, refine=not request.skip_refine) for text in texts),
            redraw_long=request.redraw_long,
            refine=not request.skip_refine,
            refine_only=request.refine_only,
            prompt=request.prompt,
            sample_text=request.sample_text,
            sample_codes=sample_codes,
            has_speaker=_has_speaker(request),
            seed=seed,
            deadline_ns=None if request.deadline_ms is None else now_ns + request.deadline_ms * 1_000_000,
            priority=request.priority,
            sampling=request.sampling,
            goes_on=part.goes_on,
            pause_before=pause_before,
        )
        self._check_lengths(generation)
        used_speaker = speaker.text if generation.has_speaker else ""
        return Prepared(generation, speaker.embedding, used_speaker, warning, verbalizer.work, pause)

    def _sentences(
        self, request: SynthesisRequest, part: Part, verbalize: Verbalizer | None
    ) -> tuple[tuple[str, ...], tuple[int, ...], int]:
        """The sentences of `part`, normalised, the pauses after them, in tokens, and that before the first.

        Sentences with nothing to say are left out; of the pauses around them the longest is kept.
        """
        texts: list[str] = []
        pauses = [part.pause]  # that of the sentence before, 0 where there is none
        for sentence in part.sentences:
            spoken = self._normalizer(sentence.text, request.language or sentence.language, verbalize)
            if is_speakable(spoken):
                texts.append(spoken)
                pauses.append(PAUSES[sentence.end])
            elif pauses[-1]:
                pauses[-1] = max(pauses[-1], PAUSES[sentence.end])
        return tuple(texts), tuple(pauses[1:]), pauses[0]

    def _first_prompt(self, request: SynthesisRequest, text: str) -> tuple[int, ...]:
        if request.skip_refine:
            return self._prompts.code_prompt(
                text, request.prompt, request.sample_text, has_speaker=_has_speaker(request)
            )
        return self._prompts.refine_prompt(text, request.refine_prompt)

    def _check_lengths(self, generation: GenerationRequest) -> None:
        """Check that the prompts of both passes fit, that of the second for the longest text that refining may make."""
        most = self._config.max_prompt_tokens
        prompt = self._prompts.code_prompt(
            "", generation.prompt, generation.sample_text, has_speaker=generation.has_speaker
        )
        frame = len(prompt) + len(generation.sample_codes)
        longest = max(map(len, generation.prompts), default=0)
        if generation.refine:
            needed = max(longest, frame + generation.sampling.refine_max_new_tokens)
        else:
            needed = longest + len(generation.sample_codes)
        if needed <= most:
            return
        if generation.sample_codes:
            allowed = f"a recording that leaves room for text: the prompt needs {needed} tokens of at most {most}"
            raise InvalidInputError("speaker_sample", f"{len(generation.sample_codes)} tokens", allowed)
        raise InvalidInputError(
            "text", generation.texts, f"sentences whose prompt has at most {most} tokens, not {needed}"
        )


def fewest_tokens(text: str) -> int:
    """Audio tokens (21.3 ms each) below which nobody can have said `text`: 2 for "Hi", 3 for "好", 8 for a sentence."""
    return min(8, 1 + (_width(text) + 1) // 2)


def most_tokens(text: str, *, refine: bool) -> int:
    """Audio tokens within which everybody has said `text`: twice what slow speech takes, and 2 s.

    Refining may add words and tags, so it doubles that.
    """
    num_tags = len(split_tags(text)) // 2
    slow = _LETTER_TOKENS * _width(text) + _TAG_TOKENS * num_tags
    return min(MAX_NEW_TOKENS, _LEEWAY_TOKENS + (4 if refine else 2) * slow)


def _width(text: str) -> int:
    """Letters and digits of `text`, and three for each Chinese character, which takes as long to say."""
    return sum(1 if character.isascii() else 3 for character in without_tags(text) if character.isalnum())


def _has_speaker(request: SynthesisRequest) -> bool:
    """A recording without a speaker string decides the voice alone, as in ChatTTS: a sampled voice would blur it."""
    return bool(request.speaker) or not request.speaker_sample


def _speakable_text(request: SynthesisRequest) -> tuple[str, str]:
    """The request's text in characters that are known, less marks that are not read, and a warning of what is left out.

    Raises:
        InvalidInputError: it has tags that are none, or most of it is in a script that the model does not know.
    """
    text = to_known_characters(request.text)
    check_tags("text", text, strict=request.strict_tags)
    scripts = Scripts()
    scripts.add(text)
    scripts.check(request.text)
    return without_markup(text) if request.normalize else text, scripts.warning


def _check_texts(request: SynthesisRequest) -> None:
    check_tags("sample_text", request.sample_text)
    check_only_tags("prompt", request.prompt)
    check_only_tags("refine_prompt", request.refine_prompt)
    if request.sample_text and not request.speaker_sample:
        raise InvalidInputError(
            "sample_text", request.sample_text, "the transcript of a 'speaker_sample', which is not given"
        )
