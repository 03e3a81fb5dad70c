"""What a run shows, on runs of which the truth is known: figures, reasons for waiting, the report and the trace."""

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr

from compiler.runtime import report, trace
from compiler.runtime.job import EVENT, events_file, write_job
from compiler.runtime.measured import Window, measured, predicted, slope
from compiler.runtime.recorded import Run
from compiler.runtime.replayed import replayed
from compiler.runtime.waits import Story
from compiler.simulate import time_triggered
from compiler.view import view_of
from dialects.links import LinkAttr
from dialects.programs import ALL_GATHER, COMPUTE
from passes.lower_to_programs import lower_to_programs

Build = Callable[..., ModuleOp]
Play = Callable[..., Run]
Event = dict[str, Any]
Rules = Callable[[list[Event]], None]


@pytest.fixture
def module(build: Build, operator: Any) -> ModuleOp:
    """a on 0 feeds b, two copies of a pair, past a link; c on 5 reads b, and a of the micro-batch before."""
    us = 1000
    operators = [
        operator("a", ["x"], 9 * us, [[0]], 0, results=[8], output=8, stage=0),
        operator("b", ["a"], 18 * us, [[1, 2], [3, 4]], 10 * us, results=[4], output=4, stage=1),
        operator("c", ["b", "s"], 7 * us, [[5]], 29 * us, results=[1], output=1, stage=2),
    ]
    link = LinkAttr(StringAttr("board"), IntAttr(6), IntAttr(500), IntAttr(10**9))
    moves = [
        ("a", [[1, 2], [3, 4]], "board", 9 * us, 1 * us),
        ("a", [[5]], "board", 10 * us, 1 * us),
        ("b", [[5]], "board", 28 * us, 1 * us),
    ]
    stages = [[0], [1, 2, 3, 4], [5]]
    return build(
        operators,
        pattern=10 * us,
        accelerators=6,
        inputs={"x": 6},
        outputs=["c"],
        stages=stages,
        states={"s": ("a", 1)},
        links=[link],
        moves=moves,
    )


def programs(module: ModuleOp, count: int) -> ModuleOp:
    lower_to_programs(module, count)
    return module


# --- figures ---------------------------------------------------------------------------------


def test_a_run_as_scheduled_has_the_figures_of_the_schedule(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 32))
    found, said, view = measured(run), predicted(run.job), view_of(module)
    assert (said.period, said.latency, said.latency_max) == (10_000, 36_000, 36_000)
    assert said.load == {p: float(view.load[p] / view.period) for p in range(6)}
    assert (found.period, found.latency, found.latency_max) == (10_000, 36_000, 36_000)
    assert found.load == said.load
    assert found.load == {p: float(x) for p, x in time_triggered(view).load.items()}
    assert (found.highest_load, found.critical) == (0.9, 0)
    assert found.mean_load == pytest.approx((5 * 0.9 + 0.7) / 6)
    assert found.waiting == {p: pytest.approx(1 - load) for p, load in said.load.items()}
    assert set(found.moving.values()) == {0.0}
    assert found.steady


def test_a_slow_accelerator_is_critical(module: ModuleOp, play: Play) -> None:
    found = measured(play(programs(module, 32), slow={5: 3}, scheduled=False))
    assert (found.period, found.critical) == (21_000, 5)
    assert found.load[5] == 1.0
    assert found.waiting[5] == 0.0
    assert found.load[0] == pytest.approx(9 / 21)


def test_figures_of_a_scaled_run_are_compared_with_scaled_ones(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 16), scale=2.5)
    said = predicted(run.job)
    assert (said.period, said.latency, said.highest_load) == (25_000, 90_000, 0.9)
    real = replace(run.job, settings=replace(run.job.settings, emulate=False))
    assert predicted(real).period == 10_000


