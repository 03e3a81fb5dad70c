"""Assignment of single operations with transfers: against all assignments, and its schedules against the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.assigned import ENGINES, assign, schedule_assigned
from passes.scheduling.assigned_clusters import Cuts, contracted, dominated, least_period, undone
from passes.scheduling.assigned_loads import Loads, choices_of
from passes.scheduling.assigned_search import split
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation, Solution
from passes.scheduling.families import FAMILIES, Request, whole
from passes.scheduling.laminar import LEAST
from passes.scheduling.network import COMPUTE, NS, Level, Network
from passes.scheduling.problem import MemoryProblem

Sets = Sequence[tuple[int, ...]]


def flat(mode: Any, count: int = 4) -> Network:
    """A byte takes a nanosecond between any two accelerators."""
    return Network((Level("link", count, 0, NS),), mode)


def nested(mode: Any) -> Network:
    """Pairs of accelerators with two quick links, and slow links between the pairs."""
    return Network((Level("near", 2, 0, NS, links=2, shared=True), Level("far", 8, 1, NS // 2)), mode)


def heaviest(problem: MemoryProblem, sets: Sets) -> int:
    """The heaviest load by the definition, from the list of all transfers."""
    load: defaultdict[Any, int] = defaultdict(int)
    for operation, members in zip(problem.operations, sets, strict=True):
        for p in members:
            load[COMPUTE, -1, p, p] += operation.table[len(members)].time
    network = problem.network
    assert network is not None
    moved: dict[tuple[int, int, tuple[int, ...]], Dependence] = {}
    for d in problem.dependences:
        if sets[d.consumer] != sets[d.producer] and d.bytes:
            moved[d.producer, d.result, sets[d.consumer]] = d
    leaving: dict[Any, int] = {}
    for (u, result, target), d in moved.items():
        price = network.price(d, sets[u], target)
        if network.mode == "buffered":
            for r in price.receive:
                load[r] += price.time
            for r in price.send:
                leaving[u, result, r] = max(price.time, leaving.get((u, result, r), 0))
        else:
            for r in price.send | price.receive:
                load[r] += -(-price.time // network.capacity(r))
    for (_, _, r), time in leaving.items():
        load[r] += time
    return max(load.values(), default=0)


def fits(problem: MemoryProblem, sets: Sets) -> bool:
    held: defaultdict[int, int] = defaultdict(int)
    for item in problem.items:
        members = sets[item[0]]
        for p in members:
            held[p] += max(problem.operations[v].table[len(members)].params for v in item)
    return not problem.memory or max(held.values()) <= problem.memory


def optimum(problem: MemoryProblem, blocks: Sets) -> int | None:
    """The least heaviest load of all assignments of items to ``blocks``; None when nothing fits in memory."""
    tables = problem.item_tables
    possible = [[b for b in blocks if len(b) in table] for table in tables]
    best: int | None = None
    for places in product(*possible):
        sets: list[tuple[int, ...]] = [()] * len(problem.operations)
        for item, place in zip(problem.items, places, strict=True):
            for v in item:
                sets[v] = place
        if fits(problem, sets):
            load = heaviest(problem, sets)
            best = load if best is None else min(best, load)
    return best


SINGLE = [(p,) for p in range(4)]
BLOCKS = [tuple(range(first, first + width)) for width in (1, 2, 4) for first in range(0, 4, width)]


@st.composite
def problems(draw: Any, most: int = 6, widths: Sequence[int] = (1,), memory: bool = True) -> MemoryProblem:
    """A few operations with values between them, groups, carried values, and memory that may be tight."""
    count = 4 if len(widths) > 1 else draw(st.integers(1, 3))
    n = draw(st.integers(1, most))
    small = st.integers(0, 9)
    operations: list[Operation] = []
    for v in range(n):
        table = {k: Cost(draw(small), draw(st.integers(0, 4))) for k in widths if k == 1 or draw(st.booleans())}
        operations.append(Operation(f"o{v}", table))
    dependences: list[Dependence] = []
    size = [draw(st.integers(0, 6)) for _ in range(n)]
    for u, v in draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=2 * n)):
        if u < v:
            dependences.append(Dependence(u, v, size[u], split=bool(size[u] % 2)))
        elif draw(st.booleans()):
            dependences.append(Dependence(u, v, size[u], draw(st.integers(1, 2)), split=bool(size[u] % 2)))
    together = ((0, n - 1),) if n > 2 and draw(st.booleans()) else ()
    network = draw(st.sampled_from([flat, nested]))(draw(st.sampled_from(["buffered", "blocking", "overlapped"])))
    room = draw(st.sampled_from([0, 8, 12])) if memory else 0
    return MemoryProblem(tuple(operations), tuple(dependences), (), count, 0, room, together=together, network=network)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_single_accelerators_against_all_assignments(problem: MemoryProblem) -> None:
    best = optimum(problem, SINGLE[: problem.accelerators])
    found = assign(problem, gap=0.0, budget=Budget(work=1.0))
    sets: list[tuple[int, ...]] = [()] * len(problem.operations)
    for unit, options, at in zip(found.choices.units, found.choices.options, found.at, strict=True):
        for v in unit:
            sets[v] = options[at].members
    assert found.heaviest == heaviest(problem, sets)
    if best is None:
        assert not fits(problem, sets)
        return
    assert fits(problem, sets)
    assert found.heaviest == best
    assert found.bound <= max(1, best)


@settings(max_examples=25, deadline=None)
@given(problem=problems(most=4, widths=(1, 2, 4), memory=False))
def test_nested_blocks_against_all_assignments(problem: MemoryProblem) -> None:
    best = optimum(problem, BLOCKS)
    assert best is not None
    found = assign(problem, gap=0.0, budget=Budget(work=1.0))
    assert found.choices.widths in ((1,), (1, 2, 4))
    assert found.heaviest == best
    assert found.bound <= max(1, best)


@settings(max_examples=60, deadline=None)
@given(problem=problems(memory=False), data=st.data())
def test_contraction_keeps_every_better_assignment(problem: MemoryProblem, data: st.DataObject) -> None:
    best = optimum(problem, SINGLE[: problem.accelerators])
    assert best is not None
    choices = choices_of(problem)
    limit = best + data.draw(st.integers(0, 3))
    small = contracted(choices, limit, Budget())
    assert small is not None
    small = dominated(small)
    least = min(
        Loads(choices, undone(choices, small, at)).heaviest for at in product(*(range(len(o)) for o in small.options))
    )
    assert least == best
    assert least_period(choices, 0, limit, Budget()) <= best


def test_what_is_joined_may_run_on_a_set_that_its_parts_do_not_offer() -> None:
    """On four accelerators ``b`` is faster than on three of them, the only set that ``a`` has."""
    tables = ({3: Cost(10)}, {1: Cost(9), 3: Cost(5), 4: Cost(4)})
    operations = tuple(Operation(name, table) for name, table in zip("ab", tables, strict=True))
    problem = MemoryProblem(operations, (Dependence(0, 1, 30),), (), 4, network=flat("buffered"))
    choices = choices_of(problem, (1, 2, 4))
    joined = choices.joined([[0, 1]])
    assert joined is not None
    a, b = undone(choices, joined, [0])
    assert choices.options[0][a].members == joined.options[0][0].members == (0, 1, 2)
    assert choices.options[1][b].members == choices.options[1][b].block == joined.options[0][0].block


def chain(times: Sequence[int], sizes: Sequence[int], count: int) -> MemoryProblem:
    operations = tuple(Operation(f"o{v}", {1: Cost(t)}) for v, t in enumerate(times))
    dependences = tuple(Dependence(v, v + 1, size) for v, size in enumerate(sizes[: len(times) - 1]))
    return MemoryProblem(operations, dependences, (), count, network=flat("buffered"))


@settings(max_examples=40, deadline=None)
@given(
    times=st.lists(st.integers(0, 20), min_size=2, max_size=7),
    sizes=st.lists(st.integers(1, 9), min_size=6, max_size=6),
    count=st.integers(2, 3),
)
def test_splits_of_a_chain_are_the_best_contiguous_ones(times: list[int], sizes: list[int], count: int) -> None:
    problem, n = chain(times, sizes, count), len(times)
    choices = choices_of(problem)
    at = split(choices, 1, Budget())
    assert at is not None
    best = min(
        heaviest(problem, [(sum(v >= cut for cut in cuts),) for v in range(n)])
        for cuts in product(range(n + 1), repeat=count - 1)
        if list(cuts) == sorted(cuts)
    )
    assert Loads(choices, at).heaviest == best


def test_a_cut_counts_a_value_once_and_both_ends() -> None:
    """0 makes a value of 3 for 1 and 2: alone it takes 5 + 3, with 1 still, and nothing is cheaper."""
    operations = tuple(Operation(f"o{v}", {1: Cost(t)}) for v, t in enumerate((5, 1, 9)))
    edges = (Dependence(0, 1, 3), Dependence(0, 2, 3))
    cuts = Cuts(choices_of(MemoryProblem(operations, edges, (), 2, network=flat("buffered"))))
    assert cuts.least(0) == 8
    assert cuts.least(0, without=1) == 8
    assert cuts.least(1, without=0) == 4
    assert cuts.least(2) == 12


# --- schedules ------------------------------------------------------------------------------------------


def check(problem: MemoryProblem, s: Solution) -> None:
    """The rules of the mode ``buffered`` on single accelerators, from the definition."""
    busy: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for v in range(len(problem.operations)):
        busy[s.sets[v][0]].append((s.starts[v], problem.time(s, v)))
    ready: dict[tuple[int, int, tuple[int, ...]], int] = {}
    leaving: dict[tuple[int, int], tuple[int, int]] = {}
    for t in s.transfers:
        (target,) = t.targets
        assert (t.producer, t.result, target) not in ready
        ready[t.producer, t.result, target] = t.ready
        start, time = leaving.get((t.producer, t.result), (t.start, 0))
        assert t.start == start >= problem.end(s, t.producer)
        leaving[t.producer, t.result] = (start, max(time, t.time))
        assert t.landing >= t.start + t.time
        busy[target[0]].append((t.landing, t.time))
    for (u, _), copy in leaving.items():
        busy[s.sets[u][0]].append(copy)
    for d in problem.dependences:
        there = s.sets[d.consumer]
        moves = d.bytes and there != s.sets[d.producer]
        first = ready[d.producer, d.result, there] if moves else problem.end(s, d.producer)
        assert s.starts[d.consumer] + d.distance * s.period >= first
    for each in busy.values():
        circle = sorted((start % s.period, time) for start, time in each if time)
        for (start, time), (after, _) in pairwise([*circle, *((x + s.period, t) for x, t in circle[:1])]):
            assert start + time <= after


@settings(max_examples=60, deadline=None)
@given(problem=problems(memory=False))
def test_buffered_schedules_keep_the_rules_at_the_heaviest_load(problem: MemoryProblem) -> None:
    assert problem.network is not None
    problem = replace(problem, network=replace(problem.network, mode="buffered"))
    solution, engine = schedule_assigned(whole(problem), budget=Budget(work=1.0))
    check(problem, solution)
    assert engine.removesuffix(LEAST) in ENGINES
    load = max(1, heaviest(problem, solution.sets))
    assert solution.period >= load
    if not any(d.distance for d in problem.dependences):
        assert solution.period == load


@settings(max_examples=20, deadline=None)
@given(problem=problems(most=5, widths=(1, 2, 4), memory=False))
def test_other_schedules_leave_their_transfers_to_others(problem: MemoryProblem) -> None:
    kept = tuple(d for d in problem.dependences if not d.distance)
    assert problem.network is not None
    problem = replace(problem, dependences=kept, network=replace(problem.network, mode="overlapped"))
    solution, _ = schedule_assigned(whole(problem), budget=Budget(work=1.0))
    assert solution.transfers == ()
    assert solution.period == max(1, heaviest(problem, solution.sets))
    assert not replace(problem, network=None).violations(solution)


def layers(count: int, accelerators: int, mode: Any) -> MemoryProblem:
    """A chain of blocks of two branches, too large for proofs; times differ."""
    operations: list[Operation] = []
    dependences: list[Dependence] = []
    for layer in range(count):
        first = 4 * layer
        operations += [Operation(f"{layer}.{i}", {1: Cost(20 + 37 * (first + i) ** 2 % 61)}) for i in range(4)]
        edges = [(first, first + 1), (first, first + 2), (first + 1, first + 3), (first + 2, first + 3)]
        dependences += [Dependence(u, v, 5 + v % 3) for u, v in edges]
        if layer:
            dependences.append(Dependence(first - 1, first, 3))
    return MemoryProblem(tuple(operations), tuple(dependences), (), accelerators, network=flat(mode, accelerators))


@pytest.mark.parametrize("mode", ["buffered", "blocking", "overlapped"])
def test_the_same_budget_and_seed_give_the_same(mode: Any) -> None:
    problem = whole(layers(10, 5, mode))
    found = [schedule_assigned(problem, budget=Budget(work=0.3, seed=3)) for _ in range(2)]
    assert found[0] == found[1]
    choices = choices_of(problem)
    at = split(choices, 1, Budget())
    assert at is not None
    assert found[0][0].period < Loads(choices, at).heaviest, "the search improves on contiguous splits"


def test_what_cannot_be_cut_stays_together_and_proves_it() -> None:
    """Values of 100 between 0, 1 and 2 keep 30 ns on one accelerator, so no period is below 30 on any number."""
    problem = chain([10, 10, 10, 4, 4], [100, 100, 1, 1], 4)
    found = assign(problem, budget=Budget(work=1.0))
    assert found.bound == found.heaviest == 31
    assert {found.at[v] for v in range(3)} == {found.at[0]}


def test_reserve_leaves_parameters_less_room() -> None:
    operations = tuple(Operation(f"o{v}", {1: Cost(t, 4)}) for v, t in enumerate((1, 1, 6)))
    problem = MemoryProblem(operations, (), (), 2, 0, 8, network=flat("buffered"))
    assert assign(problem, budget=Budget(work=1.0)).heaviest == 6
    with pytest.raises(InvalidProblem, match="5 bytes kept free"):
        assign(problem, reserve=5, budget=Budget(work=1.0))


def test_memory_that_neither_splits_nor_loads_respect() -> None:
    """Of 2, 2, 6 and 6 bytes in a chain, no contiguous half fits 8; the least loads put both 6 together."""
    sizes = zip((10, 1, 5, 5), (2, 2, 6, 6), strict=True)
    operations = tuple(Operation(f"o{v}", {1: Cost(*each)}) for v, each in enumerate(sizes))
    edges = tuple(Dependence(v, v + 1, 1) for v in range(3))
    problem = MemoryProblem(operations, edges, (), 2, 0, 8, network=flat("buffered"))
    solution, _ = schedule_assigned(whole(problem), budget=Budget(work=1.0))
    assert fits(problem, solution.sets)
    assert solution.period == optimum(problem, SINGLE[:2])


def test_without_a_network_the_plan_packs_nested_blocks() -> None:
    problem = whole(replace(layers(2, 3, "buffered"), network=None))
    request = Request("assigned")
    solution, _ = FAMILIES["assigned"][1](problem, request, Budget(work=1.0))
    assert not problem.violations(solution)
    assert solution == FAMILIES["laminar"][1](problem, request, Budget(work=1.0))[0]


def test_memory_that_nothing_fits_is_no_fault_of_the_search() -> None:
    tables = ({1: Cost(3)}, {1: Cost(630, 1000), 4: Cost(157, 250)}, {1: Cost(200, 300)}, {1: Cost(200, 300)})
    operations = tuple(Operation(f"o{v}", table) for v, table in enumerate(tables))
    edges = tuple(Dependence(v, v + 1, 1) for v in range(3))
    problem = MemoryProblem(operations, edges, (), 4, 0, 400, network=flat("overlapped"))
    solution, _ = schedule_assigned(whole(problem), budget=Budget(work=0.2))
    assert not fits(problem, solution.sets)
