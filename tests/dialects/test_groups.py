"""Operators that share parameters: their text, the rules they keep, and the same judgement in library and checker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr
from xdsl.utils.exceptions import ParseError

from compiler.simulate import time_triggered
from compiler.view import view_of
from dialects.attributes import ScheduleAttr, SlotAttr
from dialects.levels import check_level
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform
from passes.instance import read_staged
from passes.scheduling.data import Solution

BODY = """\
takt.graph @g model {
  %a = takt.op() params 8 group "tied" block <"b", 0> cost <[1] time [9] params [8]> : () -> tensor<0xi8>
  %b = takt.gelu(%x) group "of layer.3" : (tensor<4xf32>) -> tensor<4xf32>
  takt.output %a : tensor<0xi8>
}
""".replace("  %b", "  %x = takt.input : tensor<4xf32>\n  %b")

relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Sketch = Callable[..., Any]


def found(module: ModuleOp) -> list[tuple[str | None, str]]:
    return [(d.rule, d.message) for d in check_level(module)]


# --- text ------------------------------------------------------------------------------------------


def test_groups_print_as_they_were_read(text):
    module = text.parse(BODY)
    shown = text.show(module)
    assert BODY.splitlines() == [line[2:] for line in shown.splitlines()[1:-1]]
    generic = text.show(module, generic=True)
    assert 'group = "of layer.3"' in generic
    assert text.show(text.parse(generic)) == shown
    assert text.show(text.parse(shown), generic=True) == generic
    assert check_level(module) == []


def test_the_name_of_a_group_is_a_text_and_not_empty(text):
    for name in ('""', '"a\\tb"'):
        ((rule, message),) = found(text.parse(BODY.replace('"tied"', name)))
        assert rule == "well-formed"
        assert "the name of a group is printable ASCII text and not empty" in message
    with pytest.raises(ParseError):
        text.parse(BODY.replace('"tied"', "tied"))


# --- rules -----------------------------------------------------------------------------------------


def moldable(sketch: Sketch, *tables: dict[int, Any]) -> ModuleOp:
    s = sketch()
    values = [s.op("abc"[i], table=t, group="tied") for i, t in enumerate(tables)]
    return s.module("moldable", values[-1])


def test_a_group_has_an_allotment_in_common(sketch):
    assert found(moldable(sketch, {1: 9, 2: 5}, {2: 4, 4: 3}, {2: 1})) == []
    [(rule, message)] = found(moldable(sketch, {1: 9, 2: 5}, {2: 4, 4: 3}, {1: 9, 4: 1}))
    assert rule == "group-allotment"
    assert message == ("'c' has costs for 1, 4 accelerators, but the operators before it in group 'tied' for 2 only")


def staged(sketch: Sketch, stages: tuple[int, ...], shared: int | None = None, least: int = 1) -> ModuleOp:
    s = sketch()
    s.stage(range(2), range(2, 4), range(2))
    table = {k: 9 for k in (1, 2, 4) if k >= least}
    a = s.op("a", table=table, group="tied", stage=stages[0], shared=shared)
    b = s.op("b", a, table={1: 9}, stage=1)
    c = s.op("c", b, table=table, group="tied", stage=stages[1])
    return s.module("staged", c)


def test_a_group_has_accelerators_in_common(sketch):
    assert found(staged(sketch, (0, 2))) == []
    assert found(staged(sketch, (1, 1))) == []
    assert found(staged(sketch, (0, 1), 1)) == []
    [(rule, message)] = found(staged(sketch, (0, 1)))
    assert rule == "group-block"
    assert message == (
        "the operators of group 'tied' need at least 1 accelerators together, but all of them may use only 0"
    )
    broken = found(staged(sketch, (0, 1), 1, least=4))
    assert {r for r, _ in broken} == {"group-block", "allotment-exists"}
    assert "need at least 4 accelerators together, but all of them may use only 2: [2:4]" in broken[0][1]


def scheduled(sketch: Sketch, sets: list[list[int]], other: list[list[int]], memory: int = 100) -> ModuleOp:
    s = sketch(memory=memory)
    s.stage(range(4))
    a = s.op("a", table={1: (10, 30)}, group="tied", stage=0, sets=sets)
    b = s.op("b", a, table={1: (10, 40)}, stage=0, sets=[[3]], start=10)
    c = s.op("c", b, table={1: (10, 50)}, group="tied", stage=0, sets=other, start=20)
    return s.module("scheduled", c, pattern=20)


def test_a_group_runs_on_the_same_sets(sketch):
    assert found(scheduled(sketch, [[0], [1]], [[0], [1]])) == []
    [(rule, message)] = found(scheduled(sketch, [[0]], [[1]]))
    assert rule == "group-set"
    assert message == ("'c' runs on [1:2], but shares the parameters of group 'tied' with 'a', which runs on [0:1]")
    for other in ([[1], [0]], [[0]], [[0], [2]]):
        assert [r for r, _ in found(scheduled(sketch, [[0], [1]], other))].count("group-set") == 1


def test_a_group_is_stored_once(sketch):
    module = scheduled(sketch, [[0], [1]], [[0], [1]], memory=50)
    assert found(module) == []
    graph, platform = find_graph(module), find_platform(module)
    assert {p: m for p, (m, _) in peak_memory(graph, platform).items() if m} == {0: 50, 1: 50, 3: 40}
    assert {p: m for p, m in view_of(module).parameters.items() if m} == {0: 50, 1: 50, 3: 40}
    assert time_triggered(view_of(module)).peak_memory[0] == 50
    [(rule, message), *_] = found(scheduled(sketch, [[0], [1]], [[0], [1]], memory=49))
    assert rule == "memory"
    assert "50 B parameters" in message


# --- library and checker ---------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[dict[str, Any]], int]:
    """Operators with groups on four accelerators, often a valid schedule; the period."""
    period = draw(st.integers(6, 30))
    sets: dict[str, list[int]] = {}
    operators: list[dict[str, Any]] = []
    clock = 0
    for v in range(draw(st.integers(1, 6))):
        group = draw(st.sampled_from([None, "x", "y"]))
        members = sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=2)))
        if group is not None and draw(st.integers(0, 9)):
            members = sets.setdefault(group, members)
        size, time = st.integers(0, 9), draw(st.integers(0, 5))
        entry = (time, draw(st.integers(0, 40)), draw(size), draw(size))
        clock = max(0, clock + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))) if v else 0
        operators.append(
            {
                "group": group,
                "table": {k: entry for k in {1, 2, len(members)}},
                "members": members,
                "start": clock,
                "reads": sorted(draw(st.sets(st.integers(0, v - 1), max_size=2))) if v else [],
                "size": draw(size),
            }
        )
        clock += time
    return operators, period


def build(sketch: Sketch, operators: list[dict[str, Any]], memory: int) -> ModuleOp:
    s = sketch(accelerators=4, memory=memory, links=[])
    s.stage(range(4))
    values: list[Any] = []
    for v, o in enumerate(operators):
        reads = [values[u] for u in o["reads"]]
        values.append(s.op(f"o{v}", *reads, table=o["table"], results=[o["size"]], stage=0, group=o["group"]))
    return s.module("staged")


def place(module: ModuleOp, operators: list[dict[str, Any]], period: int) -> None:
    """Turn a staged module into a scheduled one."""
    graph = find_graph(module)
    assert graph is not None
    for op, o in zip(graph.operators(), operators, strict=True):
        op.slot = SlotAttr.make([o["members"]], o["start"])
    words = (StringAttr("area"), StringAttr("stages"), StringAttr("hand"))
    graph.schedule = ScheduleAttr(IntAttr(period), IntAttr(1), IntAttr(0), *words, IntAttr(0))
    graph.level = StringAttr("scheduled")


@relaxed
@given(case=cases())
def test_library_checker_and_simulator_agree(sketch, case) -> None:
    operators, period = case
    module = build(sketch, operators, 10**9)
    _, problem = read_staged(module)
    sets = tuple(tuple(o["members"]) for o in operators)
    solution = Solution(period, tuple(map(len, sets)), sets, tuple(o["start"] for o in operators))
    ours = {v.rule for v in problem.violations(solution)}
    place(module, operators, period)
    theirs = {rule for rule, _ in found(module)}
    event(", ".join(sorted(ours)) or "valid")
    assert bool(ours) == bool(theirs)
    assert ("together" in ours) == ("group-set" in theirs)
    if ours:
        return
    graph, platform = find_graph(module), find_platform(module)
    checked = peak_memory(graph, platform)
    assert checked == {**dict.fromkeys(range(4), (0, 0)), **problem.peak_memory(solution)}
    totals = {p: params + live for p, (params, live) in checked.items()}
    assert time_triggered(view_of(module)).peak_memory == totals
    most = max(totals.values())
    for memory in {most, most - 1} - {0, -1}:
        tight = build(sketch, operators, memory)
        place(tight, operators, period)
        expected = {"memory"} if memory < most else set[str]()
        verdict = replace(problem, memory=memory).violations(solution)
        assert {v.rule for v in verdict} == {rule for rule, _ in found(tight)} == expected
