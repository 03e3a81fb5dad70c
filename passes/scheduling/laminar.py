"""Operations packed on nested blocks of accelerators, each for itself.

Blocks of widths that divide one another, aligned, are nested or disjoint. Run the operations of the
widest blocks first, then those inside: nothing is lost to waiting, so the period equals the heaviest
load and placing is assignment. Operations go widest first, then longest first, each to the least
loaded block of its width; if the widths divide the number of accelerators, the period is at most
area / accelerators + the longest operation, both at the chosen allotments. Allotments come from a
sweep: for a cap on time, each operation takes its cheapest allotment that meets the cap.

The period is hard to beat and the latency poor: operations that follow each other sit on different
accelerators and wait for each other's offsets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

from passes.scheduling.blocks import divisor_chains
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution, Violation
from passes.scheduling.elementary import usable
from passes.scheduling.nested_milp import SECONDS, Choice, assign
from passes.scheduling.problem import StagedProblem
from passes.scheduling.retime import CycleTooLong, from_offsets, windows

CAPS = 48
"""Caps tried on the time of an operation."""


@dataclass(frozen=True)
class Packing:
    """Allotment, aligned block (first accelerator) and load before it for each operation; the heaviest load."""

    allotments: tuple[int, ...]
    first: tuple[int, ...]
    offsets: tuple[int, ...]
    period: int
    engine: str = "buddy"


def nested_widths(count: int, group: int) -> list[tuple[int, ...]]:
    """Chains of block widths for ``count`` accelerators in groups: each divides the next, the last is ``count``.

    Only the last may be no multiple of the one before, since all blocks lie inside it anyway.
    """
    group = min(group, count)
    outer: list[int] = []
    wide = group
    while wide < count:
        outer.append(wide)
        wide *= 2
    chains = {(*chain, *outer[1:]) for chain in divisor_chains(group)}
    power = 1
    while 2 * power < group:
        power *= 2
    if group == count:
        chains.add(tuple(1 << e for e in range(power.bit_length())))
    return sorted({tuple(sorted({*chain, count})) for chain in chains})


def pack(
    times: Sequence[dict[int, int]], widths: Sequence[int], count: int, budget: Budget, order: Sequence[int]
) -> Packing | None:
    """Best packing over the sweep of caps, or None when some operation fits no block.

    ``times`` holds allotment → time of each operation (equal tables should be one object); ``order`` is
    the order in which operations of one block follow each other.
    """
    tables = {id(t): t for t in times}
    columns = {key: _columns(table, widths) for key, table in tables.items()}
    if any(not c for c in columns.values()):
        return None
    weight: defaultdict[int, int] = defaultdict(int)
    for t in times:
        weight[id(t)] += 1
    best: tuple[int, dict[int, tuple[int, int, int]]] | None = None
    seen: set[tuple[tuple[int, int, int], ...]] = set()
    for cap in _caps(columns, weight, count):
        chosen = {key: _cheapest(c, cap) for key, c in columns.items()}
        identity = tuple(chosen.values())
        if identity in seen:
            continue
        seen.add(identity)
        try:
            period = _fill([chosen[id(t)] for t in times], widths, count)[0]
        except KeyboardInterrupt:
            if best is None:
                raise
            budget.stop()
            break
        if best is None or period < best[0]:
            best = (period, chosen)
            budget.report("buddy", period)
        if budget.spent():
            break
    if best is None:
        return None
    choice = [best[1][id(t)] for t in times]
    period, first = _fill(choice, widths, count)
    engine = "buddy"
    bound = max(1, -(-sum(min(w * t for _, w, t in columns[id(t)]) for t in times) // count))
    if period > bound * 1.0005 and not budget.spent():
        seconds = min(SECONDS, budget.left() or SECONDS)
        try:
            found = assign([columns[id(t)] for t in times], widths, count, period, bound, seconds)
        except KeyboardInterrupt:
            budget.stop()
            found = None
        if found is not None and _heaviest(*found, count) < period:
            choice, first = found
            period = _heaviest(choice, first, count)
            engine = "integer program"
            budget.report(engine, period)
    return Packing(tuple(k for k, _, _ in choice), tuple(first), _offsets(choice, first, order), period, engine)


def _heaviest(choice: Sequence[Choice], first: Sequence[int], count: int) -> int:
    load = [0] * count
    for (_, width, time), begin in zip(choice, first, strict=True):
        for p in range(begin, begin + width):
            load[p] += time
    return max(load)


def _columns(table: dict[int, int], widths: Sequence[int]) -> list[Choice]:
    """What each allotment takes: the next width of the chain."""
    return [(k, next(w for w in widths if w >= k), time) for k, time in sorted(table.items()) if k <= widths[-1]]


def _cheapest(columns: list[Choice], cap: int) -> Choice:
    """Least area among those that meet the cap; the fastest when none does."""
    within = [c for c in columns if c[2] <= cap]
    if not within:
        return min(columns, key=lambda c: (c[2], c[1]))
    return min(within, key=lambda c: (c[1] * c[2], c[1]))


def _caps(columns: dict[int, list[Choice]], weight: dict[int, int], count: int) -> list[int]:
    """Caps between the shortest useful one and the area bound, spread geometrically."""
    area = sum(weight[key] * min(w * t for _, w, t in c) for key, c in columns.items())
    top = max(1, -(-area // count), max(min(t for _, _, t in c) for c in columns.values()))
    times = sorted({t for c in columns.values() for _, _, t in c})
    wanted = {int(top * 1.3 * 0.9**step) for step in range(CAPS)} | {top}
    below = {max((t for t in times if t <= cap), default=times[0]) for cap in wanted}
    return sorted(below, reverse=True)


def _fill(choice: Sequence[Choice], widths: Sequence[int], count: int) -> tuple[int, list[int]]:
    """Put every operation on the least loaded block of its width: (heaviest load, first accelerator of each)."""
    by_width: defaultdict[int, list[int]] = defaultdict(list)
    for v, (_, width, _) in enumerate(choice):
        by_width[width].append(v)
    first = [0] * len(choice)
    load = [0] * count
    for width in sorted(by_width, reverse=True):
        blocks = [(load[b], b) for b in range(0, count - width + 1, width)]
        heapify(blocks)
        for v in sorted(by_width[width], key=lambda v: -choice[v][2]):
            busy, b = blocks[0]
            first[v] = b
            heapreplace(blocks, (busy + choice[v][2], b))
        for busy, b in blocks:
            load[b : b + width] = [busy] * width
    return max(load), first


def _offsets(choice: Sequence[Choice], first: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Start of each operation in the period: blocks from the widest inwards, inside a block in ``order``."""
    offsets = [0] * len(choice)
    free: defaultdict[int, int] = defaultdict(int)
    for width in sorted({w for _, w, _ in choice}, reverse=True):
        for v in order:
            if choice[v][1] == width:
                offsets[v] = free[first[v]]
                after = offsets[v] + choice[v][2]
                for p in range(first[v], first[v] + width):
                    free[p] = after
    return tuple(offsets)


