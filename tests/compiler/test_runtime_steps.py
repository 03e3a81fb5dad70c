"""Programs of steps with time: the replay, runs of which the truth is known, what is said of them, and one for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.parser import Parser

from compiler.links import instances
from compiler.output import print_ir
from compiler.pipeline import Options, new_context, run_pipeline
from compiler.runtime import report, trace
from compiler.runtime.job import Settings, read_job, write_job
from compiler.runtime.measured import Window, measured, predicted
from compiler.runtime.prepare import job_of
from compiler.runtime.recorded import Run
from compiler.runtime.replayed import replayed
from compiler.runtime.waits import Story
from compiler.simulate.replay import free_moves, replay
from compiler.view import view_of
from dialects.levels import check_level
from dialects.programs import COMPUTE, UPDATE, Instruction
from frontend import Source, load
from passes.lower_to_programs import lower_to_programs

Play = Callable[..., Run]


def step(unit: int = 1, linked: bool = True, tied: bool = False) -> str:
    """A step of two micro-batches on two accelerators, times in units of ns.

    With ``linked`` its last weight gradient comes in the next step of 131 units; without, it is one of 95 units, in
    which all accelerators begin anew. ``tied``: the two layers are copies, whose gradients are summed, which takes 34
    units on links, and the step 165.
    """
    tensor, weights = "tensor<2x4xbf16>", "tensor<0xi8>"
    of = f'of <"linear" {{features = 4 : i64}} ({tensor}) -> {tensor}, gradients [0] to'
    loss = f'of <"mse_loss" ({tensor}, {tensor}) -> tensor<f32>, gradients [] to [0]>'
    links = f'#takt.link<"node" 2, latency {2 * unit}, bandwidth {10**9 // unit}>' if linked else ""

    def move(value: str, to: int, starts: list[int]) -> str:
        at = [s * unit for s in starts]
        return (
            f'takt.reserve {value} to [{to}:{to + 1}] over "node" at {at} for {18 * unit} : {tensor}' if linked else ""
        )

    def slot(group: str, time: int, stage: int, starts: list[int]) -> str:
        at, place = [s * unit for s in starts], stage % 2
        when = at if len(at) > 1 else at[0]
        cost = f"cost <[1] time [{time * unit}]> stage {stage} slot <1 on [{place}:{place + 1}] at {when}>"
        return f'group "{group}" {cost}'

    late = 99 if tied else 133
    b, bw, aw = ([28, 58], [89, late], [76, 106]) if linked else ([10, 40], [71, 81], [40, 70])
    pattern, a_step, b_step = (165 if tied else 131, 126, 126 if tied else 143)
    if not linked:
        pattern, a_step, b_step = (96, 91, 91) if tied else (95, 90, 91)
    both = "%a.W, %b.W", "%b.W, %a.W"
    reads = both if tied else ("%a.W", "%b.W")
    types = ", ".join([weights] * (2 if tied else 1))
    return f"""
