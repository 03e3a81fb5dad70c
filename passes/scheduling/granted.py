"""Schedules inside granted blocks: allotments, sets and starts for a staged problem, whoever staged it."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from passes.scheduling.budget import Budget
from passes.scheduling.data import Solution
from passes.scheduling.elementary import usable
from passes.scheduling.linked_loads import calmest, is_linked
from passes.scheduling.problem import StagedProblem
from passes.scheduling.profiles import fastest
from passes.scheduling.retime import aligned, windows


def schedule_blocks(problem: StagedProblem, *, budget: Budget | None = None) -> tuple[Solution, str]:
    """A schedule of small period, and the engine that found it.

    Each operation runs at its fastest allotment on its block (a shared one on both blocks when that is
    allowed), a group at its fastest common one on what all its operations may use. Blocks used by one stage
    run it once a window; when several stages share a block their operations are packed on the circle instead.
    Of the two the shorter period wins, then latency.
    """
    budget = budget or Budget()
    allotments = choose_allotments(problem)
    sets = place(problem, allotments)
    order = stage_order(problem)
    engine = "alignment"
    best = aligned(problem, allotments, sets, order)
    if best is not None:
        budget.report(engine, best.period)
    if best is not None and _crowded(problem):
        return best, engine
    other = windows(problem, allotments, sets, order, None if best is None else best.period)
    if other is not None and (
        best is None or (other.period, problem.latency(other)) <= (best.period, problem.latency(best))
    ):
        best, engine = other, "windows"
        budget.report(engine, best.period)
    assert best is not None, "without a limit there are always windows"
    return best, engine


CROWDED = 2_000_000
"""Operations times blocks from which on windows are not tried for stages that share blocks."""


def _crowded(problem: StagedProblem) -> bool:
    """Whether windows would only cost time: what a block runs again later does not fit in one, most often."""
    blocks = len(set(problem.blocks))
    return blocks < len(problem.blocks) and blocks * len(problem.operations) > CROWDED


def choose_allotments(problem: StagedProblem) -> list[int]:
    """The fastest allotment of each operation inside what it was granted; of a group the fastest in all.

    Where values take time to move, the widest ones on blocks that are less busy so. Where blocks are to be filled, as
    many as the block has.
    """
    if problem.filled:
        return [len(problem.blocks[home]) for home in problem.homes]
    if not is_linked(problem):
        return _allotments(problem, fastest)
    return calmest(problem, [_allotments(problem, fastest), _allotments(problem, _widest)])


def _widest(times: dict[int, int], width: int) -> int | None:
    return max((k for k in times if k <= width), default=None)


def _allotments(problem: StagedProblem, choose: Callable[[dict[int, int], int], int | None]) -> list[int]:
    """The allotment that ``choose`` takes for each operation, by times and the width of what it was granted."""
    chosen: dict[tuple[int, int], int] = {}
    allotments = [0] * len(problem.operations)
    for item, table in zip(problem.items, problem.item_tables, strict=True):
        width = len(problem.granted_to(item))
        key = (id(table), width)
        if key not in chosen:
            times = usable(table, width, problem.memory) or usable(table, width)
            k = choose(times, width)
            assert k is not None, "check() has seen that an allotment fits the block"
            chosen[key] = k
        for v in item:
            allotments[v] = chosen[key]
    return allotments


def place(problem: StagedProblem, allotments: list[int]) -> list[tuple[int, ...]]:
    """The first accelerators of the block for each operation; a shared one that fits its home stays there.

    A set no wider than a group must not straddle one; blocks do not, so only the union of two may. Operations
    that share parameters get one set, of what all of them may use.
    """
    cache: dict[tuple[int, int | None, int], tuple[int, ...]] = {}
    sets: list[tuple[int, ...]] = [()] * len(allotments)
    for item in problem.items:
        v, k = item[0], allotments[item[0]]
        if len(item) > 1:
            common = _common_set(problem, item, k)
            for member in item:
                sets[member] = common
            continue
        key = (problem.homes[v], problem.shared.get(v), k)
        if key not in cache:
            home = problem.blocks[problem.homes[v]]
            cache[key] = home[:k] if k <= len(home) else problem.granted(v)[:k]
        sets[v] = cache[key]
    return sets


def _common_set(problem: StagedProblem, item: tuple[int, ...], k: int) -> tuple[int, ...]:
    """``k`` accelerators that all operations of a group may use, inside one block where that is possible."""
    allowed = problem.granted_to(item)
    stages = [s for v in item for s in (problem.homes[v], problem.shared.get(v)) if s is not None]
    for block in dict.fromkeys(problem.blocks[s] for s in stages):
        if k <= len(block) and set(block) <= set(allowed):
            return block[:k]
    return allowed[:k]


def stage_order(problem: StagedProblem) -> list[int]:
    """A topological order that finishes a stage before the next; shared operations next to the other stage."""

    def rank(v: int) -> tuple[float, int]:
        home = problem.homes[v]
        other = problem.shared.get(v)
        return (home if other is None else (home + other) / 2, v)

    waiting = [len(p) for p in problem.predecessors]
    ready = [rank(v) for v, w in enumerate(waiting) if w == 0]
    heapify(ready)
    order: list[int] = []
    while ready:
        _, u = heappop(ready)
        order.append(u)
        for v in problem.successors[u]:
            waiting[v] -= 1
            if waiting[v] == 0:
                heappush(ready, rank(v))
    return order
