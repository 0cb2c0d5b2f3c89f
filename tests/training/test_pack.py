"""The corpus on its way to a machine that has nothing else."""

import numpy as np
import pytest
import torch

from tests.training.spoken import BYE, HELLO
from training.modules import Codec
from training.pack import pack, squeeze, stretch, unpack
from training.settings import SIZES
from training.sound import CODEC_FILE
from training.utterances import utterances


@pytest.fixture
def packed(folder, tmp_path):
    codec = Codec(SIZES.dvae_encoder, SIZES.dvae_decoder)
    torch.save({"model": codec.state_dict(), "optimizers": []}, folder / CODEC_FILE)
    return lambda megabytes: pack(folder, ["slt"], megabytes, tmp_path / "corpus.zip")


def test_every_code_comes_back():
    codes = np.random.default_rng(0).integers(0, 625, (1_000, 4)).astype(np.uint16)
    codes[0], codes[1] = 0, 624
    assert len(squeeze(codes)) == 5 * len(codes)
    np.testing.assert_array_equal(stretch(squeeze(codes)), codes)


def test_each_utterance_keeps_its_codes(folder, packed, tmp_path):
    assert packed(5) == ["slt: 2 of 2 utterances, 64 audio tokens"]
    unpack(tmp_path / "corpus.zip", tmp_path / "there")
    before, after = (np.load(place / "slt.codes.npy") for place in (folder, tmp_path / "there"))
    found = {one.text: one for one in utterances(tmp_path / "there", "slt")}
    for one in (HELLO, BYE):
        other = found[one.text]
        assert (other.ends, other.sounds, other.tokens) == (one.ends, one.sounds, one.tokens)
        np.testing.assert_array_equal(
            after[other.start : other.start + other.tokens], before[one.start : one.start + one.tokens]
        )
    assert not list((tmp_path / "there").glob("*.i16"))


def test_no_more_is_packed_than_there_is_room_for(packed):
    with pytest.raises(ValueError, match="1 MB does not hold the codec"):
        packed(1)
