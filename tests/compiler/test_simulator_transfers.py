"""Transfers in the simulator: by hand in each mode, and on random schedules against the checker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr

from compiler.simulate import SimulationError, self_timed, time_triggered
from compiler.view import ScheduleView, view_of
from dialects.communication import SendRecvOp
from dialects.levels import check_level
from dialects.links import LinkAttr
from dialects.network import Link, Network, Resource, Way
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform

Build = Callable[..., ModuleOp]


def link(name: str, size: int, latency: int = 5, links: int = 1, **words: str) -> LinkAttr:
    """A link of one byte a nanosecond."""
    attributes = {k: StringAttr(v) for k, v in words.items()}
    return LinkAttr(StringAttr(name), IntAttr(size), IntAttr(latency), IntAttr(10**9), IntAttr(links), **attributes)


def rules(module: ModuleOp) -> set[str]:
    """The rules on times and memory that a schedule breaks; modules of these tests have no stages."""
    broken = {str(d.rule) for d in check_level(module, "scheduled")}
    return broken - {"stages-numbered", "stage-present", "starts", "bound"}


def peaks(module: ModuleOp) -> dict[int, int]:
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    return {p: params + live for p, (params, live) in peak_memory(graph, platform).items()}


def fails(module: ModuleOp, fault: str, message: str) -> None:
    with pytest.raises(SimulationError, match=message) as error:
        time_triggered(view_of(module))
    assert error.value.fault == fault


@pytest.fixture
def chain(build: Build, operator: Any) -> Callable[..., ModuleOp]:
    """a on 0 until 10, its 20 bytes to 1 until 35, b there until 45."""

    def make(*moves: tuple[Any, ...], b: int = 35, sets: Any = ((1,),), pattern: int = 30, **more: Any) -> ModuleOp:
        operators = [
            operator("a", [], 10, [[0]], 0, results=[20], output=20),
            operator("b", ["s" if "states" in more else "a"], 10, [list(s) for s in sets], b, output=3),
            *more.pop("others", []),
        ]
        return build(operators, pattern, 4, moves=moves, **{"links": [link("all", 4)], **more})

    return make


GOOD = ("a", [[1]], "all", 10, 25)


def test_a_transfer_runs_beside_computing(chain: Callable[..., ModuleOp]) -> None:
    module = chain(GOOD)
    view = view_of(module)
    assert rules(module) == set()
    assert view.link_load == {"all": Fraction(25, 30)}
    assert view.link_bytes == {"all": 20}
    report = time_triggered(view)
    assert report.steady
    assert (report.period, report.latency_max, report.in_flight) == (30, 45, 2)
    assert report.load == {0: Fraction(1, 3), 1: Fraction(1, 3), 2: 0, 3: 0}
    # a's result leaves until 35, 5 ns into the next period; it is received during [10, 45), beside 3 bytes of b.
    assert report.peak_memory == peaks(module) == {0: 40, 1: 43, 2: 0, 3: 0}
    assert time_triggered(view_of(chain(GOOD, memory=43))).steady
    fails(chain(GOOD, memory=42), "memory", "accelerator 1 needs 43 B")


def test_explicit_transfers_are_viewed_as_what_was_reserved(chain: Callable[..., ModuleOp]) -> None:
    module = chain(GOOD)
    before = view_of(module)
    graph = find_graph(module)
    assert graph is not None
    (reserve,) = graph.transfers()
    a, b = graph.operators()
    sent = SendRecvOp.make(a.results[0], [[1]], "all", 10, 25)
    graph.body.block.insert_op_after(sent, a)
    reserve.detach()
    b.operands[0] = sent.arrived
    graph.level = StringAttr("communicating")
    assert view_of(module) == before
    assert rules(module) == set()


def test_levels_are_loaded_one_by_one(chain: Callable[..., ModuleOp], operator: Any) -> None:
    links = [link("pair", 2, 3), link("all", 4, 5)]
    others = [operator("c", ["a"], 1, [[2], [3]], 60)]
    module = chain(("a", [[1]], "pair", 10, 25), ("a", [[2], [3]], "all", 35, 25), links=links, others=others)
    assert rules(module) == set()
    view = view_of(module)
    # A pair's ports are used 25 ns of 30, and so are those of all, on the sender's side.
    assert view.link_load == {"pair": Fraction(25, 30), "all": Fraction(25, 30)}
    assert view.link_bytes == {"pair": 20, "all": 20}
    assert time_triggered(view).peak_memory == peaks(module)


def test_faults_of_transfers(chain: Callable[..., ModuleOp], operator: Any) -> None:
    fails(chain(), "data", "'b' of micro-batch 0 reads 'a' on accelerator 1, but nothing moves it there")
    late = "'b' of micro-batch 0 starts at 34 ns on accelerator 1, but its operand from the transfer of 'a' to"
    fails(chain(GOOD, b=34), "data", late)
    early = r"the transfer of 'a' to \[1:2\] of micro-batch 0 starts at 9 ns, but its operand from 'a' is ready at 10"
    fails(chain(("a", [[1]], "all", 9, 25)), "data", early)
    short = r"the transfer of 'a' of micro-batch 0 to \[1:2\] takes 25 ns, but 24 ns are reserved"
    fails(chain(("a", [[1]], "all", 10, 24)), "link", short)
    fails(chain((*GOOD, 12), b=37), "link", "leaves at 10 ns and lands at 12 ns without a buffer")
    busy = (
        r"the transfer of 'a' to \[1:2\] of micro-batch 1 starts at 34 ns on the receive port of accelerator 1 "
        r"\(all\), which is busy with the transfer of 'a' to \[1:2\] of micro-batch 0 until 35 ns"
    )
    fails(chain(GOOD, pattern=24), "link", busy)
    gone = "the transfer of 'a' goes to accelerator 7, but the platform has 4"
    fails(chain(("a", [[7]], "all", 10, 25)), "machine", gone)


def test_two_transfers_share_a_link_of_two(chain: Callable[..., ModuleOp], operator: Any) -> None:
    """c's value of 1 byte goes from the same port, while a's is on its way."""
    others = [operator("c", ["a"], 1, [[0]], 10, results=[1]), operator("d", ["c"], 1, [[2]], 17)]
    moves = (GOOD, ("c", [[2]], "all", 11, 6))
    fails(chain(*moves, others=others), "link", "'c' .* busy with the transfer of 'a'")
    shared = chain(*moves, others=others, links=[link("all", 4, links=2, sharing="shared")])
    assert rules(shared) == set()
    view = view_of(shared)
    assert view.link_load == {"all": Fraction(31, 60)}
    assert time_triggered(view).steady
    report = self_timed(view)
    assert (report.period, report.latency_max) == (30, 45)


def test_blocking_transfers_stop_both_ends(chain: Callable[..., ModuleOp]) -> None:
    module = chain(GOOD, pattern=35, transfers="blocking")
    assert rules(module) == set()
    assert time_triggered(view_of(module)).period == self_timed(view_of(module)).period == 35
    message = r"'a' of micro-batch 1 starts at 34 ns on accelerator 0, which is busy with the transfer .* until 35 ns"
    fails(chain(GOOD, pattern=34, transfers="blocking"), "busy", message)
    # The order alone then needs 35 ns as well.
    assert self_timed(view_of(chain(GOOD, pattern=34, transfers="blocking"))).period == 35


def test_buffered_transfers_leave_once_and_land_later(chain: Callable[..., ModuleOp], operator: Any) -> None:
    moves = ("a", [[1]], "all", 10, 25, 35), ("a", [[2]], "all", 10, 25, 40)
    spec = {"b": 60, "others": [operator("c", ["a"], 5, [[2]], 65)], "transfers": "buffered"}
    module = chain(*moves, pattern=35, **spec)
    assert rules(module) == set()
    view = view_of(module)
    assert view.link_load == {"all": 0}
    assert view.link_bytes == {"all": 40}
    report = time_triggered(view)
    assert report.peak_memory == peaks(module)
    assert report.period == self_timed(view).period == 35
    fails(chain(*moves, pattern=34, **spec), "busy", "which is busy with the copy of 'a' into its buffer")
    early = ("a", [[1]], "all", 10, 25, 34)
    message = "the transfer of 'a' .* starts at 34 ns, but its operand from the copy of 'a' into its buffer is ready"
    fails(chain(early, moves[1], pattern=35, **spec), "data", message)
    met = r"the transfer of 'a' to \[1:2\] of micro-batch 1 starts at 70 ns on accelerator 1, which is busy with 'b'"
    fails(chain(*moves, pattern=35, **{**spec, "b": 62}), "busy", met)


def test_copies_turn_and_states_wait(chain: Callable[..., ModuleOp]) -> None:
    module = chain(("a", [[2], [1]], "all", 10, 25), sets=((1,), (2,)), b=5, states={"s": ("a", 1)})
    assert rules(module) == set()
    view = view_of(module)
    for report in (time_triggered(view), self_timed(view)):
        assert report.steady
        assert report.period == 30
    assert time_triggered(view).peak_memory == peaks(module)
    late = "'b' of micro-batch 1 starts at 34 ns on accelerator 2, but its operand from the transfer of 'a' .* 0 is"
    module = chain(("a", [[2], [1]], "all", 10, 25), sets=((1,), (2,)), b=4, states={"s": ("a", 1)})
    fails(module, "data", late)
    unturned = chain(("a", [[1], [2]], "all", 10, 25), sets=((1,), (2,)), b=5, states={"s": ("a", 1)})
    fails(unturned, "data", "'b' of micro-batch 1 reads 'a' on accelerator 2, but nothing moves it there")


def test_a_turn_that_stays_occupies_nothing(chain: Callable[..., ModuleOp]) -> None:
    """b's copies are on 0 and 1: every other micro-batch stays on 0, where b begins as late as on 1."""
    module = chain(("a", [[0], [1]], "all", 10, 25), sets=((0,), (1,)), pattern=20, b=50)
    assert rules(module) == set()
    view = view_of(module)
    assert view.link_load == {"all": Fraction(25, 40)}
    assert view.link_bytes == {"all": 10}
    assert time_triggered(view).peak_memory == peaks(module)
    assert self_timed(view).period == 20


