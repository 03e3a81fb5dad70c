"""Values of earlier micro-batches: the recurrence bound, and schedules that respect distances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import all_bounds, best_bound
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.laminar import schedule_laminar
from passes.scheduling.problem import MemoryProblem, StagedProblem
from passes.scheduling.recurrence import back_edges, recurrence_bound, shortest_times
from passes.scheduling.retime import CycleTooLong, from_offsets
from passes.scheduling.stages import partition_stages

Strategy = Callable[..., st.SearchStrategy[MemoryProblem]]


def loops(draw: Any, problem: MemoryProblem) -> MemoryProblem:
    """``problem`` with a few dependences between micro-batches, in any direction."""
    ops = st.integers(0, len(problem.operations) - 1)
    extra = draw(
        st.lists(st.builds(Dependence, ops, ops, st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=4)
    )
    return replace(problem, dependences=problem.dependences + tuple(extra))


def staged(problem: MemoryProblem, *, one: bool) -> StagedProblem:
    """All operations in one stage, or in as many stages as there are accelerators when tables allow it."""
    n, count = len(problem.operations), problem.accelerators
    blocks, homes = (tuple(range(count)),), (0,) * n
    if not one and all(1 in o.table for o in problem.operations):
        place = {v: i for i, v in enumerate(problem.topological)}
        blocks, homes = tuple((p,) for p in range(count)), tuple(place[v] * count // n for v in range(n))
    fields = (problem.operations, problem.dependences, problem.inputs, count, problem.group_size, problem.memory)
    return StagedProblem(*fields, blocks, homes)


def greatest_ratio(problem: MemoryProblem) -> int:
    """Over all simple cycles, by enumeration."""
    times, n = shortest_times(problem), len(problem.operations)
    least: dict[tuple[int, int], int] = {}
    for d in problem.dependences:
        key = (d.producer, d.consumer)
        least[key] = min(least.get(key, d.distance), d.distance)
    best = 1
    for length in range(1, n + 1):
        for cycle in permutations(range(n), length):
            pairs = list(zip(cycle, (*cycle[1:], cycle[0]), strict=True))
            if all(pair in least for pair in pairs):
                best = max(best, -(-sum(times[v] for v in cycle) // sum(least[pair] for pair in pairs)))
    return best


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_bound_is_the_greatest_cycle_ratio(tiny_problems: Strategy, data: st.DataObject) -> None:
    problem = loops(data.draw, data.draw(tiny_problems(operations=5)))
    bound = recurrence_bound(problem)
    assert bound is not None
    assert bound.value == greatest_ratio(problem)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), one=st.booleans(), group=st.integers(0, 1))
def test_schedules_respect_distances(tiny_problems: Strategy, data: st.DataObject, one: bool, group: int) -> None:
    problem = staged(loops(data.draw, data.draw(tiny_problems(group=group))), one=one)
    problem.check()
    for solve in (schedule_blocks, schedule_laminar):
        solution, _ = solve(problem)
        problem.verify(solution)
        for bound in all_bounds(problem):
            assert bound.value <= solution.period, bound.name


def cycle(*times: int, distance: int) -> StagedProblem:
    """Operations in a ring, one an accelerator; the last one's value comes back ``distance`` micro-batches later."""
    n = len(times)
    edges = [Dependence(v, v + 1) for v in range(n - 1)] + [Dependence(n - 1, 0, 0, distance)]
    operations = tuple(Operation(f"o{v}", {1: Cost(t)}) for v, t in enumerate(times))
    return StagedProblem(operations, tuple(edges), (), n, 1, 0, tuple((p,) for p in range(n)), tuple(range(n)))


@pytest.mark.parametrize(("distance", "period"), [(1, 100), (2, 50), (3, 50), (100, 50)])
def test_the_bound_is_tight_and_reached(distance: int, period: int) -> None:
    """30 + 50 + 20 ns in a ring: one value in it at a time gives 100 ns, two give 50, and no operation is shorter."""
    problem = cycle(30, 50, 20, distance=distance)
    solution, _ = schedule_blocks(problem)
    problem.verify(solution)
    assert solution.period == period
    bound = best_bound(problem)
    assert bound.value == period
    assert bound.name == ("recurrence" if distance == 1 else "longest operation")
    if distance == 1:
        with pytest.raises(InvalidProblem, match="'o0' starts at 99 ns but reads 'o2', which is there at 100 ns"):
            problem.verify(replace(solution, period=99))


def test_no_bound_without_carried_values() -> None:
    problem = cycle(30, 50, distance=1)
    assert back_edges(problem) == [(1, 0, 1)]
    assert recurrence_bound(replace(problem, dependences=problem.dependences[:1])) is None


def test_offsets_can_be_too_late() -> None:
    """In a period of 80 ns the ring of 80 ns needs each offset where the one before ends."""
    problem = cycle(30, 50, distance=1)
    assert from_offsets(problem, (30, 50), (0, 30), 80) == (0, 30)
    assert from_offsets(problem, (30, 50), (50, 0), 80) == (0, 30)
    with pytest.raises(CycleTooLong, match="a cycle of carried values"):
        from_offsets(problem, (30, 50), (0, 40), 80)
    assert from_offsets(problem, (30, 50), (0, 40), 80, carried=False) == (0, 40)


def test_stages_are_no_shorter_than_the_cycle_asks() -> None:
    """Four stages of one accelerator would have 40 ns each and a cycle of 160; one stage of four has 64 and no wait."""
    operations = tuple(Operation(f"o{v}", {1: Cost(40), 4: Cost(16)}) for v in range(4))
    chain = tuple(Dependence(v, v + 1) for v in range(3))
    problem = MemoryProblem(operations, chain, (), 4, 4, 0)
    assert partition_stages(problem).widths == [1, 1, 1, 1]
    ring = replace(problem, dependences=(*chain, Dependence(3, 0, 0, 1)))
    assert partition_stages(ring).widths == [4]
    assert best_bound(ring).value == 64
