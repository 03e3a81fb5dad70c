"""Lower bounds on the period by name, each with what it leaves out. None is above the optimum of any plan.

A bound that depends on a limit says so in its name (``at most 4 in flight``): it holds for schedules that keep
the limit. The name is all that is needed to prove a bound again (:func:`bound_named`, :func:`proves`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from passes.scheduling.accelerator_sets import sets_bound
from passes.scheduling.activation_area import activation_bound, activation_excludes
from passes.scheduling.budget import Budget
from passes.scheduling.class_program import ClassProgram, Method, program_bound
from passes.scheduling.critical_path import in_flight_bound, latency_bound, paths_exclude
from passes.scheduling.dual import dual_bound, dual_excludes
from passes.scheduling.elementary import Bound, area_bound, longest_bound, memory_bound
from passes.scheduling.objective import Limits
from passes.scheduling.problem import PeriodicProblem
from passes.scheduling.recurrence import recurrence_bound
from passes.scheduling.slow_links import SlowLinks, slow_links_bound


@dataclass(frozen=True)
class NamedBound:
    """A way to bound the period."""

    bound: Callable[[PeriodicProblem, Budget], Bound | None]
    """The best it can prove; None when it does not apply or proves no more than the area does."""
    excludes: Callable[[PeriodicProblem, int, Budget], bool] | None = None
    """Whether it excludes one period, for those that search: faster than to find the greatest."""
    costly: bool = False
    """Whether it takes more than linear time or a small linear program: only done with a budget of work."""
    leaves_out: str = ""
    """Of a costly one, what it does not know; the others say so themselves each time."""


def _program(method: Method) -> NamedBound:
    def excludes(problem: PeriodicProblem, period: int, budget: Budget) -> bool:
        program = ClassProgram(problem, method)
        return period > 0 and program.worth_it() and program.excludes(period, budget) is not None

    leaves_out = "how the pieces of an operation meet in time"
    return NamedBound(lambda problem, budget: program_bound(problem, method, budget), excludes, True, leaves_out)


_LONGEST = NamedBound(lambda problem, _: longest_bound(problem))
_DUAL = NamedBound(dual_bound, lambda problem, period, _: dual_excludes(problem, period))

bounds_by_name: dict[str, NamedBound] = {
    "longest operation": _LONGEST,
    "longest group": _LONGEST,
    "area": NamedBound(lambda problem, _: area_bound(problem)),
    "recurrence": NamedBound(lambda problem, _: recurrence_bound(problem)),
    "memory": NamedBound(lambda problem, _: memory_bound(problem)),
    "activation area": NamedBound(activation_bound, lambda problem, period, _: activation_excludes(problem, period)),
    "slow links": NamedBound(
        lambda problem, _: slow_links_bound(problem), lambda problem, period, _: SlowLinks(problem).excludes(period)
    ),
    "dual feasible functions": _DUAL,
    "dual feasible functions and memory": _DUAL,
    "integer program": _program("integer program"),
    "configurations": _program("configurations"),
    "integer program over configurations": _program("integer program over configurations"),
    "sets of accelerators": NamedBound(sets_bound, None, True, "the order in which operations meet, memory"),
}
"""Bounds that follow from the problem alone, cheapest first."""


def _in_flight(most: int) -> NamedBound:
    return NamedBound(
        lambda problem, budget: in_flight_bound(problem, most, budget),
        lambda problem, period, budget: paths_exclude(problem, period, most * period, budget),
    )


def _latency(most: int) -> NamedBound:
    return NamedBound(
        lambda problem, budget: latency_bound(problem, most, budget),
        lambda problem, period, budget: paths_exclude(problem, period, most, budget),
    )


def _limited(limits: Limits) -> list[NamedBound]:
    """The bounds that depend on these limits."""
    found: list[NamedBound] = []
    if limits.in_flight is not None and limits.in_flight > 0:
        found.append(_in_flight(limits.in_flight))
    if limits.latency is not None:
        found.append(_latency(limits.latency))
    return found


def limits_named(name: str) -> Limits:
    """The limits under which the bound of this name holds."""
    if match := re.fullmatch(r"at most ([1-9]\d{0,17}) in flight", name):
        return Limits(in_flight=int(match[1]))
    if match := re.fullmatch(r"latency at most (\d{1,18}) ns", name):
        return Limits(latency=int(match[1]))
    return Limits()


def bound_named(name: str) -> NamedBound | None:
    """The bound of this name, those of limits included; None when there is none."""
    if name in bounds_by_name:
        return bounds_by_name[name]
    of_limits = _limited(limits_named(name))
    return of_limits[0] if of_limits else None


def proves(problem: PeriodicProblem, name: str, value: int, budget: Budget) -> Bound | None:
    """A bound of at least ``value`` by the argument of this name, else the best that it gives; None when it gives none.

    Raises :class:`KeyError` when there is no bound of this name.
    """
    named = bound_named(name)
    if named is None:
        raise KeyError(name)
    if named.excludes is not None and named.excludes(problem, value - 1, budget):
        return Bound(name, value, "")
    return named.bound(problem, budget)


def all_bounds(problem: PeriodicProblem, budget: Budget | None = None, limits: Limits | None = None) -> list[Bound]:
    """Every bound that applies, cheapest first; the costly ones only if ``budget`` has a limit of work.

    With ``limits``, for schedules that keep those on latency and micro-batches in flight.
    """
    budget = budget or Budget()
    ways = [*dict.fromkeys(way for way in bounds_by_name.values() if not way.costly), *_limited(limits or Limits())]
    found = [bound for way in ways if (bound := way.bound(problem, budget)) is not None]
    return found if budget.work is None else found + _costly(problem, max(b.value for b in found), budget)


def _costly(problem: PeriodicProblem, known: int, budget: Budget) -> list[Bound]:
    """The costly bounds of more than ``known``; each begins where the one before ended."""
    found: list[Bound] = []
    part = budget.part(0.5)
    bound = sets_bound(problem, part)
    budget.spend(part.used)
    if bound is not None and bound.value > known:
        found.append(bound)
        if not part.spent():
            return found  # a search that came to its end is hardly ever beaten by the others
        known = bound.value
    steps: tuple[tuple[Method, float], ...] = (("configurations", 0.4), ("integer program over configurations", 1.0))
    for method, share in steps:
        part = budget.part(share)
        bound = program_bound(problem, method, part, known)
        budget.spend(part.used)
        if bound is not None and bound.value > known:
            known = bound.value
            found.append(bound)
    return found


def best_bound(problem: PeriodicProblem, budget: Budget | None = None, limits: Limits | None = None) -> Bound:
    """The greatest of :func:`all_bounds`; of equal ones the cheapest."""
    best, *rest = all_bounds(problem, budget, limits)
    for bound in rest:
        if bound.value > best.value:
            best = bound
    return best
