"""The simulator on random valid schedules, against the checker, and on the same schedules broken on purpose."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from compiler.simulate import SimulationError, self_timed, time_triggered
from compiler.view import view_of
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform

ACCELERATORS = 6
LAP = 6
"""All numbers of copies (1, 2, 3) divide it."""

Build = Callable[..., ModuleOp]
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def copies_of(draw: st.DrawFn) -> list[list[int]]:
    """Disjoint sets of equal size, one a copy."""
    count = draw(st.sampled_from([1, 1, 1, 2, 3]))
    width = draw(st.integers(1, ACCELERATORS // count))
    members = draw(st.permutations(range(ACCELERATORS)))
    return [sorted(members[c * width : (c + 1) * width]) for c in range(count)]


@st.composite
def schedules(draw: st.DrawFn, operator: Any) -> dict[str, Any]:
    """Operators placed one after the other where their accelerators are free, on a circle of ``LAP`` periods."""
    period = draw(st.integers(3, 20))
    taken = [[False] * (LAP * period) for _ in range(ACCELERATORS)]
    operators: list[Any] = []
    ends: dict[str, int] = {}
    inputs = {f"x{i}": draw(st.integers(0, 20)) for i in range(draw(st.integers(0, 2)))}

    def fits(sets: list[list[int]], begin: int, time: int) -> bool:
        return not any(
            taken[p][(begin + turn * period + t) % (LAP * period)]
            for turn in range(LAP)
            for p in sets[turn % len(sets)]
            for t in range(time)
        )

    for v in range(draw(st.integers(1, 9))):
        sets = copies_of(draw)
        time = draw(st.integers(0, len(sets) * period))
        known = [*inputs, *(f"v{u}:{r}" if r else f"v{u}" for u in range(v) for r in range(len(operators[u].results)))]
        reads = draw(st.lists(st.sampled_from(known), max_size=3)) if known else []
        ready = max((ends[r.split(":")[0]] for r in reads if r[0] == "v"), default=0)
        ready += draw(st.integers(0, 2 * period)) if operators else 0
        places = [s for s in range(ready, ready + LAP * period) if fits(sets, s, time)]
        if not places:
            time, places = 0, [ready]
        start = places[0]
        for turn in range(LAP):
            for p in sets[turn % len(sets)]:
                for t in range(time):
                    taken[p][(start + turn * period + t) % (LAP * period)] = True
        sizes = st.integers(0, 9)
        operators.append(
            operator(
                f"v{v}",
                reads,
                time,
                sets,
                start,
                results=draw(st.lists(sizes, min_size=1, max_size=2)),
                params=draw(sizes),
                output=draw(sizes),
                workspace=draw(sizes),
                group=draw(st.sampled_from([None, None, "x", "y"])),
            )
        )
        ends[f"v{v}"] = start + time
    states = {f"s{i}": add_state(draw, operators, f"s{i}", period) for i in range(draw(st.integers(0, 3)))}
    return {
        "operators": operators,
        "pattern": period,
        "accelerators": ACCELERATORS,
        "inputs": inputs,
        "states": states,
    }


def add_state(draw: st.DrawFn, operators: list[Any], state: str, period: int) -> tuple[str, int]:
    """Let some operators, placed already, read a result from a state, far enough back for the value to be there."""
    u = draw(st.integers(0, len(operators) - 1))
    readers = draw(st.lists(st.integers(0, len(operators) - 1), max_size=2, unique=True))
    end = operators[u].start + operators[u].time
    wait = max((end - operators[v].start for v in readers), default=0)
    for v in readers:
        operators[v].reads.append(state)
    result = draw(st.integers(0, len(operators[u].results) - 1))
    return f"v{u}:{result}" if result else f"v{u}", max(1, -(-wait // period)) + draw(st.integers(0, 2))


@relaxed
@given(data=st.data())
def test_valid_schedules_run(build: Build, operator: Any, data: st.DataObject) -> None:
    module = build(**data.draw(schedules(operator)))
    view = view_of(module)
    report = time_triggered(view)
    assert report.steady
    assert report.period == view.period
    assert report.latency_min == report.latency_max == view.latency
    assert report.in_flight == view.in_flight
    assert report.load == {p: busy / view.period for p, busy in view.load.items()}
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    expected = {p: params + peak for p, (params, peak) in peak_memory(graph, platform).items()}
    assert report.peak_memory == {p: expected.get(p, 0) for p in range(ACCELERATORS)}


@relaxed
@given(data=st.data())
def test_order_alone_is_never_slower(build: Build, operator: Any, data: st.DataObject) -> None:
    view = view_of(build(**data.draw(schedules(operator))))
    report = self_timed(view)
    assert report.steady
    assert report.period <= view.period
    assert report.latency_max <= view.latency
    assert report.load == {p: busy / view.period for p, busy in view.load.items()}


@relaxed
@given(data=st.data())
def test_one_byte_less_is_too_little(build: Build, operator: Any, data: st.DataObject) -> None:
    spec = data.draw(schedules(operator))
    most = max(time_triggered(view_of(build(**spec))).peak_memory.values())
    assume(most > 1)
    assert time_triggered(view_of(build(**spec, memory=most))).steady
    with pytest.raises(SimulationError) as error:
        time_triggered(view_of(build(**spec, memory=most - 1)))
    assert error.value.fault == "memory"


@relaxed
@given(data=st.data())
def test_operator_moved_before_its_operand_is_late(build: Build, operator: Any, data: st.DataObject) -> None:
    spec = data.draw(schedules(operator))
    operators = spec["operators"]
    names = {o.name: o for o in operators}
    dependent = [v for v, o in enumerate(operators) if any(r[0] == "v" for r in o.reads)]
    assume(dependent)
    v = data.draw(st.sampled_from(dependent))
    producers = [names[r.split(":")[0]] for r in operators[v].reads if r[0] == "v"]
    start = max(o.start + o.time for o in producers) - 1
    # Nothing else may be wrong: the moved operator takes no time, so it meets no other.
    operators[v] = replace(operators[v], start=start, time=0)
    with pytest.raises(SimulationError) as error:
        time_triggered(view_of(build(**spec)))
    assert error.value.fault == "data"
    assert error.value.operator == operators[v].name


@relaxed
@given(data=st.data())
def test_two_operators_at_once_are_caught(build: Build, operator: Any, data: st.DataObject) -> None:
    spec = data.draw(schedules(operator))
    spec["operators"] = [o for o in spec["operators"] if not o.reads]
    spec["states"] = {}
    long = [o for o in spec["operators"] if o.time]
    assume(long)
    victim = data.draw(st.sampled_from(long))
    laps = data.draw(st.integers(0, 3)) * len(victim.sets) * spec["pattern"]
    start = victim.start + laps + data.draw(st.integers(0, victim.time - 1))
    spec["operators"].append(operator("intruder", [], 1, [victim.sets[0][:1]], start))
    with pytest.raises(SimulationError) as error:
        time_triggered(view_of(build(**spec)))
    assert error.value.fault == "busy"
