"""What is wrong with answers in which one thing is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from chattts_client import Chunk, Sentence, Speech

from chattts_serving.audio import SAMPLE_RATE
from tests.soak.answers import CLOSE, difference, fault_of, fault_of_chunks

# Two sentences of 10 and 20 tokens; 512 samples a token but for a last frame of 256, and 12 tokens of silence.
ENDS = (10 * 512 - 256, 22 * 512, 42 * 512 - 256)
SENTENCES = (
    Sentence("one", 0.0, ENDS[0] / SAMPLE_RATE, 10, "stop"),
    Sentence("two", ENDS[1] / SAMPLE_RATE, ENDS[2] / SAMPLE_RATE, 20, "length"),
)
AUDIO = np.random.default_rng(0).normal(0, 0.1, ENDS[2]).astype(np.float32)
SPEECH = Speech(AUDIO, SAMPLE_RATE, 1, "voice", "one\ntwo", 30, SENTENCES)


def chunks():
    """SPEECH in three chunks, the last one without samples."""
    empty = {"num_tokens": 0, "refined_text": "", "sentences": (), "is_final": False}
    fields = {"sample_rate": SAMPLE_RATE, "seed": 1, "speaker": "voice"}
    return [
        Chunk(**fields | empty, audio=AUDIO[:1_000], index=0),
        Chunk(
            **fields | empty | {"num_tokens": 30, "refined_text": "one\ntwo", "sentences": SENTENCES},
            audio=AUDIO[1_000:],
            index=1,
        ),
        Chunk(**fields | empty | {"is_final": True}, audio=AUDIO[:0], index=2),
    ]


def with_sentence(place, **changes):
    sentences = list(SENTENCES)
    sentences[place] = replace(sentences[place], **changes)
    return {"sentences": tuple(sentences)}


def test_a_right_answer_has_no_fault():
    assert fault_of(SPEECH, most=20) is None
    assert fault_of_chunks(chunks(), most=20) is None


BROKEN = AUDIO.copy()
BROKEN[700] = np.nan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_rate": 16_000}, "sample rate"),
        ({"audio": BROKEN}, "not finite"),
        ({"audio": AUDIO[:-1]}, "of 21247"),
        ({"audio": np.append(AUDIO, AUDIO[:256])}, "of 21504"),
        ({"refined_text": "one two"}, "refined text"),
        ({"num_tokens": 31}, "31 tokens"),
        ({"sentences": ()}, "tokens of the answer|refined text"),
        ({"sentences": (), "refined_text": "", "num_tokens": 0}, "no sentences"),
        (with_sentence(0, end=ENDS[0] / SAMPLE_RATE + 0.01), "has 5104 samples"),
        (with_sentence(0, finish_reason="length"), "cut at 10 tokens, not at 20"),
        (
            with_sentence(1, start=(ENDS[1] - 512) / SAMPLE_RATE, end=(ENDS[2] - 512) / SAMPLE_RATE),
            r"silence between two sentences has \[5888\]",
        ),
    ],
)
def test_each_fault_is_found(changes, words):
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(fault_of(replace(SPEECH, **changes), most=20))


def test_too_many_and_too_few_tokens_are_found():
    assert "has 20 tokens; asked for were 0 to 19" in fault_of(SPEECH, most=19)
    assert "has 10 tokens; asked for were 15 to 20" in fault_of(SPEECH, least=15, most=20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda these: these[:2], "last one"),
        (lambda these: [these[0], these[2]], "numbers"),
        (lambda these: [these[1], these[0], these[2]], "numbers"),
        (lambda these: [these[0], these[1], replace(these[2], audio=AUDIO[:1])], "of 21249"),
    ],
)
def test_each_fault_of_chunks_is_found(change, words):
    assert words in fault_of_chunks(change(chunks()), most=20)


def test_a_control_sentence_that_changes_is_found():
    near = replace(SPEECH, audio=AUDIO + np.float32(CLOSE / 4))
    assert difference(replace(SPEECH), SPEECH, close=0.0) is None
    assert difference(near, SPEECH, close=CLOSE) is None
    assert "differs by" in difference(near, SPEECH, close=0.0)
    assert "differs by" in difference(replace(SPEECH, audio=-AUDIO), SPEECH, close=CLOSE)
    assert "other tokens" in difference(replace(SPEECH, **with_sentence(0, num_tokens=11)), SPEECH, close=CLOSE)
    assert "voice" in difference(replace(SPEECH, speaker="another"), SPEECH, close=CLOSE)
    assert "samples" in difference(replace(SPEECH, audio=AUDIO[:-1]), SPEECH, close=CLOSE)
