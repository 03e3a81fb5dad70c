"""The trace: the rules of the Chrome trace event format, and agreement with the schedule."""

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from compiler.simulate import time_triggered
from compiler.targets.perfetto import emit
from compiler.view import view_of

Build = Callable[..., ModuleOp]
Event = dict[str, Any]
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def events_of(text: str) -> list[Event]:
    return json.loads(text)["traceEvents"]


def nanoseconds(us: float) -> int:
    ns = round(us * 1000)
    assert abs(us * 1000 - ns) < 1e-3
    return ns


def check_rules(events: list[Event]) -> None:
    """What the format asks for, as Perfetto reads it."""
    data = [e for e in events if e["ph"] != "M"]
    assert [e["ts"] for e in data] == sorted(e["ts"] for e in data)
    assert all(e["ts"] >= 0 and e.get("dur", 0) >= 0 for e in data)
    named = {e["tid"] for e in events if e["name"] == "thread_name"}
    ordered = {e["tid"] for e in events if e["name"] == "thread_sort_index"}
    assert {e["tid"] for e in data if "tid" in e} <= named
    assert named == ordered
    check_nesting(data)
    check_arrows(data)


def check_nesting(data: list[Event]) -> None:
    """On a track, slices nest and do not overlap: operators inside micro-batches, two deep."""
    open_slices: dict[int, list[int]] = {}
    for e in (e for e in data if e["ph"] == "X"):
        stack = open_slices.setdefault(e["tid"], [])
        begin = nanoseconds(e["ts"])
        end = begin + nanoseconds(e["dur"])
        while stack and stack[-1] <= begin:
            stack.pop()
        assert not stack or end <= stack[-1], e
        assert len(stack) == (1 if e["cat"] == "operator" else 0), e
        stack.append(end)


