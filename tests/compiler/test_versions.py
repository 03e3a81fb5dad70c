"""Versions of parameters in asynchronous training: checker, simulator and solver count alike, as the papers do."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr

from compiler.pipeline import Options, new_context, run_pipeline
from compiler.simulate import time_triggered
from compiler.simulate.versions import alive
from compiler.view import view_of
from dialects.attributes import ScheduleAttr, SlotAttr
from dialects.diagnostics import TaktError
from dialects.levels import verify_level
from dialects.operators import OperatorOp
from dialects.placement import Placement
from dialects.schedule_rules import peak_memory
from dialects.structure import GraphOp, find_graph, find_platform
from dialects.versions import versions
from frontend import Source, load
from passes.annotate_costs import AnnotateCostsPass
from passes.expand_training import ExpandTrainingPass
from passes.instance import read_instance
from passes.schedule_step import ScheduleStepPass
from passes.scheduling.data import Solution

PLATFORM = """
accelerator a {
  memory = 1 GiB  bandwidth = 1 TB/s  launch = 1 us
  peak f32 = 1 TFLOP/s
}
platform p { accelerators = 4 of a }
"""


def trained(layers: list[tuple[int, int, str]], asynchronous: int, tie: str = "copies") -> ModuleOp:
    """A chain of layers (time of the forward operator in ns, bytes of parameters, group), for one accelerator each."""
    lines = [
        f"v{i} = op({f'v{i - 1}' if i else 'x'}) time [{time} ns] params {size} B output 8 B{group}"
        for i, (time, size, group) in enumerate(layers)
    ]
    body = "\n ".join((*lines, f"output v{len(layers) - 1}"))
    module = load(Source("m.takt", f"model m {{\n input x: tensor<4, f32>\n {body}\n}}\n{PLATFORM}"))
    ExpandTrainingPass(tie=tie, asynchronous=asynchronous).apply(Context(), module)  # pyright: ignore[reportArgumentType]
    AnnotateCostsPass(max_allotment=1).apply(Context(), module)
    verify_level(module)
    return module


def graph_of(module: ModuleOp) -> GraphOp:
    graph = find_graph(module)
    assert graph is not None
    return graph


@dataclass
class Circle:
    """The runs on one accelerator, modulo the period."""

    period: int
    taken: set[int]

    def place(self, ready: int, time: int) -> int | None:
        """The first start from ``ready`` on at which the accelerator is free."""
        for start in range(ready, ready + self.period):
            run = {t % self.period for t in range(start, start + time)}
            if not run & self.taken:
                self.taken |= run
                return start
        return None


def schedule(module: ModuleOp, period: int, home: dict[str, int], waits: list[int]) -> bool:
    """Place every operator as early as it can after a wait, on the accelerator of its group; False where it cannot."""
    graph = graph_of(module)
    circles = {p: Circle(period, set()) for p in home.values()}
    ends: dict[OperatorOp, int] = {}
    for op, wait in zip(graph.operators(), waits, strict=False):
        assert op.cost is not None
        assert op.group is not None
        ready = max((ends[v.owner] for v in op.inputs if isinstance(v.owner, OperatorOp)), default=0)
        place, time = home[op.group.data], op.cost.table()[1].time
        start = circles[place].place(ready + wait if ends else 0, time) if time <= period else None
        if start is None:
            return False
        op.slot = SlotAttr.make([[place]], start)
        ends[op] = start + time
    text = StringAttr("none")
    graph.schedule = ScheduleAttr(IntAttr(period), IntAttr(1), IntAttr(0), text, text, text, IntAttr(0))
    graph.level = StringAttr("scheduled")
    return True


def by_hand(graph: GraphOp, group: str, every: int) -> int:
    """Versions that are alive at the worst moment, by going through micro-batches one by one."""
    placement = Placement(graph)
    members = [p for op, p in placement.placed.items() if op.group is not None and op.group.data == group]
    (step,) = (s for s in graph.updates() if s.group is not None and s.group.data == group)
    read = [placement.placed[v.owner] for v in step.inputs if isinstance(v.owner, OperatorOp)]
    period, most = placement.period, 40
    complete = [max(p.end for p in read) + (v * every - 1) * period for v in range(most)]
    held = [(c, complete[v + 1]) for v, c in enumerate(complete[:-1])]
    for i in range((most - 2) * every):
        begin, end = (
            f(m) + i * period for f, m in ((min, [p.start for p in members]), (max, [p.end for p in members]))
        )
        seen = max(v for v in range(most - 1) if (complete[v] <= begin and v * every <= i) or not v)
        held[seen] = (held[seen][0], max(held[seen][1], end))
    moments = [c for c in complete[: most // 2] if c >= 0]
    return max(sum(b <= moment < e for b, e in held) for moment in moments)


def _time(op: OperatorOp) -> int:
    assert op.cost is not None
    return op.cost.table()[1].time


layer = st.tuples(st.integers(1, 5), st.integers(1, 9).map(lambda n: 2 * n), st.sampled_from(["", ' group "t"']))


@settings(max_examples=35, deadline=None)
@given(layers=st.lists(layer, min_size=1, max_size=4), every=st.integers(1, 4), data=st.data())
def test_checker_simulator_and_solver_hold_the_same_bytes(
    layers: list[tuple[int, int, str]], every: int, data: st.DataObject
) -> None:
    module = trained(layers, every, data.draw(st.sampled_from(["copies", "colocate"])))
    graph, platform = graph_of(module), find_platform(module)
    assert platform is not None
    operators = list(graph.operators())
    groups = {op.group.data for op in operators if op.group is not None}
    home = {name: data.draw(st.integers(0, 3)) for name in sorted(groups)}
    waits = [data.draw(st.integers(0, 12)) for _ in operators]
    load = [sum(_time(op) for op in operators if op.group and home[op.group.data] == p) for p in range(4)]
    assume(schedule(module, max(load) + data.draw(st.integers(1, 12)), home, waits))
    expected = peak_memory(graph, platform)
    view = view_of(module)
    measured = time_triggered(view, view.in_flight + 4)
    assert measured.peak_memory == {p: sum(both) for p, both in expected.items()}
    counted = versions(Placement(graph))
    assert counted == {u.group: alive(view, u) for u in view.updates}
    assert counted == {name: by_hand(graph, name, every) for name in counted}
    problem = read_instance(module, "scheduled").problem
    slots = [op.slot for op in operators if op.slot is not None]
    sets, starts = (tuple(f) for f in ([s.copies()[0] for s in slots], [s.start.data for s in slots]))
    found = problem.peak_memory(Solution(view.pattern, (1,) * len(slots), sets, starts))
    assert found == {p: both for p, both in expected.items() if p in found}
    assert all(expected[p] == (0, 0) for p in expected if p not in found)


def pipeline(stages: int, every: int) -> list[int]:
    """Versions on each of equal stages with a forward pass of 1 and a backward one of 2, at period 3, as in 1F1B."""
    module = trained([(1, 2, "")] * stages, every)
    graph = graph_of(module)
    for op in graph.operators():
        name = op.outputs[0].name_hint or ""
        stage, kind = int(name[1:].split(".")[0]), name.partition(".")[2]
        first = 0 if stage == 0 else 1  # the first stage has no I: it idles meanwhile
        back = stages + 2 * (stages - 1 - stage)
        start = {"": stage, "I": back, "W": back + first}[kind]
        op.slot = SlotAttr.make([[stage]], start)
    text = StringAttr("none")
    graph.schedule = ScheduleAttr(IntAttr(3), IntAttr(1), IntAttr(0), text, text, text, IntAttr(0))
    found = versions(Placement(graph))
    assert [found[f"v{s}"] for s in range(stages)] == [by_hand(graph, f"v{s}", every) for s in range(stages)]
    return [found[f"v{s}"] for s in range(stages)]


def test_as_many_versions_as_the_papers_say() -> None:
    # PipeDream (SOSP 2019, 3.3): stage s of p has as many versions as micro-batches in flight.
    assert pipeline(4, 1) == [4, 3, 2, 1]
    # PipeDream-2BW (ICML 2021, 3.1): two are enough where M is no less than the micro-batches in flight.
    assert pipeline(4, 4) == [2, 2, 2, 1]
    assert pipeline(4, 100) == [2, 2, 2, 1]


def test_a_schedule_fits_with_its_versions_or_not_at_all() -> None:
    text = "model m {\n input x: tensor<4, f32>\n" + "".join(
        f" v{i} = op({f'v{i - 1}' if i else 'x'}) time [9us] params 1 MiB output 8 B\n" for i in range(4)
    )
    found: dict[int | None, int] = {}
    for every in (None, 100, 1):
        module = load(Source("m.takt", f"{text} output v3\n}}\n{PLATFORM}"))
        options = Options(training="sgd", asynchronous=every, effort=0.1)
        module = run_pipeline(new_context(), module, options=options)
        platform = find_platform(module)
        assert platform is not None
        found[every] = max(sum(v) for v in peak_memory(graph_of(module), platform).values())
    assert found[None] < found[100] < found[1]
    least = next(n for n in count(1) if n << 20 > found[None])
    tight = PLATFORM.replace("1 GiB", f"{least} MiB")
    with pytest.raises(TaktError, match="missing"):
        run_pipeline(
            new_context(),
            load(Source("m.takt", f"{text} output v3\n}}\n{tight}")),
            options=Options(training="sgd", asynchronous=1, effort=0.1),
        )


def test_a_step_is_not_asynchronous() -> None:
    module = trained([(3, 2, "")], 2)
    assert schedule(module, 20, {"v0": 0}, [0] * 9)
    graph = graph_of(module)
    assert graph.schedule is not None
    text = StringAttr("area")
    graph.schedule = ScheduleAttr(IntAttr(20), IntAttr(1), IntAttr(1), text, text, text, IntAttr(0), step=True)
    with pytest.raises(TaktError, match="a step is synchronous"):
        verify_level(module)
    with pytest.raises(TaktError, match="see the same parameters"):
        ScheduleStepPass(microbatches=2).apply(Context(), trained([(3, 2, "")], 2))
