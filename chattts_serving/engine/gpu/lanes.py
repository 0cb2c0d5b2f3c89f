"""What a decode step has to know of each sequence: one row of numbers, filled when the sequence joins.

The table of rows lies where the step runs, which keeps it up to date itself: tokens drawn, history, length. The host
keeps count of which sequence has which row, and sends a row only when a sequence joins or its cache was moved. A step
works on lanes; lane i of the batch is the row that entry i of a short list of rows names. Everything is int32, floats
by their bits.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from chattts_serving.engine.batch import IntArray
from chattts_serving.engine.gpu.sampler import PENALTY_WINDOW
from chattts_serving.engine.sequence import NO_TOKEN, Input, Kind, Sequence

# Columns of a lane's row.
START = 0  # first token of its slot in the cache
LENGTH = 1  # its tokens, the one that is being computed included
STEP = 2  # number of the draw that is being made, from 0
KIND = 3  # CODES or TEXT: what is drawn
INPUT = 4  # CODES, TEXT or SPEAKER: what the token being computed is
SEED_LOW = 5  # words of the seed
SEED_HIGH = 6
STREAM = 7
MIN_NEW = 8  # draws before the end token is allowed
TOP_K = 9
TEMPERATURE = 10  # float
TOP_P = 11  # float
PENALTY = 12  # float
TEXT_FIRST = 13  # tokens of the prompt that looks are at, as `Sequence.watched`; none where the two are equal
TEXT_END = 14
TOKENS = 15  # the token being computed, later the one drawn; one column for each codebook, text in the first
# Then its last tokens, [PENALTY_WINDOW][num_codebooks]; draw n is at place n % PENALTY_WINDOW.

# Columns of a prompt's token. A prompt is computed up to its last token, which a decode step takes.
POSITION = 0  # in its sequence
FIRST = 1  # where its sequence begins among the tokens computed together
CACHE = 2  # its token of the cache
SPEAKER_ROW = 3  # the lane's row, by which its speaker's vector is found
PROMPT_INPUT = 4  # as INPUT
PROMPT_TOKENS = 5  # as TOKENS

# Values of INPUT; the first two are those of KIND too.
CODES, TEXT, SPEAKER = 0, 1, 2
_INPUTS = {Input.AUDIO: CODES, Input.TEXT: TEXT, Input.SPEAKER: SPEAKER}


def row_width(num_codebooks: int) -> int:
    """Columns of a lane's row."""
    return TOKENS + num_codebooks * (1 + PENALTY_WINDOW)


def lane_row(sequence: Sequence, num_codebooks: int, spk_emb_id: int) -> IntArray:
    """The row of a sequence that joins, as the step before its first would have left it."""
    params = sequence.params
    row = np.zeros(row_width(num_codebooks), np.int32)
    kind = TEXT if sequence.kind is Kind.TEXT else CODES
    row[START] = sequence.cache_start
    row[LENGTH] = sequence.num_tokens - 1
    row[STEP] = sequence.num_generated_tokens - 1
    row[KIND] = kind
    words = np.array([params.seed & 0xFFFFFFFF, params.seed >> 32, params.stream], np.uint32)
    row[SEED_LOW : STREAM + 1] = words.view(np.int32)
    row[MIN_NEW] = params.first_end
    row[TOP_K] = params.top_k
    floats = np.array([params.temperature, params.top_p, params.repetition_penalty], np.float32)
    row[TEMPERATURE : PENALTY + 1] = floats.view(np.int32)
    row[TEXT_FIRST : TEXT_END + 1] = sequence.watched or (0, 0)
    last = sequence.num_tokens - 1
    row[INPUT], row[TOKENS : TOKENS + num_codebooks] = _token(sequence, last, num_codebooks, spk_emb_id)
    history = row[TOKENS + num_codebooks :].reshape(PENALTY_WINDOW, num_codebooks)
    history[:] = NO_TOKEN
    num_tokens = sequence.num_new_tokens
    numbers = np.arange(max(0, num_tokens - PENALTY_WINDOW), num_tokens)
    if len(numbers):
        tokens = sequence.codes(int(numbers[0]), num_tokens)
        history[numbers % PENALTY_WINDOW, : tokens.shape[1]] = tokens
    return row


def unused_row(num_codebooks: int, cache_token: int) -> IntArray:
    """The row of lanes that no sequence uses: one token long, at `cache_token`, which nothing reads."""
    row = np.zeros(row_width(num_codebooks), np.int32)
    row[START], row[LENGTH], row[MIN_NEW], row[TOP_K] = cache_token, 1, 1, 1
    row[TEMPERATURE : PENALTY + 1] = np.ones(3, np.float32).view(np.int32)
    row[TOKENS + num_codebooks :] = NO_TOKEN
    return row


def prompt_rows(joined: Iterable[tuple[Sequence, int]], num_codebooks: int, spk_emb_id: int) -> IntArray:
    """All tokens but the last of each sequence, one after another: [num_tokens, PROMPT_TOKENS + num_codebooks].

    Those that have rested have all that in their cache.
    """
    width, first = PROMPT_TOKENS + num_codebooks, 0
    blocks = [np.zeros((0, width), np.int32)]
    for sequence, lane in joined:
        if sequence.num_kept:
            continue
        rows = np.zeros((sequence.num_tokens, width), np.int32)
        rows[:, POSITION] = np.arange(len(rows))
        rows[:, FIRST], rows[:, SPEAKER_ROW] = first, lane
        rows[:, CACHE] = sequence.cache_start + rows[:, POSITION]
        num_text, num_prompt = len(sequence.prompt_ids), sequence.num_prompt_tokens
        rows[:num_text, PROMPT_TOKENS], rows[:num_text, PROMPT_INPUT] = sequence.prompt_ids, TEXT
        if sequence.speaker is not None:
            rows[:num_text, PROMPT_INPUT][rows[:num_text, PROMPT_TOKENS] == spk_emb_id] = SPEAKER
        if num_prompt > num_text:
            rows[num_text:num_prompt, PROMPT_TOKENS:] = sequence.prompt_codes
        drawn = sequence.codes(0, sequence.num_new_tokens)
        rows[num_prompt:, PROMPT_TOKENS : PROMPT_TOKENS + drawn.shape[1]] = drawn
        rows[num_text:, PROMPT_INPUT] = CODES
        rows[num_prompt:, PROMPT_INPUT] = TEXT if sequence.draws_text else CODES
        blocks.append(rows[:-1])
        first += len(rows) - 1
    return np.concatenate(blocks)


def unused_prompt_rows(first: int, end: int, num_codebooks: int, cache_token: int, lane: int) -> IntArray:
    """Tokens `first` to `end - 1` that pad a prompt: a sequence that is at `cache_token` all the time."""
    rows = np.zeros((end - first, PROMPT_TOKENS + num_codebooks), np.int32)
    rows[:, FIRST], rows[:, CACHE], rows[:, SPEAKER_ROW] = first, cache_token, lane
    return rows


def _token(sequence: Sequence, position: int, num_codebooks: int, spk_emb_id: int) -> tuple[int, list[int]]:
    """What the token at `position` is, and its ids, padded to `num_codebooks`."""
    kind, token = sequence.token_at(position, spk_emb_id)
    return _INPUTS[kind], [*token, *[0] * (num_codebooks - len(token))]
