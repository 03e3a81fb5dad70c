"""The rules on transfers: by hand, and against an oracle that lists what is occupied at every nanosecond."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr

from dialects.communication import ReserveOp, SendRecvOp
from dialects.levels import check_level
from dialects.links import LinkAttr
from dialects.network import Network, Way
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform


def level(name: str, size: int, latency: int, **more: Any) -> LinkAttr:
    """A link of one byte a nanosecond."""
    links = IntAttr(more.get("links", 1))
    words = {k: StringAttr(more[k]) for k in ("topology", "duplex", "sharing") if k in more}
    return LinkAttr(StringAttr(name), IntAttr(size), IntAttr(latency), IntAttr(10**9), links, **words)


TWO = (level("node", 4, 2), level("cluster", 8, 5))


def found(module: ModuleOp) -> dict[str | None, list[str]]:
    by_rule: dict[str | None, list[str]] = {}
    for d in check_level(module):
        by_rule.setdefault(d.rule, []).append(d.message)
    return by_rule


# --- by hand -------------------------------------------------------------------------------------


@pytest.fixture
def chain(sketch: Callable[..., Any]) -> Callable[..., ModuleOp]:
    """a on [0:2] until 10, its 20 bytes to 4 until 35, b there until 45; the period is 40."""

    def build(
        *moves: tuple[Any, ...],
        b: int = 35,
        b_sets: Any = ((4,),),
        a_sets: Any = ((0, 1),),
        period: int = 40,
        links: Any = TWO,
        mode: str = "overlapped",
        sharded: Any = (),
        memory: int = 10**6,
        more: Any = (),
        distance: int = 0,
    ) -> ModuleOp:
        s = sketch(links=links, transfers=mode, memory=memory)
        s.stage(range(8))
        table = {k: (10, 0, 20, 0) for k in (1, 2)}
        read = s.state("s", distance, 20) if distance else None
        a = s.op("a", table=table, results=[20], stage=0, sets=a_sets, sharded=sharded)
        last = s.op("b", a if read is None else read, table=table, stage=0, sets=b_sets, start=b)
        for number, (sets, start) in enumerate(more):
            s.op(f"c{number}", a, table=table, stage=0, sets=sets, start=start)
        for move in moves:
            s.reserve(a, *move)
        if distance:
            s.leave("s", a)
        return s.module("scheduled", last, pattern=period)

    return build


GOOD = ([[4]], "cluster", 10, 25)


def test_a_reserved_transfer_is_accepted(chain: Callable[..., ModuleOp]) -> None:
    module = chain(GOOD)
    assert check_level(module) == []
    peaks = peak_memory(find_graph(module), find_platform(module))
    # a holds its 20 bytes until they have left, at 35; b receives them from 10 until 45, twice at once for 5 ns.
    assert peaks[0] == (0, 20)
    assert peaks[4] == (0, 20 + 20)
    later = chain(([[4]], "cluster", 20, 25), b=45)
    assert check_level(later) == []
    assert peak_memory(find_graph(later), find_platform(later))[0] == (0, 40), "from 0 until 45: twice at once"


def test_explicit_transfers_keep_the_same_rules(chain: Callable[..., ModuleOp]) -> None:
    module = chain(GOOD)
    graph = find_graph(module)
    assert graph is not None
    (reserve,) = (op for op in graph.body.block.ops if isinstance(op, ReserveOp))
    sent = SendRecvOp.make(reserve.moved, reserve.sets(), "cluster", 10, 25)
    reserve.detach()
    a, b = graph.operators()
    graph.body.block.insert_op_after(sent, a)
    b.operands[0] = sent.results[0]
    assert found(module) == {"nothing-later": ["the graph has a transfer already: takt.send_recv"]}
    graph.level = StringAttr("communicating")
    assert check_level(module, "scheduled") == []
    sent.properties["start"] = SendRecvOp.make(a.results[0], [[4]], "cluster", 9, 25).start
    assert {d.rule for d in check_level(module, "scheduled")} == {"transfer-start"}


def test_what_is_not_moved_is_missed(chain: Callable[..., ModuleOp]) -> None:
    (diagnostic,) = check_level(chain())
    assert diagnostic.rule == "transfers-needed"
    assert diagnostic.message == "'b' reads 'a' on [4:5], but no transfer moves it there from [0:2]"
    assert diagnostic.hint == "run the pass 'schedule-periodic' again"
    assert found(chain(links=())) == {}
    assert found(chain(b_sets=((0, 1),), b=10)) == {}


def test_what_is_not_needed_is_not_moved(chain: Callable[..., ModuleOp]) -> None:
    assert found(chain(GOOD, ([[5]], "cluster", 40, 25))) == {
        "transfers-needed": ["the transfer of 'a' to [5:6] serves no operator"],
        "links": [
            "the transfer of 'a' to [4:5] (start 10 ns, that is 10 ns to 35 ns) and the transfer of 'a' to [5:6] "
            "(start 40 ns, that is 0 ns to 25 ns) overlap on the send port of accelerator 0 (cluster) modulo the "
            "pattern of 40 ns"
        ],
    }
    doubled = found(chain(GOOD, ([[4]], "cluster", 40, 25), b=65, period=55))
    assert doubled == {"transfers-needed": ["the transfer of 'a' to [4:5] is there twice"]}
    assert list(found(chain(([[0, 1]], "node", 10, 25), b_sets=((0, 1),), b=10))) == ["transfers-needed"]
    assert "has no way to go" in found(chain(GOOD, links=()))["transfers-needed"][0]


def test_only_results_are_moved(chain: Callable[..., ModuleOp], sketch: Callable[..., Any]) -> None:
    s = sketch(links=TWO)
    s.stage(range(8))
    x = s.input("x", 5)
    s.op("a", x, stage=0, sets=[[0]])
    s.reserve(x, [[0]], "node", 0, 9)
    assert found(s.module("scheduled", pattern=100)) == {
        "transfers-needed": ["what a transfer moves is the result of an operator"]
    }


def test_values_without_bytes_are_not_moved(sketch: Callable[..., Any]) -> None:
    s = sketch(links=TWO)
    s.stage(range(8))
    a = s.op("a", table={1: 10}, stage=0, sets=[[0]])
    s.op("b", a, table={1: 10}, stage=0, sets=[[4]], start=10)
    assert found(s.module("scheduled", pattern=100)) == {}


@pytest.mark.parametrize(
    ("move", "rule", "message"),
    [
        (
            ([[4]], "node", 10, 25),
            "transfer-link",
            'the transfer of \'a\' to [4:5] is over "node", but the innermost level that joins its ends is "cluster"',
        ),
        (([[4]], "rack", 10, 25), "transfer-link", ""),
        (
            ([[4]], "cluster", 10, 24),
            "transfer-time",
            "the transfer of 'a' to [4:5] takes 24 ns, but its way takes 25 ns",
        ),
        (
            ([[4]], "cluster", 9, 25),
            "transfer-start",
            "the transfer of 'a' to [4:5] starts at 9 ns, before 'a' ends at 10 ns",
        ),
        (
            ([[4]], "cluster", 10, 25, 9),
            "transfer-start",
            "the transfer of 'a' to [4:5] starts at 10 ns but lands at 9 ns: there is no buffer between",
        ),
        (
            ([[4]], "cluster", 11, 25),
            "precedence",
            "'b' starts at 35 ns, before its operand 'a' has arrived at 36 ns (started at 0 ns)",
        ),
    ],
)
def test_transfers_by_hand(chain: Callable[..., ModuleOp], move: Any, rule: str, message: str) -> None:
    broken = found(chain(move))
    assert list(broken) == [rule]
    assert message in broken[rule][0]


def test_a_transfer_that_meets_its_own_next_run(chain: Callable[..., ModuleOp]) -> None:
    assert found(chain(GOOD, period=25)) == {}
    assert found(chain(GOOD, period=24))["links"] == [
        "the transfer of 'a' to [4:5] (start 10 ns, that is 10 ns to 11 ns of the next) meets its own next run on the "
        "send port of accelerator 0 (cluster) and 1 more modulo the pattern of 24 ns",
    ]
    several = tuple(replace_link(attr, links=3, sharing="shared") for attr in TWO)
    assert found(chain(GOOD, period=10, links=several)) == {}
    (message,) = found(chain(([[4]], "cluster", 10, 31), b=41, period=10, links=several))["links"]
    assert "on the send port of accelerator 0 (cluster) and 1 more modulo the pattern of 10 ns" in message


def replace_link(attr: LinkAttr, **more: Any) -> LinkAttr:
    return level(attr.group.data, attr.size.data, attr.latency.data, **more)


def test_one_transfer_serves_all_readers_of_a_destination(chain: Callable[..., ModuleOp]) -> None:
    assert found(chain(GOOD, period=50, more=[([[4]], 45), ([[0, 1]], 10)])) == {}
    two = ([[4]], "cluster", 10, 25), ([[5]], "cluster", 35, 25)
    assert found(chain(*two, period=50, more=[([[5]], 60)])) == {}
    both = ([[4]], "cluster", 10, 25), ([[5]], "cluster", 34, 25)
    assert list(found(chain(*both, period=50, more=[([[5]], 60)]))) == ["links"]


def test_copies_and_distances_turn_the_targets(chain: Callable[..., ModuleOp]) -> None:
    copies = {"b_sets": ((4,), (5,)), "period": 25}
    assert found(chain(([[4], [5]], "cluster", 10, 25), **copies)) == {}
    assert list(found(chain(([[5], [4]], "cluster", 10, 25), **copies))) == ["transfers-needed"]
    assert found(chain(([[5], [4]], "cluster", 10, 25), distance=1, **copies)) == {}
    assert found(chain(([[4], [5]], "cluster", 10, 25), distance=2, **copies)) == {}
    # Between copies of one operator and copies of another nothing is needed where they agree turn by turn.
    twins = {"a_sets": ((4,), (5,)), "b_sets": ((4,), (5,)), "period": 30}
    assert found(chain(**twins)) == {}
    assert found(chain(distance=2, **twins)) == {}
    swapped = ([[5], [4]], "node", 10, 22)
    assert found(chain(swapped, distance=1, **twins)) == {}
    assert found(chain(swapped, distance=1, b=1, **twins))["precedence"] == [
        "'b' starts at 1 ns, before its operand 'a' 1 micro-batch earlier has arrived at 2 ns (started at -30 ns)"
    ]


def test_a_turn_that_stays_occupies_nothing(chain: Callable[..., ModuleOp]) -> None:
    """a's copies are on 4 and 5, b on 4: only every other micro-batch moves, so 22 ns fit into periods of 20."""
    spec = {"a_sets": ((4,), (5,)), "b": 50, "period": 20}
    module = chain(([[4]], "node", 10, 22), **spec)
    assert found(module) == {}
    assert list(found(chain(**spec))) == ["transfers-needed"]
    # Of every 40 ns, accelerator 4 holds its own result in [0, 60), what it receives in [30, 80), and of each 20 b's
    # result in [50, 60).
    assert peak_memory(find_graph(module), find_platform(module))[4] == (0, 80)


