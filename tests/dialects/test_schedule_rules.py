"""Every rule of level 4: a schedule that keeps it, one that breaks it, and what the message says."""

from __future__ import annotations

from fractions import Fraction

import pytest
from xdsl.dialects.builtin import IntAttr, ModuleOp

from dialects.attributes import SlotAttr, ints
from dialects.levels import check_level
from dialects.placement import MOST_COPIES
from dialects.schedule_rules import in_flight, latency, loads, peak_memory
from dialects.structure import find_graph, find_platform


def found(module: ModuleOp) -> dict[str | None, list[str]]:
    by_rule: dict[str | None, list[str]] = {}
    for d in check_level(module):
        by_rule.setdefault(d.rule, []).append(d.message)
    return by_rule


@pytest.fixture
def pipeline(sketch):
    """x -> a on [0:2] during 0 to 60 -> b on [4:5] during 60 to 120 -> c on [4:5] during 120 to 160; period 120."""

    def build(*, pattern: int | None = 120, microbatches: int = 1, bound: int = 0, memory: int = 10**6, **change):
        s = sketch(memory=memory)
        s.stage([0, 1, 2, 3], [4, 5, 6, 7])
        x = s.input("x", 7)
        a = s.op(
            "a",
            x,
            table={1: 100, 2: (60, 1000, 10, 3)},
            results=[20],
            stage=0,
            sets=change.get("a_sets", [[0, 1]]),
            start=change.get("a", 0),
        )
        b = s.op(
            "b", a, table={1: (60, 500, 30, 5)}, stage=1, sets=change.get("b_sets", [[4]]), start=change.get("b", 60)
        )
        c = s.op("c", b, table={1: 40, 2: 30}, stage=1, sets=change.get("c_sets", [[4]]), start=change.get("c", 120))
        return s.module("scheduled", c, pattern=pattern, microbatches=microbatches, bound=bound)

    return build


def test_a_valid_schedule_is_accepted(pipeline):
    module = pipeline()
    assert check_level(module) == []
    graph, platform = find_graph(module), find_platform(module)
    assert latency(graph) == 160
    assert in_flight(graph) == 2
    assert loads(graph) == {0: Fraction(1, 2), 1: Fraction(1, 2), 4: Fraction(100, 120)}
    # Accelerators 0, 1: x arrives with a (7) and leaves with it; workspace 3, result 10.
    # Accelerator 4: workspace 5, result of b 30 until c ends, a's 20 bytes from 60 to 120.
    assert peak_memory(graph, platform) == dict.fromkeys(range(8), (0, 0)) | {
        0: (1000, 7 + 3 + 10),
        1: (1000, 7 + 3 + 10),
        4: (500, 5 + 30 + 20),
    }


def test_schedule_present(pipeline):
    assert list(found(pipeline(pattern=None))) == ["schedule-present"]


def test_slot_present(pipeline):
    module = pipeline()
    del list(find_graph(module).operators())[1].properties["slot"]
    assert found(module) == {"slot-present": ["'b' has no slot"]}


def test_allotment_admissible(pipeline):
    assert found(pipeline(b_sets=[[4, 5]]))["allotment-admissible"] == [
        "'b' runs on 2 accelerators, but its cost table has times for 1 only"
    ]


def test_sets_fixed_size(pipeline):
    module = pipeline()
    b = list(find_graph(module).operators())[1]
    b.properties["slot"] = SlotAttr(IntAttr(1), SlotAttr.make([[5, 6]], 0).sets, IntAttr(60), ints([]))
    assert found(module) == {"sets-fixed": ["'b' has allotment 1 but a set of 2: [5:7]"]}


def test_sets_fixed_inside_the_platform(pipeline):
    broken = found(pipeline(b_sets=[[8]]))
    assert broken["sets-fixed"] == ["'b' runs on [8:9], but the platform has 8 accelerators"]
    assert "inside-granted-block" in broken


def test_sets_fixed_copies(pipeline):
    assert found(pipeline(b_sets=[[5], [6]])) == {}
    assert found(pipeline(b_sets=[[5], [5]]))["sets-fixed"] == [
        "copy 1 of 'b' shares accelerators [5:6] with an earlier copy"
    ]