def test_one_late_micro_batch_does_not_change_the_period(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 32))
    rows = run.programs[5]
    last = int(np.flatnonzero((rows[:, 0] == 0) & (rows[:, 4] == 12))[0])
    run.events[5]["end"][last] += 3_000_000
    found = measured(run)
    assert found.period == 10_000
    assert found.latency == 36_000
    assert found.latency_max == 3_036_000
    assert found.load[5] == 0.7


@pytest.mark.parametrize(("count", "steady", "period"), [(1, False, 36_000), (2, False, 23_000), (8, False, 10_000)])
def test_short_runs(module: ModuleOp, play: Play, count: int, steady: bool, period: int) -> None:
    run = play(programs(module, count))
    found = measured(run)
    assert (found.steady, found.period, found.microbatches) == (steady, period, count)
    assert "too few micro-batches" in report.text(run.job, report.columns_of(predicted(run.job), None, found), found)


def test_the_window_leaves_out_fill_and_drain(module: ModuleOp, play: Play) -> None:
    # Four in flight, two copies.
    assert Window.of(play(programs(module, 11)).job) == Window(4, 7, True)


def test_rational_periods(build: Build, operator: Any, play: Play) -> None:
    operators = [operator("a", [], 400, [[0]], 0), operator("b", ["a"], 1000, [[1]], 400)]
    run = play(programs(build(operators, 7000, 2, pattern_of=3), 24))
    assert measured(run).period == pytest.approx(Fraction(7000, 3), abs=1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_slope_bears_a_quarter_of_outliers(data: st.DataObject) -> None:
    count = data.draw(st.integers(12, 60))
    rounds = data.draw(st.integers(1, 3))
    wrong = data.draw(st.sets(st.integers(0, count - 1), max_size=count // 8))
    completed = np.arange(count, dtype=np.int64) * 1000
    for i in wrong:
        completed[i] += data.draw(st.integers(1, 10**9))
    assert slope(completed, rounds) == 1000


def test_the_slope_of_a_long_run_is_found() -> None:
    completed = np.arange(5000, dtype=np.int64) * 7 + np.arange(5000) % 2
    assert slope(completed, 2) == 7
    assert slope(completed[:2], 2) is None


# --- replay ----------------------------------------------------------------------------------


def test_a_replay_with_measured_times_finds_the_slow_accelerator(module: ModuleOp, play: Play) -> None:
    lowered = programs(module, 32)
    found = replayed(lowered, play(lowered, slow={5: 3}, scheduled=False, emulate=False))
    assert (found.period, found.critical) == (21_000, 5)
    assert found.load[5] == pytest.approx(1, rel=0.05)
    assert found.load[0] == pytest.approx(9 / 21, rel=0.05)
    assert found.latency_max >= found.latency > 36_000


# --- what accelerators wait for --------------------------------------------------------------


def reasons(run: Run, p: int) -> dict[str, tuple[int, int]]:
    return {wait.why: (wait.begin, wait.end) for wait in Story(run).waits(p)}


def test_waits_for_values_name_value_and_sender(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 16), slow={0: 4}, scheduled=False)
    found = reasons(run, 5)
    # a ends at 36, 72, ...; c of micro-batch 0 ends at 63; b of 1 runs from 73 to 91 and is there at 92.
    assert found["waits for b of micro-batch 1 from accelerator 3"] == (63_000, 92_000)
    assert not any("micro-batch 3 from accelerator 1" in why for why in found)
    assert "waits for a of micro-batch 1 from accelerator 0" in reasons(run, 4)
    assert not reasons(run, 0)


def test_waits_for_the_set_and_for_the_turn(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 16), paced=True)
    # As scheduled b begins as soon as a is there, while a waits for the next period.
    assert "waits for the turn of micro-batch 3" in reasons(run, 0)
    rows, events = run.of(2)
    line = int(np.flatnonzero((rows[:, 0] == 0) & (rows[:, 4] == 4))[0])
    assert "waits for a of micro-batch 4 from accelerator 0" in reasons(run, 1)
    # Accelerator 2 comes late to micro-batch 4, and both begin when it does.
    late = int(events["arrive"][line]) + 60_000
    for p in (1, 2):
        at = run.events[p][line]
        run.events[p]["start"][line:] += late - at["start"]
        run.events[p]["end"][line:] += late - at["start"]
    run.events[2]["arrive"][line] = late
    run = Run(run.job, run.programs, run.events)
    begin, end = reasons(run, 1)["waits for accelerator 2 to come to b of micro-batch 4"]
    assert end == late > begin == 50_000


def test_receives_that_stop_an_accelerator(build: Build, operator: Any, play: Play, trace_rules: Rules) -> None:
    """b waits 30 for its value, and stands still for the last 20 of them while it comes."""
    operators = [operator("a", [], 50, [[0]], 0, results=[8]), operator("b", ["a"], 40, [[1]], 70)]
    link = LinkAttr(StringAttr("board"), IntAttr(2), IntAttr(12), IntAttr(10**9))
    options = {"links": [link], "moves": [("a", [[1]], "board", 50, 20)], "transfers": "blocking"}
    run = play(programs(build(operators, 100, 2, **options), 10))
    events, rows = run.events[1], run.programs[1]
    assert run.job.transfers == "blocking"
    # A runtime that stands still comes to b when its value is there.
    for at in np.flatnonzero(rows[:, 0] == COMPUTE):
        events["arrive"][at] = events["start"][at]
    found = measured(run)
    assert (found.period, found.load[1], found.waiting[1], found.moving[1]) == (100, 0.4, 0.4, 0.2)
    assert reasons(run, 1)["waits for a of micro-batch 3 from accelerator 0"] == (310, 350)
    trace_rules(events_of(build(operators, 100, 2, **options), run))


def test_gathering_lies_before_the_operator_that_needs_it(build: Build, operator: Any, play: Play) -> None:
    operators = [
        operator("a", [], 100_000, [[0]], 0, results=[100_000]),
        operator("b", ["a"], 100_000, [[1, 2]], 300_000),
    ]
    link = LinkAttr(StringAttr("board"), IntAttr(3), IntAttr(10), IntAttr(10**9))
    moves = [("a", [[1, 2]], "board", 100_000, 100_020)]
    run = play(programs(build(operators, 400_000, 3, links=[link], moves=moves), 12))
    rows, events = run.programs[1], run.events[1]
    gather, b = (int(np.flatnonzero((rows[:, 0] == kind) & (rows[:, 4] == 5))[0]) for kind in (ALL_GATHER, COMPUTE))
    assert gather < b
    came, begun = int(events["arrive"][b]), int(events["start"][b])
    events["start"][gather], events["end"][gather] = begun - 5000, begun - 2000
    lines = {line.what.kind: line for line in run.lines(1) if line.what.microbatch == 5}
    assert (lines[ALL_GATHER].arrive, lines[ALL_GATHER].start) == (came, begun - 5000)
    assert (lines[COMPUTE].arrive, lines[COMPUTE].start) == (begun - 2000, begun)
    found = reasons(run, 1)
    there = 5 * 400_000 + 200_020
    assert found["waits for a of micro-batch 5 from accelerator 0"] == (came, there)
    assert found["waits to gather a of micro-batch 5 on accelerators 1:3"] == (there, begun - 5000)
    assert found["waits to begin b of micro-batch 5"] == (begun - 2000, begun)


# --- report ----------------------------------------------------------------------------------


def test_the_table(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 32), slow={5: 3}, scheduled=False)
    found = measured(run)
    text = report.text(run.job, report.columns_of(predicted(run.job), None, found), found)
    lines = text.splitlines()
    assert lines[0] == "test on board: 6 processes on torch.distributed, emulated"
    assert lines[1].split() == ["predicted", "measured", "measured", "/", "predicted"]
    assert lines[2].split() == ["period", "10", "us", "21", "us", "210.0", "%"]
    assert [line.split("  ")[0] for line in lines[2:9]] == [
        "period",
        "latency, median",
        "latency, most",
        "highest load",
        "mean load",
        "critical",
        "micro-batches",
    ]
    assert lines[7].split() == ["critical", "0", "5"]
    assert lines[-2] == "accelerator 5 is critical: of a period, it waits 0.0 % and moves values 0.0 %"
    assert lines[-1].endswith("--scale 10000 makes all times longer")


