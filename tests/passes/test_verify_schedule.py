"""The pass verify-schedule: its certificate holds for what the scheduler writes, and for nothing above it."""

from __future__ import annotations

from pathlib import Path

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, IntAttr, ModuleOp, StringAttr
from xdsl.parser import Parser

from dialects.attributes import ScheduleAttr
from dialects.diagnostics import TaktError
from dialects.structure import GraphOp, find_graph
from dialects.takt import Takt
from passes.verify_schedule import VerifySchedulePass

CONTEXT = Context()
CONTEXT.load_dialect(Builtin)
CONTEXT.load_dialect(Takt)

PLATFORM = """
takt.platform @p {accelerator = "a", accelerators = 2 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [#takt.link<"all" 2, latency 0, bandwidth 1>]}
"""

OP = ": (tensor<8xi8>) -> tensor<8xi8>"


def module(bound: int, by: str, period: int = 30) -> ModuleOp:
    """Three operators of 8 ns alone or 7 ns together, one after the other, on both accelerators: 21 of 30 ns."""
    chain = [
        f"%{b} = takt.op(%{a}) cost <[1, 2] time [8, 7]> stage 0 slot <2 on [0:2] at {7 * i}> {OP}"
        for i, (a, b) in enumerate(["xa", "ab", "bc"])
    ]
    body = "\n".join(
        ["takt.stage 0 on [0:2]", "%x = takt.input : tensor<8xi8>", *chain, "takt.output %c : tensor<8xi8>"]
    )
    schedule = f'<{period} for 1, bound {bound} by "{by}", plan "stages", engine "none", seed 0>'
    source = f"{PLATFORM}takt.graph @m scheduled {schedule} {{\n{body}\n}}"
    return Parser(CONTEXT, source).parse_module()


def graph_of(found: ModuleOp) -> GraphOp:
    graph = find_graph(found)
    assert graph is not None
    return graph


def certify(found: ModuleOp, work: float = 60) -> None:
    before = str(found)
    VerifySchedulePass(certificate=True, work=work).apply(CONTEXT, found)
    assert str(found) == before


HOLDS = {
    # 24 ns of area on two accelerators; two pieces of 8 ns do not meet within 12 ns.
    "longest operation": 7,
    "area": 12,
    "integer program": 15,
    "configurations": 15,
    "integer program over configurations": 15,
    # One in flight: three operators of at least 7 ns after each other.
    "at most 1 in flight": 21,
    # All must be fast, and on both accelerators.
    "latency at most 21 ns": 21,
}
"""Bound → the greatest value that it proves here."""


@pytest.mark.parametrize("name", HOLDS)
def test_what_can_be_proved_passes_and_one_more_does_not(name: str) -> None:
    certify(module(HOLDS[name], name))
    certify(module(HOLDS[name] - 1, name))
    with pytest.raises(TaktError) as failure:
        certify(module(HOLDS[name] + 1, name))
    (found,) = failure.value.diagnostics
    assert found.rule == "certificate"
    assert f"({HOLDS[name] + 1} ns)" in found.message
    assert f'"{name}"' in found.message
    assert "proves" in found.message


def test_the_message_names_both_bounds_and_values() -> None:
    with pytest.raises(TaktError) as failure:
        certify(module(13, "area"))
    assert str(failure.value) == (
        'the schedule claims a lower bound of 13 ns (13 ns) by "area", but "area" proves 12 ns (12 ns)'
    )


def test_an_argument_that_does_not_apply_proves_nothing() -> None:
    with pytest.raises(TaktError, match='"recurrence" proves nothing here'):
        certify(module(5, "recurrence"))


def test_the_schedule_must_keep_the_limit_of_its_bound() -> None:
    # 21 ns of latency: one in flight at a period of 30 ns.
    certify(module(21, "at most 1 in flight"))
    with pytest.raises(TaktError, match="but it has a latency of 21 ns"):
        certify(module(5, "latency at most 20 ns"))


@pytest.mark.parametrize("name", ["", "luck", "at most 0x4 in flight"])
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(TaktError, match="which is no bound known here"):
        certify(module(5, name))


def test_too_little_work_is_said() -> None:
    with pytest.raises(TaktError) as failure:
        certify(module(15, "integer program over configurations"), work=1e-6)
    assert failure.value.diagnostics[0].hint is not None
    assert "work" in failure.value.diagnostics[0].hint


def test_without_certificate_only_the_rules_are_checked() -> None:
    VerifySchedulePass().apply(CONTEXT, module(13, "luck"))
    with pytest.raises(TaktError):
        VerifySchedulePass().apply(CONTEXT, module(31, "area"))


def test_a_changed_table_breaks_the_certificate() -> None:
    found = module(12, "area")
    certify(found)
    graph = graph_of(found)
    schedule = graph.schedule
    assert schedule is not None
    graph.schedule = ScheduleAttr(
        schedule.pattern,
        schedule.microbatches,
        IntAttr(14),
        StringAttr("area"),
        *schedule.parameters[4:8],  # pyright: ignore
    )
    with pytest.raises(TaktError, match="proves 12 ns"):
        certify(found)


def test_the_schedules_of_the_compiler_pass() -> None:
    from compiler import compile_model

    examples = Path(__file__).parents[2] / "examples"
    certify(compile_model(examples / "research_dag.takt", platform=examples / "tiny_board.takt", to="scheduled"))
