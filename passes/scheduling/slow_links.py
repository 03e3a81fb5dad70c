"""A lower bound on the period from values that links are too slow to move.

In a period a link carries as many transfers as its capacity, each of at most a period; where transfers stop the
accelerators, running and sending must fit in a period together, and so must receiving and running. From that each
value has a least period below which it cannot move at all, whatever the sets of its ends. At a trial period the ends of
such values run on the same set, in every turn of their copies: their times add up on a common allotment, and each keeps
its own parameters. The trial is excluded when what was joined so no longer fits on the accelerators (canonical area).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from passes.scheduling.copies import copied_columns
from passes.scheduling.data import Dependence, Table
from passes.scheduling.elementary import Bound, area_bound, least, possible
from passes.scheduling.network import NOTHING, NS, Level, Network
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
        if problem.network is not None and problem.network.levels and all(self.times):
            self.edges = list(self._edges(problem.network))

    def _edges(self, network: Network) -> Iterator[Edge]:
        item_of = {v: i for i, item in enumerate(self.problem.items) for v in item}
        plain = type(network).price is Network.price and type(network).price_of is Network.price_of
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
                found = known[key] = self._least(network, d, self.times[u], self.times[v], plain)
            if found > 1:
                yield Edge(u, v, found, same_set)

    def _least(
        self, network: Network, d: Dependence, makes: Mapping[int, int], reads: Mapping[int, int], plain: bool
    ) -> int:
        """The least period in which the value of ``d`` can move."""
        capacity = max(level.capacity for level in network.levels) if network.mode == "overlapped" else 1
        many = self.problem.copies
        turns = many * max(1, many - 1)  # the greatest least common multiple of two numbers of copies
        found: int | None = None
        for s, before in makes.items():
            for t, after in reads.items():
                time = cheapest(network, d, s, t, self.problem.accelerators) if plain else self._asked(network, d, s, t)
                if time is None:
                    continue  # between such sets nothing moves
                if network.mode == "overlapped":
                    period = -(-time // (capacity * turns))
                elif many == 1:
                    period = max(before, after) + time
                else:
                    period = max(max(before, after) // many, -(-time // turns))
                found = period if found is None else min(found, period)
        return self._never() if found is None else found

    def _never(self) -> int:
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
        area = 0
        for group, alike in self._groups(period):
            mine = self._together(group, period) if alike else self._in_common(group, period)
            if mine is None:
                return True
            area += mine
        return area > self.problem.accelerators * period

    def _groups(self, period: int) -> Iterator[tuple[list[int], bool]]:
        """Items that nothing can move between, and whether they run on one set."""
        root = list(range(len(self.times)))

        def find(i: int) -> int:
            while root[i] != i:
                root[i] = root[root[i]]
                i = root[i]
            return i

        slow = [e for e in self.edges if e.least > period]
        for e in slow:
            root[find(e.consumer)] = find(e.producer)
        loose = {find(e.producer) for e in slow if not e.same_set}
        groups: dict[int, list[int]] = {}
        for i in range(len(root)):
            groups.setdefault(find(i), []).append(i)
        for number, group in groups.items():
            yield group, number not in loose

    def _together(self, group: Sequence[int], period: int) -> int | None:
        """The least area of items on one set, all in turn; None when they do not fit in the period, or in memory."""
        first, *others = (self.times[i] for i in group)
        tables = [self.problem.item_tables[i] for i in group]
        columns = [
            (k, sum(self.times[i][k] for i in group), 0, 0)
            for k in set(first).intersection(*others)
            if not others or self._fits(tables, k)
        ]
        if self.problem.copies > 1:
            columns = copied_columns(columns, self.problem.accelerators, self.problem.copies)
        return min((k * time for k, time, _, _ in columns if time <= period), default=None)

    def _fits(self, tables: Sequence[Table], k: int) -> bool:
        """Whether the parameters of all, and what one of them needs beside, fit on an accelerator."""
        memory = self.problem.memory if isinstance(self.problem, MemoryProblem) else 0
        costs = [table[k] for table in tables]
        running = max(c.output + c.workspace if c.time else 0 for c in costs)
        return not memory or sum(c.params for c in costs) + running <= memory

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


def _computes(resources: frozenset[tuple[str, int, int, int]]) -> bool:
    return any(kind == "compute" for kind, _, _, _ in resources)


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
    if all(edge.least <= floor for edge in slow.edges):
        return None
    high = max(floor, *(edge.least for edge in slow.edges))
    value = least(floor, high, lambda period: not slow.excludes(period))
    return (
        None if value <= floor else Bound("slow links", value, "transfers that are quick enough, how operations pack")
    )
