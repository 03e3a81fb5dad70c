"""Plans that run several chunks on every block."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.chunked import Layout, Shape, chunk_stages, even_cuts, improve, round_trip
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.shared import SharedPlan
from passes.scheduling.stages import partition_stages

SHAPES: tuple[Shape, Shape] = ("interleaved", "v")


def chain(tables: list[dict[int, Cost]], accelerators: int, group: int = 0, memory: int = 0) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", table) for v, table in enumerate(tables))
    edges = tuple(Dependence(v - 1, v) for v in range(1, len(tables)))
    return MemoryProblem(operations, edges, (), accelerators, group, memory)


def check(problem: MemoryProblem, plan: SharedPlan, shape: Shape, chunks: int) -> None:
    """Its schedule is valid and has its figures; blocks are passed in the order of the shape."""
    staged = plan.staged(problem)
    staged.check()
    solution, _ = schedule_blocks(staged)
    staged.verify(solution)
    assert (solution.period, staged.in_flight(solution)) == (plan.period, plan.in_flight)
    assert plan.period >= best_bound(problem).value
    assert max(Counter(plan.blocks).values()) <= chunks
    blocks = sorted(set(plan.blocks))
    if len({len(block) for block in blocks}) == 1:  # packed in the order in which they are passed
        trip = iter(round_trip(shape, chunks, len(blocks)))
        assert all(blocks.index(block) in trip for block in plan.blocks)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.sampled_from(SHAPES), chunks=st.integers(1, 4))
def test_every_plan_is_a_schedule(
    tiny_problems: Callable[..., Any], data: st.DataObject, shape: Shape, chunks: int
) -> None:
    problem = data.draw(tiny_problems(operations=12, accelerators=8, group=1))
    operations = tuple(replace(o, block=str(v // 2)) for v, o in enumerate(problem.operations))
    problem = replace(problem, operations=operations)
    granularity = data.draw(st.sampled_from(["operator", "block"]))
    plan = chunk_stages(problem, shape=shape, chunks=chunks, granularity=granularity)
    homes = plan.homes
    assert granularity == "operator" or all(homes[v] == homes[v - 1] for v in range(1, len(homes), 2))
    check(problem, plan, shape, chunks)


@settings(max_examples=80, deadline=None)
@given(
    times=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    blocks=st.integers(1, 3),
    shape=st.sampled_from(SHAPES),
    room=st.sampled_from([100, 100, 14]),
)
def test_two_chunks_are_cut_best(times: list[int], blocks: int, shape: Shape, room: int) -> None:
    """With a window as wide as the chain the cuts are the best of all for V, and never worse than the start."""
    sums = np.concatenate([[0], np.cumsum(times)])
    held = np.concatenate([[0], np.cumsum([t // 2 + 1 for t in times])])
    layout = Layout(shape, 2, (1,) * blocks, (sums,) * blocks, (held,) * blocks, room)
    inner = combinations_with_replacement(range(len(times) + 1), 2 * blocks - 1)
    best = min(layout.period([0, *cuts, len(times)]) for cuts in inner)
    found = improve(layout, even_cuts(layout), 1, 0.0, 4 * len(times), Budget())
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, len(times))
    assert layout.period(found) <= layout.period(even_cuts(layout))
    if shape == "v":
        assert layout.period(found) == best
    else:
        assert layout.period(found) >= best


def test_the_order_of_the_blocks() -> None:
    assert round_trip("interleaved", 2, 3) == [0, 1, 2, 0, 1, 2]
    assert round_trip("v", 3, 3) == [0, 1, 2, 2, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_level_the_loads(shape: Shape) -> None:
    """Stages of their own need 9; with two chunks a block the mean, 8, is reached."""
    problem = chain([{1: Cost(t)} for t in (5, 4, 5, 3, 4, 3)], 3)
    assert partition_stages(problem, tolerance=0).period == 9
    plan = chunk_stages(problem, shape=shape, tolerance=0)
    assert plan.period == 8
    check(problem, plan, shape, 2)
    assert plan.laps > 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_a_longer_chain(shape: Shape, chunks: int) -> None:
    tables = [{k: Cost(1000 * (v * v % 11 + 1) // k + 40 * k) for k in (1, 2, 4)} for v in range(90)]
    problem = chain(tables, 16, 8)
    plan = chunk_stages(problem, shape=shape, chunks=chunks)
    check(problem, plan, shape, chunks)
    alone = partition_stages(problem, tolerance=0)
    assert plan.period <= alone.period * (1.005 if chunks > 1 else 1.2)
    assert plan == chunk_stages(problem, shape=shape, chunks=chunks)


def test_parameters_fit_beside_the_reserve() -> None:
    problem = chain([{1: Cost(5, params=4)}] * 8, 4, memory=9)
    assert set(Counter(chunk_stages(problem, shape="v").homes).values()) <= {1, 2}
    with pytest.raises(InvalidProblem, match="parameters do not fit"):
        chunk_stages(problem, reserve=2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [(0, 1), (2, 3), (0, 5), (0, 2, 4), (1, 4)])
def test_operations_that_share_parameters_are_not_torn_apart(shape: Shape, group: tuple[int, ...]) -> None:
    six = replace(chain([{1: Cost(8)}] * 6, 2), together=(group,))
    plan = chunk_stages(six, shape=shape)
    check(six, plan, shape, 2)
    # In one chunk with all that stands between them.
    assert plan.period == max(24, 8 * (max(group) - min(group) + 1))


def test_nothing_to_do() -> None:
    assert chunk_stages(chain([], 3)).blocks == ()


def test_large_problems_take_seconds() -> None:
    tables = [{k: Cost(1000 * (v % 7 + 1) // k + 20 * k) for k in (1, 2, 4, 8)} for v in range(13)]
    problem = chain(tables * 100, 128, 8)
    started = time.monotonic()
    plan = chunk_stages(problem, shape="v")
    assert time.monotonic() - started < 20  # seconds, generous: about one
    check(problem, plan, "v", 2)