def test_what_is_far_from_the_prediction_is_explained(module: ModuleOp, play: Play) -> None:
    lowered = programs(module, 32)
    last: list[str] = []
    for scale, paced in ((1.0, True), (2000.0, True), (2000.0, False)):
        run = play(lowered, slow={5: 3}, scheduled=False, scale=scale, paced=paced)
        for events in run.events.values():
            for name in ("arrive", "start", "end"):
                events[name] *= int(scale)
        found = measured(run)
        last.append(report.text(run.job, report.columns_of(predicted(run.job), None, found), found).splitlines()[-1])
    assert last[0].startswith("a period of 10 us is short beside what processes and messages take here: --scale 10000")
    assert last[1].startswith("accelerator 5 is critical")
    assert last[2].endswith("--pace: a period apart")


def test_a_real_run_is_compared_with_its_replay(module: ModuleOp, play: Play) -> None:
    lowered = programs(module, 32)
    run = play(lowered, slow={5: 3}, scheduled=False, emulate=False, seed=3)
    found = measured(run)
    columns = report.columns_of(predicted(run.job), replayed(lowered, run), found)
    lines = report.text(run.job, columns, found).splitlines()
    assert lines[0].endswith("6 processes on torch.distributed, real tensors")
    assert "on the platform  at measured times  measured  measured / at measured times" in lines[1]
    assert lines[2].split() == ["period", "10", "us", "21", "us", "21", "us", "100.0", "%"]


