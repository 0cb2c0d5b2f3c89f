"""Ways to compute a step of which a measurement on a GPU has to say which one is faster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from chattts_serving.errors import ConfigError


@dataclass(frozen=True)
class Variant:
    """What can be chosen; the defaults are what runs. Tokens drawn are the same whatever is chosen, but for rounding.

    Attributes:
        cache_chunk: cached tokens that one program of a decode step's attention takes; a multiple of 32.
        cache_stages: blocks of the cache that such a program loads ahead, 1 for none.
        merge_in_place: whether the program that ends last merges a lane's chunks, rather than a kernel of its own.
        own_products: whether products, for few rows, are kernels of our own, which in a layer do what follows, too.
        one_pass: whether the prompts of those who join go through the products together with the lanes' tokens.
        join_every: steps from one group of those who join to the next, while others run; for `Engine`.
    """

    cache_chunk: int = 128
    cache_stages: int = 1
    merge_in_place: bool = False
    own_products: bool = False
    one_pass: bool = False
    join_every: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is out of its range.
        """
        if self.cache_chunk < 32 or self.cache_chunk % 32:
            raise ConfigError(f"cache_chunk is {self.cache_chunk}; allowed are multiples of 32")
        if not 1 <= self.cache_stages <= 8:
            raise ConfigError(f"cache_stages is {self.cache_stages}; allowed is 1 to 8")
        if self.join_every < 1:
            raise ConfigError(f"join_every is {self.join_every}; allowed is 1 or more")

    @classmethod
    def parse(cls, settings: Iterable[str]) -> Variant:
        """A variant from settings NAME=NUMBER; a switch is 0 or 1.

        Raises:
            ConfigError: a name or a number is not allowed.
        """
        switches = {field.name: isinstance(field.default, bool) for field in fields(cls)}
        values: dict[str, Any] = {}
        for setting in settings:
            name, _, number = setting.partition("=")
            if name not in switches:
                raise ConfigError(f"variant {setting!r} sets {name!r}; there are {', '.join(switches)}")
            if number not in {"0", "1"} if switches[name] else not number.isdecimal():
                allowed = "0 and 1" if switches[name] else "whole numbers"
                raise ConfigError(f"variant {setting!r} has the value {number!r}; allowed are {allowed}")
            values[name] = bool(int(number)) if switches[name] else int(number)
        return cls(**values)
