"""Which units a period keeps together, and the least period that they allow.

An accelerator that runs the units ``S`` is busy for at least their times and the transfers of every value with one
end inside and one outside. This is a cut function, so the least load of an accelerator that runs unit ``a`` and not
unit ``b`` is a minimum cut (Picard, "Maximal closure of a graph and applications to combinatorial problems",
Management Science 22, 1976). Where it exceeds the period wanted, ``a`` and ``b`` cannot be apart: they become one
unit, and cuts around that are dearer. Everything here holds for any sets, with the least price of each value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from passes.scheduling.assigned_loads import Choices
from passes.scheduling.budget import Budget

FLOW_WORK = 5e-8
"""Work units of a minimum cut, for each arc."""


class Cuts:
    """Least loads of an accelerator that runs some units and not others."""

    def __init__(self, choices: Choices):
        from ortools.graph.python import max_flow  # pyright: ignore[reportMissingTypeStubs]

        self.flow: Any = max_flow.SimpleMaxFlow()
        units = len(choices.units)
        self.sink = units
        self.times = [min(option.time for option in options) for options in choices.options]
        prices = choices.least_times
        self.endless = 1 + sum(self.times) + 2 * sum(prices)
        self.stop = [self.flow.add_arc_with_capacity(u, self.sink, time) for u, time in enumerate(self.times)]
        extra = units + 1
        for value, price in zip(choices.values, prices, strict=True):
            if not price:
                continue
            if len(value.readers) == 1:
                self.flow.add_arc_with_capacity(value.producer, value.readers[0], price)
                self.flow.add_arc_with_capacity(value.readers[0], value.producer, price)
                continue
            self.flow.add_arc_with_capacity(value.producer, extra, price)
            self.flow.add_arc_with_capacity(extra + 1, value.producer, price)
            for reader in value.readers:
                self.flow.add_arc_with_capacity(extra, reader, self.endless)
                self.flow.add_arc_with_capacity(reader, extra + 1, self.endless)
            extra += 2
        self.work = FLOW_WORK * self.flow.num_arcs() + 1e-5

    def least(self, unit: int, without: int | None = None) -> int:
        """The least load of an accelerator that runs ``unit``, and not the unit ``without``, in ns."""
        if without is not None:
            self.flow.set_arc_capacity(self.stop[without], self.endless)
        self.flow.solve(unit, self.sink)
        if without is not None:
            self.flow.set_arc_capacity(self.stop[without], self.times[without])
        return int(self.flow.optimal_flow())

    def sides(self, unit: int, other: int, share: int) -> list[tuple[int, ...]]:
        """The least and the greatest set with ``unit`` and not ``other`` of least load, at ``share`` % of the times."""
        for u, time in enumerate(self.times):
            self.flow.set_arc_capacity(self.stop[u], time * share // 100)
        self.flow.set_arc_capacity(self.stop[other], self.endless)
        self.flow.solve(unit, self.sink)
        near, far = set(self.flow.get_source_side_min_cut()), set(self.flow.get_sink_side_min_cut())
        for u, time in enumerate(self.times):
            self.flow.set_arc_capacity(self.stop[u], time)
        units = range(len(self.times))
        return [tuple(u for u in units if u in near), tuple(u for u in units if u not in far)]


def contracted(choices: Choices, limit: int, budget: Budget, *, cuts: bool = True) -> Choices | None:
    """``choices`` with units made one that no choice of load at most ``limit`` separates; None when there is none.

    Minimum cuts are looked at while the budget lasts (never without ``cuts``), pairs of neighbours always.
    """
    if choices.network.mode == "overlapped":
        return _within_links(choices, limit)
    while True:
        clusters = _tight_pairs(choices, limit)
        if len(clusters) == len(choices.units):
            if not cuts or budget.spent():
                break
            found = _tight_cuts(choices, limit, budget)
            if found is None:
                return None
            clusters = found
            if len(clusters) == len(choices.units):
                break
        joined = choices.joined(clusters)
        if joined is None or _longest(joined) > limit:
            return None
        choices = joined
    return None if _longest(choices) > limit or _area(choices, limit) > limit * choices.accelerators else choices


def _longest(choices: Choices) -> int:
    return max((min(option.time for option in options) for options in choices.options), default=0)


def _area(choices: Choices, limit: int) -> int:
    """The least area of all units at options within ``limit``."""
    known: dict[int, int] = {}
    total = 0
    for options in choices.options:
        if id(options) not in known:
            known[id(options)] = min((len(o.block) * o.time for o in options if o.time <= limit), default=limit + 1)
        total += known[id(options)]
    return total


class _Clusters:
    """Units that are made one."""

    def __init__(self, count: int):
        self.parent = list(range(count))

    def root(self, unit: int) -> int:
        while self.parent[unit] != unit:
            self.parent[unit] = self.parent[self.parent[unit]]
            unit = self.parent[unit]
        return unit

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self.parent[max(a, b)] = min(a, b)

    def all(self) -> list[list[int]]:
        found: defaultdict[int, list[int]] = defaultdict(list)
        for unit in range(len(self.parent)):
            found[self.root(unit)].append(unit)
        return list(found.values())


def _within_links(choices: Choices, limit: int) -> Choices | None:
    """The same where transfers overlap with computing: a transfer longer than a link has time is impossible."""
    most = max((level.capacity for level in choices.network.levels), default=1)
    clusters = _Clusters(len(choices.units))
    for value in choices.values:
        for d in value.moved:
            if choices.least_of(d) > limit * most:
                for reader in value.readers:
                    clusters.join(value.producer, reader)
    joined = choices.joined(clusters.all())
    if joined is None or _longest(joined) > limit or _area(joined, limit) > limit * choices.accelerators:
        return None
    return joined


def _tight_pairs(choices: Choices, limit: int) -> list[list[int]]:
    """Neighbours joined whose values alone, beside the time of one of them, exceed ``limit``."""
    crossing: defaultdict[tuple[int, int], int] = defaultdict(int)
    for value, price in zip(choices.values, choices.least_times, strict=True):
        for reader in value.readers:
            crossing[min(value.producer, reader), max(value.producer, reader)] += price
    times = [min(option.time for option in options) for options in choices.options]
    clusters = _Clusters(len(times))
    for (a, b), price in crossing.items():
        if max(times[a], times[b]) + price > limit:
            clusters.join(a, b)
    return clusters.all()


def _tight_cuts(choices: Choices, limit: int, budget: Budget) -> list[list[int]] | None:
    """Neighbours joined that no accelerator separates within ``limit``; None when a unit fits on no accelerator."""
    cuts = Cuts(choices)
    clusters = _Clusters(len(choices.units))
    seen: set[tuple[int, int]] = set()
    for unit in range(len(choices.units)):
        budget.spend(cuts.work)
        if cuts.least(unit) > limit:
            return None
    for value in choices.values:
        for reader in value.readers:
            pair = (min(value.producer, reader), max(value.producer, reader))
            if pair in seen or clusters.root(pair[0]) == clusters.root(pair[1]):
                continue
            seen.add(pair)
            if budget.spent():
                return clusters.all()
            budget.spend(2 * cuts.work)
            if cuts.least(*pair) > limit or cuts.least(*pair[::-1]) > limit:
                clusters.join(*pair)
    return clusters.all()


def dominated(choices: Choices) -> Choices:
    """``choices`` with a unit joined to a neighbour where that never makes a load heavier, whatever the rest does.

    Only where all accelerators are alike and have room for all parameters. Put unit ``v`` to where its neighbour
    ``a`` is: that accelerator gains the time of ``v`` and at most its values to and from third units (none of those
    that ``a`` sends anyway), and loses those between the two alone; the accelerator that ``v`` leaves gains less.
    """
    while choices.uniform is not None and choices.roomy:
        times = [min(option.time for option in options) for options in choices.options]
        all_, alone, sent = (
            [0] * len(times),
            defaultdict[tuple[int, int], int](int),
            defaultdict[tuple[int, int], int](int),
        )
        for value, price in zip(choices.values, choices.uniform, strict=True):
            all_[value.producer] += price
            for reader in value.readers:
                all_[reader] += price
                if len(value.readers) == 1:
                    alone[value.producer, reader] += price
                    alone[reader, value.producer] += price
                else:
                    sent[reader, value.producer] += price
        clusters, used = _Clusters(len(times)), set[int]()
        for (v, a), saved in alone.items():
            third = all_[v] - saved - sent[v, a]
            if v not in used and a not in used and saved >= times[v] + third:
                clusters.join(v, a)
                used |= {v, a}
        joined = choices.joined(clusters.all()) if used else None
        if joined is None:
            break
        choices = joined
    return choices


def least_period(choices: Choices, low: int, high: int, budget: Budget) -> int:
    """A lower bound on the heaviest load, at least ``low`` and at most ``high``, by bisection over contractions.

    A period is impossible when what it keeps together takes longer, or has no area left.
    """
    while low < high and not budget.spent():
        middle = (low + high) // 2
        if contracted(choices, middle, budget) is None:
            low = middle + 1
        else:
            high = middle
    return low


def projected(choices: Choices, joined: Choices, at: Sequence[int]) -> list[int]:
    """Options of the units of ``joined``: for each the set of most of what it consists of by time, where possible."""
    of = {v: number for number, unit in enumerate(joined.units) for v in unit}
    weight: list[defaultdict[int, int]] = [defaultdict(int) for _ in joined.units]
    for unit, options, number in zip(choices.units, choices.options, at, strict=True):
        weight[of[unit[0]]][options[number].place] += 1 + options[number].time
    found: list[int] = []
    for options, mine in zip(joined.options, weight, strict=True):
        found.append(max(range(len(options)), key=lambda i: (mine[options[i].place], -i)))
    return found


def undone(choices: Choices, joined: Choices, at: Sequence[int]) -> list[int]:
    """The options of the units of ``choices`` that the options ``at`` of units of ``joined`` mean.

    A unit that offers another set of the block, where it is faster by itself, takes that: the load is then another.
    """
    of = {v: number for number, unit in enumerate(joined.units) for v in unit}
    found: list[int] = []
    for unit, options in zip(choices.units, choices.options, strict=True):
        number = of[unit[0]]
        wanted = joined.options[number][at[number]]
        on_block = ((o.members != wanted.members, o.time, i) for i, o in enumerate(options) if o.block == wanted.block)
        found.append(min(on_block)[2])
    return found
