"""Starts of least latency for given sets and period."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, Operation, Solution
from passes.scheduling.laminar import schedule_laminar
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.shorten import shorten


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_schedules_stay_valid_and_get_no_longer(tiny_problems: Callable[..., Any], data: st.DataObject) -> None:
    problem: MemoryProblem = data.draw(tiny_problems(operations=7, accelerators=4))
    whole = problem.staged([tuple(range(problem.accelerators))], [0] * len(problem.operations))
    before, _ = schedule_laminar(whole, budget=Budget(work=0.0))
    after = shorten(problem, before, budget=Budget(work=1.0))
    problem.verify(after)
    assert (after.period, after.sets) == (before.period, before.sets)
    assert problem.latency(after) <= problem.latency(before)


def test_a_chain_on_two_accelerators() -> None:
    """Each accelerator has two of four operations; in the right order no value waits longer than it must."""
    operations = tuple(Operation(name, {1: Cost(10)}) for name in "abcd")
    problem = MemoryProblem(operations, tuple(Dependence(v, v + 1) for v in range(3)), (), 2)
    slow = Solution(20, (1,) * 4, ((0,), (1,), (0,), (1,)), (0, 20, 30, 50))
    problem.verify(slow)
    fast = shorten(problem, slow, budget=Budget(work=1.0))
    problem.verify(fast)
    assert problem.latency(fast) == 50, "each accelerator is free again only every other time"
    assert shorten(problem, slow, budget=Budget(work=0.0)) == slow
