"""Transfers as part of the periodic problem: an oracle that unrolls periods, mutations, and what engines add."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from math import lcm
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.bounds import best_bound, proves
from passes.scheduling.budget import Budget
from passes.scheduling.circles import Circle, demand, earliest, occupy
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation, Solution, Transfer
from passes.scheduling.elementary import area_bound
from passes.scheduling.network import COMPUTE, NOTHING, NS, Level, Network
from passes.scheduling.objective import Limits
from passes.scheduling.portfolio import FAMILIES, Request, candidates, scheduled, solve
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.retime import windows
from passes.scheduling.slow_links import SlowLinks, slow_links_bound
from passes.scheduling.transfers import fewer, with_transfers

MODES = ("overlapped", "blocking", "buffered")


def network(mode: Any = "overlapped", size: int = 64, latency: int = 0, **more: Any) -> Network:
    """One switch, a byte a nanosecond."""
    return Network((Level("link", size, latency, NS, **more),), mode)


@st.composite
def networks(draw: Any, accelerators: int) -> Network:
    levels: list[Level] = []
    size = 1
    for number in range(draw(st.integers(1, 2))):
        size = accelerators if number else draw(st.sampled_from([1, 2, accelerators])) if accelerators > 1 else 1
        size = max(size, levels[-1].size if levels else 1)
        topology = draw(st.sampled_from(["switch", "ring", "full", "torus"]))
        levels.append(
            Level(
                f"level{number}",
                size,
                draw(st.integers(0, 2)),
                draw(st.sampled_from([NS, NS // 2, 3 * NS])),
                draw(st.integers(1, 2)),
                topology,
                duplex=draw(st.booleans()),
                shared=draw(st.booleans()),
            )
        )
    levels[-1] = replace(levels[-1], size=max(accelerators, levels[-1].size))
    return Network(tuple(levels), draw(st.sampled_from(MODES)))


@st.composite
def problems(draw: Any, accelerators: int = 4, operations: int = 5, copies: int = 2) -> MemoryProblem:
    """Random graphs with states, split values and several results."""
    n = draw(st.integers(1, operations))
    count = draw(st.integers(1, accelerators))
    cost = st.builds(Cost, st.integers(0, 6), st.integers(0, 3), st.integers(0, 5), st.integers(0, 3))
    tables = draw(
        st.lists(st.dictionaries(st.integers(1, count), cost, min_size=1, max_size=2), min_size=n, max_size=n)
    )
    edges: list[Dependence] = []
    sizes: dict[tuple[int, int], tuple[int, bool]] = {}
    for _ in range(draw(st.integers(0, 2 * n))):
        u, v = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
        distance = draw(st.integers(0, 2)) if u < v else draw(st.integers(1, 3))
        result = draw(st.integers(0, 1))
        size, split = sizes.setdefault((u, result), (draw(st.integers(0, 4)), draw(st.booleans())))
        edges.append(Dependence(u, v, size, distance, result, split))
    return MemoryProblem(
        tuple(Operation(f"o{v}", t) for v, t in enumerate(tables)),
        tuple(edges),
        (),
        count,
        copies=copies,
        network=draw(networks(count)),
    )


@st.composite
def solutions(draw: Any, problem: MemoryProblem) -> Solution:
    """A schedule that knows nothing of links: random sets and copies, one after another or in windows."""
    accelerators = list(range(problem.accelerators))
    allotments = [draw(st.sampled_from(sorted(o.table))) for o in problem.operations]
    sets: list[tuple[int, ...]] = []
    more: dict[int, tuple[tuple[int, ...], ...]] = {}
    for v, k in enumerate(allotments):
        order = draw(st.permutations(accelerators))
        sets.append(tuple(sorted(order[:k])))
        if 2 * k <= len(order) and problem.copies > 1 and draw(st.integers(0, 2)) == 0:
            more[v] = (tuple(sorted(order[k : 2 * k])),)
    times = [o.table[k].time for o, k in zip(problem.operations, allotments, strict=True)]
    free = replace(problem, network=None)
    if not more and draw(st.booleans()):
        found = windows(free, allotments, sets, problem.topological)
        assert found is not None
        return found
    starts = [0] * len(times)
    clock = 0
    period = max(1, sum(times))
    for v in problem.topological:
        starts[v] = clock
        clock += times[v]
    if not problem.dependences and draw(st.booleans()):  # laps
        starts = [s + period * lcm(1, 2) * draw(st.integers(0, 2)) for s in starts]
        starts = [s - min(starts) for s in starts]
    return Solution(period, tuple(allotments), tuple(sets), tuple(starts), more)


# --- oracle ----------------------------------------------------------------------------------------


def instances(problem: MemoryProblem, s: Solution) -> int:
    """Micro-batches after which everything that may meet has met."""
    last = max([s.starts[v] + problem.time(s, v) for v in range(len(s.sets))] + [t.ready for t in s.transfers])
    first = min([*s.starts, *(t.start for t in s.transfers)])
    return (last - first) // s.period + 3 * s.repetition + 3


def carries(problem: MemoryProblem, s: Solution, t: Transfer, d: Dependence, i: int) -> bool:
    """Whether ``t`` brings the value of ``d`` of micro-batch ``i`` where it is read, for all micro-batches."""
    if (t.producer, t.result) != (d.producer, d.result):
        return False
    turns = lcm(len(t.targets), len(s.copies(d.consumer)))
    return all(t.target_of(j) == s.set_of(d.consumer, j + d.distance) for j in range(i, i + turns))


def valid(problem: MemoryProblem, s: Solution) -> bool:
    """Whether explicit micro-batches, one by one, keep the rules of transfers, order and resources."""
    net = problem.network
    assert net is not None
    many = instances(problem, s)
    used: defaultdict[Any, list[tuple[int, int]]] = defaultdict(list)
    served = [False] * len(s.transfers)
    out: dict[tuple[int, int, int], dict[Any, tuple[int, int]]] = {}
    for d in problem.dependences:
        crosses = any(
            d.bytes and s.set_of(d.producer, i) != s.set_of(d.consumer, i + d.distance) for i in range(s.repetition)
        )
        mine = [j for j, t in enumerate(s.transfers) if carries(problem, s, t, d, 0)]
        if len({s.transfers[j].targets for j in mine}) != len(mine):
            return False
        exact = [j for j in mine if len(s.transfers[j].targets) == len(s.copies(d.consumer))]
        reads = s.starts[d.consumer] + d.distance * s.period
        if not crosses:
            if problem.end(s, d.producer) > reads:
                return False
            continue
        if len(exact) != 1:
            return False
        served[exact[0]] = True
        t = s.transfers[exact[0]]
        if t.ready > reads or t.start < problem.end(s, d.producer):
            return False
        if any(
            net.price(d, s.set_of(d.producer, i), s.set_of(d.consumer, i + d.distance)).time > t.time
            for i in range(s.repetition)
        ):
            return False
    if not all(served):
        return False
    for i in range(many):
        for v in range(len(s.sets)):
            begin = s.starts[v] + i * s.period
            for p in s.set_of(v, i):
                used[COMPUTE, -1, p, p].append((begin, begin + problem.time(s, v)))
        for t in s.transfers:
            d = next(d for d in problem.dependences if (d.producer, d.result) == (t.producer, t.result))
            price = net.price(d, s.set_of(t.producer, i), t.target_of(i))
            if net.mode == "buffered":
                if t.landing < t.start + t.time:
                    return False
                copies = out.setdefault((t.producer, t.result, i), {})
                for resource in price.send:
                    copies[resource] = (t.start + i * s.period, t.start + i * s.period + t.time)
                if any(
                    o.start != t.start or o.time != t.time
                    for o in s.transfers
                    if o.producer == t.producer and o.result == t.result
                ):
                    return False
            elif t.landing != t.start:
                return False
            for resource in price.receive if net.mode == "buffered" else price.both:
                used[resource].append((t.landing + i * s.period, t.landing + i * s.period + t.time))
    for copies in out.values():
        for resource, interval in copies.items():
            used[resource].append(interval)
    return all(most(spans) <= net.capacity(resource) for resource, spans in used.items())


def most(spans: list[tuple[int, int]]) -> int:
    """Intervals at one time, at most."""
    changes = sorted(c for begin, end in spans if begin < end for c in ((begin, 1), (end, -1)))
    level = top = 0
    for _, change in changes:
        level += change
        top = max(top, level)
    return top


def bytes_held(problem: MemoryProblem, s: Solution, p: int) -> int:
    """Most bytes of live values on an accelerator, tick by tick over one pattern of the steady state."""
    net = problem.network
    many = 2 * instances(problem, s) + 6
    spans: list[tuple[int, int, int]] = []
    for i in range(-many, many):
        shift = i * s.period
        for v, k in enumerate(s.allotments):
            cost, home, end = problem.operations[v].table[k], s.set_of(v, i), problem.end(s, v)
            last = end
            there: dict[tuple[int, ...], tuple[int | None, int, dict[int, int]]] = {}
            for d in (d for d in problem.dependences if d.producer == v):
                target, done = s.set_of(d.consumer, i + d.distance), problem.end(s, d.consumer) + d.distance * s.period
                if target == home:
                    last = max(last, done)
                    continue
                t = [t for t in s.transfers if carries(problem, s, t, d, i % s.repetition)]
                t = [x for x in t if len(x.targets) == len(s.copies(d.consumer))] if d.bytes else []
                landing = t[0].landing if t else end
                last = max([last, *(x.start + x.time for x in t)])
                size = -(-d.bytes // len(target)) if d.split and net is not None else d.bytes
                begin, until, sizes = there.get(target, (None, done, {}))
                if d.bytes:
                    begin, sizes = landing if begin is None else min(begin, landing), {**sizes, d.result: size}
                there[target] = (begin, max(until, done), sizes)
            if p in home:
                spans.append((s.starts[v] + shift, last + shift, cost.output))
                spans.append((s.starts[v] + shift, end + shift, cost.workspace))
            for target, (begin, until, sizes) in there.items():
                if p in target and begin is not None:
                    spans.append((begin + shift, until + shift, sum(sizes.values())))
    return max(sum(size for b, e, size in spans if b <= tick < e) for tick in range(s.repetition * s.period))


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_with_transfers_is_valid_and_oracle_agrees(data: Any) -> None:
    problem = data.draw(problems())
    start = data.draw(solutions(problem))
    assert not replace(problem, network=None).violations(start)
    found = with_transfers(problem, start)
    assert problem.violations(found) == []
    assert valid(problem, found)
    mutated = mutate(data, problem, found)
    broken = problem.violations(mutated)
    assert (not broken) == valid(problem, mutated), broken


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 3))
def test_a_longer_period_keeps_few_micro_batches_in_flight(data: Any, most: int) -> None:
    problem = data.draw(problems())
    start = data.draw(solutions(problem))
    tight = with_transfers(problem, start)
    slow = fewer(problem, start, tight, most, Budget())
    if slow is None:
        assert not tight.transfers or problem.in_flight(tight) <= most
    else:
        assert slow.period >= tight.period
        assert problem.in_flight(slow) <= most
        assert not [v for v in problem.violations(slow) if v.rule != "memory"]


def test_one_micro_batch_at_a_time_is_always_possible() -> None:
    problem, _ = chain(4, "overlapped", each=2)
    request = Request("stages", stages=4, limits=Limits(in_flight=1))
    found = solve(problem, request, Budget())
    assert found.figures.in_flight == 1
    assert found.figures.period == 4 * 20 + 3 * 3


def mutate(data: Any, problem: MemoryProblem, s: Solution) -> Solution:
    """One transfer shifted, shortened, dropped, doubled or sent elsewhere, or an operation shifted."""
    kind = data.draw(st.sampled_from(["shift", "land", "shorten", "drop", "double", "retarget", "operation", "period"]))
    if kind == "operation" or not s.transfers:
        v = data.draw(st.integers(0, len(s.starts) - 1))
        starts = [x + data.draw(st.integers(-3, 3)) * (u == v) for u, x in enumerate(s.starts)]
        least = min(starts)
        moved = tuple(replace(t, start=t.start - least, landing=t.landing - least) for t in s.transfers)
        return replace(s, starts=tuple(x - least for x in starts), transfers=moved)
    if kind == "period":
        return replace(s, period=max(1, s.period + data.draw(st.integers(-2, 2))))
    j = data.draw(st.integers(0, len(s.transfers) - 1))
    t = s.transfers[j]
    rest = s.transfers[:j] + s.transfers[j + 1 :]
    by = data.draw(st.integers(-4, 4))
    if kind == "drop":
        return replace(s, transfers=rest)
    if kind == "double":
        return replace(s, transfers=(*s.transfers, t))
    if kind == "retarget":
        p = data.draw(st.integers(0, problem.accelerators - 1))
        return replace(s, transfers=(*rest, replace(t, targets=((p,), *t.targets[1:]))))
    if kind == "land":
        return replace(s, transfers=(*rest, replace(t, landing=t.landing + by)))
    if kind == "shorten":
        return replace(s, transfers=(*rest, replace(t, time=t.time + min(by, 1))))
    return replace(s, transfers=(*rest, replace(t, start=t.start + by, landing=t.landing + by)))


@settings(max_examples=25, deadline=None)
@given(problems(operations=6))
def test_every_family(problem: MemoryProblem) -> None:
    for plan, (family, _) in FAMILIES.items():
        request = Request(plan)
        try:
            stagings = list(family(problem, request, Budget(work=0.1)))
        except InvalidProblem:
            continue  # the plan has no schedule, with links or without
        for staged in stagings:
            for found, _ in scheduled(plan, staged, request, Budget(work=0.1)):
                assert staged.violations(found) == []
                assert valid(staged, found)


def test_candidates_have_transfers_and_figures_of_them() -> None:
    problem, _ = chain(4, "blocking", each=3)
    (found,) = candidates(problem, Request("stages", stages=4), Budget())
    assert len(found.solution.transfers) == 3
    assert found.figures.period == found.solution.period == 36
    assert problem.violations(found.solution) == []


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_memory_of_transfers(data: Any) -> None:
    problem = data.draw(problems(accelerators=3, operations=4))
    found = with_transfers(problem, data.draw(solutions(problem)))
    peaks = problem.peak_memory(found)
    for p in range(problem.accelerators):
        assert peaks.get(p, (0, 0))[1] == bytes_held(problem, found, p)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_circles(data: Any) -> None:
    """First fit against counting every tick."""
    cycle, capacity = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 2))
    circle = Circle(cycle, capacity)
    ticks = [0] * cycle

    def room(start: int, segments: list[tuple[int, int, int]]) -> bool:
        level = list(ticks)
        for after, time, share in segments:
            for x in range(time):
                level[(start + after + x) % cycle] += share
        return all(x <= capacity for x in level)

    for _ in range(6):
        begins = data.draw(st.lists(st.integers(0, 15), min_size=1, max_size=2))
        time, begin = data.draw(st.integers(0, 14)), data.draw(st.integers(0, 20))
        segments = demand(begins, time, cycle)
        assert sum(length * share for _, length, share in segments) == time * len(begins)
        start = earliest([(circle, segments)], begin)
        fits = [x for x in range(begin, begin + cycle) if room(x, segments)]
        assert start == (fits[0] if fits else None)
        if start is not None:
            occupy([(circle, segments)], start)
            for after, length, share in segments:
                for x in range(length):
                    ticks[(start + after + x) % cycle] += share


def chain(stages: int, mode: Any, size: int = 3, time: int = 10, each: int = 1) -> tuple[MemoryProblem, Solution]:
    """Equal stages of ``each`` operations on one accelerator each."""
    n = stages * each
    operations = tuple(Operation(f"o{v}", {1: Cost(time)}) for v in range(n))
    edges = tuple(Dependence(v - 1, v, size) for v in range(1, n))
    problem = MemoryProblem(operations, edges, (), stages, network=network(mode))
    sets = [(v // each,) for v in range(n)]
    found = windows(replace(problem, network=None), [1] * n, sets, problem.topological)
    assert found is not None
    assert found.period == time * each
    return problem, found


@pytest.mark.parametrize(("mode", "period", "latency"), [("overlapped", 20, 89), ("blocking", 26, 89)])
def test_chain_of_equal_stages(mode: str, period: int, latency: int) -> None:
    problem, start = chain(4, mode, each=2)
    found = with_transfers(problem, start)
    assert not problem.violations(found)
    assert (found.period, problem.latency(found)) == (period, latency)


def test_buffered_chain() -> None:
    problem, start = chain(4, "buffered", each=2)
    found = with_transfers(problem, start)
    assert not problem.violations(found)
    assert (found.period, problem.latency(found)) == (26, 4 * 20 + 3 * 6)


def placements(problem: MemoryProblem) -> Iterator[Solution]:
    """Every choice of sets, and of up to two copies, with starts of no meaning."""
    accelerators = range(problem.accelerators)
    items: list[list[tuple[Any, ...]]] = []
    for item in problem.items:
        choices: list[tuple[Any, ...]] = []
        for k in set(problem.operations[item[0]].table).intersection(*(problem.operations[v].table for v in item)):
            sets = list(combinations(accelerators, k))
            choices += [(k, a, ()) for a in sets]
            if problem.copies > 1:
                choices += [(k, a, (b,)) for a in sets for b in sets if not set(a) & set(b)]
        items.append(choices)
    for chosen in product(*items):
        rows = {v: row for item, row in zip(problem.items, chosen, strict=True) for v in item}
        count = len(problem.operations)
        more = {v: row[2] for v, row in rows.items() if row[2]}
        sets = tuple(rows[v][1] for v in range(count))
        yield Solution(1, tuple(rows[v][0] for v in range(count)), sets, (0,) * count, more)


def load(problem: MemoryProblem, s: Solution) -> int:
    """The heaviest load of an accelerator or link in a period, for its capacity, counted turn by turn."""
    net = problem.network
    assert net is not None
    busy: Counter[Any] = Counter()
    needs = problem.needs(s)
    for i in range(s.repetition):
        out: dict[tuple[int, int], tuple[int, set[Any]]] = {}
        for v in range(len(s.sets)):
            for p in s.set_of(v, i):
                busy[COMPUTE, -1, p, p] += problem.time(s, v)
        for need in needs:
            price = need.prices[i % len(need.prices)]
            for resource in price.receive if net.mode == "buffered" else price.both:
                busy[resource] += need.time
            if net.mode == "buffered" and price != NOTHING:
                time, resources = out.setdefault((need.producer, need.result), (0, set()))
                out[need.producer, need.result] = (max(time, need.time), resources | price.send)
        for time, resources in out.values():
            for resource in resources:
                busy[resource] += time
    return max(-(-time // (s.repetition * net.capacity(r))) for r, time in busy.items()) if busy else 0


def least_bytes(problem: MemoryProblem, s: Solution) -> int:
    """Parameters on the fullest accelerator and what one of its operations needs while it runs."""
    params = {p: once for p, (once, _) in problem.peak_memory(replace(s, period=1)).items()}
    return (
        max(
            params.get(p, 0) + c.output + c.workspace
            for v, k in enumerate(s.allotments)
            for c in [problem.operations[v].table[k]]
            for members in s.copies(v)
            for p in members
            if c.time
        )
        if any(problem.time(s, v) for v in range(len(s.sets)))
        else max(params.values(), default=0)
    )


@settings(max_examples=120, deadline=None)
@given(problems(accelerators=3, operations=3), st.booleans(), st.data())
def test_slow_links_bound(problem: MemoryProblem, grouped: bool, data: Any) -> None:
    """Never above the least of all loads."""
    table = problem.operations[0].table
    if grouped and len(problem.operations) == 3:
        both = replace(problem.operations[2], table=table)
        problem = replace(problem, operations=(*problem.operations[:2], both), together=((0, 2),))
    problem = replace(problem, dependences=tuple(replace(d, bytes=4 * d.bytes) for d in problem.dependences))
    memory = data.draw(st.sampled_from([0, 0, 8, 10]))
    problem = replace(problem, memory=memory)
    fitting = [s for s in placements(problem) if not memory or least_bytes(problem, s) <= memory]
    best = min((load(problem, s) for s in fitting), default=None)
    if best is None:
        return
    slow = SlowLinks(problem)
    bound = slow_links_bound(problem)
    assert bound is None or area_bound(problem).value < bound.value <= best
    assert not slow.excludes(best)
    if bound is not None:
        assert proves(problem, "slow links", bound.value, Budget()) is not None
        assert slow.excludes(bound.value - 1)
        assert not slow.excludes(bound.value)


@pytest.mark.parametrize("mode", MODES)
def test_slow_links_join_a_chain(mode: str) -> None:
    """Three operations of 10 ns: the value of 15 is better not moved, that of 4 is, after the first two."""
    operations = tuple(Operation(f"o{v}", {1: Cost(10)}) for v in range(3))
    values = (Dependence(0, 1, 15), Dependence(1, 2, 4))
    problem = MemoryProblem(operations, values, (), 3, network=network(mode))
    bound = slow_links_bound(problem)
    assert bound is not None
    assert bound.value == {"overlapped": 15, "blocking": 24, "buffered": 24}[mode]
    assert best_bound(problem).value == bound.value
    faster = replace(problem, network=replace(network(mode), levels=(Level("link", 3, 0, 4 * NS),)))
    assert slow_links_bound(faster) is None or mode != "overlapped"
    assert slow_links_bound(replace(problem, network=None)) is None


def test_messages_name_operations() -> None:
    problem, start = chain(2, "overlapped")
    found = with_transfers(problem, start)
    (t,) = found.transfers
    assert t == Transfer(0, 0, ((1,),), 10, 3, 10)

    def messages(*transfers: Transfer, **more: Any) -> list[str]:
        return [v.message for v in problem.violations(replace(found, transfers=transfers, **more))]

    assert messages(t) == []
    assert messages() == ["the transfer of 'o0' to [1], for 'o1', is missing"]
    assert messages(t, t) == ["the transfer of 'o0' to [1] is there twice"]
    assert messages(t, replace(t, targets=((0,),))) == ["the transfer of 'o0' to [0] serves nobody"]
    assert messages(replace(t, time=2)) == ["the transfer of 'o0' to [1] has 2 ns and needs 3 ns"]
    assert messages(replace(t, start=9, landing=9)) == [
        "the transfer of 'o0' to [1] starts at 9 ns, before the value is there at 10 ns"
    ]
    assert messages(replace(t, landing=9)) == [
        "the transfer of 'o0' to [1] starts at 10 ns and lands at 9 ns: there is no buffer"
    ]
    assert messages(replace(t, time=4)) == ["'o1' starts at 13 ns but reads 'o0', which is there at 14 ns"]
    assert messages(replace(t, time=11), starts=(0, 21)) == [
        "the send side of accelerator 0 at level 'link' is used by the transfer of 'o0' to [1] in [10, 21) ns,"
        " which meets itself modulo 10"
    ]
    alone = replace(problem, network=None)
    assert [v.rule for v in alone.violations(found)] == ["transfers"]


def test_blocked_accelerator_is_named() -> None:
    problem, start = chain(2, "blocking")
    found = with_transfers(problem, start)
    (t,) = found.transfers
    assert (found.period, t.start) == (13, 10)
    late = replace(found, transfers=(replace(t, start=11, landing=11),), starts=(0, 14))
    assert [v.message for v in problem.violations(late)] == [
        "accelerator 0 is used by the transfer of 'o0' to [1] in [11, 14) and 'o0' in [0, 10) ns modulo 13"
    ]


def test_one_copy_into_the_buffer() -> None:
    """Two readers elsewhere: the sender is busy once, and both transfers leave together."""
    operations = (Operation("a", {1: Cost(5)}), Operation("b", {1: Cost(5)}), Operation("c", {1: Cost(5)}))
    values = (Dependence(0, 1, 4), Dependence(0, 2, 4))
    problem = MemoryProblem(operations, values, (), 3, network=network("buffered"))
    found = with_transfers(problem, Solution(10, (1, 1, 1), ((0,), (1,), (2,)), (0, 5, 5)))
    assert not problem.violations(found)
    assert found.period == 9
    first, second = found.transfers
    assert (first.start, first.time) == (second.start, second.time) == (5, 4)
    apart = replace(found, transfers=(first, replace(second, start=6, landing=second.landing + 1)))
    assert {v.rule for v in problem.violations(apart)} >= {"transfers"}


def test_shared_links_carry_several() -> None:
    """Two values of 8 ns leave accelerator 0 each period of 10 ns: over two links at once, in turn over one."""
    operations = tuple(Operation(f"o{v}", {1: Cost(5)}) for v in range(4))
    values = (Dependence(0, 2, 8), Dependence(1, 3, 8))
    for links, period in ((1, 16), (2, 10)):
        net = network("overlapped", links=links, shared=True)
        problem = MemoryProblem(operations, values, (), 3, network=net)
        start = Solution(10, (1,) * 4, ((0,), (0,), (1,), (2,)), (0, 5, 5, 10))
        found = with_transfers(problem, start)
        assert not problem.violations(found)
        assert found.period == period


def test_token_loop_takes_its_transfers() -> None:
    """The cycle of a carried value is as long as its operations and transfers."""
    problem, _ = chain(3, "overlapped")
    problem = replace(problem, dependences=(*problem.dependences, Dependence(2, 0, 3, 1)))
    start = windows(replace(problem, network=None), [1] * 3, [(0,), (1,), (2,)], problem.topological)
    assert start is not None
    found = with_transfers(problem, start)
    assert not problem.violations(found)
    assert found.period == 39


def test_full_link_without_loss() -> None:
    """Links that are busy all the time: the transfers fit only one after another."""
    problem, start = chain(3, "overlapped", size=10)
    found = with_transfers(problem, start)
    assert not problem.violations(found)
    assert (found.period, problem.latency(found)) == (10, 50)
