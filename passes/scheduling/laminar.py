"""Operations packed on nested blocks of accelerators, each for itself.

Blocks of widths that divide one another, aligned, are nested or disjoint. Run the operations of the
widest blocks first, then those inside: nothing is lost to waiting, so the period equals the heaviest
load and placing is assignment. Operations go widest first, then longest first, each to the least
loaded block of its width; if the widths divide the number of accelerators, the period is at most
area / accelerators + the longest operation, both at the chosen allotments. Allotments come from a
sweep: for a cap on time, each operation takes its cheapest allotment that meets the cap. What the sweep
leaves is then closed exactly for few operations, and by search over windows for many (``nested.py``).

The period is hard to beat and the latency poor: operations that follow each other sit on different
accelerators and wait for each other's offsets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace

from passes.scheduling.blocks import divisor_chains
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution, Table, Violation
from passes.scheduling.elementary import usable
from passes.scheduling.nested import FEW, Blocks, Choice, Place, exact, improve, loads_of
from passes.scheduling.nested_milp import assign as integer_program
from passes.scheduling.problem import StagedProblem
from passes.scheduling.retime import CycleTooLong, from_offsets, windows
from passes.scheduling.shorten import shorten

CAPS = 48
"""Caps tried on the time of an operation."""

GAP = 5e-4
"""How far above the bound a packing is good enough, unless the caller wants less."""

LEAST = ", least of its plan"
"""What the name of an engine ends with that proved that no other nested blocks give a shorter period."""


@dataclass(frozen=True)
class Packing:
    """Choice and first accelerator of each operation; the heaviest load, and a bound on it over nested blocks."""

    places: tuple[Place, ...]
    period: int
    bound: int
    engine: str
    blocks: Blocks


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
    tables: Sequence[Table],
    count: int,
    group: int,
    *,
    memory: int = 0,
    bound: int = 0,
    gap: float = GAP,
    solver: str | None = None,
    budget: Budget,
) -> Packing | None:
    """The best packing found of operations with these ``tables`` (equal ones should be one object).

    ``bound`` is a lower bound on the period in ns, if one is known; the search stops within ``gap`` of it.
    ``solver`` restricts the search to one of ``ENGINES``. None when some operation fits no block.
    """
    times = {id(t): usable(t, count, memory) or usable(t, count) for t in tables}
    params = {id(t): {k: c.params for k, c in t.items()} for t in tables}
    found: list[Packing] = []
    proven: list[int] = []
    for widths in nested_widths(count, group):
        if found and budget.spent():
            proven.append(max(1, bound))  # nothing more is known of the blocks that are left out
            break
        columns = {key: _columns(times[key], params[key], widths) for key in times}
        if all(columns.values()):
            swept = _sweep([columns[id(t)] for t in tables], Blocks(widths, count), budget)
            found.append(replace(swept, bound=max(swept.bound, bound)))
    if not found:
        return None
    found.sort(key=lambda p: p.period)
    room = memory or 1 << 60
    for number, packing in enumerate(found):
        if packing.period > packing.bound * (1 + gap) and not budget.spent():
            columns = {key: _columns(times[key], params[key], packing.blocks.widths) for key in times}
            part = budget.part(1 / min(2, len(found) - number))
            found[number] = _close([columns[id(t)] for t in tables], packing, room, gap, solver, part)
            budget.spend(part.used)
            if part.seconds == 0.0:  # interrupted
                budget.stop()
    best = min(found, key=lambda p: p.period)
    return replace(best, bound=min(best.period, *proven, *(p.bound for p in found)))


ENGINES = ("buddy", "cp-sat", "neighbourhoods", "milp")
"""What improves a packing: nothing, everything at once, window by window, an integer program."""


def _close(
    columns: Sequence[Sequence[Choice]], packing: Packing, room: int, gap: float, solver: str | None, budget: Budget
) -> Packing:
    """A better packing on the same blocks, or a proof that there is none, as far as the budget goes."""
    few = len(columns) <= FEW
    if solver == "milp":
        return _by_program(columns, packing, budget)
    try:
        if solver == "cp-sat" or (solver is None and few):
            work = budget.work_left()
            work = 10.0 if work is None else work if solver else work / 2
            found = exact(
                columns, packing.blocks, packing.period, places=packing.places, room=room, work=work, budget=budget
            )
            if found is not None:
                bound = max(packing.bound, min(found.bound, found.heaviest))
                packing = replace(packing, bound=bound)
                if found.heaviest < packing.period:
                    places = tuple(found.places[v] for v in range(len(columns)))
                    packing = replace(packing, places=places, period=found.heaviest, engine="cp-sat")
                    budget.report("cp-sat", packing.period)
                elif found.heaviest == packing.period and bound == packing.period:
                    packing = replace(packing, engine="cp-sat")
    except KeyboardInterrupt:
        budget.stop()
    if solver in (None, "neighbourhoods") and packing.period > packing.bound * (1 + gap) and not budget.spent():
        places = improve(columns, packing.places, packing.blocks, packing.bound, room=room, gap=gap, budget=budget)
        period = max(loads_of(places, packing.blocks.count))
        if period < packing.period:
            packing = replace(packing, places=tuple(places), period=period, engine="neighbourhoods")
    return packing


def _by_program(columns: Sequence[Sequence[Choice]], packing: Packing, budget: Budget) -> Packing:
    """The same by the integer program of ``nested_milp.py``."""
    blocks = packing.blocks
    try:
        found, bound = integer_program(columns, blocks.widths, blocks.count, packing.period, packing.bound, budget)
    except KeyboardInterrupt:
        budget.stop()
        return packing
    packing = replace(packing, bound=max(packing.bound, min(bound, packing.period)))
    if found is None:
        return packing
    period = max(loads_of(found, blocks.count))
    if period >= packing.period:
        return packing
    budget.report("milp", period)
    return replace(packing, places=tuple(found), period=period, engine="milp")


def _sweep(columns: Sequence[Sequence[Choice]], blocks: Blocks, budget: Budget) -> Packing:
    """The best packing over the sweep of caps; ``columns`` of equal operations should be one object."""
    distinct = {id(c): c for c in columns}
    weight: defaultdict[int, int] = defaultdict(int)
    for c in columns:
        weight[id(c)] += 1
    best: tuple[int, dict[int, Choice]] | None = None
    seen: set[tuple[Choice, ...]] = set()
    for cap in _caps(distinct, weight, blocks.count):
        chosen = {key: _cheapest(c, cap) for key, c in distinct.items()}
        identity = tuple(chosen.values())
        if identity in seen:
            continue
        seen.add(identity)
        try:
            period = max(load for load in _fill([chosen[id(c)] for c in columns], blocks)[0])
        except KeyboardInterrupt:
            if best is None:
                raise
            budget.stop()
            break
        budget.spend(4e-7 * len(columns))
        if best is None or period < best[0]:
            best = (period, chosen)
            budget.report("buddy", period)
        if budget.spent():
            break
    assert best is not None, "there always is a cap"
    choice = [best[1][id(c)] for c in columns]
    loads, first = _fill(choice, blocks)
    bound = max(1, -(-sum(min(c.width * c.time for c in each) for each in columns) // blocks.count))
    return Packing(tuple(zip(choice, first, strict=True)), max(loads), bound, "buddy", blocks)


def _columns(times: Mapping[int, int], params: Mapping[int, int], widths: Sequence[int]) -> list[Choice]:
    """What each allotment takes: the next width of the chain; of one width and bytes the fastest."""
    found = [
        Choice(k, next(w for w in widths if w >= k), time, params[k]) for k, time in times.items() if k <= widths[-1]
    ]
    best: dict[tuple[int, int], Choice] = {}
    for c in sorted(found, key=lambda c: (c.time, -c.allotment)):
        best.setdefault((c.width, c.params), c)
    return sorted(best.values())


def _cheapest(columns: Sequence[Choice], cap: int) -> Choice:
    """Least area among those that meet the cap; the fastest when none does."""
    within = [c for c in columns if c.time <= cap]
    if not within:
        return min(columns, key=lambda c: (c.time, c.width))
    return min(within, key=lambda c: (c.width * c.time, c.width))


def _caps(columns: Mapping[int, Sequence[Choice]], weight: Mapping[int, int], count: int) -> list[int]:
    """Caps between the shortest useful one and the area bound, spread geometrically."""
    area = sum(weight[key] * min(x.width * x.time for x in c) for key, c in columns.items())
    top = max(1, -(-area // count), max(min(x.time for x in c) for c in columns.values()))
    times = sorted({x.time for c in columns.values() for x in c})
    wanted = {int(top * 1.3 * 0.9**step) for step in range(CAPS)} | {top}
    below = {max((t for t in times if t <= cap), default=times[0]) for cap in wanted}
    return sorted(below, reverse=True)


def _fill(choice: Sequence[Choice], blocks: Blocks) -> tuple[list[int], list[int]]:
    """Put every operation on the least loaded block of its width: (load of each accelerator, first one of each)."""
    by_width: defaultdict[int, list[int]] = defaultdict(list)
    for v, c in enumerate(choice):
        by_width[c.width].append(v)
    first = [0] * len(choice)
    load = [0] * blocks.count
    for width in sorted(by_width, reverse=True):
        heap = [(load[b], b) for b in blocks.starts(width)]
        heapify(heap)
        for v in sorted(by_width[width], key=lambda v: -choice[v].time):
            busy, b = heap[0]
            first[v] = b
            heapreplace(heap, (busy + choice[v].time, b))
        for busy, b in heap:
            load[b : b + width] = [busy] * width
    return load, first


def _offsets(
    problem: StagedProblem,
    order: Sequence[int],
    width: Sequence[int],
    at: Sequence[int],
    allotments: Sequence[int],
    offsets: list[int],
) -> None:
    """Set the starts in the period of the operations in ``order``, which run on blocks (``width``, ``at``).

    Blocks from the widest inwards, inside a block in ``order``.
    """
    free: defaultdict[int, int] = defaultdict(int)
    for wide in sorted({width[v] for v in order}, reverse=True):
        for v in order:
            if width[v] == wide:
                offsets[v] = free[at[v]]
                after = offsets[v] + problem.operations[v].table[allotments[v]].time
                for p in range(at[v], at[v] + wide):
                    free[p] = after


def schedule_laminar(
    problem: StagedProblem,
    *,
    bound: int = 0,
    gap: float = GAP,
    solver: str | None = None,
    budget: Budget | None = None,
) -> tuple[Solution, str]:
    """Pack the operations of each granted block on nested blocks inside it; starts by least retiming.

    ``bound`` is a lower bound on the period of the whole problem, if one is known; the search stops within
    ``gap`` of it. ``solver`` is one of ``ENGINES``. The name of the engine ends with ``LEAST`` when no other
    nested blocks give a shorter period.
    Raises :class:`InvalidProblem` for operations shared by two stages: their union is not nested in a block.
    """
    budget = budget or Budget(work=10.0)
    if problem.shared:
        v = next(iter(problem.shared))
        message = f"'{problem.operations[v].name}' is shared by two stages: use the plan of stages"
        raise InvalidProblem([Violation("blocks", message, (v,))])
    n = len(problem.operations)
    position = {v: i for i, v in enumerate(problem.topological)}
    allotments, offsets, width, at = [0] * n, [0] * n, [0] * n, [0] * n
    sets: list[tuple[int, ...]] = [()] * n
    members: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, item in enumerate(problem.items):
        members[problem.granted_to(item)].append(i)
    period, engine, least = 1, "buddy", 0
    for number, (block, items) in enumerate(members.items()):
        tables = [problem.item_tables[i] for i in items]
        part = budget.part(1 / (len(members) - number))
        packing = pack(
            tables,
            len(block),
            problem.group,
            memory=problem.memory,
            bound=bound,
            gap=gap,
            solver=solver,
            budget=part,
        )
        budget.spend(part.used)
        if part.seconds == 0.0:  # interrupted
            budget.stop()
        assert packing is not None, "check() has seen that an allotment fits the block"
        least = max(least, packing.bound)
        if packing.period >= period:
            period, engine = packing.period, packing.engine
        inside = sorted((v for i in items for v in problem.items[i]), key=position.__getitem__)
        for i, (choice, first) in zip(items, packing.places, strict=True):
            for v in problem.items[i]:
                allotments[v] = choice.allotment
                sets[v] = block[first : first + choice.allotment]
                width[v], at[v] = choice.width, first
        _offsets(problem, inside, width, at, allotments, offsets)
    if least == period > bound:
        engine += LEAST
    times = [o.table[k].time for o, k in zip(problem.operations, allotments, strict=True)]
    try:
        starts = from_offsets(problem, times, offsets, period)
    except CycleTooLong:  # keep the sets, run operations in the order in which values come
        solution = windows(problem, allotments, sets, problem.topological)
        assert solution is not None, "without a limit there are always windows"
        return solution, "windows"
    return shorten(problem, Solution(period, tuple(allotments), tuple(sets), starts), budget=budget), engine
