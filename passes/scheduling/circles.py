"""Circles of time: when a resource of a pattern that repeats is used, and the next time that it is free."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

Segment = tuple[int, int, int]
"""What something asks of a circle: ns after it starts, for how many ns, and how many shares of the resource."""


class Circle:
    """How many users a resource has at each moment of a ``cycle``; it has room for ``capacity``."""

    def __init__(self, cycle: int, capacity: int = 1):
        self.cycle, self.capacity = cycle, capacity
        self._points = [0]
        """Where the number of users changes, increasing; the first is 0."""
        self._levels = [0]

    def next_free(self, begin: int, time: int, share: int = 1) -> int | None:
        """The earliest time from ``begin`` on from which ``share`` more have room for ``time`` ns; None: never."""
        room = self.capacity - share
        if room < 0 or time > self.cycle:
            return None
        if not time:
            return begin
        points, levels, cycle = self._points, self._levels, self.cycle
        last = len(points) - 1
        at = begin % cycle
        base, start = begin - at, begin
        j = bisect_right(points, at) - 1
        while True:
            end = base + (points[j + 1] if j < last else cycle)
            if levels[j] > room:
                start = end
                if start - begin >= cycle:
                    return None
            elif end - start >= time:
                return start
            if j < last:
                j += 1
            else:
                j, base = 0, base + cycle

    def add(self, begin: int, time: int, share: int = 1) -> None:
        """Let ``share`` more use it for ``time`` ns from ``begin`` on, at most a cycle."""
        if not time:
            return
        if time >= self.cycle:
            self._levels = [level + share for level in self._levels]
            return
        first, after = begin % self.cycle, (begin + time) % self.cycle
        self._cut(first)
        self._cut(after)
        points, levels = self._points, self._levels
        j = bisect_right(points, first) - 1
        while points[j] != after:
            levels[j] += share
            j = j + 1 if j + 1 < len(points) else 0
        for at in (first, after):
            self._join(at)

    def _cut(self, at: int) -> None:
        j = bisect_right(self._points, at)
        if self._points[j - 1] != at:
            self._points.insert(j, at)
            self._levels.insert(j, self._levels[j - 1])

    def _join(self, at: int) -> None:
        j = bisect_right(self._points, at) - 1
        if j and self._points[j] == at and self._levels[j] == self._levels[j - 1]:
            del self._points[j], self._levels[j]


def demand(begins: Sequence[int], time: int, cycle: int) -> list[Segment]:
    """What runs of ``time`` ns, one from each of ``begins`` on, ask of a circle together."""
    if not time:
        return []
    if len(begins) == 1 and time <= cycle:
        return [(begins[0], time, 1)]
    always = 0
    changes: dict[int, int] = {0: 0}
    for begin in begins:
        whole, rest = divmod(time, cycle)
        always += whole
        if rest:
            at = begin % cycle
            changes[at] = changes.get(at, 0) + 1
            changes[(at + rest) % cycle] = changes.get((at + rest) % cycle, 0) - 1
            if at + rest >= cycle:
                always += 1
    found: list[Segment] = []
    points = sorted(changes)
    level = always
    for at, after in zip(points, [*points[1:], cycle], strict=True):
        level += changes[at]
        if level:
            found.append((at, after - at, level))
    return found


Footprint = Sequence[tuple[Circle, Sequence[Segment]]]
"""Everything that something occupies."""


def earliest(footprint: Footprint, begin: int) -> int | None:
    """The earliest time from ``begin`` on at which all of ``footprint`` is free; None when there is none."""
    start = begin
    longest = max((circle.cycle for circle, _ in footprint), default=0)
    moved = True
    while moved:
        moved = False
        for circle, segments in footprint:
            for after, time, share in segments:
                free = circle.next_free(start + after, time, share)
                if free is None or free - after - begin >= longest:
                    return None
                if free - after > start:
                    start, moved = free - after, True
    return start


def occupy(footprint: Footprint, start: int) -> None:
    """Let something of this footprint start at ``start``."""
    for circle, segments in footprint:
        for after, time, share in segments:
            circle.add(start + after, time, share)