takt.platform @p {{accelerator = "a", accelerators = 2 : i64, memory = 10000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {{}}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [{links}]}}
takt.graph @m scheduled training <sgd, mixed> <{pattern * unit} step of 2, bound 0 by "area", plan "1F1B",
    engine "hand", seed 0> {{
  takt.stage 0 on [0:1]
  takt.stage 1 on [1:2]
  takt.stage 2 on [0:1]
  %x = takt.input : {tensor}
  %a = takt.linear(%x) {{features = 4}} params 32 {slot("a", 10, 0, [0, 10])} : ({tensor}) -> {tensor}
  {move("%a", 1, [10, 28])}
  %b = takt.linear(%a) {{features = 4}} params 32 {slot("b", 10, 1, b)} : ({tensor}) -> {tensor}
  %l = takt.mse_loss(%b, %x) {slot("l", 5, 1, [s + 10 for s in b])} : ({tensor}, {tensor}) -> tensor<f32>
  %l.I = takt.input_gradient(%b, %x) {loss} {slot("l", 5, 1, [s + 15 for s in b])} : ({tensor}, {tensor}) -> {tensor}
  %b.I = takt.input_gradient(%l.I) {of} [0]> params 32 {slot("b", 10, 1, [s + 20 for s in b])} : ({tensor}) -> {tensor}
  {move("%b.I", 0, [58, 88])}
  %b.W = takt.weight_gradient(%l.I, %a) {of} []> params 32 {slot("b", 10, 1, bw)} : ({tensor}, {tensor}) -> {weights}
  %a.W = takt.weight_gradient(%b.I, %x) {of} []> params 32 {slot("a", 20, 2, aw)} : ({tensor}, {tensor}) -> {weights}
  %b.step = takt.optimizer_step({reads[1]}) params 32 {slot("b", 7, 1, [b_step])} : ({types}) -> {weights}
  %a.step = takt.optimizer_step({reads[0]}) params 32 {slot("a", 5, 0, [a_step])} : ({types}) -> {weights}
  takt.output %l : tensor<f32>
}}
"""


def lowered(microbatches: int | None, **options: Any) -> ModuleOp:
    module = Parser(new_context(), step(**options)).parse_module()
    lower_to_programs(module, microbatches)
    return module


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_steps_of_these_tests_keep_every_rule(linked: bool, tied: bool):
    assert check_level(lowered(6, linked=linked, tied=tied)) == []


LAYERS = """
model deep {
  input x: tensor<8 x 16, bf16>
  repeat 8 carry x { x = linear(x, features = 16) }
  l = mse_loss(x, x)
  output l
}
accelerator chip { memory = 1 MiB  bandwidth = 1 GB/s  launch = 1 us  peak bf16 = 1 GFLOP/s }
platform board { accelerators = 4 of chip  link bus { latency = 100 ns  bandwidth = 1 GB/s } }
"""


@pytest.mark.parametrize("order", ["1f1b", "interleaved", "zb-v", "dualpipe-v"])
def test_programs_of_known_orders_keep_every_rule(order: Any):
    options = Options(training="adam", microbatches=8, order=order, stages=4)
    module = run_pipeline(new_context(), load(Source("deep.takt", LAYERS)), to="scheduled", options=options)
    view = view_of(module)
    lower_to_programs(module)
    assert check_level(module) == []
    found = replay(module, 3, free_moves)
    steps = found.microbatches // 8
    assert found.busy == {p: steps * 8 * time for p, time in view.load.items()}
    # An accelerator that sends waits here for the one that receives, so that the step may take a little longer.
    assert found.period * 8 < 1.25 * view.pattern


# --- the replay ------------------------------------------------------------------------------


def test_the_replay_of_a_step_takes_its_time():
    found = replay(lowered(12, linked=False))
    assert (found.period * 2, found.makespan) == (95, 6 * 95 + 2)
    assert found.busy == {0: 6 * 65, 1: 6 * 87}
    assert [end - begin for begin, end in zip(found.begun, found.completed, strict=True)] == 6 * [80, 80]


def test_optimizer_steps_may_take_other_times():
    module = lowered(12, linked=False)
    slow = replay(module, 0, free_moves, lambda x, among: (35 if x.kind == UPDATE else 5) * len(among))
    # a of both, b of the second after the first backward pass, then back, and the optimizer step.
    assert slow.period * 2 == 5 + 4 * 5 + 4 * 5 + 5 + 35


def test_an_optimizer_step_waits_for_gradients_of_copies():
    found = replay(lowered(12, linked=False, tied=True))
    assert (found.period * 2, found.busy) == (95, {0: 6 * 65, 1: 6 * 87})

    def slow(x: Instruction, among: tuple[int, ...]) -> int:
        return 200 if x[:2] == (COMPUTE, 5) else 5

    # The first accelerator is through with its own gradients long before those of the second come.
    begun = [replay(lowered(12, linked=False, tied=tied), 0, free_moves, slow).begun[2] for tied in (False, True)]
    assert (begun[0] < 60, begun[1] > 400) == (True, True)


# --- figures of runs -------------------------------------------------------------------------


def test_a_run_as_scheduled_has_the_figures_of_the_step(play: Play):
    run = play(lowered(12))
    found, said = measured(run), predicted(run.job)
    assert (found.period * 2, said.period * 2) == (131, 131)
    assert (said.latency, said.latency_max) == ((99 + 133) / 2, 133)
    assert (found.latency, found.latency_max) == (said.latency, said.latency_max)
    assert found.load == {p: pytest.approx(x) for p, x in said.load.items()} == {0: 65 / 131, 1: 87 / 131}
    assert (found.critical, found.steady) == (1, True)
    assert Window.of(run.job) == Window(4, 8, True)


def test_messages_that_overlap_leave_the_step_its_time(play: Play):
    for tied, time in ((False, 131), (True, 165)):
        run = play(lowered(20, tied=tied), scheduled=False)
        assert measured(run).period * 2 == time
    assert replayed(lowered(20), play(lowered(20))).period * 2 >= 131


def test_a_slow_optimizer_step_makes_steps_longer(player: Any):
    job, programs = job_of(lowered(12), Settings())
    job = replace(job, updates=tuple(replace(u, time=50) if u.name == "a.step" else u for u in job.updates))
    found = measured(Run(job, programs, player(job, programs, {}, False).play()))
    assert found.period * 2 == 131 + 45
    assert found.load[0] == pytest.approx((60 + 50) / 176)


@pytest.mark.parametrize(
    ("steps", "period", "steady"), [(1, 150 / 2, False), (2, 131 / 2, False), (4, 131 / 2, False), (6, 131 / 2, True)]
)
def test_short_runs(play: Play, steps: int, period: float, steady: bool):
    found = measured(play(lowered(2 * steps)))
    assert (found.period, found.steady) == (period, steady)


def test_a_job_of_a_step_is_read_back(tmp_path: Path):
    job, programs = job_of(lowered(4, tied=True), Settings())
    write_job(tmp_path, job, programs)
    assert read_job(tmp_path) == job
    assert [(u.on, u.among, u.start) for u in job.updates] == [((1,), (0, 1), 126), ((0,), (0, 1), 126)]
    a = job.operators[0]
    assert [job.begin(a, i) for i in range(5)] == [0, 10, 165, 175, 330]


# --- what is said ----------------------------------------------------------------------------


def test_the_report_says_the_time_of_a_step(play: Play):
    run = play(lowered(12, unit=500_000), paced=True)
    found = measured(run)
    columns = report.columns_of(predicted(run.job), None, found)
    lines = report.text(run.job, columns, found).splitlines()
    assert lines[0].endswith(
        "2 processes on torch.distributed, emulated, steps of 2 micro-batches, micro-batches as scheduled"
    )
    assert lines[2].split() == ["step", "65.5", "ms", "65.5", "ms", "100.0", "%"]
    assert lines[-1] == "accelerator 1 is critical: of a step, it waits 33.6 % and moves values 0.0 %"
    data = json.loads(report.json_text(run.job, columns, found, {}))
    assert (data["step"], data["measured"]["step_ns"], data["predicted"]["step_ns"]) == (2, 65_500_000, 65_500_000)


def test_accelerators_wait_for_those_whose_gradients_are_summed(play: Play):
    run = play(lowered(8, tied=True), slow={1: 4}, scheduled=False)
    reasons = {wait.why for wait in Story(run).waits(0)}
    assert "waits for b.W of micro-batch 1 on accelerator 1" in reasons


def test_the_trace_shows_optimizer_steps_and_every_start(play: Play, trace_rules: Callable[..., None]):
    module = lowered(8)
    run = play(module)
    events = json.loads(trace.emit(view_of(module), run))["traceEvents"]
    trace_rules(events)
    for process in (1, 2):
        shown = [e for e in events if e.get("cat") in ("operator", "update") and e["pid"] == process]
        starts = sorted((e["name"], round(e["ts"] * 1000)) for e in shown)
        assert [t for name, t in starts if name == "b.W"] == [89, 133, 220, 264, 351, 395, 482, 526]
        assert [t for name, t in starts if name == "b.step"] == [143, 274, 405, 536]
    moved = {(x.move.index, x.microbatch, x.sent) for x in instances(view_of(module), Fraction(0), Fraction(200))}
    assert moved == {(0, 0, 10), (0, 1, 28), (0, 2, 141), (0, 3, 159), (1, 0, 58), (1, 1, 88), (1, 2, 189)}


# --- for real --------------------------------------------------------------------------------


@pytest.mark.torch
def test_an_emulated_run_of_a_step(taktc: Any, tmp_path: Path):
    """Two processes that sleep, one of which waits for gradients of the other."""
    if find_spec("torch") is None:
        pytest.skip("needs torch")
    ir, figures = tmp_path / "step.mlir", tmp_path / "f.json"
    ir.write_text(step(500_000, tied=True))
    result = taktc("run", ir, "--json", figures, "--trace", tmp_path / "t.json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(figures.read_text())
    assert (found["step"], found["microbatches"], found["steady"]) == (2, 16, True)
    assert 0.97 < found["measured"]["step_ns"] / found["predicted"]["step_ns"] < 2
    assert found["measured"]["load"]["1"] > found["measured"]["load"]["0"]


def test_how_many_steps_run(taktc: Any, tmp_path: Path):
    ir = tmp_path / "step.mlir"
    ir.write_text(step())
    for given, count in [([], 16), (["--steps", "3"], 6), (["--microbatches", "4"], 4)]:
        folder = tmp_path / f"run{count}"
        assert taktc("run", ir, "--prepare", folder, *given).code == 0
        assert read_job(folder).microbatches == count
    programs = tmp_path / "programs.mlir"
    programs.write_text(print_ir(lowered(None)))
    assert taktc("run", programs, "--prepare", tmp_path / "run10", "--steps", "5").code == 0
    assert read_job(tmp_path / "run10").microbatches == 10
    result = taktc("run", ir, "--prepare", tmp_path / "no", "--steps", "3", "--microbatches", "4")
    assert (result.code, "--steps and --microbatches both say how much to run" in result.err) == (1, True)
    result = taktc("run", ir, "--prepare", tmp_path / "no", "--microbatches", "3")
    assert (result.code, "3 micro-batches are no whole steps: the schedule is a step of 2" in result.err) == (1, True)