def test_blocking_stops_both_ends(chain: Callable[..., ModuleOp]) -> None:
    """Accelerator 4 receives in [10, 35) and runs b in [35, 45), that is 45 ns less 10 of a period."""
    assert found(chain(GOOD, mode="blocking", period=35)) == {}
    assert found(chain(GOOD, mode="blocking", period=34))["transfer-exclusive"] == [
        "'a' (start 0 ns, that is 0 ns to 10 ns) and the transfer of 'a' to [4:5] (start 10 ns, that is 10 ns to 1 ns "
        "of the next) overlap on accelerator 0 modulo the pattern of 34 ns",
        "the transfer of 'a' to [4:5] (start 10 ns, that is 10 ns to 1 ns of the next) and 'b' (start 35 ns, that is 1 "
        "ns to 11 ns) overlap on accelerator 4 modulo the pattern of 34 ns",
    ]
    # Only the sender stands still, not all that hold the value.
    beside = [([[1]], 20)]
    second = ([[1]], "node", 50, 22)
    assert "transfer-exclusive" not in found(chain(GOOD, second, mode="blocking", period=200, more=beside))


def test_buffered_transfers_leave_once_and_land_later(chain: Callable[..., ModuleOp]) -> None:
    """The copy out holds accelerator 0 in [10, 35), the copies in hold 4 and 5."""
    four, five = ([[4]], "cluster", 10, 25, 35), ([[5]], "cluster", 10, 25, 40)
    spec = {"b": 60, "more": [([[5]], 65)], "mode": "buffered"}
    assert found(chain(four, five, period=35, **spec)) == {}
    assert list(found(chain(four, five, period=34, **spec))) == ["transfer-exclusive"]
    apart = found(chain(four, ([[5]], "cluster", 35, 25, 60), **{**spec, "more": [([[5]], 85)]}, period=100))
    assert apart == {
        "transfer-start": [
            "the transfer of 'a' to [5:6] leaves at 35 ns for 25 ns, the transfer of 'a' to [4:5] at 10 ns for 25 ns: "
            "one copy leaves for all"
        ]
    }
    early = found(chain(([[4]], "cluster", 10, 25, 34), b=60, mode="buffered", period=100))
    assert early == {"transfer-start": ["the transfer of 'a' to [4:5] lands at 34 ns, before it has left at 35 ns"]}


