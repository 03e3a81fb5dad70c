"""Stages of whole blocks of the model, against enumeration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation
from passes.scheduling.grains import contract, cut_positions, cuttable_orders
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.stages import partition_stages


def named(problem: MemoryProblem, blocks: list[str]) -> MemoryProblem:
    operations = tuple(replace(o, block=b) for o, b in zip(problem.operations, blocks, strict=True))
    return replace(problem, operations=operations)


def load(problem: MemoryProblem, members: tuple[int, ...], width: int) -> int | None:
    """Time of ``members`` one after another on ``width`` accelerators; None when one does not fit there."""
    total = 0
    for v in members:
        fitting = [c.time for k, c in problem.operations[v].table.items() if k <= width]
        if not fitting:
            return None
        total += min(fitting)
    return total


def enumerate_blocks(problem: MemoryProblem, count: int | None = None) -> Iterator[int]:
    """Period of every partition of the program order of a chain that tears no block apart."""
    n = len(problem.operations)

    def torn(at: int) -> bool:
        before = {o.block for o in problem.operations[:at] if o.block}
        return any(o.block in before for o in problem.operations[at:])

    def go(begin: int, left: int, stages: int, period: int) -> Iterator[int]:
        if begin == n:
            if count is None or stages == count:
                yield period
            return
        for end in range(begin + 1, n + 1):
            if end < n and torn(end):
                continue
            for width in range(1, left + 1):
                time = load(problem, tuple(range(begin, end)), width)
                if time is not None:
                    yield from go(end, left - width, stages + 1, max(period, time))

    yield from go(0, problem.accelerators, 0, 1)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), count=st.none() | st.integers(1, 4))
def test_least_period_of_all_partitions_into_whole_blocks(
    tiny_problems: Callable[..., Any], data: st.DataObject, count: int | None
) -> None:
    problem = data.draw(tiny_problems(operations=6, accelerators=4, chain=True))
    n = len(problem.operations)
    problem = named(problem, data.draw(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=n, max_size=n)))
    expected = min(enumerate_blocks(problem, count), default=None)
    if expected is None:
        with pytest.raises(InvalidProblem, match="cannot be cut"):
            partition_stages(problem, stages=count, granularity="block", tolerance=0)
        return
    plan = partition_stages(problem, stages=count, granularity="block", tolerance=0)
    assert plan.period == expected
    assert count is None or len(plan.stages) == count


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_block_is_torn_apart(tiny_problems: Callable[..., Any], data: st.DataObject) -> None:
    problem = data.draw(tiny_problems(operations=9, accelerators=6, group=1))
    n = len(problem.operations)
    problem = named(problem, data.draw(st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=n, max_size=n)))
    plan = partition_stages(problem, granularity="block")
    homes = plan.homes()
    stages_of: dict[str, set[int]] = {}
    for v, o in enumerate(problem.operations):
        stages_of.setdefault(o.block, set()).add(homes[v])
    assert all(len(stages) == 1 for block, stages in stages_of.items() if block)
    position = {v: i for i, v in enumerate(plan.order)}
    assert all(position[d.producer] < position[d.consumer] for d in problem.dependences)
    assert all(homes[d.producer] <= homes[d.consumer] for d in problem.dependences)


def test_interleaved_branches_are_untangled() -> None:
    """Two chains written by turns: an order exists in which each block is a run."""
    operations = tuple(Operation(f"o{v}", {1: Cost(5)}, "ab"[v % 2]) for v in range(6))
    problem = MemoryProblem(operations, tuple(Dependence(v, v + 2) for v in range(4)), (), 2)
    assert cut_positions(problem, range(6)) == (0, 6)
    assert {cuts for _, cuts in cuttable_orders(problem, "block")} == {(0, 3, 6)}
    assert partition_stages(problem, granularity="block").period == 15


def test_blocks_that_wait_for_each_other_stay_together() -> None:
    operations = tuple(Operation(f"o{v}", {1: Cost(1)}, b) for v, b in enumerate(["a", "b", "a", "", "c"]))
    problem = MemoryProblem(operations, tuple(Dependence(v, v + 1) for v in range(4)), (), 5)
    assert contract(problem)[0] == [(0, 1, 2), (3,), (4,)]
    assert partition_stages(problem, granularity="block").period == 3
    with pytest.raises(InvalidProblem, match="5 operations in 3 whole blocks on 5 accelerators cannot be cut into 4"):
        partition_stages(problem, stages=4, granularity="block")


def test_the_refusal_names_the_bytes_that_whole_blocks_need() -> None:
    operations = tuple(Operation(f"o{v}", {1: Cost(1, params=4)}, "ab"[v // 3]) for v in range(6))
    problem = MemoryProblem(operations, tuple(Dependence(v, v + 1) for v in range(5)), (), 3, 0, 8)
    assert partition_stages(problem).period == 2
    with pytest.raises(InvalidProblem, match="stages of whole blocks need at least 12 bytes"):
        partition_stages(problem, granularity="block")