def test_inside_granted_block(pipeline, sketch):
    assert found(pipeline(c_sets=[[3]]))["inside-granted-block"] == [
        "'c' runs on [3:4], outside the block [4:8] granted to stage 1"
    ]
    s = sketch()
    s.stage([0, 1], [2, 3])
    s.op("a", stage=0, shared=1, sets=[[1, 2]])
    assert found(s.module("scheduled", pattern=60)) == {}
    s = sketch()
    s.stage([0, 1], [2, 3])
    s.op("a", stage=0, shared=1, sets=[[1, 4]])
    assert found(s.module("scheduled", pattern=60))["inside-granted-block"] == [
        "'a' runs on [1:2, 4:5], outside the block [0:4] granted to stages 0 and 1"
    ]


def test_copies(sketch):
    s = sketch(accelerators=64, group=64)
    s.stage(range(64))
    first = 0
    for copies in (2, 3, 5, 7, 11, 13):
        s.op(f"v{copies}", stage=0, sets=[[first + i] for i in range(copies)], table={1: 10})
        first += copies
    broken = found(s.module("scheduled", pattern=10))
    assert list(broken) == ["copies"]
    assert f"30030 periods, the least common multiple of the numbers of copies; at most {MOST_COPIES}" in str(broken)


def test_period_integer(pipeline):
    assert found(pipeline(pattern=240, microbatches=2)) == {}
    assert found(pipeline(pattern=241, microbatches=2)) == {
        "period-integer": ["the pattern of 241 ns does not divide evenly among its 2 micro-batches"]
    }


def test_bound(pipeline):
    assert found(pipeline(bound=120)) == {}
    assert found(pipeline(bound=121)) == {"bound": ["the period of 120 ns is below its own lower bound of 121 ns"]}
    assert found(pipeline(bound=120, pattern=240, microbatches=2)) == {}
    assert list(found(pipeline(bound=121, pattern=240, microbatches=2))) == ["bound"]


def test_starts(pipeline):
    assert found(pipeline(a=-1))["starts"] == ["'a' starts at -1 ns, before 0"]
    later = found(pipeline(a=1, b=61, c=121))
    assert later == {"starts": ["the first start of a micro-batch must be 0, but 'a' starts first, at 1 ns"]}


def test_precedence(pipeline):
    broken = found(pipeline(b=59))
    assert broken["precedence"] == ["'b' starts at 59 ns, before its operand 'a' ends at 60 ns (started at 0 ns)"]


def test_fits_period(pipeline):
    assert found(pipeline(pattern=59))["fits-period"] == [
        "'a' takes 60 ns, longer than the period of 59 ns with 1 copy",
        "'b' takes 60 ns, longer than the period of 59 ns with 1 copy",
    ]
    # Two copies each carry an operation of up to two periods.
    replicated = {"a_sets": [[0, 1], [2, 3]], "b_sets": [[4], [5]], "c_sets": [[6], [7]]}
    assert found(pipeline(pattern=30, **replicated)) == {}
    assert set(found(pipeline(pattern=29, **replicated))) == {"fits-period"}


def test_exclusive_names_operators_times_and_accelerators(pipeline):
    assert found(pipeline(c=121)) == {}
    broken = found(pipeline(c=141))
    assert set(broken) == {"exclusive"}
    (message,) = broken["exclusive"]
    assert "'b' (start 60 ns, that is 60 ns to 120 ns)" in message
    assert "'c' (start 141 ns, that is 21 ns to 61 ns)" in message
    assert message.endswith("overlap on accelerator [4:5] modulo the pattern of 120 ns")


def test_exclusive_wraps_around_the_end_of_the_pattern(pipeline):
    # c at 200 to 240 is 80 to 120 and meets b; at 220 it is 100 to 140, that is 100 to 120 and 0 to 20.
    assert found(pipeline(c=240)) == {}
    wrapped = found(pipeline(c=220, pattern=120))
    assert "'c' (start 220 ns, that is 100 ns to 20 ns of the next)" in wrapped["exclusive"][0]
    # An interval that wraps is legal where the accelerator is free on both sides.
    assert found(pipeline(b=100, c=160)) == {}