def test_shares_are_received_where_a_value_is_sharded(chain: Callable[..., ModuleOp]) -> None:
    """From [0:2] to [4:6]: 10 bytes from each to each; a third would be rounded up."""
    move, spec = ([[4, 5]], "cluster", 10, 15), {"b_sets": ((4, 5),), "sharded": [0], "b": 25, "period": 100}
    module = chain(move, **spec)
    assert found(module) == {}
    assert peak_memory(find_graph(module), find_platform(module))[4] == (0, 10 + 20)
    free = chain(**spec, links=())
    assert found(free) == {}
    assert peak_memory(find_graph(free), find_platform(free))[4] == (0, 10 + 20)
    # Whole, it would be cut and gathered: 10 bytes over the cluster and 10 in the node take 15 + 12 ns, not 20 + 5.
    assert found(chain(move, **{**spec, "sharded": ()}))["transfer-time"] == [
        "the transfer of 'a' to [4:6] takes 15 ns, but its way takes 25 ns"
    ]


@pytest.mark.parametrize("level", ["model", "moldable", "staged"])
def test_nothing_is_reserved_before_it_is_scheduled(level: str, sketch: Callable[..., Any]) -> None:
    s = sketch()
    if level == "staged":
        s.stage(range(8))
    a = s.op("a", results=[5], stage=0 if level == "staged" else None)
    s.reserve(a, [[4]], "cluster", 0, 9)
    assert found(s.module(level)) == {"nothing-later": ["the graph has a transfer already: takt.reserve"]}


