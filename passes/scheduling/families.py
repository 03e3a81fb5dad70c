"""Plans as selectable families: what users ask for, which blocks a plan grants, which engine works inside them.

A family turns a problem into *stagings*: blocks of accelerators, and the stage of every operation. More than
one of a family is asked for when limits or a front want schedules with fewer micro-batches in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from passes.scheduling.assigned import ENGINES as ASSIGNED_ENGINES
from passes.scheduling.assigned import GAP as ASSIGNED_GAP
from passes.scheduling.assigned import schedule_assigned
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
from passes.scheduling.linked_stages import partition_linked
from passes.scheduling.listing import schedule_list
from passes.scheduling.objective import Limits, Objective
from passes.scheduling.problem import MemoryProblem, StagedProblem
from passes.scheduling.replicated import replicate_stages
from passes.scheduling.shared import share_boundaries
from passes.scheduling.stages import StagePlan

CALM = 4
"""Micro-batches in flight for each accelerator beyond which ``auto`` takes a schedule only when asked to."""

TINY = 16
"""Operations up to which ``auto`` looks at any sets of accelerators, not only at nested blocks."""


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
    fit: bool = False
    """Whether to look further, plan ``stages``, where a schedule does not fit in memory."""
    front: bool = False
    """Whether schedules with a longer period and fewer micro-batches in flight are wanted too."""

    @property
    def several(self) -> bool:
        """Whether one schedule of a family, that of least period, may not be the one wanted."""
        return self.front or self.limits != Limits() or self.objective.kind != "period"

    @property
    def beyond_memory(self) -> bool:
        """Whether more is asked for than a short period within memory."""
        return replace(self, limits=replace(self.limits, memory=None)).several

    def allowing(self, problem: AnyProblem) -> AnyProblem:
        """``problem`` with as many copies of an operation as the request allows."""
        most = 1
        if self.plan in ("auto", "replicated"):  # no other plan makes copies, and bounds without them are greater
            most = self.copies or (problem.accelerators if self.plan == "replicated" else 1)
        return problem if most == problem.copies else replace(problem, copies=most)


AnyProblem = TypeVar("AnyProblem", bound=MemoryProblem)
Family = Callable[[MemoryProblem, Request, Budget], Iterator[StagedProblem]]
Engine = Callable[[StagedProblem, Request, Budget], tuple[Solution, str]]


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
            plan = partition_linked(
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


def _assigned(staged: StagedProblem, request: Request, budget: Budget) -> tuple[Solution, str]:
    if staged.network is None:  # nothing that crosses costs anything
        return _nested(staged, request, budget)
    gap = max(request.gap, ASSIGNED_GAP)
    return schedule_assigned(
        staged, reserve=request.reserve, bound=request.bound, gap=gap, solver=request.solver, budget=budget
    )


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
    "assigned": (_whole, _assigned),
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
    "assigned": ASSIGNED_ENGINES,
    "free": ENGINES,
}
"""Plan → the engines that a request may name."""


KEEP_BLOCKS = ("stages", "interleaved", "v")
"""The plans that can keep blocks of the model whole, and run every operation on all accelerators of its stage."""

BOTH_WAYS = tuple(name for name, (_, engine) in FAMILIES.items() if engine in (_blocks, _copies))
"""The plans whose engine chooses differently where it knows the links; what it finds without them may be better."""

LINKED = (*BOTH_WAYS, "assigned")
"""The plans whose engine knows what transfers occupy; others get their transfers afterwards (``transfers.py``)."""