def test_figures_as_json(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 32))
    found = measured(run)
    data = json.loads(report.json_text(run.job, report.columns_of(predicted(run.job), None, found), found, {}))
    assert data["predicted"]["period_ns"] == data["measured"]["period_ns"] == 10_000
    assert data["measured"]["load"]["5"] == 0.7
    assert data["measured"]["waiting"].keys() == data["measured"]["moving"].keys() == data["predicted"]["load"].keys()


def test_a_run_is_read_from_its_folder(module: ModuleOp, play: Play, tmp_path: Any) -> None:
    run = play(programs(module, 16))
    write_job(tmp_path, run.job, run.programs)
    for p, rank in run.job.rank_of.items():
        np.save(events_file(tmp_path, rank), run.events[p][::-1])  # in any order
    assert measured(Run.read(tmp_path)) == measured(run)


# --- trace -----------------------------------------------------------------------------------


def events_of(module: ModuleOp, run: Run) -> list[Event]:
    return json.loads(trace.emit(view_of(module), run))["traceEvents"]


def ns(us: float) -> int:
    return round(us * 1000)


@pytest.mark.parametrize("scheduled", [True, False])
def test_the_trace_follows_the_rules(module: ModuleOp, play: Play, scheduled: bool, trace_rules: Rules) -> None:
    run = play(programs(module, 12), scheduled=scheduled, slow={} if scheduled else {5: 3})
    events = events_of(module, run)
    trace_rules(events)
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {1: "test on board, as scheduled", 2: "test on board, as run"}
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 2}
    assert {f"accelerator {p}{suffix}" for p in range(6) for suffix in ("", " waits")} <= set(tracks.values())
    work = [e for e in events if e.get("cat") == "operator" and e["pid"] == 2]
    assert {(e["name"], e["args"]["micro-batch"], tracks[e["tid"]]) for e in work} >= {
        ("b", 3, "accelerator 3"),
        ("b", 3, "accelerator 4"),
        ("c", 11, "accelerator 5"),
    }
    assert len(work) == 12 * (1 + 2 + 1)