# --- the oracle ----------------------------------------------------------------------------------

ACCELERATORS = 6


@dataclass(frozen=True)
class Op:
    time: int
    reads: tuple[tuple[int, int], ...]
    """Producer and distance."""
    sets: tuple[tuple[int, ...], ...]
    size: int
    sharded: bool
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + self.time

    def at(self, i: int) -> tuple[int, ...]:
        return self.sets[i % len(self.sets)]


@dataclass(frozen=True)
class Move:
    producer: int
    targets: tuple[tuple[int, ...], ...]
    link: str
    start: int
    time: int
    landing: int

    def at(self, i: int) -> tuple[int, ...]:
        return self.targets[i % len(self.targets)]


@dataclass(frozen=True)
class Case:
    ops: tuple[Op, ...]
    period: int
    links: tuple[LinkAttr, ...]
    mode: str
    moves: tuple[Move, ...] = ()

    LAP = 12
    """The numbers of turns (1, 2, 3, 4) divide it."""

    def module(self, sketch: Callable[..., Any]) -> ModuleOp:
        s = sketch(accelerators=ACCELERATORS, links=self.links, transfers=self.mode)
        s.stage(range(ACCELERATORS))
        distances = sorted({(u, d) for op in self.ops for u, d in op.reads if d})
        read = {(u, d): s.state(f"s{u}.{d}", d, self.ops[u].size) for u, d in distances}
        for v, op in enumerate(self.ops):
            table = dict.fromkeys(range(1, ACCELERATORS + 1), op.time)
            value = s.op(
                f"v{v}",
                *(read[r] for r in op.reads),
                table=table,
                results=[op.size],
                stage=0,
                sets=op.sets,
                start=op.start,
                sharded=[0] if op.sharded else (),
            )
            read[v, 0] = value
        for m in self.moves:
            s.reserve(read[m.producer, 0], m.targets, m.link, m.start, m.time, m.landing)
        for u, d in distances:
            s.leave(f"s{u}.{d}", read[u, 0])
        return s.module("scheduled", pattern=self.period)

    @property
    def network(self) -> Network:
        from dialects.network import Link

        return Network(tuple(Link.of(attr) for attr in self.links), self.mode)

    def way(self, producer: int, i: int, target: tuple[int, ...]) -> Way:
        op = self.ops[producer]
        return self.network.way(op.size, op.sharded, op.at(i), target)

    def needs(self) -> set[tuple[int, tuple[tuple[int, ...], ...]]]:
        """Producer, and where each micro-batch of a lap is read."""
        found = set()
        for op in self.ops:
            for u, d in op.reads:
                there = tuple(op.at(i + d) for i in range(self.LAP))
                home = tuple(self.ops[u].at(i) for i in range(self.LAP))
                if self.ops[u].size and there != home:
                    found.add((u, there))
        return found


