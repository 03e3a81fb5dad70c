"""Values of earlier micro-batches: late ones are caught by the checker and both modes of the simulator agree."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from xdsl.dialects.builtin import ModuleOp

from compiler.simulate import SimulationError, self_timed, time_triggered
from compiler.targets.summary import emit
from compiler.view import Edge, view_of
from dialects.levels import check_level
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform

Build = Callable[..., ModuleOp]


@pytest.fixture
def loop(build: Build, operator: Any) -> Callable[..., ModuleOp]:
    """a (30 ns) reads what b (50 ns), on another accelerator, left ``distance`` micro-batches earlier."""

    def make(period: int, distance: int = 1, **options: Any) -> ModuleOp:
        a = operator("a", ["s"], 30, [[0]], 0, output=7)
        b = operator("b", ["a"], 50, [[1]], 30, results=(100,), output=100)
        return build([a, b], period, 2, states={"s": ("b", distance)}, **options)

    return make


def rules(module: ModuleOp) -> set[str | None]:
    return {d.rule for d in check_level(module, "scheduled")} - {"graph-body", "stages-numbered", "stage-present"}


@pytest.mark.parametrize(("distance", "least"), [(1, 80), (2, 50)])
def test_the_cycle_limits_the_period(loop: Callable[..., ModuleOp], distance: int, least: int) -> None:
    good = view_of(loop(least, distance))
    assert rules(loop(least, distance)) == set()
    assert good.edges == (Edge(1, 0, (0,), 100, distance), Edge(0, 1, (0,), 0))
    assert time_triggered(good).period == least
    assert self_timed(good).period == least


def test_a_value_that_is_late_is_caught(loop: Callable[..., ModuleOp]) -> None:
    (message,) = (d.message for d in check_level(loop(79), "scheduled") if d.rule == "precedence")
    assert (
        message == "'a' starts at 0 ns, before its operand 'b' 1 micro-batch earlier ends at 1 ns (started at -49 ns)"
    )
    with pytest.raises(SimulationError) as error:
        time_triggered(view_of(loop(79)))
    assert (error.value.fault, error.value.operator, error.value.microbatch) == ("data", "a", 1)
    assert "operand from 'b' of micro-batch 0 is ready at 80 ns" in str(error.value)


def test_self_timed_runs_at_the_rate_of_the_cycle(loop: Callable[..., ModuleOp]) -> None:
    report = self_timed(view_of(loop(60)))
    assert not report.steady or report.period > 60
    assert self_timed(view_of(loop(100))).period == Fraction(100)


@pytest.mark.parametrize(("distance", "copies"), [(1, 1), (2, 2), (5, 5)])
def test_what_is_carried_is_held_until_it_is_read(loop: Callable[..., ModuleOp], distance: int, copies: int) -> None:
    """b's 100 bytes arrive at accelerator 0 at 80 ns and stay until a ends, 30 ns into a later micro-batch."""
    module = loop(100, distance)
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    held = {0: (0, 7 + copies * 100), 1: (0, 100)}
    assert peak_memory(graph, platform) == held
    assert time_triggered(view_of(module)).peak_memory == {p: peak for p, (_, peak) in held.items()}


def test_an_accumulator_reads_itself(build: Build, operator: Any) -> None:
    """One operator: its own last result is on the spot, and lives until the next one is complete."""
    module = build([operator("sum", ["s"], 40, [[0]], 0, results=(8,), output=8)], 40, 1, states={"s": ("sum", 1)})
    assert rules(module) == set()
    assert time_triggered(view_of(module)).peak_memory == {0: 16}
    with pytest.raises(SimulationError):
        time_triggered(view_of(build([operator("sum", ["s"], 40, [[0], [1]], 0)], 20, 2, states={"s": ("sum", 1)})))


def test_copies_read_from_each_other(build: Build, operator: Any) -> None:
    """Two copies in turn: each reads at distance 1 what the other left, at distance 2 what it left itself."""
    for distance, crossing in ((1, 8), (2, 0)):
        run = operator("run", ["s"], 40, [[0], [1]], 0, results=(8,), output=8)
        module = build([run], 40, 2, states={"s": ("run", distance)})
        assert rules(module) == set()
        view = view_of(module)
        assert view.crossing == crossing
        graph, platform = find_graph(module), find_platform(module)
        assert graph is not None
        assert platform is not None
        expected = {p: sum(held) for p, held in peak_memory(graph, platform).items()}
        assert time_triggered(view).peak_memory == expected


def test_the_summary_says_what_sets_the_period(loop: Callable[..., ModuleOp]) -> None:
    advice = "Values carried from one micro-batch to the next set the period"
    assert advice in " ".join(emit(loop(80)).split())
    assert advice not in " ".join(emit(loop(50, 2)).split())