def schedule_laminar(problem: StagedProblem, *, budget: Budget | None = None) -> tuple[Solution, str]:
    """Pack the operations of each granted block on nested blocks inside it; starts by least retiming.

    Raises :class:`InvalidProblem` for operations shared by two stages: their union is not nested in a block.
    """
    budget = budget or Budget()
    if problem.shared:
        v = next(iter(problem.shared))
        raise InvalidProblem(
            [
                Violation(
                    "blocks", f"'{problem.operations[v].name}' is shared by two stages: use the plan of stages", (v,)
                )
            ]
        )
    n = len(problem.operations)
    position = {v: i for i, v in enumerate(problem.topological)}
    allotments, offsets = [0] * n, [0] * n
    sets: list[tuple[int, ...]] = [()] * n
    members: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for v in range(n):
        members[problem.granted(v)].append(v)
    period, engine = 1, "buddy"
    for block, inside in members.items():
        packing = _best_packing(problem, block, inside, position, budget)
        if packing.period >= period:
            period, engine = packing.period, packing.engine
        for i, v in enumerate(inside):
            k, first = packing.allotments[i], packing.first[i]
            allotments[v], sets[v], offsets[v] = k, block[first : first + k], packing.offsets[i]
    times = [o.table[k].time for o, k in zip(problem.operations, allotments, strict=True)]
    try:
        starts = from_offsets(problem, times, offsets, period)
    except CycleTooLong:  # keep the sets, run operations in the order in which values come
        solution = windows(problem, allotments, sets, problem.topological)
        assert solution is not None, "without a limit there are always windows"
        return solution, "windows"
    return Solution(period, tuple(allotments), tuple(sets), starts), engine


def _best_packing(
    problem: StagedProblem, block: tuple[int, ...], inside: list[int], position: dict[int, int], budget: Budget
) -> Packing:
    tables = {id(problem.operations[v].table): problem.operations[v].table for v in inside}
    times = {
        key: usable(table, len(block), problem.memory) or usable(table, len(block)) for key, table in tables.items()
    }
    rows = [times[id(problem.operations[v].table)] for v in inside]
    order = sorted(range(len(inside)), key=lambda i: position[inside[i]])
    best: Packing | None = None
    for widths in nested_widths(len(block), problem.group):
        if best is None or not budget.spent():
            found = pack(rows, widths, len(block), budget, order)
            if found is not None and (best is None or found.period < best.period):
                best = found
    assert best is not None, "check() has seen that an allotment fits the block"
    return best
