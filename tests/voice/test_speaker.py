"""Voices: strings as ChatTTS writes and reads them, bounds on what callers send, and sampling."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.voice import base16384
from chattts_serving.voice.speaker import (
    MAX_HIDDEN_SIZE,
    MAX_SAMPLE_TOKENS,
    SpeakerStatistics,
    decode_sample,
    decode_speaker,
    encode_sample,
    encode_speaker,
    normalize,
)
from export.chattts_package import import_chattts, speaker_statistics
from tests.voices import encode_sample as encode_sample_as_chattts
from tests.voices import encode_speaker as encode_speaker_as_chattts
from tests.voices import pack

HIDDEN = 768
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def chattts_speaker():
    """ChatTTS's `Speaker` class."""
    import_chattts()
    return importlib.import_module("ChatTTS.model.speaker").Speaker


@pytest.fixture(scope="module")
def statistics() -> SpeakerStatistics:
    return SpeakerStatistics.parse(speaker_statistics(), HIDDEN)


def random_vector(seed: int, size: int = HIDDEN, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float16)


def bits(vector: np.ndarray) -> bytes:
    assert vector.dtype == np.float16
    return vector.tobytes()


def random_codes(seed: int, num_tokens: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 625, (4, num_tokens))


def test_speaker_strings_of_chattts_are_read(chattts_speaker):
    vector = random_vector(0)
    assert bits(decode_speaker(chattts_speaker._encode(torch.from_numpy(vector)))) == bits(vector)


@settings(max_examples=100, deadline=None)
@given(patterns=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=1_000))
def test_chattts_reads_the_bits_that_were_encoded(chattts_speaker, patterns):
    """Any bits: also infinities, NaNs, negative zero and subnormal numbers."""
    vector = np.array(patterns, np.uint16).view(np.float16)
    assert bits(chattts_speaker._decode(encode_speaker(vector))) == bits(vector)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, num_tokens=st.integers(1, MAX_SAMPLE_TOKENS))
def test_chattts_reads_the_codes_that_were_encoded(chattts_speaker, seed, num_tokens):
    codes = random_codes(seed, num_tokens)
    assert np.array_equal(chattts_speaker.decode_prompt(encode_sample(codes.T)).numpy(), codes)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, num_tokens=st.integers(1, MAX_SAMPLE_TOKENS))
def test_codes_are_read_as_they_were_encoded(seed, num_tokens):
    codes = random_codes(seed, num_tokens)
    assert np.array_equal(np.array(decode_sample(encode_sample(codes.T))).T, codes)
    assert np.array_equal(np.array(decode_sample(f"\ufeff{encode_sample(codes.T)}\r\n")).T, codes)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**63 - 1))
def test_the_string_of_a_sampled_voice_is_that_voice(statistics, seed):
    vector = statistics.sample(seed)
    assert bits(decode_speaker(encode_speaker(vector))) == bits(vector)


@pytest.mark.parametrize("num_tokens", [1, 7, 300, MAX_SAMPLE_TOKENS])
def test_sample_strings_of_chattts_are_read(chattts_speaker, num_tokens):
    codes = random_codes(num_tokens, num_tokens)
    text = chattts_speaker.encode_prompt(torch.from_numpy(codes))
    assert np.array_equal(np.array(decode_sample(text)).T, codes)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 10.0, 100.0]),
    size=st.sampled_from([64, 768]),
)
def test_normalised_vector_is_that_of_torch(seed, scale, size):
    vector = random_vector(seed, size, scale)
    expected = F.normalize(torch.from_numpy(vector), p=2.0, dim=0, eps=1e-12).float().numpy()
    assert np.array_equal(normalize(vector), expected)


def test_norm_between_two_float16_values_is_rounded_as_by_torch():
    """A sum in another order once gave vectors off by one part in a thousand."""
    vector = random_vector(1249)
    assert np.array_equal(normalize(vector), F.normalize(torch.from_numpy(vector), dim=0).float().numpy())


def test_statistics_are_those_of_chattts(chattts_speaker, statistics):
    expected = chattts_speaker(HIDDEN, speaker_statistics())
    assert np.array_equal(statistics.std, expected.std.numpy())
    assert np.array_equal(statistics.mean, expected.mean.numpy())


def test_a_seed_always_gives_the_same_voice(statistics):
    assert np.array_equal(statistics.sample(2**63 - 1), statistics.sample(2**63 - 1))
    assert not np.array_equal(statistics.sample(1), statistics.sample(2))


