"""Choose allotments, accelerator sets and starts inside the granted blocks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import groupby

from xdsl.context import Context
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr
from xdsl.ir import Operation
from xdsl.rewriter import InsertPoint, Rewriter

from dialects.attributes import LimitsAttr, ScheduleAttr, SlotAttr
from dialects.communication import ReserveOp
from passes.choices import Plan
from passes.instance import Instance, read_staged
from passes.requests import SchedulerPass, bound_of, incumbents
from passes.scheduling.bounds import Bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution, Transfer
from passes.scheduling.portfolio import Candidate, Request, gathered, inside, kept, schedule_within
from passes.scheduling.problem import StagedProblem


def write_schedule(instance: Instance, found: Candidate, bound: Bound, seed: int, limits: LimitsAttr) -> None:
    """Write slots, reserved transfers and the schedule into the graph."""
    solution = found.solution
    for v, (op, start) in enumerate(zip(instance.operators, solution.starts, strict=True)):
        op.slot = SlotAttr.make(solution.copies(v), start)
    write_transfers(instance, solution)
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


def write_transfers(instance: Instance, solution: Solution) -> None:
    """Reserve every transfer right behind the operator that makes the value, earliest first."""
    names = [link.group.data for link in instance.platform.links.data]
    network = instance.problem.network
    for v, moved in groupby(sorted(solution.transfers, key=_place), key=lambda t: t.producer):
        assert network is not None, "only links carry transfers"
        producer = instance.operators[v]
        made: list[Operation] = []
        for t in moved:
            spans = [network.level_of((*solution.set_of(v, i), *there)) for i, there in enumerate(t.targets)]
            made.append(
                ReserveOp.make(producer.results[t.result], t.targets, names[max(spans)], t.start, t.time, t.landing)
            )
        Rewriter.insert_op(made, InsertPoint.after(producer))


def _place(t: Transfer) -> tuple[int, int, int, tuple[tuple[int, ...], ...]]:
    return (t.producer, t.start, t.result, t.targets)


def schedule_inside(problem: StagedProblem, request: Request, budget: Budget) -> Candidate:
    """The best schedule in the granted blocks: by the engine of the plan, or of ``auto`` by any that works there.

    Raises :class:`InvalidProblem` when there is none, or none that keeps the limits.
    """
    if request.plan == "auto":
        found = gathered(inside(problem, request, budget), budget)
        best = request.objective.best(kept(found, request.limits), lambda c: c.figures)
        assert best is not None, "at least one schedule keeps the limits"
        return best
    return kept([schedule_within(problem, request, budget)], request.limits)[0]


@dataclass(frozen=True)
class SchedulePeriodicPass(SchedulerPass):
    """Choose allotments, accelerator sets and starts: level staged to scheduled.

    The schedule repeats with the period; operators keep to the blocks of their stages. It is verified
    before it is written, memory included: what does not fit or exceeds a limit is an error, never a
    schedule. The limits are written into the schedule.

    With `allotments` "stage" every operator runs on all accelerators of its stage, and one that cannot is an
    error. The lower bound written down is that of schedules with any allotments, so the gap to it contains what
    this rule costs.

    options:
      plan: "stages", "shared", "pushed", "interleaved" and "v" run each operator at its fastest allotment on its
        block, or on two where it is shared (they differ in how the stages were cut); "replicated" chooses how
        many copies of what a block runs serve micro-batches in turn, on how many accelerators each; "list" starts
        operators as early as it can, for a short latency; "laminar" packs operators on nested blocks of
        accelerators inside each granted block, "assigned" the same with what every transfer costs, "free" on any
        sets where operators are few: a smaller period, more micro-batches in flight; "auto" takes the best of
        those that can work in the granted blocks, and writes down which

    rewrite:
      %a = takt.op(...) cost <...> stage 0   ->   %a = takt.op(...) cost <...> stage 0 slot <2 on [0:2] at 0>
    """

    name = "schedule-periodic"

    plan: Plan = "stages"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        instance, problem = read_staged(op, filled=self.fills(op, self.plan))
        request = self.request(self.plan)
        bound = bound_of(request.allowing(problem), self.budget(incumbents(0)), request)
        budget = self.budget(incumbents(bound.value))
        try:
            found = schedule_inside(problem, replace(request, bound=bound.value), budget)
        except InvalidProblem as failure:
            raise instance.error(failure) from None
        write_schedule(instance, found, bound, self.seed, LimitsAttr.make(asdict(self.limits())))
