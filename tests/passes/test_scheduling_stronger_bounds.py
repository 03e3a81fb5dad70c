"""Configurations, the integer program over classes, and bounds from paths, against searches that try everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, islice, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import all_bounds, best_bound, bound_named, bounds_by_name, proves
from passes.scheduling.budget import Budget
from passes.scheduling.class_program import ClassProgram, program_bound
from passes.scheduling.configurations import Covering, memory_of, time_of
from passes.scheduling.critical_path import in_flight_bound, latency_bound, paths_exclude
from passes.scheduling.data import Cost, Dependence, Operation, Solution
from passes.scheduling.dual import memory_measure
from passes.scheduling.elementary import operation_classes
from passes.scheduling.knapsack import heaviest, useful
from passes.scheduling.objective import Limits
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.rows import LARGEST, measure_row, meeting


def problem(
    *tables: dict[int, int], accelerators: int = 4, edges: tuple[tuple[int, int], ...] = (), memory: int = 0
) -> MemoryProblem:
    rows = [{k: Cost(t) for k, t in table.items()} for table in tables]
    return MemoryProblem(
        tuple(Operation(f"o{v}", t) for v, t in enumerate(rows)),
        tuple(Dependence(u, v) for u, v in edges),
        accelerators=accelerators,
        memory=memory,
    )


@st.composite
def tiny(draw: Any, operations: int = 4, memory: bool = False) -> MemoryProblem:
    """A problem that can be solved by trying everything: few distinct tables, so that classes occur."""
    accelerators = draw(st.integers(1, 3))
    sizes = st.integers(0, 3) if memory else st.just(0)
    cost = st.builds(Cost, st.integers(0, 4), sizes, sizes, sizes)
    tables = draw(
        st.lists(st.dictionaries(st.integers(1, accelerators), cost, min_size=1, max_size=2), min_size=1, max_size=2)
    )
    n = draw(st.integers(1, operations))
    pairs = [(u, v) for v in range(n) for u in range(v)]
    edges = draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    return MemoryProblem(
        tuple(Operation(f"o{v}", draw(st.sampled_from(tables))) for v in range(n)),
        tuple(Dependence(u, v) for u, v in sorted(edges)),
        accelerators=accelerators,
        memory=draw(st.integers(6, 12)) if memory else 0,
    )


def serial(drawn: MemoryProblem) -> int:
    return max(1, sum(max(c.time for c in o.table.values()) for o in drawn.operations))


Slot = tuple[int, int, tuple[int, ...], int]
"""Allotment, time, set, offset."""


def placements(drawn: MemoryProblem, period: int, done: tuple[Slot, ...] = ()) -> Iterator[tuple[Slot, ...]]:
    """Every way to put the operations on sets and offsets so that none overlap modulo the period."""
    if len(done) == len(drawn.operations):
        yield done
        return
    for k, cost in drawn.operations[len(done)].table.items():
        if cost.time > period:
            continue
        for members in combinations(range(drawn.accelerators), k):
            for offset in range(period if done else 1):
                busy = {(offset + i) % period for i in range(cost.time)}
                if not any(
                    set(members) & set(theirs) and busy & {(begin + i) % period for i in range(time)}
                    for _, time, theirs, begin in done
                ):
                    yield from placements(drawn, period, (*done, (k, cost.time, members, offset)))


def starts(drawn: MemoryProblem, period: int, slots: tuple[Slot, ...], first: int) -> list[int]:
    """The least starts of at least ``first`` with these offsets; operations are numbered in topological order."""
    found: list[int] = []
    for v, (_, _, _, offset) in enumerate(slots):
        ready = max([first, *(found[u] + slots[u][1] for u in drawn.predecessors[v])])
        found.append(ready + (offset - ready) % period)
    return found


def latency(drawn: MemoryProblem, period: int, slots: tuple[Slot, ...]) -> int:
    """The least latency with these offsets: some operation starts first."""
    return min(
        max(s + t for s, (_, t, _, _) in zip(starts(drawn, period, slots, first), slots, strict=True)) - first
        for first in range(period)
    )


def least_period(drawn: MemoryProblem, wanted: Callable[[int, tuple[Slot, ...]], bool]) -> int | None:
    """The least period with a placement that is ``wanted``; None when there is none up to a serial schedule."""
    for period in range(1, serial(drawn) + 1):
        if any(wanted(period, slots) for slots in placements(drawn, period)):
            return period
    return None


# --- the knapsack and its rows -------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_heaviest_filling_is_the_best_of_all(data: st.DataObject) -> None:
    pairs = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=3)
    classes = data.draw(st.lists(st.tuples(st.integers(1, 3), pairs), min_size=1, max_size=3))
    capacity = data.draw(st.integers(1, 20))
    groups = [useful(c, n, [s for s, _ in p], [w for _, w in p], capacity) for c, (n, p) in enumerate(classes)]
    found = heaviest([g for g in groups if g is not None], capacity, 0, Budget())
    ways = []
    for count, choices in classes:
        taken = product(range(count + 1), repeat=len(choices))
        sums = [
            (
                sum(n * s for n, (s, _) in zip(t, choices, strict=True)),
                sum(n * w for n, (_, w) in zip(t, choices, strict=True)),
            )
            for t in taken
            if sum(t) <= count
        ]
        ways.append(sums)
    best = max(sum(w for _, w in way) for way in product(*ways) if sum(s for s, _ in way) <= capacity)
    assert found is not None
    assert found.weight == best
    assert sum(n * classes[c][1][j][1] for c, j, n in found.pieces) == best
    assert sum(n * classes[c][1][j][0] for c, j, n in found.pieces) <= capacity
    for c in range(len(classes)):
        assert sum(n for g, _, n in found.pieces if g == c) <= classes[c][0]


def test_the_knapsack_says_when_nothing_is_heavier_and_when_it_gives_up() -> None:
    groups = [useful(0, 3, [2, 5], [3, 4], 10)]
    assert groups[0] is not None
    assert heaviest([groups[0]], 10, 9, Budget()) is not None
    found = heaviest([groups[0]], 10, 10, Budget())
    assert found is not None
    assert (found.weight, found.pieces) == (10, ())
    assert heaviest([groups[0]], 10, 0, Budget(work=0)) is None
    with pytest.raises(ValueError, match="size 0"):
        useful(0, 1, [0], [1], 10)


@settings(max_examples=60, deadline=None)
@given(drawn=tiny(memory=True), period=st.integers(1, 12))
def test_schedules_keep_every_row(drawn: MemoryProblem, period: int) -> None:
    classes = meeting(operation_classes(drawn), period)
    if classes is None or not all(c.columns for c in classes):
        return
    program = ClassProgram(drawn)
    rows = program.rows(classes, period)
    for resource in (time_of(classes, period), memory_of(classes, period, drawn.memory)):
        covering = Covering(classes, resource, drawn.accelerators)
        for _ in range(6):
            proposed = covering.weights(Budget())
            made = None if proposed is None else covering.weighed(proposed[1], Budget())
            if made is None or not made[1].pieces:
                break
            rows.append(made[0])
            covering.add(made[1])
    for slots in islice(placements(drawn, period), 50):
        solution = as_solution(drawn, period, slots)
        if drawn.violations(solution):
            continue
        counts = [[0] * len(c.columns) for c in classes]
        for v, (k, time, _, _) in enumerate(slots):
            table = drawn.operations[v].table
            column = (k, time, table[k].params, (table[k].output + table[k].workspace) * time)
            c = [each.columns for each in operation_classes(drawn)].index(columns_of(drawn, v))
            counts[c][classes[c].columns.index(column)] += 1
        for row in rows:
            assert row.use(classes, counts) <= drawn.accelerators * row.most, row.name


def columns_of(drawn: MemoryProblem, v: int) -> tuple[tuple[int, int, int, int], ...]:
    """The columns of the class of operation ``v``."""
    alone = MemoryProblem((drawn.operations[v],), accelerators=drawn.accelerators, memory=drawn.memory)
    return operation_classes(alone)[0].columns


def as_solution(drawn: MemoryProblem, period: int, slots: tuple[Slot, ...]) -> Solution:
    begin = starts(drawn, period, slots, 0)
    first = min(begin)
    return Solution(
        period,
        tuple(k for k, _, _, _ in slots),
        tuple(members for _, _, members, _ in slots),
        tuple(s - first for s in begin),
    )


def test_large_weights_are_scaled_down_and_stay_valid() -> None:
    (each,) = operation_classes(MemoryProblem((Operation("a", {1: Cost(7, 10**10, 3)}),), accelerators=1))
    row = measure_row([each], memory_measure(10**9, 8 * 10**10))
    assert row.most == LARGEST
    assert row.weights[0][0] * 8 <= LARGEST


# --- bounds against everything -------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(drawn=tiny())
def test_no_bound_is_above_the_optimum(drawn: MemoryProblem) -> None:
    best = least_period(drawn, lambda *_: True)
    assert best is not None
    for name, named in bounds_by_name.items():
        bound = named.bound(drawn, Budget(work=2))
        assert bound is None or bound.value <= best, name
        assert named.excludes is None or not named.excludes(drawn, best, Budget(work=2)), name
    assert best_bound(drawn, Budget(work=2)).value == max(b.value for b in all_bounds(drawn, Budget(work=2)))


@settings(max_examples=30, deadline=None)
@given(drawn=tiny(operations=3, memory=True))
def test_no_bound_is_above_the_optimum_with_memory(drawn: MemoryProblem) -> None:
    if any(drawn.input_violations()):
        return
    best = least_period(drawn, lambda period, slots: not drawn.violations(as_solution(drawn, period, slots)))
    if best is not None:
        for bound in all_bounds(drawn, Budget(work=2)):
            assert bound.value <= best, bound


@settings(max_examples=60, deadline=None)
@given(drawn=tiny(operations=3), most=st.integers(1, 3), longest=st.integers(1, 12))
def test_no_bound_of_a_limit_is_above_the_optimum(drawn: MemoryProblem, most: int, longest: int) -> None:
    flying = least_period(drawn, lambda period, slots: latency(drawn, period, slots) <= most * period)
    bound = in_flight_bound(drawn, most)
    assert flying is not None
    assert bound is None or bound.value <= flying
    assert not paths_exclude(drawn, flying, most * flying)
    bound = latency_bound(drawn, longest)
    if bound is not None:
        quick = least_period(drawn, lambda period, slots: latency(drawn, period, slots) <= longest)
        assert quick is None or (bound.value <= quick and not paths_exclude(drawn, quick, longest))


# --- what each adds ------------------------------------------------------------------------------------


def test_configurations_see_what_does_not_fill_an_accelerator(optimal_period: Callable[..., int]) -> None:
    # Of 15 ns the two wide operations leave 5, enough for one of 3 ns on each accelerator: two pairs, not three.
    wide = problem(*[{2: 3}] * 3, *[{4: 5}] * 2)
    assert best_bound(wide).value == 15
    bound = bounds_by_name["configurations"].bound(wide, Budget(work=2))
    assert bound is not None
    assert (bound.name, bound.value) == ("configurations", 16)
    assert best_bound(wide, Budget(work=2)).value == 16
    assert optimal_period(wide) == 16


def test_an_operation_is_not_split_between_two_allotments(optimal_period: Callable[..., int]) -> None:
    whole = problem(*[{1: 9, 2: 8}] * 3, *[{1: 8, 2: 7}] * 2, accelerators=2)
    assert best_bound(whole).value == 24
    bound = program_bound(whole, "integer program", Budget(work=2), 24)
    assert bound is not None
    assert (bound.name, bound.value) == ("integer program", 25)
    assert optimal_period(whole) == 25


def test_whole_operations_and_configurations_together() -> None:
    # Two pairs of three accelerators always meet, so the least period is 27; only the sets themselves show that.
    both = problem(*[{2: 5}] * 3, *[{2: 7, 3: 6}] * 2, accelerators=3)
    names = ("configurations", "integer program over configurations", "sets of accelerators")
    bounds = [bounds_by_name[name].bound(both, Budget(work=4)) for name in names]
    assert [b and b.value for b in bounds] == [21, 22, 27]
    assert best_bound(both, Budget(work=4)).name == "sets of accelerators"


def test_memory_configurations_count_whole_layers() -> None:
    # 3 accelerators of 10 bytes hold 3 layers of 6, not 5, though 30 bytes were enough: no period will do.
    tables = {1: Cost(1, params=6)}
    heavy = MemoryProblem(tuple(Operation(f"o{v}", tables) for v in range(5)), accelerators=3, memory=10)
    assert ClassProgram(heavy, "configurations").excludes(10**6, Budget(work=2)) == "configurations"
    bound = best_bound(heavy, Budget(work=2))
    assert bound.value > 5


def test_few_in_flight_need_fast_allotments_that_cost_area() -> None:
    # A chain of 4, each 8 on one or 6 on two of 4 accelerators. One in flight: 24 ns at least, the path alone.
    chain = problem(*[{1: 8, 2: 6}] * 4, edges=((0, 1), (1, 2), (2, 3)))
    assert best_bound(chain).value == 8
    one = in_flight_bound(chain, 1)
    assert one is not None
    assert (one.name, one.value) == ("at most 1 in flight", 24)
    # Three: 3 T of latency and 4 T of area. All narrow: 32/3; one wide: 30/3 and 36/4.
    three = in_flight_bound(chain, 3)
    assert three is not None
    assert three.value == 10
    assert in_flight_bound(chain, 9) is None


def test_a_short_latency_bounds_the_period() -> None:
    # 24 ns of latency need every operation wide: 48 of area on 4 accelerators.
    chain = problem(*[{1: 8, 2: 6}] * 4, edges=((0, 1), (1, 2), (2, 3)))
    bound = best_bound(chain, Budget(), Limits(latency=24))
    assert (bound.name, bound.value) == ("latency at most 24 ns", 12)
    assert latency_bound(chain, 23) is None
    assert latency_bound(chain, 32) is None


# --- how they are asked --------------------------------------------------------------------------------


def test_sets_prove_nothing_about_copies() -> None:
    two = replace(problem({1: 10}, accelerators=2), copies=2)
    assert best_bound(two, Budget(work=3.0)).value == 5
    two.verify(Solution(5, (1,), ((0,),), (0,), {0: ((1,),)}))


def test_without_a_budget_of_work_nothing_costly_runs() -> None:
    whole = problem(*[{2: 3}] * 3, *[{4: 5}] * 2)
    costly = {name for name, named in bounds_by_name.items() if named.costly}
    assert costly
    assert not costly & {b.name for b in all_bounds(whole)}
    assert best_bound(whole, Budget(work=1e-6)).value == best_bound(whole).value


@settings(max_examples=15, deadline=None)
@given(drawn=tiny())
def test_the_same_budget_gives_the_same_bounds(drawn: MemoryProblem) -> None:
    one, two = Budget(work=1), Budget(work=1)
    assert all_bounds(drawn, one) == all_bounds(drawn, two)
    assert one.used == two.used


@settings(max_examples=25, deadline=None)
@given(drawn=tiny(), most=st.integers(1, 3))
def test_a_bound_is_proved_again_by_its_name(drawn: MemoryProblem, most: int) -> None:
    for bound in all_bounds(drawn, Budget(work=2), Limits(in_flight=most)):
        again = proves(drawn, bound.name, bound.value, Budget(work=5))
        assert again is not None
        assert again.value >= bound.value, bound


def test_what_was_proven_for_copies_is_proved_again_without() -> None:
    """Fewer copies only raise the bound, though another argument may then be as good."""
    few = problem({2: 10}, {2: 5}, {2: 1}, accelerators=8)
    copied = replace(few, copies=3)
    bound = bounds_by_name["dual feasible functions"].bound(copied, Budget())
    value = 4 if bound is None else bound.value
    assert bounds_by_name["dual feasible functions"].bound(few, Budget()) is None
    again = proves(few, "dual feasible functions", value, Budget())
    assert again is not None
    assert again.value >= value


def test_the_longest_group_is_proved_again() -> None:
    pair = replace(problem({1: 3}, {1: 4}), together=((0, 1),))
    assert best_bound(pair).name == "longest group"
    assert proves(pair, "longest group", 7, Budget()) == best_bound(pair)


def test_names() -> None:
    assert bound_named("area") is bounds_by_name["area"]
    assert bound_named("at most 4 in flight") is not None
    assert bound_named("latency at most 9 ns") is not None
    for unknown in ("", "luck", "at most 4 in flight ", "at most -1 in flight"):
        assert bound_named(unknown) is None
    with pytest.raises(KeyError):
        proves(problem({1: 1}), "luck", 1, Budget())
