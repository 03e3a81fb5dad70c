"""Stages of least time for a batch, against enumeration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.blocks import pack_blocks
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation, Solution
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.latency import least_latency, stages_for_step
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.profiles import Choices, Profile
from passes.scheduling.stages import StagePlan, partition_stages


def chain(tables: list[dict[int, Cost]], accelerators: int, group: int = 0, memory: int = 0) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", table) for v, table in enumerate(tables))
    edges = tuple(Dependence(v - 1, v) for v in range(1, len(tables)))
    return MemoryProblem(operations, edges, (), accelerators, group, memory)


def enumerate_plans(problem: MemoryProblem, memory: int = 0) -> Iterator[tuple[int, int]]:
    """Period and latency of every contiguous partition of the program order, on every choice of widths."""

    def fastest(v: int, width: int) -> Cost | None:
        fitting = [(c.time, -k) for k, c in problem.operations[v].table.items() if k <= width and fits(c)]
        return problem.operations[v].table[-min(fitting)[1]] if fitting else None

    def fits(c: Cost) -> bool:
        return not memory or c.params + c.output + c.workspace <= memory

    def go(begin: int, left: int, period: int, latency: int) -> Iterator[tuple[int, int]]:
        if begin == len(problem.operations):
            yield period, latency
            return
        for end in range(begin + 1, len(problem.operations) + 1):
            for width in range(1, left + 1):
                costs = [c for c in (fastest(v, width) for v in range(begin, end)) if c is not None]
                if len(costs) == end - begin and (not memory or sum(c.params for c in costs) <= memory):
                    load = sum(c.time for c in costs)
                    yield from go(end, left - width, max(period, load), latency + load)

    yield from go(0, problem.accelerators, 1, 0)


def schedule(problem: MemoryProblem, plan: StagePlan) -> Solution:
    """The verified schedule of a plan, which keeps its promises."""
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None
    staged = problem.staged(blocks, plan.homes())
    staged.check()
    solution, _ = schedule_blocks(staged)
    staged.verify(solution)
    assert solution.period <= plan.period == max(1, *(s.load for s in plan.stages))
    assert staged.latency(solution) <= sum(s.load for s in plan.stages)
    return solution


@settings(max_examples=100, deadline=None)
@given(data=st.data(), microbatches=st.integers(1, 12), memory=st.sampled_from([0, 0, 70, 120]))
def test_least_step_of_all_contiguous_partitions(
    tiny_problems: Callable[..., Any], data: st.DataObject, microbatches: int, memory: int
) -> None:
    problem = replace(data.draw(tiny_problems(operations=6, accelerators=4, chain=True)), memory=memory)
    plans = list(enumerate_plans(problem, memory))
    if not plans:
        with pytest.raises(InvalidProblem):
            stages_for_step(problem, microbatches, tolerance=0)
        return
    plan = stages_for_step(problem, microbatches, tolerance=0)
    latency = sum(s.load for s in plan.stages)
    assert (microbatches - 1) * plan.period + latency == min((microbatches - 1) * t + lat for t, lat in plans)
    if microbatches == 1:
        assert plan.period == min(t for t, lat in plans if lat == latency)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_least_latency_of_every_period(tiny_problems: Callable[..., Any], data: st.DataObject) -> None:
    problem = data.draw(tiny_problems(operations=6, accelerators=4, chain=True))
    plans = list(enumerate_plans(problem))
    widths = sorted({k for o in problem.operations for k in o.table})
    profile = Profile(Choices(problem, widths), range(len(problem.operations)))
    for period in range(1, min(profile.most, max(t for t, _ in plans)) + 1):
        found = least_latency(profile, period)
        expected = min((lat for t, lat in plans if t <= period), default=None)
        assert (None if found is None else sum(s.load for s in found)) == expected
        assert found is None or max(s.load for s in found) <= period


@settings(max_examples=60, deadline=None)
@given(data=st.data(), microbatches=st.integers(1, 9), granularity=st.sampled_from(["operator", "block"]))
def test_any_graph_on_any_groups(
    tiny_problems: Callable[..., Any], data: st.DataObject, microbatches: int, granularity: Any
) -> None:
    problem = data.draw(tiny_problems(operations=9, accelerators=9, group=1))
    operations = tuple(replace(o, block=str(v // 3)) for v, o in enumerate(problem.operations))
    problem = replace(problem, operations=operations)
    plan = stages_for_step(problem, microbatches, granularity=granularity, tolerance=0)
    schedule(problem, plan)
    homes = plan.homes()
    assert granularity == "operator" or all(homes[v] == homes[v - 1] for v in range(1, len(homes)) if v % 3)
    rival = partition_stages(problem, granularity=granularity)
    best = (microbatches - 1) * plan.period + sum(s.load for s in plan.stages)
    assert best <= (microbatches - 1) * rival.period + sum(s.load for s in rival.stages)


def test_the_number_of_microbatches_decides() -> None:
    problem = chain([{1: Cost(100), 2: Cost(60), 4: Cost(40)}] * 8, 4)
    alone, many = stages_for_step(problem, 1), stages_for_step(problem, 1000)
    assert (alone.widths, alone.period) == ([4], 320)
    assert (many.widths, many.period) == ([1] * 4, 200)


def test_carried_values_make_short_stages_useless() -> None:
    problem = chain([{1: Cost(10), 2: Cost(8)}] * 4, 4)
    cycle = replace(problem, dependences=(*problem.dependences, Dependence(3, 0, 0, 1)))
    assert stages_for_step(problem, 100).period == 10
    assert stages_for_step(cycle, 100).widths == [2]


def test_times_beyond_64_bits() -> None:
    problem = chain([{1: Cost(2**61 + 1), 2: Cost(2**60)}] * 3, 2)
    assert stages_for_step(problem, 1).period == 3 * 2**60


def test_large_problems_are_looked_at_coarsely() -> None:
    tables = [{k: Cost(1000 * (v % 7 + 1) // k + 20 * k) for k in (1, 2, 4, 8)} for v in range(13)]
    problem = chain(tables * 150, 256, 8)
    started = time.monotonic()
    plan = stages_for_step(problem, 64)
    assert time.monotonic() - started < 20  # seconds, generous: about two
    best = 63 * plan.period + sum(s.load for s in plan.stages)
    rival = partition_stages(problem)
    assert best <= 63 * rival.period + sum(s.load for s in rival.stages)
    assert plan == stages_for_step(problem, 64)


def test_a_spent_budget_gives_a_plan() -> None:
    problem = chain([{1: Cost(10 + v), 2: Cost(6 + v)} for v in range(30)], 8)
    schedule(problem, stages_for_step(problem, 8, budget=Budget(0)))


def test_nothing_to_do_and_nothing_that_fits() -> None:
    assert stages_for_step(chain([], 3), 4).stages == ()
    with pytest.raises(InvalidProblem, match="parameters do not fit"):
        stages_for_step(chain([{1: Cost(1, params=4)}] * 6, 3, memory=8), 4, reserve=1)
