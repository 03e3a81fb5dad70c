"""What values of earlier micro-batches ask of the starts and of the period.

A dependence ``u → v`` of distance ``d`` asks for ``start_v ≥ start_u + t_u - d·T``: a difference of two
starts. The least starts are longest paths; there are some unless a cycle takes longer than its distances
allow, ``Σ t > T · Σ d``. So ``T`` is never below the greatest ratio ``Σ t / Σ d`` of a cycle (Reiter, "Scheduling
parallel computations", Journal of the ACM 15 (1968)).
"""

from __future__ import annotations

from collections.abc import Sequence

from passes.scheduling.data import Dependence
from passes.scheduling.elementary import Bound, least, possible
from passes.scheduling.problem import MemoryProblem, PeriodicProblem, Problem

Back = tuple[int, int, int]
"""Operation that comes first, operation that waits for it, and how many periods later that one is."""


def carried(problem: Problem) -> list[Dependence]:
    """The dependences between different micro-batches."""
    return [d for d in problem.dependences if d.distance]


def back_edges(problem: Problem) -> list[Back]:
    """:func:`carried`, each pair once with its least distance."""
    found: dict[tuple[int, int], int] = {}
    for d in carried(problem):
        key = (d.producer, d.consumer)
        found[key] = min(found.get(key, d.distance), d.distance)
    return [(u, v, distance) for (u, v), distance in found.items()]


def least_starts(
    order: Sequence[int],
    before: Sequence[Sequence[int]],
    times: Sequence[int],
    back: Sequence[Back],
    period: int,
    offsets: Sequence[int] | None = None,
) -> list[int] | None:
    """Least starts of at least 0 after everything in ``before`` and ``back``; None when some cycle is too long.

    ``order`` is a topological order of ``before``. With ``offsets``, starts are congruent to them modulo the
    period. A forward pass gives the earliest starts; what a back edge delays goes into the next pass. A
    longest path without a cycle takes each back edge at most once: more passes show a cycle.
    """
    lower: dict[int, int] = {}
    starts = [0] * len(times)
    for _ in range(len(back) + 1):
        for v in order:
            start = lower.get(v, 0)
            for u in before[v]:
                start = max(start, starts[u] + times[u])
            if offsets is not None:
                start += (offsets[v] - start) % period
            starts[v] = start
        late = False
        for u, v, distance in back:
            need = starts[u] + times[u] - distance * period
            if need > starts[v]:
                lower[v], late = max(lower.get(v, 0), need), True
        if not late:
            return starts
    return None


def shortest_times(problem: PeriodicProblem) -> list[int]:
    """Each operation at its fastest allotment that the platform can give, and that its group has in common."""
    memory = problem.memory if isinstance(problem, MemoryProblem) else 0
    allotments: dict[int, list[int]] = {}
    known: dict[tuple[int, int], int] = {}
    times = [0] * len(problem.operations)
    for item, table in zip(problem.items, problem.item_tables, strict=True):
        if id(table) not in allotments:
            allotments[id(table)] = list(possible(table, problem.accelerators, memory))
        for v in item:
            own = problem.operations[v].table
            key = (id(table), id(own))
            if key not in known:
                known[key] = min((own[k].time for k in allotments[id(table)]), default=0)
            times[v] = known[key]
    return times


def recurrence_bound(problem: PeriodicProblem) -> Bound | None:
    """The greatest ratio of time to distance of a cycle, at the fastest allotments. None without carried values."""
    back = back_edges(problem)
    if not back:
        return None
    times = shortest_times(problem)
    value = least(
        1,
        max(1, sum(times)),
        lambda period: least_starts(problem.topological, problem.predecessors, times, back, period) is not None,
    )
    return Bound("recurrence", value, "that accelerators are shared, and that fast allotments take many of them")
