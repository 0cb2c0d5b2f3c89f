"""The table of text tokens as it is trained: a row is made of the token's sounds and letters, and something of its own.

So a rare word is heard in every word that shares its sounds. A checkpoint has plain rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

MOST = 16  # sounds or letters of a token that are told apart
FIRST_SIZE = 0.5  # of a row's values before training


class Sequences(nn.Module):
    """Sums of symbols, each changed by its place: from the beginning and from the end."""

    forwards: torch.Tensor
    backwards: torch.Tensor

    def __init__(self, sequences: Sequence[Sequence[str]], hidden: int) -> None:
        """Random vectors of `hidden` values for the symbols and the places of `sequences`, one for each row."""
        super().__init__()
        symbols = {symbol: number for number, symbol in enumerate(sorted({one for row in sequences for one in row}))}
        self.num_symbols = len(symbols)
        self.symbols = nn.Parameter(torch.randn(2, self.num_symbols, hidden) * FIRST_SIZE / 3)
        self.places = nn.Parameter(torch.randint(2, (2, MOST, hidden)) * 2.0 - 1)
        numbers = [[symbols[one] for one in row] for row in sequences]
        self.register_buffer("forwards", self._table(numbers), persistent=False)
        self.register_buffer("backwards", self._table([row[::-1] for row in numbers]), persistent=False)

    def forward(self) -> torch.Tensor:
        """[rows, hidden]."""
        tables = (self.places[:, :, None] * self.symbols[:, None]).flatten(1, 2)  # [2, MOST * symbols, hidden]
        tables = F.pad(tables, (0, 0, 0, 1))
        nothing = tables.shape[1] - 1
        parts = [
            F.embedding_bag(places, table, mode="sum", padding_idx=nothing)
            for places, table in zip((self.forwards, self.backwards), tables, strict=True)
        ]
        return parts[0] + parts[1]

    def _table(self, rows: list[list[int]]) -> torch.Tensor:
        """Where each symbol at its place stands among all, int64 [rows, MOST]; the last place is nothing."""
        table = torch.full((len(rows), MOST), MOST * self.num_symbols)
        for number, row in enumerate(rows):
            for place, symbol in enumerate(row[:MOST]):
                table[number, place] = place * self.num_symbols + symbol
        return table


class TextTable(nn.Module):
    """Rows of the embedding of text, and of the head that writes refined text."""

    def __init__(self, tokens: Sequence[str], sounds: Mapping[str, Sequence[str]], hidden: int) -> None:
        """Random weights; tokens without `sounds` are all their own."""
        super().__init__()
        self.sounds = Sequences([sounds.get(token, ()) for token in tokens], hidden)
        self.letters = Sequences([token if token in sounds else () for token in tokens], hidden)
        self.mix = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        self.own = nn.Embedding(len(tokens), hidden)
        self.head = nn.Linear(hidden, hidden, bias=False)
        with torch.no_grad():
            spoken = torch.tensor([bool(sounds.get(token)) for token in tokens])[:, None]
            self.own.weight.mul_(torch.where(spoken, 0.0, FIRST_SIZE))
            nn.init.normal_(self.head.weight, std=1 / (FIRST_SIZE * hidden))

    def rows(self) -> torch.Tensor:
        """Of the embedding, [tokens, hidden]."""
        made = self.sounds() + self.letters()
        return made + self.mix(made) + self.own.weight

    def head_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Of the head, [tokens, hidden]: of the same sounds, so that a word that was never written can be copied."""
        return self.head(rows)
