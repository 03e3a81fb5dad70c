"""What the passes that schedule are asked for, and how they refuse: limits as options, figures with units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from dialects.diagnostics import TaktError, at
from dialects.structure import find_graph
from passes.choices import Allotments, Goal, Solver
from passes.progress import report
from passes.scheduling.bounds import Bound, best_bound
from passes.scheduling.budget import Budget, Listener
from passes.scheduling.families import KEEP_BLOCKS
from passes.scheduling.objective import Limits, Objective
from passes.scheduling.portfolio import OPERATOR_PLANS, Candidate, Request
from passes.scheduling.problem import MemoryProblem


@dataclass(frozen=True)
class SchedulerPass(ModulePass):
    """A pass that looks for a schedule: what it is to be good at, what it must keep to, and how long to look."""

    objective: Goal = "period"
    """what is made small: "period"; "step", the time of a batch of `microbatches`; or "latency" """
    microbatches: int | None = None
    """micro-batches of a step, for the objective "step" (default: 1)"""
    max_in_flight: int | None = None
    """most micro-batches begun and not finished"""
    max_latency: int | None = None
    """most ns from the first start to the last end of a micro-batch"""
    max_memory: int | None = None
    """most bytes on an accelerator, where that is less than the platform has"""
    max_crossing: int | None = None
    """most bytes of a micro-batch that cross between accelerator sets"""
    tolerance: float | int = 0.005
    """values of the objective within this fraction of the least count as equal"""
    gap: float | int | None = None
    """stop when the period is within this fraction of its lower bound"""
    effort: float | int = 10
    """work that engines may do, in units of about one second of one core; the same work gives the same schedule"""
    time_limit: float | int = 60
    """seconds after which the best found so far is taken"""
    seed: int = 0
    """seed of every random choice"""
    solver: Solver | None = None
    """the only engine wanted (default: any)"""
    allotments: Allotments = "any"
    """on how many accelerators of its stage an operator runs: "any" number, or "stage", all of them, as runtimes need
    that know layers and meshes only (plans "stages", "interleaved" and "v", and "auto", which then asks these alone)"""
    copies: int | None = None
    """most copies of an operator (default: one, and as many as there are accelerators in the plan "replicated")"""

    fit: bool = False
    """whether, in the plan "stages", schedules that do not fit in memory lead to others: the stages that hold less"""

    def fills(self, module: ModuleOp, plan: str) -> bool:
        """Whether operators must run on all accelerators of their stages; TaktError where ``plan`` cannot do that."""
        if self.allotments == "any":
            return False
        if plan not in ("auto", *KEEP_BLOCKS):
            able = ", ".join(f"'{name}'" for name in KEEP_BLOCKS)
            message = f"plan '{plan}' cannot run every operator on all accelerators of its stage; {able} can"
            raise TaktError(at(find_graph(module) or module, message))
        return True

    def limits(self) -> Limits:
        """The limits given."""
        return Limits(self.max_in_flight, self.max_latency, self.max_memory, self.max_crossing)

    def goal(self) -> Objective:
        """The objective; a step is of one micro-batch unless it is said of how many."""
        return Objective(self.objective, self.microbatches or 1, self.tolerance)

    def budget(self, listener: Listener) -> Budget:
        """The work and the time given."""
        return Budget(self.time_limit, listener, self.effort, self.seed)

    def request(self, plan: str) -> Request:
        """The request for a schedule of ``plan``."""
        return Request(
            plan, self.goal(), self.limits(), copies=self.copies, solver=self.solver, gap=self.gap or 0.0, fit=self.fit
        )


def incumbents(bound: int, message: str = "") -> Listener:
    """A listener that passes on the least period so far: families of plans begin anew, users see what is known."""
    least: list[int] = []

    def listen(engine: str, period: int) -> None:
        least[:] = [min([*least, period])]
        report(engine, least[0], bound, message)

    return listen


def near(bound: Bound, gap: float | None) -> Callable[[Candidate], bool] | None:
    """Whether the period of a schedule is within ``gap``, a fraction, of ``bound``; None without a gap."""
    return None if gap is None else lambda candidate: candidate.figures.period <= bound.value * (1 + gap)


OPERATOR_SHARE, STAGES_SHARE = 1 / 4, 1 / 20
"""What part of the work bounds may do: engines that map single operations can end early by a bound, others cannot."""


def bound_of(problem: MemoryProblem, budget: Budget, request: Request) -> Bound:
    """The greatest bound on the period of schedules that keep the limits; the costly ones if ``budget`` has work.

    They get a part of ``budget``, and what they find on their way is not told to its listener. On an interrupt it
    is the best of the cheap ones.
    """
    part = budget.part(OPERATOR_SHARE if request.plan in ("auto", *OPERATOR_PLANS) else STAGES_SHARE)
    try:
        return best_bound(problem, replace(part, listener=None), request.limits)
    except KeyboardInterrupt:
        return best_bound(problem, None, request.limits)
