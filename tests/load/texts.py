"""What callers say: texts of three lengths in two languages, the same ones for the same random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LENGTHS = {"short": 1, "medium": 4, "long": 24}  # sentences
SENTENCES_PER_PARAGRAPH = 8
SENTENCES = {
    "en": (
        "The library opens at nine and closes when the last reader has gone home.",
        "Please bring the blue folder to the meeting room on the second floor.",
        "My grandmother keeps her letters in a wooden box under the stairs.",
        "The train to the coast leaves in 20 minutes from platform 4.",
        "Nobody had told the new driver that the bridge was closed.",
        "It rained all night, and in the morning the garden was full of snails.",
        "Could you turn the music down a little?",
        "We paid 12.50 for two tickets and a cup of tea.",
        "She learned to repair clocks long before she learned to read them.",
        "The bread is still warm, so let it rest before you cut it.",
        "Thank you, I will call back tomorrow!",
        "On the other side of the river a dog was barking at the moon.",
    ),
    "zh": (
        "今天的会议推迟到下午三点，请大家准时参加。",
        "昨天晚上下了一场大雨，路上有很多积水。",
        "图书馆早上九点开门，晚上八点关门。",
        "请把蓝色的文件夹放在二楼的会议室里。",
        "这趟列车还有20分钟就要开了。",
        "你能把音乐的声音调小一点吗？",
        "面包还是热的，先放一会儿再切。",
        "两张票和一杯茶一共花了12块5毛。",
        "奶奶把信都收在楼梯下面的木盒子里。",
        "谢谢你，我明天再打电话过来！",
        "河的对岸，有一只狗对着月亮叫。",
        "她先学会了修钟，后来才学会看时间。",
    ),
}


@dataclass(frozen=True)
class Request:
    """What one caller asks for.

    Attributes:
        length: a key of LENGTHS.
        text: as long as that.
        seed: of the speech.
    """

    length: str
    text: str
    seed: int


def requests(weights: Mapping[str, float], rng: random.Random) -> Iterator[Request]:
    """Requests without end; `weights` has how often each length comes, and the languages come alike."""
    while True:
        (length,) = rng.choices(list(weights), list(weights.values()))
        language = rng.choice(list(SENTENCES))
        yield Request(length, text(LENGTHS[length], language, rng), rng.randrange(2**31))


def text(num_sentences: int, language: str, rng: random.Random) -> str:
    """So many sentences of one language, in paragraphs."""
    blank = " " if language == "en" else ""
    sentences = [rng.choice(SENTENCES[language]) for _ in range(num_sentences)]
    starts = range(0, num_sentences, SENTENCES_PER_PARAGRAPH)
    return "\n".join(blank.join(sentences[start : start + SENTENCES_PER_PARAGRAPH]) for start in starts)