RULES = {
    "precedence",
    "exclusive",
    "transfers-needed",
    "transfer-link",
    "transfer-time",
    "transfer-start",
    "links",
    "transfer-exclusive",
}


def oracle(case: Case) -> set[str]:
    """The rules on transfers that a case breaks, from lists of everything in a lap."""
    broken: set[str] = set()
    lap = range(Case.LAP)
    goals = [(m.producer, tuple(m.at(i) for i in lap)) for m in case.moves]
    if sorted(goals) != sorted(case.needs()):
        broken.add("transfers-needed")
    for op in case.ops:
        for u, d in op.reads:
            goal = (u, tuple(op.at(i + d) for i in lap))
            arrivals = [m.landing + m.time for m, g in zip(case.moves, goals, strict=True) if g == goal]
            stays = goal[1] == tuple(case.ops[u].at(i) for i in lap)
            if op.start + d * case.period < max([case.ops[u].end, *([] if stays else arrivals)]):
                broken.add("precedence")
    out: set[tuple[int, int, int]] = set()
    for m in case.moves:
        ways = [case.way(m.producer, i, m.at(i)) for i in lap]
        if any(w.moves for w in ways):
            if m.link != case.links[max(w.level for w in ways)].group.data:
                broken.add("transfer-link")
            if m.time < max(w.time for w in ways):
                broken.add("transfer-time")
        out.add((m.producer, m.start, m.time))
        buffered = case.mode == "buffered"
        late = m.landing < m.start + m.time if buffered else m.landing != m.start
        if m.start < case.ops[m.producer].end or late or (buffered and len({o for o in out if o[0] == m.producer}) > 1):
            broken.add("transfer-start")
    return broken | oracle_of_resources(case)


def oracle_of_resources(case: Case) -> set[str]:
    """The rules on what is occupied: count everything at every nanosecond of a lap."""
    lap, span = range(Case.LAP), Case.LAP * case.period
    runs, moves, copies = Counter[Any](), Counter[Any](), set()
    for op in case.ops:
        for i in lap:
            for t in range(op.time):
                runs.update((p, (op.start + i * case.period + t) % span) for p in op.at(i))
    for m in case.moves:
        for i in lap:
            way = case.way(m.producer, i, m.at(i))
            for t in range(m.time):
                leaves, lands = ((at + i * case.period + t) % span for at in (m.start, m.landing))
                if case.mode == "buffered":
                    moves.update((r, lands) for r in way.receiver)
                    # t tells one copy of a long run from the next
                    copies |= {(m.producer, m.start, m.time, i, t, r, leaves) for r in way.sender}
                else:
                    moves.update((r, leaves) for r in way.sender | way.receiver)
    moves.update((r, leaves) for *_, r, leaves in copies)
    broken = {"exclusive"} if any(n > 1 for n in runs.values()) else set()
    for (resource, t), n in moves.items():
        if resource.level >= 0 and n > case.network.capacity(resource):
            broken.add("links")
        if resource.level < 0 and n + runs[resource.at, t] > 1:
            broken.add("transfer-exclusive")
    return broken


