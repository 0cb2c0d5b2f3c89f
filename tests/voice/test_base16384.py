"""base16384 against the C extension, which is given well-formed text only: on other text it ends the process."""

from __future__ import annotations

import pybase16384
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.voice import base16384

DATA = st.binary(max_size=200)
ALPHABET = st.one_of(
    st.integers(0x4E00, 0x8DFF).map(chr), st.integers(0x3D00, 0x3D07).map(chr), st.characters(), st.just("\ud800")
)


@settings(max_examples=500)
@given(data=DATA)
def test_text_is_that_of_the_c_extension_and_decodes_to_the_same(data):
    text = base16384.encode(data)
    assert text == pybase16384.encode_to_string(data)
    assert base16384.decode(text) == data


@settings(max_examples=500)
@given(
    data=DATA.filter(len),
    place=st.integers(min_value=0),
    change=st.sampled_from(["drop", "add", "swap"]),
    other=ALPHABET,
)
def test_damaged_text_is_refused_or_decodes_to_other_bytes(data, place, change, other):
    characters = list(base16384.encode(data))
    place %= len(characters)
    if change == "drop":
        del characters[place]
    elif change == "add":
        characters.insert(place, other)
    else:
        characters[place] = other
    try:
        decoded = base16384.decode("".join(characters))
    except ValueError:
        return
    assert len(decoded) <= 2 * len(characters)


@pytest.mark.parametrize(
    "text",
    ["a", "一", "一一一", "一一一一\u3d01", "\u3d01", "\u3d07", "一一一一\u3d00", "\u8e00" * 4, "\U0001f600", "\ud800"],
)
def test_malformed_text_is_refused(text):
    with pytest.raises(ValueError, match=r"cut|alphabet"):
        base16384.decode(text)
