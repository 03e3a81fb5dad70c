"""Few operations on any sets of accelerators: the least period, and its proof.

Two steps. *Sets*: CP-SAT chooses a set for every operation so that no accelerator is busy longer than the
period, and no family of operations that all meet each other takes longer than it either: sets that hold
two of three accelerators, or three of five, meet pairwise. The value is a lower bound for every schedule
whose operations keep their accelerators. *Circle*: with the sets fixed, starts modulo the period are
found by CP-SAT as well. On four accelerators with allotments of 1, 2 and 4 the second step cannot fail:
operations that meet are the edges of a line graph of a graph without odd cycles longer than three, which
is perfect (Trotter, "Line perfect graphs", Mathematical Programming 12, 1977), so the heaviest clique is the
period. On more accelerators odd cycles may need more; then sets and starts are searched for together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from math import ceil, comb, gcd
from typing import Any

from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Solution
from passes.scheduling.elementary import Bound, area_bound, possible, usable
from passes.scheduling.laminar import LEAST, pack, schedule_laminar
from passes.scheduling.problem import MemoryProblem, PeriodicProblem, StagedProblem
from passes.scheduling.retime import CycleTooLong, from_offsets
from passes.scheduling.shorten import shorten

MOST_SETS = 4000
"""Pairs of a class of operations and a set beyond which the program is not built."""

MOST_INTERVALS = 400
"""Operations times accelerators beyond which sets and starts are not searched for together."""

Times = Mapping[int, int]
"""Allotment → time in ns."""


@dataclass(frozen=True)
class Sets:
    """A set for each operation, the load of the heaviest clique, and what no choice of sets can be below."""

    members: tuple[tuple[int, ...], ...]
    load: int
    bound: int


def choose_sets(
    tables: Sequence[Times], accelerators: int, low: int, high: int, work: float, budget: Budget
) -> Sets | None:
    """Sets whose heaviest family of operations that meet is least, between ``low`` and ``high`` ns.

    None when the program is too large (``MOST_SETS``), or nothing was found with ``work`` units.
    """
    classes: defaultdict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for v, table in enumerate(tables):
        classes[tuple(sorted((k, t) for k, t in table.items() if t <= high))].append(v)
    if sum(comb(accelerators, k) for columns in classes for k, _ in columns) > MOST_SETS:
        return None
    from ortools.sat.python import cp_model

    unit = reduce(gcd, [t for columns in classes for _, t in columns]) or 1
    model: Any = cp_model.CpModel()
    period: Any = model.new_int_var(ceil(low / unit), high // unit, "period")
    rows: list[tuple[frozenset[int], int, Any]] = []
    taken: list[tuple[list[int], tuple[int, ...], Any]] = []
    for columns, members in classes.items():
        mine: list[Any] = []
        for k, time in columns:
            for chosen in combinations(range(accelerators), k):
                x = model.new_int_var(0, len(members), "")
                mine.append(x)
                rows.append((frozenset(chosen), time // unit, x))
                taken.append((members, chosen, x))
        model.add(sum(mine) == len(members))
    loads = [sum(t * x for chosen, t, x in rows if p in chosen) for p in range(accelerators)]
    for p, load in enumerate(loads):
        model.add(load <= period)
        if p:
            model.add(load <= loads[p - 1])  # accelerators are interchangeable
    for size in (3, 5):
        for some in combinations(range(accelerators), size):
            family = [t * x for chosen, t, x in rows if 2 * len(chosen.intersection(some)) > size]
            model.add(sum(family) <= period)
    model.add(sum(len(chosen) * t * x for chosen, t, x in rows) <= accelerators * period)
    model.minimize(period)
    solver = _solver(budget, work)
    status = solver.solve(model)
    budget.spend(solver.response_proto.deterministic_time)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    sets: list[tuple[int, ...]] = [()] * len(tables)
    left = {id(members): list(members) for members, _, _ in taken}
    for members, chosen, x in taken:
        for _ in range(solver.value(x)):
            sets[left[id(members)].pop()] = chosen
    bound = ceil(solver.best_objective_bound - 1e-6) * unit
    return Sets(tuple(sets), solver.value(period) * unit, max(low, bound))


def _solver(budget: Budget, work: float) -> Any:
    from ortools.sat.python import cp_model

    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # deterministic, and as fast as more on programs of this size
    solver.parameters.random_seed = budget.seed
    solver.parameters.max_deterministic_time = work
    if (left := budget.left()) is not None:
        solver.parameters.max_time_in_seconds = left
    return solver


def sets_bound(problem: PeriodicProblem, budget: Budget | None = None) -> Bound | None:
    """No choice of sets has a lighter heaviest family of operations that meet. None when it is not tried."""
    budget = budget or Budget(work=2.0)
    memory = problem.memory if isinstance(problem, MemoryProblem) else 0
    count = problem.accelerators
    tables = [possible(table, count, memory) for table in problem.item_tables]
    if not tables or not all(tables) or sum(comb(count, k) for t in tables for k in t) > MOST_SETS:
        return None
    known = pack(
        [{k: Cost(t) for k, t in table.items()} for table in tables], count, count, solver="buddy", budget=budget
    )
    high = max(1, sum(min(t.values()) for t in tables)) if known is None else known.period
    low = min(high, area_bound(problem).value)
    work = budget.work_left()
    found = choose_sets(tables, count, low, high, 2.0 if work is None else work, budget)
    if found is None:
        return None
    return Bound("sets of accelerators", found.bound, "the order in which operations meet, memory")


def on_circle(
    sets: Sequence[Sequence[int]], times: Sequence[int], period: int, work: float, budget: Budget
) -> list[int] | None:
    """Starts modulo ``period`` with which operations on common accelerators do not overlap; None when not found."""
    found = _circle([{len(s): t} for s, t in zip(sets, times, strict=True)], sets, period, period, work, budget)
    return None if found is None else found[2]


def together(
    tables: Sequence[Times], accelerators: int, low: int, high: int, work: float, budget: Budget
) -> tuple[int, list[tuple[int, ...]], list[int], int] | None:
    """Period, sets, starts and a lower bound, searched for together between ``low`` and ``high`` ns.

    An accelerator's first operation starts at its *base*; its last one ends a period later at most.
    """
    if len(tables) * accelerators > MOST_INTERVALS:
        return None
    return _circle(tables, [range(accelerators)] * len(tables), low, high, work, budget)


def _circle(
    tables: Sequence[Times], may: Sequence[Sequence[int]], low: int, high: int, work: float, budget: Budget
) -> tuple[int, list[tuple[int, ...]], list[int], int] | None:
    from ortools.sat.python import cp_model

    model: Any = cp_model.CpModel()
    period: Any = model.new_int_var(low, high, "period")
    accelerators = sorted({p for s in may for p in s})
    base: dict[int, Any] = {p: model.new_int_var(0, high, "") for p in accelerators}
    intervals: defaultdict[int, list[Any]] = defaultdict(list)
    starts: list[Any] = []
    uses: list[dict[int, Any]] = []
    for table, sets in zip(tables, may, strict=True):
        choice = {k: model.new_bool_var("") for k, t in table.items() if t <= high and k <= len(sets)}
        if not choice:
            return None
        model.add_exactly_one(choice.values())
        start, end = model.new_int_var(0, 2 * high, ""), model.new_int_var(0, 3 * high, "")
        time = model.new_int_var(min(table[k] for k in choice), max(table[k] for k in choice), "")
        model.add(time == sum(table[k] * x for k, x in choice.items()))
        on = {p: model.new_bool_var("") for p in sets}
        model.add(sum(on.values()) == sum(k * x for k, x in choice.items()))
        for p, here in on.items():
            intervals[p].append(model.new_optional_interval_var(start, time, end, here, ""))
            model.add(start >= base[p]).only_enforce_if(here)
            model.add(end <= base[p] + period).only_enforce_if(here)
        starts.append(start)
        uses.append(on)
    for mine in intervals.values():
        model.add_no_overlap(mine)
    model.minimize(period)
    solver = _solver(budget, work)
    status = solver.solve(model)
    budget.spend(solver.response_proto.deterministic_time)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    sets = [tuple(p for p, here in on.items() if solver.value(here)) for on in uses]
    value = solver.value(period)
    return value, sets, [solver.value(s) % value for s in starts], max(low, ceil(solver.best_objective_bound - 1e-6))


def schedule_free(
    problem: StagedProblem,
    *,
    bound: int = 0,
    gap: float = 0.0,
    solver: str | None = None,
    budget: Budget | None = None,
) -> tuple[Solution, str]:
    """Operations on any sets of the one block granted to all: nested blocks first, then any sets where few allow it.

    ``bound`` is a lower bound on the period, if one is known; ``gap`` how far above it is good enough. With more
    operations than the programs here can hold, or with several blocks, nested blocks are what is found.
    """
    budget = budget or Budget(work=10.0)
    part = budget.part(0.5)
    best, engine = schedule_laminar(problem, bound=bound, gap=gap, solver=solver, budget=part)
    budget.spend(part.used)
    if part.seconds == 0.0:  # interrupted
        budget.stop()
    if best.period <= bound * (1 + gap) or len(set(problem.blocks)) > 1 or budget.spent() or solver == "buddy":
        return best, engine.removesuffix(LEAST)
    try:
        found = _any_sets(problem, best.period, bound, budget)
    except KeyboardInterrupt:
        budget.stop()
        found = None
    if found is None:
        return best, engine.removesuffix(LEAST)
    solution, proven = found
    if solution is None:
        return best, engine.removesuffix(LEAST) + (LEAST if proven else "")
    budget.report("any sets", solution.period)
    return shorten(problem, solution, budget=budget), "any sets" + (LEAST if proven else "")


def _any_sets(problem: StagedProblem, known: int, bound: int, budget: Budget) -> tuple[Solution | None, bool] | None:
    """A schedule of a period below ``known`` (None when there is none), and whether nothing shorter exists."""
    block = problem.blocks[0]
    count = len(block)
    tables = [usable(t, count, problem.memory) or usable(t, count) for t in problem.item_tables]
    work = budget.work_left()
    chosen = choose_sets(tables, count, max(1, bound), known, 10.0 if work is None else work / 2, budget)
    if chosen is None:
        return None
    if chosen.bound >= known:
        return None, True
    members = chosen.members
    work = budget.work_left()
    if chosen.load < known:
        times = [t[len(s)] for t, s in zip(tables, members, strict=True)]
        offsets = on_circle(members, times, chosen.load, 10.0 if work is None else work / 2, budget)
        solution = None if offsets is None else _solution(problem, block, members, offsets, chosen.load)
        if solution is not None:
            return solution, chosen.bound == chosen.load
    work = budget.work_left()
    found = together(tables, count, chosen.bound, known, 10.0 if work is None else work, budget)
    if found is None:
        return None
    period, sets, offsets, least = found
    if period >= known:
        return None, least >= known
    solution = _solution(problem, block, sets, offsets, period)
    return None if solution is None else (solution, least == period)


def _solution(
    problem: StagedProblem,
    block: Sequence[int],
    sets: Sequence[Sequence[int]],
    offsets: Sequence[int],
    period: int,
) -> Solution | None:
    """The least starts for these sets and offsets of items; None when carried values come too late with them.

    The members of a group follow each other from its offset on, in topological order.
    """
    position = {v: i for i, v in enumerate(problem.topological)}
    members: list[tuple[int, ...]] = [()] * len(problem.operations)
    begin = [0] * len(problem.operations)
    for item, chosen, offset in zip(problem.items, sets, offsets, strict=True):
        for v in sorted(item, key=position.__getitem__):
            members[v], begin[v] = tuple(block[p] for p in chosen), offset % period
            offset += problem.operations[v].table[len(chosen)].time
    times = [o.table[len(s)].time for o, s in zip(problem.operations, members, strict=True)]
    try:
        starts = from_offsets(problem, times, begin, period)
    except CycleTooLong:
        return None
    return Solution(period, tuple(len(s) for s in members), tuple(members), starts)
