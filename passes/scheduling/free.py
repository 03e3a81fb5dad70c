"""Few operations on any sets of accelerators: the least period, and its proof.

Two steps. *Sets* (``accelerator_sets.py``): no family of operations that all meet each other takes longer than
the period. *Circle*: with the sets fixed, starts modulo the period are found by CP-SAT as well. On four
accelerators with allotments of 1, 2 and 4 the second step cannot fail: operations that meet are adjacent
edges of a graph without odd cycles longer than three, so who meets whom is a perfect graph (Trotter, "Line
perfect graphs", Mathematical Programming 12, 1977), and the heaviest clique is the period. On more
accelerators odd cycles may need more; then sets and starts are searched for together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import ceil
from typing import Any

from passes.scheduling.accelerator_sets import Times, choose_sets, deterministic_solver
from passes.scheduling.budget import Budget
from passes.scheduling.data import Solution
from passes.scheduling.elementary import usable
from passes.scheduling.interruptible import solve
from passes.scheduling.laminar import LEAST, schedule_laminar
from passes.scheduling.problem import StagedProblem
from passes.scheduling.retime import CycleTooLong, from_offsets
from passes.scheduling.shorten import shorten

SLACK_SECONDS, SECONDS_A_UNIT = 1.0, 4.0
"""Wall clock of the circle, a safety stop: pushing starts on by single ns is hardly counted as work by CP-SAT."""

MOST_INTERVALS = 400
"""Operations times accelerators beyond which sets and starts are not searched for together."""


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
    solver = deterministic_solver(budget, work)
    left = budget.left()
    longest = SLACK_SECONDS + SECONDS_A_UNIT * work
    solver.parameters.max_time_in_seconds = longest if left is None else min(left, longest)
    status = solve(solver, model)
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