# --- cases ---------------------------------------------------------------------------------------


@st.composite
def platforms(draw: st.DrawFn) -> tuple[LinkAttr, ...]:
    def one(name: str, size: int) -> LinkAttr:
        more: dict[str, Any] = {"links": draw(st.integers(1, 2))}
        more["topology"] = draw(st.sampled_from(["switch", "switch", "ring", "full"]))
        more["duplex"] = draw(st.sampled_from(["full", "half"]))
        more["sharing"] = draw(st.sampled_from(["exclusive", "shared"]))
        return level(name, size, draw(st.integers(0, 2)), **more)

    return (one("node", draw(st.sampled_from([2, 3]))), one("cluster", ACCELERATORS))


@st.composite
def operators(draw: st.DrawFn, count: int) -> list[Op]:
    made: list[Op] = []
    for v in range(count):
        copies = draw(st.sampled_from([1, 1, 1, 2, 3]))
        width = draw(st.integers(1, ACCELERATORS // copies // 2))
        places = draw(st.permutations(range(ACCELERATORS)))
        sets = tuple(tuple(sorted(places[c * width : (c + 1) * width])) for c in range(copies))
        known = st.tuples(st.integers(0, v - 1), st.just(0)) if v else st.nothing()
        carried = st.tuples(st.integers(0, count - 1), st.integers(1, 2))
        reads = tuple(draw(st.lists(st.one_of(known, known, carried), max_size=3, unique=True)))
        made.append(Op(draw(st.integers(1, 4)), reads, sets, draw(st.integers(0, 6)), draw(st.booleans())))
    return made


@st.composite
def valid_cases(draw: st.DrawFn) -> Case:
    """Everything one after the other in the period, in any order; then whole periods are added for precedence.

    Distances are then made long enough, as the values of later operators allow.
    """
    links, mode = draw(platforms()), draw(st.sampled_from(["overlapped", "blocking", "buffered"]))
    case = Case(tuple(draw(operators(draw(st.integers(2, 4))))), 1, links, mode)
    goals = sorted(case.needs())
    waits: list[tuple[int, int]] = []
    for u, there in goals:
        waits.append((u, max(case.way(u, i, there[i]).time for i in range(Case.LAP))))
    longest = {u: max(time for w, time in waits if w == u) for u, _ in waits}
    times = [longest[u] if mode == "buffered" else time for u, time in waits]
    parts = [("op", v, op.time) for v, op in enumerate(case.ops)]
    parts += [("in", m, time) for m, time in enumerate(times)]
    if mode == "buffered":
        parts += [("out", u, time) for u, time in longest.items()]
    offset, clock = {}, 0
    for kind, number, time in draw(st.permutations(parts)):
        offset[kind, number] = clock
        clock += time
    period = clock + draw(st.integers(0, 3))

    def after(key: tuple[str, int], ready: int) -> int:
        return offset[key] + max(0, -(-(ready - offset[key]) // period)) * period

    done: list[Op] = []
    moves: list[Move] = []
    for v, op in enumerate(case.ops):
        ready = [0]
        for u, d in op.reads:
            if not d:
                goal = (u, tuple(op.at(i) for i in range(Case.LAP)))
                arrivals = [m.landing + m.time for m, g in zip(moves, moved(moves), strict=True) if g == goal]
                ready += [done[u].end, *arrivals]
        done.append(replace(op, start=after(("op", v), max(ready))))
        out = after(("out", v), done[v].end) if ("out", v) in offset else 0
        for m, (u, there) in enumerate(goals):
            if u == v:
                start = out or after(("in", m), done[v].end)
                landing = after(("in", m), out + times[m]) if mode == "buffered" else start
                names = [case.way(u, i, there[i]).level for i in range(Case.LAP)]
                link = links[max(names)].group.data
                moves.append(Move(u, there, link, start, times[m], landing))
    first = min(op.start for op in done)
    ops = tuple(replace(op, start=op.start - first) for op in done)
    shifted = tuple(replace(m, start=m.start - first, landing=m.landing - first) for m in moves)
    return replace(case, ops=ops, moves=shifted, period=period)


def moved(moves: list[Move]) -> list[tuple[int, tuple[tuple[int, ...], ...]]]:
    return [(m.producer, tuple(m.at(i) for i in range(Case.LAP))) for m in moves]


def verdict(case: Case, sketch: Callable[..., Any]) -> set[str]:
    return {str(d.rule) for d in check_level(case.module(sketch))}


def soon_enough(case: Case) -> bool:
    """Whether what is carried over to a later micro-batch is there in time; all else is so by construction."""
    return "precedence" not in oracle(case)


@settings(max_examples=60, deadline=None)
@given(case=valid_cases())
def test_valid_schedules_are_accepted(case: Case, sketch: Callable[..., Any]) -> None:
    assert oracle(case) <= {"precedence"}
    assert verdict(case, sketch) == (set() if soon_enough(case) else {"precedence"})


@settings(max_examples=200, deadline=None)
@given(case=valid_cases(), data=st.data())
def test_every_harmful_mutation_is_caught(case: Case, data: st.DataObject, sketch: Callable[..., Any]) -> None:
    """Shifted, dropped, doubled, shortened, lengthened, over another link, to another set, more often: same verdict."""
    changes = ["none", "period", "shift-op", "set"]
    if case.moves:
        changes += ["shift", "land", "drop", "double", "shorten", "lengthen", "link", "target", "turn"]
    kind = data.draw(st.sampled_from(changes), label="kind")
    number = data.draw(st.integers(0, max(0, len(case.moves) - 1)))
    v = data.draw(st.integers(0, len(case.ops) - 1))
    by = data.draw(st.integers(1, 8)) * data.draw(st.sampled_from([-1, 1]))
    moves, ops, period = list(case.moves), list(case.ops), case.period
    move = moves[number] if moves else None
    members = st.sets(st.integers(0, ACCELERATORS - 1), min_size=1, max_size=3).map(lambda m: tuple(sorted(m)))
    if kind == "period":
        period = max(4, case.period - abs(by))
    elif kind == "shift-op":
        ops[v] = replace(ops[v], start=ops[v].start + by)
    elif kind == "set":
        ops[v] = replace(ops[v], sets=(data.draw(members),))
    elif move is not None and kind == "shift":
        moves[number] = replace(move, start=move.start + by, landing=move.landing + by)
    elif move is not None and kind == "land":
        moves[number] = replace(move, landing=move.landing + by)
    elif kind == "drop":
        del moves[number]
    elif move is not None and kind == "double":
        moves.append(replace(move, start=move.start + period, landing=move.landing + period))
    elif move is not None and kind == "shorten":
        moves[number] = replace(move, time=move.time - 1)
    elif move is not None and kind == "lengthen":
        moves[number] = replace(move, time=move.time + abs(by) * data.draw(st.sampled_from([1, 9])))
    elif move is not None and kind == "link":
        moves[number] = replace(move, link="cluster" if move.link == "node" else "node")
    elif move is not None and kind == "target":
        moves[number] = replace(move, targets=(data.draw(members),))
    elif move is not None and kind == "turn":
        moves[number] = replace(move, targets=(*move.targets[1:], move.targets[0]))
    mutant = replace(case, moves=tuple(moves), ops=tuple(ops), period=period)
    event(f"{kind}: {', '.join(sorted(oracle(mutant)))}")
    assert verdict(mutant, sketch) & RULES == oracle(mutant)
