"""Plans as selectable families, and the choice among them: which blocks, and which schedule on them.

A family turns a problem into *stagings*: blocks of accelerators, and the stage of every operation. A
staging and an engine that works inside blocks give a *candidate*, a verified schedule with its figures.
``auto`` asks every family, from tame to free, and takes the best candidate by the objective; more than one
candidate of a family is asked for when limits or a front want schedules with fewer micro-batches in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeVar

from passes.scheduling.blocks import pack_blocks
from passes.scheduling.budget import Budget
from passes.scheduling.chunked import Shape, chunk_stages
from passes.scheduling.data import InvalidProblem, Solution, Violation
from passes.scheduling.free import schedule_free
from passes.scheduling.grains import Granularity
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.granted_copies import schedule_replicated
from passes.scheduling.laminar import ENGINES, GAP, schedule_laminar
from passes.scheduling.latency import stages_for_step
from passes.scheduling.listing import schedule_list
from passes.scheduling.objective import Figures, Limits, Objective, figures_of
from passes.scheduling.problem import MemoryProblem, StagedProblem
from passes.scheduling.replicated import replicate_stages
from passes.scheduling.shared import share_boundaries
from passes.scheduling.stages import StagePlan, partition_stages

CALM = 4
"""Micro-batches in flight for each accelerator beyond which ``auto`` takes a schedule only when asked to."""

ROUNDS = 5
"""How often a family is asked again with more memory kept free for values in flight."""


@dataclass(frozen=True)
class Request:
    """What a user asks of the scheduler."""

    plan: str = "auto"
    objective: Objective = field(default_factory=Objective)
    limits: Limits = field(default_factory=Limits)
    stages: int | None = None
    """Number of stages of the plans that have them; None: any."""
    laps: int | None = None
    """Ranges that the plan ``pushed`` may pull forward; None: three for eight accelerators."""
    chunks: int = 2
    """Chunks on every block of the plans ``interleaved`` and ``v``."""
    granularity: Granularity = "operator"
    """Whether blocks of the model stay whole."""
    reserve: int = 0
    """Bytes of each accelerator kept free of parameters, at least."""
    copies: int | None = None
    """Most copies of an operation; None: one, and any number in the plan ``replicated``."""
    solver: str | None = None
    """The only engine wanted, one of ``SOLVERS`` of the plan; None: any."""
    bound: int = 0
    """A lower bound on the period in ns, if one is known."""
    gap: float = 0.0
    """How far above the bound a period is good enough, as a fraction."""
    front: bool = False
    """Whether schedules with a longer period and fewer micro-batches in flight are wanted too."""

    @property
    def several(self) -> bool:
        """Whether one schedule of a family, that of least period, may not be the one wanted."""
        return self.front or self.limits != Limits() or self.objective.kind != "period"

    def allowing(self, problem: AnyProblem) -> AnyProblem:
        """``problem`` with as many copies of an operation as the request allows."""
        most = 1
        if self.plan in ("auto", "replicated"):  # no other plan makes copies, and bounds without them are greater
            most = self.copies or (problem.accelerators if self.plan == "replicated" else 1)
        return problem if most == problem.copies else replace(problem, copies=most)


@dataclass(frozen=True)
class Candidate:
    """A verified schedule, the plan it belongs to, its stages, the engine that found it and its figures."""

    plan: str
    staged: StagedProblem
    solution: Solution
    engine: str
    figures: Figures


AnyProblem = TypeVar("AnyProblem", bound=MemoryProblem)
Family = Callable[[MemoryProblem, Request, Budget], Iterator[StagedProblem]]
Engine = Callable[[StagedProblem, Request, Budget], tuple[Solution, str]]
Judge = Callable[[Candidate], bool]
"""Whether a schedule is good enough to look for no other."""


def whole(problem: MemoryProblem) -> StagedProblem:
    """One stage of all accelerators, for plans that map single operations."""
    return problem.staged([tuple(range(problem.accelerators))], [0] * len(problem.operations))


def _stages(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
    """The partition of least period, and where several are wanted those of fewer stages and of little latency."""
    if request.objective.kind != "period":
        yield from _batch(problem, request, budget)
        if budget.spent() and request.stages is None and not problem.together:
            return
    numbers: list[int | None] = [request.stages]
    for number in numbers:  # grows while it is walked
        if number is not None and number != request.stages and budget.spent():
            return
        try:
            plan = partition_stages(
                problem,
                stages=number,
                reserve=request.reserve,
                tolerance=request.objective.tolerance,
                granularity=request.granularity,
                budget=budget,
            )
        except InvalidProblem:
            if number == request.stages or not problem.together:
                raise
            continue  # groups allow some numbers of stages and not others
        yield _granted(problem, plan)
        if number is None and request.several:
            numbers += _fewer(len(plan.stages), request.limits.in_flight)
    if request.front and request.objective.kind == "period" and not budget.spent():
        yield from _batch(problem, request, budget)


def _batch(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
    """The stages of the least time of a step."""
    if request.stages is None and not problem.together:
        batch, grains = request.objective.batch, request.granularity
        plan = stages_for_step(problem, batch, reserve=request.reserve, budget=budget, granularity=grains)
        yield _granted(problem, plan)


def _granted(problem: MemoryProblem, plan: StagePlan) -> StagedProblem:
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None, "the widths were chosen so that they can be packed"
    return problem.staged(plan.granted(blocks), plan.homes())


def _fewer(stages: int, most: int | None) -> list[int]:
    """Numbers of stages below ``stages`` worth trying: all up to 8, then ever wider apart; at most ``most`` first."""
    numbers = {stages * 7**step // 8**step for step in range(1, 40)} - {0, stages}
    if most is not None and most < stages:
        numbers |= {most, most - 1} - {0}
    return sorted(numbers, reverse=True)


def _sharing(problem: MemoryProblem, request: Request, budget: Budget, laps: int) -> Iterator[StagedProblem]:
    if problem.together:
        message = "plans that share boundaries cannot keep operations that share parameters on one set: use plan stages"
        raise InvalidProblem([Violation("plan", message, problem.together[0])])
    plan = share_boundaries(
        problem,
        laps=laps,
        max_in_flight=request.limits.in_flight,
        reserve=request.reserve,
        tolerance=request.objective.tolerance,
        budget=budget,
    )
    if plan is not None:
        yield plan.staged(problem)


def _shared(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
    yield from _sharing(problem, request, budget, 0)


def _pushed(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
    most = problem.accelerators * 3 // 8 if request.laps is None else request.laps
    if not most:
        return
    tight = request.limits.in_flight is not None
    first = list(_sharing(problem, request, budget, most))
    yield from first
    if not request.several or (tight and not first):
        return
    # the estimate of what a range costs is careful: try what it leaves out, the schedule shows what it has
    free = replace(request, limits=replace(request.limits, in_flight=None))
    for laps in sorted({most >> step for step in range(0 if tight else 1, 4)} - {0}, reverse=True):
        if budget.spent():
            return
        yield from _sharing(problem, free, budget, laps)


def _chunked(problem: MemoryProblem, request: Request, budget: Budget, shape: Shape) -> Iterator[StagedProblem]:
    if request.stages is None:  # these choose the number of their blocks themselves
        plan = chunk_stages(
            problem,
            shape=shape,
            chunks=request.chunks,
            reserve=request.reserve,
            tolerance=request.objective.tolerance,
            granularity=request.granularity,
            budget=budget,
        )
        yield plan.staged(problem)


def _interleaved(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
    yield from _chunked(problem, request, budget, "interleaved")


def _there_and_back(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
    yield from _chunked(problem, request, budget, "v")


def _replicated(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
    if request.stages is None:  # the number of stages is chosen with that of their copies
        tolerance = request.objective.tolerance
        plan = replicate_stages(problem, reserve=request.reserve, tolerance=tolerance, budget=budget)
        yield plan.staged(problem)


def _whole(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
    yield whole(problem)


def _blocks(staged: StagedProblem, request: Request, budget: Budget) -> tuple[Solution, str]:
    return schedule_blocks(staged, budget=budget)


def _copies(staged: StagedProblem, request: Request, budget: Budget) -> tuple[Solution, str]:
    return schedule_replicated(staged, tolerance=request.objective.tolerance, budget=budget)


def _list(staged: StagedProblem, request: Request, budget: Budget) -> tuple[Solution, str]:
    return schedule_list(staged, request.objective.batch, tolerance=request.objective.tolerance, budget=budget)


def _nested(staged: StagedProblem, request: Request, budget: Budget) -> tuple[Solution, str]:
    gap = max(request.gap, GAP)
    if request.plan == "auto" and request.solver is None and len(staged.items) > TINY:
        first = schedule_laminar(staged, bound=request.bound, gap=gap, solver="buddy", budget=budget)
        most = request.limits.in_flight or CALM * staged.accelerators
        if staged.in_flight(first[0]) > most:
            return first  # a search shortens the period, not the latency: it would not be taken
    return schedule_laminar(staged, bound=request.bound, gap=gap, solver=request.solver, budget=budget)


def _free(staged: StagedProblem, request: Request, budget: Budget) -> tuple[Solution, str]:
    return schedule_free(staged, bound=request.bound, gap=request.gap, solver=request.solver, budget=budget)


FAMILIES: dict[str, tuple[Family, Engine]] = {
    "stages": (_stages, _blocks),
    "interleaved": (_interleaved, _blocks),
    "v": (_there_and_back, _blocks),
    "shared": (_shared, _blocks),
    "pushed": (_pushed, _blocks),
    "replicated": (_replicated, _copies),
    "list": (_whole, _list),
    "laminar": (_whole, _nested),
    "free": (_whole, _free),
}
"""Plan → where its blocks come from, and the engine that schedules inside them; from tame and quick to free."""

OPERATOR_PLANS = tuple(name for name, (family, _) in FAMILIES.items() if family is _whole)
"""The plans that map single operations to the accelerators of one block of all."""

SOLVERS: dict[str, tuple[str, ...]] = {
    "stages": ("blocks",),
    "shared": ("beam",),
    "pushed": ("beam",),
    "interleaved": ("blocks",),
    "v": ("blocks",),
    "replicated": ("blocks",),
    "list": ("list",),
    "laminar": ENGINES,
    "free": ENGINES,
}
"""Plan → the engines that a request may name."""

WEIGHT = {"pushed": 4, "laminar": 3, "free": 3}
"""How much of the budget a plan gets, beside the others' 1; they hardly use theirs, and what is left goes on."""

