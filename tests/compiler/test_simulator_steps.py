"""View and simulator on steps small enough to work out by hand, and on the same steps broken on purpose."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from xdsl.dialects.builtin import ModuleOp

from compiler.ir_input import parse_ir
from compiler.pipeline import new_context
from compiler.simulate import SimulationError, self_timed, time_triggered
from compiler.view import view_of
from dialects.diagnostics import TaktError
from dialects.levels import check_level
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform

T = "tensor<4x8xbf16>"
"""64 bytes."""
OF = f'of <"linear" {{features = 8 : i64}} ({T}) -> {T}, gradients'

STEP = f"""
takt.platform @two {{accelerator = "small", accelerators = 3 : i64, memory = MEMORY : i64, bandwidth = 1000000000 : i64,
  launch = 0 : i64, peak = {{bf16 = 1000000000 : i64}}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64,
  saturation = 0 : i64, links = []}}
takt.graph @net scheduled training <sgd, mixed>
  <PATTERN step of 2, bound 64 by "ranks", plan "1F1B", engine "hand", seed 0> {{
  takt.stage 0 on [0:3]
  %x = takt.input : {T}
  %dy = takt.input : {T}
  %h = takt.linear(%x) {{features = 8}} params 128 group "h"
    cost <[1] time [10] params [100] output [64]> stage 0 slot <1 on [0:1] at [0, 10]> : ({T}) -> {T}
  %y = takt.linear(%h) {{features = 8}} params 128 group "y"
    cost <[1] time [10] params [200] output [64] workspace [5]> stage 0 slot <1 on [1:2] at [10, 40]> : ({T}) -> {T}
  %y.I = takt.input_gradient(%dy) {OF} [0] to [0]> params 128 group "y"
    cost <[1] time [10] params [200] output [64]> stage 0 slot <1 on [1:2] at [20, 50]> : ({T}) -> {T}
  %y.W = takt.weight_gradient(%dy, %h) {OF} [0] to []> params 128 group "y"
    cost <[1] time [10] params [200]> stage 0 slot <1 on [1:2] at [30, 60]> : ({T}, {T}) -> tensor<0xi8>
  %h.W = takt.weight_gradient(%y.I, %x) {OF} [0] to []> params 128 group "h"
    cost <[1] time [10] params [100] workspace [8]> stage 0 slot <1 on [0:1] at [30, 60]> : ({T}, {T}) -> tensor<0xi8>
  %y.step = takt.optimizer_step(%y.W) group "y"
    cost <[1] time [15] workspace [300]> slot <1 on [1:2] at 70> : (tensor<0xi8>) -> tensor<0xi8>
  %h.step = takt.optimizer_step(%h.W) group "h"
    cost <[1] time [6] workspace [32]> slot <1 on [0:1] at 70> : (tensor<0xi8>) -> tensor<0xi8>
  takt.output %y : {T}
}}
"""


def step(*changes: tuple[str, str], pattern: int = 80, memory: int = 1000) -> ModuleOp:
    """1F1B of two ranks and two micro-batches, some texts in it replaced."""
    text = STEP.replace("PATTERN", str(pattern)).replace("MEMORY", str(memory))
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return parse_ir(new_context(), text, "step.mlir")


def test_figures_of_a_step() -> None:
    module = step()
    assert check_level(module) == []
    view = view_of(module)
    assert view.step
    assert (view.period, view.rounds, view.turns) == (40, 2, 1)
    # Micro-batch 0 runs in [0, 40), 1 in [10, 70).
    assert view.latency == 60
    assert view.in_flight == 2
    assert view.span == (0, 85)
    assert view.makespan == 85
    assert view.gap == Fraction(80, 64) - 1
    assert view.load == {0: 20 + 3, 1: 30 + Fraction(15, 2), 2: 0}
    assert view.bubble == {0: 1 - Fraction(46, 80), 1: 1 - Fraction(75, 80), 2: 1}
    # h goes to [1] and y.I to [0].
    assert view.crossing == 128
    assert [view.begin(view.tasks[1], i) for i in range(-1, 4)] == [-40, 10, 40, 90, 120]


def test_in_flight_counts_what_reaches_into_later_steps() -> None:
    # One micro-batch lasts [0, 40), the other [10, 70): in steps of 60 the latter meets itself in [10 + 60, 70).
    assert view_of(step(pattern=60)).in_flight == 2
    # In [0, 10) and [40, 50) two of each in steps of 30; in [10, 30) one, and two of the other, in steps of 40.
    assert view_of(step(pattern=30)).in_flight == 4
    assert view_of(step(pattern=40)).in_flight == 3
    # [0, 40) and [60, 120) in steps of 100: the end of the latter meets the former of the next.
    view = view_of(step(pattern=100))
    apart = tuple(replace(task, later=(task.later[0] + 50,)) for task in view.tasks)
    assert replace(view, tasks=apart).in_flight == 2


def test_a_step_runs_as_scheduled() -> None:
    view = view_of(step())
    report = time_triggered(view)
    assert report.steady
    assert report.step == 80
    assert report.period == 40
    assert report.microbatches % 2 == 0
    assert (report.latency_min, report.latency_max) == (40, 60)
    assert report.in_flight == 2
    assert report.load == {p: 1 - idle for p, idle in view.bubble.items()}
    # Accelerator 0: in [30, 40) both inputs of h, y.I of micro-batch 0 and the workspace of h.W.
    # Accelerator 1: at most 256 of values, in [20, 30), less than the workspace of its update.
    assert report.peak_memory == {0: 100 + 3 * 64 + 8, 1: 200 + 300, 2: 0}


def test_memory_is_that_of_the_checker() -> None:
    module = step()
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    expected = {p: params + peak for p, (params, peak) in peak_memory(graph, platform).items()}
    assert time_triggered(view_of(module)).peak_memory == expected


def test_order_alone_is_as_fast_as_the_longest_circle() -> None:
    # h, y, y.I, y, y.I, h.W and the update: 76. Accelerator 1 alone would do a step in 75.
    for pattern in (76, 80, 200):
        report = self_timed(view_of(step(pattern=pattern)))
        assert report.steady
        # In steps of 85 or more the next waits until all of one is done: 85.
        assert report.step == (76 if pattern < 85 else 85)
        assert report.period == report.step / 2
        assert report.load[1] == 75 / report.step
        assert report.peak_memory[1] == 500


def test_order_that_is_slower_than_its_step() -> None:
    report = self_timed(view_of(step(pattern=72)))
    assert report.steady
    assert report.step == 76


@pytest.mark.parametrize(("pattern", "expected"), [(20, 20), (22, 20), (24, 20), (25, 25), (40, 25)])
def test_steps_that_nothing_keeps_apart(pattern: int, expected: int) -> None:
    # a is done twice as fast as b; as many steps are in progress as in the schedule, where a makespan is 25.
    platform = STEP[: STEP.index("takt.graph")].replace("MEMORY", "1000")
    text = f"""{platform}
    takt.graph @net scheduled <{pattern} step of 2, bound 20 by "area", plan "stages", engine "hand", seed 0> {{
      takt.stage 0 on [0:3]
      %x = takt.input : {T}
      %a = takt.op(%x) cost <[1] time [5] output [64]> stage 0 slot <1 on [0:1] at [0, 5]> : ({T}) -> {T}
      %b = takt.op(%a) cost <[1] time [10] output [64]> stage 0 slot <1 on [1:2] at [5, 15]> : ({T}) -> {T}
      takt.output %b : {T}
    }}
    """
    module = parse_ir(new_context(), text, "step.mlir")
    assert check_level(module) == []
    view = view_of(module)
    assert time_triggered(view).step == pattern
    report = self_timed(view)
    assert report.steady
    assert report.step == expected
    assert report.load == {0: Fraction(10, expected), 1: Fraction(20, expected), 2: 0}


# --- broken on purpose -----------------------------------------------------------------------

H_W = "workspace [8]> stage 0 slot <1 on [0:1] at"
MUTANTS = [
    (
        "at [10, 40]",
        "at [9, 40]",
        80,
        "'y' of micro-batch 0 starts at 9 ns on accelerator 1, but its operand from 'h' is",
    ),
    (
        f"{H_W} [30, 60]",
        f"{H_W} [30, 59]",
        80,
        "'h.W' of micro-batch 1 starts at 59 ns on accelerator 0, but its operand",
    ),
    (
        "at [0, 10]",
        "at [0, 8]",
        80,
        "'h' of micro-batch 1 starts at 8 ns on accelerator 0, which is busy with 'h' of .* 0",
    ),
    (
        f"{H_W} [30, 60]",
        f"{H_W} [31, 71]",
        99,
        "step 'h.step' .* 1 starts at 70 ns on accelerator 0, but its .* 'h.W' is",
    ),
    (
        "[1:2] at 70",
        "[1:2] at 69",
        80,
        "step 'y.step' of micro-batch 1 starts at 69 ns on accelerator 1, but its operand",
    ),
    (
        "[1:2] at 70",
        "[1:2] at 80",
        84,
        "'y' of micro-batch 2 starts at 94 ns on accelerator 1, but its parameters from the",
    ),
    (
        "at [0, 10]",
        "at [0, 10]",
        75,
        "'h' of .* 2 starts at 75 ns on accelerator 0, but its parameters .* 'h.step' of .* 1 is",
    ),
]


@pytest.mark.parametrize(("old", "new", "pattern", "message"), MUTANTS)
def test_broken_steps(old: str, new: str, pattern: int, message: str) -> None:
    module = step((old, new), pattern=pattern)
    assert check_level(module)
    with pytest.raises(SimulationError, match=message) as error:
        time_triggered(view_of(module))
    found = error.value
    assert f"'{found.operator}' of micro-batch {found.microbatch} " in str(found)
    assert f" on accelerator {found.accelerator}" in str(found)
    assert found.fault == ("busy" if "busy" in message else "data")


def test_optimizer_waits_for_all_micro_batches_whatever_their_order() -> None:
    backwards = (
        "params [200]> stage 0 slot <1 on [1:2] at [30, 60]>",
        "params [200]> stage 0 slot <1 on [1:2] at [60, 30]>",
    )
    assert time_triggered(view_of(step(backwards))).step == 80
    assert self_timed(view_of(step(backwards))).step == 76
    message = "but its operand from 'y.W' of micro-batch 0 is ready at 70 ns"
    with pytest.raises(SimulationError, match=message):
        time_triggered(view_of(step(backwards, ("[1:2] at 70", "[1:2] at 69"))))


def test_update_on_no_accelerator() -> None:
    with pytest.raises(SimulationError, match=r"'h\.step' runs on accelerator 7, but the platform has 3") as error:
        time_triggered(view_of(step(("[0:1] at 70", "[7:8] at 70"))))
    assert error.value.fault == "machine"


def test_accelerator_busy_with_an_update() -> None:
    # In steps of 84 the second update of y, [70, 85), reaches into the y that follows at 94 of the next, if that is
    # of no group: what is left is the accelerator.
    loose = (
        '%y = takt.linear(%h) {features = 8} params 128 group "y"',
        "%y = takt.linear(%h) {features = 8} params 128",
    )
    module = step(loose, ("[1:2] at 70", "[1:2] at 81"), pattern=84)
    message = (
        r"'y' of micro-batch 2 starts at 94 ns on accelerator 1, which is busy with the optimizer step 'y.step' of .* 1"
    )
    with pytest.raises(SimulationError, match=message) as error:
        time_triggered(view_of(module))
    assert (error.value.fault, error.value.accelerator) == ("busy", 1)


def test_workspace_of_an_update_overflows() -> None:
    assert time_triggered(view_of(step(memory=500))).steady
    message = r"accelerator 1 needs 500 B at 70 ns but has 499 B; it overflows with the workspace of 'y.step' of .* 1"
    with pytest.raises(SimulationError, match=message) as error:
        time_triggered(view_of(step(memory=499)))
    found = error.value
    assert (found.fault, found.operator, found.microbatch, found.accelerator) == ("memory", "y.step", 1, 1)


def test_order_in_which_the_optimizer_comes_first() -> None:
    with pytest.raises(SimulationError, match="never starts on accelerator 1") as error:
        self_timed(view_of(step(("[1:2] at 70", "[1:2] at 0"))))
    assert error.value.fault == "deadlock"


def test_starts_that_are_not_those_of_the_step() -> None:
    with pytest.raises(TaktError, match="operator 'y' has 1 starts, not 2, one for each micro-batch"):
        view_of(step(("at [10, 40]", "at 10")))
    with pytest.raises(TaktError, match="has 2 starts, not 1"):
        view_of(step(("step of 2", "for 2")))
    with pytest.raises(TaktError, match="an optimizer step of a step has no slot"):
        view_of(step((" slot <1 on [0:1] at 70>", "")))
