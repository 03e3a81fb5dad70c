"""Stages with copies where values take time to move, against enumeration priced by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, Operation
from passes.scheduling.granted_copies import copied_sets, schedule_replicated
from passes.scheduling.linked_copies import CopiedLine, longest
from passes.scheduling.linked_costs import StageCosts
from passes.scheduling.linked_loads import load_bound
from passes.scheduling.network import Level, Mode, Network
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.profiles import Choices, Profile
from passes.scheduling.replicated import replicate_stages

MODES: tuple[Mode, ...] = ("overlapped", "blocking", "buffered")


def chain(times: list[int], sizes: list[int], accelerators: int, mode: Mode) -> MemoryProblem:
    """Operations on one accelerator each; a byte takes one ns."""
    operations = tuple(Operation(f"o{v}", {1: Cost(t, 1)}) for v, t in enumerate(times))
    edges = tuple(Dependence(v, v + 1, sizes[v]) for v in range(len(times) - 1))
    network = Network((Level("only", 64, 0, 10**9),), mode)
    return MemoryProblem(operations, edges, (), accelerators, copies=accelerators, network=network)


@st.composite
def chains(draw: st.DrawFn) -> MemoryProblem:
    n = draw(st.integers(1, 5))
    numbers = st.lists(st.integers(0, 20), min_size=n, max_size=n)
    return chain(draw(numbers), draw(numbers), draw(st.integers(1, 5)), draw(st.sampled_from(MODES)))


def by_hand(problem: MemoryProblem) -> int:
    """The least period of all cuts and all numbers of copies."""
    n = len(problem.operations)
    times = [o.table[1].time for o in problem.operations]
    sizes = [d.bytes for d in problem.dependences]
    assert problem.network is not None
    overlapped = problem.network.mode == "overlapped"

    def go(begin: int, left: int, period: int) -> Iterator[int]:
        if begin == n:
            yield period
        for end in range(begin + 1, n + 1):
            into, out = sizes[begin - 1] if begin else 0, sizes[end - 1] if end < n else 0
            time = sum(times[begin:end])
            run = max(time, into, out) if overlapped else time + into + out
            for copies in range(1, left + 1):
                yield from go(end, left - copies, max(period, -(-run // copies)))

    return min(go(0, problem.accelerators, 1))


@settings(max_examples=80, deadline=None)
@given(problem=chains())
def test_copies_share_what_moves(problem: MemoryProblem) -> None:
    """The program finds the least period, and the loads of such copies are no more than it says."""
    expected = by_hand(problem)
    choices = Choices(problem, (1,))
    order = tuple(range(len(problem.operations)))
    assert problem.network is not None
    costs = StageCosts(problem, problem.network, [choices], [Profile(choices, order)], order, choices.most, {})
    shapes = [(0, r) for r in range(1, problem.accelerators + 1)]
    found = CopiedLine(costs, shapes, Budget()).shortest(1, 10**6, 0.0)
    assert found is not None
    assert longest(found) == expected
    assert sum(p.copies for p in found) <= problem.accelerators
    assert [p.begin for p in found] == [0, *(p.end for p in found[:-1])]


@settings(max_examples=40, deadline=None)
@given(problem=chains())
def test_a_replicated_plan_is_no_longer_than_without_prices(problem: MemoryProblem) -> None:
    def with_transfers(chosen: MemoryProblem) -> int:
        staged = replicate_stages(chosen, tolerance=0).staged(problem)
        staged.check()
        solution, _ = schedule_replicated(staged, tolerance=0)
        replace(staged, network=None).verify(solution)
        sets = copied_sets(staged, 0, 0)
        assert sets is not None
        return load_bound(problem, sets)

    assert by_hand(problem) <= with_transfers(problem) <= with_transfers(replace(problem, network=None))


@pytest.mark.parametrize(
    ("mode", "known", "unknown"), [("buffered", 8, 12), ("blocking", 8, 12), ("overlapped", 7, 10)]
)
def test_copies_are_chosen_for_what_moves_too(mode: Mode, known: int, unknown: int) -> None:
    """Operations of 4 ns and a transfer of 20: two copies would do for computing, the transfer is worth a third."""
    problem = chain([4, 4], [20], 6, mode)
    staged = problem.staged([(0, 1, 2), (3, 4, 5)], [0, 1])
    for priced, copies, expected in ((staged, 3, known), (replace(staged, network=None), 2, unknown)):
        found = copied_sets(priced, 0, 0)
        assert found is not None
        assert [len(found.copies(v)) for v in (0, 1)] == [copies, copies]
        assert load_bound(problem, found) == expected