def test_sampled_voices_are_distributed_as_the_statistics_say(statistics):
    noise = np.stack([(statistics.sample(seed) - statistics.mean) / statistics.std for seed in range(200)]).astype(
        float
    )
    noise = noise[:, np.isfinite(noise).all(axis=0)]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


@pytest.mark.parametrize("text", ["", "一", "abc", base16384.encode(bytes(7)), speaker_statistics() + "一"])
@pytest.mark.parametrize("hidden_size", [768, 64])
def test_statistics_of_another_size_are_refused(text, hidden_size):
    with pytest.raises(ConfigError, match=f"hidden size {hidden_size}"):
        SpeakerStatistics.parse(text, hidden_size)


def test_statistics_that_are_not_finite_are_refused():
    text = base16384.encode(np.full(8, np.inf, np.float16).tobytes())
    with pytest.raises(ConfigError, match="not finite"):
        SpeakerStatistics.parse(text, 4)


WHOLE = encode_speaker_as_chattts(random_vector(0))
BAD_SPEAKERS = {
    "name": "Alice",
    "empty": "",
    "cut": WHOLE[:-5],
    "trailing bytes": base16384.encode(pack(random_vector(0).tobytes()) + b"\0"),
    "two streams": base16384.encode(2 * pack(random_vector(0).tobytes())),
    "no LZMA2": base16384.encode(b"\xff" * 100),
    "no values": base16384.encode(pack(b"")),
    "half a value": base16384.encode(pack(bytes(5))),
    "too many values": encode_speaker_as_chattts(random_vector(0, MAX_HIDDEN_SIZE + 1)),
    "bomb": base16384.encode(pack(bytes(50_000_000))),
    "lone surrogate": "\ud800" * 8,
}


@pytest.mark.parametrize("kind", BAD_SPEAKERS)
def test_what_is_no_speaker_string_is_refused(kind):
    with pytest.raises(ValueError, match=r"alphabet|cut|LZMA2|unpack|values|multiple of"):
        decode_speaker(BAD_SPEAKERS[kind])


def sample(shape: tuple[int, int], data: bytes) -> str:
    return base16384.encode(np.array(shape, "<u2").tobytes() + data)


BAD_SAMPLES = {
    "words": "hello",
    "header alone": base16384.encode(b"\4\0\1\0"),
    "less than a header": base16384.encode(b"\4\0"),
    "no tokens": sample((4, 0), pack(b"")),
    "three codebooks": encode_sample_as_chattts(random_codes(0, 9)[:3]),
    "transposed": encode_sample_as_chattts(random_codes(0, 9).T),
    "too many tokens": encode_sample_as_chattts(random_codes(0, MAX_SAMPLE_TOKENS + 1)),
    "fewer codes than the shape says": sample((4, 10), pack(bytes(2 * 4 * 9))),
    "more codes than the shape says": sample((4, 10), pack(bytes(2 * 4 * 11))),
    "end token": encode_sample_as_chattts(np.full((4, 3), 625)),
    "no code": encode_sample_as_chattts(np.full((4, 3), 65_535)),
    "bomb": sample((4, 10), pack(bytes(50_000_000))),
    "no LZMA2": sample((4, 10), b"\xff" * 100),
}


@pytest.mark.parametrize("kind", BAD_SAMPLES)
def test_bad_sample_string_is_refused(kind):
    with pytest.raises(InvalidInputError, match=r"input 'speaker_sample' is .* codes 0 to 624"):
        decode_sample(BAD_SAMPLES[kind])


FIFTY_TOKENS = encode_sample_as_chattts(random_codes(1, 50))
CHARACTERS = st.one_of(st.integers(0x4E00, 0x8DFF).map(chr), st.integers(0x3CFF, 0x3D08).map(chr), st.characters())


@settings(max_examples=500, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(min_value=0), st.one_of(st.none(), CHARACTERS)), min_size=1, max_size=5))
def test_damaged_strings_are_refused_or_read_within_bounds(edits):
    characters = list(FIFTY_TOKENS)
    for place, character in edits:
        if character is None:
            del characters[place % len(characters)]
        else:
            characters[place % len(characters)] = character
    try:
        codes = decode_sample("".join(characters))
    except InvalidInputError:
        return
    assert 1 <= len(codes) <= MAX_SAMPLE_TOKENS
    assert all(0 <= code < 625 for token in codes for code in token)
