"""From a request to what `gpt_decoder` works on: normalised sentences, prompts of token ids, and a voice."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.request import INT63_MAX, MAX_NEW_TOKENS, GenerationRequest, Manner, SynthesisRequest
from chattts_serving.text.cast import Cast, has_speaker
from chattts_serving.text.characters import to_known_characters
from chattts_serving.text.directives import check_directives, refuse_directives
from chattts_serving.text.lexicon import Lexicon, parse_lexicon
from chattts_serving.text.markup import without_markup
from chattts_serving.text.normalizer import Normalizer, load_homophones
from chattts_serving.text.part import NOTHING, Part, SoFar
from chattts_serving.text.prompts import Prompts
from chattts_serving.text.script import Script
from chattts_serving.text.scripts import Scripts
from chattts_serving.text.sentences import split_sentences
from chattts_serving.text.ssml import turns_of_ssml
from chattts_serving.text.tags import check_only_tags, check_tags, is_speakable, split_tags, without_tags
from chattts_serving.text.turns import Turn, turns_of
from chattts_serving.text.unfinished import Languages, Sentence
from chattts_serving.text.verbalizer import Verbalizer
from chattts_serving.voice.speaker import SpeakerStatistics
from chattts_serving.voice.voices import Speaker, Voice, VoiceLibrary

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
        speaker_embedding: the voices' vectors at length 1, one after the other, float32 [num_voices * hidden].
        used_speaker: the voices' ChatTTS speaker strings, a line each; empty where a recording alone decides, without
            the vector.
        warning: what of the text is not spoken, for people to read; "" where all is.
        so_far: of a part of a text, what the next part is told.
    """

    generation: GenerationRequest
    speaker_embedding: npt.NDArray[np.float32]
    used_speaker: str
    warning: str
    so_far: SoFar = NOTHING


