"""The choice among plans: candidates of every family, the best by an objective within limits, fronts.

A staging of a family (``families.py``) and the engine that works inside its blocks give a *candidate*, a
verified schedule with its figures. ``auto`` asks every family, quick and tame ones first, and takes the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution, Violation
from passes.scheduling.families import (
    BOTH_WAYS,
    CALM,
    FAMILIES,
    KEEP_BLOCKS,
    LINKED,
    OPERATOR_PLANS,
    SOLVERS,
    TINY,
    Request,
    whole,
)
from passes.scheduling.fitting import Fitting, Misfit
from passes.scheduling.objective import Figures, Limits, figures_of
from passes.scheduling.problem import MemoryProblem, StagedProblem
from passes.scheduling.repairs import Repair, Schedule
from passes.scheduling.transfers import calmer, fewer, with_transfers

__all__ = [
    "FAMILIES",
    "OPERATOR_PLANS",
    "SOLVERS",
    "Candidate",
    "Request",
    "candidates",
    "collect",
    "front",
    "solve",
    "whole",
]

ROUNDS = 5
"""How often a family is asked again with more memory kept free for values in flight."""


WEIGHT = {"pushed": 4, "laminar": 3, "assigned": 3, "free": 3}
"""How much of the budget a plan gets, beside the others' 1; they hardly use theirs, and what is left goes on."""


MANY_STAGES = 8
"""The weight of contiguous stages where schedules of several numbers of stages are wanted."""


def _weight(plan: str, request: Request) -> int:
    return MANY_STAGES if plan == "stages" and request.several else WEIGHT.get(plan, 1)


@dataclass(frozen=True)
class Candidate:
    """A verified schedule, the plan it belongs to, its stages, the engine that found it and its figures."""

    plan: str
    staged: StagedProblem
    solution: Solution
    engine: str
    figures: Figures


Judge = Callable[[Candidate], bool]
"""Whether a schedule is good enough to look for no other."""


def asked(problem: MemoryProblem, request: Request) -> list[str]:
    """The plans that may give what ``request`` wants; raises :class:`InvalidProblem` when there is none."""
    if request.plan != "auto":
        names = [request.plan]
    else:
        few = len(problem.items) <= TINY
        unwanted = set[str]() if few and request.several else {"laminar" if few else "free"}
        if request.objective.kind == "period":
            unwanted.add("list")  # is meant for the latency alone
        if problem.network is None:
            unwanted.add("assigned")  # is about what crossings cost
        if problem.copies == 1:
            unwanted.add("replicated")
        names = [name for name in FAMILIES if name not in unwanted]
        if request.granularity == "block" or problem.filled:
            names = [name for name in names if name in KEEP_BLOCKS]
    able = [name for name in names if request.solver is None or request.solver in SOLVERS[name]]
    if not able:
        has = ", ".join(dict.fromkeys(solver for name in names for solver in SOLVERS[name]))
        message = f"plan '{request.plan}' has no solver '{request.solver}', it has: {has}"
        raise InvalidProblem([Violation("solver", message)])
    return able


def candidates(
    problem: MemoryProblem, request: Request, budget: Budget, good_enough: Judge | None = None
) -> Iterator[Candidate]:
    """Verified schedules of the plan asked for, or of every plan; those that do not fit in memory are left out.

    After a schedule that is ``good_enough`` no other is looked for.
    Raises the :class:`InvalidProblem` of the first family when none has a schedule at all.
    """
    bounded = request.limits.bounded(problem)
    if bounded is not problem:
        problem = bounded
        problem.check()
    problem = request.allowing(problem)
    names = asked(problem, request)
    refusal: InvalidProblem | None = None
    found = False
    for number, name in enumerate(names):
        part = budget.part(_weight(name, request) / sum(_weight(later, request) for later in names[number:]))
        try:
            for candidate in _fitting(name, problem, request, part):
                found = True
                yield candidate
                if good_enough is not None and good_enough(candidate):
                    return
        except InvalidProblem as reason:
            refusal = refusal or reason
        budget.spend(part.used)
        if part.stopped:
            budget.stop()
        if found and budget.spent():
            return
    if not found:
        message = f"there is no schedule of plan '{request.plan}'"
        raise refusal or InvalidProblem([Violation("plan", message)])


