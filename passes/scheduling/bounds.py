"""Lower bounds on the period, each with what it leaves out. None is above the optimum of any plan."""

from __future__ import annotations

from passes.scheduling.budget import Budget
from passes.scheduling.dual import dual_bound
from passes.scheduling.elementary import Bound, area_bound, longest_bound, memory_bound
from passes.scheduling.problem import PeriodicProblem
from passes.scheduling.recurrence import recurrence_bound


def all_bounds(problem: PeriodicProblem, budget: Budget | None = None) -> list[Bound]:
    """Every bound that applies, cheapest first."""
    found = (
        longest_bound(problem),
        area_bound(problem),
        recurrence_bound(problem),
        memory_bound(problem),
        dual_bound(problem, budget),
    )
    return [b for b in found if b is not None]


def best_bound(problem: PeriodicProblem, budget: Budget | None = None) -> Bound:
    """The greatest bound; of equal ones the cheapest."""
    best, *rest = all_bounds(problem, budget)
    for bound in rest:
        if bound.value > best.value:
            best = bound
    return best
