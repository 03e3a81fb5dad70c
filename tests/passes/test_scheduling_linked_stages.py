"""Stages that know what a cut costs against enumeration of all contiguous partitions, priced by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.blocks import pack_blocks
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation, Solution
from passes.scheduling.granted import choose_allotments, schedule_blocks
from passes.scheduling.linked_costs import StageCosts, entering, leaving, staying
from passes.scheduling.linked_loads import load_bound, loads
from passes.scheduling.linked_stages import partition_linked, priced
from passes.scheduling.network import COMPUTE, RECEIVE, SEND, Level, Mode, Network, no_network
from passes.scheduling.orders import topological_orders
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.profiles import Choices, Profile
from passes.scheduling.stages import StagePlan, partition_stages
from passes.scheduling.transfers import with_transfers

MODES: tuple[Mode, ...] = ("overlapped", "blocking", "buffered")
SECOND = 10**9


def slow_network(mode: Mode, latency: int = 0, duplex: bool = True, links: int = 1, shared: bool = False) -> Network:
    """One byte takes one ns, or on shared links one link."""
    level = Level("only", 64, latency, SECOND, links, duplex=duplex, shared=shared)
    return Network((level,), mode)


@st.composite
def single_width(draw: Any, chain: bool = False) -> MemoryProblem:
    """Operations on one accelerator each: a chain, or any graph."""
    n, count = draw(st.integers(2, 7)), draw(st.integers(1, 4))
    times = draw(st.lists(st.integers(0, 20), min_size=n, max_size=n))
    pairs = [(v - 1, v) for v in range(1, n)]
    if not chain:
        every = [(u, v) for v in range(n) for u in range(v)]
        pairs = sorted(set(draw(st.lists(st.sampled_from(every), max_size=2 * n))))
    sizes = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    operations = tuple(Operation(f"o{v}", {1: Cost(t)}) for v, t in enumerate(times))
    edges = tuple(Dependence(u, v, sizes[u]) for u, v in pairs)
    return MemoryProblem(operations, edges, (), count)


def partitions(n: int, most: int) -> Iterator[list[int]]:
    """Stage of each position, for all ways to cut ``n`` positions into at most ``most`` stages."""
    for bits in range(2 ** (n - 1)):
        if bin(bits).count("1") < most:
            stage = [0]
            for v in range(1, n):
                stage.append(stage[-1] + (bits >> (v - 1) & 1))
            yield stage


def by_hand(problem: MemoryProblem, home: dict[int, int], level: Level, mode: Mode) -> int:
    """The greatest load where each stage is one accelerator and one byte takes one ns."""
    busy, sent, received = ([0] * problem.accelerators for _ in range(3))
    for v, operation in enumerate(problem.operations):
        busy[home[v]] += operation.table[1].time
    for u in range(len(problem.operations)):
        targets = {home[d.consumer] for d in problem.dependences if d.producer == u and d.bytes} - {home[u]}
        if not targets:
            continue
        size = next(d.bytes for d in problem.dependences if d.producer == u)
        time = level.latency + (size if level.shared else -(-size // level.links))
        sent[home[u]] += time if mode == "buffered" else time * len(targets)
        for target in targets:
            received[target] += time
    if mode != "overlapped":
        return max(1, *(sum(all_of) for all_of in zip(busy, sent, received, strict=True)))
    capacity = level.links if level.shared else 1
    wires = [*sent, *received] if level.duplex else [a + b for a, b in zip(sent, received, strict=True)]
    return max(1, *busy, *(-(-w // capacity) for w in wires))


def least_by_hand(problem: MemoryProblem, count: int | None = None) -> int | None:
    assert problem.network is not None
    found = [
        by_hand(problem, dict(zip(order, stage, strict=True)), problem.network.levels[0], problem.network.mode)
        for order in topological_orders(problem)
        for stage in partitions(len(order), problem.accelerators)
        if count is None or stage[-1] == count - 1
    ]
    return min(found, default=None)


def check(problem: MemoryProblem, plan: StagePlan) -> None:
    """Stages cover the order and can be packed, loads are theirs, and the schedule inside them is valid."""
    assert sorted(plan.order) == list(range(len(problem.operations)))
    assert [s.begin for s in plan.stages] == [0, *(s.end for s in plan.stages[:-1])]
    assert plan.stages[-1].end == len(plan.order)
    assert sum(plan.widths) + plan.idle == problem.accelerators
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None
    staged = replace(problem, memory=0).staged(plan.granted(blocks), plan.homes())
    staged.check()
    solution, _ = schedule_blocks(staged)
    assert plan.period == load_bound(problem, solution)
    assert plan.period == max(1, *(s.load for s in plan.stages))


@settings(max_examples=60, deadline=None)
@given(problem=single_width(), latency=st.integers(0, 5))
def test_buffered_stages_of_a_graph_are_least(problem: MemoryProblem, latency: int) -> None:
    problem = replace(problem, network=slow_network("buffered", latency))
    plan = partition_linked(problem, tolerance=0)
    check(problem, plan)
    assert plan.period == least_by_hand(problem)


@settings(max_examples=60, deadline=None)
@given(
    problem=single_width(chain=True),
    mode=st.sampled_from(MODES),
    duplex=st.booleans(),
    links=st.integers(1, 3),
    shared=st.booleans(),
    count=st.one_of(st.none(), st.integers(1, 4)),
)
def test_stages_of_a_chain_are_least(
    problem: MemoryProblem, mode: Mode, duplex: bool, links: int, shared: bool, count: int | None
) -> None:
    problem = replace(problem, network=slow_network(mode, 2, duplex, links, shared))
    expected = least_by_hand(problem, count)
    if expected is None:
        with pytest.raises(InvalidProblem):
            partition_linked(problem, tolerance=0, stages=count)
        return
    plan = partition_linked(problem, tolerance=0, stages=count)
    check(problem, plan)
    assert plan.period == expected
    assert count is None or len(plan.stages) == count


@settings(max_examples=40, deadline=None)
@given(problem=single_width(), mode=st.sampled_from(("overlapped", "blocking")))
def test_values_of_several_readers_are_priced_exactly_in_the_end(problem: MemoryProblem, mode: Mode) -> None:
    """Where a value goes to several stages the program may estimate, but the plan has the loads that it says."""
    problem = replace(problem, network=slow_network(mode))
    plan = partition_linked(problem, tolerance=0)
    check(problem, plan)
    assert problem.network is not None
    assert plan.period == by_hand(problem, dict(enumerate(plan.homes())), problem.network.levels[0], mode)
    least = least_by_hand(problem)
    assert least is not None
    assert least <= plan.period <= priced(problem, partition_stages(problem, tolerance=0)).period


@settings(max_examples=40, deadline=None)
@given(
    tables=st.lists(st.lists(st.integers(1, 9), min_size=4, max_size=4), min_size=1, max_size=5),
    mode=st.sampled_from(MODES),
)
def test_stages_of_any_width_are_least(tables: list[list[int]], mode: Mode) -> None:
    """A chain with a price of its own for each crossing: all cuts and all widths."""
    rows = [{k: Cost(2 * sum(steps[k - 1 :])) for k in range(1, 5)} for steps in tables]  # faster with every one more
    n = len(rows)
    edges = tuple(Dependence(v - 1, v, 1) for v in range(1, n))
    network = Network((Level("only", 4, 6, 10**18),), mode)  # 6 ns and a bit, whatever the widths
    problem = MemoryProblem(tuple(Operation("o", r) for r in rows), edges, (), 4, network=network)

    def go(begin: int, left: int, longest: int) -> Iterator[int]:
        if begin == n:
            yield longest
        for end in range(begin + 1, n + 1):
            into, out = 7 * (begin > 0), 7 * (end < n)
            for width in range(1, left + 1):
                time = sum(r[width].time for r in rows[begin:end])
                load = max(time, into, out) if mode == "overlapped" else time + into + out
                yield from go(end, left - width, max(longest, load))

    plan = partition_linked(problem, tolerance=0)
    check(problem, plan)
    assert plan.period == min(go(0, 4, 1))


@settings(max_examples=40, deadline=None)
@given(problem=single_width(), latency=st.integers(0, 5))
def test_buffered_stages_are_scheduled_at_their_loads(problem: MemoryProblem, latency: int) -> None:
    """Nothing waits for anything else once a window: the period is the load that the partition counted on."""
    problem = replace(problem, network=slow_network("buffered", latency))
    plan = partition_linked(problem, tolerance=0)
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None
    staged = problem.staged(plan.granted(blocks), plan.homes())
    solution = with_transfers(staged, schedule_blocks(staged)[0])
    staged.verify(solution)
    assert solution.period == plan.period


def test_a_skip_connection_costs_its_ends_only() -> None:
    operations = tuple(Operation(f"o{v}", {1: Cost(10)}) for v in range(3))
    edges = (Dependence(0, 1, 1), Dependence(1, 2, 1), Dependence(0, 2, 4, 0, 1))
    problem = MemoryProblem(operations, edges, (), 3, network=slow_network("blocking"))
    plan = partition_linked(problem)
    assert [s.load for s in plan.stages] == [15, 12, 15]


def test_a_cut_moves_to_where_little_crosses() -> None:
    """Equal halves would move a large value; what one more operation takes costs less."""
    sizes = (1, 100, 2)
    operations = tuple(Operation(f"o{v}", {1: Cost(10)}) for v in range(4))
    edges = tuple(Dependence(v, v + 1, size) for v, size in enumerate(sizes))
    problem = MemoryProblem(operations, edges, (), 2, network=slow_network("buffered"))
    assert [s.end for s in partition_stages(problem).stages] == [2, 4]
    plan = partition_linked(problem)
    assert [s.end for s in plan.stages] == [1, 4]
    assert plan.period == 31


def test_a_level_that_is_slow_is_crossed_where_little_crosses() -> None:
    """Six accelerators in groups of three: only the border of the groups is dear."""
    operations = tuple(Operation(f"o{v}", {1: Cost(10)}) for v in range(7))
    edges = tuple(Dependence(v, v + 1, 1 if v == 3 else 10) for v in range(6))
    levels = (Level("near", 3, 0, 10 * SECOND), Level("far", 6, 0, SECOND))
    problem = MemoryProblem(operations, edges, (), 6, 3, network=Network(levels, "buffered"))
    plan = partition_linked(problem, tolerance=0)
    check(problem, plan)
    assert plan.period == 21
    assert plan.stages[2].end == 4  # the border of the groups
    assert priced(problem, partition_stages(problem, tolerance=0)).period > 21


@settings(max_examples=40, deadline=None)
@given(data=st.data(), mode=st.sampled_from(MODES), size=st.integers(1, 4))
def test_any_problem_gets_a_plan_no_worse_than_without_prices(
    tiny_problems: Callable[..., Any], data: st.DataObject, mode: Mode, size: int
) -> None:
    problem = data.draw(tiny_problems(operations=6, accelerators=4, group=1))
    levels = (Level("near", problem.group, 1, 2 * SECOND), Level("far", 64, 3, SECOND, topology="ring"))
    linked = replace(problem, network=Network(levels, mode))
    plan = partition_linked(linked, tolerance=0)
    if plan.period != 1:
        check(linked, plan)
    assert plan.period <= priced(linked, partition_stages(linked, tolerance=0)).period
    for nothing in (None, no_network()):
        free = replace(problem, network=nothing)
        assert partition_linked(free) == partition_stages(problem)
    bare = replace(linked, dependences=tuple(replace(d, bytes=0) for d in problem.dependences))
    assert partition_linked(bare) == partition_stages(bare)


def test_operations_that_share_parameters_stay_on_one_block() -> None:
    operations = tuple(Operation(f"o{v}", {1: Cost(10, 5)}) for v in range(4))
    edges = tuple(Dependence(v, v + 1, 2) for v in range(3))
    problem = MemoryProblem(operations, edges, (), 3, 0, 100, together=((0, 3),), network=slow_network("blocking"))
    plan = partition_linked(problem)
    homes = plan.homes()
    block = [plan.turns[h] for h in homes] if plan.turns else homes
    assert block[0] == block[3]
    assert plan.period == 24  # both on one block, the others on one or two: two transfers there, two here


def test_parameters_still_fit() -> None:
    operations = tuple(Operation(f"o{v}", {1: Cost(10, 5)}) for v in range(4))
    edges = tuple(Dependence(v, v + 1, 50) for v in range(3))
    problem = MemoryProblem(operations, edges, (), 2, 0, 12, network=slow_network("blocking"))
    assert [s.end for s in partition_linked(problem).stages] == [2, 4]
    assert len(partition_linked(replace(problem, memory=25)).stages) == 1
    with pytest.raises(InvalidProblem):
        partition_linked(replace(problem, memory=9))


def test_granularity_keeps_blocks_of_the_model() -> None:
    operations = tuple(Operation(f"o{v}", {1: Cost(10)}, f"b{v // 2}") for v in range(6))
    edges = tuple(Dependence(v, v + 1, 1 if v in (0, 2, 4) else 3) for v in range(5))
    problem = MemoryProblem(operations, edges, (), 6, network=slow_network("buffered"))
    assert {s.end for s in partition_linked(problem, granularity="block").stages} == {2, 4, 6}


@settings(max_examples=60, deadline=None)
@given(home=st.integers(0, 5), segments=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_rectangles_are_the_stages_they_speak_of(home: int, segments: list[int]) -> None:
    segments.sort()

    def covered(rectangles: Iterator[tuple[int, int, int, int, int]], i: int, j: int) -> int:
        return sum(t for a, b, c, d, t in rectangles if a <= i <= b and c <= j <= d)

    for i in range(6):
        for j in range(i + 1, 7):
            here, some = i <= home < j, any(i <= c < j for c in segments)
            all_of = all(i <= c < j for c in segments)
            assert covered(entering(home, segments, 6, 1), i, j) == (not here and some)
            assert covered(leaving(home, segments, 6, 1), i, j) == (here and not all_of)
            assert covered(staying(home, segments, 6, 1), i, j) == (here and some)


def test_a_block_keeps_one_allotment_where_moving_costs_more() -> None:
    fast, slow = {1: Cost(10), 2: Cost(12)}, {1: Cost(40), 2: Cost(20)}
    operations = (Operation("a", slow), Operation("b", fast), Operation("c", slow))
    problem = MemoryProblem(operations, (Dependence(0, 1, 1), Dependence(1, 2, 1)), (), 2)
    for size, mode, expected in ((1, "blocking", [2, 2, 2]), (0, "blocking", [2, 1, 2]), (1, "overlapped", [2, 1, 2])):
        edges = tuple(replace(d, bytes=size) for d in problem.dependences)
        linked = replace(problem, dependences=edges, network=slow_network(mode, 5))  # type: ignore[arg-type]
        assert choose_allotments(linked.staged([(0, 1)], [0, 0, 0])) == expected


@pytest.mark.parametrize("mode", MODES)
def test_loads_of_copies_are_shared_among_them(mode: Mode) -> None:
    """Two copies of the reader take turns: the producer sends always, each copy receives every other time."""
    operations = (Operation("a", {1: Cost(4)}), Operation("b", {1: Cost(10)}))
    problem = MemoryProblem(operations, (Dependence(0, 1, 3),), (), 3, copies=2, network=slow_network(mode))
    s = Solution(8, (1, 1), ((0,), (1,)), (0, 7), {1: ((2,),)})
    busy: dict[Any, int] = {r: load for r, load in loads(problem, s).items() if load}
    if mode == "overlapped":
        assert busy == {
            (COMPUTE, -1, 0, 0): 8,
            (COMPUTE, -1, 1, 1): 10,
            (COMPUTE, -1, 2, 2): 10,
            (SEND, 0, 0, 0): 6,
            (RECEIVE, 0, 1, 1): 3,
            (RECEIVE, 0, 2, 2): 3,
        }
        assert load_bound(problem, s) == 5
    else:
        still = {r: load for r, load in busy.items() if r[0] == COMPUTE}
        assert still == {(COMPUTE, -1, 0, 0): 14, (COMPUTE, -1, 1, 1): 13, (COMPUTE, -1, 2, 2): 13}
        assert load_bound(problem, s) == 7


def test_more_positions_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few positions left those stay at which least crosses."""
    monkeypatch.setattr("passes.scheduling.linked_stages.MOST_CUTS", 6)
    sizes: Sequence[int] = [9, 9, 1] * 4
    operations = tuple(Operation(f"o{v}", {1: Cost(10)}) for v in range(12))
    edges = tuple(Dependence(v, v + 1, sizes[v]) for v in range(11))
    problem = MemoryProblem(operations, edges, (), 4, network=slow_network("blocking"))
    plan = partition_linked(problem)
    assert [s.end for s in plan.stages] == [3, 6, 9, 12]
    assert plan.period == 32


@given(single_width(), st.sampled_from(MODES[:2]), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_costs_like_others_are_those_worked_out_anew(problem: MemoryProblem, mode: Mode, cautious: bool, data: Any):
    network = slow_network(mode)
    choices = Choices(problem, [1])
    order = list(problem.topological)
    asked: tuple[Any, ...] = (problem, network, [choices], [Profile(choices, order)], order)
    keys = sorted({network.key(d, ()) for d in problem.dependences if d.bytes}, key=repr)
    first, second = ({key: data.draw(st.integers(1, 3)) for key in keys} for _ in range(2))
    low, high = sorted(data.draw(st.lists(st.integers(1, 200), min_size=2, max_size=2)))
    like = StageCosts(*asked, high, first, cautious)
    again, anew = StageCosts(*asked, low, second, cautious, like), StageCosts(*asked, low, second, cautious)
    fits = anew.table(0, 0, 0) <= low
    assert ((again.table(0, 0, 0) <= low) == fits).all()
    assert (again.table(0, 0, 0)[fits] == anew.table(0, 0, 0)[fits]).all()
