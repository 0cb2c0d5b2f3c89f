"""Recordings, and when their words are said; flite itself is Debian's and not needed here."""

import numpy as np
import pytest

from chattts_serving.audio import SAMPLES_PER_TOKEN
from tests.training.spoken import BYE, HELLO
from training import corpus
from training.utterances import read_text, recordings, utterances


@pytest.mark.parametrize(
    ("expected", "found", "places"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "axc", [0, 1, 2]),
        ("abcd", "abd", [0, 1, 3]),
        ("abc", "abxc", [0, 1, 1, 2]),
        ("", "", []),
    ],
)
def test_sounds_belong_to_the_words_that_they_are_most_like(expected, found, places):
    assert corpus._align(list(expected), list(found)) == places


def test_a_corpus_goes_on_where_it_was_stopped(folder, monkeypatch):
    monkeypatch.setattr(corpus, "ProcessPoolExecutor", Here)
    spoken = (np.full(2 * SAMPLES_PER_TOKEN, 7, np.int16), [1, 2], [[0], [1]])
    monkeypatch.setattr(corpus, "speak", lambda *_: spoken)
    with (folder / "slt.i16").open("ab") as file:
        file.write(b"half a recording")
    corpus.make(folder, "slt", ["see you.", "see you?", "good night!"], processes=1)
    assert [one.text for one in utterances(folder, "slt")] == [HELLO.text, BYE.text, "see you", "good night."]
    samples = recordings(folder, "slt")
    assert len(samples) == 68 * SAMPLES_PER_TOKEN
    assert (samples[64 * SAMPLES_PER_TOKEN :] == 7).all()


class Here:
    """A pool of no processes."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, *arguments, chunksize):
        return map(function, *arguments)


def test_every_phone_has_a_beginning_though_flite_says_it_otherwise():
    """It leaves one out, and pauses after the comma."""
    sounds = [("s", 0.1, 0.2), ("iy", 0.2, 0.4), ("hh", 0.6, 0.7), ("m", 0.7, 0.8)]
    ends, begins = corpus._timings("See, him.", sounds)
    assert ends == [0.4, 0.6, 0.8, 0.8]
    assert begins == [[0.1, 0.2], [0.6, 0.6, 0.7]]


def test_the_model_reads_small_letters_without_apostrophes():
    assert read_text("Don't you know Mary's?") == "dont you know marys"
