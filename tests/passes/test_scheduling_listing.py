"""List schedules of branching graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation
from passes.scheduling.latency import stages_for_step
from passes.scheduling.listing import list_schedule, schedule_list
from passes.scheduling.problem import MemoryProblem


def graph(
    tables: list[dict[int, Cost]], edges: list[tuple[int, int]], accelerators: int, group: int = 0, memory: int = 0
) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", table) for v, table in enumerate(tables))
    return MemoryProblem(operations, tuple(Dependence(u, v) for u, v in edges), (), accelerators, group, memory)


def latency_bound(problem: MemoryProblem) -> int:
    """Critical path at the fastest allotments, and the area over all accelerators."""
    fast = [min(c.time for c in o.table.values()) for o in problem.operations]
    path = [0] * len(fast)
    for v in problem.topological:
        path[v] = fast[v] + max((path[u] for u in problem.predecessors[v]), default=0)
    area = sum(min(k * c.time for k, c in o.table.items()) for o in problem.operations)
    return max(*path, -(-area // problem.accelerators))


@settings(max_examples=120, deadline=None)
@given(data=st.data(), microbatches=st.integers(1, 6), memory=st.sampled_from([0, 0, 80, 150]))
def test_every_list_schedule_is_valid(
    tiny_problems: Callable[..., Any], data: st.DataObject, microbatches: int, memory: int
) -> None:
    problem = replace(data.draw(tiny_problems(operations=9, accelerators=7, group=1)), memory=memory)
    n = len(problem.operations)
    back = [(u, v) for u in range(n) for v in range(n)]
    cycles = [Dependence(u, v, 3, 1) for u, v in data.draw(st.lists(st.sampled_from(back), max_size=2))]
    problem = replace(problem, dependences=(*problem.dependences, *cycles))
    try:
        problem.check()
        solution, _ = schedule_list(problem, microbatches)
    except InvalidProblem:
        if not memory:
            raise
        return
    problem.verify(solution)
    assert problem.latency(solution) >= latency_bound(problem)
    assert solution.period >= best_bound(problem).value
    for members in solution.sets:
        groups = {p // problem.group for p in members}
        assert len(groups) <= -(-len(members) // problem.group) + (problem.accelerators % problem.group > 0)
        assert len(groups) == 1 or len(members) > problem.group


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_starts_are_those_of_an_eager_schedule(tiny_problems: Callable[..., Any], data: st.DataObject) -> None:
    """At any time before the last start some accelerator is busy, and no operation starts before its inputs."""
    problem = data.draw(tiny_problems(operations=9, accelerators=5))
    chosen = [next((k, c.time) for k, c in o.table.items()) for o in problem.operations]
    for strict in (False, True):
        one = list_schedule(problem, chosen, strict=strict)
        assert one is not None
        assert sorted(one.order) == list(range(len(problem.operations)))
        assert one.latency <= sum(t for _, t in chosen)
        ends = [s + t for s, (_, t) in zip(one.starts, chosen, strict=True)]
        for v, start in enumerate(one.starts):
            assert all(ends[u] <= start for u in problem.predecessors[v])
            assert start == 0 or start in ends


def test_branches_run_side_by_side() -> None:
    """Two branches that do not grow well: half the accelerators each, where one stage would run them in turn."""
    table = {1: Cost(100), 2: Cost(90), 4: Cost(85)}
    edges = [(0, 1), (1, 2), (3, 4), (4, 5)]
    solution, engine = schedule_list(graph([table] * 6, edges, 4))
    assert engine == "list"
    assert max(solution.starts) == 180
    assert solution.period == 270
    assert not set(solution.sets[0]) & set(solution.sets[3])


def test_a_critical_operation_gets_more_accelerators() -> None:
    """A long branch beside short ones: only the long one grows."""
    long, short = {1: Cost(400), 2: Cost(200), 4: Cost(150)}, {1: Cost(100)}
    problem = graph([long, short, short], [], 4)
    solution, _ = schedule_list(problem)
    assert problem.latency(solution) == 200
    assert solution.allotments == (2, 1, 1)


def test_a_batch_shortens_the_period() -> None:
    """Three operations in a row on one accelerator each: pipelined when there are many micro-batches."""
    problem = graph([{1: Cost(10)}] * 3, [(0, 1), (1, 2)], 3)
    many, _ = schedule_list(problem, 100)
    assert (many.period, problem.latency(many)) == (10, 30)


@pytest.mark.parametrize("seed", range(4))
def test_it_beats_contiguous_stages_where_branches_are_wide(seed: int) -> None:
    times = [17, 23, 31, 12, 44, 8, 29, 35]
    tables = [{1: Cost(times[(v * 3 + seed) % 8]), 2: Cost(times[(v * 3 + seed) % 8] * 3 // 4)} for v in range(24)]
    edges = [(8 * level + a, 8 * (level + 1) + b) for level, a, b in product((0, 1), range(8), range(8)) if a in (b, 0)]
    problem = graph(tables, edges, 8)
    solution, _ = schedule_list(problem)
    problem.verify(solution)
    staged = stages_for_step(problem, 1)
    assert problem.latency(solution) < sum(s.load for s in staged.stages)
    assert schedule_list(problem)[0] == solution


def test_parameters_spread_over_the_accelerators() -> None:
    table = {1: Cost(1, params=4, output=1)}
    assert len(set(schedule_list(graph([table] * 4, [(0, 1), (1, 2), (2, 3)], 2, memory=10))[0].sets)) == 2
    with pytest.raises(InvalidProblem, match="memory"):
        schedule_list(graph([table] * 4, [(0, 1), (1, 2), (2, 3)], 2, memory=7))


def test_a_spent_budget_gives_a_schedule() -> None:
    problem = graph([{1: Cost(10 + v), 2: Cost(6 + v)} for v in range(30)], [(v, v + 3) for v in range(27)], 8)
    problem.verify(schedule_list(problem, budget=Budget(0))[0])