def test_a_run_as_scheduled_is_the_schedule_twice(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 12))
    found: dict[int, set[tuple[Any, ...]]] = {1: set(), 2: set()}
    for e in events_of(module, run):
        if e.get("cat") == "operator":
            found[e["pid"]].add((e["name"], e["args"]["micro-batch"], e["args"]["accelerators"], e["ts"], e["dur"]))
    assert found[1] == found[2]
    assert len(found[1]) == 12 * 3


def test_both_groups_begin_together_and_scale(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 12), scale=2.0)
    for events in run.events.values():
        for name in ("arrive", "start", "end"):
            events[name] += 5000
    first = {e["pid"]: e for e in reversed(events_of(module, run)) if e.get("cat") == "operator"}
    assert ns(first[1]["ts"]) == ns(first[2]["ts"]) == 5000
    assert ns(first[1]["dur"]) == 2 * ns(first[2]["dur"]) == 18_000


def test_waiting_work_and_messages(module: ModuleOp, play: Play) -> None:
    run = play(programs(module, 12), slow={0: 4}, scheduled=False)
    events = events_of(module, run)
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 2}
    waits = [e for e in events if e.get("cat") == "waiting"]
    assert {tracks[e["tid"]] for e in waits} == {f"accelerator {p} waits" for p in range(1, 6)}
    # On each accelerator work and waiting take turns.
    for p in range(6):
        both = [
            e
            for e in events
            if e["ph"] == "X" and tracks.get(e["tid"]) in (f"accelerator {p}", f"accelerator {p} waits")
        ]
        both = sorted((ns(e["ts"]), ns(e["dur"])) for e in both if e["cat"] != "micro-batch")
        assert all(begin + time <= after for (begin, time), (after, _) in pairwise(both))
    messages = [e for e in events if e.get("cat") == "message" and e["ph"] == "X"]
    assert len(messages) == sum(int((rows[:, 0] == 2).sum()) for rows in run.programs.values())
    one = next(e for e in messages if e["name"] == "a of micro-batch 2 from accelerator 0")
    assert (ns(one["ts"]), ns(one["dur"])) == (108_000, 1000)
    # From a to its messages, and from each message to who reads it.
    arrows = [e for e in events if e["ph"] == "s"]
    assert {e["name"] for e in arrows} == {"a", "b"}
    unread = sum(e["name"].startswith("a of micro-batch 11 ") and tracks[e["tid"]].endswith(" 5") for e in messages)
    assert len(arrows) == 2 * len(messages) - unread


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_traces_of_random_runs_follow_the_rules(
    build: Build, operator: Any, play: Play, data: st.DataObject, trace_rules: Rules
) -> None:
    """Chains on sets of their own choice, run at will with some accelerators slow."""
    operators: list[Any] = []
    end = 0
    for v in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.sampled_from([[0], [1, 2], [0, 1, 2], [2]]))
        time = data.draw(st.integers(0, 9))
        operators.append(operator(f"v{v}", [f"v{v - 1}"] if v else [], time, [place], end, results=[1], output=1))
        end += time
    module = programs(build(operators, max(1, end), 3), data.draw(st.integers(1, 6)))
    slow = data.draw(st.dictionaries(st.integers(0, 2), st.integers(1, 5)))
    run = play(module, slow=slow, scheduled=data.draw(st.booleans()), paced=data.draw(st.booleans()))
    trace_rules(events_of(module, run))
    assert measured(run).period >= 0


def test_a_run_without_messages(build: Build, operator: Any, play: Play, trace_rules: Rules) -> None:
    module = programs(build([operator("a", [], 5, [[0]], 0), operator("z", ["a"], 0, [[0]], 5)], 5, 2), 8)
    run = play(module)
    trace_rules(events_of(module, run))
    assert measured(run).period == 5
    assert run.events[0].dtype == EVENT
