"""When things are busy: intervals that do not overlap, and the first gap into which another one fits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence


class Timeline:
    """What occupies one thing that does one thing at a time; neighbouring intervals are one."""

    def __init__(self) -> None:
        self.begins: list[int] = []
        self.ends: list[int] = []

    def fit(self, at: int, time: int) -> int:
        """The first moment from ``at`` on from which it is free for ``time``."""
        number = bisect_right(self.ends, at)
        while number < len(self.begins) and self.begins[number] < at + time:
            at = self.ends[number]
            number += 1
        return at

    def add(self, begin: int, time: int) -> None:
        """Occupy a gap."""
        begins, ends, end = self.begins, self.ends, begin + time
        number = bisect_left(begins, begin)
        before = number > 0 and ends[number - 1] == begin
        after = number < len(begins) and begins[number] == end
        if before and after:
            ends[number - 1] = ends.pop(number)
            del begins[number]
        elif before:
            ends[number - 1] = end
        elif after:
            begins[number] = begin
        else:
            begins.insert(number, begin)
            ends.insert(number, end)


class Lanes:
    """What carries several things at a time: each takes a lane for itself."""

    def __init__(self, count: int) -> None:
        self.lanes = [Timeline() for _ in range(count)]

    def fit(self, at: int, time: int) -> int:
        """The first moment from ``at`` on from which a lane is free for ``time``."""
        return min(lane.fit(at, time) for lane in self.lanes)

    def add(self, begin: int, time: int) -> None:
        """Occupy a lane that is free then."""
        next(lane for lane in self.lanes if lane.fit(begin, time) == begin).add(begin, time)


Line = Timeline | Lanes


def fit_all(lines: Sequence[Line], at: int, time: int) -> int:
    """The first moment from ``at`` on from which all are free for ``time``."""
    while True:
        moment = at
        for line in lines:
            moment = line.fit(moment, time)
        if moment == at:
            return at
        at = moment


def add_all(lines: Iterable[Line], begin: int, time: int) -> None:
    """Occupy all."""
    if time:
        for line in lines:
            line.add(begin, time)
