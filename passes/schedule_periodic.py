"""Choose allotments, accelerator sets and starts inside the granted blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from xdsl.context import Context
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr
from xdsl.passes import ModulePass

from dialects.attributes import ScheduleAttr, SlotAttr
from passes.instance import Instance, read_staged, with_copies
from passes.progress import report
from passes.scheduling.bounds import Bound, best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Solution, Violation
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.granted_copies import schedule_replicated
from passes.scheduling.laminar import schedule_laminar

Plan = Literal["stages", "shared", "pushed", "interleaved", "v", "replicated", "laminar"]

ENGINES: dict[str, Callable[..., tuple[Solution, str]]] = {
    "replicated": schedule_replicated,
    "laminar": schedule_laminar,
}
"""What schedules the plans that do not simply run each operator at its fastest allotment on its block."""


def write_schedule(instance: Instance, solution: Solution, bound: Bound, plan: str, engine: str, seed: int) -> None:
    """Write slots and the schedule into the graph."""
    for v, (op, start) in enumerate(zip(instance.operators, solution.starts, strict=True)):
        op.slot = SlotAttr.make(solution.copies(v), start)
    instance.graph.schedule = ScheduleAttr(
        IntAttr(solution.period),
        IntAttr(1),
        IntAttr(bound.value),
        StringAttr(bound.name),
        StringAttr(plan),
        StringAttr(engine),
        IntAttr(seed),
    )
    instance.graph.level = StringAttr("scheduled")


def check_in_flight(found: int, most: int | None) -> None:
    """Raise :class:`InvalidProblem` when a schedule begins more micro-batches than it may."""
    if most is not None and found > most:
        message = f"the schedule found has {found} micro-batches in flight, more than the {most} allowed"
        raise InvalidProblem([Violation("in-flight", f"{message}; fewer, wider stages (--stages) have fewer")])


@dataclass(frozen=True)
class SchedulePeriodicPass(ModulePass):
    """Choose allotments, accelerator sets and starts: level staged to scheduled.

    The schedule repeats with the period; operators keep to the blocks of their stages. It is verified
    before it is written, memory included: what does not fit is an error, never a schedule.

    options:
      plan: "stages", "shared", "pushed", "interleaved" and "v" run each operator at its fastest allotment on its
        block, or on two where it is shared (they differ in how the stages were cut); "replicated" chooses how
        many copies of what a block runs serve micro-batches in turn, on how many accelerators each; "laminar"
        packs operators on nested blocks inside each granted block: a smaller period, more micro-batches in flight
      copies: most copies of an operator in the plan "replicated" (default: as many as there are accelerators)
      max-in-flight: refuse a schedule with more micro-batches in flight
      time-limit: seconds after which the best schedule found so far is taken
      seed: seed of every random choice

    rewrite:
      %a = takt.op(...) cost <...> stage 0   ->   %a = takt.op(...) cost <...> stage 0 slot <2 on [0:2] at 0>
    """

    name = "schedule-periodic"

    plan: Plan = "stages"
    copies: int | None = None
    max_in_flight: int | None = None
    time_limit: float | int = 60
    seed: int = 0

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        instance, problem = read_staged(op)
        if self.plan == "replicated":
            problem = with_copies(problem, self.copies)
        bound = best_bound(problem, Budget(self.time_limit / 4))
        budget = Budget(
            self.time_limit, lambda engine, period: report(engine, period, bound.value), work=10.0, seed=self.seed
        )
        try:
            solve = ENGINES.get(self.plan, schedule_blocks)
            solution, engine = solve(problem, budget=budget)
            problem.verify(solution)
            check_in_flight(problem.in_flight(solution), self.max_in_flight)
        except InvalidProblem as failure:
            raise instance.error(failure) from None
        write_schedule(instance, solution, bound, self.plan, engine, self.seed)