def check_arrows(data: list[Event]) -> None:
    """Every arrow has one start and one end, in time order, each inside an operator's slice on its track."""
    operators: dict[int, list[tuple[int, int, str]]] = {}
    for e in (e for e in data if e.get("cat") == "operator" and e["ph"] == "X"):
        begin = nanoseconds(e["ts"])
        operators.setdefault(e["tid"], []).append((begin, begin + nanoseconds(e["dur"]), e["name"]))
    starts = {e["id"]: e for e in data if e["ph"] == "s"}
    ends = {e["id"]: e for e in data if e["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert len(starts) == sum(e["ph"] == "s" for e in data)
    assert len(ends) == sum(e["ph"] == "f" for e in data)
    for key, start in starts.items():
        end = ends[key]
        assert start["ts"] <= end["ts"]
        assert end["bp"] == "e"
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        for e in (start, end):
            at = nanoseconds(e["ts"])
            inside = [name for low, high, name in operators[e["tid"]] if low <= at < high]
            assert len(inside) == 1
            if e is start:
                assert inside == [e["name"]]


@pytest.fixture
def spec(operator: Any) -> dict[str, Any]:
    """a feeds b (two copies) and, past it, c; z takes no time; intervals wrap around the period."""
    operators = [
        operator("a", ["x"], 9, [[0]], 0, results=[8], output=8, params=100, stage=0, block=("layer", 3)),
        operator("b", ["a"], 18, [[1], [2]], 11, results=[4], output=4, stage=1),
        operator("z", ["b"], 0, [[3]], 29, results=[4], stage=1),
        operator("c", ["b", "a", "z"], 9, [[3]], 29, results=[1], output=1, stage=1),
    ]
    return {"operators": operators, "pattern": 10, "accelerators": 5, "inputs": {"x": 6}, "stages": [[0], [1, 2, 3]]}


def test_trace_follows_the_rules(build: Build, spec: dict[str, Any]) -> None:
    events = events_of(emit(build(**spec)))
    check_rules(events)
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names[1] == "accelerator 0 (stage 0)"
    assert names[4] == "accelerator 3 (stage 1)"
    assert names[5] == "accelerator 4"


def test_trace_shows_what_the_schedule_says(build: Build, spec: dict[str, Any]) -> None:
    view = view_of(build(**spec))
    events = events_of(emit(build(**spec), periods=4))
    a = [e for e in events if e["name"] == "a" and e["ph"] == "X"]
    assert [nanoseconds(e["ts"]) - nanoseconds(a[0]["ts"]) for e in a] == [0, 10, 20, 30]
    assert {nanoseconds(e["dur"]) for e in a} == {9}
    assert a[0]["args"] == {
        "operator": "a",
        "kind": "op",
        "stage": 0,
        "block": "layer 3",
        "micro-batch": 4,
        "allotment": 1,
        "accelerators": "0:1",
        "time_ns": 9,
    }
    # Offsets between instances are those of the schedule, whatever the origin of the trace.
    origin = nanoseconds(a[0]["ts"]) - 4 * 10
    for e in (e for e in events if e.get("cat") == "operator"):
        task = next(t for t in view.tasks if t.name == e["name"])
        assert nanoseconds(e["ts"]) == origin + task.start + 10 * e["args"]["micro-batch"]
        assert e["tid"] - 1 in task.set_of(e["args"]["micro-batch"])
    assert sum(e["ph"] == "i" for e in events) > 0
    # a to b, a to c and b to c; nothing is drawn to or from z, which takes no time.
    assert {e["name"] for e in events if e["ph"] == "s"} == {"a", "b"}


def test_enclosing_slices_name_the_micro_batch(build: Build, spec: dict[str, Any]) -> None:
    names = [e["name"] for e in events_of(emit(build(**spec))) if e.get("cat") == "micro-batch" and e["tid"] == 1]
    assert names == ["micro-batch 4 E", "micro-batch 5 F", "micro-batch 6 G", "micro-batch 7 H"]


def test_counters_reach_the_peak(build: Build, spec: dict[str, Any]) -> None:
    peak = time_triggered(view_of(build(**spec))).peak_memory
    highest: dict[str, int] = {}
    for e in (e for e in events_of(emit(build(**spec))) if e["ph"] == "C"):
        highest[e["name"]] = max(highest.get(e["name"], 0), e["args"]["bytes"])
    assert highest == {f"memory of accelerator {p}": peak[p] for p in range(4)}


def test_counters_can_be_left_out(build: Build, spec: dict[str, Any]) -> None:
    assert not [e for e in events_of(emit(build(**spec), memory=False)) if e["ph"] == "C"]


def test_whole_patterns_of_replicas(build: Build, spec: dict[str, Any]) -> None:
    # Two copies: three periods are rounded up to four.
    assert emit(build(**spec), periods=3) == emit(build(**spec), periods=4)


def test_rational_period(build: Build, operator: Any) -> None:
    operators = [operator("a", [], 1, [[0], [1]], 0), operator("b", ["a"], 3, [[2]], 1)]
    check_rules(events_of(emit(build(operators, 7, 3, pattern_of=2), periods=5)))


def test_graph_without_operators(build: Build) -> None:
    assert {e["ph"] for e in events_of(emit(build([], 5, 2)))} == {"M"}


@relaxed
@given(data=st.data())
def test_random_chains_follow_the_rules(build: Build, operator: Any, data: st.DataObject) -> None:
    """Chains back to back on one of three sets each; the period is the highest load, found by trying."""
    count = data.draw(st.integers(1, 8))
    operators: list[Any] = []
    end = 0
    for v in range(count):
        place = data.draw(st.sampled_from([[0], [1, 2], [0, 1, 2]]))
        time = data.draw(st.integers(0, 9))
        operators.append(operator(f"v{v}", [f"v{v - 1}"] if v else [], time, [place], end, results=[1], output=1))
        end += time + data.draw(st.integers(0, 3))
    module = build(operators, max(1, end), 3)
    check_rules(events_of(emit(module)))
    assert Fraction(json.loads(emit(module))["otherData"]["period_ns"]) == max(1, end)


def test_many_alike_accelerators_share_a_track(build: Build, operator: Any) -> None:
    operators = [operator(f"v{v}", [f"v{v - 1}"] if v else [], 5, [range(1, 4096)], 5 * v) for v in range(5)]
    events = events_of(emit(build(operators, 25, 5000)))
    check_rules(events)
    names = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"accelerator 0", "accelerators 1:4096", "accelerator 4999"} <= names
    assert sum(e.get("cat") == "operator" for e in events) == 15
