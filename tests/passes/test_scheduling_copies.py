"""Copies of operations: what is valid, what bounds hold, and the stages that use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from math import lcm
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import all_bounds, best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.copies import MOST_REPETITION, copied_columns, copy_numbers, grouped
from passes.scheduling.data import Cost, Dependence, Input, InvalidProblem, Operation, Solution, Violation
from passes.scheduling.elementary import area_bound, longest_bound, memory_bound, operation_classes
from passes.scheduling.granted_copies import schedule_replicated
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.replicated import ReplicatedPlan, replicate_stages
from passes.scheduling.stages import partition_stages

Table = dict[int, int]


def chain(tables: list[Table], accelerators: int, group: int = 0, copies: int = 99, **rest: Any) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", {k: Cost(t) for k, t in table.items()}) for v, table in enumerate(tables))
    edges = tuple(Dependence(v - 1, v) for v in range(1, len(tables)))
    return MemoryProblem(operations, edges, (), accelerators, group, copies=copies, **rest)


def rules(problem: MemoryProblem, solution: Solution) -> set[str]:
    return {v.rule for v in problem.violations(solution)}


def solved(problem: MemoryProblem, tolerance: float = 0) -> tuple[ReplicatedPlan, Solution]:
    """The plan and a verified schedule in its blocks."""
    plan = replicate_stages(problem, tolerance=tolerance)
    staged = plan.staged(problem)
    staged.check()
    solution, _ = schedule_replicated(staged, tolerance=tolerance)
    staged.verify(solution)
    return plan, solution


# --- what is valid -------------------------------------------------------------------------------

PAIR = MemoryProblem(
    (Operation("a", {1: Cost(20, 5, 2, 1), 2: Cost(11, 3, 1, 1)}), Operation("b", {1: Cost(10, 7, 3, 2)})),
    (Dependence(0, 1, 6),),
    (Input("x", 4, (0,)),),
    3,
    copies=2,
)
TURNS = Solution(10, (1, 1), ((0,), (2,)), (0, 20), {0: ((1,),)})
"""Two copies of ``a`` take turns on accelerators 0 and 1, ``b`` runs on 2."""


def test_copies_take_turns() -> None:
    PAIR.verify(TURNS)
    assert [TURNS.set_of(0, i) for i in range(3)] == [(0,), (1,), (0,)]
    assert (TURNS.copies(0), TURNS.copies(1), TURNS.repetition) == (((0,), (1,)), ((2,),), 2)
    assert (PAIR.latency(TURNS), PAIR.in_flight(TURNS)) == (30, 3)
    assert PAIR.loads(TURNS) == [10, 10, 10]
    assert PAIR.crossing(TURNS) == 6


def test_each_copy_holds_the_parameters_and_its_own_values() -> None:
    # 0 and 1 hold input 4, output 2 and workspace 1 always; 2 receives 6 and holds output 3 and workspace 2.
    assert PAIR.peak_memory(TURNS) == {0: (5, 7), 1: (5, 7), 2: (7, 11)}


def test_values_cross_between_copies_of_different_numbers() -> None:
    # a has two copies on 0 and 1, b on 1 and 0: micro-batch i goes from i % 2 to the other one, every time;
    # with b on 0 alone, every other time.
    short = replace(PAIR, operations=(PAIR.operations[1],) * 2)
    crossed = Solution(20, (1, 1), ((0,), (1,)), (0, 10), {0: ((1,),), 1: ((0,),)})
    short.verify(crossed)
    assert short.crossing(crossed) == 6
    half = Solution(20, (1, 1), ((0,), (0,)), (0, 10), {0: ((1,),)})
    short.verify(half)
    assert short.crossing(half) == 3
    assert short.loads(half) == [15, 5, 0]
    # A value read one micro-batch later goes to the other copy of its reader.
    later = replace(short, dependences=(Dependence(0, 1, 6, distance=1),))
    assert later.crossing(Solution(20, (1, 1), ((0,), (1,)), (0, 10), {0: ((1,),), 1: ((0,),)})) == 0


@pytest.mark.parametrize(
    ("changes", "rule", "message"),
    [
        ({"more": {0: ((1,), (2,))}}, "copies", "'a' has 3 copies, at most 2 are allowed"),
        ({"more": {0: ((0,),)}}, "copies", "copies 0 and 1 of 'a' share accelerator 0"),
        ({"more": {0: ((1, 2),)}}, "copies", "copy 1 of operation 'a' has allotment 1 but the set"),
        ({"more": {0: ((3,),)}}, "copies", "copy 1 of operation 'a' uses accelerators outside the platform"),
        ({"more": {7: ((1,),)}}, "copies", "copies of operation 7 of 2"),
        ({"more": {}}, "exclusive", "'a' takes 20 ns, longer than the period of 10 ns"),
        ({"period": 9}, "exclusive", "'a' takes 20 ns, longer than the period of 9 ns with 2 copies"),
        ({"sets": ((0,), (1,))}, "exclusive", "accelerator 1 runs .*'b' in .* ns modulo 20"),
        ({"starts": (0, 19)}, "precedence", "'b' starts at 19 ns"),
    ],
)
def test_invalid_copies_are_refused(changes: dict[str, Any], rule: str, message: str) -> None:
    with pytest.raises(InvalidProblem, match=message) as error:
        PAIR.verify(replace(TURNS, **changes))
    assert {v.rule for v in error.value.violations} == {rule}


def test_a_pattern_that_repeats_too_late_is_refused() -> None:
    problem = chain([{1: 1}] * 3, 40)
    more = {v: tuple((p,) for p in range(1, r)) for v, r in enumerate((9, 11, 13))}
    assert rules(problem, Solution(99, (1,) * 3, ((0,),) * 3, (0, 1, 2), more)) == {"copies"}


def test_copies_stay_on_the_block() -> None:
    staged = PAIR.staged([(0,), (1, 2)], [0, 1])
    assert rules(staged, TURNS) == {"blocks"}
    PAIR.staged([(0, 1), (2,)], [0, 1]).verify(TURNS)


# --- bounds --------------------------------------------------------------------------------------


def least_period(problem: MemoryProblem) -> int:
    """Least period of any schedule with copies, by trying all sets and starts on the circle of the pattern.

    Precedence does not matter: a start may be moved by a period when the copies change their turns.
    """
    count, most = problem.accelerators, problem.copies
    laps = lcm(*range(1, most + 1))

    def rows(period: int, v: int) -> Iterator[tuple[int, ...]]:
        """Busy moments of each accelerator, as bit masks, for every way to run operation ``v``."""
        cycle = laps * period
        for k, cost in problem.operations[v].table.items():
            sets = list(combinations(range(count), k))
            for r in range(1, most + 1):
                if cost.time > r * period:
                    continue
                for chosen in product(sets, repeat=r):
                    if len({p for members in chosen for p in members}) < r * k:
                        continue
                    for start in range(period):
                        busy = [0] * count
                        for i in range(laps):
                            for moment in range(start + i * period, start + i * period + cost.time):
                                for p in chosen[i % r]:
                                    busy[p] |= 1 << moment % cycle
                        yield tuple(busy)

    def fits(period: int) -> bool:
        @cache
        def options(table: int) -> list[tuple[int, ...]]:
            return list(dict.fromkeys(rows(period, table)))

        first = {id(o.table): v for v, o in reversed(list(enumerate(problem.operations)))}
        states = {(0,) * count}
        for o in problem.operations:
            states = {
                tuple(a | b for a, b in zip(state, row, strict=True))
                for state in states
                for row in options(first[id(o.table)])
                if not any(a & b for a, b in zip(state, row, strict=True))
            }
        return bool(states)

    return next(period for period in range(1, 99) if fits(period))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_bound_is_above_the_best_schedule_with_copies(
    tiny_problems: Callable[..., Any], data: st.DataObject
) -> None:
    drawn = data.draw(tiny_problems(operations=3, accelerators=3, longest=5))
    problem = replace(drawn, copies=data.draw(st.integers(2, 3)))
    best = least_period(problem)
    for bound in all_bounds(problem):
        assert bound.value <= best, bound
    _, solution = solved(problem)
    assert solution.period >= best


@settings(max_examples=100, deadline=None)
@given(data=st.data(), copies=st.integers(2, 9))
def test_copies_never_raise_a_bound(tiny_problems: Callable[..., Any], data: st.DataObject, copies: int) -> None:
    drawn = data.draw(tiny_problems(operations=6, accelerators=8, longest=50))
    drawn = replace(drawn, memory=data.draw(st.sampled_from([0, 80, 200])))
    problem = replace(drawn, copies=copies)
    for bound in (longest_bound, area_bound, memory_bound):
        with_copies, without = bound(problem), bound(drawn)
        assert (with_copies is None) == (without is None)
        assert with_copies is None or without is None or with_copies.value <= without.value


@settings(max_examples=200, deadline=None)
@given(
    columns=st.lists(
        st.tuples(*[st.integers(1, 8)] * 2, *[st.integers(0, 3)] * 2), max_size=5, unique_by=lambda c: c[0]
    ),
    accelerators=st.integers(8, 16),
    most=st.integers(1, 9),
)
def test_columns_left_out_are_no_better(columns: list[tuple[int, int, int, int]], accelerators: int, most: int) -> None:
    kept = copied_columns(columns, accelerators, most)
    for k, time, params, live in columns:
        for r in range(1, min(most, accelerators // k) + 1):
            full = (r * k, time // r, params, live)
            assert any(all(a <= b for a, b in zip(c, full, strict=True)) for c in kept)
    assert len(kept) == len(set(kept))


def test_without_copies_the_classes_are_as_before() -> None:
    problem = chain([{1: 4, 2: 3}], 4, copies=1)
    assert operation_classes(problem)[0].columns == ((1, 4, 0, 0), (2, 3, 0, 0))
    assert operation_classes(replace(problem, copies=2))[0].columns == ((1, 4, 0, 0), (2, 2, 0, 0), (4, 1, 0, 0))


# --- stages --------------------------------------------------------------------------------------


def test_three_operations_on_two_accelerators() -> None:
    # Fixed sets need 4; if operations change accelerators from one micro-batch to the next, 3 is enough.
    problem = chain([{1: 2}] * 3, 2, copies=1)
    assert solved(problem)[1].period == 4
    plan, solution = solved(replace(problem, copies=2))
    assert (plan.period, solution.period, best_bound(replace(problem, copies=2)).value) == (3, 3, 3)
    assert solution.repetition == 2


def test_one_rigid_operation_on_four_accelerators() -> None:
    for copies, period in ((1, 100), (2, 50), (3, 34), (4, 25), (9, 25)):
        problem = chain([{1: 100}], 4, copies=copies)
        plan, solution = solved(problem)
        assert (plan.period, solution.period, plan.copies) == (period, period, min(copies, 4))
        assert best_bound(problem).value == 100 // min(copies, 4)


@pytest.mark.parametrize(("n", "accelerators"), [(1, 5), (7, 3), (12, 5), (10, 11), (64, 64), (65, 64), (30, 97)])
def test_equal_rigid_operations_fill_all_accelerators(n: int, accelerators: int) -> None:
    _, solution = solved(chain([{1: 1000}] * n, accelerators))
    assert solution.period == -(-1000 * n // accelerators)


def test_a_dominant_operation_gets_copies_of_its_own() -> None:
    # 1, 1, 8, 1, 1 on six accelerators: copies of the long one, the others on one accelerator each side.
    problem = chain([{1: 10}, {1: 10}, {1: 80}, {1: 10}, {1: 10}], 6)
    plan, solution = solved(problem, 0.005)
    assert solution.period == 20
    assert [(s.end - s.begin, s.copies) for s in plan.stages] == [(2, 1), (1, 4), (2, 1)]
    assert solution.more.keys() == {2}


def test_the_tolerance_buys_fewer_copies() -> None:
    # Four copies of 1000 ns each; two copies on two accelerators take 1002 ns.
    problem = chain([{1: 4000, 2: 2004}], 4)
    assert solved(problem, 0)[0].copies == 4
    plan, solution = solved(problem, 0.005)
    assert (plan.copies, plan.period, len(solution.copies(0))) == (2, 1002, 2)


def enumerate_periods(problem: MemoryProblem) -> Iterator[int]:
    """Period of every contiguous partition of the program order into stages of every shape."""
    n = len(problem.operations)

    def go(begin: int, left: int, period: int) -> Iterator[int]:
        if begin == n:
            yield period
            return
        for end in range(begin + 1, n + 1):
            for k, r in product(range(1, left + 1), range(1, problem.copies + 1)):
                if r * k > left:
                    continue
                tables = [problem.operations[v].table for v in range(begin, end)]
                if all(min(table) <= k for table in tables):
                    time = sum(min(c.time for j, c in table.items() if j <= k) for table in tables)
                    yield from go(end, left - r * k, max(period, -(-time // r)))

    yield from go(0, problem.accelerators, 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), copies=st.integers(1, 4))
def test_least_period_of_all_stages_and_copies(
    tiny_problems: Callable[..., Any], data: st.DataObject, copies: int
) -> None:
    problem = replace(data.draw(tiny_problems(operations=4, accelerators=4, longest=30, chain=True)), copies=copies)
    plan, solution = solved(problem)
    assert plan.period == min(enumerate_periods(problem))
    assert solution.period <= plan.period
    if copies == 1:
        assert plan.period == partition_stages(problem, tolerance=0).period
        assert not solution.more


@settings(max_examples=100, deadline=None)
@given(data=st.data(), copies=st.integers(1, 12), tolerance=st.sampled_from([0, 0.1]))
def test_any_graph_on_any_groups(
    tiny_problems: Callable[..., Any], data: st.DataObject, copies: int, tolerance: float
) -> None:
    drawn = data.draw(tiny_problems(operations=9, accelerators=12, longest=60, group=1))
    problem = replace(drawn, copies=copies)
    plan, solution = solved(problem, tolerance)
    plain = partition_stages(drawn, tolerance=0).period
    assert best_bound(problem).value <= solution.period <= max(1, int(plan.period * (1 + tolerance)))
    assert plan.period <= max(1, int(plain * (1 + tolerance)))
    members = [p for block in plan.blocks for p in block]
    assert len(members) == len(set(members))
    for stage, block in zip(plan.stages, plan.blocks, strict=True):
        assert len(block) == stage.copies * stage.width
        if len(block) <= problem.group:
            assert len({p // problem.group for p in block}) == 1
        if stage.width <= problem.group:
            assert len(grouped(block, stage.width, problem.group)) >= stage.copies
    for v, k in enumerate(solution.allotments):
        for copy in solution.copies(v):
            assert k > problem.group or len({p // problem.group for p in copy}) == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data(), distance=st.integers(1, 3))
def test_carried_values_are_respected(tiny_problems: Callable[..., Any], data: st.DataObject, distance: int) -> None:
    drawn = data.draw(tiny_problems(operations=6, accelerators=6, longest=20))
    n = len(drawn.operations)
    back = Dependence(data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1)), 3, distance)
    problem = replace(drawn, dependences=(*drawn.dependences, back), copies=4)
    _, solution = solved(problem)
    assert solution.period >= best_bound(problem).value


def test_a_value_for_the_next_micro_batch_makes_copies_useless() -> None:
    loop = replace(chain([{1: 9}], 3), dependences=(Dependence(0, 0, 1, distance=1),))
    plan, solution = solved(loop)
    assert (plan.copies, solution.period, dict(solution.more)) == (1, 9, {})


# --- memory --------------------------------------------------------------------------------------


def heavy(memory: int, copies: int = 4) -> MemoryProblem:
    """Two operations of 6 parameter bytes on one accelerator, 3 on each of two."""
    table = {1: Cost(100, 6, 1), 2: Cost(60, 3, 1)}
    return MemoryProblem(
        (Operation("a", table), Operation("b", table)), (Dependence(0, 1, 1),), (), 4, 0, memory, copies=copies
    )


def test_parameters_are_held_by_every_copy() -> None:
    plan, solution = solved(heavy(100))
    assert (plan.period, plan.parameters, solution.period) == (50, 24, 50)
    # Two copies of each, though 100 bytes would hold four of both as well, with twice the parameters.
    plan, solution = solved(heavy(8))
    assert [(s.copies, s.width) for s in plan.stages] == [(2, 1), (2, 1)]
    assert solution.period == 50
    # 5 bytes hold neither on one accelerator.
    plan, solution = solved(heavy(5))
    assert (plan.period, plan.copies) == (60, 2)
    with pytest.raises(InvalidProblem, match="alone needs at least 4 bytes"):
        heavy(3).check()


def test_parameters_that_never_fit_are_refused() -> None:
    with pytest.raises(InvalidProblem, match=r"the parameters do not fit: .*2 of them reserved"):
        replicate_stages(heavy(4), reserve=2)


def test_fewer_copies_where_live_values_do_not_fit() -> None:
    # A copy on one accelerator holds 6 bytes of parameters, an input of 3 and an output of 1; on two it holds 3 less.
    problem = replace(heavy(9), inputs=(Input("x", 3, (0,)),))
    free = problem.staged([(0, 1), (2, 3)], [0, 1])
    unlimited, _ = schedule_replicated(replace(free, memory=0))
    assert unlimited.period == 50
    [found] = free.violations(unlimited)
    assert (found.rule, found.missing) == ("memory", 1)
    _, solution = solved(problem)
    assert (solution.period, dict(solution.more)) == (60, {})


@settings(max_examples=60, deadline=None)
@given(data=st.data(), share=st.integers(50, 99))
def test_less_memory_is_never_overrun(tiny_problems: Callable[..., Any], data: st.DataObject, share: int) -> None:
    drawn = data.draw(tiny_problems(operations=6, accelerators=6, longest=30))
    problem = replace(drawn, copies=6)
    _, free = solved(problem)
    most = max(params + live for params, live in problem.peak_memory(free).values())
    tight = replace(problem, memory=max(1, most * share // 100))
    refused: list[Violation] = []
    try:
        tight.check()
        _, solution = solved(tight)
    except InvalidProblem as failure:
        refused += failure.violations
    else:
        assert best_bound(tight).value <= solution.period
    assert all(v.rule == "memory" and v.missing > 0 for v in refused)


# --- details -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(operations=st.integers(1, 30_000), accelerators=st.integers(1, 2000), most=st.integers(1, 2000))
def test_numbers_of_copies_repeat_soon(operations: int, accelerators: int, most: int) -> None:
    for numbers in copy_numbers(operations, accelerators, most):
        assert numbers[0] == 1
        assert list(numbers) == sorted(set(numbers))
        assert numbers[-1] <= min(most, accelerators)
        assert lcm(*numbers) <= MOST_REPETITION


def test_copies_lie_in_groups() -> None:
    assert grouped((0, 1, 2, 3, 6, 7), 2, 4) == [(0, 1), (2, 3), (6, 7)]
    assert grouped((0, 1, 2, 4, 5, 6), 2, 4) == [(0, 1), (4, 5)]
    assert grouped(tuple(range(12)), 6, 4) == [(0, 1, 2, 3, 4, 5)]
    assert grouped(tuple(range(16)), 8, 4) == [tuple(range(8)), tuple(range(8, 16))]
    assert grouped((2, 3, 4, 5, 6, 7), 6, 4) == [(2, 3, 4, 5, 6, 7)]
    assert grouped((0, 1), 3, 4) == []


def test_shared_operations_are_refused() -> None:
    staged = chain([{1: 1}, {2: 1}], 2).staged([(0,), (1,)], [0, 1], {1: 0})
    with pytest.raises(InvalidProblem, match="'o1' is shared by two stages"):
        schedule_replicated(staged)


def test_a_spent_budget_still_gives_a_plan_and_the_work_is_counted() -> None:
    problem = chain([{1: 10 + v, 2: 6 + v} for v in range(30)], 8)
    budget = Budget(work=0)
    spent = replicate_stages(problem, budget=budget)
    assert spent.period >= replicate_stages(problem, tolerance=0, budget=(full := Budget())).period
    assert budget.used < full.used
    assert replicate_stages(problem) == replicate_stages(problem)


def test_nothing_to_do() -> None:
    assert replicate_stages(MemoryProblem(())).stages == ()
