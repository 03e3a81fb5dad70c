"""A lower bound on the period from values that links are too slow to move.

In a period a link carries as many transfers as its capacity, each of at most a period; where transfers stop the
accelerators, running and sending must fit in a period together, and so must receiving and running. From that each
value has a least period below which it cannot move at all, whatever the sets of its ends. At a trial period the ends of
such values run on the same set, in every turn of their copies: their times add up on a common allotment, and each keeps
its own parameters. What was joined takes longer and may be too long for the next value. The trial is excluded when what
was joined so no longer fits on the accelerators (canonical area).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from passes.scheduling.copies import copied_columns
from passes.scheduling.data import Dependence
from passes.scheduling.elementary import Bound, area_bound, least, possible
from passes.scheduling.network import COMPUTE, NOTHING, NS, Level, Network, Resource
from passes.scheduling.problem import MemoryProblem, PeriodicProblem

PRICES = 300_000
"""Prices asked for, at most, on a network that has its own."""


@dataclass(frozen=True)
class Edge:
    """A value between two items that cannot move in a period of less than ``least``."""

    producer: int
    consumer: int
    least: int
    same_set: bool
    """Whether items between which it cannot move run on one set; else they only have an accelerator in common."""
    value: Dependence


class SlowLinks:
    """The values of a problem that may be too slow to move; ``edges`` is empty where nothing can be said."""

    def __init__(self, problem: PeriodicProblem):
        self.problem = problem
        memory = problem.memory if isinstance(problem, MemoryProblem) else 0
        known: dict[int, dict[int, int]] = {}
        self.times: list[dict[int, int]] = []
        """Allotment → time of each item, of the allotments that some schedule might use."""
        for table in problem.item_tables:
            if id(table) not in known:
                known[id(table)] = possible(table, problem.accelerators, memory)
            self.times.append(known[id(table)])
        self.edges: list[Edge] = []
        self._times: dict[tuple[int, ...], int | None] = {}
        self._plain = False
        """Whether the prices of the network are those of ``network.py``."""
        if problem.network is not None and problem.network.levels and all(self.times):
            kind = type(problem.network)
            self._plain = kind.price is Network.price and kind.price_of is Network.price_of
            self.edges = list(self._edges(problem.network))

    def _edges(self, network: Network) -> Iterator[Edge]:
        item_of = {v: i for i, item in enumerate(self.problem.items) for v in item}
        plain = self._plain
        if network.mode == "overlapped" and not (plain and _always_used(network)):
            return
        pairs = self.problem.accelerators**2
        if not plain and pairs * len(self.problem.dependences) > PRICES:
            return
        known: dict[tuple[int, int, int, bool], int] = {}
        for d in self.problem.dependences:
            u, v = item_of[d.producer], item_of[d.consumer]
            same_set = network.mode != "overlapped" or d.split
            if u == v or not d.bytes or (not same_set and self.problem.copies > 1):
                continue
            key = (id(self.times[u]), id(self.times[v]), d.bytes, d.split)
            found = known.get(key) if plain else None
            if found is None:
                found = known[key] = self._least(network, d, self.times[u], self.times[v])
            yield Edge(u, v, found, same_set, d)

    def _least(self, network: Network, d: Dependence, makes: Mapping[int, int], reads: Mapping[int, int]) -> int:
        """The least period in which the value of ``d`` can move."""
        capacity = max(level.capacity for level in network.levels) if network.mode == "overlapped" else 1
        many = self.problem.copies
        turns = many * max(1, many - 1)  # the greatest least common multiple of two numbers of copies
        found: int | None = None
        for s, before in makes.items():
            for t, after in reads.items():
                time = self._time(network, d, s, t)
                if time is None:
                    continue  # between such sets nothing moves
                if network.mode == "overlapped":
                    period = -(-time // (capacity * turns))
                elif many == 1:
                    period = max(before, after) + time
                else:
                    period = max(max(before, after) // many, -(-time // turns))
                found = period if found is None else min(found, period)
        return self.never if found is None else found

    def _time(self, network: Network, d: Dependence, s: int, t: int) -> int | None:
        """A lower bound on the time of a transfer from ``s`` to ``t`` accelerators; None where nothing moves."""
        kind = (d.bytes, d.split) if self._plain else (d.producer, d.consumer, d.result)
        key = (*kind, s, t)
        if key not in self._times:
            plain = cheapest(network, d, s, t, self.problem.accelerators) if self._plain else None
            self._times[key] = plain if self._plain else self._asked(network, d, s, t)
        return self._times[key]

    @cached_property
    def never(self) -> int:
        """A period that is longer than any bound: all items one after another, at their slowest."""
        return 1 + sum(max(times.values()) for times in self.times)

    def _asked(self, network: Network, d: Dependence, s: int, t: int) -> int | None:
        """The least time of a transfer by the network's own prices; 0 when there are too many to ask for."""
        if s > 1 or t > 1:
            return 0
        count = range(self.problem.accelerators)
        prices = [network.price(d, (a,), (b,)) for a in count for b in count if a != b]
        if any(p == NOTHING or not (_computes(p.send) and _computes(p.receive)) for p in prices):
            return 0
        return min((p.time for p in prices), default=None)

    # --- trial --------------------------------------------------------------------------------

    def excludes(self, period: int) -> bool:
        """Whether no schedule has a period of ``period`` or less."""
        joined = Joined(self.times, self._fits)
        loose: set[int] = set()
        for e in self.edges:
            if e.least > period:
                joined.join(e.producer, e.consumer)
                loose |= set() if e.same_set else {e.producer}
        network = self.problem.network
        if network is not None and network.mode != "overlapped" and self.problem.copies == 1:
            while self._join_more(network, joined, period):
                pass
        area = 0
        apart = {joined.find(i) for i in loose}
        for number, group in joined.groups().items():
            columns = joined.columns(number)
            mine = self._in_common(group, period) if number in apart else self._together(columns, period)
            if mine is None:
                return True
            area += mine
        return area > self.problem.accelerators * period

    def _join_more(self, network: Network, joined: Joined, period: int) -> bool:
        """Join what cannot be apart because of all that it takes together; whether something was joined."""
        between: dict[tuple[int, int], tuple[dict[tuple[int, int], Dependence], dict[tuple[int, int], Dependence]]] = {}
        for e in self.edges:
            u, v = joined.find(e.producer), joined.find(e.consumer)
            if u != v:
                pair = between.setdefault((min(u, v), max(u, v)), ({}, {}))
                pair[0 if u < v else 1][e.value.producer, e.value.result] = e.value
        more = False
        for pair, (there, back) in between.items():
            u, v = (joined.find(i) for i in pair)
            if u == v:
                continue
            if joined.alone(u) and joined.alone(v) and len(there) + len(back) == 1:
                continue  # known from the edge
            if not self._may_part(network, joined.columns(u), joined.columns(v), there.values(), back.values(), period):
                joined.join(u, v)
                more = True
        return more

    def _may_part(
        self,
        network: Network,
        first: Mapping[int, int],
        second: Mapping[int, int],
        there: Collection[Dependence],
        back: Collection[Dependence],
        period: int,
    ) -> bool:
        """Whether two groups of items can run on different sets: both have time to run and for the values between."""
        for s, mine in first.items():
            if mine >= period:
                continue
            for t, theirs in second.items():
                out = [(self._time(network, d, s, t), d.split or s <= t) for d in there]
                into = [(self._time(network, d, t, s), d.split or t <= s) for d in back]
                if any(time is None for time, _ in (*out, *into)):
                    continue  # between such sets nothing moves
                sent, received = _sums(out), _sums(into)
                if mine + sent[1] + received[0] <= period and theirs + sent[0] + received[1] <= period:
                    return True
        return False

    def _together(self, columns: Mapping[int, int], period: int) -> int | None:
        """The least area of items on one set, all in turn; None when they do not fit in the period."""
        wide = [(k, time, 0, 0) for k, time in columns.items()]
        if self.problem.copies > 1:
            wide = copied_columns(wide, self.problem.accelerators, self.problem.copies)
        return min((k * time for k, time, _, _ in wide if time <= period), default=None)

    def _fits(self, group: Sequence[int], k: int) -> bool:
        """Whether the parameters of all, and what one of them needs beside, fit on an accelerator."""
        memory = self.problem.memory if isinstance(self.problem, MemoryProblem) else 0
        if not memory:
            return True
        costs = [self.problem.item_tables[i][k] for i in group]
        running = max(c.output + c.workspace if c.time else 0 for c in costs)
        return sum(c.params for c in costs) + running <= memory

    def _in_common(self, group: Sequence[int], period: int) -> int | None:
        """The least area of items that all run on some accelerator, at allotments of their own."""
        shortest = [min(self.times[i].values()) for i in group]
        spare = period - sum(shortest)
        if spare < 0:
            return None
        return sum(
            min(k * time for k, time in self.times[i].items() if time <= short + spare)
            for i, short in zip(group, shortest, strict=True)
        )


