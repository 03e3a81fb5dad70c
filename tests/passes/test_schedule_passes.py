"""The passes partition-stages and schedule-periodic, held to the checker of the levels."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, IntAttr, ModuleOp, StringAttr, TensorType, i8
from xdsl.ir import OpResult
from xdsl.parser import Parser

from compiler import compile_model
from compiler.pipeline import Options
from compiler.simulate import time_triggered
from compiler.view import view_of
from dialects.attributes import CostAttr, CostEntry
from dialects.diagnostics import TaktError
from dialects.levels import check_level
from dialects.links import LinkAttr
from dialects.operators import OpaqueOp, OperatorOp
from dialects.schedule_rules import in_flight, latency, peak_memory
from dialects.structure import GraphOp, InputOp, OutputOp, PlatformOp, StageOp, find_graph, find_platform, make_platform
from dialects.takt import Takt
from frontend import Source
from passes import get_all_passes
from passes.choices import PLANS
from passes.instance import DoesNotFit, read_staged, with_copies
from passes.partition_stages import PartitionStagesPass
from passes.progress import listening
from passes.schedule_periodic import SchedulePeriodicPass
from passes.scheduling.data import Solution, Transfer
from passes.verify_level import VerifyLevelPass

Plan = Literal["stages", "laminar"]
CONTEXT = Context()
CONTEXT.load_dialect(Builtin)
CONTEXT.load_dialect(Takt)


def platform(accelerators: int, group: int, memory: int = 10**6) -> PlatformOp:
    """A machine with fast links between groups, and none at all when all accelerators are one group."""
    sizes = {"node": group, "all": accelerators} if group < accelerators else {}
    links = [LinkAttr(StringAttr(name), IntAttr(size), IntAttr(0), IntAttr(10**18)) for name, size in sizes.items()]
    return make_platform(
        "p",
        accelerator="a",
        accelerators=accelerators,
        memory=memory,
        bandwidth=1,
        launch=0,
        peak={},
        links=links,
    )


def tensor(size: int) -> TensorType[Any]:
    return TensorType(i8, [size])


@st.composite
def modules(draw: Any, memory: int = 10**6) -> ModuleOp:
    """Moldable modules: a random graph of opaque operators with several results, on a grouped platform."""
    accelerators, group = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    entries = st.builds(CostEntry, st.integers(0, 50), st.integers(0, 60), st.integers(0, 9), st.integers(0, 9))
    tables = draw(
        st.lists(st.dictionaries(st.integers(1, accelerators), entries, min_size=1, max_size=4), min_size=1, max_size=3)
    )
    source = InputOp.create(result_types=[tensor(5)])
    values = [source.output]
    operators: list[OpaqueOp] = []
    for _ in range(draw(st.integers(1, 9))):
        operands = draw(st.lists(st.sampled_from(values), max_size=3))
        results = [tensor(draw(st.integers(0, 9))) for _ in range(draw(st.integers(1, 2)))]
        cost = CostAttr.from_table(draw(st.sampled_from(tables)))
        op = OpaqueOp.make(operands, {}, results, 0, cost=cost)
        operators.append(op)
        values.extend(op.outputs)  # pyright: ignore[reportArgumentType]
    graph = GraphOp.make("m", [source, *operators, OutputOp.make([values[-1]])], "moldable")
    return ModuleOp([platform(accelerators, group, memory), graph])


def accepted(module: ModuleOp) -> GraphOp:
    assert check_level(module) == []
    graph = find_graph(module)
    assert graph is not None
    return graph


def parse(text: str, memory: int = 1000) -> ModuleOp:
    module = Parser(CONTEXT, text).parse_module()
    module.body.block.insert_op_before(platform(4, 4, memory), module.body.block.first_op)  # pyright: ignore
    return module


CHAIN = """
takt.graph @m moldable {
  %x = takt.input : tensor<8xi8>
  %a = takt.op(%x) cost <[1, 2] time [800, 500] params [400, 200] output [8, 4]> : (tensor<8xi8>) -> tensor<8xi8>
  %b = takt.op(%a) cost <[1, 2] time [900, 500] params [400, 200] output [8, 4]> : (tensor<8xi8>) -> tensor<8xi8>
  takt.output %b : tensor<8xi8>
}
"""
LONG = """
takt.graph @m moldable {
  %x = takt.input : tensor<8xi8>
  %a = takt.op(%x) cost <[1, 2] time [900, 800] params [4, 2] output [8, 4]> : (tensor<8xi8>) -> tensor<8xi8>
  %b = takt.op(%a) cost <[1, 2] time [300, 250] params [4, 2] output [8, 4]> : (tensor<8xi8>) -> tensor<8xi8>
  takt.output %b : tensor<8xi8>
}
"""
STAGED = """
takt.graph @m staged {
  takt.stage 0 on [0:1]
  takt.stage 1 on [1:2]
  %x = takt.input : tensor<8xi8>
  %a = takt.op(%x) cost <[1, 2] time [800, 500] params [400, 200] output [8, 4]> stage 0
    : (tensor<8xi8>) -> tensor<8xi8>
  %b = takt.op(%a) cost <[2] time [300] params [200] output [4]> stage 0 shared 1 : (tensor<8xi8>) -> tensor<8xi8>
  %c = takt.op(%b) cost <[1] time [700] params [400] output [8]> stage 1 : (tensor<8xi8>) -> tensor<8xi8>
  takt.output %c : tensor<8xi8>
}
"""


@settings(max_examples=80, deadline=None)
@given(module=modules())
def test_partition_and_schedule_pass_the_checker(module: ModuleOp) -> None:
    PartitionStagesPass().apply(CONTEXT, module)
    stages = accepted(module)
    loads = {s.index.value.data: 0 for s in stages.stages()}
    SchedulePeriodicPass().apply(CONTEXT, module)
    graph = accepted(module)
    assert graph.schedule is not None
    for op in graph.operators():
        assert op.slot is not None
        assert op.cost is not None
        assert op.stage is not None
        loads[op.stage.value.data] += op.cost.table()[op.slot.allotment.data].time
    assert graph.schedule.bound.data <= graph.schedule.pattern.data
    if not list(graph.transfers()):
        assert graph.schedule.pattern.data <= max(1, *loads.values())


@settings(max_examples=60, deadline=None)
@given(module=modules(), data=st.data())
def test_groups_pass_the_checker_in_every_partition(module: ModuleOp, data: st.DataObject) -> None:
    common: dict[str, set[int]] = {}
    for op in accepted(module).operators():
        group = data.draw(st.sampled_from([None, "x", "y"]))
        assert op.cost is not None
        if group is not None and (rest := common.get(group, set(op.cost.table())) & set(op.cost.table())):
            op.group, common[group] = StringAttr(group), rest
    plan = data.draw(st.sampled_from(["stages", "shared", "operators"]))
    PartitionStagesPass(effort=0.1, plan=plan).apply(CONTEXT, module)
    accepted(module)
    SchedulePeriodicPass(effort=0.1).apply(CONTEXT, module)
    schedule = accepted(module).schedule
    assert schedule is not None
    assert schedule.bound.data <= schedule.pattern.data


@settings(max_examples=40, deadline=None)
@given(module=modules(), plan=st.sampled_from(["shared", "pushed"]))
def test_shared_boundaries_pass_the_checker(module: ModuleOp, plan: Literal["shared", "pushed"]) -> None:
    apart = module.clone()
    PartitionStagesPass(effort=0.1).apply(CONTEXT, apart)
    SchedulePeriodicPass(effort=0.1).apply(CONTEXT, apart)
    PartitionStagesPass(effort=0.1, plan=plan).apply(CONTEXT, module)
    accepted(module)
    SchedulePeriodicPass(effort=0.1, plan=plan).apply(CONTEXT, module)
    schedule, rival = accepted(module).schedule, accepted(apart).schedule
    assert schedule is not None
    assert rival is not None
    assert schedule.plan.data == plan
    assert schedule.bound.data <= schedule.pattern.data
    if not any(list(graph.transfers()) for graph in (accepted(module), accepted(apart))):
        assert schedule.pattern.data <= rival.pattern.data


@settings(max_examples=40, deadline=None)
@given(module=modules(), plan=st.sampled_from(["interleaved", "v"]), chunks=st.integers(1, 3))
def test_chunks_pass_the_checker(module: ModuleOp, plan: Literal["interleaved", "v"], chunks: int) -> None:
    PartitionStagesPass(plan=plan, chunks=chunks).apply(CONTEXT, module)
    stages = [s.accelerators() for s in accepted(module).stages()]
    assert all(stages.count(block) <= chunks for block in stages)
    SchedulePeriodicPass(plan=plan).apply(CONTEXT, module)
    schedule = accepted(module).schedule
    assert schedule is not None
    assert schedule.plan.data == plan
    assert schedule.bound.data <= schedule.pattern.data


BLOCKS = """
takt.graph @m moldable {
  %x = takt.input : tensor<8xi8>
  %a = takt.op(%x) block <"half", 0> cost <[1] time [100] params [1] output [8]> : (tensor<8xi8>) -> tensor<8xi8>
  %b = takt.op(%a) block <"half", 0> cost <[1] time [300] params [1] output [8]> : (tensor<8xi8>) -> tensor<8xi8>
  %c = takt.op(%b) block <"half", 1> cost <[1] time [100] params [1] output [8]> : (tensor<8xi8>) -> tensor<8xi8>
  %d = takt.op(%c) block <"half", 1> cost <[1] time [300] params [1] output [8]> : (tensor<8xi8>) -> tensor<8xi8>
  takt.output %d : tensor<8xi8>
}
"""


@pytest.mark.parametrize("plan", ["stages", "interleaved", "v"])
def test_blocks_of_the_model_stay_whole(plan: Literal["stages", "interleaved", "v"]) -> None:
    module = parse(BLOCKS)
    PartitionStagesPass(plan=plan, granularity="block").apply(CONTEXT, module)
    assert [op.stage.value.data for op in accepted(module).operators() if op.stage is not None] == [0, 0, 1, 1]
    finer = parse(BLOCKS)
    PartitionStagesPass(plan=plan).apply(CONTEXT, finer)
    assert len(list(accepted(finer).stages())) > 2


@pytest.mark.parametrize("plan", ["shared", "pushed", "operators"])
def test_other_plans_refuse_whole_blocks(plan: Literal["shared", "pushed", "operators"]) -> None:
    with pytest.raises(TaktError, match=f"'{plan}' cannot keep .* whole; 'stages', 'interleaved', 'v' can"):
        PartitionStagesPass(plan=plan, granularity="block").apply(CONTEXT, parse(BLOCKS))


# --- operators on all accelerators of their stages -----------------------------------------------


@settings(max_examples=20, deadline=None)
@given(module=modules(), plan=st.sampled_from(["stages", "interleaved", "v", "auto"]))
def test_filled_stages_pass_the_checker(module: ModuleOp, plan: Any) -> None:
    free = module.clone()
    refusal = ""
    try:
        PartitionStagesPass(plan=plan, effort=0.1, allotments="stage").apply(CONTEXT, module)
    except TaktError as refused:
        refusal = str(refused)
    if refusal:
        assert "runs on" in refusal
        return
    SchedulePeriodicPass(plan=plan, effort=0.1, allotments="stage").apply(CONTEXT, module)
    graph = accepted(module)
    blocks = {stage.index.value.data: stage.accelerators() for stage in graph.stages()}
    for op in graph.operators():
        assert op.slot is not None
        assert op.stage is not None
        assert op.slot.copies() == (blocks[op.stage.value.data],)
    PartitionStagesPass(plan="operators").apply(CONTEXT, free)
    SchedulePeriodicPass(plan="list", effort=0.1).apply(CONTEXT, free)
    schedule, other = graph.schedule, accepted(free).schedule
    assert schedule is not None
    assert other is not None
    assert schedule.bound.data <= min(schedule.pattern.data, other.pattern.data), "a bound for any allotments"


@pytest.mark.parametrize("plan", [*sorted({*PLANS} - {"auto", "stages", "interleaved", "v"}), "operators"])
def test_other_plans_do_not_fill_stages(plan: Any) -> None:
    refusal = f"plan '{plan}' cannot run every operator on all accelerators of its stage; 'stages', 'interleaved', 'v'"
    with pytest.raises(TaktError, match=refusal):
        PartitionStagesPass(plan=plan, allotments="stage").apply(CONTEXT, parse(CHAIN))
    if plan != "operators":
        with pytest.raises(TaktError, match=refusal):
            SchedulePeriodicPass(plan=plan, allotments="stage").apply(CONTEXT, parse(STAGED))


def test_granted_blocks_that_cannot_be_filled_are_refused_at_the_operator() -> None:
    with pytest.raises(TaktError, match="operation 'a' runs on 1, 2 accelerators, not on all 4 of stage 0") as refused:
        SchedulePeriodicPass(allotments="stage").apply(CONTEXT, staged_on_four(CHAIN))
    assert all("--allotments any" in (d.hint or "") for d in refused.value.diagnostics)
    with pytest.raises(TaktError, match="operation 'b' is shared by stages 0 and 1"):
        SchedulePeriodicPass(allotments="stage").apply(CONTEXT, parse(STAGED))


def staged_on_four(text: str) -> ModuleOp:
    module = parse(text)
    PartitionStagesPass(plan="operators").apply(CONTEXT, module)
    return module


def test_chunked_plans_choose_their_blocks() -> None:
    with pytest.raises(TaktError, match="chooses the number of its stages itself"):
        PartitionStagesPass(plan="v", stages=2).apply(CONTEXT, parse(BLOCKS))
    with pytest.raises(TaktError, match="cannot be 0 chunks"):
        PartitionStagesPass(plan="v", chunks=0).apply(CONTEXT, parse(BLOCKS))


@settings(max_examples=60, deadline=None)
@given(module=modules(), copies=st.sampled_from([None, 1, 2, 5]))
def test_copies_pass_the_checker_and_run(module: ModuleOp, copies: int | None) -> None:
    PartitionStagesPass(effort=0.1, plan="replicated", copies=copies).apply(CONTEXT, module)
    accepted(module)
    _, problem = read_staged(module)
    problem = with_copies(problem, copies)
    SchedulePeriodicPass(effort=0.1, plan="replicated", copies=copies).apply(CONTEXT, module)
    graph, machine = accepted(module), find_platform(module)
    text = str(module)
    again = Parser(CONTEXT, text).parse_module()
    assert str(again) == text
    assert check_level(again) == []
    solution = read_solution(graph)
    problem.verify(solution)
    assert machine is not None
    view, peaks = view_of(again), peak_memory(graph, machine)
    report = time_triggered(view)
    assert (report.period, report.in_flight) == (solution.period, problem.in_flight(solution))
    found = problem.peak_memory(solution)
    for p, both in peaks.items():
        assert found.get(p, (0, 0)) == both
        assert report.peak_memory[p] == sum(both)
    assert problem.crossing(solution) == ceil(view.crossing)
    assert {p: ceil(load) for p, load in view.load.items()} == dict(enumerate(problem.loads(solution)))


def read_solution(graph: GraphOp) -> Solution:
    """The schedule in the IR, as a solution."""
    assert graph.schedule is not None
    slots = [op.slot for op in graph.operators() if op.slot is not None]
    return Solution(
        graph.schedule.pattern.data // graph.schedule.microbatches.data,
        tuple(s.allotment.data for s in slots),
        tuple(s.copies()[0] for s in slots),
        tuple(s.start.data for s in slots),
        {v: s.copies()[1:] for v, s in enumerate(slots) if len(s.sets) > 1},
        tuple(read_transfers(graph)),
    )


def read_transfers(graph: GraphOp) -> Iterator[Transfer]:
    """The transfers that the IR reserves."""
    number = {op: v for v, op in enumerate(graph.operators())}
    for op in graph.transfers():
        assert isinstance(op.moved, OpResult)
        assert isinstance(op.moved.op, OperatorOp)
        times = op.start.value.data, op.time.value.data, op.lands
        yield Transfer(number[op.moved.op], op.moved.index, op.sets(), *times)


def test_copies_of_a_long_operator_in_the_ir() -> None:
    module = parse(LONG)
    PartitionStagesPass(plan="replicated").apply(CONTEXT, module)
    assert [s.accelerators() for s in accepted(module).stages()] == [(0, 1, 2), (3,)]
    SchedulePeriodicPass(plan="replicated").apply(CONTEXT, module)
    schedule = accepted(module).schedule
    assert schedule is not None
    assert (schedule.pattern.data, schedule.microbatches.data) == (300, 1)
    assert (schedule.bound.data, schedule.bound_by.data, schedule.plan.data) == (300, "area", "replicated")
    assert "slot <1 on [0:1], [1:2], [2:3] at 0>" in str(module)
    single = parse(LONG)
    PartitionStagesPass(plan="replicated", copies=1).apply(CONTEXT, single)
    SchedulePeriodicPass(plan="replicated", copies=1).apply(CONTEXT, single)
    schedule = accepted(single).schedule
    assert schedule is not None
    assert (schedule.pattern.data, schedule.bound.data, schedule.engine.data) == (800, 800, "windows")


def test_copies_take_the_parameters_on_every_accelerator() -> None:
    # On one accelerator the long operator needs 400 bytes. Where only pairs hold it, two of them run everything.
    text = LONG.replace("[4, 2] output [8, 4]> :", "[400, 100] output [8, 4]> :", 1)
    for memory, period in ((500, 300), (200, 525)):
        module = parse(text, memory)
        PartitionStagesPass(plan="replicated").apply(CONTEXT, module)
        SchedulePeriodicPass(plan="replicated").apply(CONTEXT, module)
        schedule = accepted(module).schedule
        assert schedule is not None
        assert schedule.pattern.data == period


def test_copies_in_a_compiled_example() -> None:
    # Six operators on six accelerators, compiled from source: without copies the bound is 650549 ns already.
    folder = Path(__file__).parents[2] / "examples"
    module = compile_model(folder / "research_dag.takt", platform=folder / "tiny_board.takt", to="moldable")
    PartitionStagesPass(plan="replicated").apply(CONTEXT, module)
    SchedulePeriodicPass(plan="replicated").apply(CONTEXT, module)
    schedule = accepted(module).schedule
    assert schedule is not None
    assert schedule.bound.data <= schedule.pattern.data < 650549
    again = Parser(CONTEXT, str(module)).parse_module()
    assert str(again) == str(module)
    accepted(again)
    report = time_triggered(view_of(again))
    assert report.steady
    assert report.period == schedule.pattern.data


def test_bad_options_of_copies_are_refused() -> None:
    with pytest.raises(TaktError, match="chooses the number of its stages itself"):
        PartitionStagesPass(plan="replicated", stages=2).apply(CONTEXT, parse(LONG))
    with pytest.raises(TaktError, match="0 copies of an operation: there must be at least 1"):
        PartitionStagesPass(plan="replicated", copies=0).apply(CONTEXT, parse(LONG))
    with pytest.raises(TaktError, match="'b' is shared by two stages: their blocks cannot be replicated"):
        SchedulePeriodicPass(plan="replicated").apply(CONTEXT, parse(STAGED))


@settings(max_examples=50, deadline=None)
@given(module=modules(), plan=st.sampled_from(["stages", "laminar"]))
def test_one_stage_of_single_operators_passes_the_checker(module: ModuleOp, plan: Plan) -> None:
    PartitionStagesPass(effort=0.1, plan="operators").apply(CONTEXT, module)
    accepted(module)
    SchedulePeriodicPass(effort=0.1, plan=plan).apply(CONTEXT, module)
    schedule = accepted(module).schedule
    assert schedule is not None
    assert schedule.plan.data == plan
    assert schedule.bound.data <= schedule.pattern.data


@settings(max_examples=40, deadline=None)
@given(module=modules(), plan=st.sampled_from(["stages", "laminar"]))
def test_solver_and_checker_count_the_same_bytes(module: ModuleOp, plan: Plan) -> None:
    PartitionStagesPass(effort=0.1, plan="operators").apply(CONTEXT, module)
    _, problem = read_staged(module)
    SchedulePeriodicPass(effort=0.1, plan=plan).apply(CONTEXT, module)
    graph, machine = find_graph(module), find_platform(module)
    assert graph is not None
    assert graph.schedule is not None
    assert machine is not None
    solution = read_solution(graph)
    used = {p: both for p, both in peak_memory(graph, machine).items() if both != (0, 0)}
    assert {p: both for p, both in problem.peak_memory(solution).items() if both != (0, 0)} == used


@settings(max_examples=60, deadline=None)
@given(module=modules(memory=80), plan=st.sampled_from(["stages", "laminar"]))
def test_what_does_not_fit_is_refused_and_never_scheduled(module: ModuleOp, plan: Plan) -> None:
    refusal: DoesNotFit | None = None
    try:
        PartitionStagesPass(plan="stages" if plan == "stages" else "operators").apply(CONTEXT, module)
        SchedulePeriodicPass(plan=plan).apply(CONTEXT, module)
    except DoesNotFit as error:
        refusal = error
    if refusal is None:
        accepted(module)
    else:
        assert refusal.missing > 0
        assert "bytes are missing" in str(refusal)


@settings(max_examples=25, deadline=None)
@given(module=modules(), flying=st.integers(1, 4), latency=st.none() | st.integers(1, 300), crossing=st.integers(0, 40))
def test_limits_hold_or_the_module_is_refused(
    module: ModuleOp, flying: int, latency: int | None, crossing: int
) -> None:
    limits: dict[str, Any] = {"max_in_flight": flying, "max_latency": latency, "max_crossing": crossing}
    refusal: TaktError | None = None
    try:
        PartitionStagesPass(effort=0.1, plan="auto", **limits).apply(CONTEXT, module)
    except TaktError as error:
        refusal = error
    if refusal is not None:
        assert {d.rule for d in refusal.diagnostics} <= {"in-flight", "latency", "crossing"}
        assert all(d.hint for d in refusal.diagnostics)
        return
    SchedulePeriodicPass(effort=0.1, plan="auto", **limits).apply(CONTEXT, module)
    schedule = accepted(module).schedule  # the checker has compared limits and figures
    assert schedule is not None
    expected = {"in_flight": flying, "latency": latency, "crossing": crossing}
    assert schedule.limits.given() == {name: most for name, most in expected.items() if most is not None}
    assert schedule.plan.data != "auto"


@settings(max_examples=15, deadline=None)
@given(module=modules())
def test_auto_is_no_worse_than_stages(module: ModuleOp) -> None:
    apart = module.clone()
    for made, plan in ((apart, "stages"), (module, "auto")):
        PartitionStagesPass(plan=plan, effort=0.05).apply(CONTEXT, made)
        accepted(made)
        SchedulePeriodicPass(plan=plan, effort=0.05).apply(CONTEXT, made)
    stages, best = accepted(apart).schedule, accepted(module).schedule
    assert stages is not None
    assert best is not None
    assert best.pattern.data <= stages.pattern.data * 1.01 + 1
    assert best.plan.data in PLANS[1:]


def test_the_least_latency_is_the_critical_path_on_wide_blocks() -> None:
    module = parse(CHAIN)
    PartitionStagesPass(objective="latency").apply(CONTEXT, module)
    SchedulePeriodicPass(objective="latency").apply(CONTEXT, module)
    graph = accepted(module)
    assert latency(graph) == 1000, "both operators on two accelerators"
    assert in_flight(graph) == 1, "of several with this latency the one that begins least at once"


@pytest.mark.parametrize(("microbatches", "stages"), [(1, 1), (100, 2)])
def test_a_long_step_is_pipelined_and_a_short_one_is_not(microbatches: int, stages: int) -> None:
    module = parse(CHAIN)
    PartitionStagesPass(objective="step", microbatches=microbatches).apply(CONTEXT, module)
    assert len(list(accepted(module).stages())) == stages


def test_a_limit_on_memory_is_kept_by_other_blocks() -> None:
    module = parse(CHAIN.replace("params [400, 200]", "params [400, 350]"))
    whole = module.clone()
    PartitionStagesPass(stages=1).apply(CONTEXT, whole)
    SchedulePeriodicPass().apply(CONTEXT, whole)
    assert max(map(sum, peaks(whole))) > 700
    PartitionStagesPass(max_memory=500).apply(CONTEXT, module)
    SchedulePeriodicPass(max_memory=500).apply(CONTEXT, module)
    assert max(map(sum, peaks(module))) <= 500


def peaks(module: ModuleOp) -> list[tuple[int, int]]:
    graph, machine = accepted(module), find_platform(module)
    assert machine is not None
    return list(peak_memory(graph, machine).values())


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_in_flight": 1}, "the nearest schedule has 2 micro-batches in flight, more than the 1 allowed"),
        ({"max_latency": 999}, "a latency of 1 us, more than the 999 ns allowed"),
        ({"max_crossing": 7}, "8 B of a micro-batch cross between accelerator sets, more than the 7 B allowed"),
        ({"max_memory": 200}, r"needs 212 bytes .* and has 200: 12 bytes are missing"),
    ],
)
def test_a_schedule_that_exceeds_a_limit_is_refused_with_units(limit: dict[str, int], message: str) -> None:
    module = parse(CHAIN)
    PartitionStagesPass(stages=2).apply(CONTEXT, module)
    with pytest.raises(TaktError, match=message) as e:
        SchedulePeriodicPass(**limit).apply(CONTEXT, module)
    assert all(d.hint for d in e.value.diagnostics)
    assert accepted(module).schedule is None


@pytest.mark.parametrize(
    ("stages", "plan"),
    [
        ("takt.stage 1 on [1:2]", "stages"),
        ("takt.stage 1 on [1:2]\n  takt.stage 2 on [0:1]", "v"),
        ("takt.stage 1 on [1:2]\n  takt.stage 2 on [0:1]\n  takt.stage 3 on [2:3]", "pushed"),
        ("", "shared"),
    ],
)
def test_auto_writes_down_what_the_blocks_are(stages: str, plan: str) -> None:
    text = STAGED
    if stages:
        text = text.replace("takt.stage 1 on [1:2]", stages).replace("<[2] time", "<[1] time").replace(" shared 1", "")
    module = parse(text, memory=2000)
    SchedulePeriodicPass(plan="auto").apply(CONTEXT, module)
    schedule = accepted(module).schedule
    assert schedule is not None
    assert schedule.plan.data == plan


def test_one_block_of_all_is_packed_when_that_is_shorter() -> None:
    one = CHAIN.replace("[1, 2] time [800, 500]", "[1] time [800]").replace("[1, 2] time [900, 500]", "[1] time [900]")
    one = one.replace("params [400, 200] output [8, 4]", "params [400] output [8]")
    found: list[tuple[str, int]] = []
    for limits in ({}, {"max_in_flight": 1}):
        module = parse(one)
        PartitionStagesPass(plan="operators").apply(CONTEXT, module)
        SchedulePeriodicPass(plan="auto", **limits).apply(CONTEXT, module)
        schedule = accepted(module).schedule
        assert schedule is not None
        found.append((schedule.plan.data, schedule.pattern.data))
    assert found == [("free", 900), ("stages", 1700)]


def test_operators_shared_by_two_stages_run_on_both_blocks() -> None:
    module = parse(STAGED)
    SchedulePeriodicPass().apply(CONTEXT, module)
    graph = accepted(module)
    assert graph.schedule is not None
    assert graph.schedule.pattern.data == 1100
    assert [op.slot.copies()[0] for op in graph.operators() if op.slot] == [(0,), (0, 1), (1,)]


def test_the_number_of_stages_can_be_given() -> None:
    module = parse(CHAIN)
    PartitionStagesPass(stages=1).apply(CONTEXT, module)
    assert [s.accelerators() for s in accepted(module).stages()] == [(0, 1)]


def test_parameters_that_fit_nowhere() -> None:
    with pytest.raises(DoesNotFit, match=r"parameters need 800 bytes.* 4 accelerators have 796: 4 bytes are missing"):
        PartitionStagesPass().apply(CONTEXT, parse(CHAIN, memory=199))


def test_parameters_that_fit_no_contiguous_stage() -> None:
    text = CHAIN.replace("[400, 200]", "[500, 300]")
    with pytest.raises(DoesNotFit, match=r"need at least 304 bytes.* alone|alone needs at least 304 bytes"):
        PartitionStagesPass().apply(CONTEXT, parse(text, memory=303))


def test_live_values_that_do_not_fit_say_how_much_is_missing() -> None:
    module = parse(CHAIN, memory=210)
    PartitionStagesPass().apply(CONTEXT, module)
    with pytest.raises(
        DoesNotFit, match=r"needs 212 bytes \(200 of parameters and 12 of live values\) and has 210"
    ) as e:
        SchedulePeriodicPass().apply(CONTEXT, module)
    assert e.value.missing == 2
    graph = find_graph(module)
    assert graph is not None
    assert graph.schedule is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("takt.graph @m model { takt.output }", "takes a graph at level 'moldable', this one is at level 'model'"),
        ("takt.platform @q {}", ""),
        (STAGED, "at level 'staged'"),
        (CHAIN.replace("cost <[1, 2] time [900, 500] params [400, 200] output [8, 4]>", ""), "has no cost table"),
        (CHAIN.replace("[1, 2]", "[5, 6]"), "needs 5 accelerators, the platform has 4"),
    ],
)
def test_bad_states_are_refused(text: str, message: str) -> None:
    if not message:
        with pytest.raises(TaktError, match=r"no takt\.graph"):
            PartitionStagesPass().apply(CONTEXT, ModuleOp([]))
        return
    with pytest.raises(TaktError, match=message):
        PartitionStagesPass().apply(CONTEXT, parse(text))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("staged {", "moldable {", "takes a graph at level 'staged'"),
        ("takt.stage 1 on [1:2]", "takt.stage 2 on [1:2]", "numbered 0, 1, 2"),
        ("stage 1 : ", ": ", "has no stage"),
        ("shared 1", "shared 5", "stage 5 does not exist"),
        ("shared 1", "", "'b' needs 2 accelerators, stage 0 grants 1"),
        ("[1:2]", "[0:2]", "overlaps another block on accelerator 0"),
        ("stage 1 : ", "stage 7 : ", "unknown stage 7"),
    ],
)
def test_bad_stages_are_refused(before: str, after: str, message: str) -> None:
    with pytest.raises(TaktError, match=message):
        SchedulePeriodicPass().apply(CONTEXT, parse(STAGED.replace(before, after)))


def test_a_module_without_a_platform() -> None:
    with pytest.raises(TaktError, match="no platform"):
        PartitionStagesPass().apply(CONTEXT, Parser(CONTEXT, CHAIN).parse_module())


def test_progress_reaches_the_listener() -> None:
    heard: list[tuple[str, int, int, str]] = []
    module = parse(CHAIN)
    with listening(lambda *news: heard.append(news)):
        PartitionStagesPass().apply(CONTEXT, module)
        SchedulePeriodicPass().apply(CONTEXT, module)
    assert heard[0] == ("stages", 500, 500, "partition")
    assert heard[-1][:3] == ("windows", 500, 500)


def test_verify_level_checks_the_level_asked_for() -> None:
    module = parse(CHAIN)
    VerifyLevelPass().apply(CONTEXT, module)
    with pytest.raises(TaktError):
        VerifyLevelPass(level="staged").apply(CONTEXT, module)


def test_every_pass_has_its_name_and_a_description() -> None:
    for name, load in get_all_passes().items():
        loaded = load()
        assert loaded.name == name
        assert loaded.__doc__


def test_stages_are_written_at_the_head() -> None:
    module = parse(CHAIN)
    PartitionStagesPass().apply(CONTEXT, module)
    ops = list(accepted(module).body.block.ops)
    assert isinstance(ops[0], StageOp)


@pytest.mark.parametrize("links", ["", "link all { latency = 1 us  bandwidth = 100 GB/s }"])
def test_sharded_values_take_their_share_with_and_without_links(links: str) -> None:
    """Plan laminar puts operators on sets of many sizes, and attention heads stay split between them."""
    text = f"""
        import "takt/transformer.takt"
        model m {{
          input x: tensor<1 x 128 x 256, bf16>
          y = gpt_decoder(x, heads = 4)
          output y
        }}
        accelerator chip {{
          memory = 1 GiB bandwidth = 100 GB/s launch = 1 us peak bf16 = 1 TFLOP/s
        }}
        platform p {{ accelerators = 4 of chip {links} }}
    """
    module = compile_model(Source("m.takt", text), options=Options(plan="laminar", effort=0.2), to="staged")
    _, problem = read_staged(module)
    SchedulePeriodicPass(effort=0.2, plan="laminar").apply(CONTEXT, module)
    graph, machine = accepted(module), find_platform(module)
    assert machine is not None
    assert any(op.sharded is not None for op in graph.operators())
    solution = read_solution(graph)
    problem.verify(solution)
    used = {p: both for p, both in peak_memory(graph, machine).items() if both != (0, 0)}
    assert {p: both for p, both in problem.peak_memory(solution).items() if both != (0, 0)} == used
    report = time_triggered(view_of(module))
    assert all(report.peak_memory[p] == sum(both) for p, both in used.items())