def test_self_timed_moves_as_soon_as_it_can_in_the_order_given(build: Build, operator: Any) -> None:
    """Both values leave accelerator 0; the order lets that of b go first, though a ends before."""
    operators = [
        operator("a", [], 10, [[0]], 0, results=[20]),
        operator("b", [], 10, [[0]], 10, results=[20]),
        operator("c", ["a", "b"], 10, [[1]], 90),
    ]

    def view(a: int, b: int) -> ScheduleView:
        moves = [("a", [[1]], "all", a, 25), ("b", [[1]], "all", b, 25)]
        return view_of(build(operators, 100, 2, links=[link("all", 2)], moves=moves))

    assert time_triggered(view(60, 30)).latency_max == 100
    assert self_timed(view(60, 30)).latency_max == 20 + 25 + 25 + 10
    assert self_timed(view(30, 60)).latency_max == 10 + 25 + 25 + 10


def test_shares_are_received_of_what_is_sharded(build: Build, operator: Any) -> None:
    operators = [
        operator("a", [], 10, [[0, 1]], 0, results=[21], sharded=[0]),
        operator("b", ["a"], 10, [[2, 3]], 30),
    ]
    for links, moves in (([link("all", 4)], [("a", [[2, 3]], "all", 10, 16)]), ([], [])):
        module = build(operators, 40, 4, links=links, moves=moves)
        assert rules(module) == set()
        assert time_triggered(view_of(module)).peak_memory == peaks(module) == {0: 0, 1: 0, 2: 11, 3: 11}


