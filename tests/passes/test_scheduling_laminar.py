"""Packing on nested blocks, and schedules inside granted blocks whoever granted them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.laminar import ENGINES, LEAST, nested_widths, schedule_laminar
from passes.scheduling.problem import MemoryProblem, StagedProblem


def staged(p: MemoryProblem, blocks: list[range], homes: list[int], shared: dict[int, int] | None = None):
    return StagedProblem(
        p.operations,
        p.dependences,
        p.inputs,
        p.accelerators,
        p.group_size,
        p.memory,
        tuple(tuple(b) for b in blocks),
        tuple(homes),
        shared or {},
    )


def chain(times: list[dict[int, int]], accelerators: int) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", {k: Cost(t) for k, t in table.items()}) for v, table in enumerate(times))
    return MemoryProblem(operations, tuple(Dependence(v - 1, v) for v in range(1, len(times))), (), accelerators)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_packings_are_schedules_and_above_every_bound(tiny_problems: Callable[..., Any], data: st.DataObject) -> None:
    problem = data.draw(tiny_problems(operations=9, accelerators=9, group=1))
    whole = staged(problem, [range(problem.accelerators)], [0] * len(problem.operations))
    solution, engine = schedule_laminar(whole)
    whole.verify(solution)
    assert engine.removesuffix(LEAST) in ENGINES
    assert solution.period >= best_bound(problem).value
    assert solution.period == max(1, *whole.loads(solution))


@settings(max_examples=50, deadline=None)
@given(times=st.lists(st.integers(1, 50), min_size=1, max_size=40), power=st.integers(0, 3))
def test_the_a_priori_bound_holds(times: list[int], power: int) -> None:
    """Least loaded, longest first on single accelerators: at most area / P + longest."""
    count = 2**power
    problem = chain([{1: t} for t in times], count)
    solution, _ = schedule_laminar(staged(problem, [range(count)], [0] * len(times)), solver="buddy")
    assert solution.period * count <= sum(times) + count * max(times)


@pytest.mark.parametrize(("n", "accelerators"), [(1, 1), (1, 7), (7, 1), (12, 5), (100, 8), (65, 64)])
def test_unit_operations(n: int, accelerators: int) -> None:
    whole = staged(chain([{1: 1}] * n, accelerators), [range(accelerators)], [0] * n)
    solution, _ = schedule_laminar(whole)
    whole.verify(solution)
    assert solution.period == -(-n // accelerators)


def test_each_granted_block_is_packed_for_itself() -> None:
    problem = chain([{1: 4}, {1: 3}, {1: 2}, {1: 4}], 4)
    parts = staged(problem, [range(2), range(2, 4)], [0, 0, 1, 1])
    solution, _ = schedule_laminar(parts)
    parts.verify(solution)
    assert solution.period == 4
    assert {s for s in solution.sets} == {(0,), (1,), (2,), (3,)}


def test_shared_operations_are_not_nested() -> None:
    problem = chain([{1: 4}, {1: 3}], 2)
    with pytest.raises(InvalidProblem, match="'o1' is shared by two stages"):
        schedule_laminar(staged(problem, [range(1), range(1, 2)], [0, 1], {1: 0}))


def test_a_spent_budget_still_gives_a_packing() -> None:
    problem = chain([{1: 9 + v % 5, 2: 6} for v in range(40)], 8)
    whole = staged(problem, [range(8)], [0] * 40)
    whole.verify(schedule_laminar(whole, budget=Budget(0))[0])


def test_nothing_is_claimed_about_blocks_that_were_not_tried() -> None:
    """On blocks of 4 and 6 the area is 20 for each accelerator, on blocks of 3 it is less."""
    whole = staged(chain([{3: 10}] * 2 + [{1: 2}] * 20, 6), [range(6)], [0] * 22)
    hasty, engine = schedule_laminar(whole, budget=Budget(work=1e-9))
    least, _ = schedule_laminar(whole, budget=Budget(work=1))
    assert (hasty.period, least.period) == (20, 18)
    assert not engine.endswith(LEAST)


@pytest.mark.parametrize(("count", "group"), [(1, 1), (8, 8), (12, 12), (12, 4), (20, 8), (11, 4), (24, 6)])
def test_nested_widths_divide_each_other(count: int, group: int) -> None:
    for widths in nested_widths(count, group):
        assert widths[-1] == count
        assert all(b % a == 0 for a, b in pairwise(widths[:-1]))
        assert all(group % w == 0 or w % group == 0 for w in widths[:-1]) or group == count


# --- granted blocks ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(data=st.data(), blocks=st.integers(1, 3), width=st.integers(1, 3))
def test_any_assignment_of_a_chain_to_blocks(
    tiny_problems: Callable[..., Any], data: st.DataObject, blocks: int, width: int
) -> None:
    """Blocks may be used again and again (interleaved or there and back): the period is the heaviest load."""
    times = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=10))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(times) - 1)), max_size=4)))
    homes = [sum(c <= v for c in cuts) for v in range(len(times))]
    where = [data.draw(st.integers(0, blocks - 1)) for _ in range(len(cuts) + 1)]
    problem = chain([{1: t} for t in times], blocks * width)
    parts = staged(problem, [range(b * width, (b + 1) * width) for b in where], homes)
    parts.check()
    solution, _ = schedule_blocks(parts)
    parts.verify(solution)
    load = [sum(t for t, h in zip(times, homes, strict=True) if where[h] == b) for b in range(blocks)]
    assert solution.period == max(1, *load)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), count=st.integers(2, 4))
def test_operations_shared_by_neighbours_cost_nothing(
    tiny_problems: Callable[..., Any], data: st.DataObject, count: int
) -> None:
    """A chain over neighbouring blocks with shared boundaries: the period is the heaviest load."""
    times: list[dict[int, int]] = []
    homes: list[int] = []
    shared: dict[int, int] = {}
    load = [0] * count
    for stage in range(count):
        for _ in range(data.draw(st.integers(1, 3))):
            times.append({1: data.draw(st.integers(0, 9))})
            homes.append(stage)
            load[stage] += times[-1][1]
        if stage + 1 < count and data.draw(st.booleans()):
            shared[len(times)] = stage + 1
            times.append({2: data.draw(st.integers(0, 9))})
            homes.append(stage)
            load[stage] += times[-1][2]
            load[stage + 1] += times[-1][2]
    parts = staged(chain(times, count), [range(s, s + 1) for s in range(count)], homes, shared)
    parts.check()
    solution, _ = schedule_blocks(parts)
    parts.verify(solution)
    assert solution.period == max(1, *load)
    assert parts.latency(solution) == sum(next(iter(t.values())) for t in times)


def test_windows_run_independent_branches_side_by_side() -> None:
    operations = tuple(Operation(name, {1: Cost(t)}) for name, t in (("a", 4), ("b", 6), ("c", 5), ("d", 2)))
    fork = MemoryProblem(operations, tuple(Dependence(u, v) for u, v in ((0, 1), (0, 2), (1, 3), (2, 3))), (), 4)
    parts = staged(fork, [range(v, v + 1) for v in range(4)], [0, 1, 2, 3])
    solution, engine = schedule_blocks(parts)
    parts.verify(solution)
    assert (engine, solution.period, solution.starts) == ("windows", 6, (0, 4, 4, 10))
