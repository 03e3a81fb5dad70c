"""No bound is above the optimum, and the tight one is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import all_bounds, best_bound
from passes.scheduling.data import Cost, Operation
from passes.scheduling.dual import dual_bound, memory_measure, time_measures
from passes.scheduling.elementary import area_bound, memory_bound
from passes.scheduling.problem import MemoryProblem


def problem(*tables: dict[int, int], accelerators: int = 4) -> MemoryProblem:
    rows = [{k: Cost(t) for k, t in table.items()} for table in tables]
    return MemoryProblem(tuple(Operation(f"o{v}", t) for v, t in enumerate(rows)), accelerators=accelerators)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_bound_is_above_the_optimum(
    tiny_problems: Callable[..., Any], optimal_period: Callable[..., int], data: st.DataObject
) -> None:
    drawn = data.draw(tiny_problems(operations=5, accelerators=3))
    best = optimal_period(drawn)
    for bound in all_bounds(drawn):
        assert bound.value <= best, bound
    assert best_bound(drawn).value == max(b.value for b in all_bounds(drawn))


def test_the_tight_bound_has_its_name() -> None:
    assert best_bound(problem({1: 8}, {1: 8}, {1: 8})).name == "longest operation"
    area = best_bound(problem(*[{1: 1}] * 70))
    assert (area.name, area.value) == ("area", 18)


def test_area_takes_only_allotments_that_meet_the_period() -> None:
    # On one accelerator the long operation is cheap, but 20 ns is more than any period near the bound.
    assert area_bound(problem({1: 20, 4: 9}, *[{1: 1}] * 4)).value == 10
    assert area_bound(problem({1: 20, 4: 30})).value == 20


def test_memory_bounds_the_period_by_what_is_live() -> None:
    # 3 operations hold 8 bytes for 10 ns each; 2 accelerators have 2 * (10 - 3 / 2) bytes beside the parameters.
    table = {1: Cost(10, params=1, output=6, workspace=2)}
    tight = MemoryProblem(tuple(Operation(f"o{v}", table) for v in range(3)), accelerators=2, memory=10)
    bound = memory_bound(tight)
    assert bound is not None
    assert bound.value == -(-240 // 17)
    assert memory_bound(problem({1: 1})) is None


def test_allotments_that_alone_overflow_the_memory_do_not_count() -> None:
    table = {1: Cost(1, params=99), 2: Cost(6, params=40)}
    assert area_bound(MemoryProblem((Operation("a", table),), accelerators=2, memory=50)).value == 6


def test_an_operation_that_takes_no_time_holds_only_parameters() -> None:
    # On 2 accelerators it takes no time, so its 32 bytes of output and workspace are never live.
    table = {2: Cost(0, params=7, output=19, workspace=13), 3: Cost(4, output=9)}
    instant = MemoryProblem((Operation("a", table),), accelerators=3, memory=20)
    instant.check()
    assert best_bound(instant).value == 0


def test_an_empty_problem_has_bound_zero() -> None:
    assert best_bound(problem()).value == 0


# --- dual feasible functions -------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(period=st.integers(1, 60), data=st.data())
def test_measures_are_dual_feasible(period: int, data: st.DataObject) -> None:
    """Whatever fits in one period takes at most one accelerator by every measure."""
    times: list[int] = []
    while sum(times) < period and len(times) < 12 and data.draw(st.booleans()):
        times.append(data.draw(st.integers(0, period - sum(times))))
    for measure in time_measures(period, [*times, data.draw(st.integers(1, period))]):
        taken = sum(measure.numerator((1, t, 0, 0)) for t in times)
        assert 0 <= taken <= measure.denominator, measure.name


def test_two_operations_longer_than_half_a_period_never_share() -> None:
    # Five operations of 6 ns on four accelerators: by area 8 ns, but two of them must follow each other.
    five = problem(*[{1: 6}] * 5)
    assert area_bound(five).value == 8
    bound = dual_bound(five)
    assert bound is not None
    assert (bound.value, best_bound(five).name) == (12, "dual feasible functions")


def test_memory_joins_in() -> None:
    # Two operations on two accelerators: alone each is fast but keeps all its parameters; only one fits so.
    table = {1: Cost(10, params=60), 2: Cost(8, params=40)}
    tight = MemoryProblem(tuple(Operation(f"o{v}", table) for v in range(3)), accelerators=2, memory=100)
    bound = dual_bound(tight)
    assert memory_measure(16, 100).numerator((1, 10, 60, 0)) == 960
    assert bound is None or bound.value <= 24


def test_nothing_to_gain_from_many_small_operations() -> None:
    assert dual_bound(problem(*[{1: 1}] * 400)) is None
