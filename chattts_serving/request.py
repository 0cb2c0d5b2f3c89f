"""What a caller may ask for, and what the engine is told: two frozen dataclasses, each checked once.

`SynthesisRequest` is the contract of the models `chattts` and `chattts_stream`, checked where a request enters.
`GenerationRequest` is what `text_frontend` makes of it for `gpt_decoder`; it crosses between the two as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from chattts_serving.errors import InvalidInputError

MAX_TEXT_CHARACTERS = 20_000
MAX_PROMPT_CHARACTERS = 1_000  # refine_prompt and prompt: a handful of control tags
MAX_SAMPLE_TEXT_CHARACTERS = 1_000
MAX_SPEAKER_CHARACTERS = 8_192  # a ChatTTS speaker string has about 900
MAX_SPEAKER_SAMPLE_CHARACTERS = 32_768  # a spk_smp string of 30 s has about 6,500
MAX_NEW_TOKENS = 2_048  # per sentence, 43.7 s of audio
MAX_REFINED_TOKENS = 384  # per sentence, ChatTTS's own limit
MAX_DEADLINE_MS = 3_600_000
MAX_PAUSE_TOKENS = 128  # 2.7 s between two sentences
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
        text: what to say, 1 to 20,000 characters, control tags allowed.
        speaker: ChatTTS speaker string; "" samples a voice from `seed`, or leaves it to `speaker_sample`.
        speaker_sample: ChatTTS `spk_smp` string (codes of a reference recording) or "".
        sample_text: the transcript of `speaker_sample`.
        seed: >= 0; None lets the server draw one. It decides the sampled voice and every token.
        skip_refine: speak the text as it stands, without the refining pass.
        refine_only: answer the refined text, without audio; not together with `skip_refine`.
        normalize: write out numbers, dates and units as words.
        strict_tags: refuse every bracketed word of `text` that is no control tag, instead of speaking it.
        redraw_long: draw a sentence again that goes on long after its text can have been said, or to `max_new_tokens`.
        refine_prompt: control tags for the refining pass ([oral_2][laugh_0][break_6]).
        prompt: control tags for the audio pass ([speed_5]).
        language: "zh", "en", or "" to detect it per sentence.
        deadline_ms: give up after this many milliseconds; None for no limit.
        priority: "interactive", or "batch" to let those go first.

    Raises:
        InvalidInputError: a value is out of its range.
    """

    text: str = ""
    speaker: str = ""
    speaker_sample: str = ""
    sample_text: str = ""
    seed: int | None = None
    skip_refine: bool = False
    refine_only: bool = False
    normalize: bool = True
    strict_tags: bool = False
    redraw_long: bool = False
    refine_prompt: str = ""
    prompt: str = "[speed_5]"
    language: str = ""
    deadline_ms: int | None = None
    priority: str = PRIORITIES[0]

    def __post_init__(self) -> None:
        """Check every range."""
        super().__post_init__()
        _check_text("text", self.text, least=1, most=MAX_TEXT_CHARACTERS)
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
        for name in ("skip_refine", "refine_only", "normalize", "strict_tags", "redraw_long"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(name, getattr(self, name), "true or false")
        if self.refine_only and self.skip_refine:
            raise InvalidInputError("refine_only", True, "false together with 'skip_refine'")

    @property
    def sampling(self) -> SamplingOptions:
        """The sampling options alone."""
        return SamplingOptions(**{field.name: getattr(self, field.name) for field in fields(SamplingOptions)})


@dataclass(frozen=True)
class GenerationRequest:
    """One request as `gpt_decoder` works on it.

    Attributes:
        prompts: token ids of each sentence's prompt for the first pass (refining, or audio where `skip_refine`).
        texts: the normalised sentences, one per prompt.
        pauses: audio tokens of silence after each sentence, 0 to MAX_PAUSE_TOKENS; the last one's is not spoken.
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
        goes_on: whether these are the first sentences of a text, or further ones, and others may follow.
        pause_before: of further ones: audio tokens of silence after the sentence before them.
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
    goes_on: bool = False
    pause_before: int = 0

    def to_json(self) -> str:
        """This request as one JSON object."""
        # `asdict` copies whatever it finds, token by token.
        return json.dumps({**vars(self), "sampling": vars(self.sampling)}, ensure_ascii=False, separators=(",", ":"))

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
                **values,
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError("generation", text, "what text_frontend writes") from error
        request._check()
        return request

    def _check(self) -> None:
        allowed = "what text_frontend writes"
        _check_integer("pause_before", self.pause_before, least=0, most=MAX_PAUSE_TOKENS)
        least = 0 if self.goes_on or self.pause_before else 1
        fits = least <= len(self.prompts) <= MAX_SENTENCES and len(self.prompts) == len(self.texts)
        if not fits or not all(self.prompts):
            raise InvalidInputError(
                "generation", self.prompts, f"{allowed}: a prompt for each of {least} to {MAX_SENTENCES} texts"
            )
        if len(self.pauses) != len(self.texts) or not all(0 <= pause <= MAX_PAUSE_TOKENS for pause in self.pauses):
            raise InvalidInputError(
                "generation", self.pauses, f"{allowed}: a pause of 0 to {MAX_PAUSE_TOKENS} tokens a text"
            )
        fewest = self.fewest_tokens
        if len(fewest) != len(self.texts) or not all(0 <= number <= MAX_NEW_TOKENS for number in fewest):
            raise InvalidInputError("generation", fewest, f"{allowed}: 0 to {MAX_NEW_TOKENS} fewest tokens a text")
        most = self.most_tokens
        if len(most) != len(self.texts) or not all(1 <= number <= MAX_NEW_TOKENS for number in most):
            raise InvalidInputError("generation", most, f"{allowed}: 1 to {MAX_NEW_TOKENS} most tokens a text")
        bools = ("redraw_long", "refine", "refine_only", "has_speaker", "goes_on")
        for name, kind in (*((name, bool) for name in bools), ("prompt", str), ("sample_text", str)):
            if not isinstance(getattr(self, name), kind):
                raise InvalidInputError("generation", {name: getattr(self, name)}, allowed)
        if self.priority not in PRIORITIES:
            raise InvalidInputError("generation", {"priority": self.priority}, allowed)
        for text in (self.prompt, self.sample_text, *self.texts):
            _check_unicode("generation", text)
        _check_integer("seed", self.seed, least=0, most=INT63_MAX)
        if self.deadline_ns is not None:
            _check_integer("deadline_ns", self.deadline_ns, least=0, most=INT63_MAX)


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
    if "text" not in values:
        raise InvalidInputError("text", None, "1 or more characters")
    return SynthesisRequest(**values)  # type: ignore[arg-type]
