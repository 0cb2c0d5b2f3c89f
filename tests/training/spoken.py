"""Two recordings that tests learn from."""

from training.utterances import Utterance

HELLO = Utterance(
    "hello, my friend.",
    ends=[10, 12, 18, 30, 34],
    sounds=[[0, 2, 5, 8], [12, 14], [18, 20, 22, 25, 28]],
    start=0,
    tokens=34,
)
BYE = Utterance("see you.", ends=[12, 25, 30], sounds=[[0, 6], [12, 20]], start=34, tokens=30)
