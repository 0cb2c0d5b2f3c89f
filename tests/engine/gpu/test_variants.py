"""Variants of a step as a command line gives them."""

import pytest

from chattts_serving.engine.gpu.variants import Variant
from chattts_serving.errors import ConfigError


def test_settings_change_what_they_name():
    assert Variant.parse([]) == Variant()
    assert Variant.parse(["cache_chunk=64", "merge_in_place=1"]) == Variant(cache_chunk=64, merge_in_place=True)
    assert Variant.parse(["merge_in_place=0"]) == Variant()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("chunk=64", r"variant 'chunk=64' sets 'chunk'; there are cache_chunk, "),
        ("cache_chunk=many", r"variant 'cache_chunk=many' has the value 'many'; allowed are whole numbers"),
        ("merge_in_place", r"variant 'merge_in_place' has the value ''; allowed are 0 and 1"),
        ("cache_chunk=48", r"cache_chunk is 48; allowed are multiples of 32"),
        ("join_every=0", r"join_every is 0; allowed is 1 or more"),
        ("cache_stages=0", r"cache_stages is 0; allowed is 1 to 8"),
    ],
)
def test_other_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        Variant.parse([setting])
