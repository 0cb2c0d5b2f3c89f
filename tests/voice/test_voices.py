"""The voice library: files, Triton's parameters, and what the input `speaker` may say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.request import INT63_MAX, SynthesisRequest
from chattts_serving.text.frontend import Prepared, TextFrontend
from chattts_serving.voice import base16384
from chattts_serving.voice.speaker import SpeakerStatistics, decode_speaker, encode_speaker, normalize
from chattts_serving.voice.voices import (
    MAX_DESCRIPTION_CHARACTERS,
    MAX_FILE_BYTES,
    MAX_NAMES_SHOWN,
    Voice,
    VoiceLibrary,
    library_text,
    load_voices,
    read_library,
    voice_path,
)
from export.chattts_package import speaker_statistics
from tests.frontend_assets import make_frontend_assets
from tests.voices import encode_sample, pack

HIDDEN = 768
SEVEN = Voice("seven", "Sampled by seed 7.", seed=7)


def random_vector(seed: int, size: int = HIDDEN) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float16)


def written(seed: int, size: int = HIDDEN) -> Voice:
    return Voice("written", "From a string.", speaker=encode_speaker(random_vector(seed, size)))


@pytest.fixture(scope="module")
def statistics() -> SpeakerStatistics:
    return SpeakerStatistics.parse(speaker_statistics(), HIDDEN)


@pytest.fixture(scope="module")
def library(statistics) -> VoiceLibrary:
    return VoiceLibrary([SEVEN, written(1)], statistics)


@pytest.fixture(scope="module")
def frontend(tmp_path_factory) -> TextFrontend:
    return TextFrontend(make_frontend_assets(tmp_path_factory.mktemp("assets")), [SEVEN])


def prepare(frontend: TextFrontend, **values) -> Prepared:
    return frontend.prepare(SynthesisRequest(text="Hello", **values))


# One voice


@pytest.mark.parametrize("voice", [SEVEN, written(1), Voice("a-b_9", "说中文的人 “quoted” \\ 'x'", seed=INT63_MAX)])
def test_json_keeps_a_voice(voice):
    assert Voice.from_json(voice.name, voice.to_json()) == voice


@pytest.mark.parametrize("name", ["", "A", "a b", "a.b", "../x", "a/b", "ü", "声", "a\n", "x" * 65])
def test_a_name_outside_the_pattern_is_refused(name):
    with pytest.raises(ConfigError, match=r"voice name is .* allowed is 1 to 64"):
        Voice(name, "text", seed=1)


@pytest.mark.parametrize(
    "text", ["", "x" * (MAX_DESCRIPTION_CHARACTERS + 1), "two\nlines", "bell\a", "\ud800", None, 5]
)
def test_a_description_that_is_no_line_of_text_is_refused(text):
    with pytest.raises(ConfigError, match="description of voice 'x'"):
        Voice("x", text, seed=1)


@pytest.mark.parametrize("values", [{}, {"speaker": "", "seed": None}, {"speaker": SEVEN.name, "seed": 1}])
def test_neither_or_both_of_speaker_and_seed_are_refused(values):
    with pytest.raises(ConfigError, match="must have one of 'speaker', 'seed' and 'mixture'"):
        Voice("x", "text", **values)


@pytest.mark.parametrize("seed", [-1, INT63_MAX + 1, 1.0, True, "7", [7]])
def test_a_seed_outside_its_range_is_refused(seed):
    with pytest.raises(ConfigError, match="seed of voice 'x'"):
        Voice("x", "text", seed=seed)


BAD_SPEAKERS = {
    "words": "Alice",
    "bomb": base16384.encode(pack(bytes(50_000_000))),
    "zero": encode_speaker(np.zeros(HIDDEN, np.float16)),
    "infinite": encode_speaker(np.full(HIDDEN, np.inf, np.float16)),
    "one NaN": encode_speaker(np.where(np.arange(HIDDEN) == 5, np.nan, 1).astype(np.float16)),
    "norm overflows": encode_speaker(np.full(HIDDEN, 60_000, np.float16)),
    "too long": "一" * 9_000,
}


@pytest.mark.parametrize("speaker", [*BAD_SPEAKERS.values(), 5, ["x"]])
def test_a_speaker_that_no_checkpoint_could_take_is_refused(speaker):
    with pytest.raises(ConfigError, match="speaker of voice 'x'"):
        Voice("x", "text", speaker=speaker)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "7", "{}", "[" * 100_000, '{"seed": 1}', '{"description": "a"}'),
        *('{"description": "a", "seed": 1, "speaker": ""}', '{"description": "a", "seed": 1, "volume": 2}'),
    ],
    ids=range(10),
)
def test_json_that_is_no_voice_is_refused(text):
    with pytest.raises(ConfigError, match="voice 'x'"):
        Voice.from_json("x", text)


@pytest.mark.parametrize("voice", [SEVEN, written(1), written(1, 64)])
def test_a_voice_knows_the_hidden_size_that_it_fits(voice):
    assert voice.hidden_size == (len(decode_speaker(voice.speaker)) if voice.speaker else None)


# Files


def write(folder, name: str, values: object) -> None:
    voice_path(folder, name).write_text(json.dumps(values), "utf-8")


@pytest.fixture
def folder(tmp_path):
    """A library with the default voice."""
    write(tmp_path, "default", {"description": "d", "seed": 0})
    return tmp_path


def test_the_files_of_a_folder_are_its_voices(folder):
    write(folder, "written", {"description": "From a string.", "speaker": written(1).speaker})
    (folder / "README.md").write_text("no voice")
    assert load_voices(folder) == (Voice("default", "d", seed=0), written(1))


def test_a_folder_without_the_default_voice_is_refused(folder):
    voice_path(folder, "default").rename(voice_path(folder, "other"))
    with pytest.raises(ConfigError, match=r"has no default\.json"):
        load_voices(folder)


@pytest.mark.parametrize("content", [b"\xff", b"{", b" " * (MAX_FILE_BYTES + 1)])
def test_an_unreadable_file_is_refused_by_name(folder, content):
    voice_path(folder, "broken").write_bytes(content)
    with pytest.raises(ConfigError, match="broken"):
        load_voices(folder)


# A server's file


def library_file(folder, content: str):
    path = folder / "voices.json"
    path.write_text(content, encoding="utf-8")
    return path


descriptions = st.text(min_size=1, max_size=50).filter(str.isprintable)
libraries = st.lists(
    st.builds(Voice, st.from_regex("[a-z0-9_-]{1,64}", fullmatch=True), descriptions, seed=st.integers(0, 2**63 - 1)),
    max_size=5,
    unique_by=lambda voice: voice.name,
)


@settings(max_examples=200, deadline=None)
@given(voices=libraries)
def test_a_library_is_read_back_as_it_was_written(tmp_path_factory, voices):
    path = library_file(tmp_path_factory.mktemp("library"), library_text(voices))
    assert read_library(path) == tuple(sorted(voices, key=lambda voice: voice.name))


def test_a_speaker_string_is_kept(tmp_path):
    assert read_library(library_file(tmp_path, library_text([written(1), SEVEN]))) == (SEVEN, written(1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read .*voices.json"),
        ("[]", "allowed is an object of voices by name"),
        ('{"x": {}}', "voice 'x'"),
        ('{"x": 5}', "voice 'x'"),
        ('{"X": {"description": "d", "seed": 7}}', "voice name is 'X'"),
    ],
)
def test_a_broken_library_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        read_library(library_file(tmp_path, content))


def test_a_missing_library_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"voices\.json"):
        read_library(tmp_path / "voices.json")


# On a checkpoint


def test_a_name_is_the_voice_of_that_name(library, statistics):
    assert np.array_equal(library.find("seven").vector, statistics.sample(7))
    assert np.array_equal(library.find("written").vector, random_vector(1))


def test_what_is_no_name_is_a_speaker_string(library):
    vector = random_vector(5)
    found = library.find(encode_speaker(vector))
    assert found.vector.tobytes() == vector.tobytes()
    assert np.array_equal(found.embedding, normalize(vector))


@pytest.mark.parametrize("around", ["\n", "\ufeff", " \t\r\n\u3000"])
@pytest.mark.parametrize("speaker", ["seven", encode_speaker(random_vector(5))])
def test_white_space_around_a_voice_is_no_part_of_it(library, speaker, around):
    found = library.find(f"{around}{speaker}{around}")
    assert found.vector.tobytes() == library.find(speaker).vector.tobytes()


@pytest.mark.parametrize("speaker", ["seven", encode_speaker(random_vector(5))])
def test_the_string_of_a_speaker_finds_the_same_vector(library, speaker):
    found = library.find(speaker)
    again = library.find(found.text)
    assert again.vector.tobytes() == found.vector.tobytes()
    assert again.embedding.tobytes() == found.embedding.tobytes()


@pytest.mark.parametrize(
    "speaker", ["Seven", "sevens", "", *BAD_SPEAKERS.values(), encode_speaker(random_vector(0, 64))]
)
def test_what_is_neither_is_refused_with_the_known_names(library, speaker):
    with pytest.raises(
        InvalidInputError, match=r"input 'speaker' is .*\(seven, written\), a mixture such as .* 768 finite values"
    ):
        library.find(speaker)


def test_without_voices_only_speaker_strings_are_offered(statistics):
    with pytest.raises(InvalidInputError, match="allowed is a ChatTTS speaker string of 768"):
        VoiceLibrary([], statistics).find("default")


def test_a_message_names_a_bounded_number_of_voices(statistics):
    voices = [Voice(f"voice-{number:03}", "d", seed=number) for number in range(100)]
    with pytest.raises(InvalidInputError) as caught:
        VoiceLibrary(voices, statistics).find("nobody")
    assert str(caught.value).count("voice-") == MAX_NAMES_SHOWN
    assert f"and {100 - MAX_NAMES_SHOWN} more" in str(caught.value)


def test_a_voice_of_another_size_does_not_start_a_server(statistics):
    with pytest.raises(ConfigError, match="voice 'written' does not fit this checkpoint: it has 64 values"):
        VoiceLibrary([written(1, 64)], statistics)


# Through the frontend


def test_the_frontend_speaks_in_a_voice_of_the_library_whatever_the_seed(frontend):
    one, two = (prepare(frontend, speaker="seven", seed=seed) for seed in (1, 2))
    assert np.array_equal(one.speaker_embedding, two.speaker_embedding)
    assert one.used_speaker == two.used_speaker


def test_a_voice_by_seed_is_the_one_that_a_request_with_that_seed_samples(frontend):
    named, sampled = prepare(frontend, speaker="seven", seed=1), prepare(frontend, seed=7)
    assert np.array_equal(named.speaker_embedding, sampled.speaker_embedding)


@pytest.mark.parametrize("values", [{"seed": 3}, {"seed": 3, "skip_refine": True}, {"speaker": "seven"}, {}])
def test_asking_for_the_used_speaker_gives_the_same_vector_bit_for_bit(frontend, values):
    first = prepare(frontend, **values)
    again = prepare(frontend, **{**values, "seed": 99, "speaker": first.used_speaker})
    assert again.speaker_embedding.tobytes() == first.speaker_embedding.tobytes()
    assert again.used_speaker == first.used_speaker


SAMPLE = encode_sample(np.arange(40).reshape(4, 10))


def test_no_speaker_is_used_where_a_recording_alone_decides(frontend):
    prepared = prepare(frontend, speaker_sample=SAMPLE)
    assert (prepared.used_speaker, prepared.generation.has_speaker) == ("", False)


def test_a_speaker_beside_a_recording_is_used(frontend):
    prepared = prepare(frontend, speaker_sample=SAMPLE, speaker="seven")
    assert prepared.used_speaker == prepare(frontend, speaker="seven").used_speaker != ""


def test_the_longest_recording_leaves_room_for_its_transcript_and_the_text(frontend):
    """30 s are 1,406 tokens; 200 characters are more than anybody says in that time."""
    sample = encode_sample(np.zeros((4, 1_406), int))
    prepared = prepare(frontend, speaker_sample=sample, sample_text="天气很好" * 50)
    assert len(prepared.generation.sample_codes) == 1_406
