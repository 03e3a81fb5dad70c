"""Bytes held over time in the steady state of a periodic schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Holding:
    """``bytes`` held in ``[begin, end)`` of every micro-batch."""

    begin: int
    end: int
    bytes: int
    content: str = ""
    """What it is: a workspace, a result, a received value, an input."""


def peak_of(holdings: Iterable[Holding], period: int) -> int:
    """Most bytes held at one time when every holding repeats each ``period``.

    A holding of length ``q * period + r`` is there ``q`` times always and once more for ``r``.
    """
    always = 0
    changes: list[tuple[int, int]] = []
    for h in holdings:
        length = h.end - h.begin
        if length <= 0 or not h.bytes:
            continue
        whole, rest = divmod(length, period)
        always += whole * h.bytes
        if rest:
            begin = h.begin % period
            changes.append((begin, h.bytes))
            changes.append(((begin + rest) % period, -h.bytes))
            if begin + rest >= period:
                always += h.bytes
    changes.sort()  # at one time what ends comes before what begins: intervals are half-open
    level = peak = always
    for _, change in changes:
        level += change
        peak = max(peak, level)
    return peak


def held_sets(sets: Sequence[tuple[int, ...]]) -> list[tuple[list[int], list[int]]]:
    """Group accelerators that occur in the same sets: (accelerators, positions of the sets that hold them).

    Accelerators that run the same operations are looked at once, which is what keeps verifying a
    schedule on a thousand accelerators cheap.
    """
    numbers: dict[tuple[int, ...], int] = {}
    positions: list[list[int]] = []
    for position, members in enumerate(sets):
        number = numbers.setdefault(members, len(positions))
        if number == len(positions):
            positions.append([])
        positions[number].append(position)
    holding: defaultdict[int, list[int]] = defaultdict(list)
    for members, number in numbers.items():
        for p in members:
            holding[p].append(number)
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for p in sorted(holding):
        groups[tuple(holding[p])].append(p)
    return [(members, [v for number in held for v in positions[number]]) for held, members in groups.items()]
