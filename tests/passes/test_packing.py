"""Operations on one accelerator each: against exhaustive search, against bounds, and as a schedule."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation
from passes.scheduling.packing import balance, load_bound, schedule_rigid
from passes.scheduling.problem import PeriodicProblem


def loads(times: list[int], accelerators: int, homes: tuple[int, ...]) -> list[int]:
    return [sum(t for t, p in zip(times, homes, strict=True) if p == q) for q in range(accelerators)]


def exhaustive(times: list[int], accelerators: int) -> int:
    return min(max(loads(times, accelerators, homes)) for homes in product(range(accelerators), repeat=len(times)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=7), st.integers(1, 3))
def test_without_a_limit_it_finds_and_proves_the_optimum(times: list[int], accelerators: int) -> None:
    found = balance(times, accelerators, workers=1)
    assert max(loads(times, accelerators, found.accelerator)) == found.load == exhaustive(times, accelerators)
    assert found.proven


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60), st.integers(1, 12))
def test_without_time_it_still_returns_loads_above_the_bound(times: list[int], accelerators: int) -> None:
    found = balance(times, accelerators, budget=Budget(0.0))
    assert max(loads(times, accelerators, found.accelerator)) == found.load
    assert found.load >= found.bound == load_bound(times, accelerators)
    # longest first is never above 4/3 of the optimum (Graham), which the bound does not exceed
    assert 3 * accelerators * found.load <= (4 * accelerators - 1) * dealt(times, accelerators)


def dealt(times: list[int], accelerators: int) -> int:
    """Some valid heaviest load, hence an upper limit of the optimum: items dealt in turn, longest first."""
    descending = sorted(times, reverse=True)
    return max(sum(descending[p::accelerators]) for p in range(accelerators))


def test_pigeonhole_is_above_area_and_longest() -> None:
    assert load_bound([5, 5, 5], 2) == 10
    assert load_bound([4, 4, 4, 4, 4], 2) == 12


def test_longest_first_alone_would_miss_this_optimum() -> None:
    # longest first gives 10 here; two accelerators of 3+3+3 and 5+4 are possible
    assert balance([5, 4, 3, 3, 3], 2, workers=1).load == 9


def problem(times: list[int], accelerators: int, edges: list[tuple[int, int]]) -> PeriodicProblem:
    operations = tuple(Operation(f"o{v}", {1: Cost(t)}) for v, t in enumerate(times))
    return PeriodicProblem(operations, tuple(Dependence(u, v) for u, v in edges), (), accelerators)


def test_a_schedule_keeps_groups_together_and_verifies() -> None:
    chain = replace(problem([3, 4, 5, 4, 3, 1], 2, [(v, v + 1) for v in range(5)]), together=((0, 4), (1, 3)))
    solution, found = schedule_rigid(chain, workers=1)
    chain.verify(solution)
    assert solution.sets[0] == solution.sets[4]
    assert solution.sets[1] == solution.sets[3]
    assert solution.period == found.load == max(chain.loads(solution)) == 11  # of items 8, 6, 5, 1
    assert found.proven


def test_a_chain_of_unit_operations_takes_its_share() -> None:
    for accelerators in (1, 3, 8, 20):
        chain = problem([1] * 17, accelerators, [(v, v + 1) for v in range(16)])
        solution, found = schedule_rigid(chain)
        chain.verify(solution)
        assert solution.period == -(-17 // accelerators)
        assert found.proven


def test_no_operations_and_only_empty_ones() -> None:
    solution, _ = schedule_rigid(problem([], 2, []))
    assert solution.starts == ()
    empty = problem([0, 0], 2, [(0, 1)])
    solution, found = schedule_rigid(empty)
    empty.verify(solution)
    assert found.load == found.bound == 0


def test_an_operation_that_needs_two_accelerators_is_refused() -> None:
    wide = PeriodicProblem((Operation("wide", {2: Cost(7)}),), (), (), 4)
    with pytest.raises(InvalidProblem, match="'wide' cannot run on a single accelerator"):
        schedule_rigid(wide)
