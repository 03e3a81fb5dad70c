"""Stages that share boundaries or take over operations of their successors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, Operation
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.shared import SharedPlan, share_boundaries
from passes.scheduling.stages import partition_stages

MOLDABLE = {1: Cost(100, 8), 2: Cost(52, 4), 4: Cost(30, 2)}
RIGID = {1: Cost(70, 8)}


def chain(tables: list[dict[int, Cost]], accelerators: int, group: int = 0, memory: int = 0) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", table) for v, table in enumerate(tables))
    edges = tuple(Dependence(v - 1, v) for v in range(1, len(tables)))
    return MemoryProblem(operations, edges, (), accelerators, group, memory)


def check(problem: MemoryProblem, plan: SharedPlan | None) -> SharedPlan:
    """There is a plan, its stages are sane, and a verified schedule has its period."""
    assert plan is not None
    staged = plan.staged(problem)
    staged.check()
    solution, _ = schedule_blocks(staged)
    staged.verify(solution)
    assert (solution.period, staged.in_flight(solution)) == (plan.period, plan.in_flight)
    assert plan.period >= best_bound(problem).value
    assert all(abs(plan.homes[v] - other) == 1 for v, other in plan.shared.items())
    return plan


@settings(max_examples=100, deadline=None)
@given(data=st.data(), laps=st.integers(0, 3))
def test_every_plan_is_a_schedule_above_every_bound(
    tiny_problems: Callable[..., Any], data: st.DataObject, laps: int
) -> None:
    problem = data.draw(tiny_problems(operations=12, accelerators=8, group=1))
    plan = share_boundaries(problem, laps=laps)
    if plan is not None:
        check(problem, plan)
        assert plan.laps <= laps
        staged = plan.staged(problem)
        assert all(len({p // staged.group for p in staged.granted(v)}) == 1 for v in plan.shared)


def test_a_shared_boundary_fills_what_a_stage_leaves() -> None:
    # Three moldable operations on two accelerators: 156 ns on both together, 152 when only the middle one is.
    problem = chain([MOLDABLE] * 3, 2)
    assert partition_stages(problem, tolerance=0).period == 156
    plan = check(problem, share_boundaries(problem))
    assert (plan.period, plan.shared) == (152, {1: 1})


def test_sharing_stays_inside_a_group() -> None:
    plan = check(chain([MOLDABLE] * 3, 2, group=1), share_boundaries(chain([MOLDABLE] * 3, 2, group=1)))
    assert not plan.shared


def test_pulled_operations_shorten_the_period_and_cost_laps() -> None:
    """Rigid operations cannot be shared; moving some forward evens the load out."""
    uneven = chain([{1: Cost(t)} for t in (7, 5, 3, 7, 5, 3, 7, 5, 3)], 4)
    apart = check(uneven, share_boundaries(uneven))
    moved = check(uneven, share_boundaries(uneven, laps=3))
    assert moved.period < apart.period
    assert 0 < moved.laps <= 3
    assert len(set(moved.blocks)) < len(moved.blocks)
    assert moved.in_flight <= apart.in_flight + 2 * moved.laps


def test_parameters_stay_within_memory() -> None:
    problem = chain([MOLDABLE] * 6, 3, memory=20)
    check(problem, share_boundaries(problem))
    assert share_boundaries(problem, reserve=15) is None


def test_what_takes_no_time_may_exceed_memory_only_then() -> None:
    tables = [{1: Cost(3, 2, 1, 1)}, {1: Cost(0, 2, 50)}, {1: Cost(3, 2, 1, 1)}]
    edges = (Dependence(0, 1), Dependence(1, 2))
    problem = MemoryProblem(
        tuple(Operation(f"o{v}", t) for v, t in enumerate(tables)), edges, accelerators=2, memory=20
    )
    problem.check()
    plan = share_boundaries(problem)
    assert plan is None or plan.period >= 3


def test_a_spent_budget_gives_the_first_plan() -> None:
    problem = chain([MOLDABLE, RIGID] * 12, 8)
    quick = check(problem, share_boundaries(problem, budget=Budget(0)))
    assert check(problem, share_boundaries(problem)).period <= quick.period


@pytest.mark.parametrize(("n", "accelerators"), [(1, 1), (7, 1), (12, 5), (100, 8), (65, 64)])
def test_unit_operations(n: int, accelerators: int) -> None:
    problem = chain([{1: Cost(1)}] * n, accelerators)
    assert check(problem, share_boundaries(problem)).period == -(-n // accelerators)