# --- random schedules ------------------------------------------------------------------------------

ACCELERATORS = 5
LAP = 6
"""All numbers of turns (1, 2, 3, 6) divide it."""

relaxed = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass
class Plan:
    """Operators (as dictionaries) and moves on a circle of ``LAP`` periods, placed where resources are free."""

    period: int
    links: list[LinkAttr]
    mode: str
    operators: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = Network(tuple(Link.of(attr) for attr in self.links), self.mode)
        self.used: dict[Resource, list[int]] = defaultdict(lambda: [0] * (LAP * self.period))

    def place(self, ready: int, time: int, held: list[frozenset[Resource]]) -> int:
        """The first start from ``ready`` on at which what is held in each turn is free."""
        span = LAP * self.period

        def moments(start: int) -> list[tuple[Resource, int]]:
            return [(r, (start + i * self.period + t) % span) for i in range(LAP) for r in held[i] for t in range(time)]

        assume(all(time <= span for _ in held))
        for start in range(ready, ready + span):
            wanted: dict[tuple[Resource, int], int] = defaultdict(int)
            for moment in moments(start):
                wanted[moment] += 1
            if all(self.used[r][t] + n <= self.network.capacity(r) for (r, t), n in wanted.items()):
                for (r, t), n in wanted.items():
                    self.used[r][t] += n
                return start
        assume(False)
        raise AssertionError

    def add_moves(self, v: int, destinations: list[tuple[tuple[int, ...], ...]]) -> None:
        """Move the result of operator ``v`` to each destination as soon as possible."""
        op = self.operators[v]
        end, found = op["start"] + op["time"], []
        for there in destinations:
            ways = [self.way(op, i, there) for i in range(LAP)]
            found.append((there, ways, max(way.time for way in ways)))
        buffered = self.mode == "buffered" and found
        longest = max((time for *_, time in found), default=0)
        left = end
        if buffered:
            senders = [frozenset[Resource]().union(*(ways[i].sender for _, ways, _ in found)) for i in range(LAP)]
            left = self.place(end, longest, senders)
        for there, ways, time in found:
            if buffered:
                landing = self.place(left + longest, longest, [way.receiver for way in ways])
                start, time = left, longest
            else:
                start = landing = self.place(end, time, [way.sender | way.receiver for way in ways])
            name = self.links[max(way.level for way in ways)].group.data
            move = {"v": v, "targets": there, "link": name, "start": start, "time": time, "landing": landing}
            self.moves.append(move)

    def way(self, op: dict[str, Any], i: int, there: tuple[tuple[int, ...], ...]) -> Way:
        home, target = op["sets"][i % len(op["sets"])], there[i % len(there)]
        return self.network.way(op["size"], op["sharded"], home, target)

    def ready(self, u: int, there: tuple[tuple[int, ...], ...]) -> int:
        """When a result may be read in a destination."""
        op = self.operators[u]
        arrivals = [m["landing"] + m["time"] for m in self.moves if m["v"] == u and m["targets"] == there]
        return max([op["start"] + op["time"], *arrivals])

    def build(self, build: Build, operator: Any, **more: Any) -> ModuleOp:
        states = {f"s{u}.{d}": (f"v{u}", d) for op in self.operators for u, d in op["reads"] if d}
        listed = [
            operator(
                f"v{v}",
                [f"s{u}.{d}" if d else f"v{u}" for u, d in op["reads"]],
                op["time"],
                [list(s) for s in op["sets"]],
                op["start"],
                results=[op["size"]],
                output=op["output"],
                sharded=[0] if op["sharded"] else [],
            )
            for v, op in enumerate(self.operators)
        ]
        fields = ("targets", "link", "start", "time", "landing")
        moves = [(f"v{m['v']}", *(m[f] for f in fields)) for m in self.moves]
        platform = {"links": self.links, "transfers": self.mode, "moves": moves, "states": states}
        return build(listed, self.period, ACCELERATORS, **{**platform, **more})


