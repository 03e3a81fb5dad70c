"""The stage dynamic program against enumeration of all contiguous partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.blocks import divisor_chains, pack_blocks, width_families
from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.orders import topological_orders
from passes.scheduling.problem import MemoryProblem, StagedProblem
from passes.scheduling.stages import StagePlan, partition_stages


def chain(times: list[dict[int, int]], accelerators: int, group: int = 0) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", {k: Cost(t) for k, t in table.items()}) for v, table in enumerate(times))
    edges = tuple(Dependence(v - 1, v) for v in range(1, len(times)))
    return MemoryProblem(operations, edges, (), accelerators, group)


def enumerate_periods(problem: MemoryProblem, count: int | None = None) -> Iterator[int]:
    """Period of every contiguous partition of the program order, on every choice of widths."""

    def fastest(v: int, width: int) -> int | None:
        return min((c.time for k, c in problem.operations[v].table.items() if k <= width), default=None)

    def go(begin: int, left: int, stages: int, period: int) -> Iterator[int]:
        if begin == len(problem.operations):
            if count is None or stages == count:
                yield period
            return
        for end in range(begin + 1, len(problem.operations) + 1):
            for width in range(1, left + 1):
                times = [fastest(v, width) for v in range(begin, end)]
                if all(t is not None for t in times):
                    load = sum(t for t in times if t is not None)
                    yield from go(end, left - width, stages + 1, max(period, load))

    yield from go(0, problem.accelerators, 0, 1)


def check_plan(problem: MemoryProblem, plan: StagePlan) -> None:
    """Stages cover the order, each meets the period, and their blocks can be packed and scheduled."""
    assert sorted(plan.order) == list(range(len(problem.operations)))
    assert [s.begin for s in plan.stages] == [0, *(s.end for s in plan.stages[:-1])]
    assert plan.stages[-1].end == len(problem.operations)
    assert plan.period == max(1, *(s.load for s in plan.stages))
    assert sum(plan.widths) + plan.idle == problem.accelerators
    assert plan.idle >= 0
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None
    p = problem
    staged = StagedProblem(
        p.operations, p.dependences, p.inputs, p.accelerators, p.group_size, 0, tuple(blocks), tuple(plan.homes())
    )
    staged.check()
    solution, _ = schedule_blocks(staged)
    staged.verify(solution)
    assert solution.period <= plan.period
    assert solution.period >= best_bound(problem).value


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_least_period_of_all_contiguous_partitions(tiny_problems: Callable[..., Any], data: st.DataObject) -> None:
    problem = data.draw(tiny_problems(operations=6, accelerators=4, chain=True))
    plan = partition_stages(problem, tolerance=0)
    check_plan(problem, plan)
    assert plan.period == min(enumerate_periods(problem))
    fewest = min(s for s in range(1, 7) if min(enumerate_periods(problem, s), default=10**9) <= plan.period)
    assert len(plan.stages) == fewest


@settings(max_examples=80, deadline=None)
@given(data=st.data(), count=st.integers(1, 5))
def test_least_period_with_a_given_number_of_stages(
    tiny_problems: Callable[..., Any], data: st.DataObject, count: int
) -> None:
    problem = data.draw(tiny_problems(operations=5, accelerators=4, chain=True))
    expected = min(enumerate_periods(problem, count), default=None)
    if expected is None:
        with pytest.raises(InvalidProblem, match="cannot be cut"):
            partition_stages(problem, stages=count)
    else:
        plan = partition_stages(problem, stages=count)
        check_plan(problem, plan)
        assert (plan.period, len(plan.stages)) == (expected, count)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_graph_on_any_groups(tiny_problems: Callable[..., Any], data: st.DataObject) -> None:
    problem = data.draw(tiny_problems(operations=9, accelerators=9, group=1))
    plan = partition_stages(problem)
    check_plan(problem, plan)
    position = {v: i for i, v in enumerate(plan.order)}
    assert all(position[d.producer] < position[d.consumer] for d in problem.dependences)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_more_accelerators_are_never_worse(tiny_problems: Callable[..., Any], data: st.DataObject) -> None:
    problem = data.draw(tiny_problems(operations=8, accelerators=5))
    more = replace(problem, accelerators=problem.accelerators + 1)
    assert partition_stages(more, tolerance=0).period <= partition_stages(problem, tolerance=0).period


@pytest.mark.parametrize(("n", "accelerators"), [(1, 1), (1, 7), (7, 1), (12, 5), (100, 8), (64, 64), (65, 64)])
def test_a_chain_of_unit_operations(n: int, accelerators: int) -> None:
    plan = partition_stages(chain([{1: 1}] * n, accelerators))
    assert plan.period == -(-n // accelerators)


def test_a_single_operation_leaves_accelerators_idle() -> None:
    plan = partition_stages(chain([{1: 9, 2: 5}], 8))
    assert (plan.period, plan.widths, plan.idle) == (5, [2], 6)


def test_ties_take_the_wider_allotment() -> None:
    problem = chain([{1: 5, 2: 5}, {2: 7}], 2)
    plan = partition_stages(problem)
    staged = StagedProblem(problem.operations, problem.dependences, (), 2, 0, 0, ((0, 1),), tuple(plan.homes()))
    assert schedule_blocks(staged)[0].allotments == (2, 2)


def test_tolerance_buys_fewer_stages() -> None:
    # Four stages of 1000 ns; two of 1002 ns on two accelerators each.
    problem = chain([{1: 1000, 2: 501}] * 4, 4)
    assert (partition_stages(problem, tolerance=0).period, len(partition_stages(problem, tolerance=0).stages)) == (
        1000,
        4,
    )
    plan = partition_stages(problem)
    assert (plan.period, len(plan.stages)) == (1002, 2)


def test_parameters_fit_beside_the_reserve() -> None:
    table = {1: Cost(1, params=4)}
    operations = tuple(Operation(f"o{v}", table) for v in range(6))
    problem = MemoryProblem(operations, tuple(Dependence(v, v + 1) for v in range(5)), (), 3, 0, 8)
    assert [s.end - s.begin for s in partition_stages(problem).stages] == [2, 2, 2]
    with pytest.raises(InvalidProblem, match=r"need at least 9 bytes .*1 of them reserved.* 1 bytes are missing"):
        partition_stages(problem, reserve=1)


def test_the_best_partition_of_a_spent_budget_is_a_partition() -> None:
    problem = chain([{1: 10 + v, 2: 6 + v} for v in range(30)], 8)
    spent = partition_stages(problem, budget=Budget(0))
    check_plan(problem, spent)
    assert spent.period >= partition_stages(problem, tolerance=0).period


def test_an_interrupt_returns_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    from passes.scheduling import stages

    calls = 0
    cover = stages.cover

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return cover(*arguments)

    monkeypatch.setattr(stages, "cover", interrupted)
    problem = chain([{1: 10 + v, 2: 6 + v} for v in range(30)], 8)
    check_plan(problem, partition_stages(problem))
    assert calls == 3


def test_orders_of_a_chain_and_of_a_diamond() -> None:
    assert len(topological_orders(chain([{1: 1}] * 5, 2))) == 1
    diamond = MemoryProblem(
        tuple(Operation(f"o{v}", {1: Cost(1 + 9 * (v == 3))}) for v in range(6)),
        tuple(Dependence(u, v) for u, v in ((0, 1), (1, 2), (0, 3), (3, 4), (2, 5), (4, 5))),
    )
    assert topological_orders(diamond) == [(0, 1, 2, 3, 4, 5), (0, 1, 3, 2, 4, 5), (0, 3, 1, 2, 4, 5)]


# --- blocks ------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 40),
    group=st.integers(1, 12),
    picks=st.lists(st.integers(0, 30), max_size=40),
    which=st.integers(0, 7),
)
def test_widths_of_a_chain_can_always_be_packed(count: int, group: int, picks: list[int], which: int) -> None:
    group = min(group, count)
    chains = divisor_chains(group)
    chain_ = [*chains[which % len(chains)], *range(2 * group, count + 1, group)]
    widths: list[int] = []
    for pick in picks:
        width = chain_[pick % len(chain_)]
        if sum(widths) + width <= count:
            widths.append(width)
    blocks = pack_blocks(widths, count, group)
    assert blocks is not None
    members = [p for block in blocks for p in block]
    assert len(set(members)) == len(members) == sum(widths)
    assert all(0 <= p < count for p in members)
    for block in blocks:
        groups = {p // group for p in block}
        assert len(groups) == 1 if len(block) <= group else len(groups) == len(block) // group


def test_blocks_follow_the_stages_where_groups_allow() -> None:
    assert pack_blocks([2, 1, 1, 4], 8, 4) == [(0, 1), (2,), (3,), (4, 5, 6, 7)]
    assert pack_blocks([2, 4, 2], 8, 4) == [(0, 1), (4, 5, 6, 7), (2, 3)]
    assert pack_blocks([1, 8, 1, 1], 11, 4) == [(8,), (0, 1, 2, 3, 4, 5, 6, 7), (9,), (10,)]


def test_families_of_widths() -> None:
    tables = [{1: 1, 3: 1, 5: 1, 7: 1}]
    assert width_families(chain(tables, 12)) == [(1, 3, 5, 7)]
    assert width_families(chain(tables, 12, 4)) == [(1, 4, 8)]
    assert sorted(width_families(chain(tables, 12, 6))) == [(1, 3, 6, 12), (1, 6, 12)]
    assert width_families(chain([{11: 1}], 11, 4)) == [(11,)]


def test_an_operation_of_no_time_holds_no_output() -> None:
    """Its output alone would not fit in memory, but is there at no time."""
    operations = (Operation("a", {1: Cost(0, 2, 50)}), Operation("b", {1: Cost(5, 2, 4)}))
    problem = MemoryProblem(operations, (), (), 1, 0, 20)
    problem.check()
    plan = partition_stages(problem)
    assert (plan.period, len(plan.stages)) == (5, 1)
