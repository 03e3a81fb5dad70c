"""The plans of the scheduler, each a function from a problem to a schedule: add a line to have a new one measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from passes.scheduling.blocks import pack_blocks
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.laminar import schedule_laminar
from passes.scheduling.packing import schedule_rigid
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.shared import share_boundaries
from passes.scheduling.stages import partition_stages

Plan = Callable[[MemoryProblem, Budget], Solution | tuple[Solution, int] | None]
"""A schedule, with the lower bound where the plan proves one; None: it does not apply, or found nothing."""


def stages(problem: MemoryProblem, budget: Budget) -> Solution | None:
    """Contiguous stages on blocks of their own."""
    plan = partition_stages(problem, tolerance=0.0, budget=budget)
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None
    return schedule_blocks(problem.staged(plan.granted(blocks), plan.homes()))[0]


def shared(problem: MemoryProblem, budget: Budget) -> Solution | None:
    """Stages that share operations at their boundaries."""
    plan = share_boundaries(problem, laps=0, tolerance=0.0, budget=budget)
    return None if plan is None else schedule_blocks(plan.staged(problem))[0]


def pushed(problem: MemoryProblem, budget: Budget) -> Solution | None:
    """Stages that also take over operations of later ones, each for a lap more."""
    plan = share_boundaries(problem, laps=max(1, problem.accelerators // 4), tolerance=0.0, budget=budget)
    return None if plan is None else schedule_blocks(plan.staged(problem))[0]


def laminar(problem: MemoryProblem, budget: Budget) -> Solution | None:
    """Single operations on nested blocks."""
    everything = problem.staged([tuple(range(problem.accelerators))], [0] * len(problem.operations))
    return schedule_laminar(everything, budget=budget)[0]


def rigid(problem: MemoryProblem, budget: Budget) -> tuple[Solution, int] | None:
    """Single operations on single accelerators, where no other allotment exists."""
    if any(set(o.table) != {1} for o in problem.operations):
        return None
    solution, found = schedule_rigid(problem, budget=budget)
    return solution, found.bound


PLANS: dict[str, Plan] = {"stages": stages, "shared": shared, "pushed": pushed, "laminar": laminar}
"""The plans for moldable operations."""

OPERATORS: dict[str, Plan] = {"laminar": laminar, "rigid": rigid}
"""The plans that map single operations, cheapest first."""

EXACT: dict[str, Plan] = {}
"""Engines that prove optima of small problems."""


@dataclass(frozen=True)
class Outcome:
    """A verified schedule of one plan, what it costs, and how long it took to find."""

    plan: str
    period: int
    in_flight: int
    latency: int
    peak: int
    crossing: int
    seconds: float
    bound: int
    """Proved by the plan itself; 0 where it proves none."""


def measure(name: str, plan: Plan, problem: MemoryProblem, seconds: float) -> Outcome | None:
    """Run ``plan`` and verify what it found; None when it found nothing."""
    begun = time.perf_counter()
    try:
        found = plan(problem, Budget(seconds))
    except InvalidProblem:
        return None
    spent = time.perf_counter() - begun
    if found is None:
        return None
    solution, bound = found if isinstance(found, tuple) else (found, 0)
    problem.verify(solution)
    return describe(name, problem, solution, spent, bound)


def describe(name: str, problem: MemoryProblem, solution: Solution, seconds: float, bound: int = 0) -> Outcome:
    """The figures of a schedule."""
    peaks = problem.peak_memory(solution).values()
    peak = max((params + live for params, live in peaks), default=0)
    latency, flying = problem.latency(solution), problem.in_flight(solution)
    return Outcome(name, solution.period, flying, latency, peak, problem.crossing(solution), seconds, bound)
