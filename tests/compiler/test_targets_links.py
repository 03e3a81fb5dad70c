"""Transfers in the output formats: schedules with ``takt.reserve`` lines, written by hand."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ArrayAttr, IntAttr, ModuleOp, StringAttr

from compiler.ir_input import parse_ir
from compiler.links import Resource, instances, levels, loads, occupied, readers_of, standstill
from compiler.pipeline import new_context
from compiler.targets import emitter, gantt_links, trace_events
from compiler.targets.analysis import Analysis
from compiler.targets.gantt import Chart
from compiler.targets.json import schema
from compiler.view import view_of
from dialects.communication import ReserveOp
from dialects.links import LinkAttr
from dialects.operators import OperatorOp
from dialects.structure import find_graph, find_platform

Build = Callable[..., ModuleOp]
Event = dict[str, Any]
SVG = "{http://www.w3.org/2000/svg}"
relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NODE = '#takt.link<"node" 4, latency 5, bandwidth 1000000000>'
CLUSTER = '#takt.link<"cluster" 8, latency 10, bandwidth 500000000>'


def module_of(body: str, *, period: int = 100, links: str = f"{NODE}, {CLUSTER}", transfers: str = "") -> ModuleOp:
    mode = f', transfers = "{transfers}"' if transfers else ""
    platform = (
        'takt.platform @board {accelerator = "chip", accelerators = 8 : i64, memory = 1048576 : i64, '
        "bandwidth = 1000000000 : i64, launch = 0 : i64, peak = {bf16 = 1000000000000 : i64}, "
        "compute_efficiency = 1.000000e+00 : f64, memory_efficiency = 1.000000e+00 : f64, saturation = 0 : i64, "
        f"links = [{links}]{mode}}}"
    )
    head = f'takt.graph @test scheduled <{period} for 1, bound 90 by "area", plan "free", engine "by-hand", seed 0>'
    text = f"builtin.module {{\n{platform}\n{head} {{\n{body}\n}}\n}}"
    return parse_ir(new_context(), text, "test.mlir")


def op(name: str, reads: dict[str, int], time: int, size: int, slot: str) -> str:
    names, types = ", ".join(f"%{r}" for r in reads), ", ".join(f"tensor<{n}xi8>" for n in reads.values())
    cost = f"cost <[1] time [{time}] output [{size}]>"
    return f"%{name} = takt.op({names}) {cost} slot <1 on {slot}> : ({types}) -> tensor<{size}xi8>"


def chain(b: int = 90, far: int = 50, at: int = 50) -> str:
    """a feeds b in its node, and c in another together with b; all values are moved."""
    return "\n".join(
        [
            op("a", {}, 50, 20, "[0:1] at 0"),
            'takt.reserve %a to [1:2] over "node" at 50 for 25 : tensor<20xi8>',
            f'takt.reserve %a to [4:5] over "cluster" at {at} for {far} : tensor<20xi8>',
            op("b", {"a": 20}, b, 10, "[1:2] at 75"),
            'takt.reserve %b to [4:5] over "cluster" at 200 for 30 : tensor<10xi8>',
            op("c", {"a": 20, "b": 10}, 40, 4, "[4:5] at 230"),
            "takt.output %c : tensor<4xi8>",
        ]
    )


COPIES = "\n".join(
    [
        "%s = takt.state @left distance 1 : tensor<10xi8>",
        op("a", {}, 60, 20, "[0:1], [1:2] at 0"),
        # Odd micro-batches of a are where b is.
        'takt.reserve %a to [1:2] over "node" at 60 for 25 : tensor<20xi8>',
        op("b", {"a": 20}, 15, 10, "[1:2] at 85"),
        'takt.reserve %b to [2:3] over "node" at 100 for 15 : tensor<10xi8>',
        op("c", {"s": 10}, 30, 4, "[2:3] at 20"),
        "takt.next @left, %b : tensor<10xi8>",
        "takt.output %c : tensor<4xi8>",
    ]
)

FANNED = "\n".join(
    [
        op("a", {}, 30, 20, "[0:1] at 0"),
        'takt.reserve %a to [1:2] over "node" at 30 for 25 {0} : tensor<20xi8>',
        'takt.reserve %a to [2:3] over "node" at 30 for 25 {1} : tensor<20xi8>',
        op("b", {"a": 20}, 40, 4, "[1:2] at 85"),
        op("c", {"a": 20}, 20, 4, "[2:3] at 170"),
        "takt.output %b, %c : tensor<4xi8>, tensor<4xi8>",
    ]
)


def buffered() -> ModuleOp:
    return module_of(FANNED.replace("{0}", "landing 60").replace("{1}", "landing 140"), transfers="buffered")


def shared() -> ModuleOp:
    link = NODE.replace("000>", "000, links 2, shared>")
    return module_of(FANNED.replace("{0}", "").replace("{1}", ""), links=f"{link}, {CLUSTER}")


def blocking() -> ModuleOp:
    return module_of(chain(b=60, at=75), period=200, transfers="blocking")


MODULES: dict[str, Callable[[], ModuleOp]] = {
    "chain": lambda: module_of(chain()),
    "copies": lambda: module_of(COPIES),
    "buffered": buffered,
    "shared": shared,
    "blocking": blocking,
}


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleOp:
    return MODULES[request.param]()


# --- what transfers occupy -------------------------------------------------------------------


def test_loads_of_links() -> None:
    assert loads(view_of(module_of(chain()))) == {
        Resource("node", "send", 0, 0): Fraction(25, 100),
        Resource("node", "receive", 1, 1): Fraction(25, 100),
        Resource("cluster", "send", 0, 0): Fraction(50, 100),
        Resource("cluster", "send", 1, 1): Fraction(30, 100),
        Resource("cluster", "receive", 4, 4): Fraction(80, 100),
    }


def test_turns_in_which_nothing_moves_load_nothing() -> None:
    view = view_of(module_of(COPIES))
    assert loads(view) == {
        Resource("node", "send", 0, 0): Fraction(25, 200),
        Resource("node", "receive", 1, 1): Fraction(25, 200),
        Resource("node", "send", 1, 1): Fraction(15, 100),
        Resource("node", "receive", 2, 2): Fraction(15, 100),
    }
    assert [(level.name, level.transfers, level.size) for level in levels(view)] == [("node", 2, 10 + 10)]
    assert sum(level.size for level in levels(view)) == view.crossing


def test_shared_links_carry_several() -> None:
    assert loads(view_of(shared()))[Resource("node", "send", 0, 0)] == Fraction(25 + 25, 2 * 100)


def test_the_copy_out_of_a_value_counts_once() -> None:
    view = view_of(buffered())
    assert standstill(view) == {p: Fraction(25, 100) for p in (0, 1, 2)}
    assert [level.busiest for level in levels(view)] == [None]


def test_blocking_transfers_stop_both_ends() -> None:
    view = view_of(blocking())
    assert standstill(view) == {0: Fraction(75, 200), 1: Fraction(55, 200), 4: Fraction(80, 200)}
    assert loads(view)[Resource("cluster", "receive", 4, 4)] == Fraction(80, 200)


def test_half_duplex_ports_carry_one_direction() -> None:
    link = NODE.replace("000>", "000, half duplex>")
    busy = loads(view_of(module_of(COPIES, links=f"{link}, {CLUSTER}")))
    assert busy[Resource("node", "port", 1, 1)] == Fraction(25, 200) + Fraction(15, 100)


@pytest.mark.parametrize(
    ("sharded", "source", "target", "senders", "receivers"),
    [
        (False, range(2, 6), range(0, 2), {2, 3}, {0, 1}),
        (True, range(2, 6), range(0, 2), {2, 3, 4, 5}, {0, 1}),
        (False, range(0, 2), range(4, 8), {0, 1}, {4, 5, 6, 7}),
        # What an accelerator keeps does not move: 0 has its value already.
        (False, range(0, 1), range(0, 4), {0}, {1, 2, 3}),
    ],
)
def test_ports_of_sets(
    build: Build, operator: Any, sharded: bool, source: range, target: range, senders: set[int], receivers: set[int]
) -> None:
    operators = [operator("a", [], 5, [source], 0, results=[8]), operator("b", ["a"], 5, [target], 10)]
    module = build(operators, 20, 8)
    reserve(module, "a", 0, [target], 5, 3)
    view = view_of(module)
    move = view.moves[0]
    view = view.__class__(**{**view.__dict__, "moves": (move.__class__(**{**move.__dict__, "sharded": sharded}),)})
    assert {r.first for r in loads(view) if r.kind == "send"} == senders
    assert {r.first for r in loads(view) if r.kind == "receive"} == receivers


def test_readers_of_a_transfer() -> None:
    view = view_of(module_of(chain()))
    names = [[view.tasks[e.consumer].name for e in readers_of(view, m)] for m in view.moves]
    assert names == [["b"], ["c"], ["c"]]
    view = view_of(module_of(COPIES))
    assert [[(view.tasks[e.consumer].name, e.distance) for e in readers_of(view, m)] for m in view.moves] == [
        [("b", 0)],
        [("c", 1)],
    ]


def reserve(
    module: ModuleOp, name: str, result: int, targets: list[Any], start: int, time: int, landing: int | None = None
) -> None:
    """Add a transfer of a result of the operator of that name, to a module made by ``build``, over one level.

    Its latency is long, so that targets do not gather pieces among themselves.
    """
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    platform.links = ArrayAttr([LinkAttr(StringAttr("all"), IntAttr(platform.count), IntAttr(1000), IntAttr(10**9))])
    producer = next(o for o in graph.body.block.ops if isinstance(o, OperatorOp) and o.results[0].name_hint == name)
    made = ReserveOp.make(producer.results[result], targets, "all", start, time, landing)
    graph.body.block.insert_op_after(made, producer)


# --- trace -----------------------------------------------------------------------------------


def events_of(module: ModuleOp, **options: Any) -> list[Event]:
    return json.loads(emitter("perfetto")(module, **options))["traceEvents"]


def nanoseconds(us: float) -> int:
    assert abs(us * 1000 - round(us * 1000)) < 1e-3
    return round(us * 1000)


def check_trace(events: list[Event]) -> None:
    """The rules of the format: tracks are named, slices nest, every arrow joins two slices in time order."""
    data = [e for e in events if e["ph"] != "M"]
    assert [e["ts"] for e in data] == sorted(e["ts"] for e in data)
    assert all(e["ts"] >= 0 and e.get("dur", 0) >= 0 for e in data)
    named = [(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"]
    assert len({tid for _, tid in named}) == len(named)
    assert {(e["pid"], e["tid"]) for e in data if "tid" in e} <= set(named)
    spans: dict[int, list[tuple[int, int]]] = {}
    for e in (e for e in data if e["ph"] == "X" and e["cat"] != "micro-batch"):
        begin = nanoseconds(e["ts"])
        on = spans.setdefault(e["tid"], [])
        assert not on or on[-1][1] <= begin, e
        on.append((begin, begin + nanoseconds(e["dur"])))
    starts = {e["id"]: e for e in data if e["ph"] == "s"}
    ends = {e["id"]: e for e in data if e["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert len(starts) + len(ends) == sum(e["ph"] in "sf" for e in data)
    for e in (*starts.values(), *ends.values()):
        assert sum(low <= nanoseconds(e["ts"]) < high for low, high in spans[e["tid"]]) == 1
    for key, e in starts.items():
        assert e["ts"] <= ends[key]["ts"]


def tracks_of(events: list[Event]) -> dict[str, list[Event]]:
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 2}
    return {name: [e for e in events if e["ph"] == "X" and e["tid"] == tid] for tid, name in names.items()}


def test_traces_follow_the_rules(module: ModuleOp) -> None:
    check_trace(events_of(module, periods=4))


def test_tracks_of_links() -> None:
    events = events_of(module_of(chain()))
    assert [e["args"]["name"] for e in events if e["name"] == "process_name" and e["pid"] == 2] == ["links"]
    assert {name: len(slices) for name, slices in tracks_of(events).items()} == {
        "accelerator 0 send over node": 3,
        "accelerator 0 send over cluster": 3,
        "accelerator 1 send over cluster": 3,
        "accelerator 1 receive over node": 3,
        "accelerator 4 receive over cluster": 6,
    }


def test_slices_tell_the_transfer() -> None:
    events = events_of(module_of(chain()))
    far = next(e for e in tracks_of(events)["accelerator 4 receive over cluster"] if e["args"]["value"] == "a")
    assert (far["name"], nanoseconds(far["dur"])) == ("a to 4:5", 50)
    assert far["args"] == {
        "value": "a",
        "bytes": 20,
        "link": "cluster",
        "from": "0:1",
        "to": "4:5",
        "micro-batch": far["args"]["micro-batch"],
        "start_ns": 50,
        "landing_ns": 50,
        "time_ns": 50,
    }
    # A transfer stands where the schedule has it, beside the operators.
    a = next(e for e in events if e["name"] == "a" and e["args"]["micro-batch"] == far["args"]["micro-batch"])
    assert nanoseconds(far["ts"]) - nanoseconds(a["ts"]) == 50


def routes(events: list[Event]) -> list[tuple[str, str, int]]:
    """Every arrow, as the names of the slices it joins and the ns from its tail to its head."""
    slices = [e for e in events if e["ph"] == "X" and e["cat"] != "micro-batch"]

    def at(e: Event) -> str:
        here = [x for x in slices if x["tid"] == e["tid"] and x["ts"] <= e["ts"] < x["ts"] + x["dur"]]
        return f"{'>' if here[0]['pid'] == 2 else ''}{here[0]['name']}"

    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    return [
        (at(e), at(ends[e["id"]]), nanoseconds(ends[e["id"]]["ts"]) - nanoseconds(e["ts"]))
        for e in events
        if e["ph"] == "s"
    ]


def test_arrows_go_through_transfers() -> None:
    assert set(routes(events_of(module_of(chain()), periods=6))) == {
        ("a", ">a to 1:2", 1),
        (">a to 1:2", ">a to 1:2", 24),
        (">a to 1:2", "b", 1),
        ("a", ">a to 4:5", 1),
        (">a to 4:5", ">a to 4:5", 49),
        (">a to 4:5", "c", 131),
        ("b", ">b to 4:5", 36),
        (">b to 4:5", ">b to 4:5", 29),
        (">b to 4:5", "c", 1),
    }


def test_arrows_of_copies_and_states() -> None:
    found = routes(events_of(module_of(COPIES), periods=6))
    assert set(found) == {
        ("a", ">a to 1:2", 1),
        (">a to 1:2", ">a to 1:2", 24),
        (">a to 1:2", "b", 1),
        ("a", "b", 26),  # on the same set nothing moves
        ("b", ">b to 2:3", 1),
        (">b to 2:3", ">b to 2:3", 14),
        (">b to 2:3", "c", 6),
    }


def test_copies_out_and_in_are_two_slices() -> None:
    events = events_of(buffered(), periods=6)
    tracks = tracks_of(events)
    assert list(tracks) == ["accelerator 0 copy out", "accelerator 1 copy in", "accelerator 2 copy in"]
    # One copy out serves both.
    assert {e["name"] for e in tracks["accelerator 0 copy out"]} == {"a to 1:2, 2:3"}
    assert {nanoseconds(e["dur"]) for e in tracks["accelerator 0 copy out"]} == {25}
    assert set(routes(events)) == {
        ("a", ">a to 1:2, 2:3", 1),
        (">a to 1:2, 2:3", ">a to 1:2", 60 + 24 - 30),
        (">a to 1:2, 2:3", ">a to 2:3", 140 + 24 - 30),
        (">a to 1:2", "b", 1),
        (">a to 2:3", "c", 6),
    }


def test_shared_links_have_lanes() -> None:
    tracks = tracks_of(events_of(shared()))
    assert [e["name"] for e in tracks["accelerator 0 send over node"]] == ["a to 1:2"] * 3
    assert [e["name"] for e in tracks["accelerator 0 send over node (2)"]] == ["a to 2:3"] * 3
    assert "accelerator 1 receive over node (2)" not in tracks


def test_ports_that_always_act_alike_share_a_track(
    build: Build, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = [operator("a", [], 5, [range(4)], 0, results=[8]), operator("b", ["a"], 5, [range(4, 12)], 20)]
    module = build(operators, 10, 12)
    reserve(module, "a", 0, [range(4, 12)], 8, 3)
    assert len(tracks_of(events_of(module))) == 12
    monkeypatch.setattr("compiler.targets.perfetto_links.MOST_SLICES", 20)
    events = events_of(module)
    check_trace(events)
    assert list(tracks_of(events)) == ["accelerators 0:4 send over all", "accelerators 4:12 receive over all"]
    assert trace_events.MOST_SLICES > 20


@relaxed
@given(data=st.data())
def test_slices_never_overlap(build: Build, operator: Any, data: st.DataObject) -> None:
    """Whatever is reserved when: tracks hold slices side by side, and every transfer of the window is there."""
    places = [[[0]], [[1, 2]], [[0, 1, 2]], [[3], [4, 5][:1]]]
    operators: list[Any] = []
    for v in range(4):
        time = data.draw(st.integers(1, 9))
        operators.append(
            operator(f"v{v}", [f"v{v - 1}"] if v else [], time, data.draw(st.sampled_from(places)), 20 * v, [5])
        )
    module = build(operators, 30, 6)
    for v in range(3):
        begin = 20 * v + 10
        for _ in range(data.draw(st.integers(0, 3))):
            landing = begin + data.draw(st.integers(0, 12))
            reserve(module, f"v{v}", 0, operators[v + 1].sets, begin, data.draw(st.integers(1, 9)), landing)
    events = events_of(module)
    spans: dict[int, int] = {}
    shown: set[tuple[str, int]] = set()
    for e in (e for e in events if e.get("cat") == "transfer" and e["ph"] == "X"):
        assert nanoseconds(e["ts"]) >= spans.get(e["tid"], 0)
        spans[e["tid"]] = nanoseconds(e["ts"]) + nanoseconds(e["dur"])
        shown.add((e["name"].split()[0], e["args"]["micro-batch"]))
    view = view_of(module)
    low = max(0, -(-max([t.end for t in view.tasks] + [m.ready for m in view.moves]) // 30)) * 30
    every = instances(view, Fraction(low), Fraction(low + 30 * max(3, view.rounds)), first=0)
    assert shown >= {
        (view.tasks[x.move.producer].name, x.microbatch) for x in every if any(occupied(view, x.move, x.microbatch))
    }


# --- JSON ------------------------------------------------------------------------------------


def test_json_matches_its_schema(module: ModuleOp) -> None:
    jsonschema.Draft202012Validator(schema()).validate(json.loads(emitter("json")(module)))


def test_json_lists_transfers_and_links() -> None:
    document = json.loads(emitter("json")(module_of(chain())))
    assert document["version"] == 5
    assert document["platform"]["transfers"] == "overlapped"
    assert document["platform"]["links"][1] == {
        "name": "cluster",
        "size": 8,
        "latency": 10,
        "bandwidth": 500_000_000,
        "links": 1,
        "topology": "switch",
        "shape": [],
        "duplex": True,
        "shared": False,
    }
    assert document["transfers"][1] == {
        "producer": "a",
        "result": 0,
        "targets": [[4]],
        "link": "cluster",
        "start": 50,
        "time": 50,
        "landing": 50,
        "bytes": 20,
        "sharded": False,
    }
    assert {"link": "cluster", "kind": "receive", "accelerators": [4], "load": 0.8} in document["link_loads"]
    assert len(document["link_loads"]) == 5
    assert not [a for a in document["accelerators"] if "standstill" in a]


def test_json_tells_when_accelerators_stand_still() -> None:
    document = json.loads(emitter("json")(buffered()))
    assert [a.get("standstill") for a in document["accelerators"]] == [0.25, 0.25, 0.25, *[None] * 5]
    assert document["link_loads"] == []
    assert [t["landing"] for t in document["transfers"]] == [60, 140]


def test_json_has_a_line_for_each_transfer() -> None:
    before, after = (emitter("json")(module_of(chain(far=far))).splitlines() for far in (50, 51))
    changed = [line for line in after if line not in before and '"producer"' in line]
    assert [json.loads(line.strip().rstrip(","))["time"] for line in changed] == [51]


# --- summary ---------------------------------------------------------------------------------


def summary_of(module: ModuleOp) -> str:
    return " ".join(emitter("summary")(module, width=120).split())


def test_summary_has_a_row_for_each_level() -> None:
    text = summary_of(module_of(chain()))
    for expected in [
        "transfers 50 B cross between accelerator sets per micro-batch",
        "link node 1 transfer, 20 B per micro-batch; busy for at most 25.0 % of the period, into accelerator 1",
        "link cluster 2 transfers, 30 B per micro-batch; busy for at most 80.0 % of the period, into accelerator 4",
        "critical (*): accelerator 1, busy for 90.00 % of the period; longest operators there: b",
    ]:
        assert expected in text
    assert "standstill" not in text


def test_summary_names_a_critical_link() -> None:
    text = summary_of(module_of(chain(b=60, far=65)))
    assert (
        "critical: link cluster, into accelerator 4, busy for 95.00 % of the period; longest transfers there: "
        "a to 4:5 65 ns, b to 4:5 30 ns. The busiest accelerators (*) are 1:2, busy for 60.00 % of the period"
    ) in text
    assert (
        "> The links of 'cluster' are busy for up to 95.0 % of the period, accelerators for at most 60.0 %: fewer, "
        "wider stages, or --max-crossing below 50 B, move less."
    ) in text


def test_links_that_are_free_most_of_the_time_are_not_blamed() -> None:
    analysis = Analysis(module_of(chain(b=60), period=120))
    assert [r.first for r in analysis.critical_links] == [4]
    assert not any("max-crossing" in s for s in analysis.advice())
    assert Analysis(module_of(chain())).critical_links == ()


def test_advice_where_no_period_is_shorter() -> None:
    module = module_of(chain(b=60, far=65))
    text = str(module).replace("bound 90 by", "bound 100 by")
    advice = Analysis(parse_ir(new_context(), text, "test.mlir")).advice()
    assert advice[0] == "No period is shorter (area), but with faster links or less to move over 'cluster'."


def test_summary_counts_what_stops_accelerators() -> None:
    text = summary_of(buffered())
    assert "standstill mean 9.4 %, max 25.0 % of the period on accelerator 0, for transfers" in text
    assert "link node 2 transfers, 40 B per micro-batch critical" not in text
    assert "critical (*): accelerator 1, busy for 65.00 % of the period (25.0 % for transfers)" in text
    assert "of the machine's time 79.4 % is idle, 9.4 % goes to transfers that stop accelerators." in text


@pytest.mark.parametrize("width", [60, 100])
def test_summary_fits_its_width(module: ModuleOp, width: int) -> None:
    assert max(map(len, emitter("summary")(module, width=width).splitlines())) <= width


# --- SVG -------------------------------------------------------------------------------------


def drawn(svg: str) -> list[tuple[str, dict[str, float]]]:
    """Tooltip and geometry of what moves."""
    return [
        (title.text or "", {k: float(rect.attrib[k]) for k in ("x", "y", "width", "height")})
        for rect in ET.fromstring(svg).iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None and re.search("leaves|arrives", title.text or "")
    ]


def test_lanes_stand_beside_the_rows() -> None:
    svg = emitter("svg")(module_of(chain()))
    bars = drawn(svg)
    sent = next(r for t, r in bars if t.startswith("a to 4:5\nmicro-batch n,") and "leaves" in t)
    lands = next(r for t, r in bars if t.startswith("a to 4:5\nmicro-batch n,") and "arrives" in t)
    assert (sent["x"], sent["width"]) == (lands["x"], lands["width"])
    # 50 of the 140 ns in the window, which is 1280 - 166 - 112 pixels wide.
    assert sent["width"] == pytest.approx(1002 * 50 / 140, abs=0.1)
    tip = next(t for t, _ in bars if t.startswith("a to 4:5\nmicro-batch n,") and "leaves" in t)
    assert tip.splitlines()[1:] == [
        "micro-batch n, 20 B from 0:1 over cluster",
        "leaves 50 ns to 100 ns: 50 ns, 50.0 % of the period",
    ]
    # One group of four accelerators is above the other; each has a lane below it for what leaves.
    assert sent["y"] < lands["y"]
    assert "thin lanes: what arrives above" in svg


def test_bars_of_a_lane_never_overlap(module: ModuleOp) -> None:
    bars = sorted((r for _, r in drawn(emitter("svg")(module))), key=lambda r: r["x"])
    last: dict[tuple[float, float], float] = {}
    for r in bars:
        key = (r["y"], r["height"])
        assert r["x"] >= last.get(key, 0.0) - 0.11
        last[key] = r["x"] + r["width"]


def test_arrows_join_what_leaves_and_what_arrives() -> None:
    svg = emitter("svg")(module_of(chain()))
    root = ET.fromstring(svg)
    paths = [p.attrib["d"] for p in root.iter(f"{SVG}path") if "marker-end" in p.attrib]
    view = view_of(module_of(chain()))
    inside = [
        x for x in instances(view, Fraction(-20), Fraction(120)) if x.sent >= -20 and x.landed + x.move.time <= 120
    ]
    assert len(paths) == len(inside) > 2
    bars = drawn(svg)
    for path in paths:
        x, y, *_, end, goal = map(float, re.findall(r"-?[\d.]+", path))
        assert any(
            r["x"] <= x <= r["x"] + r["width"] and r["y"] - 0.1 <= y <= r["y"] + r["height"] + 0.1 for _, r in bars
        )
        assert any(
            r["x"] <= end <= r["x"] + r["width"] and r["y"] - 0.1 <= goal <= r["y"] + r["height"] + 0.1
            for t, r in bars
            if "arrives" in t
        )


def test_what_stops_accelerators_is_striped_in_their_rows() -> None:
    svg = emitter("svg")(buffered())
    bars = [(t, r) for t, r in drawn(svg) if "micro-batch n," in t]
    # One copy out, two copies in, at least as tall as a row.
    assert [
        t.split("\n")[0] + (" out" if "leaves" in t else " in") for t, _ in sorted(bars, key=lambda b: b[1]["y"])
    ] == [
        "a to 1:2 out",
        "a to 1:2 in",
    ]
    assert "striped: accelerators stand still while it leaves, and later while it arrives" in svg
    assert "at both ends meanwhile" in emitter("svg")(blocking())
    assert "thin lanes" not in svg


def test_many_transfers_become_busy_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(chain())
    chart = Chart.of(view_of(module))
    pixel = (chart.high - chart.low) / 1000
    single = gantt_links.lanes(chart, pixel)
    assert not any(lane.busy for lane in single.values())
    monkeypatch.setattr(gantt_links, "MOST_BARS", 3)
    monkeypatch.setattr(gantt_links, "MOST_ARROWS", 2)
    for key, lane in gantt_links.lanes(chart, pixel).items():
        assert not lane.bars
        time = sum((b.mean * (b.end - b.begin) for b in lane.busy), Fraction(0))
        assert time == sum((b.end - b.begin for b in single[key].bars), Fraction(0))
    svg = emitter("svg")(module)
    assert "too many for arrows" in svg
    assert "grey: the darker the more at once" in svg


def test_many_standstills_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    chart = Chart.of(view_of(blocking()))
    single = list(gantt_links.stops(chart, Fraction(1)))
    monkeypatch.setattr(gantt_links, "MOST_BARS", 5)
    joined = list(gantt_links.stops(chart, Fraction(1)))
    assert len(joined) <= 5 < len(single)
    assert sum(len(bar.transfers) for _, bar in joined) == len(single)


# --- without transfers -----------------------------------------------------------------------


@pytest.mark.parametrize("target", ["perfetto", "svg", "summary"])
def test_nothing_is_said_of_links_without_transfers(target: str) -> None:
    body = "\n".join(line for line in chain().splitlines() if "reserve" not in line)
    text = emitter(target)(module_of(body))
    for word in ("link", "arrives", "thin lanes", "standstill", '"pid":2'):
        assert word not in text


# --- what the compiler schedules -------------------------------------------------------------


def test_transfers_that_the_compiler_reserves(taktc: Any, examples: Any) -> None:
    given = (examples / "research_dag.takt", "--platform", examples / "tiny_board.takt", "--quiet")
    result = taktc(*given)
    module = parse_ir(new_context(), result.out, "test.mlir")
    view = view_of(module)
    assert view.moves
    assert sum(level.size for level in levels(view)) == view.crossing
    assert all(load <= 1 for load in loads(view).values())
    assert all(readers_of(view, move) for move in view.moves)
    events = events_of(module)
    check_trace(events)
    # Nothing is over capacity, so that no track needs a second one.
    assert tracks_of(events)
    assert not any(name.endswith("(2)") for name in tracks_of(events))
    jsonschema.Draft202012Validator(schema()).validate(json.loads(emitter("json")(module)))
