"""Recordings and the prompts that go with them; flite itself is Debian's and not needed here."""

import json
import random
from dataclasses import asdict

import numpy as np
import pytest

from chattts_serving.audio import SAMPLES_PER_TOKEN
from training import corpus
from training.corpus import Utterance, utterances
from training.language import AHEAD, Corpus, prompt_of
from training.vocabulary import IDS

HELLO = Utterance("hello, my friend.", ends=[10, 12, 18, 30, 34], start=0, tokens=34)
BYE = Utterance("see you.", ends=[12, 25, 30], start=34, tokens=30)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slt.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in (HELLO, BYE)))
    rng = np.random.default_rng(0)
    rng.integers(-9_000, 9_000, 64 * SAMPLES_PER_TOKEN, np.int16).tofile(tmp_path / "slt.i16")
    np.save(tmp_path / "slt.codes.npy", rng.integers(0, 625, (64, 4)).astype(np.uint16))
    return tmp_path


def test_a_prompt_is_what_the_server_makes_and_knows_its_words():
    ids, owners = prompt_of(HELLO, random.Random(0))
    words = [IDS["hello"], {IDS[","], IDS["[uv_break]"]}, IDS["my"], IDS["friend"], IDS["."]]
    assert ids[:2] == [IDS["[Stts]"], IDS["[spk_emb]"]]
    assert ids[-1] == IDS["[Ptts]"]
    for owner, word in zip(owners, words, strict=True):
        assert ids[owner] in (word if isinstance(word, set) else {word})


def test_a_batch_has_each_recording_at_its_place(folder):
    batch = next(Corpus(folder, ["slt"], seed=0, longest=100).batches(1_000))
    assert sorted(batch.lengths.tolist()) == [30, 34]
    codes = np.load(folder / "slt.codes.npy")
    samples = np.fromfile(folder / "slt.i16", np.int16)
    for row, length in enumerate(batch.lengths.tolist()):
        one = HELLO if length == 34 else BYE
        np.testing.assert_array_equal(batch.codes[row, :length], codes[one.start : one.start + length])
        part = samples[one.start * SAMPLES_PER_TOKEN : (one.start + length) * SAMPLES_PER_TOKEN]
        np.testing.assert_allclose(batch.audio[row, : len(part)] * 32768, part, atol=0.01)
        assert batch.ids[row, -1] == IDS["[Ptts]"]
        assert batch.ids[row][batch.real[row]][0] == IDS["[Stts]"]


def test_guided_heads_are_to_look_at_the_word_that_is_said_and_at_the_next(folder):
    batch = next(Corpus(folder, ["slt"], seed=0, longest=100).batches(1_000))
    row = batch.lengths.tolist().index(30)
    now, later = (batch.ids[row][batch.places[row, :30, head]].tolist() for head in range(len(AHEAD)))
    assert now == [IDS["see"]] * 12 + [IDS["you"]] * 13 + [IDS["."]] * 5
    assert later == now[AHEAD[1] :] + [IDS["."]] * AHEAD[1]


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
    monkeypatch.setattr(corpus, "speak", lambda *_: (np.full(2 * SAMPLES_PER_TOKEN, 7, np.int16), [1, 2]))
    with (folder / "slt.i16").open("ab") as file:
        file.write(b"half a recording")
    corpus.make(folder, "slt", ["see you.", "see you?", "good night!"], processes=1)
    assert [one.text for one in utterances(folder, "slt")] == [HELLO.text, BYE.text, "see you", "good night."]
    samples = corpus.recordings(folder, "slt")
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


def test_the_first_pass_is_to_make_pauses_of_commas(folder):
    batch = next(Corpus(folder, ["slt"], seed=0, longest=100).batches(1_000))
    row = batch.lengths.tolist().index(34)
    text = [IDS[piece] for piece in ("hello", ",", "my", "friend", ".")]
    refined = [text[0], IDS["[uv_break]"], *text[2:], IDS["[Ebreak]"]]
    whole = [IDS["[Sbreak]"], *text, IDS["[Pbreak]"], *refined]
    assert batch.refining[row, : len(whole)].tolist() == whole
    assert batch.refining[row][batch.is_refined[row]].tolist() == refined


def test_the_first_pass_learns_to_keep_words_that_make_no_sense(folder):
    batch = next(Corpus(folder, ["slt"], seed=0, longest=100).batches(1_000))
    for row in range(len(batch.lengths), len(batch.refining)):
        refined = batch.refining[row][batch.is_refined[row]].tolist()
        prompt = batch.refining[row][~batch.is_refined[row]].tolist()
        text = prompt[1 : prompt.index(IDS["[Pbreak]"])]
        assert refined == [IDS["[uv_break]"] if token == IDS[","] else token for token in text] + [IDS["[Ebreak]"]]
    assert len(batch.refining) == 2 * len(batch.lengths)