def destination(op: dict[str, Any], distance: int) -> tuple[tuple[int, ...], ...]:
    sets = op["sets"]
    return tuple(sets[(i + distance) % len(sets)] for i in range(len(sets)))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    def level(name: str, size: int) -> LinkAttr:
        topology = draw(st.sampled_from(["switch", "switch", "ring", "full"]))
        duplex, sharing = draw(st.sampled_from(["full", "half"])), draw(st.sampled_from(["exclusive", "shared"]))
        latency, links = draw(st.integers(0, 2)), draw(st.integers(1, 2))
        return link(name, size, latency, links, topology=topology, duplex=duplex, sharing=sharing)

    mode = draw(st.sampled_from(["overlapped", "blocking", "buffered"]))
    plan = Plan(draw(st.integers(12, 40)), [level("inner", 2), level("outer", ACCELERATORS)], mode)
    count = draw(st.integers(2, 5))
    for v in range(count):
        copies = draw(st.sampled_from([1, 1, 1, 2, 3]))
        width = draw(st.integers(1, 2 if copies < 3 else 1))
        members = draw(st.permutations(range(ACCELERATORS)))
        sets = [tuple(sorted(members[c * width : (c + 1) * width])) for c in range(copies)]
        reads = set(draw(st.lists(st.integers(0, v - 1), max_size=2))) if v else set()
        carried = draw(st.sets(st.tuples(st.integers(0, count - 1), st.integers(1, 2)), max_size=1))
        reads = [*((u, 0) for u in sorted(reads)), *sorted(carried)]
        time, size, output = draw(st.integers(0, 5)), draw(st.integers(0, 9)), draw(st.integers(0, 9))
        sharded = draw(st.booleans())
        op = {"time": time, "sets": sets, "reads": reads, "size": size, "output": output, "sharded": sharded}
        plan.operators.append(op)
    for v, op in enumerate(plan.operators):
        readers = [(other, d) for other in plan.operators for u, d in other["reads"] if u == v]
        ready = max([0, *(plan.ready(u, destination(op, 0)) for u, d in op["reads"] if not d)])
        ready += draw(st.integers(0, 5)) if v else 0
        held = [
            frozenset(Resource("accelerator", -1, p, p) for p in op["sets"][i % len(op["sets"])]) for i in range(LAP)
        ]
        op["start"] = plan.place(ready, op["time"], held)
        there = dict.fromkeys(destination(other, d) for other, d in readers if op["size"])
        plan.add_moves(v, [t for t in there if any(plan.way(op, i, t).moves for i in range(LAP))])
    for op in plan.operators:
        copies = len(op["sets"])
        for number, (u, d) in enumerate(op["reads"]):
            late = plan.ready(u, destination(op, d)) - op["start"] - d * plan.period
            if d and late > 0:  # whole turns later it is read in the same place
                op["reads"][number] = (u, d + -(-late // (plan.period * copies)) * copies)
    return plan


@relaxed
@given(plan=plans())
def test_valid_schedules_run(plan: Plan, build: Build, operator: Any) -> None:
    module = plan.build(build, operator)
    event(f"{plan.mode}, {min(3, len(plan.moves))} moves")
    assert rules(module) == set()
    view = view_of(module)
    report = time_triggered(view)
    assert report.steady
    assert report.period == view.period
    assert report.latency_max == view.latency
    assert report.peak_memory == peaks(module)
    assert sum(view.link_bytes.values()) >= view.crossing
    assert max(view.link_load.values()) <= 1
    ordered = self_timed(view)
    assert ordered.steady
    assert ordered.period <= view.period
    assert ordered.latency_max <= view.latency
    most = max(report.peak_memory.values())
    if most > 1:
        tight = plan.build(build, operator, memory=most - 1)
        assert rules(tight) == {"memory"}
        with pytest.raises(SimulationError) as error:
            time_triggered(view_of(tight))
        assert error.value.fault == "memory"


@relaxed
@given(plan=plans(), data=st.data())
def test_broken_schedules_fail_where_the_checker_says_so(
    plan: Plan, data: st.DataObject, build: Build, operator: Any
) -> None:
    """Every change that the checker rejects stops the simulator, and no other."""
    assume(plan.moves)
    kind = data.draw(st.sampled_from(["leave", "land", "drop", "short", "operator", "period"]), label="kind")
    by = data.draw(st.integers(1, 9)) * data.draw(st.sampled_from([-1, 1]))
    move = data.draw(st.sampled_from(plan.moves))
    if kind == "leave":  # through a buffer all leave together
        together = [m for m in plan.moves if m["v"] == move["v"]] if plan.mode == "buffered" else [move]
        for m in together:
            m["start"], m["landing"] = max(0, m["start"] + by), max(0, m["landing"] + by)
    elif kind == "land":
        move["landing"] = max(0, move["landing"] + by)
        move["start"] = move["start"] if plan.mode == "buffered" else move["landing"]
    elif kind == "drop":
        plan.moves.remove(move)
    elif kind == "short":
        for m in plan.moves:
            m["time"] -= m["v"] == move["v"]
    elif kind == "operator":
        op = data.draw(st.sampled_from(plan.operators))
        op["start"] = max(0, op["start"] + by)
    else:
        plan.period = max(1, plan.period - abs(by))
    module = plan.build(build, operator)
    broken = rules(module)
    event(f"{kind}: {', '.join(sorted(broken))}")
    if not broken:
        assert time_triggered(view_of(module)).peak_memory == peaks(module)
        return
    with pytest.raises(SimulationError) as error:
        time_triggered(view_of(module))
    assert error.value.fault in ("data", "busy", "link")
