"""The limits that a schedule carries: their text, and the rule that they hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdsl.dialects.builtin import DictionaryAttr, IntAttr, ModuleOp, StringAttr
from xdsl.utils.exceptions import ParseError, VerifyException

from dialects.attributes import LIMITS, LimitsAttr, ScheduleAttr
from dialects.levels import check_level
from dialects.structure import find_graph

FIGURES = {"in_flight": 2, "latency": 160, "memory": 1023, "crossing": 20}
"""Of the schedule below."""


def limited(module: ModuleOp, most: dict[str, int]) -> ModuleOp:
    graph = find_graph(module)
    assert graph is not None
    s = graph.schedule
    assert s is not None
    old = (s.pattern, s.microbatches, s.bound, s.bound_by, s.plan, s.engine, s.seed)
    graph.schedule = ScheduleAttr(*old, LimitsAttr.make(most))
    return module


def broken(module: ModuleOp) -> list[str]:
    found = check_level(module)
    assert {d.rule for d in found} <= {"limits"}
    return [d.message for d in found]


@pytest.fixture
def module(sketch) -> ModuleOp:
    """x -> a on [0:2] during 0 to 60 -> b on [4:5] during 60 to 160, each period of 120 ns."""
    s = sketch(memory=10**6)
    s.stage([0, 1], [4])
    x = s.input("x", 10)
    a = s.op("a", x, table={2: (60, 1000, 10, 3)}, results=[20], stage=0, sets=[[0, 1]])
    b = s.op("b", a, table={1: (100, 500, 30, 5)}, stage=1, sets=[[4]], start=60)
    return s.module("scheduled", b, pattern=120)


def test_limits_that_hold_are_accepted(module):
    assert broken(limited(module, FIGURES)) == []
    assert broken(limited(module, {})) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in_flight", "2 micro-batches are in flight, the schedule claims at most 1"),
        ("latency", "the latency is 160 ns, the schedule claims at most 159 ns"),
        ("memory", "an accelerator of [0:2] needs 1023 B of memory, the schedule claims at most 1022 B"),
        ("crossing", "20 bytes cross between accelerator sets per micro-batch, the schedule claims at most 19"),
    ],
)
def test_a_limit_one_less_than_the_figure_is_broken(module, name, message):
    assert broken(limited(module, {name: FIGURES[name] - 1})) == [message]
    assert broken(limited(module, FIGURES | {name: FIGURES[name] - 1})) == [message]


def test_copies_cross_in_the_mean(sketch):
    """Of two copies of the producer one runs where the consumer runs: 25 bytes cross every second time."""
    s = sketch(memory=10**6)
    s.stage([0, 1, 2, 3])
    a = s.op("a", table={1: 60}, results=[25], stage=0, sets=[[0], [1]])
    b = s.op("b", a, table={1: 60}, stage=0, sets=[[0], [2]], start=60)
    module = s.module("scheduled", b, pattern=200)
    assert broken(limited(module, {"crossing": 13})) == []
    (message,) = broken(limited(module, {"crossing": 12}))
    assert message.startswith("12.5 bytes cross")


def test_a_period_that_is_no_integer(module):
    graph = find_graph(module)
    assert graph is not None
    text, zero = StringAttr("x"), IntAttr(0)
    graph.schedule = ScheduleAttr(IntAttr(240), IntAttr(2), zero, text, text, text, zero)
    assert broken(limited(module, FIGURES)) == []
    assert broken(limited(module, {"latency": 159})) != []


limits = st.dictionaries(st.sampled_from(LIMITS), st.integers(0, 2**63 - 1))


@given(most=limits)
def test_text_is_read_back(most, text):
    schedule = '#takt.schedule<9 for 1, bound 3 by "b", plan "p", engine "e", seed 0'
    shown = ", ".join(f"{name} {most[name]}" for name in LIMITS if name in most)
    within = f", within <{shown}>" if most else ""
    for attribute in (f"{schedule}{within}>", f"#takt.limits<{shown}>"):
        source = f"takt.graph @g model {{ takt.output {{a = {attribute}}} }}"
        printed = text.show(text.parse(source))
        assert attribute in printed
        assert text.show(text.parse(printed)) == printed


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("speed 8", "'>' expected|Expected '>'"),
        ("latency 8, speed 8", "expected one of in_flight, latency, memory, crossing"),
        ("latency 8, ", "expected one of in_flight, latency, memory, crossing"),
        ("latency 8, latency 8", "the limit 'latency' is given twice"),
        ("latency", "[Ee]xpected integer literal"),
        ("latency -1", "'latency' must be a 64-bit integer of at least 0, got -1"),
    ],
)
def test_bad_text(inside, message, text):
    with pytest.raises(ParseError, match=message):
        text.parse(f"takt.graph @g model {{ takt.output {{a = #takt.limits<{inside}>}} }}")


def test_bad_names_do_not_verify():
    with pytest.raises(VerifyException, match="limits are integers called"):
        LimitsAttr(DictionaryAttr({"speed": IntAttr(1)}))
    with pytest.raises(VerifyException, match="limits are integers called"):
        LimitsAttr(DictionaryAttr({"latency": StringAttr("1")}))
