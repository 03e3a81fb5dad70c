"""Stages, starts and bounds that know what is held: against brute force, and against what schedules really hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.activation_area import activation_bound, activation_excludes
from passes.scheduling.bounds import all_bounds, proves
from passes.scheduling.budget import Budget
from passes.scheduling.contents import fullest_contents
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation, Solution
from passes.scheduling.fitting import Fitting, Misfit, smallest_memory
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.held import HeldProfile, in_flight
from passes.scheduling.memory_stages import cover_within, proposed
from passes.scheduling.network import Level, Network
from passes.scheduling.portfolio import Request, fitted, schedule_within, stages_engine
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.profiles import Choices
from passes.scheduling.repairs import fullest
from passes.scheduling.retimed import retimed
from passes.scheduling.versions import Updated


def training(
    forward: list[dict[int, Cost]], accelerators: int, memory: int, ratio: int = 2, params: int | None = None
) -> MemoryProblem:
    """A chain there and back: each operation, and one behind that reads its result and that of the next one behind."""
    n = len(forward)
    there = [Operation(f"f{v}", table) for v, table in enumerate(forward)]
    back = [
        Operation(f"b{v}", {k: Cost(ratio * c.time, 0, 1, c.workspace) for k, c in forward[v].items()})
        for v in reversed(range(n))
    ]
    sizes = [min(k * c.output for k, c in table.items()) for table in forward]
    chain = [Dependence(v, v + 1, sizes[v] if v < n else 1) for v in range(2 * n - 1)]
    reads = [Dependence(v, 2 * n - 1 - v, sizes[v]) for v in range(n - 1)]
    groups = tuple((v, 2 * n - 1 - v) for v in range(n))
    return MemoryProblem((*there, *back), (*chain, *reads), (), accelerators, 0, memory, together=groups)


def equal_layers(n: int, accelerators: int, memory: int, network: Network | None = None) -> MemoryProblem:
    table = {k: Cost(t, 100 // k, 12 // k) for k, t in ((1, 40), (2, 24), (4, 16))}
    return replace(training([table] * n, accelerators, memory), network=network)


# --- brute force -------------------------------------------------------------------------------------


def placements(problem: MemoryProblem) -> Iterator[tuple[list[int], list[tuple[int, ...]]]]:
    """All allotments and sets."""
    ways = [
        [(k, members) for k in table for members in combinations(range(problem.accelerators), k)]
        for table in problem.item_tables
    ]
    for chosen in product(*ways):
        allotments, sets = [0] * len(problem.operations), [()] * len(problem.operations)
        for item, (k, members) in zip(problem.items, chosen, strict=True):
            for v in item:
                allotments[v], sets[v] = k, members
        yield allotments, sets


def starts_of(
    problem: MemoryProblem, times: list[int], sets: list[tuple[int, ...]], period: int
) -> Iterator[list[int]]:
    """All starts of a chain: a wait of a period or more can be shortened by one, and less is held."""

    def grow(starts: list[int]) -> Iterator[list[int]]:
        v = len(starts)
        if v == len(times):
            yield starts
            return
        ready = starts[-1] + times[v - 1] if starts else 0
        for start in range(ready, ready + period) if starts else (0,):
            if all(
                not set(sets[u]) & set(sets[v])
                or not times[u]
                or not times[v]
                or ((start - s) % period >= times[u] and (s - start) % period >= times[v])
                for u, s in enumerate(starts)
            ):
                yield from grow([*starts, start])

    if max(times) <= period:
        yield from grow([])


def any_schedule(problem: MemoryProblem, period: int) -> Solution | None:
    """A schedule of a chain with just this period, on any sets; None when there is none at all."""
    for allotments, sets in placements(problem):
        times = [o.table[k].time for o, k in zip(problem.operations, allotments, strict=True)]
        for starts in starts_of(problem, times, sets, period):
            found = Solution(period, tuple(allotments), tuple(sets), tuple(starts))
            if fullest(problem, found) <= problem.memory:
                assert problem.violations(found) == []
                return found
    return None


def tiny(seed: int) -> MemoryProblem:
    """Two layers on two accelerators, with a memory of which little is left beside the parameters."""
    dice = random.Random(seed)

    def table() -> dict[int, Cost]:
        time, size = dice.randint(2, 4), 2 * dice.randint(1, 6)
        return {1: Cost(time, 20, size), 2: Cost(-(-time // 2), 10, size // 2)}

    return training([table(), table()], 2, 20 + dice.randint(8, 24), ratio=1)


@pytest.mark.parametrize("seed", range(10))
def test_bounds_and_schedules_enclose_the_optimum(seed: int) -> None:
    problem = tiny(seed)
    serial = sum(max(c.time for c in o.table.values()) for o in problem.operations)
    bound = max(b.value for b in all_bounds(problem))
    best = next((t for t in range(max(1, bound), serial + 1) if any_schedule(problem, t)), None)
    if bound > 1:
        assert any_schedule(problem, bound - 1) is None
    try:
        *_, (staged, solution, _) = Fitting(problem, stages_engine(Request("stages"), Budget()), Budget(work=5)).found()
    except Misfit:
        return  # stages are few of all sets
    assert staged.violations(solution) == []
    assert best is not None
    assert bound <= best <= solution.period


def test_most_of_them_are_optimal() -> None:
    gaps: list[int] = []
    for seed in range(10):
        problem = tiny(seed)
        try:
            *_, (_, solution, _) = Fitting(problem, stages_engine(Request("stages"), Budget()), Budget(work=5)).found()
        except Misfit:
            continue
        gaps.append(sum(any_schedule(problem, t) is not None for t in range(1, solution.period)))
    assert gaps == [0] * 10


# --- the bound ---------------------------------------------------------------------------------------


def test_what_waits_bounds_the_period() -> None:
    # f0 f1 b1 b0 of 4 ns on one accelerator each: the 12 bytes of f0 wait 16 ns, those of f1 8 ns, and the byte
    # of b1 8; b0 holds its own for 4. With 20 of parameters on each of 2 accelerators of 36 that leaves 32 bytes.
    problem = training([{1: Cost(4, 20, 12)}] * 2, 2, 36, ratio=1)
    bound = activation_bound(problem)
    assert bound is not None
    assert bound.value == -(-(12 * 16 + 12 * 8 + 8 + 4) // 32)
    assert activation_excludes(problem, bound.value - 1)
    assert not activation_excludes(problem, bound.value)
    assert proves(problem, "activation area", bound.value, Budget()) is not None
    assert activation_bound(replace(problem, memory=0)) is None
    buffered = Network((Level("bus", 2, 0, 10**9),), "buffered")
    assert activation_bound(replace(problem, network=buffered)) is None


def test_fast_allotments_shorten_waits_and_cost_area() -> None:
    """Fast operations alone, or cheap ones alone, would prove less than both together."""
    table = {1: Cost(40, 100, 60), 4: Cost(20, 25, 15)}
    problem = training([table] * 4, 4, 190, ratio=1)
    bound = activation_bound(problem)
    assert bound is not None
    cheap = activation_bound(replace(training([{1: table[1]}] * 4, 4, 190, ratio=1)))
    fast = activation_bound(training([{4: table[4]}] * 4, 4, 190, ratio=1))
    area = max(b.value for b in all_bounds(problem) if b.name != "activation area")
    assert cheap is not None
    assert area < bound.value <= min(cheap.value, 160 if fast is None else fast.value)


# --- estimates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "held"), [(90, [1, 2, 3, 4, 5, 6]), (180, [1, 1, 2, 2, 3, 3]), (270, [1, 1, 1, 2, 2, 2]), (900, [1] * 6)]
)
def test_blocks_hold_as_many_as_the_period_asks_for(period: int, held: list[int]) -> None:
    assert in_flight(90, period, 1 / 3, 6) == held


def test_the_estimate_is_what_schedules_hold() -> None:
    problem = equal_layers(8, 4, 10_000)
    profile = HeldProfile(problem, Choices(problem, (1, 2, 4)), problem.topological)
    pieces = cover_within(profile, 240, lambda _: 10_000, [1, 2, 3, 4], Budget(), 4)
    assert pieces is not None
    assert [p.held for p in pieces] == [4, 3, 2, 1]
    fit = proposed(profile, lambda _: 10_000, 1, 4, Budget())
    assert fit is not None
    staged = problem.staged([(0,), (1,), (2,), (3,), (2,), (1,), (0,)], fit.plan.homes())
    solution, _ = schedule_blocks(staged)
    real = [sum(problem.peak_memory(solution)[p]) for p in range(4)]
    assert all(have <= thought <= have + 24 for have, thought in zip(real, fit.needs, strict=True))
    assert 3 * 24 <= real[0] - real[3] <= 3 * 24 + 1


# --- fitting -----------------------------------------------------------------------------------------

LINKS = Network((Level("node", 4, 1, 4 * 10**9), Level("cluster", 8, 2, 10**9)))


@settings(max_examples=12, deadline=None)
@given(
    layers=st.integers(2, 9),
    accelerators=st.integers(2, 6),
    spare=st.integers(10, 150),
    linked=st.booleans(),
)
def test_what_is_found_fits_and_is_found_again(layers: int, accelerators: int, spare: int, linked: bool) -> None:
    memory = 100 * layers // accelerators + spare
    problem = equal_layers(layers, accelerators, memory, LINKS if linked else None)
    request = Request("stages", fit=True)
    try:
        found = list(fitted(problem, request, Budget(work=3)))
    except Misfit:
        return
    for candidate in found:
        assert candidate.staged.violations(candidate.solution) == []
        assert candidate.figures.memory <= memory
    again = schedule_within(found[-1].staged, request, Budget(work=3))
    assert again.figures.period <= found[-1].figures.period


def test_less_memory_costs_period_and_never_gains() -> None:
    periods: list[int] = []
    for memory in (460, 320, 260, 240):
        problem = equal_layers(8, 4, memory)
        *_, best = fitted(problem, Request("stages"), Budget(work=3))
        periods.append(best.figures.period)
        assert best.figures.memory <= memory
    assert periods == sorted(periods)
    assert periods[0] == 240
    assert periods[-1] > 240


def test_the_smallest_memory_does_and_less_does_not() -> None:
    problem = equal_layers(6, 3, 1)
    found = smallest_memory(problem, stages_engine(Request("stages"), Budget()), Budget())
    assert found is not None
    enough, (staged, solution, _) = found
    assert replace(staged, memory=enough).violations(solution) == []
    list(fitted(replace(problem, memory=enough), Request("stages"), Budget(work=3)))
    with pytest.raises(InvalidProblem):
        list(fitted(replace(problem, memory=enough * 9 // 10), Request("stages"), Budget(work=3)))


def test_what_nothing_fits_says_what_is_nearest() -> None:
    problem = equal_layers(4, 2, 230)
    with pytest.raises(Misfit) as failure:
        list(fitted(replace(problem, memory=212), Request("stages"), Budget(work=2)))
    assert all(v.missing > 0 for v in failure.value.violations)


# --- retiming ----------------------------------------------------------------------------------------


def test_a_result_made_too_early_is_made_later() -> None:
    # `big` reads the input alone, and is read by `last` three periods on: it can run three periods later.
    one = {1: Cost(10, 0, 1)}
    operations = [Operation("big", {1: Cost(10, 0, 50)}), *(Operation(f"s{v}", one) for v in range(3))]
    edges = (Dependence(0, 3, 50), Dependence(1, 2, 1), Dependence(2, 3, 1))
    problem = MemoryProblem(tuple(operations), edges, (), 4, 0, 1000)
    early = Solution(12, (1,) * 4, ((0,), (1,), (2,), (3,)), (0, 1, 14, 39))
    assert problem.violations(early) == []
    late = retimed(problem, early)
    assert problem.violations(late) == []
    assert [s % 12 for s in late.starts] == [(s + late.starts[1] - 1) % 12 for s in early.starts]
    assert problem.peak_memory(late)[3] < problem.peak_memory(early)[3]
    assert retimed(problem, late) == late


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), heavy=st.integers(0, 2))
def test_retiming_keeps_every_rule_and_holds_no_more(seed: int, heavy: int) -> None:
    dice = random.Random(seed)
    n, period = 7, 20
    tables = [{1: Cost(dice.randint(1, 6), 0, dice.randint(0, 30))} for _ in range(n)]
    edges = tuple(Dependence(u, v, dice.randint(0, 30)) for v in range(n) for u in range(v) if dice.random() < 0.5)
    problem = MemoryProblem(tuple(Operation(f"o{v}", t) for v, t in enumerate(tables)), edges, (), n, 0, 10**6)
    starts: list[int] = []
    for v in range(n):
        ready = max((starts[u] + tables[u][1].time for u in problem.predecessors[v]), default=0)
        starts.append(ready + dice.randint(0, 3 * period))
    first = min(starts)
    before = Solution(period, (1,) * n, tuple((v,) for v in range(n)), tuple(s - first for s in starts))
    after = retimed(problem, before, {heavy: 16.0})
    assert problem.violations(after) == []

    def average(s: Solution) -> float:
        weights = {(heavy,): 16}
        return sum(weights.get(m, 1) * h.bytes * max(0, h.end - h.begin) for m, h in problem.holdings(s))

    assert average(after) <= average(before)


# --- what is held ------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(layers=st.integers(1, 5), accelerators=st.integers(1, 4))
def test_contents_add_up_to_the_peak(layers: int, accelerators: int) -> None:
    problem = equal_layers(layers, accelerators, 10**6)
    *_, best = fitted(problem, Request("stages"), Budget(work=1))
    contents = fullest_contents(problem, best.solution)
    sums = problem.peak_memory(best.solution)
    assert contents.total == sum(sums[contents.accelerator]) == max(map(sum, sums.values()))
    assert sum(contents.parameters.values()) == sums[contents.accelerator][0]
    assert 1 <= contents.microbatches <= best.figures.in_flight


def test_versions_are_part_of_what_is_held() -> None:
    table = {1: Cost(10, 100, 6, version=30)}
    problem = training([table] * 4, 2, 10_000)
    groups = tuple(Updated((v, 7 - v), (7 - v,)) for v in range(4))
    problem = replace(problem, asynchronous=1, updated=groups)
    best = schedule_within(problem.staged([(0,), (1,), (0,)], [0, 0, 1, 1, 1, 1, 2, 2]), Request("stages"), Budget())
    contents, sums = fullest_contents(problem, best.solution), problem.peak_memory(best.solution)
    assert contents.total == sum(sums[contents.accelerator]) == max(map(sum, sums.values()))
    assert contents.alive["version"] >= 2 * 30


# --- what is thought to need more than it does -------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_stages_fit_though_the_estimate_is_above(seed: int) -> None:
    """Of values that pass the estimate counts the largest twice; here that is most of what is held."""
    dice = random.Random(seed)
    tables = [{1: Cost(dice.randint(5, 40), dice.randint(0, 300), dice.randint(1, 200))} for _ in range(5)]
    problem = training(tables, 3, 1)
    found = smallest_memory(problem, stages_engine(Request("stages"), Budget()), Budget(work=5))
    assert found is not None
    memory, (staged, solution, _) = found
    assert fullest(staged, solution) == memory
    problem = replace(problem, memory=memory)
    profile = HeldProfile(problem, Choices(problem, (1,)), problem.topological)
    assert proposed(profile, lambda _: memory, 1, None, Budget()) is None
    *_, (staged, solution, _) = Fitting(problem, stages_engine(Request("stages"), Budget()), Budget(work=5)).found()
    assert staged.violations(solution) == []
    assert fullest(staged, solution) <= memory


def test_no_stage_has_a_width_on_which_something_cannot_run() -> None:
    """However slow stages may be, which the search for memory allows."""
    wide = {2: Cost(1, 256, 200), 4: Cost(1, 128, 200)}
    problem = training([wide, {1: Cost(40, 0, 1), 2: Cost(27, 0, 1)}, {1: Cost(7, 0, 200), 2: Cost(3, 0, 200)}], 4, 700)
    for memory in range(300, 1500, 100):
        with suppress(Misfit):
            for staged, solution, _ in fitting(replace(problem, memory=memory)):
                assert staged.violations(solution) == []


def fitting(problem: MemoryProblem) -> Iterator[tuple[MemoryProblem, Solution, str]]:
    return Fitting(problem, stages_engine(Request("stages"), Budget()), Budget(work=5)).found()
