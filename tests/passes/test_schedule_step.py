"""schedule-step: known schedules on graphs, transfers, memory, the bound, refusals; all held to the level checker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from compiler.output import print_ir
from dialects.attributes import ScheduleAttr
from dialects.diagnostics import TaktError
from dialects.gradients import GradientOp, RecomputeOp
from dialects.levels import check_level, verify_level
from dialects.operators import operator_names
from dialects.schedule_rules import peak_memory
from dialects.structure import GraphOp, find_graph, find_platform
from frontend import Source, load
from passes.annotate_costs import AnnotateCostsPass
from passes.baselines import OWN, STAGGERED, UNIFORM, baselines
from passes.choices import KNOWN_ORDERS, ORDERS, Order
from passes.expand_training import ExpandTrainingPass
from passes.recompute_activations import RecomputeActivationsPass
from passes.schedule_step import ScheduleStepPass
from passes.scheduling.steps.cells import Stage
from passes.scheduling.steps.choose import known_step
from passes.scheduling.steps.graph_bounds import graph_bounds
from passes.scheduling.steps.known import KNOWN
from passes.scheduling.steps.memory import peaks
from passes.scheduling.steps.own import own_step
from passes.scheduling.steps.run import run
from passes.scheduling.steps.shapes import Wish
from passes.step_instance import read_batch
from passes.verify_schedule import VerifySchedulePass

CHIP = "accelerator chip {{ memory = 1 GiB  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s }}\n"
FREE = CHIP + "platform free {{ accelerators = {count} of chip }}\n"
LINKED = CHIP + (
    "platform linked {{ accelerators = {count} of chip  transfers = {mode}\n"
    "  link node = 2 {{ latency = 300 ns  bandwidth = 10 GB/s }}\n"
    "  link rack {{ latency = 1 us  bandwidth = 2 GB/s }} }}\n"
)
LAYERS = """model mlp {
  input x: tensor<8 x 64, bf16>
  input y: tensor<8 x 64, bf16>
  repeat 4 carry x { x = layer(x) }
  loss = mse_loss(x, y)
  output loss
}
block layer(x: tensor<s x d, t>) -> z {
  h = linear(x, features = 4 * d)
  g = gelu(h)
  y = linear(g, features = d, split = "row")
  z = residual(x, y)
}
"""


def chain(times: Sequence[int], backward: float = 2.0, size: int = 1024) -> str:
    """A chain of operators of so many us each; the one before them, of no time, gives the first a gradient to make."""
    lines = ["model chain {", "  input x: tensor<8 x 64, bf16>", "  s = op(x) time [0us] params 8 B output 8 B"]
    before = "s"
    for number, time in enumerate(times):
        lines.append(f"  a{number} = op({before}) time [{time}us] backward {backward}x params 4 KiB output {size} B")
        before = f"a{number}"
    return "\n".join([*lines, f"  output {before}", "}\n"])


def moldable(text: str, optimizer: Any = "none") -> ModuleOp:
    module = load(Source("model.takt", text))
    if optimizer != "forward":
        ExpandTrainingPass(optimizer=optimizer).apply(Context(), module)
    AnnotateCostsPass().apply(Context(), module)
    return module


def graph_of(module: ModuleOp) -> GraphOp:
    graph = find_graph(module)
    assert graph is not None
    return graph


def schedule_of(module: ModuleOp) -> ScheduleAttr:
    schedule = graph_of(module).schedule
    assert schedule is not None
    return schedule


def scheduled(module: ModuleOp, microbatches: int, order: Order = "own", **options: Any) -> ModuleOp:
    """A copy with a step, which keeps every rule."""
    made = module.clone()
    ScheduleStepPass(microbatches=microbatches, order=order, **{"effort": 0.05, **options}).apply(Context(), made)
    assert check_level(made, "scheduled") == []
    assert schedule_of(made).is_step
    assert schedule_of(made).microbatches.data == microbatches
    return made


def step_time(*args: Any, **options: Any) -> int:
    return schedule_of(scheduled(*args, **options)).pattern.data


def refused(module: ModuleOp, microbatches: int, order: Order, **options: Any) -> TaktError:
    with pytest.raises(TaktError) as caught:
        scheduled(module, microbatches, order, **options)
    return caught.value


# --- the closed forms of docs/training.md -------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("extra", [0, 3])
def test_closed_forms(ranks: int, extra: int) -> None:
    m, forward, inputs = 2 * ranks + extra, 10_000, 5_000
    work, filling = forward + 2 * inputs, ranks - 1
    plain = moldable(chain([10] * ranks, 1.0) + FREE.format(count=ranks))
    idle: dict[Order, int] = {
        "gpipe": filling * work,
        "1f1b": filling * work,
        "1f1b*": filling * work,
        "zb-h1": filling * forward,
        "zb-h2": filling * (forward - inputs),
    }
    for order, expected in idle.items():
        assert step_time(plain, m, order, stages=ranks) == m * work + expected, order
    chunked = moldable(chain([10] * ranks * 2, 1.0) + FREE.format(count=ranks))
    m = 3 * ranks
    assert step_time(chunked, m, "interleaved", stages=ranks) == 2 * m * work + filling * work
    even = moldable(chain([10] * ranks * 2, 2.0) + FREE.format(count=ranks))
    assert step_time(even, m, "zb-v", stages=ranks) == 2 * m * 30_000
    assert step_time(even, m, "dualpipe-v", stages=ranks) == 2 * m * 30_000 + filling * 10_000


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 9), min_size=4, max_size=4),
    st.integers(1, 6),
    st.sampled_from([order for order in ORDERS if order != "own"]),
    st.sampled_from([1.0, 2.0, 3.0]),
)
def test_where_transfers_are_free_a_step_is_a_run_of_its_line(
    times: list[int], m: int, order: Order, backward: float
) -> None:
    schedule = KNOWN[KNOWN_ORDERS[order]]
    chunks = schedule.chunks or 2
    ranks = 4 // chunks
    module = moldable(chain(times, backward) + FREE.format(count=ranks))
    whole = scheduled(module, m, order, stages=ranks)
    places = schedule.placement(ranks, chunks)
    half = [round(time * 1000 * backward / 2) for time in times]
    stages = [Stage(p, time * 1000, h, h) for p, time, h in zip(places, times, half, strict=True)]
    line = replace(schedule.line(ranks, stages[0], chunks=chunks), stages=tuple(stages))
    taken = run(line, schedule.generate(line, m))
    assert schedule_of(whole).pattern.data == schedule.cost(taken)
    names = {name: op for op, name in operator_names(graph_of(whole)).items()}
    for cell, start in taken.starts.items():
        slot = names[f"a{cell.stage}" + {"F": "", "B": ".I"}.get(cell.kind, f".{cell.kind}")].slot
        assert slot is not None
        assert slot.starts[cell.microbatch] == start


# --- graphs on platforms with links -------------------------------------------------------------


@pytest.mark.parametrize("mode", ["overlapped", "blocking", "buffered"])
def test_every_order_on_every_kind_of_links(mode: str) -> None:
    module = moldable(LAYERS + LINKED.format(count=4, mode=mode), "adam")
    _, batch = read_batch(module, 5)
    bounds = {bound.name: bound.value for bound in graph_bounds(batch)}
    for order in ORDERS:
        made = scheduled(module, 5, order)
        schedule = schedule_of(made)
        assert max(bounds.values()) == schedule.bound.data == bounds[schedule.bound_by.data] <= schedule.pattern.data
        assert schedule.plan.data == KNOWN_ORDERS.get(order, "own")
        graph = graph_of(made)
        assert len(list(graph.transfers())) > 0
        for update in graph.updates():
            assert update.slot is not None
        stages = list(graph.stages())
        backward = False
        for op in graph.operators():
            assert op.stage is not None
            backward = backward or isinstance(op, GradientOp)
            assert (op.stage.value.data >= len(stages) // 2) == backward
        assert [s.accelerators() for s in stages] == [s.accelerators() for s in reversed(stages)]


def test_the_bound_is_proven_again() -> None:
    module = moldable(LAYERS + LINKED.format(count=4, mode="overlapped"), "adam")
    for microbatches in (1, 6):
        made = scheduled(module, microbatches, stages=2)
        VerifySchedulePass(certificate=True).apply(Context(), made)
        schedule = schedule_of(made)
        assert schedule.bound_by.data in ("area", "group work", "path")
        claimed = schedule.pattern
        graph_of(made).schedule = ScheduleAttr(
            claimed,
            schedule.microbatches,
            claimed,
            schedule.bound_by,
            schedule.plan,
            schedule.engine,
            schedule.seed,
            schedule.limits,
            True,
        )
        with pytest.raises(TaktError, match="cannot be proven again"):
            VerifySchedulePass(certificate=True).apply(Context(), made)


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_recomputed_values_are_made_in_backward_cells(policy: Any) -> None:
    module = load(Source("model.takt", LAYERS + LINKED.format(count=4, mode="overlapped")))
    ExpandTrainingPass().apply(Context(), module)
    RecomputeActivationsPass(policy=policy).apply(Context(), module)
    AnnotateCostsPass().apply(Context(), module)
    for order in ("1f1b", "interleaved", "own"):
        graph = graph_of(scheduled(module, 4, order))
        chunks = len(list(graph.stages())) // 2
        again = [op for op in graph.operators() if isinstance(op, RecomputeOp)]
        assert len(again) >= 4
        assert all(op.stage is not None and op.stage.value.data >= chunks for op in again)


def test_staggered_steps_follow_each_other_sooner() -> None:
    module = moldable(LAYERS + LINKED.format(count=4, mode="overlapped"), "adam")
    joined = step_time(module, 6, "zb-h1", stages=4)
    assert step_time(module, 6, "zb-h1", stages=4, staggered=True) < joined
    assert step_time(module, 6, stages=4, staggered=True) < joined


WAITING = """model m {
  input x: tensor<8 x 8, i8>
  a = op(x) time [10us] params 1 KiB output 8 B
  b = op(a) time [20us] params 1 KiB output 8 B
  z = op(a) time [0us] params 1 KiB output 8 B
  y = op(b, z) time [30us] params 1 KiB output 8 B backward [230us] weights [200us]
  output y
}
"""
"""On two ranks ``z`` starts on the second before that has anything to do that takes time."""


@pytest.mark.parametrize("order", ["zb-h1", "own"])
def test_operators_without_time_find_new_parameters_too(order: Order) -> None:
    module = moldable(WAITING + FREE.format(count=2), "adam")
    assert step_time(module, 1, order, stages=2, staggered=True) >= 280_000
    nothing = "model m { input x: tensor<8, i8> a = op(x) time [0us] output 8 B output a }\n" + FREE.format(count=1)
    assert step_time(moldable(nothing, "forward"), 2, order, staggered=True) == 1


def test_all_of_a_rank_and_equal_layers() -> None:
    module = moldable(LAYERS + LINKED.format(count=8, mode="overlapped"), "adam")
    made = scheduled(module, 4, "1f1b", cut="equal", stages=2)
    graph = graph_of(made)
    blocks = {s.index.value.data: s.accelerators() for s in graph.stages()}
    layers: dict[int, set[int]] = {}
    for op in graph.operators():
        assert op.slot is not None
        assert op.stage is not None
        assert op.slot.copies() == (blocks[op.stage.value.data],)
        if op.block is not None and not isinstance(op, GradientOp) and op.stage.value.data < 2:
            layers.setdefault(op.stage.value.data, set()).add(op.block.index.data)
    assert layers == {0: {0, 1}, 1: {2, 3}}


def test_forward_graphs_have_steps_of_forwards() -> None:
    module = moldable(chain([10, 10, 10]) + FREE.format(count=4), "forward")
    for order in ("own", "gpipe", "1f1b"):
        made = scheduled(module, 5, order, stages=4 - 1, width=1)
        assert schedule_of(made).pattern.data == (5 + 2) * 10_000
        assert len(list(graph_of(made).stages())) == 3


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["1f1b", "zb-h2", "dualpipe-v"])
def test_peaks_are_those_of_the_checker(order: Order) -> None:
    module = moldable(LAYERS + LINKED.format(count=4, mode="buffered"), "adam")
    _, batch = read_batch(module, 7)
    found = known_step(batch, KNOWN_ORDERS[order], Wish(stages=2))
    made = scheduled(module, 7, order, stages=2)
    platform = find_platform(made)
    assert platform is not None
    expected = {p: held for p, held in peak_memory(graph_of(made), platform).items() if any(held)}
    assert schedule_of(made).pattern.data == found.pattern
    assert {p: held for members, held in peaks(found.step, found.pattern).items() for p in members} == expected


def test_memory_decides_what_is_possible() -> None:
    module = moldable(chain([10] * 4, 2.0, 1 << 20) + FREE.format(count=4))
    most = {order: _most(scheduled(module, 12, order, stages=4)) for order in ("gpipe", "1f1b")}
    assert most["gpipe"] > 2 * most["1f1b"]
    scheduled(module, 12, "1f1b", stages=4, max_memory=most["1f1b"])
    (found,) = refused(module, 12, "1f1b", stages=4, max_memory=most["1f1b"] - 1).diagnostics
    assert f"1 bytes of {most['1f1b'] - 1}" in found.message
    assert f"{most['1f1b']} bytes would do" in found.message
    assert found.rule == "memory"
    assert found.hint is not None
    (found,) = refused(module, 12, "gpipe", stages=4, max_memory=most["1f1b"]).diagnostics
    assert f"lacks {most['gpipe'] - most['1f1b']} bytes" in found.message
    tight = scheduled(module, 12, "own", stages=4, max_memory=most["1f1b"])
    assert _most(tight) <= most["1f1b"]
    assert schedule_of(tight).limits.given() == {"memory": most["1f1b"]}
    assert schedule_of(tight).pattern.data <= step_time(module, 12, "1f1b", stages=4)
    assert "for a single micro-batch" in str(refused(module, 12, "own", stages=4, max_memory=1 << 20))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_memory_that_a_known_order_takes_is_enough_for_our_own(microbatches: int) -> None:
    module = moldable(chain([10, 10, 10]) + FREE.format(count=1), "adam")
    most = _most(scheduled(module, microbatches, "1f1b"))
    assert _most(scheduled(module, microbatches, max_memory=most)) <= most
    refused(module, microbatches, "own", max_memory=most - 1)


def _most(module: ModuleOp) -> int:
    platform = find_platform(module)
    assert platform is not None
    return max(sum(held) for held in peak_memory(graph_of(module), platform).values())


# --- examples, baselines, refusals --------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("gpt2_xl", {"layers": 2}),
        ("mixtral_8x7b", {"layers": 1}),
        ("research_dag", {}),
    ],
)
def test_examples(examples: Path, model: str, overrides: dict[str, str]) -> None:
    texts = {name: str(value) for name, value in overrides.items()}
    machine = Source.read(examples / "dgx_a100_16.takt")
    module = load(Source.read(examples / f"{model}.takt"), platform=machine, overrides=texts, model=None)
    ExpandTrainingPass().apply(Context(), module)
    AnnotateCostsPass().apply(Context(), module)
    known = step_time(module, 4, "1f1b", stages=4)
    assert step_time(module, 4, "own", stages=4) <= known


def test_baselines_beside_our_own() -> None:
    module = moldable(LAYERS + LINKED.format(count=4, mode="overlapped"), "adam")
    before = print_ir(module)
    made = dict(baselines(module, 8, effort=0.2))
    assert print_ir(module) == before
    assert list(made) == [*KNOWN, UNIFORM, OWN, STAGGERED]
    times: dict[str, int] = {}
    for name, found in made.items():
        assert isinstance(found, ModuleOp), name
        verify_level(found, "scheduled")
        times[name] = schedule_of(found).pattern.data
    others = [time for name, time in times.items() if name not in (OWN, STAGGERED)]
    joined = [time for name, time in times.items() if name == UNIFORM or (name in KNOWN and not KNOWN[name].staggered)]
    assert times[OWN] <= min(joined)
    assert times[STAGGERED] <= min(others)
    assert schedule_of(made[UNIFORM]).engine.data == "uniform"  # pyright: ignore
    few = dict(baselines(moldable(chain([10, 10]) + FREE.format(count=2)), 4, stages=2))
    assert isinstance(few["1F1B"], ModuleOp)
    assert isinstance(few["ZB-V"], TaktError)


@pytest.mark.parametrize(
    ("mode", "optimizer", "options"),
    [
        ("overlapped", "forward", {}),
        ("blocking", "adam", {"staggered": True}),
    ],
)
def test_no_known_order_is_ahead_of_our_own(mode: str, optimizer: str, options: dict[str, Any]) -> None:
    """Where links are busy, and what a line says of an order is not what it takes."""
    text = LAYERS.replace("repeat 4", "repeat 3")
    module = moldable(text + LINKED.format(count=8, mode=mode), optimizer)
    found: dict[str, int] = {}
    for name, order in KNOWN_ORDERS.items():
        if KNOWN[order].staggered <= options.get("staggered", False) and KNOWN[order].chunks in (
            None,
            options.get("chunks", KNOWN[order].chunks),
        ):
            found[name] = step_time(module, 4, name, **options)
    assert len(found) >= 2
    assert step_time(module, 4, **options) <= min(found.values())


def test_the_same_arguments_give_the_same_step() -> None:
    module = moldable(LAYERS + LINKED.format(count=4, mode="overlapped"), "adam")
    assert print_ir(scheduled(module, 6)) == print_ir(scheduled(module, 6))


TIED = """model tied {
  input x: tensor<8 x 64, bf16>
  a = linear(x, features = 64) group "t"
  b = linear(a, features = 64)
  c = linear(b, features = 64) group "t"
  output c
}
"""


@pytest.mark.parametrize(
    ("text", "order", "options", "message", "hint"),
    [
        (LAYERS, "1f1b", {"stages": 3, "cut": "equal"}, "4 layers cannot be cut into 3 chunks of equally many", "cut"),
        (LAYERS, "1f1b", {"stages": 5}, "5 stages need as many accelerators, and there are 4", "number of stages"),
        (LAYERS, "own", {"stages": 0}, "stages must be at least 1, got 0", None),
        (LAYERS, "1f1b", {"chunks": 2}, "1F1B has 1 chunk on a rank, not 2", "leave out the number"),
        (LAYERS, "1f1b", {"microbatches": 0}, "a step of 0 micro-batches", None),
        (LAYERS, "1f1b", {"microbatches": 1 << 20}, "lists too many starts", "schedule the period"),
        (chain([9 * 10**15 // 2]), "gpipe", {}, "the step takes 2^63 ns or more", "shorter times"),
        (LAYERS, "zb-v", {"stages": 1}, "several chunks on a rank take two ranks", "two stages or more"),
        (chain([1, 1]), "zb-v", {"stages": 4}, "fewer than 8 chunks", "fewer stages or chunks"),
    ],
)
def test_refusals(text: str, order: Order, options: dict[str, Any], message: str, hint: str | None) -> None:
    module = moldable(text + FREE.format(count=4))
    (found,) = refused(module, options.pop("microbatches", 4), order, **options).diagnostics
    assert message in found.message
    assert found.location is not None
    assert hint is None or (found.hint is not None and hint in found.hint)


def test_operators_that_share_parameters_stay_on_a_rank() -> None:
    module = moldable(TIED + FREE.format(count=2))
    (found,) = refused(module, 4, "1f1b", stages=2).diagnostics
    assert "fewer than 2 chunks" in found.message
    copies = moldable(TIED + FREE.format(count=2), "adam")
    made = scheduled(copies, 4, "1f1b", stages=2)
    places = {op.slot.copies() for op in graph_of(made).updates() if op.slot is not None}
    assert places == {((0,),), ((1,),)}


def test_graphs_without_a_step() -> None:
    module = load(Source("model.takt", chain([1, 1]) + FREE.format(count=2)))
    (found,) = refused(module, 4, "own").diagnostics
    assert "takes a graph at level 'moldable'" in found.message
    state = "  state s: tensor<8, bf16>\n  y = add(x, s)\n  next s = y\n"
    cached = f"model m {{\n  input x: tensor<8, bf16>\n{state}  output y\n}}\n"
    (found,) = refused(moldable(cached + FREE.format(count=2), "forward"), 4, "own").diagnostics
    assert "state 's' hands values to later micro-batches" in found.message


# --- time -----------------------------------------------------------------------------------------


def test_a_step_is_found_though_the_time_is_over() -> None:
    _, batch = read_batch(moldable(LAYERS + FREE.format(count=4), "adam"), 6)
    found = own_step(batch, Wish(effort=0.05, spent=lambda: True))
    assert found.pattern >= own_step(batch, Wish(effort=0.05)).pattern
    module = moldable(LAYERS + FREE.format(count=4), "adam")
    assert step_time(module, 6, "own", time_limit=0) == found.pattern


def test_an_interrupt_leaves_the_shortest_step_so_far() -> None:
    _, batch = read_batch(moldable(LAYERS + FREE.format(count=4), "adam"), 6)
    told: list[int] = []

    def listen(engine: str, pattern: int) -> None:
        told.append(pattern)
        raise KeyboardInterrupt

    assert own_step(batch, Wish(effort=0.05), listen).pattern == told[0]
    assert len(told) == 1


def test_an_interrupt_before_any_step_still_gives_one() -> None:
    _, batch = read_batch(moldable(LAYERS + FREE.format(count=4), "adam"), 6)
    asked: list[bool] = []

    def spent() -> bool:
        asked.append(True)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return False

    assert own_step(batch, Wish(effort=0.05, spent=spent)).pattern > 0
