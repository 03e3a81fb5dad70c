"""Few operations on any sets of accelerators: which sets, and a bound for every choice of them.

CP-SAT chooses a set for every operation so that no accelerator is busy longer than the period, and no
family of operations that all meet each other takes longer than it either: sets that hold two of three
accelerators, or three of five, meet pairwise. The value is a lower bound for every schedule whose
operations keep their accelerators, whatever their starts.
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
from passes.scheduling.data import Cost
from passes.scheduling.elementary import Bound, area_bound, possible
from passes.scheduling.interruptible import solve
from passes.scheduling.laminar import pack
from passes.scheduling.problem import MemoryProblem, PeriodicProblem

MOST_SETS = 4000
"""Pairs of a class of operations and a set beyond which the program is not built."""

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
    period: Any = model.new_int_var(low // unit, high // unit, "period")  # loads are multiples of unit, low need not be
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
    solver = deterministic_solver(budget, work)
    status = solve(solver, model)
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


def deterministic_solver(budget: Budget, work: float) -> Any:
    """CP-SAT limited to ``work`` units, and to the wall clock of ``budget``."""
    from ortools.sat.python import cp_model

    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # deterministic, and as fast as more on programs of this size
    solver.parameters.random_seed = budget.seed
    solver.parameters.max_deterministic_time = work
    if (left := budget.left()) is not None:
        solver.parameters.max_time_in_seconds = left
    return solver


def sets_bound(problem: PeriodicProblem, budget: Budget | None = None) -> Bound | None:
    """No choice of sets has a lighter heaviest family of operations that meet. None when it is not tried.

    Copies let an operation change its set from one micro-batch to the next, so with copies nothing is proven.
    """
    if problem.copies > 1:
        return None
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
