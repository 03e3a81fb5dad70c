"""What every contiguous stage of an order costs where values take time to move: its least period.

A value enters the stage ``[i, j)`` when it is produced outside and read inside, and leaves it when it is produced
inside and read outside. Which stages those are is a region of the plane of ``(i, j)`` that is made of few
rectangles: of the readers after a value's producer only the first one at or after ``i`` counts, so the ``m``-th is the
one that counts for ``i`` after the one before it, and ``j`` after itself. So the time that all values take together,
for all stages at once, is the twofold running sum of what is added at the corners of all rectangles, and a skip
connection costs nothing in the stages between its ends.

Rows are kept as bands, beginnings by lengths, no longer than the limit on the period lets a stage be.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.data import Dependence
from passes.scheduling.network import Members, Network, Price
from passes.scheduling.problem import MoldableProblem
from passes.scheduling.profiles import Choices, Profile

Band = NDArray[Any]

NEVER = 2**62
"""Longer than any period."""

Rectangle = tuple[int, int, int, int, int]
"""First and last beginning, first and last end of the stages concerned, and ns for each of them."""


def widest_by_width(times: dict[int, int], widths: Sequence[int]) -> list[int | None]:
    """The widest allotment of at most each of ``widths``, so that values stay on one set; None: none is as narrow."""
    return [max((k for k in times if k <= width), default=None) for width in widths]


@dataclass(frozen=True)
class Value:
    """What one transfer out may serve: the segments between cuts that hold its producer and its readers."""

    home: int
    readers: tuple[tuple[int, Dependence], ...]
    stages: int = 1
    """Stages that it is sent to at least, where it is sent to any."""


def values_of(
    problem: MoldableProblem,
    network: Network,
    order: Sequence[int],
    cuts: Sequence[int],
    stages: Mapping[object, int],
) -> list[Value]:
    """The values of ``problem`` that may cross; ``stages`` has the number of stages that read those with several."""
    segment = {v: bisect_right(cuts, position) - 1 for position, v in enumerate(order)}
    found: dict[object, list[Dependence]] = {}
    for d in problem.dependences:
        if d.bytes:
            found.setdefault(network.key(d, ()), []).append(d)
    return [
        Value(
            segment[readers[0].producer],
            tuple(sorted(((segment[d.consumer], d) for d in readers), key=lambda pair: pair[0])),
            stages.get(key, 1),
        )
        for key, readers in found.items()
    ]


def cheapest_cuts(
    problem: MoldableProblem, choices: Choices, line: Sequence[int], cuts: tuple[int, ...], most: int
) -> tuple[int, ...]:
    """``cuts``, or of more than ``most`` those at which least crosses in each stretch of about equal time."""
    if len(cuts) <= most:
        return cuts
    position = {v: i for i, v in enumerate(line)}
    spans: dict[tuple[int, int], tuple[int, int, int]] = {}
    for d in problem.dependences:
        low, high = sorted((position[d.producer], position[d.consumer]))
        first, last, _ = spans.get((d.producer, d.result), (low, high, 0))
        spans[d.producer, d.result] = (min(first, low), max(last, high), d.bytes)
    changes = [0] * (len(line) + 1)
    for low, high, size in spans.values():
        changes[low + 1] += size
        changes[high + 1] -= size  # the value is there up to the cut before its last reader
    crossing = list(accumulate(changes))
    clock = list(accumulate((_at_widest(choices, v) for v in line), initial=0))
    cheapest: dict[int, int] = {}
    for at in cuts[1:-1]:
        stretch = clock[at] * (most - 2) // max(1, clock[-1])
        if stretch not in cheapest or crossing[at] <= crossing[cheapest[stretch]]:
            cheapest[stretch] = at
    return (cuts[0], *sorted(cheapest.values()), cuts[-1])


def _at_widest(choices: Choices, v: int) -> int:
    """Time of operation ``v`` at the widest of the widths that it can run on."""
    times = (time for time, _ in reversed(choices.rows[choices.keys[v]]))
    return next((time for time in times if time <= choices.most), 0)


class Rates:
    """Prices between blocks of one width, for each level that may lie between them, or inside one block."""

    def __init__(self, network: Network, width: int, allotments: Sequence[int], partners: Sequence[int] = ()):
        self.network, self.width, self.allotments = network, width, allotments
        self.partners = partners
        """Widths that the block on the other side of a border may have as well."""
        self.offsets = [width]
        for inner in network.levels[:-1]:
            self.offsets.append(-(-width // inner.size) * inner.size)
        self._ranges: dict[tuple[int, int], Members] = {}

    def between(self, level: int, d: Dependence) -> Price:
        """The price from another block, beyond a border of ``level``, or to it: alike but for the direction.

        The other block is as wide as this one, or of the partners the one that makes it dearest.
        """
        source, target = self.allotments[d.producer], self.allotments[d.consumer]
        pairs = [(source, target), *((k, target) for k in self.partners), *((source, k) for k in self.partners)]
        away = [(self._range(max(self.offsets[level], t), s), self._range(0, t)) for s, t in pairs]
        return max((self.network.price(d, *sets) for sets in away), key=lambda price: price.time)

    def inside(self, d: Dependence) -> Price:
        """The price inside a block, between sets that begin with the same accelerator."""
        return self.network.price(
            d, self._range(0, self.allotments[d.producer]), self._range(0, self.allotments[d.consumer])
        )

    def _range(self, begin: int, length: int) -> Members:
        key = (begin, length)
        if key not in self._ranges:
            self._ranges[key] = tuple(range(begin, begin + length))
        return self._ranges[key]


# --- rectangles --------------------------------------------------------------------------------


def entering(home: int, segments: Sequence[int], last: int, time: int) -> Iterator[Rectangle]:
    """Stages without ``home`` that hold at least one of the sorted ``segments``."""
    before = home
    for c in segments:
        if c > before:
            yield (before + 1, c, c + 1, last, time)
            before = c
    after = home
    for c in reversed(segments):
        if c < after:
            yield (0, c, c + 1, after, time)
            after = c


def leaving(home: int, segments: Sequence[int], last: int, time: int) -> Iterator[Rectangle]:
    """Stages with ``home`` that do not hold all of the sorted ``segments``."""
    low, high = min(home, segments[0]), max(home, segments[-1])
    if low < high:
        yield (0, home, home + 1, last, time)
        yield (0, low, high + 1, last, -time)


def staying(home: int, segments: Sequence[int], last: int, time: int) -> Iterator[Rectangle]:
    """Stages with ``home`` that hold at least one of the sorted ``segments``."""
    right = min((c for c in segments if c >= home), default=None)
    left = max((c for c in segments if c <= home), default=None)
    if right is not None:
        yield (0, home, right + 1, last, time)
    if left is not None and left != home:
        yield (0, left, home + 1, last, time)
        if right is not None:
            yield (0, left, right + 1, last, -time)


class Sums:
    """Rectangles, kept until the sum over all of them is asked for."""

    def __init__(self) -> None:
        self.found: list[Rectangle] = []

    def add(self, rectangles: Iterable[Rectangle]) -> None:
        self.found += (r for r in rectangles if r[4])

    def band(self, n: int, length: int) -> Band:
        """``[i, t]``: the sum at the stage ``[i, i + 1 + t)``; ``n`` segments; anything beyond the end of the order."""
        if not self.found:
            return np.zeros((n + 1, length), dtype=np.int64)
        corners = np.array(self.found, dtype=np.int64)
        first, last, begin, end, time = corners.T
        plane = np.zeros((n + 2, n + 2 + length), dtype=np.int64)
        np.add.at(plane, (first, begin), time)
        np.add.at(plane, (last + 1, begin), -time)
        np.add.at(plane, (first, end + 1), -time)
        np.add.at(plane, (last + 1, end + 1), time)
        plane.cumsum(axis=0, out=plane)
        plane.cumsum(axis=1, out=plane)
        rows, columns = plane.strides
        sheared = np.lib.stride_tricks.as_strided(plane[:, 1:], (n + 1, length), (rows + columns, columns))
        return sheared.copy()


# --- the least period of every stage -------------------------------------------------------------


@dataclass(frozen=True)
class _Crossing:
    """Bands of one width and one choice of allotments: at each level what enters and leaves, and what stays inside."""

    rates: Rates
    profile: Profile
    time: Band
    enters: list[Band]
    leaves: list[Band]
    received: Band
    sent: Band


class StageCosts:
    """The least period of every contiguous stage of one order, for each width and level of the borders around it.

    Both ends of what crosses a border have the stage's own width here, or with ``cautious`` the width that makes it
    dearest; what crosses several borders is priced as if it crossed the next one only. A plan is priced exactly once
    it is known. Costs ``like`` these, of the same order and at least as great a limit, leave only the difference to be
    worked out: values that are now read in another number of ``stages``.
    """

    def __init__(
        self,
        problem: MoldableProblem,
        network: Network,
        choices: Sequence[Choices],
        profiles: Sequence[Profile],
        order: Sequence[int],
        limit: int,
        stages: Mapping[object, int],
        cautious: bool = False,
        like: StageCosts | None = None,
    ):
        self.network, self.profile, self.widths = network, profiles[0], profiles[0].widths
        self.n = self.profile.n
        self._values = values_of(problem, network, order, self.profile.cuts, stages)
        self._longest = 2 * limit + 2
        """Longer transfers count as long as this: they fit in no period tried, and sums stay within 64 bits."""
        self._tables: dict[tuple[int, int, int], Band] = {}
        self._rules: list[list[_Crossing]] = []
        if like is not None:
            self._longest = like._longest
            changed = [(a, b) for a, b in zip(like._values, self._values, strict=True) if a.stages != b.stages]
            self._rules = [[self._again(c, n, limit, changed) for c in found] for n, found in enumerate(like._rules)]
            return
        partners = (min(self.widths), max(self.widths)) if cautious else ()
        for number, width in enumerate(self.widths):
            seen: list[list[int]] = []
            found: list[_Crossing] = []
            for choice, profile in zip(choices, profiles, strict=True):
                allotments = [choice.allotments[key[0]][number] or width for key in choice.keys]
                if allotments not in seen:
                    seen.append(allotments)
                    rates = Rates(network, width, allotments, partners)
                    found.append(self._crossing(profile, number, rates, limit))
            self._rules.append(found)

    def table(self, number: int, entry: int, leave: int) -> Band:
        """``[i, t]``: the least period of ``[i, i + 1 + t)`` at ``widths[number]`` between borders of these levels."""
        key = (number, entry, leave)
        if key not in self._tables:
            tables = [self._least(c, entry, leave) for c in self._rules[number]]
            length = max(t.shape[1] for t in tables)
            least = np.full((self.n + 1, length), NEVER, dtype=np.int64)
            for t in tables:
                np.minimum(least[:, : t.shape[1]], t, out=least[:, : t.shape[1]])
            self._tables[key] = least
        return self._tables[key]

    def border(self, position: int) -> int:
        """Level of the border before accelerator ``position``, 0 where no block lies on the other side."""
        if not 0 < position < self.profile.accelerators:
            return 0
        return self.network.level_of((position - 1, position))

    def _least(self, c: _Crossing, entry: int, leave: int) -> Band:
        network = self.network
        into, out = c.enters[entry] + c.received, c.leaves[leave] + c.sent
        if network.mode != "overlapped":
            return c.time + into + out
        first, second = network.levels[entry], network.levels[leave]
        if entry == leave and first.topology == "switch" and not first.duplex:
            return np.maximum(c.time, -(-(into + out) // first.capacity))
        return np.maximum(c.time, np.maximum(-(-into // first.capacity), -(-out // second.capacity)))

    def _time(self, profile: Profile, number: int, limit: int) -> Band:
        """What the operations of every stage take."""
        n = self.n
        ends = profile.extend_all(number, min(limit, profile.most))
        positions = np.arange(n + 1)
        length = max(1, int((ends - positions).max()))
        sums = np.array(profile.time[number], dtype=np.int64)
        there = positions[:, None] + 1 + np.arange(length)
        time = sums[np.minimum(there, n)] - sums[:, None]
        time[there > ends[:, None]] = NEVER // 4
        return time

    def _crossing(self, profile: Profile, number: int, rates: Rates, limit: int) -> _Crossing:
        levels, time = len(self.network.levels), self._time(profile, number, limit)
        enters, leaves = [Sums() for _ in range(levels)], [Sums() for _ in range(levels)]
        received, sent = Sums(), Sums()
        for value in self._values:
            self._add(value, rates, enters, leaves, received, sent)
        bands = [s.band(self.n, time.shape[1]) for s in (*enters, *leaves, received, sent)]
        return _Crossing(rates, profile, time, bands[:levels], bands[levels : 2 * levels], bands[-2], bands[-1])

    def _again(self, c: _Crossing, number: int, limit: int, changed: Sequence[tuple[Value, Value]]) -> _Crossing:
        """What ``c`` is under a lower limit, with values read in another number of stages."""
        time = self._time(c.profile, number, limit)
        length = time.shape[1]
        leaves = [band[:, :length] for band in c.leaves]
        more = [Sums() for _ in leaves]
        for before, after in changed:
            self._leave(before, c.rates, more, -1)
            self._leave(after, c.rates, more, 1)
        leaves = [band + s.band(self.n, length) if s.found else band for band, s in zip(leaves, more, strict=True)]
        enters = [band[:, :length] for band in c.enters]
        return _Crossing(c.rates, c.profile, time, enters, leaves, c.received[:, :length], c.sent[:, :length])

    def _readers(self, value: Value, rates: Rates) -> dict[int, list[tuple[int, Dependence]]]:
        """The readers of a value by allotment; none where they are with its producer, whatever is cut."""
        here = rates.allotments[value.readers[0][1].producer]
        groups: dict[int, list[tuple[int, Dependence]]] = {}
        for segment, d in value.readers:
            groups.setdefault(rates.allotments[d.consumer], []).append((segment, d))
        return {} if set(groups) == {here} and {s for s, _ in value.readers} == {value.home} else groups

    def _leave(self, value: Value, rates: Rates, leaves: list[Sums], sign: int) -> None:
        """Add what the stages pay that a value leaves, where it is sent once for each stage that reads it."""
        for members in self._readers(value, rates).values():
            segments = [s for s, _ in members]
            for level in range(len(leaves)):
                price = rates.between(level, members[0][1])
                out = min(min(price.time, self._longest) * value.stages, self._longest) if price.send else 0
                leaves[level].add(leaving(value.home, segments, self.n, sign * out))

    def _add(
        self, value: Value, rates: Rates, enters: list[Sums], leaves: list[Sums], received: Sums, sent: Sums
    ) -> None:
        """Add what one value costs the stages that it enters, leaves, or moves inside of."""
        n, buffered = self.n, self.network.mode == "buffered"
        here = rates.allotments[value.readers[0][1].producer]
        groups = self._readers(value, rates)
        copies = [0] * len(enters)
        for allotment, members in groups.items():
            segments = [s for s, _ in members]
            d = members[0][1]
            for level in range(len(enters)):
                price = rates.between(level, d)
                time = min(price.time, self._longest)
                enters[level].add(entering(value.home, segments, n, time if price.receive else 0))
                copies[level] = max(copies[level], time if price.send else 0)
            if allotment != here:
                price = rates.inside(d)
                time = min(price.time, self._longest)
                received.add(staying(value.home, segments, n, time if price.receive else 0))
                if self.network.mode == "overlapped":
                    sent.add(staying(value.home, segments, n, time if price.send else 0))
        if not buffered:
            self._leave(value, rates, leaves, 1)
        elif groups:
            for level, time in enumerate(copies):
                if set(groups) == {here}:
                    leaves[level].add(leaving(value.home, [s for s, _ in value.readers], n, time))
                else:
                    leaves[level].add([(0, value.home, value.home + 1, n, time)])
