"""Short latency on branching graphs: operations grow while the critical path is long, then list scheduling.

Every operation begins at its allotment of least area. The critical path and the area per accelerator both
bound the latency of one micro-batch from below; growing operations of the critical path shortens the one
and raises the other, and where they meet is a good compromise (Radulescu and van Gemund, "A low-cost approach
towards mixed task and data parallel scheduling", ICPP 2001). Since the area says little about how operations
pack, list schedules are built for many steps of the way, and the best is kept.

Operations keep their accelerators in every micro-batch. The schedule of one micro-batch repeats whenever
a period is over in which its pattern meets no copy of itself; starts may be moved later for a shorter period
where a batch gains by that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution, Violation
from passes.scheduling.elementary import usable
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.recurrence import back_edges
from passes.scheduling.retime import OrderedStarts

STEPS = 100_000
"""Operations placed in all list schedules together; at least :data:`LEAST` schedules are built."""

LEAST = 4

GROWTHS = 2_000_000
"""Operations and dependences looked at while operations grow."""

LOOK = 64
"""Ready operations that may be passed over because they do not fit at the moment."""

SMALL = 20_000
"""Operations times allotments up to which starts are moved later for a shorter period."""

MEMORY_ROUNDS = 4
"""How often list schedules are built again with more memory kept free for live values."""


@dataclass(frozen=True)
class Listed:
    """One micro-batch: allotments, sets and starts, and the order in which operations were started."""

    allotments: tuple[int, ...]
    sets: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    order: tuple[int, ...]
    latency: int
    load: int
    """Busy ns of the busiest accelerator: no period is shorter."""


def schedule_list(
    problem: MemoryProblem, microbatches: int = 1, *, tolerance: float = 0.005, budget: Budget | None = None
) -> tuple[Solution, str]:
    """A verified schedule of small ``(m - 1)·period + latency``, and the engine that found it.

    Of plans with a value within ``tolerance`` of the least the one with the shortest period. Operations
    run anywhere; sets no wider than a group stay inside one. Raises :class:`InvalidProblem` when no list
    schedule fits in memory.
    """
    budget = budget or Budget()
    if not problem.operations:
        return Solution(1, (), (), ()), "list"
    growth = list(_grow(problem))
    reserve = 0
    refused: list[Violation] = []
    for _ in range(MEMORY_ROUNDS):
        listed = _all_listed(problem, growth, reserve, microbatches, budget)
        refused = refused if refused and not listed else []
        found = sorted(
            (s for one in listed[:3] for s in _periodic(problem, one, microbatches)),
            key=lambda s: (_value(problem, s, microbatches), s.period),
        )
        near = [s for s in found if _value(problem, s, microbatches) <= _limit(problem, found, microbatches, tolerance)]
        near.sort(key=lambda s: s.period)
        for solution in (*near, *found[len(near) :]):
            broken = problem.violations(solution)
            if not broken:
                budget.report("list", solution.period)
                return solution, "list"
            refused = broken
        missing = max((v.missing for v in refused), default=0)
        if not missing or not listed:
            break
        reserve += missing
    message = "no list schedule keeps the parameters of every accelerator in memory"
    raise InvalidProblem(refused or [Violation("memory", message)])


def _value(problem: MemoryProblem, s: Solution, microbatches: int) -> int:
    return (microbatches - 1) * s.period + problem.latency(s)


def _limit(problem: MemoryProblem, found: Sequence[Solution], microbatches: int, tolerance: float) -> float:
    return _value(problem, found[0], microbatches) * (1 + tolerance) if found else 0.0


# --- allotments ------------------------------------------------------------------------------


def _columns(problem: MemoryProblem) -> list[list[tuple[int, int]]]:
    """(Allotment, time) of each operation, growing from the one of least area, each faster than all before."""
    known: dict[int, list[tuple[int, int]]] = {}
    for o in problem.operations:
        if id(o.table) in known:
            continue
        times = usable(o.table, problem.accelerators, problem.memory) or usable(o.table, problem.accelerators)
        first = min(times, key=lambda k: (k * times[k], times[k], k))
        column = [(first, times[first])]
        for k in sorted(times):
            if k > first and times[k] < column[-1][1]:
                column.append((k, times[k]))
        known[id(o.table)] = column
    return [known[id(o.table)] for o in problem.operations]


def _grow(problem: MemoryProblem) -> Iterator[list[tuple[int, int]]]:
    """(Allotment, time) of every operation, step by step with a shorter critical path and a larger area."""
    columns = _columns(problem)
    at = [0] * len(columns)
    possible = sum(len(c) - 1 for c in columns)
    rounds = max(8, min(200, GROWTHS // (len(columns) + len(problem.dependences))))
    batch = max(1, possible // rounds)
    area = sum(c[0][0] * c[0][1] for c in columns)
    enough: int | None = None
    while True:
        chosen = [column[i] for column, i in zip(columns, at, strict=True)]
        yield chosen
        head, tail = _paths(problem, [t for _, t in chosen])
        longest = max(h + t for h, t in zip(head, tail, strict=True))
        if longest * problem.accelerators <= area:
            enough = 2 * area if enough is None else enough
        if enough is not None and area > enough:
            return
        gains: list[tuple[float, int]] = []
        for v, column in enumerate(columns):
            if head[v] + tail[v] == longest and at[v] + 1 < len(column):
                (k, t), (wider, less) = column[at[v]], column[at[v] + 1]
                gains.append((-(t - less) / max(1e-9, wider * less - k * t), v))
        if not gains:
            return
        gains.sort()
        for _, v in gains[:batch]:
            (k, t), (wider, less) = columns[v][at[v]], columns[v][at[v] + 1]
            area += wider * less - k * t
            at[v] += 1


def _paths(problem: MemoryProblem, times: Sequence[int]) -> tuple[list[int], list[int]]:
    """Longest path before each operation, and from its start to the end."""
    head, tail = [0] * len(times), [0] * len(times)
    for v in problem.topological:
        head[v] = max((head[u] + times[u] for u in problem.predecessors[v]), default=0)
    for v in reversed(problem.topological):
        tail[v] = times[v] + max((tail[w] for w in problem.successors[v]), default=0)
    return head, tail


# --- one micro-batch -------------------------------------------------------------------------


def _all_listed(
    problem: MemoryProblem, growth: Sequence[list[tuple[int, int]]], reserve: int, microbatches: int, budget: Budget
) -> list[Listed]:
    """List schedules of some of the allotments, best first; none where parameters do not fit."""
    count = max(LEAST, STEPS // len(problem.operations) // 2)
    number = min(count, len(growth))
    picks = sorted({round(i * (len(growth) - 1) / max(1, number - 1)) for i in range(number)})
    found: list[Listed] = []
    for pick in picks:
        for strict in (False, True):
            one = list_schedule(problem, growth[pick], reserve, strict=strict)
            budget.spend(3e-5 * len(problem.operations))
            if one is not None:
                found.append(one)
        if found and budget.spent():
            break
    unique = {(one.sets, one.starts): one for one in found}
    return sorted(unique.values(), key=lambda one: (microbatches - 1) * one.load + one.latency)


class _Machine:
    """Accelerators of a platform at one time: which are free, how busy they were, and bytes left for parameters."""

    def __init__(self, problem: MemoryProblem, reserve: int):
        self.count, self.group = problem.accelerators, problem.group
        self.limited = bool(problem.memory)
        self.free = np.ones(self.count, dtype=bool)
        self.load: NDArray[Any] = np.zeros(self.count, dtype=np.float64)
        self.room: NDArray[Any] = np.full(self.count, problem.memory - reserve, dtype=np.float64)

    def choose(self, k: int, params: int) -> NDArray[Any] | None:
        """The ``k`` least busy free accelerators with room for ``params``, in as few groups as possible."""
        fit = self.free & (self.room >= params) if self.limited and params else self.free
        places = np.flatnonzero(fit)
        if len(places) < k:
            return None
        if self.group < self.count:
            groups = -(-k // self.group)
            have = np.bincount(places // self.group)
            best = np.argsort(-have, kind="stable")[:groups]
            if k <= self.group:  # the fullest group in which they fit, to keep others whole
                best = np.flatnonzero(have >= k)
                best = best[np.argsort(have[best], kind="stable")[:1]]
            places = places[np.isin(places // self.group, best)]
            if len(places) < k:
                return None
        return np.sort(places[np.argsort(self.load[places], kind="stable")[:k]])


def list_schedule(
    problem: MemoryProblem, chosen: Sequence[tuple[int, int]], reserve: int = 0, *, strict: bool = False
) -> Listed | None:
    """Start ready operations as soon as accelerators are free, those with the longest path to the end first.

    With ``strict`` none overtakes one that waits for accelerators. ``chosen`` holds allotment and time of each
    operation. None when parameters, beside ``reserve`` bytes kept free on each accelerator, do not fit.
    """
    n = len(chosen)
    times = [t for _, t in chosen]
    _, tail = _paths(problem, times)
    machine = _Machine(problem, reserve)
    waiting = [len(p) for p in problem.predecessors]
    ready = [(-tail[v], v) for v in range(n) if waiting[v] == 0]
    heapify(ready)
    running: list[tuple[int, int]] = []
    starts, sets = [0] * n, [np.empty(0, dtype=np.int64)] * n
    order: list[int] = []
    now = 0
    while len(order) < n or running:
        passed: list[tuple[int, int]] = []
        while ready and len(passed) < (1 if strict else LOOK):
            v = ready[0][1]
            k = chosen[v][0]
            params = problem.operations[v].table[k].params
            members = machine.choose(k, params)
            if members is None:
                passed.append(heappop(ready))
                continue
            heappop(ready)
            machine.free[members] = False
            machine.load[members] += times[v]
            machine.room[members] -= params
            starts[v], sets[v] = now, members
            order.append(v)
            heappush(running, (now + times[v], v))
            if times[v] == 0:
                break  # it is over at once: its readers and its accelerators come back before time goes on
        for item in passed:
            heappush(ready, item)
        if not running:
            return None
        now = running[0][0]
        while running and running[0][0] == now:
            v = heappop(running)[1]
            machine.free[sets[v]] = True
            for w in problem.successors[v]:
                waiting[w] -= 1
                if waiting[w] == 0:
                    heappush(ready, (-tail[w], w))
    members = tuple(tuple(s.tolist()) for s in sets)
    latency = max(s + t for s, t in zip(starts, times, strict=True))
    allotments = tuple(k for k, _ in chosen)
    load = max(1, _heaviest(problem, members, times))
    return Listed(allotments, members, tuple(starts), tuple(order), latency, load)


def _heaviest(problem: MemoryProblem, sets: Sequence[tuple[int, ...]], times: Sequence[int]) -> int:
    load = [0] * problem.accelerators
    for members, time in zip(sets, times, strict=True):
        for p in members:
            load[p] += time
    return max(load)


# --- the period ------------------------------------------------------------------------------


def _periodic(problem: MemoryProblem, one: Listed, microbatches: int) -> Iterator[Solution]:
    """Schedules that repeat ``one``: as it is, and with starts moved later for shorter periods."""

    def solution(period: int, starts: Sequence[int]) -> Solution:
        return Solution(period, one.allotments, one.sets, tuple(starts))

    times = [o.table[k].time for o, k in zip(problem.operations, one.allotments, strict=True)]
    window = _window(problem, one, times)
    yield solution(window, one.starts)
    if len(times) * max(one.allotments) > SMALL:
        return
    for period in _between(one.load, window, 24):
        repeated = solution(period, one.starts)
        if not any(problem.verify_exclusive(repeated)) and not any(problem.verify_precedence(repeated)):
            yield repeated
            break
    ordered = OrderedStarts(problem, times, one.sets, one.order)
    if microbatches == 1:
        found = _same_latency(ordered, one, times, window)
        if found is not None:
            yield solution(*found)
        return
    least = ordered.least_period(window)
    if least is None:
        return
    yield solution(*least)
    for period in _between(least[0], window, 12):
        starts = ordered.starts(period)
        if starts is not None:
            yield solution(period, starts)


def _window(problem: MemoryProblem, one: Listed, times: Sequence[int]) -> int:
    """A period for the starts as they are: no accelerator begins again before it is done."""
    first, last = [one.latency] * problem.accelerators, [0] * problem.accelerators
    for members, start, time in zip(one.sets, one.starts, times, strict=True):
        for p in members:
            first[p], last[p] = min(first[p], start), max(last[p], start + time)
    window = max(1, max(b - a for a, b in zip(first, last, strict=True)))
    for u, v, distance in back_edges(problem):
        window = max(window, -(-(one.starts[u] + times[u] - one.starts[v]) // distance))
    return window


def _between(low: int, high: int, count: int) -> list[int]:
    """Increasing periods from ``low`` to below ``high``, in about equal ratios."""
    ratio = max(1.0, high / low) ** (1 / count)
    return sorted({p for p in (int(low * ratio**i) for i in range(count)) if low <= p < high})


def _same_latency(
    ordered: OrderedStarts, one: Listed, times: Sequence[int], window: int
) -> tuple[int, list[int]] | None:
    """The least period at which the starts of this order still give its latency."""
    low, high = ordered.load, window
    best: tuple[int, list[int]] | None = None
    while low < high:
        middle = (low + high) // 2
        starts = ordered.starts(middle)
        if starts is not None and max(s + t for s, t in zip(starts, times, strict=True)) <= one.latency:
            best, high = (middle, starts), middle
        else:
            low = middle + 1
    return best
