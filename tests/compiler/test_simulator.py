"""The simulator on schedules small enough to work out by hand."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from xdsl.dialects.builtin import ModuleOp

from compiler.simulate import SimulationError, self_timed, time_triggered
from compiler.view import view_of
from dialects.diagnostics import TaktError

Build = Callable[..., ModuleOp]


@pytest.fixture
def chain(operator: Any) -> list[Any]:
    """a on [0] for 10, b on [0:2] for 20, c on [1] for 5; T = 30; everything back to back."""
    return [
        operator("a", ["x"], 10, [[0]], 0, results=[8], params=100, output=8),
        operator("b", ["a"], 20, [[0, 1]], 10, results=[6, 4], params=50, output=5, workspace=7),
        operator("c", ["b:1", "a"], 5, [[1]], 30, results=[2], params=10, output=2, workspace=3),
    ]


def test_view_of_a_chain(build: Build, chain: list[Any]) -> None:
    view = view_of(build(chain, 30, 3, inputs={"x": 16}, outputs=["c", "b"]))
    assert [t.name for t in view.tasks] == ["a", "b", "c"]
    assert [(e.producer, e.consumer, e.results, e.size) for e in view.edges] == [
        (0, 1, (0,), 8),
        (1, 2, (1,), 4),
        (0, 2, (0,), 8),
    ]
    assert view.period == 30
    assert view.latency == 35
    assert view.in_flight == 2
    assert view.load == {0: 30, 1: 25, 2: 0}
    assert view.parameters == {0: 150, 1: 60, 2: 0}
    # a is read on [0:2] and on [1], b's second result on [1].
    assert view.crossing == 8 + 8 + 4
    assert [(i.name, i.size, i.consumers) for i in view.inputs] == [("x", 16, (0,))]
    assert [(o.name, o.producer, o.result, o.size) for o in view.outputs] == [("c", 2, 0, 2), ("b", 1, 0, 6)]


def test_chain_runs_as_scheduled(build: Build, chain: list[Any]) -> None:
    report = time_triggered(view_of(build(chain, 30, 3, inputs={"x": 16})), 10)
    assert report.steady
    assert report.microbatches == 10
    assert report.period == 30
    assert report.latency_min == report.latency_max == 35
    assert report.in_flight == 2
    assert report.load == {0: 1, 1: Fraction(25, 30), 2: 0}
    # Accelerator 0: in [0, 10) the input 16 and a's bundle 8; in [10, 30) a's bundle is gone (its readers sit
    # elsewhere), the copy of a for [0:2] is 8, b's bundle 5 and workspace 7.
    # Accelerator 1: in [10, 30) the copies of a for [0:2] and for [1] (8 each), b's bundle and workspace, and, in
    # [10, 15), what c of the micro-batch before holds on [1]: a's copy is dropped at 35 = 5 of the next period. In
    # [0, 5): a's copy 8, b's second result 4, c's bundle 2 and workspace 3.
    assert report.peak_memory == {0: 150 + 24, 1: 60 + 28, 2: 0}


def test_order_alone_is_as_fast(build: Build, operator: Any) -> None:
    # b waits 7 longer than it must; c follows on the same accelerator.
    operators = [
        operator("a", [], 10, [[0]], 0),
        operator("b", ["a"], 10, [[1]], 17),
        operator("c", ["b"], 3, [[1]], 27),
    ]
    view = view_of(build(operators, 20, 2))
    scheduled, measured = time_triggered(view), self_timed(view)
    assert scheduled.latency_max == 30
    assert measured.steady
    assert measured.latency_max == 23
    assert measured.period == scheduled.period == 20
    assert measured.load == scheduled.load == {0: Fraction(1, 2), 1: Fraction(13, 20)}


def test_self_timed_keeps_the_order(build: Build, operator: Any) -> None:
    # On accelerator 1 the schedule runs c of micro-batch i-1 (at 25 = 5 mod 20) before b of micro-batch i (at 12),
    # so b of micro-batch 1 must wait for c of 0, though its data is there.
    operators = [
        operator("a", [], 2, [[0]], 0),
        operator("d", ["a"], 20, [[2]], 4),
        operator("c", ["d"], 7, [[1]], 25),
        operator("b", ["a"], 8, [[1]], 12),
    ]
    measured = self_timed(view_of(build(operators, 20, 3)), 12)
    # d runs [2, 22), c [22, 29): 9 ns into the next period; b of micro-batch 0 starts at 2, later ones at 9.
    assert measured.steady
    assert (measured.latency_min, measured.latency_max) == (29, 29)
    assert measured.period == 20


def test_interval_wraps_around_the_period(build: Build, operator: Any) -> None:
    operators = [operator("a", [], 6, [[0]], 0), operator("b", ["a"], 4, [[0]], 16)]
    report = time_triggered(view_of(build(operators, 10, 1)), 5)
    assert report.load == {0: 1}
    assert report.latency_max == 20
    assert report.in_flight == 2


def test_replicas_take_turns(build: Build, operator: Any) -> None:
    # b takes 18 > T = 10 and needs two copies; each holds a's result for its own micro-batches.
    operators = [
        operator("a", [], 10, [[0]], 0, results=[8], output=8),
        operator("b", ["a"], 18, [[1], [2]], 10, results=[4], output=4, params=30, workspace=1),
        operator("c", ["b"], 9, [[3]], 28, results=[1], output=1),
    ]
    view = view_of(build(operators, 10, 4))
    assert view.load == {0: 10, 1: 9, 2: 9, 3: 9}
    assert view.crossing == 12
    for report in (time_triggered(view), self_timed(view)):
        assert report.steady
        assert report.period == 10
        assert report.load == {0: 1, 1: Fraction(9, 10), 2: Fraction(9, 10), 3: Fraction(9, 10)}
        assert report.peak_memory == {0: 8, 1: 30 + 13, 2: 30 + 13, 3: 5}
        assert report.in_flight == 4


def test_value_alive_longer_than_a_period_counts_several_times(build: Build, operator: Any) -> None:
    operators = [
        operator("a", [], 1, [[0]], 0, results=[10], output=10),
        operator("b", ["a"], 25, [[1], [2], [3]], 1),
        operator("c", ["a", "b"], 2, [[0]], 27),
    ]
    report = time_triggered(view_of(build(operators, 10, 4)))
    # a lives [0, 29) on accelerator 0: three at once, all but 1 ns of each period.
    assert report.peak_memory[0] == 30
    # Received by b on its own copy from 1 to 26.
    assert report.peak_memory[1] == 10


def test_rational_period(build: Build, operator: Any) -> None:
    operators = [operator("a", [], 3, [[0], [1]], 0), operator("b", ["a"], 3, [[2]], 3)]
    view = view_of(build(operators, 7, 3, pattern_of=2))
    for report in (time_triggered(view, 40), self_timed(view, 40)):
        assert report.period == Fraction(7, 2)
        assert report.load == {0: Fraction(3, 7), 1: Fraction(3, 7), 2: Fraction(6, 7)}


def test_operators_without_duration(build: Build, operator: Any) -> None:
    # z passes a on at once, in the middle of a run of b on the same accelerator.
    operators = [
        operator("a", [], 4, [[0]], 0),
        operator("z", ["a"], 0, [[1]], 4),
        operator("b", ["z"], 10, [[1]], 8),
        operator("y", ["a"], 0, [[1]], 10),
    ]
    view = view_of(build(operators, 10, 2))
    assert time_triggered(view).latency_max == 18
    assert self_timed(view).latency_max == 14


def test_late_data(build: Build, chain: list[Any]) -> None:
    chain[1] = replace(chain[1], start=9)
    with pytest.raises(SimulationError, match=r"'b' of micro-batch 0 starts at 9 ns .* 'a' is ready at 10 ns") as error:
        time_triggered(view_of(build(chain, 40, 3, inputs={"x": 16})))
    assert (error.value.fault, error.value.operator, error.value.microbatch) == ("data", "b", 0)


def test_busy_with_another_operator(build: Build, chain: list[Any]) -> None:
    # c of micro-batch 0 at [36, 41) meets b of micro-batch 1 at [40, 60) on accelerator 1.
    chain[2] = replace(chain[2], start=36)
    message = r"'b' of micro-batch 1 starts at 40 ns on accelerator 1, which is busy with 'c' of .* 0 until 41 ns"
    with pytest.raises(SimulationError, match=message) as error:
        time_triggered(view_of(build(chain, 30, 3, inputs={"x": 16})))
    assert (error.value.fault, error.value.accelerator) == ("busy", 1)


def test_busy_with_itself(build: Build, operator: Any) -> None:
    with pytest.raises(SimulationError, match=r"'a' of micro-batch 1 .* busy with 'a' of micro-batch 0"):
        time_triggered(view_of(build([operator("a", [], 11, [[0]], 0)], 10, 1)))


def test_copies_that_share_an_accelerator(build: Build, operator: Any) -> None:
    with pytest.raises(SimulationError, match="on accelerator 1, which is busy"):
        time_triggered(view_of(build([operator("a", [], 11, [[0, 1], [1, 2]], 0)], 10, 3)))


def test_memory_is_exact(build: Build, chain: list[Any]) -> None:
    assert time_triggered(view_of(build(chain, 30, 3, memory=174, inputs={"x": 16}))).peak_memory[0] == 174
    message = r"accelerator 0 needs 174 B at 0 ns but has 173 B; it overflows with the input of 'x' of micro-batch 0"
    with pytest.raises(SimulationError, match=message) as error:
        time_triggered(view_of(build(chain, 30, 3, memory=173, inputs={"x": 16})))
    assert error.value.fault == "memory"


def test_parameters_alone_overflow(build: Build, operator: Any) -> None:
    with pytest.raises(SimulationError, match=r"needs 50 B at 0 ns but has 49 B; .* its parameters"):
        time_triggered(view_of(build([operator("a", [], 1, [[0]], 0, params=50)], 1, 1, memory=49)))


def test_no_such_accelerator(build: Build, operator: Any) -> None:
    with pytest.raises(SimulationError, match="accelerator 2, but the platform has 2"):
        time_triggered(view_of(build([operator("a", [], 1, [[2]], 0)], 1, 2)))


def test_order_that_deadlocks(build: Build, operator: Any) -> None:
    # b reads a but comes first on the accelerator.
    operators = [operator("a", [], 2, [[0]], 5), operator("b", ["a"], 2, [[0]], 0)]
    with pytest.raises(SimulationError, match=r"'a' of micro-batch 0 never starts on accelerator 0") as error:
        self_timed(view_of(build(operators, 10, 1)))
    assert error.value.fault == "deadlock"


def test_overloaded_order_is_slower_than_its_period(build: Build, operator: Any) -> None:
    report = self_timed(view_of(build([operator("a", [], 12, [[0]], 0)], 10, 1)), 50)
    assert report.period == 12
    assert not report.steady


def test_times_beyond_64_bits(build: Build, operator: Any) -> None:
    with pytest.raises(SimulationError, match="do not fit in 64 bits"):
        time_triggered(view_of(build([operator("a", [], 2**61, [[0]], 0)], 2**61, 1)))


def test_more_runs_than_fit_in_memory(build: Build, operator: Any) -> None:
    view = view_of(build([operator("a", [], 10, [[0]], 0)], 10, 1))
    for run in (time_triggered, self_timed):
        with pytest.raises(SimulationError, match=r"micro-batches do 1,000,000,0.. things, more than 100,000,000"):
            run(view, 10**9)


def test_unscheduled_module(build: Build, operator: Any) -> None:
    module = build([operator("a", [], 1, [[0]], 0)], 1, 1)
    op = next(o for o in module.walk() if o.name == "takt.op")
    del op.properties["slot"]
    with pytest.raises(TaktError, match="'a' has no slot"):
        view_of(module)
    graph = next(o for o in module.walk() if o.name == "takt.graph")
    del graph.properties["schedule"]
    with pytest.raises(TaktError, match="not scheduled"):
        view_of(module)


def test_graph_without_operators(build: Build) -> None:
    view = view_of(build([], 5, 2, inputs={"x": 4}, outputs=["x"]))
    assert time_triggered(view).period == 5
    assert view.outputs[0].producer is None
