"""Starts for chosen sets. Copies into and out of a buffer run on accelerators like operations, so nothing is lost.

In mode ``buffered``, with every operation on one accelerator, an accelerator is busy with operations, copies out and
copies in, in any order: one after another they fill the period, and the starts follow from the offsets by least
retiming. In the other modes (and on wider sets) transfers take part in more than one thing at once; there the
operations alone are given starts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, Operation, Solution, Transfer
from passes.scheduling.network import Members
from passes.scheduling.problem import MemoryProblem, PeriodicProblem
from passes.scheduling.retime import CycleTooLong, from_offsets, rotated, windows
from passes.scheduling.shorten import shorten


@dataclass(frozen=True)
class _Copies:
    """A problem in which every copy is an operation of its own, on one accelerator."""

    problem: PeriodicProblem
    sets: list[Members]
    transfers: list[tuple[int, int, Transfer]]
    """Operation that copies out, operation that copies in, and the transfer that they are; its starts do not count."""


def started(
    problem: MemoryProblem,
    allotments: Sequence[int],
    sets: Sequence[Members],
    blocks: Sequence[Members],
    period: int,
    budget: Budget,
) -> Solution:
    """A solution on these ``sets``, each of which keeps its (nested) block busy; its period is ``period`` if it can be.

    It can unless carried values would come too late: then the period is longer. Transfers are part of the solution
    in mode ``buffered`` where all sets are single accelerators.
    """
    network = problem.network
    plain = PeriodicProblem(problem.operations, problem.dependences, (), problem.accelerators)
    copies = _Copies(plain, list(sets), [])
    if network is not None and network.mode == "buffered" and all(len(members) == 1 for members in sets):
        copies = _with_copies(problem, sets)
    more = len(copies.sets) - len(sets)
    wide = [*blocks, *copies.sets[len(sets) :]]
    kinds = [*allotments, *[1] * more]
    times = [o.table[k].time for o, k in zip(copies.problem.operations, kinds, strict=True)]
    order = _as_ready(copies.problem, times, copies.sets)
    offsets = [0] * len(times)
    free: defaultdict[int, int] = defaultdict(int)
    for v in sorted(order, key=lambda v: -len(wide[v])):  # stable: the widest blocks first, then as ordered
        offsets[v] = free[wide[v][0]]
        for p in wide[v]:
            free[p] = offsets[v] + times[v]
    try:
        if all(len(block) == 1 for block in wide):  # accelerators may be turned against each other
            starts = rotated(copies.problem, times, offsets, [block[0] for block in wide], period)
        else:
            starts = from_offsets(copies.problem, times, offsets, period)
        found = Solution(period, tuple(kinds), tuple(copies.sets), starts)
        found = shorten(copies.problem, found, budget=budget)
    except CycleTooLong:  # keep the sets, run everything in the order in which values come
        found = windows(copies.problem, kinds, copies.sets, order)
        assert found is not None, "without a limit there are always windows"
    n = len(sets)
    transfers = tuple(
        replace(t, start=found.starts[leaves], landing=found.starts[comes]) for leaves, comes, t in copies.transfers
    )
    return Solution(found.period, tuple(allotments), tuple(sets), found.starts[:n], transfers=transfers)


def _with_copies(problem: MemoryProblem, sets: Sequence[Members]) -> _Copies:
    """One copy out for each value that leaves its set, one copy in for each other set that reads it."""
    network = problem.network
    assert network is not None
    operations, places = list(problem.operations), list(sets)
    dependences: list[Dependence] = []
    leaves: dict[Hashable, int] = {}
    comes: dict[Hashable, int] = {}
    longest: defaultdict[Hashable, int] = defaultdict(int)
    transfers: list[tuple[int, int, Transfer]] = []
    for d in problem.dependences:
        here, there = sets[d.producer], sets[d.consumer]
        time = network.price(d, here, there).time
        if not d.bytes or here == there or not time:
            dependences.append(d)
            continue
        value, moved = network.key(d, ()), network.key(d, (there,))
        if value not in leaves:
            leaves[value] = len(operations)
            operations.append(Operation("", {}))
            places.append(here)
            dependences.append(Dependence(d.producer, leaves[value]))
        longest[value] = max(longest[value], time)
        if moved not in comes:
            comes[moved] = len(operations)
            operations.append(Operation("", {1: Cost(time)}))
            places.append(there)
            dependences.append(Dependence(leaves[value], comes[moved]))
            only = None if value == (d.producer, d.result, ()) else d.consumer
            transfer = Transfer(d.producer, d.result, (there,), 0, time, 0, only)
            transfers.append((leaves[value], comes[moved], transfer))
        dependences.append(Dependence(comes[moved], d.consumer, 0, d.distance))
    for value, number in leaves.items():
        operations[number] = Operation("", {1: Cost(longest[value])})
    given = PeriodicProblem(tuple(operations), tuple(dependences), (), problem.accelerators)
    return _Copies(given, places, transfers)


def _as_ready(problem: PeriodicProblem, times: Sequence[int], sets: Sequence[Members]) -> list[int]:
    """Operations by their starts when one micro-batch runs alone, the longest path to the end first."""
    tail = list(times)
    for v in reversed(problem.topological):
        tail[v] += max((tail[w] for w in problem.successors[v]), default=0)
    waiting = [len(p) for p in problem.predecessors]
    ready = [0] * len(times)
    queue = [(0, -tail[v], v) for v, w in enumerate(waiting) if not w]
    heapify(queue)
    free: defaultdict[int, int] = defaultdict(int)
    order: list[int] = []
    while queue:
        when, minus, v = heappop(queue)
        start = max([when, *(free[p] for p in sets[v])])
        if start > when:  # not yet: others may come before
            heappush(queue, (start, minus, v))
            continue
        order.append(v)
        for p in sets[v]:
            free[p] = start + times[v]
        for w in problem.successors[v]:
            waiting[w] -= 1
            ready[w] = max(ready[w], start + times[v])
            if not waiting[w]:
                heappush(queue, (ready[w], -tail[w], w))
    return order