class TextFrontend:
    """Everything between a caller's words and the model's prompts. One instance serves one thread."""

    def __init__(
        self, assets_dir: Path, voices: Iterable[Voice] = (), lexicon: Mapping[str, str] | None = None
    ) -> None:
        """Load tokenizer.json, homophones.json and frontend.json of `assets_dir`.

        Callers may ask for `voices` by name; `lexicon`, as `load_lexicon` gives it, holds for all of them.

        Raises:
            ConfigError: a file is missing, broken, or does not fit the others, or a voice does not fit them.
        """
        self._config = FrontendConfig.load(assets_dir / "frontend.json")
        self._voices = VoiceLibrary(voices, SpeakerStatistics.parse(self._config.spk_stat, self._config.hidden_size))
        self._prompts = Prompts(assets_dir)
        self._lexicon = Lexicon(lexicon)
        self._normalizer = Normalizer(load_homophones(assets_dir / "homophones.json"))

    def prepare(self, request: SynthesisRequest, part: Part | None = None) -> Prepared:
        """What `gpt_decoder` is to do for `request`, or for a `part` of its text, and in whose voices.

        Raises:
            InvalidInputError: an input is wrong in a way that only text and vocabulary show.
        """
        now_ns = time.monotonic_ns()
        turns = _turns(request, part)
        seed = secrets.randbelow(INT63_MAX) if request.seed is None else request.seed
        lexicon = Lexicon() if part else self._lexicon.with_entries(parse_lexicon(request.lexicon))
        so_far = part.so_far if part else NOTHING
        verbalizer = Verbalizer(so_far.work)
        verbalize = verbalizer if request.normalize else None
        script, cast = Script(so_far), Cast()
        prompts: list[tuple[int, ...]] = []
        warnings: list[str] = []
        for turn in turns:
            with turn.named():
                sentences, warning = self._sentences(turn.request, lexicon) if part is None else (part.sentences, "")
                warnings += [f"{turn.where}: {warning}" if turn.where else warning] if warning else []
                self._say(script, turn.request, sentences, verbalize)
                new = script.texts[len(prompts) :]
                if not (new or request.ssml or part):
                    raise _nothing_to_say(turn.request.text)
                if new or part:
                    prompts += [self._first_prompt(turn.request, text) for text in new]
                    cast.add(turn, self._speaker(turn.request, seed), len(new))
            if turn.end is not None:
                script.close(turn.end)
            if turn.pause is not None:
                script.pause(turn.pause)
        if script.is_empty and not (part and part.goes_on):
            raise _nothing_to_say(part.beginning if part else request.text)
        first = turns[0].request
        generation = GenerationRequest(
            prompts=tuple(prompts),
            texts=tuple(script.texts),
            pauses=script.pauses("turns" if request.turns else "text"),
            fewest_tokens=tuple(map(fewest_tokens, script.texts)),
            most_tokens=tuple(most_tokens(text, refine=not request.skip_refine) for text in script.texts),
            redraw_long=request.redraw_long,
            refine=not request.skip_refine,
            refine_only=request.refine_only,
            prompt=first.prompt,
            sample_text=first.sample_text,
            sample_codes=cast.manners[0].sample_codes,
            has_speaker=cast.manners[0].has_speaker,
            seed=seed,
            deadline_ns=None if request.deadline_ms is None else now_ns + request.deadline_ms * 1_000_000,
            priority=request.priority,
            sampling=first.sampling,
            goes_on=part is not None and part.goes_on,
            follows=part is not None and not part.is_first,
            word_times=request.word_times,
            **(cast.parts() if request.turns or len(turns) > 1 else {}),
        )
        self._check_lengths(generation)
        so_far = script.so_far(verbalizer.work)
        return Prepared(generation, cast.embedding, cast.used_speakers, "; ".join(warnings), so_far)

    def _speaker(self, request: SynthesisRequest, seed: int) -> Speaker:
        return self._voices.find(request.speaker) if request.speaker else self._voices.sample(seed)

    @staticmethod
    def _sentences(request: SynthesisRequest, lexicon: Lexicon) -> tuple[list[Sentence], str]:
        """The sentences of the request's text, not yet normalised, and a warning of what is not spoken."""
        text, warning = _speakable_text(request, lexicon)
        languages = Languages()
        return [*languages.add(split_sentences(text)), *languages.end()], warning

    def _say(
        self, script: Script, request: SynthesisRequest, sentences: Iterable[Sentence], verbalize: Verbalizer | None
    ) -> None:
        """Add `sentences` of the request to `script`, normalised, and its pauses.

        Sentences with nothing to say are left out.
        """
        for sentence in sentences:
            if sentence.silence is not None:
                script.pause(sentence.silence)
                continue
            spoken = self._normalizer(sentence.text, request.language or sentence.language, verbalize)
            if is_speakable(spoken):
                script.say(spoken)
            script.end(sentence.end)

    def _first_prompt(self, request: SynthesisRequest, text: str) -> tuple[int, ...]:
        if request.skip_refine:
            return self._prompts.code_prompt(
                text, request.prompt, request.sample_text, has_speaker=has_speaker(request)
            )
        return self._prompts.refine_prompt(text, request.refine_prompt)

    def _check_lengths(self, generation: GenerationRequest) -> None:
        """Check that the prompts of both passes fit, that of the second for the longest text that refining may make."""
        manners = generation.manners or (generation.manner_of(0),)
        longest = dict.fromkeys(manners, 0)
        for place, prompt in enumerate(generation.prompts):
            manner = generation.manner_of(place) if generation.manners else manners[0]
            longest[manner] = max(longest[manner], len(prompt))
        for manner in manners:
            self._check_length(generation, manner, longest[manner])

    def _check_length(self, generation: GenerationRequest, manner: Manner, longest: int) -> None:
        most = self._config.max_prompt_tokens
        prompt = self._prompts.code_prompt("", manner.prompt, manner.sample_text, has_speaker=manner.has_speaker)
        if generation.refine:
            frame = len(prompt) + len(manner.sample_codes)
            needed = max(longest, frame + manner.sampling.refine_max_new_tokens)
        else:
            needed = longest + len(manner.sample_codes)
        if needed <= most:
            return
        if manner.sample_codes:
            allowed = f"a recording that leaves room for text: the prompt needs {needed} tokens of at most {most}"
            raise InvalidInputError("speaker_sample", f"{len(manner.sample_codes)} tokens", allowed)
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


def _nothing_to_say(text: str) -> InvalidInputError:
    return InvalidInputError("text", text, "text with at least one word, Chinese character or number")


def _turns(request: SynthesisRequest, part: Part | None) -> tuple[Turn, ...]:
    """The turns of the request; a text in parts is one."""
    if part is None:
        return turns_of_ssml(request) if request.ssml else turns_of(request)
    for name, allowed in (("turns", "none"), ("ssml", "false")):
        if getattr(request, name):
            raise InvalidInputError(name, getattr(request, name), f"{allowed} with a text that comes in pieces")
    _check_texts(request)
    return (Turn(request),)


def _speakable_text(request: SynthesisRequest, lexicon: Lexicon) -> tuple[str, str]:
    """The request's text as it is to be said, in characters that are known, and a warning of what is left out.

    Raises:
        InvalidInputError: it or a text beside it has tags that are none, or most of it is in a script that the model
            does not know.
    """
    _check_texts(request)
    text = to_known_characters(request.text)
    check_tags("text", text, strict=request.strict_tags)
    check_directives("text", text)
    text = lexicon(without_markup(text) if request.normalize else text)
    scripts = Scripts()
    scripts.add(text)
    scripts.check(request.text)
    return text, scripts.warning


def _check_texts(request: SynthesisRequest) -> None:
    check_tags("sample_text", request.sample_text)
    refuse_directives("sample_text", request.sample_text)
    check_only_tags("prompt", request.prompt)
    check_only_tags("refine_prompt", request.refine_prompt)
    if request.sample_text and not request.speaker_sample:
        raise InvalidInputError(
            "sample_text", request.sample_text, "the transcript of a 'speaker_sample', which is not given"
        )
