"""Operations that share parameters: rules of the problem, bounds, contiguous stages, schedules in granted blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import all_bounds, best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation, Solution
from passes.scheduling.dual import dual_bound
from passes.scheduling.elementary import area_bound, longest_bound, memory_bound, operation_classes
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.objective import Limits
from passes.scheduling.portfolio import Request, solve
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.recurrence import recurrence_bound
from passes.scheduling.shared import share_boundaries
from passes.scheduling.stages import StagePlan, partition_stages
from passes.scheduling.together import merged

Tiny = Callable[..., st.SearchStrategy[MemoryProblem]]
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def problem(*tables: dict[int, Cost], together: tuple[tuple[int, ...], ...] = (), **rest: Any) -> MemoryProblem:
    """A chain of operations a, b, ... with these tables."""
    operations = tuple(Operation("abcdefghij"[v], t) for v, t in enumerate(tables))
    chain = tuple(Dependence(v - 1, v, 2) for v in range(1, len(tables)))
    return MemoryProblem(operations, chain, (), together=together, **{"accelerators": 2, **rest})


@st.composite
def grouped(draw: st.DrawFn, base: st.SearchStrategy[MemoryProblem]) -> MemoryProblem:
    """A problem of ``base`` with random groups of operations that have an allotment in common."""
    found = draw(base)
    parts: dict[int, list[int]] = {}
    for v, part in enumerate(draw(st.lists(st.integers(0, 3), min_size=len(found.operations), max_size=9))):
        if part and v < len(found.operations):
            parts.setdefault(part, []).append(v)
    groups: list[tuple[int, ...]] = []
    for members in parts.values():
        group = members[:1]
        for v in members[1:]:
            if set(found.operations[v].table).intersection(*(found.operations[w].table for w in group)):
                group.append(v)
        if len(group) > 1:
            groups.append(tuple(group))
    return replace(found, together=tuple(groups))


# --- the problem -----------------------------------------------------------------------------------

ONE, TWO, BOTH = {1: Cost(3)}, {2: Cost(2)}, {1: Cost(3), 2: Cost(2)}


def test_a_group_is_an_item_with_one_table() -> None:
    found = problem(BOTH, ONE, BOTH, ONE, BOTH, together=((4, 0), (2, 3)))
    found.check()
    assert found.items == ((0, 4), (1,), (2, 3))
    assert found.item_tables == ({1: Cost(6), 2: Cost(4)}, ONE, {1: Cost(6)})
    assert found.item_tables[1] is ONE


def test_equal_groups_share_one_table() -> None:
    found = problem(BOTH, ONE, ONE, BOTH, together=((0, 1), (2, 3)))
    assert found.item_tables[0] is found.item_tables[1]
    assert [c.count for c in operation_classes(found)] == [2]


def test_merged_tables_add_times_and_store_parameters_once() -> None:
    a = {1: Cost(3, 10, 1, 5), 2: Cost(0, 6, 9, 9), 4: Cost(1)}
    b = {1: Cost(4, 8, 7, 0), 2: Cost(2, 6, 1, 1)}
    assert merged([a, b]) == {1: Cost(7, 10, 7, 0), 2: Cost(2, 6, 1, 1)}
    assert merged([a, {2: Cost(0, 9, 2, 2)}]) == {2: Cost(0, 9, 9, 9)}


@pytest.mark.parametrize(
    ("together", "message"),
    [
        (((0,),), "a group of 1 operations"),
        (((0, 9),), "unknown member"),
        (((0, -1),), "unknown member"),
        (((0, 2), (2, 3)), "'c' is twice in groups"),
        (((0, 0),), "'a' is twice in groups"),
        (((0, 1),), "'b' shares parameters with 'a', but runs on 2 accelerators and the group on 1"),
        (((2, 0, 1),), "'b' shares parameters with 'c', but runs on 2 accelerators and the group on 1"),
        (((1, 4),), "'e' shares parameters with 'b', but runs on 1, 3 accelerators and the group on 2"),
    ],
)
def test_bad_groups_are_refused(together: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InvalidProblem, match=message) as caught:
        problem(ONE, TWO, BOTH, BOTH, {1: Cost(1), 3: Cost(1)}, together=together, accelerators=3).check()
    assert {v.rule for v in caught.value.violations} == {"together"}


def test_a_common_allotment_that_the_platform_lacks_does_not_count() -> None:
    tables = ({1: Cost(1), 4: Cost(1)}, {2: Cost(1), 4: Cost(1)})
    problem(*tables, together=((0, 1),), accelerators=4).check()
    with pytest.raises(InvalidProblem, match="'b' shares parameters with 'a'"):
        problem(*tables, together=((0, 1),), accelerators=3).check()


def test_a_group_on_two_sets_is_refused() -> None:
    found = problem(BOTH, BOTH, BOTH, together=((0, 2),))
    found.verify(Solution(6, (1, 1, 1), ((0,), (1,), (0,)), (0, 3, 9)))
    [broken] = found.violations(Solution(6, (1, 1, 1), ((0,), (1,), (1,)), (0, 3, 6)))
    assert (broken.rule, broken.operations) == ("together", (0, 2))
    assert broken.message == "'a' and 'c' are of one group, but run on [0] and [1]"
    assert "together" in {v.rule for v in found.violations(Solution(9, (1, 2, 2), ((0,), (0, 1), (0, 1)), (0, 3, 5)))}


def test_a_group_is_stored_once_with_its_greatest_parameters() -> None:
    tables = ({1: Cost(3, 10)}, {1: Cost(3, 7)}, {1: Cost(3, 12)})
    solution = Solution(9, (1, 1, 1), ((0,), (0,), (0,)), (0, 3, 6))
    assert problem(*tables).peak_memory(solution)[0][0] == 29
    assert problem(*tables, together=((0, 2),)).peak_memory(solution)[0][0] == 19
    problem(*tables, together=((0, 2),), memory=19, accelerators=1).check()
    with pytest.raises(InvalidProblem, match="the parameters need 19 bytes"):
        problem(*tables, together=((0, 2),), memory=18, accelerators=1).check()


def test_a_group_that_does_not_fit_alone_is_named() -> None:
    # The parameters of b beside the output of a: 12 + 5.
    tables = ({1: Cost(3, 4, 5)}, {1: Cost(3, 12)})
    problem(*tables, memory=12).check()
    problem(*tables, together=((0, 1),), memory=17).check()
    with pytest.raises(InvalidProblem, match="the group of operation 'a' alone needs at least 17 bytes"):
        problem(*tables, together=((0, 1),), memory=16).check()


def test_groups_go_along_into_a_staged_problem() -> None:
    found = problem(BOTH, BOTH, together=((0, 1),), accelerators=4)
    found.staged(((0, 1), (2, 3)), (0, 0)).check()
    found.staged(((0, 1), (0, 1)), (0, 1)).check()
    found.staged(((0, 1), (2, 3)), (0, 1), {1: 0}).check()
    with pytest.raises(InvalidProblem, match="'a' and 'b' share parameters and need 1 accelerators, all may use 0"):
        found.staged(((0, 1), (2, 3)), (0, 1)).check()


# --- bounds ----------------------------------------------------------------------------------------


def test_a_group_is_as_long_as_its_members_together() -> None:
    alone = problem(ONE, ONE, ONE, accelerators=3)
    found = replace(alone, together=((0, 1),))
    assert (longest_bound(alone).name, longest_bound(alone).value) == ("longest operation", 3)
    assert (area_bound(found).name, area_bound(found).value) == ("longest group", 6)
    assert best_bound(replace(found, together=((0, 1, 2),))).value == 9


def test_a_group_takes_the_area_of_a_common_allotment() -> None:
    # Alone each is cheap, at 1 and at 2 accelerators; together they must agree.
    a, b = {1: Cost(4), 2: Cost(9)}, {1: Cost(9), 2: Cost(2)}
    assert area_bound(problem(a, b)).value == 4
    assert area_bound(problem(a, b, together=((0, 1),))).value == 11


def test_groups_join_in_dual_feasible_functions() -> None:
    # Five groups of 6 ns on four accelerators: by area 8 ns, but two of them must follow each other.
    found = problem(*[ONE] * 8, *[{1: Cost(2)}, {1: Cost(4)}], accelerators=4)
    found = replace(found, together=tuple((v, v + 1) for v in range(0, 10, 2)))
    assert area_bound(found).value == 8
    bound = dual_bound(found)
    assert bound is not None
    assert bound.value == 12


def test_little_law_counts_the_bytes_of_each_member() -> None:
    a, b = {1: Cost(10, 1, 6)}, {1: Cost(5, 1, 2)}
    bound = memory_bound(problem(a, b, together=((0, 1),), memory=10, accelerators=1))
    assert bound is not None
    assert bound.value == -(-(6 * 10 + 2 * 5) // 9)


def test_a_cycle_runs_at_allotments_that_its_groups_have_in_common() -> None:
    a, b = {1: Cost(4), 2: Cost(9)}, {1: Cost(9), 2: Cost(2)}
    loop = replace(problem(a, b), dependences=(Dependence(0, 1), Dependence(1, 0, 0, 1)))
    alone, both = recurrence_bound(loop), recurrence_bound(replace(loop, together=((0, 1),)))
    assert alone is not None
    assert both is not None
    assert (alone.value, both.value) == (6, 6)  # each at its own fastest common allotment: 4 and 2
    narrow = replace(loop, operations=(loop.operations[0], Operation("b", {1: Cost(9), 4: Cost(2)})), accelerators=4)
    both = recurrence_bound(replace(narrow, together=((0, 1),)))
    assert both is not None
    assert both.value == 13


@relaxed
@given(data=st.data())
def test_no_bound_is_above_the_optimum(
    tiny_problems: Tiny, optimal_period: Callable[[MemoryProblem], int], data: st.DataObject
) -> None:
    found = data.draw(grouped(tiny_problems(operations=5, accelerators=3)))
    found.check()
    assert area_bound(found).value >= area_bound(replace(found, together=())).value
    assert best_bound(found).value <= optimal_period(found)


@relaxed
@given(data=st.data())
def test_no_bound_is_above_a_schedule_in_just_enough_memory(tiny_problems: Tiny, data: st.DataObject) -> None:
    found = data.draw(grouped(tiny_problems()))
    blocks = (tuple(range(found.accelerators)),)
    solution, _ = schedule_blocks(found.staged(blocks, (0,) * len(found.operations)))
    found.verify(solution)
    most = max(params + live for params, live in found.peak_memory(solution).values())
    assume(most)
    tight = replace(found, memory=most)
    tight.check()
    tight.verify(solution)
    for bound in all_bounds(tight):
        assert bound.value <= solution.period, bound


# --- stages ----------------------------------------------------------------------------------------


def best_partition(found: MemoryProblem, order: Sequence[int], count: int | None) -> int | None:
    """The least period of contiguous stages of ``order`` that do not cut groups, by trying all cuts and widths."""
    n, best = len(order), None
    table = {v: t for item, t in zip(found.items, found.item_tables, strict=True) for v in item}
    spans = [[order.index(v) for v in group] for group in found.together]

    def load(begin: int, end: int, width: int) -> int | None:
        total = 0
        for v in order[begin:end]:
            common = [k for k in table[v] if k <= width]
            if not common:
                return None
            k = min(common, key=lambda k: (table[v][k].time, -k))
            total += found.operations[v].table[k].time
        return total

    for stages in range(1, n + 1) if count is None else (count,):
        for cuts in combinations(range(1, n), stages - 1):
            edges = (0, *cuts, n)
            if any(min(span) < c <= max(span) for span in spans for c in cuts):
                continue
            for widths in product(range(1, found.accelerators + 1), repeat=stages):
                if sum(widths) > found.accelerators:
                    continue
                loads = [load(b, e, w) for b, e, w in zip(edges, edges[1:], widths, strict=False)]
                if None not in loads:
                    period = max(1, *(x for x in loads if x is not None))
                    best = period if best is None else min(best, period)
    return best


def blocks_of(plan: StagePlan) -> list[tuple[int, ...]]:
    """Accelerators of each stage, on a platform of one group."""
    blocks: list[tuple[int, ...]] = []
    for width in plan.widths:
        first = sum(len(b) for b in blocks)
        blocks.append(tuple(range(first, first + width)))
    return plan.granted(blocks)


def check_plan(found: MemoryProblem, plan: StagePlan) -> None:
    """Its stages follow each other, keep groups on one block, and hold a schedule of its period."""
    homes, blocks = plan.homes(), blocks_of(plan)
    assert [s.begin for s in plan.stages] == [0, *(s.end for s in plan.stages[:-1])]
    assert plan.stages[-1].end == len(found.operations)
    assert [s.width for s in plan.stages] == [len(b) for b in blocks]
    assert sum(plan.widths) + plan.idle == found.accelerators
    loads: Counter[tuple[int, ...]] = Counter()
    for stage, block in zip(plan.stages, blocks, strict=True):
        loads[block] += stage.load
    assert plan.period == max(1, *loads.values())
    assert all(len({blocks[homes[v]] for v in group}) == 1 for group in found.together)
    staged = found.staged(blocks, homes)
    staged.check()
    solution, _ = schedule_blocks(staged)
    staged.verify(solution)
    assert solution.period <= plan.period


@relaxed
@given(data=st.data())
def test_stages_are_the_best_that_keep_groups_together(tiny_problems: Tiny, data: st.DataObject) -> None:
    found = data.draw(grouped(tiny_problems(chain=True)))
    line = [v for item in found.items for v in item]
    best = best_partition(found, line, None)
    if best is None:
        with pytest.raises(InvalidProblem):
            partition_stages(found)
        return
    plan = partition_stages(found, tolerance=0)
    assert plan.period == best
    check_plan(found, plan)


@relaxed
@given(data=st.data())
def test_a_given_number_of_stages_is_kept(tiny_problems: Tiny, data: st.DataObject) -> None:
    found = data.draw(grouped(tiny_problems(chain=True)))
    count = data.draw(st.integers(1, len(found.operations)))
    best = best_partition(found, range(len(found.operations)), count)
    try:
        plan = partition_stages(found, stages=count, tolerance=0)
    except InvalidProblem:
        assert best is None
        return
    assert len(plan.stages) == count
    assert best is None or plan.period <= best
    check_plan(found, plan)


@relaxed
@given(data=st.data())
def test_stages_of_branching_graphs_hold_schedules(tiny_problems: Tiny, data: st.DataObject) -> None:
    found = data.draw(grouped(tiny_problems()))
    check_plan(found, partition_stages(found))


def test_tied_ends_take_turns_on_the_first_block() -> None:
    found = problem(*[ONE] * 6, together=((0, 5),), accelerators=3)
    plan = partition_stages(found)
    assert (plan.period, plan.turns, plan.widths) == (6, (0, 1, 2, 0), [1, 1, 1])
    assert [(s.begin, s.end, s.load) for s in plan.stages] == [(0, 1, 3), (1, 3, 6), (3, 5, 6), (5, 6, 3)]
    assert partition_stages(found, stages=4) == plan
    assert (partition_stages(found, stages=1).period, partition_stages(found, stages=1).turns) == (18, ())


def test_forward_and_backward_come_back_along_the_pipeline() -> None:
    """Three layers, each with a backward operation, on three accelerators: stages 0 1 2 1 0."""
    found = problem(*[ONE] * 6, together=((0, 5), (1, 4), (2, 3)), accelerators=3)
    plan = partition_stages(found)
    assert (plan.period, plan.turns) == (6, (0, 1, 2, 1, 0))
    assert partition_stages(found, stages=5) == plan


def test_parameters_of_a_group_count_once_in_a_stage() -> None:
    heavy = {1: Cost(5, 8)}
    found = problem(heavy, {1: Cost(5, 2)}, heavy, together=((0, 2),), memory=10)
    found.check()
    assert [s.end for s in partition_stages(found, stages=1).stages] == [3]
    assert len(partition_stages(replace(found, accelerators=1)).stages) == 1
    with pytest.raises(InvalidProblem, match="do not fit"):
        partition_stages(replace(found, together=()), stages=1)


def test_shared_boundaries_refuse_groups() -> None:
    assert share_boundaries(problem(BOTH, BOTH, BOTH)) is not None
    assert share_boundaries(problem(BOTH, BOTH, BOTH, together=((0, 2),))) is None


def test_a_portfolio_takes_stages_for_groups() -> None:
    found = problem(*[ONE] * 6, together=((0, 5),), accelerators=3)
    best = solve(found, Request(limits=Limits(in_flight=1)), Budget())  # which only one stage keeps
    assert (best.plan, best.solution.period, best.figures.in_flight) == ("stages", 18, 1)
    found.verify(best.solution)
    assert solve(found, Request(plan="stages"), Budget()).solution.period == 6
    with pytest.raises(InvalidProblem, match="use plan stages"):
        solve(found, Request(plan="shared"), Budget())


# --- schedules -------------------------------------------------------------------------------------


def test_a_group_takes_its_fastest_common_allotment() -> None:
    a, b = {1: Cost(4), 2: Cost(1)}, {1: Cost(2), 2: Cost(9)}
    found = problem(a, b, together=((0, 1),)).staged(((0, 1),), (0, 0))
    solution, _ = schedule_blocks(found)
    assert (solution.allotments, solution.sets, solution.period) == ((1, 1), ((0,), (0,)), 6)


def test_tied_stages_take_turns_on_one_block() -> None:
    """Embedding and head in the first and last stage, both on the block of the first."""
    found = problem(ONE, ONE, ONE, together=((0, 2),)).staged(((0,), (1,), (0,)), (0, 1, 2))
    found.check()
    solution, engine = schedule_blocks(found)
    found.verify(solution)
    assert (solution.period, engine) == (6, "alignment")


def test_a_group_shared_by_one_member_stays_where_all_may_run() -> None:
    # a may run on both blocks, b only on the second: the set lies in the second.
    found = problem(BOTH, BOTH, together=((0, 1),), accelerators=4).staged(((0, 1), (2, 3)), (0, 1), {0: 1})
    found.check()
    solution, _ = schedule_blocks(found)
    found.verify(solution)
    assert solution.sets == ((2, 3), (2, 3))
