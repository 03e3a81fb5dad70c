"""Replay of programs: times by hand, and against the schedule they were made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr

from compiler.simulate.errors import SimulationError
from compiler.simulate.replay import free_moves, link_times, replay
from compiler.view import view_of
from dialects.links import LinkAttr
from dialects.programs import ALL_GATHER, SEND, Instruction, ProgramOp, from_rows
from passes.lower_to_programs import lower_to_programs

Build = Callable[..., ModuleOp]


def chain(build: Build, operator: Any, times: Sequence[int], **options: Any) -> ModuleOp:
    """Operators on accelerators of their own, one after the other; what they pass on has no bytes."""
    starts = [sum(times[:v]) for v in range(len(times))]
    operators = [
        operator(f"v{v}", [f"v{v - 1}"] if v else [], t, [[v]], start, results=[0])
        for v, (t, start) in enumerate(zip(times, starts, strict=True))
    ]
    return build(operators, pattern=max(times), accelerators=len(times), outputs=[f"v{len(times) - 1}"], **options)


def test_a_chain_runs_at_the_pace_of_its_slowest_operator(build: Build, operator: Any):
    module = chain(build, operator, [3, 5, 2])
    lower_to_programs(module, 10)
    report = replay(module, durations=free_moves)
    assert report.microbatches == 10
    assert report.completed == tuple(3 + 5 * (i + 1) + 2 for i in range(10))
    assert (report.makespan, report.period) == (55, Fraction(5))
    assert report.busy == {0: 30, 1: 50, 2: 20}


def test_a_kernel_without_end_runs_the_trips_asked_for(build: Build, operator: Any):
    module = chain(build, operator, [3, 5, 2])
    lower_to_programs(module)
    base = next(op for op in module.body.ops if isinstance(op, ProgramOp)).base.value.data
    assert replay(module, 4, free_moves).microbatches == base + 4


def test_a_kernel_that_runs_no_trip_processes_nothing(build: Build, operator: Any):
    module = chain(build, operator, [3])
    lower_to_programs(module)
    report = replay(module)
    assert (report.microbatches, report.makespan, report.completed, report.period) == (0, 0, (), 0)


def test_moving_keeps_both_ends_busy(build: Build, operator: Any):
    module = chain(build, operator, [3, 5])
    lower_to_programs(module, 8)
    # The value of 0 bytes takes 4 ns all the same: 4 + 5 ns a micro-batch on the second accelerator.
    report = replay(module, durations=lambda x, among: 4)
    assert report.period == 9
    assert report.completed[0] == 3 + 4 + 5


def test_operators_may_take_other_times_than_scheduled(build: Build, operator: Any):
    module = chain(build, operator, [3, 5, 2])
    lower_to_programs(module, 10)
    report = replay(module, durations=free_moves, operators=lambda x, among: 7 if among == (2,) else 1)
    assert (report.period, report.busy) == (7, {0: 10, 1: 10, 2: 70})
    assert (report.begun[0], report.completed[0]) == (0, 1 + 1 + 7)
    assert list(report.begun) == sorted(report.begun)


def test_times_of_links(build: Build, operator: Any):
    def link(name: str, size: int, latency: int, rate: int) -> LinkAttr:
        return LinkAttr(StringAttr(name), IntAttr(size), IntAttr(latency), IntAttr(rate))

    links = [link("pair", 2, 0, 10**9), link("all", 4, 3, 10**8)]
    time = link_times(view_of(chain(build, operator, [1, 1, 1], links=links)))
    send = Instruction(SEND, 0, 0, 1, 0, 1, 0, 8)
    assert time(send, (0, 1)) == 8  # a gigabyte a second, without latency
    assert time(send, (0, 2)) == 3 + 80
    assert time(send._replace(kind=ALL_GATHER), (0, 1)) == 4  # each passes on a half
    assert time(send._replace(end=0), (0, 2)) == 0


def test_programs_that_wait_for_each_other_are_reported(build: Build, operator: Any):
    module = chain(build, operator, [3, 5])
    lower_to_programs(module, 3)
    op = next(op for op in module.body.ops if isinstance(op, ProgramOp))
    op.kernel = from_rows([x for x in op.instructions("kernel") if x.kind != SEND])
    with pytest.raises(SimulationError, match="accelerator 1 waits for ever at instruction"):
        replay(module)


def test_a_module_without_programs_is_refused(build: Build, operator: Any):
    with pytest.raises(SimulationError, match="run lower-to-programs first"):
        replay(chain(build, operator, [1]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_operator_is_done_and_nothing_is_faster_than_the_load(build: Build, operator: Any, data: st.DataObject):
    times = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    module = chain(build, operator, times)
    count = data.draw(st.integers(1, 12))
    lower_to_programs(module, count)
    report = replay(module, durations=free_moves)
    assert report.microbatches == len(report.completed) == count
    assert report.busy == {v: t * count for v, t in enumerate(times)}
    assert report.makespan >= sum(times) + (count - 1) * max(times)
    assert report.completed[0] == sum(times)
