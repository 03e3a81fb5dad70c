"""Few operations on any sets: against enumeration, known values, and what a least period must obey."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Operation
from passes.scheduling.free import on_circle, schedule_free, sets_bound
from passes.scheduling.laminar import LEAST
from passes.scheduling.problem import MemoryProblem

Tables = Sequence[dict[int, int]]


def independent(tables: Tables, accelerators: int) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", {k: Cost(t) for k, t in table.items()}) for v, table in enumerate(tables))
    return MemoryProblem(operations, (), (), accelerators)


def least(problem: MemoryProblem, work: float = 10.0) -> int:
    """The least period, proven."""
    whole = problem.staged([tuple(range(problem.accelerators))], [0] * len(problem.operations))
    solution, engine = schedule_free(whole, bound=best_bound(problem).value, budget=Budget(work=work))
    problem.verify(solution)
    assert engine.endswith(LEAST) or solution.period == best_bound(problem).value
    return solution.period


def enumerated(tables: Tables, accelerators: int) -> int:
    """The least period over every allotment, every set and every cyclic order; its critical cycles are tried too.

    For fixed sets an order of all operations, read cyclically, gives starts one after another; the period is
    the least one for which every operation starts as soon as those before it allow: the longest path over the
    order twice, less one round.
    """
    n = len(tables)
    choices = [[(s, t) for k, t in table.items() for s in combinations(range(accelerators), k)] for table in tables]
    best = sum(max(t.values()) for t in tables)
    for pick in product(*choices):
        meet = [[bool(set(a) & set(b)) for b, _ in pick] for a, _ in pick]
        times = [t for _, t in pick]
        if max(sum(t for s, t in pick if p in s) for p in range(accelerators)) >= best:
            continue
        for order in permutations(range(1, n)):
            best = min(best, _orientation((0, *order), meet, times, best))
    return best


def _orientation(order: Sequence[int], meet: list[list[bool]], times: list[int], best: int) -> int:
    """Least period when operations that meet follow each other in ``order``, or ``best`` when it is not shorter.

    Pairs that meet give ``s_v ≥ s_u + t_u`` in order and ``s_u ≥ s_v + t_v - T`` around the circle.
    """
    n = len(order)
    pairs = [(u, v) for i, u in enumerate(order) for v in order[i + 1 :] if meet[u][v]]

    def feasible(period: int) -> bool:
        start = [0] * n
        for _ in range(n + 1):
            changed = False
            for u, v in pairs:
                if start[v] < start[u] + times[u]:
                    start[v], changed = start[u] + times[u], True
                if start[u] < start[v] + times[v] - period:
                    start[u], changed = start[v] + times[v] - period, True
            if not changed:
                return True
        return False

    for period in range(max(times), best):
        if feasible(period):
            return period
    return best


TABLES = st.dictionaries(st.integers(1, 3), st.integers(1, 6), min_size=1)


@settings(max_examples=25, deadline=None)
@given(tables=st.lists(TABLES, min_size=1, max_size=4))
def test_the_least_period_is_that_of_an_exhaustive_search(tables: Tables) -> None:
    problem = independent(tables, 3)
    expected = enumerated(tables, 3)
    assert least(problem) == expected
    bound = sets_bound(problem)
    assert bound is not None
    assert bound.value <= expected
    assert best_bound(problem).value <= expected


@pytest.mark.parametrize(
    ("tables", "accelerators", "period"),
    [
        ([{1: 2}] * 3, 2, 4),  # counting busy accelerators at each instant would allow 3
        ([{2: 2}] * 3, 3, 6),  # a triangle: 4 by loads
        ([{1: 0}, {1: 3}], 1, 3),
        ([{2: 7, 4: 4}], 4, 4),
    ],
)
def test_known_periods(tables: Tables, accelerators: int, period: int) -> None:
    assert least(independent(tables, accelerators)) == period


def test_an_odd_cycle_repeats_faster_than_its_makespan() -> None:
    problem = independent([{2: 4}] * 5, 5)
    whole = problem.staged([tuple(range(5))], [0] * 5)
    solution, engine = schedule_free(whole, budget=Budget(work=2.0))
    problem.verify(solution)
    assert (solution.period, engine.removesuffix(LEAST)) == (10, "any sets"), "12 as a batch, 8 by loads"


@pytest.mark.parametrize(("n", "accelerators"), [(1, 3), (5, 3), (7, 4), (9, 2)])
def test_unit_operations(n: int, accelerators: int) -> None:
    assert least(independent([{1: 1}] * n, accelerators)) == -(-n // accelerators)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), tables=st.lists(TABLES, min_size=1, max_size=4))
def test_more_freedom_is_never_worse_and_names_do_not_matter(data: st.DataObject, tables: Tables) -> None:
    period = least(independent(tables, 3))
    assert least(independent(tables, 4)) <= period, "one accelerator more"
    k, time = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    more = [{k: time, **tables[0]}, *tables[1:]]
    assert least(independent(more, 3)) <= period, "one allotment more"
    shuffled = data.draw(st.permutations(list(tables)))
    assert least(independent(shuffled, 3)) == period, "operations in another order"


def test_starts_on_the_circle() -> None:
    sets = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]
    assert on_circle(sets, [4] * 5, 9, 5.0, Budget()) is None
    starts = on_circle(sets, [4] * 5, 10, 5.0, Budget())
    assert starts is not None
    for u, v in combinations(range(5), 2):
        if set(sets[u]) & set(sets[v]):
            assert 4 <= (starts[u] - starts[v]) % 10 <= 6


def test_large_problems_are_left_to_nested_blocks() -> None:
    problem = independent([{k: 100 + v - 7 * k for k in range(1, 9)} for v in range(30)], 16)
    assert sets_bound(problem) is None
    whole = problem.staged([tuple(range(16))], [0] * 30)
    solution, engine = schedule_free(whole, budget=Budget(work=0.2))
    problem.verify(solution)
    assert engine in ("buddy", "neighbourhoods")


def test_the_same_seed_and_budget_give_the_same_schedule() -> None:
    problem = independent([{1: 31 + 7 * v, 2: 17 + 4 * v, 4: 12 + 2 * v} for v in range(9)], 5)
    whole = problem.staged([tuple(range(5))], [0] * 9)
    one, two = (schedule_free(whole, budget=Budget(work=0.5, seed=3)) for _ in range(2))
    assert one == two
