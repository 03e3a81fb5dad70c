"""Stages that all of their operations fill, against enumeration of all contiguous partitions on all widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.blocks import capacity, pack_blocks, width_families
from passes.scheduling.bounds import best_bound
from passes.scheduling.chunked import Shape, chunk_stages
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation, Solution
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.latency import stages_for_step
from passes.scheduling.linked_stages import partition_linked, priced
from passes.scheduling.network import Level, Mode, Network
from passes.scheduling.orders import topological_orders
from passes.scheduling.problem import MemoryProblem, StagedProblem
from passes.scheduling.profiles import Stage
from passes.scheduling.stages import StagePlan, partition_stages

MODES: tuple[Mode, ...] = ("overlapped", "blocking", "buffered")


def chain(tables: list[dict[int, int]], accelerators: int, group: int = 0, **rest: Any) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", {k: Cost(t) for k, t in table.items()}) for v, table in enumerate(tables))
    edges = tuple(Dependence(v - 1, v) for v in range(1, len(tables)))
    return MemoryProblem(operations, edges, (), accelerators, group, filled=True, **rest)


def every_partition(problem: MemoryProblem, order: tuple[int, ...]) -> Iterator[StagePlan]:
    """Every way to cut ``order`` into stages whose width all of their operations have, and whose parameters fit."""

    def runs(v: int, width: int) -> bool:
        cost = problem.operations[v].table.get(width)
        return cost is not None and (not problem.memory or cost.params + cost.output + cost.workspace <= problem.memory)

    def go(begin: int, left: int, found: tuple[Stage, ...]) -> Iterator[StagePlan]:
        if begin == len(order):
            yield StagePlan(order, found, max(1, *(s.load for s in found)), left)
        for width in range(1, left + 1):
            load, params = 0, 0
            for end in range(begin + 1, len(order) + 1):
                v = order[end - 1]
                if not runs(v, width):
                    break
                load, params = (
                    load + problem.operations[v].table[width].time,
                    params + problem.operations[v].table[width].params,
                )
                if problem.memory and params > problem.memory:
                    break
                yield from go(end, left - width, (*found, Stage(begin, end, width, load)))

    yield from go(0, problem.accelerators, ())


def plans(problem: MemoryProblem) -> list[StagePlan]:
    return [
        plan
        for order in topological_orders(problem)
        for plan in every_partition(problem, order)
        if pack_blocks(plan.widths, problem.accelerators, problem.group) is not None
    ]


def check_filled(staged: StagedProblem) -> Solution:
    """The schedule in the blocks keeps every rule, and its sets are the blocks."""
    staged.check()
    solution, _ = schedule_blocks(staged)
    staged.verify(solution)
    assert all(solution.sets[v] == staged.blocks[home] for v, home in enumerate(staged.homes))
    return solution


def staged_by(problem: MemoryProblem, plan: StagePlan) -> StagedProblem:
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None
    assert sum(plan.widths) + plan.idle == problem.accelerators
    return replace(problem, memory=0).staged(plan.granted(blocks), plan.homes())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), memory=st.sampled_from([0, 0, 80]), count=st.sampled_from([None, None, 2, 3]))
def test_least_period_of_all_filled_stages(
    tiny_problems: Callable[..., Any], data: st.DataObject, memory: int, count: int | None
) -> None:
    problem = replace(data.draw(tiny_problems(operations=6, accelerators=4)), memory=memory, filled=True)
    periods = [plan.period for plan in plans(problem) if count is None or len(plan.stages) == count]
    if not periods:
        with pytest.raises(InvalidProblem, match=r"runs on|cannot be cut|do not fit"):
            partition_stages(problem, stages=count)
        return
    plan = partition_stages(problem, stages=count, tolerance=0)
    assert plan.period == min(periods)
    assert count is None or len(plan.stages) == count
    solution = check_filled(staged_by(problem, plan))
    bound = best_bound(replace(problem, memory=0))
    assert bound == best_bound(replace(problem, memory=0, filled=False))
    assert bound.value <= solution.period <= plan.period


@settings(max_examples=60, deadline=None)
@given(data=st.data(), group=st.sampled_from([2, 4]), accelerators=st.integers(1, 9))
def test_widths_of_nested_groups(data: st.DataObject, group: int, accelerators: int) -> None:
    allotments = st.sampled_from([k for k in (1, 2, 4, 8) if k <= accelerators])
    table = st.dictionaries(allotments, st.integers(0, 9), min_size=1, max_size=3)
    problem = chain(data.draw(st.lists(table, min_size=1, max_size=5)), accelerators, group)
    periods = [plan.period for plan in plans(problem)]
    if not periods:
        with pytest.raises(InvalidProblem, match=r"runs on .*: no block can be as wide"):
            partition_stages(problem)
        return
    plan = partition_stages(problem, tolerance=0)
    assert plan.period == min(periods)
    check_filled(staged_by(problem, plan))


def test_widths_that_do_not_nest_stand_alone() -> None:
    problem = chain([{3: 5, 4: 4}] * 5, 11, 4)
    assert width_families(problem) == [(3,), (4,)]
    assert [capacity(problem, widths) for widths in width_families(problem)] == [9, 11]
    plan = partition_stages(problem, stages=3)
    assert (plan.widths, plan.idle, plan.period) == ([3, 3, 3], 2, 10)
    assert check_filled(staged_by(problem, plan)).sets[-1] == (8, 9, 10)
    assert partition_stages(problem, stages=2).widths == [4, 4]
    assert capacity(chain([{6: 1}], 16, 4), (6,)) == 12


def test_the_rule_holds_where_free_allotments_are_as_fast() -> None:
    """The free plan runs the second operation on part of its block; filled, it gets a stage of its own."""
    tables = [{1: 9, 2: 5}, {1: 1}, {1: 9, 2: 5}]
    problem = chain(tables, 4)
    free = partition_stages(replace(problem, filled=False), tolerance=0)
    filled = partition_stages(problem, tolerance=0)
    assert (free.period, filled.period) == (6, 9)
    assert partition_stages(replace(problem, accelerators=5), tolerance=0).widths == [2, 1, 2]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{1: 1}, {4: 1}], "operation 'o1' runs on 4 accelerators, and what comes before it leaves 3 of 4"),
        ([{2: 1}, {1: 1, 4: 1}, {3: 1, 2: 1}], "operation 'o2' runs on 2, 3 accelerators, .* leaves 1 of 4"),
    ],
)
def test_the_operation_without_a_block_is_named(tables: list[dict[int, int]], message: str) -> None:
    with pytest.raises(InvalidProblem, match=message) as refused:
        partition_stages(chain(tables, 4))
    assert [v.operations for v in refused.value.violations] == [(len(tables) - 1,)]


def test_blocks_of_the_model_need_a_common_allotment() -> None:
    problem = chain([{1: 1}, {1: 1, 2: 1}, {2: 1}], 4)
    whole = replace(problem, operations=tuple(replace(o, block="b") for o in problem.operations))
    with pytest.raises(
        InvalidProblem, match="'o2' runs on 2 accelerators, which those before it in its stage, on 1, cannot"
    ):
        partition_stages(whole, granularity="block")
    assert partition_stages(whole).widths == [1, 1, 2]
    wider = replace(whole, operations=(*whole.operations[:2], replace(whole.operations[2], table={1: Cost(1)})))
    assert partition_stages(wider, granularity="block").widths == [1]
    with pytest.raises(InvalidProblem, match="cannot be cut into 2 contiguous stages, each filled by all"):
        partition_stages(wider, granularity="block", stages=2)


def test_operations_that_share_parameters_take_turns_on_a_filled_block() -> None:
    problem = replace(chain([{2: 4}, {1: 4}, {2: 4}], 3), together=((0, 2),))
    plan = partition_stages(problem, tolerance=0)
    assert (plan.widths, plan.turns, plan.period) == ([2, 1], (0, 1, 0), 8)
    assert check_filled(staged_by(problem, plan)).allotments == (2, 1, 2)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), microbatches=st.integers(1, 6))
def test_least_step_of_all_filled_stages(
    tiny_problems: Callable[..., Any], data: st.DataObject, microbatches: int
) -> None:
    problem = replace(data.draw(tiny_problems(operations=5, accelerators=4)), filled=True)

    def step(plan: StagePlan) -> int:
        return (microbatches - 1) * plan.period + sum(s.load for s in plan.stages)

    steps = [step(plan) for plan in plans(problem)]
    if not steps:
        with pytest.raises(InvalidProblem, match="runs on"):
            stages_for_step(problem, microbatches)
        return
    plan = stages_for_step(problem, microbatches, tolerance=0)
    assert step(plan) == min(steps)
    check_filled(staged_by(problem, plan))


# --- links ---------------------------------------------------------------------------------------


def linked(problem: MemoryProblem, sizes: list[int], mode: Mode) -> MemoryProblem:
    """One byte takes one ns."""
    edges = tuple(replace(d, bytes=sizes[d.producer]) for d in problem.dependences)
    return replace(problem, dependences=edges, network=Network((Level("only", 64, 2, 10**9),), mode))


@settings(max_examples=50, deadline=None)
@given(
    times=st.lists(st.integers(0, 20), min_size=2, max_size=6),
    sizes=st.lists(st.integers(0, 12), min_size=6, max_size=6),
    width=st.integers(1, 2),
    mode=st.sampled_from(MODES),
)
def test_links_between_filled_stages_of_one_width(times: list[int], sizes: list[int], width: int, mode: Mode) -> None:
    problem = linked(chain([{width: t, width + 3: 1} for t in times], 2 * width), sizes, mode)
    plan = partition_linked(problem, tolerance=0)
    assert plan.period == min(priced(problem, rival).period for rival in plans(problem))
    check_filled(replace(staged_by(problem, plan), network=None))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), mode=st.sampled_from(MODES))
def test_links_between_filled_stages_of_any_width(
    tiny_problems: Callable[..., Any], data: st.DataObject, mode: Mode
) -> None:
    problem = replace(data.draw(tiny_problems(operations=5, accelerators=4)), filled=True)
    problem = linked(problem, data.draw(st.lists(st.integers(0, 5), min_size=5, max_size=5)), mode)
    known = plans(problem)
    if not known:
        with pytest.raises(InvalidProblem, match="runs on"):
            partition_linked(problem)
        return
    plan = partition_linked(problem, tolerance=0)
    blind = priced(problem, partition_stages(problem, tolerance=0))
    assert min(priced(problem, rival).period for rival in known) <= plan.period <= blind.period
    check_filled(replace(staged_by(problem, plan), network=None))


# --- chunks --------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(data=st.data(), shape=st.sampled_from(["interleaved", "v"]), memory=st.sampled_from([0, 0, 60]))
def test_chunks_fill_their_blocks(
    tiny_problems: Callable[..., Any], data: st.DataObject, shape: Shape, memory: int
) -> None:
    problem = replace(data.draw(tiny_problems(operations=8, accelerators=6, group=1)), memory=memory, filled=True)
    common = set[int].intersection(*(set(o.table) for o in problem.operations))
    try:
        plan = chunk_stages(problem, shape=shape)
    except InvalidProblem as refused:
        (violation,) = refused.violations
        assert memory or not common
        assert memory or "in this plan, unlike 'stages', each must be able to run on every one" in violation.message
        return
    assert {len(block) for block in plan.blocks} <= common
    assert check_filled(plan.staged(replace(problem, memory=0))).period == plan.period


# --- the rule in granted blocks ------------------------------------------------------------------


def test_blocks_that_an_operation_cannot_fill_are_refused() -> None:
    problem = chain([{1: 9, 2: 5}, {1: 1}], 2)
    staged = problem.staged([(0, 1)], [0, 0])
    with pytest.raises(InvalidProblem, match="operation 'o1' runs on 1 accelerators, not on all 2 of stage 0"):
        staged.check()
    shared = problem.staged([(0,), (1,)], [0, 1], {0: 1})
    with pytest.raises(InvalidProblem, match="operation 'o0' is shared by stages 0 and 1"):
        shared.check()
    replace(shared, filled=False).check()


def test_part_of_a_block_breaks_the_rule() -> None:
    staged = chain([{1: 9, 2: 5}], 2).staged([(0, 1)], [0])
    staged.verify(Solution(5, (2,), ((0, 1),), (0,)))
    part = Solution(9, (1,), ((0,),), (0,))
    assert [v.message for v in staged.violations(part)] == ["operation 'o0' runs on 1 of the 2 accelerators of stage 0"]
    replace(staged, filled=False).verify(part)


def test_no_stage_is_given_what_it_cannot_run_for_free() -> None:
    # Only 0.5% of the sum of all times lies between the sum and what stands for "cannot run".
    problem = chain([{1: 1000}, {2: 0}], 3)
    assert staged_by(problem, partition_stages(problem)).blocks == ((0,), (1, 2))
