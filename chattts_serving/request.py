"""What a caller may ask for, and what the engine is told: two frozen dataclasses, each checked once.

`SynthesisRequest` is the contract of the models `chattts` and `chattts_stream`, checked where a request enters.
`GenerationRequest` is what `text_frontend` makes of it for `gpt_decoder`; it crosses between the two as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.errors import InvalidInputError

MAX_TEXT_CHARACTERS = 20_000
MAX_LEXICON_CHARACTERS = 200_000  # as JSON
MAX_TURNS_CHARACTERS = 1_000_000  # as JSON; a recording of 30 s has about 6,500
MAX_NAME_CHARACTERS = 64  # of who speaks in a turn
MAX_VOICES = 16  # of one request
MAX_PROMPT_CHARACTERS = 1_000  # refine_prompt and prompt: a handful of control tags
MAX_SAMPLE_TEXT_CHARACTERS = 1_000
MAX_SPEAKER_CHARACTERS = 8_192  # a ChatTTS speaker string has about 900
MAX_SPEAKER_SAMPLE_CHARACTERS = 32_768  # a spk_smp string of 30 s has about 6,500
MAX_NEW_TOKENS = 2_048  # per sentence, 43.7 s of audio
MAX_REFINED_TOKENS = 384  # per sentence, ChatTTS's own limit
MAX_DEADLINE_MS = 3_600_000
MAX_SILENCE_S = 30  # in one place: 2.9 MB of samples
MAX_SILENCES_S = 600  # of one request
LANGUAGES = ("zh", "en")
PRIORITIES = ("interactive", "batch")
MAX_SENTENCES = 2_000  # of one request; 20,000 characters make fewer
# Beyond these, float32 logits would overflow: divided by the temperature, times the penalty to the power of 16.
TEMPERATURE_RANGE = (1e-7, 1e6)
PENALTY_RANGE = (0.1, 10.0)
NUM_AUDIO_TOKENS = 626  # entries of one codebook, the end token included
INT63_MAX = 2**63 - 1


def _check_text(name: str, value: object, *, most: int, least: int = 0) -> None:
    if not isinstance(value, str):
        raise InvalidInputError(name, value, "a UTF-8 string")
    if not least <= len(value) <= most:
        raise InvalidInputError(name, value, f"{least} to {most:,} characters, got {len(value):,}")
    if "\0" in value:
        raise InvalidInputError(name, value, "text without NUL characters")
    _check_unicode(name, value)


def _check_unicode(name: str, text: str) -> None:
    """Refuse lone surrogates, which no tokenizer takes and no answer can carry.

    Raises:
        InvalidInputError: `text`, the value of input `name`, holds one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(name, text, "valid Unicode, without lone surrogates") from error


def _check_number(name: str, value: object, *, least: float, most: float, above: bool = False) -> None:
    """`above`: `least` itself is not allowed."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or (above and value == least):  # type: ignore[operator]
        raise InvalidInputError(name, value, f"a number {'above' if above else 'from'} {least:g} to {most:g}")


def _check_integer(name: str, value: object, *, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInputError(name, value, f"an integer from {least} to {most}")


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn; defaults are those of ChatTTS 0.2.5 (`InferCodeParams`, `RefineTextParams`).

    `temperature`, `repetition_penalty`, `min_new_tokens` and `max_new_tokens` hold for audio tokens, `refine_*` for
    the refined text, `top_p` and `top_k` for both. The counts are per sentence.

    Raises:
        InvalidInputError: a value is out of its range.
    """

    temperature: float = 0.3
    top_p: float = 0.7
    top_k: int = 20
    repetition_penalty: float = 1.05
    min_new_tokens: int = 0
    max_new_tokens: int = MAX_NEW_TOKENS
    refine_temperature: float = 0.7
    refine_max_new_tokens: int = MAX_REFINED_TOKENS

    def __post_init__(self) -> None:
        """Check every range."""
        _check_number("temperature", self.temperature, least=TEMPERATURE_RANGE[0], most=TEMPERATURE_RANGE[1])
        _check_number(
            "refine_temperature", self.refine_temperature, least=TEMPERATURE_RANGE[0], most=TEMPERATURE_RANGE[1]
        )
        _check_number("top_p", self.top_p, least=0, most=1, above=True)
        _check_integer("top_k", self.top_k, least=1, most=NUM_AUDIO_TOKENS)
        _check_number("repetition_penalty", self.repetition_penalty, least=PENALTY_RANGE[0], most=PENALTY_RANGE[1])
        _check_integer("max_new_tokens", self.max_new_tokens, least=1, most=MAX_NEW_TOKENS)
        _check_integer("min_new_tokens", self.min_new_tokens, least=0, most=self.max_new_tokens)
        _check_integer("refine_max_new_tokens", self.refine_max_new_tokens, least=1, most=MAX_REFINED_TOKENS)


