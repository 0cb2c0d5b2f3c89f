"""Prompts, and what a batch has of recordings."""

import json
import random
import re
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from chattts_serving.audio import SAMPLES_PER_TOKEN
from export.synthetic_tokenizer import write_tokenizer
from tests.training.spoken import BYE, HELLO
from training import batches
from training.batches import AHEAD, CURRICULUM, SHORTEST, Corpus, piece_ends, prompt_of, reach
from training.sentences import everyday
from training.vocabulary import IDS, VOCABULARY, ids_of


def corpus_of(folder, longest=100, **options):
    return Corpus(folder, ["slt"], seed=0, longest=longest, tokens=1_000, seen=0, **options)


def test_a_prompt_is_what_the_server_makes_and_knows_its_words():
    ids, owners, ends = prompt_of(HELLO, random.Random(0))
    assert ids[:2] == [IDS["[Stts]"], IDS["[spk_emb]"]]
    assert ids[-1] == IDS["[Ptts]"]
    comma = next(one for one in ids if one in (IDS[","], IDS["[uv_break]"]))
    words = [*ids_of("hello"), comma, *ids_of("my"), *ids_of("friend"), IDS["."]]
    assert [ids[owner] for owner in owners] == words
    assert len(ends) == len(owners)
    assert set(HELLO.ends) <= set(ends)
    assert ends == sorted(ends)


def test_a_word_is_read_as_the_tokenizer_cuts_it(tmp_path):
    write_tokenizer(VOCABULARY, tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    for word in ["the", "hello", "strengths", "xylophone", "zzz", *re.findall("[a-z]+", " ".join(everyday()).lower())]:
        assert list(ids_of(word)) == tokenizer.encode(word, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        ([2, 4, 6, 8, 10], [6, 12]),  # two sounds in the first piece and three in the second
        ([2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [6, 12]),  # twice as many are said
        ([2], [2, 12]),  # one alone
    ],
)
def test_pieces_share_the_sounds_of_their_word(monkeypatch, begins, ends):
    monkeypatch.setitem(batches.SOUNDS, VOCABULARY[200], ("s", "t"))
    monkeypatch.setitem(batches.SOUNDS, VOCABULARY[201], ("ow", "n", "z"))
    assert piece_ends([200, 201], begins, 12) == ends


def test_a_batch_has_each_recording_at_its_place(folder):
    batch = next(iter(corpus_of(folder)))
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
    batch = next(iter(corpus_of(folder)))
    row = batch.lengths.tolist().index(30)
    now, later = (batch.ids[row][batch.places[row, :30, head]].tolist() for head in range(len(AHEAD)))
    (see,), (you,) = ids_of("see"), ids_of("you")
    assert now == [see] * 12 + [you] * 13 + [IDS["."]] * 5
    assert later == now[AHEAD[1] :] + [IDS["."]] * AHEAD[1]


def test_codes_are_enough_where_there_are_no_recordings(folder):
    (folder / "slt.i16").unlink()
    batch = next(iter(corpus_of(folder)))
    assert batch.audio.shape == (2, 0)
    assert sorted(batch.lengths.tolist()) == [30, 34]


def test_short_utterances_come_first():
    assert reach(0, 420) == SHORTEST
    assert SHORTEST < reach(CURRICULUM // 2, 420) < 420
    assert reach(CURRICULUM, 420) == reach(9 * CURRICULUM, 420) == 420


def test_long_utterances_come_as_often_as_short_ones(folder, monkeypatch):
    monkeypatch.setattr(batches, "is_for_evaluation", lambda _: False)
    lines = [json.dumps(asdict(replace(HELLO, tokens=tokens))) + "\n" for tokens in (8, 64)]
    (folder / "slt.jsonl").write_text("".join(300 * lines))
    corpus = Corpus(folder, ["slt"], seed=0, longest=100, tokens=640, seen=CURRICULUM)
    lengths = torch.cat([batch.lengths for batch in islice(corpus, 100)])
    assert 0.35 < (lengths == 64).float().mean() < 0.65


def test_an_utterance_is_learnt_or_evaluated(folder, monkeypatch):
    monkeypatch.setattr(batches, "is_for_evaluation", lambda one: one.tokens == 30)
    assert next(iter(corpus_of(folder))).lengths.tolist() == [34]
    assert next(iter(corpus_of(folder, held_out=True))).lengths.tolist() == [30]
    with pytest.raises(ValueError, match="no utterance of slt with up to 3 audio tokens"):
        corpus_of(folder, longest=3)


def test_the_first_pass_is_to_make_pauses_of_commas(folder, monkeypatch):
    monkeypatch.setattr(batches, "REFINED_SHARE", 1)
    batch = next(iter(corpus_of(folder)))
    row = batch.lengths.tolist().index(34)
    hello, rest = ids_of("hello"), [*ids_of("my"), *ids_of("friend"), IDS["."]]
    text = [*hello, IDS[","], *rest]
    refined = [*hello, IDS["[uv_break]"], *rest, IDS["[Ebreak]"]]
    whole = [IDS["[Sbreak]"], *text, IDS["[Pbreak]"], *refined]
    assert batch.refining[row, : len(whole)].tolist() == whole
    assert batch.refining[row][batch.is_refined[row]].tolist() == refined


def test_the_first_pass_learns_to_keep_words_that_make_no_sense(folder, monkeypatch):
    monkeypatch.setattr(batches, "REFINED_SHARE", 1)
    batch = next(iter(corpus_of(folder)))
    for row in range(len(batch.lengths), len(batch.refining)):
        refined = batch.refining[row][batch.is_refined[row]].tolist()
        prompt = batch.refining[row][~batch.is_refined[row]].tolist()
        text = prompt[1 : prompt.index(IDS["[Pbreak]"])]
        assert refined == [IDS["[uv_break]"] if token == IDS[","] else token for token in text] + [IDS["[Ebreak]"]]
    assert len(batch.refining) == 2 * len(batch.lengths)
