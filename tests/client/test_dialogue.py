"""Dialogues: lines of text to turns, and turns from the command line to the server and back."""

from __future__ import annotations

import json

import pytest
from chattts_client import InvalidInputError, Sentence, TTSClient
from chattts_client.dialogue import turns_from, voices_from

from tests.client.test_command_line import run

SCRIPT = """\
Anna: Who is there?

bert：It is me.
  And: nobody else.
Nor anybody.
Anna:  Come in.
"""
TURNS = [
    {"name": "Anna", "text": "Who is there?", "speaker": "Anna"},
    {"name": "bert", "text": "It is me.\nAnd: nobody else.\nNor anybody.", "speaker": "bert"},
    {"name": "Anna", "text": "Come in.", "speaker": "Anna"},
]


def test_each_line_with_a_name_is_a_turn_and_others_go_on_with_it():
    assert turns_from(SCRIPT, {}) == TURNS


def test_names_have_the_voices_that_they_are_given(tmp_path):
    (tmp_path / "clone.txt").write_text("一二三\nas I said\n", encoding="utf-8")
    (tmp_path / "bare.txt").write_text("一二三\n", encoding="utf-8")
    voices = voices_from(["Anna=slt:2+rms:1", f"bert=@{tmp_path / 'clone.txt'}", f"Zoë=@{tmp_path / 'bare.txt'}"])
    assert voices == {
        "Anna": {"speaker": "slt:2+rms:1"},
        "bert": {"speaker_sample": "一二三", "sample_text": "as I said"},
        "Zoë": {"speaker_sample": "一二三"},
    }
    first, second, _ = turns_from(SCRIPT, voices)
    assert (first["speaker"], second["speaker_sample"], "speaker" in second) == ("slt:2+rms:1", "一二三", False)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", "1 or more lines NAME: TEXT"),
        ("\n \n", "1 or more lines NAME: TEXT"),
        ("no name here", "lines NAME: TEXT; line 1 has no name"),
        ("Anna:", "turns with a text each"),
        ("Anna:\nbert: Hello", "turns with a text each"),
    ],
)
def test_what_is_no_dialogue_is_refused(text, allowed):
    with pytest.raises(InvalidInputError, match=f"turns.*{allowed}"):
        turns_from(text, {})


@pytest.mark.parametrize("voice", ["Anna", "Anna=", "=slt"])
def test_what_gives_no_name_a_voice_is_refused(voice):
    with pytest.raises(InvalidInputError, match=f"'voice' is '{voice}'; allowed is NAME=VOICE"):
        voices_from([voice])


def test_a_dialogue_is_spoken_into_one_file_with_names_in_its_subtitles(server, tmp_path):
    (tmp_path / "talk.txt").write_text("Anna: Hello\nbert: Hi\n  and bye\nbert: So\n", encoding="utf-8")
    flags = ["--turns", tmp_path / "talk.txt", "--voice", "bert=rms", "--srt", tmp_path / "talk.srt", "--json"]
    status, stdout, _ = run(server, *flags, "-o", tmp_path / "talk.wav")
    assert status == 0
    report = json.loads(stdout)
    seen = json.loads(report["refined_text"])
    assert "text" not in seen
    assert json.loads(seen["turns"]["value"]) == [
        {"name": "Anna", "text": "Hello", "speaker": "Anna"},
        {"name": "bert", "text": "Hi\nand bye", "speaker": "rms"},
        {"name": "bert", "text": "So", "speaker": "rms"},
    ]
    assert {(one["turn"], one["name"]) for one in report["sentences"]} == {(0, "Anna"), (1, "bert"), (2, "bert")}
    cues = (tmp_path / "talk.srt").read_text(encoding="utf-8").split("\n\n")
    assert [cue.split("\n", 2)[2] for cue in cues if cue] == ["Anna: Hello", "bert: Hi and bye", "bert: So"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--turns", "missing.txt"], "No such file"),
        (["--voice", "a=b", "Hello"], "'voice' is 'a=b'; allowed is none without --turns"),
        (["--turns", "-", "Hello"], "'turns' is '-'; allowed is none beside texts"),
        (["--turns", "-"], "allowed is 1 or more lines NAME: TEXT"),
        (["--turns", "-", "--voice", "a"], "'voice' is 'a'; allowed is NAME=VOICE"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(server, tmp_path, flags, message):
    status, _, stderr = run(server, *flags, "-o", tmp_path / "out.wav")
    assert status == 2
    assert message in stderr


def test_the_client_hears_who_speaks(server):
    with TTSClient(server.grpc_url) as client:
        speech = client.synthesize(turns=[{"text": "ab", "name": "Anna", "speaker": "slt"}, {"text": "c"}])
        chunks = list(client.stream(turns=[{"text": "ab", "name": "Anna", "speaker": "slt"}, {"text": "c"}]))
    assert speech.sentences == (
        Sentence("ab", 0.0, pytest.approx(2 * 512 / 24_000), 2, "stop", 0, "Anna"),
        Sentence("c", pytest.approx(3 * 512 / 24_000), pytest.approx(4 * 512 / 24_000), 1, "stop", 1, ""),
    )
    assert tuple(sentence for chunk in chunks for sentence in chunk.sentences) == speech.sentences