TINY = 16
"""Operations up to which ``auto`` looks at any sets of accelerators, not only at nested blocks."""


def asked(problem: MemoryProblem, request: Request) -> list[str]:
    """The plans that may give what ``request`` wants; raises :class:`InvalidProblem` when there is none."""
    if request.plan != "auto":
        names = [request.plan]
    else:
        few = len(problem.items) <= TINY
        unwanted = set[str]() if few and request.several else {"laminar" if few else "free"}
        if request.objective.kind == "period":
            unwanted.add("list")  # is meant for the latency alone
        if problem.copies == 1:
            unwanted.add("replicated")
        names = [name for name in FAMILIES if name not in unwanted]
        if request.granularity == "block":
            names = [name for name in names if name in KEEP_BLOCKS]
    able = [name for name in names if request.solver is None or request.solver in SOLVERS[name]]
    if not able:
        has = ", ".join(dict.fromkeys(solver for name in names for solver in SOLVERS[name]))
        message = f"plan '{request.plan}' has no solver '{request.solver}', it has: {has}"
        raise InvalidProblem([Violation("solver", message)])
    return able


KEEP_BLOCKS = ("stages", "interleaved", "v")
"""The plans that can keep blocks of the model whole."""


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
        part = budget.part(WEIGHT.get(name, 1) / sum(WEIGHT.get(later, 1) for later in names[number:]))
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
    family, engine = FAMILIES[name]
    reserve = request.reserve
    refusal: InvalidProblem | None = None
    for _ in range(ROUNDS):
        missing = 0
        for staged in family(problem, replace(request, reserve=reserve), budget):
            solution, by = engine(staged, request, budget)
            broken = staged.violations(solution)
            if broken:
                missing = max(missing, *(v.missing for v in broken))
                refusal = refusal or InvalidProblem(broken)
            else:
                yield Candidate(name, staged, solution, by, figures_of(problem, solution))
        if not missing or FAMILIES[name][0] is _whole:
            break
        reserve = max(reserve + missing, 2 * reserve)
    if refusal is not None:
        raise refusal


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
    solution, engine = FAMILIES[request.plan][1](problem, request, budget)
    problem.verify(solution)
    return Candidate(request.plan, problem, solution, engine, figures_of(problem, solution))


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
