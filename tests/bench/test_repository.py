"""The sentences of the benchmarks."""

from bench.repository import sentence


def test_no_sentence_comes_twice():
    said = [sentence(number) for number in range(131_072)]
    assert len(set(said)) == len(said)
    assert sentence(131_072) == said[0]


def test_sentences_are_english_and_chinese_in_turns_and_about_as_long_as_before():
    for number in range(0, 5_000, 2):
        english, chinese = sentence(number), sentence(number + 1)
        assert english.isascii()
        assert english.endswith(".")
        assert 40 <= len(english) <= 90
        assert chinese.endswith("。")
        assert 13 <= len(chinese) <= 26


def test_neighbours_do_not_begin_alike():
    """What remembers the beginnings of texts finds none among those that are said at once."""
    for start in range(0, 4_096, 16):
        begun = {sentence(number)[:24] for number in range(start, start + 16)}
        assert len(begun) == 16