def test_exclusive_of_copies(sketch):
    def replicated(start: int, third: int):
        s = sketch()
        s.stage(range(4))
        a = s.op("a", table={1: 100}, stage=0, sets=[[0], [1]])
        b = s.op("b", a, table={1: 50}, stage=0, sets=[[2]], start=100)
        s.op("c", b, table={1: 20}, stage=0, sets=[[0], [third]], start=start)
        return s.module("scheduled", pattern=60)

    # a holds accelerator 0 during [0, 100) of every 120; c's first copy fits in [100, 120) only.
    assert found(replicated(220, 3)) == {}
    assert list(found(replicated(221, 3))) == ["exclusive"]
    # Accelerator 1 runs a's second copy during [60, 160), so c's second copy there must run at 160 to 180.
    assert found(replicated(220, 1)) == {}
    assert list(found(replicated(160, 1))) == ["exclusive"]


def test_operators_without_time_occupy_nothing(sketch):
    s = sketch()
    s.stage([0])
    s.op("a", table={1: 10}, stage=0, sets=[[0]])
    s.op("b", table={1: 0}, stage=0, sets=[[0]], start=5)
    assert found(s.module("scheduled", pattern=10)) == {}


def test_memory_says_who_lacks_what(pipeline):
    assert found(pipeline(memory=1020)) == {}
    (message,) = found(pipeline(memory=1019))["memory"]
    assert message.startswith("accelerators [0:2] each lack 1 B of memory: at 0 ns of the pattern")
    assert "1020 B of 1019 B (1000 B parameters, 3 B workspaces, 10 B results, 7 B inputs" in message
    assert "most of it result of 'a' 10 B, input of 'x' 7 B" in message


def test_memory_of_a_long_lifetime_counts_every_overlap(sketch):
    def delayed(start: int):
        s = sketch(memory=10**9)
        s.stage([0])
        a = s.op("a", table={1: (10, 0, 100, 0)}, stage=0, sets=[[0]])
        s.op("b", a, table={1: (10, 0, 0, 0)}, stage=0, sets=[[0]], start=start)
        module = s.module("scheduled", pattern=20)
        assert check_level(module) == []
        return peak_memory(find_graph(module), find_platform(module))[0]

    assert delayed(10) == (0, 100)
    # From 0 to 40: exactly two at a time. From 0 to 60: exactly three.
    assert delayed(30) == (0, 200)
    assert delayed(50) == (0, 300)


def test_memory_beyond_64_bits_is_exact(sketch):
    big = 2**62
    s = sketch(memory=2**63 - 1)
    s.stage([0])
    for name in ("a", "b", "c"):
        s.op(name, table={1: (0, big, 0, 0)}, stage=0, sets=[[0]])
    module = s.module("scheduled", pattern=20)
    assert peak_memory(find_graph(module), find_platform(module))[0] == (3 * big, 0)
    assert list(found(module)) == ["memory"]


def test_received_values_are_whole_and_counted_once_per_set(sketch):
    s = sketch()
    s.stage([0, 1], [2, 3])
    a = s.op("a", table={2: (10, 0, 8, 0)}, results=[16, 5], stage=0, sets=[[0, 1]])
    second = a.op.results[1]
    b = s.op("b", a, second, table={1: 10}, stage=1, sets=[[2]], start=10)
    s.op("c", a, b, table={1: 10}, stage=1, sets=[[2]], start=20)
    s.op("d", second, table={1: 10}, stage=1, sets=[[3]], start=10)
    module = s.module("scheduled", pattern=20)
    assert check_level(module) == []
    peaks = peak_memory(find_graph(module), find_platform(module))
    assert peaks[0] == (0, 8), "the producer's share, gone when the values have left"
    assert peaks[2] == (0, 21), "both values, whole, from 10 to 30"
    assert peaks[3] == (0, 5), "only the value that is read here"


def test_several_broken_rules_are_all_reported(pipeline):
    broken = found(pipeline(b=0, c=59, bound=500, memory=100))
    assert set(broken) == {"bound", "precedence", "exclusive", "memory"}


def test_unused_accelerators_and_graphs_without_a_schedule(pipeline, sketch):
    module = pipeline(pattern=None)
    graph = find_graph(module)
    assert peak_memory(graph, find_platform(module)) == dict.fromkeys(range(8), (0, 0))
    assert loads(graph) == {}
    assert in_flight(graph) == 0
    s = sketch()
    s.op("a")
    assert latency(find_graph(s.module("model"))) == 0


def test_level_4_keeps_the_rules_below(pipeline):
    module = pipeline()
    graph = find_graph(module)
    for stage in graph.stages():
        stage.detach()
    assert set(found(module)) == {"stages-numbered", "stage-present"}
