"""The plans of the scheduler, asked for as users ask for them, and what their schedules cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution
from passes.scheduling.laminar import LEAST, schedule_laminar
from passes.scheduling.objective import Objective, figures_of
from passes.scheduling.packing import schedule_rigid
from passes.scheduling.portfolio import Request, solve, whole
from passes.scheduling.problem import MemoryProblem

LEAST_PERIOD = Request(objective=Objective(tolerance=0.0))
"""Of every plan the schedule of least period; ``auto`` alone may weigh what it costs."""

PLANS = ("stages", "shared", "pushed", "interleaved", "v", "laminar", "auto")
"""The plans without copies that are meant for the period, from tame to free; ``auto`` last."""


@dataclass(frozen=True)
class Found:
    """A schedule, the plan that it is of, and whether the engine proved it the least of that plan."""

    solution: Solution
    plan: str = ""
    least: bool = False


Plan = Callable[[MemoryProblem, Budget], Found | Solution | None]
"""None: it does not apply, or found nothing."""


def plan(name: str, asked: Request | None = None) -> Plan:
    """The plan ``name`` of the portfolio; ``asked`` says what else is wanted (default: the least period)."""
    request = asked or (Request() if name == "auto" else LEAST_PERIOD)

    def by_portfolio(problem: MemoryProblem, budget: Budget) -> Found:
        best = solve(problem, replace(request, plan=name), budget)
        best.staged.verify(best.solution)
        return Found(best.solution, best.plan, best.engine.endswith(LEAST))

    return by_portfolio


def with_bound(name: str, bound: int) -> Plan:
    """The plan ``name``, told a lower bound on the period, so that it may stop there."""
    return plan(name, replace(Request() if name == "auto" else LEAST_PERIOD, bound=bound))


def nested(bound: int = 0) -> Plan:
    """The plan ``laminar`` without the gap at which it is content: until it is proven least or the work is done."""

    def without_gap(problem: MemoryProblem, budget: Budget) -> Found:
        solution, engine = schedule_laminar(whole(problem), bound=bound, gap=0.0, budget=budget)
        return Found(solution, "laminar", engine.endswith(LEAST))

    return without_gap


def rigid(problem: MemoryProblem, budget: Budget) -> Found | None:
    """Single operations on single accelerators, where no other allotment exists."""
    if any(set(o.table) != {1} for o in problem.operations):
        return None
    solution, found = schedule_rigid(problem, budget=budget)
    return Found(solution, "rigid", found.bound == solution.period)


def bound_with_copies(problem: MemoryProblem) -> int:
    """A lower bound on the period where operations may have any number of copies: lower than without them."""
    return best_bound(replace(problem, copies=problem.accelerators), Budget()).value


@dataclass(frozen=True)
class Outcome:
    """A verified schedule of one plan, what it costs, and how long it took to find."""

    plan: str
    """The plan that the schedule is of: for ``auto`` the one taken."""
    period: int
    in_flight: int
    latency: int
    peak: int
    crossing: int
    seconds: float
    """Of one core: what other processes do meanwhile does not count."""
    least: bool = False
    """Whether the engine proved that no schedule of its plan has a shorter period."""

    def step(self, microbatches: int) -> int:
        """Time of ``microbatches`` in ns."""
        return (microbatches - 1) * self.period + self.latency


SAFETY = 3.0
"""Seconds of wall clock for each unit of work after which a solver is stopped all the same."""


def granted(work: float) -> Budget:
    """``work`` units, about as many seconds of one core, and a safety stop."""
    return Budget(SAFETY * work, work=work)


def measure(name: str, plan: Plan, problem: MemoryProblem, work: float) -> Outcome | None:
    """Run ``plan`` with ``work`` units and verify what it found; None when it found nothing."""
    begun = time.process_time()
    try:
        found = plan(problem, granted(work))
    except InvalidProblem:
        return None
    spent = time.process_time() - begun
    if found is None:
        return None
    if isinstance(found, Solution):
        found = Found(found)
    solution = found.solution
    allowed = max([1, *(1 + len(others) for others in solution.more.values())])
    problem = replace(problem, copies=max(problem.copies, allowed))
    problem.verify(solution)
    f = figures_of(problem, solution)
    taken = found.plan or name
    return Outcome(taken, f.period, f.in_flight, f.latency, f.memory, f.crossing, spent, found.least)