class Joined:
    """Groups of items, and allotment → time of those that run on one set."""

    def __init__(self, times: Sequence[Mapping[int, int]], fits: Callable[[Sequence[int], int], bool]):
        self._root = list(range(len(times)))
        self._times, self._fits = times, fits
        self._members = [[i] for i in self._root]
        self._columns: dict[int, Mapping[int, int]] = dict(enumerate(times))

    def find(self, i: int) -> int:
        """The item that stands for the group of ``i``."""
        while self._root[i] != i:
            self._root[i] = self._root[self._root[i]]
            i = self._root[i]
        return i

    def join(self, i: int, j: int) -> None:
        """Let the groups of two items be one."""
        u, v = self.find(i), self.find(j)
        if u != v:
            u, v = (u, v) if len(self._members[u]) >= len(self._members[v]) else (v, u)
            self._root[v] = u
            self._members[u] += self._members[v]
            mine, theirs = self._columns[u], self._columns.pop(v)
            self._columns[u] = {k: time + theirs[k] for k, time in mine.items() if k in theirs}

    def alone(self, number: int) -> bool:
        """Whether a group is one item."""
        return len(self._members[number]) == 1

    def columns(self, number: int) -> Mapping[int, int]:
        """Allotment → time of a group on one set on which its parameters fit."""
        if self.alone(number):
            return self._columns[number]
        members = self._members[number]
        return {k: time for k, time in self._columns[number].items() if self._fits(members, k)}

    def groups(self) -> dict[int, list[int]]:
        """The items of each group."""
        return {number: self._members[number] for number in self._columns}


