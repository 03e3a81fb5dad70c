"""Choose allotments, accelerator sets and starts inside the granted blocks."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr

from dialects.attributes import LimitsAttr, ScheduleAttr, SlotAttr
from passes.choices import Plan
from passes.instance import Instance, read_staged
from passes.requests import SchedulerPass, bound_of, incumbents
from passes.scheduling.bounds import Bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem
from passes.scheduling.objective import figures_of
from passes.scheduling.portfolio import FAMILIES, Candidate, Request, gathered, inside, kept
from passes.scheduling.problem import StagedProblem


def write_schedule(instance: Instance, found: Candidate, bound: Bound, seed: int, limits: LimitsAttr) -> None:
    """Write slots and the schedule into the graph."""
    solution = found.solution
    for op, members, start in zip(instance.operators, solution.sets, solution.starts, strict=True):
        op.slot = SlotAttr.make([members], start)
    instance.graph.schedule = ScheduleAttr(
        IntAttr(solution.period),
        IntAttr(1),
        IntAttr(bound.value),
        StringAttr(bound.name),
        StringAttr(found.plan),
        StringAttr(found.engine),
        IntAttr(seed),
        limits,
    )
    instance.graph.level = StringAttr("scheduled")


def schedule_inside(problem: StagedProblem, request: Request, budget: Budget) -> Candidate:
    """The best schedule in the granted blocks: by the engine of the plan, or of ``auto`` by any that works there.

    Raises :class:`InvalidProblem` when there is none, or none that keeps the limits.
    """
    if request.plan == "auto":
        found = gathered(inside(problem, request, budget), budget)
        best = request.objective.best(kept(found, request.limits), lambda c: c.figures)
        assert best is not None, "at least one schedule keeps the limits"
        return best
    bounded = request.limits.bounded(problem)
    solution, engine = FAMILIES[request.plan][1](bounded, budget=budget)
    bounded.verify(solution)
    figures = figures_of(bounded, solution)
    return kept([Candidate(request.plan, bounded, solution, engine, figures)], request.limits)[0]


@dataclass(frozen=True)
class SchedulePeriodicPass(SchedulerPass):
    """Choose allotments, accelerator sets and starts: level staged to scheduled.

    The schedule repeats with the period; operators keep to the blocks of their stages. It is verified
    before it is written, memory included: what does not fit or exceeds a limit is an error, never a
    schedule. The limits are written into the schedule.

    options:
      plan: "stages", "shared", "pushed", "interleaved" and "v" run each operator at its fastest allotment on its
        block, or on two where it is shared (they differ in how the stages were cut); "laminar" packs operators on
        nested blocks of accelerators inside each granted block: a smaller period, more micro-batches in flight;
        "auto" takes the best of those that can work in the granted blocks, and writes down which

    rewrite:
      %a = takt.op(...) cost <...> stage 0   ->   %a = takt.op(...) cost <...> stage 0 slot <2 on [0:2] at 0>
    """

    name = "schedule-periodic"

    plan: Plan = "stages"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        instance, problem = read_staged(op)
        bound = bound_of(instance, self.time_limit)
        budget = self.budget(incumbents(bound.value))
        try:
            found = schedule_inside(problem, self.request(self.plan), budget)
        except InvalidProblem as failure:
            raise instance.error(failure) from None
        write_schedule(instance, found, bound, self.seed, LimitsAttr.make(asdict(self.limits())))