def _fitting(name: str, problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[Candidate]:
    """The candidates of a family, more memory kept free from round to round while a schedule does not fit."""
    family = FAMILIES[name][0]
    reserve = request.reserve
    refusal: InvalidProblem | None = None
    for _ in range(ROUNDS):
        missing = 0
        now = replace(request, reserve=reserve)
        for staged in family(problem, now, budget):
            for solution, by in scheduled(name, staged, now, budget):
                broken = staged.violations(solution)
                if broken:
                    missing = max(missing, *(v.missing for v in broken))
                    refusal = refusal or InvalidProblem(broken)
                else:
                    yield Candidate(name, staged, solution, by, figures_of(problem, solution))
        if not missing or (name in OPERATOR_PLANS and name != "assigned"):
            break
        if name == "stages" and fittable(request):
            try:
                yield from fitted(problem, request, budget)
            except Misfit as reason:
                if reason.nearest is not None:
                    refusal = reason
            break
        reserve = max(reserve + missing, 2 * reserve)
    if refusal is not None:
        raise refusal


def fittable(request: Request) -> bool:
    """Whether :func:`fitted` can do what is asked for: stages cut anywhere."""
    return request.granularity == "operator"


def stages_engine(request: Request, budget: Budget) -> Schedule:
    """Schedules inside granted blocks as plan ``stages`` makes them."""
    return lambda staged: scheduled("stages", staged, request, budget)


def blocks_asked(problem: MemoryProblem, request: Request) -> int | None:
    """The number of blocks where a number of stages is asked for, of which those that take turns share one."""
    if request.stages is None:
        return None
    return (request.stages + 1) // 2 if problem.together else request.stages


def fitted(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[Candidate]:
    """Candidates of plan ``stages`` that fit in memory, ever shorter ones; :class:`Misfit` when none was found."""
    engine, blocks = stages_engine(request, budget), blocks_asked(problem, request)
    for staged, solution, by in Fitting(problem, engine, budget, blocks, request.stages).found():
        yield Candidate("stages", staged, solution, by, figures_of(problem, solution))


def scheduled(plan: str, staged: StagedProblem, request: Request, budget: Budget) -> Iterator[tuple[Solution, str]]:
    """What the engine of the plan makes of ``staged``, with its transfers, and the engine that found it.

    Engines that know nothing of links see none, the others are asked both ways. Schedules get their transfers
    afterwards: with a period as short as can be, and where that takes many more micro-batches in flight, or more than
    are allowed, with a longer one too.
    """
    ways = [staged] if staged.network is None or plan in LINKED else []
    if staged.network is not None and (plan in BOTH_WAYS or not ways):
        ways.append(replace(staged, network=None))
    made: list[Solution] = []
    for known in ways:
        solution, by = FAMILIES[plan][1](known, request, budget)
        if solution in made:
            continue
        made.append(solution)
        tight = with_transfers(staged, solution, budget, tolerance=request.objective.tolerance)
        yield tight, by
        if (calm := calmer(staged, solution, tight, budget)) is not None:
            yield calm, by
        most = request.limits.in_flight
        if most is not None and (slow := fewer(staged, solution, tight, most, budget)) is not None:
            yield slow, by
        if budget.spent():
            break


def collect(
    problem: MemoryProblem, request: Request, budget: Budget, good_enough: Judge | None = None
) -> list[Candidate]:
    """All :func:`candidates`, or those found until the user interrupted."""
    return gathered(candidates(problem, request, budget, good_enough), budget)


def gathered(source: Iterator[Candidate], budget: Budget) -> list[Candidate]:
    """What ``source`` yields until it ends or the user interrupts; with nothing yet the interrupt passes."""
    found: list[Candidate] = []
    try:
        for candidate in source:
            found.append(candidate)
    except KeyboardInterrupt:
        if not found:
            raise
        budget.stop()
    return found


def solve(problem: MemoryProblem, request: Request, budget: Budget, good_enough: Judge | None = None) -> Candidate:
    """The best schedule found, by the objective, within the limits.

    Without a limit ``auto`` keeps to ``CALM`` micro-batches in flight for each accelerator where it can: plans
    that map single operations gain their last percent of the period with ten times as many, which nobody wants
    unasked. A schedule beyond a limit is never ``good_enough``.
    Raises :class:`InvalidProblem` when there is none; it says which limit the nearest schedule breaks.
    """

    def enough(candidate: Candidate) -> bool:
        if good_enough is None or not request.limits.keeps(candidate.figures):
            return False
        return _calm(candidate, request, problem) and good_enough(candidate)

    within = kept(collect(problem, request, budget, enough), request.limits)
    calm = [c for c in within if _calm(c, request, problem)]
    best = request.objective.best(calm or within, lambda c: c.figures)
    assert best is not None, "at least one schedule keeps the limits"
    return best


def _calm(candidate: Candidate, request: Request, problem: MemoryProblem) -> bool:
    if request.plan != "auto" or request.limits.in_flight is not None:
        return True
    return candidate.figures.in_flight <= CALM * problem.accelerators


def kept(found: Sequence[Candidate], limits: Limits) -> list[Candidate]:
    """The candidates within the limits; :class:`InvalidProblem` when none is, with what the nearest one breaks."""
    within = [c for c in found if limits.keeps(c.figures)]
    if not within:
        nearest = min(found, key=lambda c: (len(list(limits.broken(c.figures))), c.figures.in_flight))
        raise InvalidProblem(list(limits.broken(nearest.figures)))
    return within


def inside(problem: StagedProblem, request: Request, budget: Budget) -> Iterator[Candidate]:
    """Verified schedules in blocks that are granted already, by every engine that works inside such blocks.

    Operations are placed for themselves where one block of all accelerators is granted. Raises the
    :class:`InvalidProblem` of the first engine when none has a schedule.
    """
    problem = request.allowing(problem)
    plans = [plan_of(problem)]
    wanted = asked(problem, request)
    if problem.blocks == (tuple(range(problem.accelerators)),):
        plans += [name for name in wanted if name in OPERATOR_PLANS]
    if not problem.shared and "replicated" in wanted:
        plans.append("replicated")
    refusal: InvalidProblem | None = None
    found = False
    for plan in plans:
        if found and budget.spent():
            return
        try:
            candidate = schedule_within(problem, replace(request, plan=plan), budget)
        except InvalidProblem as reason:
            refusal = refusal or reason
            continue
        found = True
        yield candidate
    if refusal is not None and not found:
        raise refusal


def schedule_within(problem: StagedProblem, request: Request, budget: Budget) -> Candidate:
    """The verified schedule of the engine of the plan in the granted blocks, whatever its other figures.

    Raises :class:`InvalidProblem` when it has none.
    """
    problem = request.allowing(request.limits.bounded(problem))
    asked(problem, request)
    refusal: InvalidProblem | None = None
    found: list[Candidate] = []
    if request.fit and request.plan == "stages" and problem.memory:
        return _within_memory(problem, request, budget)
    for solution, engine in scheduled(request.plan, problem, request, budget):
        broken = problem.violations(solution)
        if broken:
            refusal = refusal or InvalidProblem(broken)
        else:
            found.append(Candidate(request.plan, problem, solution, engine, figures_of(problem, solution)))
    within = [c for c in found if request.limits.keeps(c.figures)]
    best = request.objective.best(within or found, lambda c: c.figures)
    if best is None:
        assert refusal is not None
        raise refusal
    return best


def _within_memory(problem: StagedProblem, request: Request, budget: Budget) -> Candidate:
    """The schedule in the granted blocks that fits with the least period found; InvalidProblem when none does."""
    repair = Repair(problem, stages_engine(request, budget), budget)
    made = repair.best()
    if made is None:
        if not repair.tried:
            raise InvalidProblem([Violation("plan", "there is no schedule in the granted blocks")])
        _, nearest = min(repair.tried, key=lambda pair: pair[0])
        raise InvalidProblem(problem.violations(nearest))
    return Candidate("stages", problem, *made, figures_of(problem, made[0]))


def plan_of(problem: StagedProblem) -> str:
    """The tamest plan that grants such blocks: what the blocks are, whoever chose them."""
    passed = [block for block, _ in groupby(problem.blocks)]
    blocks = list(dict.fromkeys(passed))
    if len(blocks) == len(passed):
        return "shared" if problem.shared else "stages"
    rounds = max(passed.count(block) for block in blocks)
    back = [b for r in range(rounds) for b in (blocks[::-1] if r % 2 else blocks)]
    if not problem.shared and passed == blocks * rounds:
        return "interleaved"
    return "v" if not problem.shared and passed == [block for block, _ in groupby(back)] else "pushed"


AXES = ("period", "in-flight", "latency", "memory", "crossing")
"""Figures that a front may be asked for."""


def axis(figures: Figures, name: str) -> int:
    """The figure called ``name``, one of :data:`AXES`."""
    return int(getattr(figures, name.replace("-", "_")))


def front(found: Sequence[Candidate], axes: Sequence[str]) -> list[Candidate]:
    """The candidates that no other beats in all ``axes``, by increasing value of the first one."""

    def key(c: Candidate) -> tuple[int, ...]:
        return tuple(axis(c.figures, a) for a in axes)

    kept: list[Candidate] = []
    for candidate in sorted(found, key=key):
        mine = key(candidate)
        if not any(all(a <= b for a, b in zip(key(k), mine, strict=True)) for k in kept):
            kept.append(candidate)
    return kept