def _sums(times: Sequence[tuple[int | None, bool]]) -> tuple[int, int]:
    """What copies take on every accelerator that receives them, and on one that sends: all that every one sends."""
    known = [(time, every) for time, every in times if time is not None]
    some = max((time for time, every in known if not every), default=0)
    return sum(time for time, _ in known), some + sum(time for time, every in known if every)


def _computes(resources: frozenset[Resource]) -> bool:
    return any(kind == COMPUTE for kind, _, _, _ in resources)


def _always_used(network: Network) -> bool:
    """Whether what moves between different accelerators occupies a link, at whichever level."""
    first, *outer = network.levels
    return all(level.topology == "switch" for level in outer) and (first.topology != "torus" or not first.shape)


def cheapest(network: Network, d: Dependence, s: int, t: int, accelerators: int) -> int | None:
    """A lower bound on the time from any set of ``s`` to any other of ``t`` accelerators; None when there are none.

    The busiest end sends its part at least, at the best rate of the levels that can hold both; see ``network.py``.
    """
    if s == t == accelerators:
        return None
    size, pieces = d.bytes, -(-t // s)
    direct = -(-size // min(s, t)) if d.split else pieces * size
    wide = [*(level for level in network.levels if level.size >= max(s, t)), network.levels[-1]]
    found = min(_ns(level, direct) for level in wide)
    if not d.split and t > 1:
        inner = [*(level for level in network.levels if level.size >= t), network.levels[-1]]
        scattered = min(_ns(level, pieces * -(-size // t)) for level in wide)
        found = min(found, scattered + min(_ns(level, size - size // t) for level in inner))
    return found


def _ns(level: Level, size: int) -> int:
    return level.latency + -(-NS * size // level.rate)


def slow_links_bound(problem: PeriodicProblem) -> Bound | None:
    """The least period that :class:`SlowLinks` does not exclude; None when that is no more than the area says."""
    slow = SlowLinks(problem)
    floor = area_bound(problem).value
    if not slow.edges or not slow.excludes(floor):
        return None
    high = max(1, 2 * floor)
    while slow.excludes(high):
        high *= 2
        if high > 2 * (floor + slow.never):
            return None  # nothing fits in memory, whatever the period
    value = least(floor, high, lambda period: not slow.excludes(period))
    leaves_out = "transfers that are quick enough, how operations pack"
    return None if value <= floor else Bound("slow links", value, leaves_out)