@dataclass(frozen=True)
class SynthesisRequest(SamplingOptions):
    """One request as the caller makes it: every input of the contract but the tensors' shapes.

    Attributes:
        text: what to say, 1 to 20,000 characters, control tags allowed; "" where there are `turns`.
        turns: what several voices say, as JSON (`text/turns.py`), or "".
        speaker: ChatTTS speaker string; "" samples a voice from `seed`, or leaves it to `speaker_sample`.
        speaker_sample: ChatTTS `spk_smp` string (codes of a reference recording) or "".
        sample_text: the transcript of `speaker_sample`.
        seed: >= 0; None lets the server draw one. It decides the sampled voice and every token.
        skip_refine: speak the text as it stands, without the refining pass.
        refine_only: answer the refined text, without audio; not together with `skip_refine`.
        normalize: write out numbers, dates and units as words.
        lexicon: words and how to say them, a JSON object, or "" for none but the server's.
        ssml: `text` is a document of SSML (`text/ssml.py`); not together with `turns`.
        strict_tags: refuse every bracketed word of `text` that is no control tag, instead of speaking it.
        redraw_long: draw a sentence again that goes on long after its text can have been said, or to `max_new_tokens`.
        word_times: say when each word is said.
        refine_prompt: control tags for the refining pass ([oral_2][laugh_0][break_6]).
        prompt: control tags for the audio pass ([speed_5]).
        language: "zh", "en", or "" to detect it per sentence.
        deadline_ms: give up after this many milliseconds; None for no limit.
        priority: "interactive", or "batch" to let those go first.

    Raises:
        InvalidInputError: a value is out of its range.
    """

    text: str = ""
    turns: str = ""
    speaker: str = ""
    speaker_sample: str = ""
    sample_text: str = ""
    seed: int | None = None
    skip_refine: bool = False
    refine_only: bool = False
    normalize: bool = True
    lexicon: str = ""
    ssml: bool = False
    strict_tags: bool = False
    redraw_long: bool = False
    word_times: bool = False
    refine_prompt: str = ""
    prompt: str = "[speed_5]"
    language: str = ""
    deadline_ms: int | None = None
    priority: str = PRIORITIES[0]

    def __post_init__(self) -> None:
        """Check every range."""
        super().__post_init__()
        _check_text("turns", self.turns, most=MAX_TURNS_CHARACTERS)
        _check_text("text", self.text, least=0 if self.turns else 1, most=MAX_TEXT_CHARACTERS)
        _check_text("lexicon", self.lexicon, most=MAX_LEXICON_CHARACTERS)
        _check_text("speaker", self.speaker, most=MAX_SPEAKER_CHARACTERS)
        _check_text("speaker_sample", self.speaker_sample, most=MAX_SPEAKER_SAMPLE_CHARACTERS)
        _check_text("sample_text", self.sample_text, most=MAX_SAMPLE_TEXT_CHARACTERS)
        _check_text("refine_prompt", self.refine_prompt, most=MAX_PROMPT_CHARACTERS)
        _check_text("prompt", self.prompt, most=MAX_PROMPT_CHARACTERS)
        if self.language not in ("", *LANGUAGES):
            raise InvalidInputError("language", self.language, f"one of {', '.join(LANGUAGES)}, or empty to detect it")
        if self.priority not in PRIORITIES:
            raise InvalidInputError("priority", self.priority, f"one of {', '.join(PRIORITIES)}")
        if self.seed is not None:
            _check_integer("seed", self.seed, least=0, most=INT63_MAX)
        if self.deadline_ms is not None:
            _check_integer("deadline_ms", self.deadline_ms, least=1, most=MAX_DEADLINE_MS)
        for name in ("skip_refine", "refine_only", "normalize", "ssml", "strict_tags", "redraw_long", "word_times"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(name, getattr(self, name), "true or false")
        if self.ssml and self.turns:
            raise InvalidInputError("ssml", True, "false together with 'turns'")
        if self.refine_only and self.skip_refine:
            raise InvalidInputError("refine_only", True, "false together with 'skip_refine'")

    @property
    def sampling(self) -> SamplingOptions:
        """The sampling options alone."""
        return SamplingOptions(**{field.name: getattr(self, field.name) for field in fields(SamplingOptions)})


@dataclass(frozen=True)
class Manner:
    """How sentences are spoken.

    Attributes:
        prompt, sample_text, sample_codes, has_speaker, sampling: as in `GenerationRequest`.
        voice: which of the voices' vectors, 0 or more.
        name: who speaks, for people; "" where nobody said.
    """

    prompt: str
    sample_text: str
    sample_codes: tuple[tuple[int, ...], ...]
    has_speaker: bool
    sampling: SamplingOptions
    voice: int = 0
    name: str = ""

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Manner:
        """Read what JSON made of one; raises what `GenerationRequest.from_json` catches."""
        codes, sampling = values.pop("sample_codes"), values.pop("sampling")
        return cls(
            sample_codes=tuple(tuple(_integers(code)) for code in codes),
            sampling=SamplingOptions(**sampling),
            **values,
        )


@dataclass(frozen=True)
class GenerationRequest:
    """One request as `gpt_decoder` works on it.

    Attributes:
        prompts: token ids of each sentence's prompt for the first pass (refining, or audio where `skip_refine`).
        texts: the normalised sentences, one per prompt.
        pauses: samples of silence before the first sentence and after each one, each 0 to MAX_SILENCE_S seconds.
        fewest_tokens: audio tokens below which nobody can have said each sentence; what ends earlier is drawn again.
        most_tokens: audio tokens within which everybody has said each sentence, 1 to MAX_NEW_TOKENS.
        redraw_long: whether what takes more is drawn again.
        refine: whether the first pass refines text.
        refine_only: whether that is all that is wanted.
        prompt: control tags that go in front of each refined sentence.
        sample_text: transcript of `sample_codes`.
        sample_codes: codes of a reference recording, [num_tokens][4]; empty for none.
        has_speaker: whether the prompts have a place for the speaker's vector; without it the recording alone decides.
        seed: key of every random draw of this request.
        deadline_ns: `time.monotonic_ns()` past which the request is given up (one clock for all processes of a
            machine), or None.
        priority: one of PRIORITIES.
        sampling: how tokens are drawn.
        manners: how sentences are spoken where there are turns, in place of `prompt` and its like; else empty.
        turn_manners: the place in `manners` of each turn.
        turns: the turn of each sentence, 0 or more; empty where there are none.
        goes_on: whether other sentences of the text may follow these; the last of `pauses` is not known then.
        follows: whether others came before these; the first of `pauses` is that between them, then.
        word_times: whether it is wanted when each word is said.
    """

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    pauses: tuple[int, ...]
    fewest_tokens: tuple[int, ...]
    most_tokens: tuple[int, ...]
    redraw_long: bool
    refine: bool
    refine_only: bool
    prompt: str
    sample_text: str
    sample_codes: tuple[tuple[int, ...], ...]
    has_speaker: bool
    seed: int
    deadline_ns: int | None
    priority: str
    sampling: SamplingOptions
    manners: tuple[Manner, ...] = ()
    turn_manners: tuple[int, ...] = ()
    turns: tuple[int, ...] = ()
    goes_on: bool = False
    follows: bool = False
    word_times: bool = False

    @property
    def num_voices(self) -> int:
        """How many voices' vectors belong to it."""
        return 1 + max((manner.voice for manner in self.manners), default=0)

    def manner_of(self, place: int) -> Manner:
        """How sentence number `place` is spoken."""
        if self.manners:
            return self.manners[self.turn_manners[self.turns[place]]]
        return Manner(self.prompt, self.sample_text, self.sample_codes, self.has_speaker, self.sampling)

    def to_json(self) -> str:
        """This request as one JSON object."""
        # `asdict` copies whatever it finds, token by token.
        manners = [{**vars(manner), "sampling": vars(manner.sampling)} for manner in self.manners]
        values = {**vars(self), "sampling": vars(self.sampling), "manners": manners}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> GenerationRequest:
        """Read what `to_json` wrote.

        Raises:
            InvalidInputError: `text` is no such object (a caller talked to `gpt_decoder` without `text_frontend`).
        """
        try:
            values = json.loads(text)
            request = cls(
                prompts=tuple(tuple(_integers(ids)) for ids in values.pop("prompts")),
                texts=tuple(str(sentence) for sentence in values.pop("texts")),
                pauses=tuple(_integers(values.pop("pauses"))),
                fewest_tokens=tuple(_integers(values.pop("fewest_tokens"))),
                most_tokens=tuple(_integers(values.pop("most_tokens"))),
                sample_codes=tuple(tuple(_integers(codes)) for codes in values.pop("sample_codes")),
                sampling=SamplingOptions(**values.pop("sampling")),
                manners=tuple(map(Manner.from_values, values.pop("manners"))),
                turn_manners=tuple(_integers(values.pop("turn_manners"))),
                turns=tuple(_integers(values.pop("turns"))),
                **values,
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError("generation", text, "what text_frontend writes") from error
        request._check()
        return request

    def _check(self) -> None:
        allowed = "what text_frontend writes"
        least = 0 if self.goes_on or self.follows else 1
        fits = least <= len(self.prompts) <= MAX_SENTENCES and len(self.prompts) == len(self.texts)
        if not fits or not all(self.prompts):
            raise InvalidInputError(
                "generation", self.prompts, f"{allowed}: a prompt for each of {least} to {MAX_SENTENCES} texts"
            )
        most = MAX_SILENCE_S * SAMPLE_RATE
        if len(self.pauses) != len(self.texts) + 1 or not all(0 <= pause <= most for pause in self.pauses):
            allowed = f"{allowed}: a pause of 0 to {most} samples before the first text and after each"
            raise InvalidInputError("generation", self.pauses, allowed)
        fewest = self.fewest_tokens
        if len(fewest) != len(self.texts) or not all(0 <= number <= MAX_NEW_TOKENS for number in fewest):
            raise InvalidInputError("generation", fewest, f"{allowed}: 0 to {MAX_NEW_TOKENS} fewest tokens a text")
        slowest = self.most_tokens
        if len(slowest) != len(self.texts) or not all(1 <= number <= MAX_NEW_TOKENS for number in slowest):
            raise InvalidInputError("generation", slowest, f"{allowed}: 1 to {MAX_NEW_TOKENS} most tokens a text")
        self._check_manners(allowed)
        for name in ("redraw_long", "refine", "refine_only", "goes_on", "follows", "word_times"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError("generation", {name: getattr(self, name)}, allowed)
        if self.priority not in PRIORITIES:
            raise InvalidInputError("generation", {"priority": self.priority}, allowed)
        for text in self.texts:
            _check_unicode("generation", text)
        _check_integer("seed", self.seed, least=0, most=INT63_MAX)
        if self.deadline_ns is not None:
            _check_integer("deadline_ns", self.deadline_ns, least=0, most=INT63_MAX)

    def _check_manners(self, allowed: str) -> None:
        owners: list[GenerationRequest | Manner] = [self, *self.manners]
        for owner in owners:
            for name, kind in (("has_speaker", bool), ("prompt", str), ("sample_text", str)):
                if not isinstance(getattr(owner, name), kind):
                    raise InvalidInputError("generation", {name: getattr(owner, name)}, allowed)
            for text in (owner.prompt, owner.sample_text):
                _check_unicode("generation", text)
        places = (self.turn_manners, len(self.manners)), (self.turns, len(self.turn_manners))
        if len(self.turns) != (len(self.texts) if self.manners else 0) or not all(
            0 <= place < most for numbers, most in places for place in numbers
        ):
            raise InvalidInputError("generation", self.turns, f"{allowed}: a turn of each text, if there are turns")
        if self.manners and (self.goes_on or self.follows):
            raise InvalidInputError("generation", self.turns, f"{allowed}: no turns in a text that comes in parts")
        for manner in self.manners:
            _check_integer("voice", manner.voice, least=0, most=MAX_VOICES - 1)
            _check_text("name", manner.name, most=MAX_NAME_CHARACTERS)


def deadline_of(generation: str) -> float | None:
    """The `time.monotonic()` past which a request is given up, from its `GenerationRequest` as JSON; None for none.

    Raises:
        InvalidInputError: it is no such JSON.
    """
    try:
        deadline_ns = json.loads(generation)["deadline_ns"]
        return None if deadline_ns is None else float(deadline_ns) / 1e9
    except (KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError("generation", generation, "what text_frontend writes") from error


def _integers(values: list[object]) -> list[int]:
    if not all(type(value) is int for value in values):
        raise ValueError("token ids are integers")
    return values  # type: ignore[return-value]


def request_from_inputs(values: Mapping[str, object]) -> SynthesisRequest:
    """The checked request of `values`: contract input names to Python values, absent ones left to their defaults.

    Raises:
        InvalidInputError: an unknown input, `text` missing, or a value out of its range.
    """
    known = {field.name for field in fields(SynthesisRequest)}
    for name, value in values.items():
        if name not in known:
            raise InvalidInputError(name, value, f"one of the inputs {', '.join(sorted(known))}")
    if "text" not in values and not values.get("turns"):
        raise InvalidInputError("text", None, "1 or more characters")
    return SynthesisRequest(**values)  # type: ignore[arg-type]
