"""What turns come to: a time for each system and point, ratios to the best peer, tables and last lines."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench import report


@dataclass(frozen=True)
class Group:
    """Systems whose weights have as many bits.

    Attributes:
        precision: this project's.
        peers: what it is compared with.
        others: what is measured beside them: weights of fewer bits, which cannot say as much.
    """

    precision: str
    peers: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def ours(self) -> str:
        """The name of this project's system."""
        return f"ours {self.precision}"

    @property
    def systems(self) -> tuple[str, ...]:
        """All of them."""
        return (self.ours, *self.peers, *self.others)


@dataclass(frozen=True)
class Point:
    """What was computed, and beside how many busy loops."""

    threads: int
    busy: int
    context: int
    sequences: int


@dataclass(frozen=True)
class Turn:
    """Some steps of one system, one after the other.

    Attributes:
        wall_ms, cpu_ms: of a step, their mean; CPU time of all its threads.
        others: cores that all other programs kept busy meanwhile, the busy loops among them.
    """

    system: str
    point: Point
    wall_ms: float
    cpu_ms: float
    others: float


def median_ms(turns: Iterable[Turn], system: str, point: Point, what: str) -> float | None:
    """The median of the turns of `system` at `point`, `what` is "wall_ms" or "cpu_ms"; None where there is none."""
    found = [getattr(turn, what) for turn in turns if (turn.system, turn.point) == (system, point)]
    return statistics.median(found) if found else None


def ratio(turns: Sequence[Turn], group: Group, point: Point, what: str) -> float | None:
    """Our time by that of the quickest peer: less than 1 where we are quicker; None where one of them is missing."""
    ours = median_ms(turns, group.ours, point, what)
    peers = [ms for peer in group.peers if (ms := median_ms(turns, peer, point, what)) is not None]
    return ours / min(peers) if ours and peers else None


def points_of(turns: Iterable[Turn], threads: int) -> list[Point]:
    """The points with so many threads, quiet ones first."""
    points = {turn.point for turn in turns if turn.point.threads == threads}
    return sorted(points, key=lambda point: (point.busy, point.context, point.sequences))


def group_table(turns: Sequence[Turn], group: Group, threads: int, what: str) -> str:
    """A row for each point with so many threads: the systems' times, and ours by the quickest peer's."""
    there = {turn.system for turn in turns if turn.point.threads == threads}
    systems = [system for system in group.systems if system in there]
    rows = [
        (
            point.busy,
            point.context,
            point.sequences,
            *(median_ms(turns, system, point, what) for system in systems),
            ratio(turns, group, point, what),
        )
        for point in points_of(turns, threads)
    ]
    return report.table(("busy loops", "context", "sequences", *systems, "ours / best"), rows)


def worst_ratios(turns: Sequence[Turn], group: Group, measures: dict[str, int]) -> dict[str, float]:
    """The largest ratio of each measure, quiet and beside busy loops: "cpu", "wall", "cpu_beside_2", "wall_beside_2".

    `measures` are "cpu_ms" and "wall_ms", and with how many threads each was taken.
    """
    found: dict[str, float] = {}
    for what, threads in measures.items():
        for point in points_of(turns, threads):
            value = ratio(turns, group, point, what)
            if value is not None:
                name = what.removesuffix("_ms") + (f"_beside_{point.busy}" if point.busy else "")
                found[name] = max(value, found.get(name, 0.0))
    return found
