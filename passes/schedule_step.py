"""Schedule a finite batch: the starts of every micro-batch of a step."""

from __future__ import annotations

import time
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from dialects.attributes import LimitsAttr
from dialects.diagnostics import TaktError, at
from passes.choices import KNOWN_ORDERS, Cut, Order
from passes.instance import Instance
from passes.progress import report
from passes.scheduling.data import InvalidProblem
from passes.scheduling.steps.batch import Batch
from passes.scheduling.steps.choose import known_step
from passes.scheduling.steps.fitting import Found
from passes.scheduling.steps.graph_bounds import graph_bound
from passes.scheduling.steps.own import own_step
from passes.scheduling.steps.shapes import Wish
from passes.step_instance import read_batch, write_step

HINTS = {
    "memory": "allow more memory, use more accelerators, smaller micro-batches, --recompute, or another order",
    "equal": "choose a number of stages and chunks that divides the layers, or --cut balanced",
    "time": "write shorter times",
    "chunks": "choose fewer stages or chunks",
    "fixed": "leave out the number of chunks, which the order decides, or choose another order",
    "one": "choose two stages or more, or one chunk and an order with one on a rank (gpipe, 1f1b, zb-h1, zb-h2)",
    "stages": "choose another number of stages",
    "tied": "choose an order whose first and last chunk are on one rank (zb-v, dualpipe-v), or fewer stages",
}


def refusal(instance: Instance, failure: InvalidProblem) -> TaktError:
    """Why there is no step, at the operator it is about, with what to change."""
    found = [
        at(
            instance.operators[v.operations[0]] if v.operations else instance.graph,
            v.message,
            HINTS.get(v.rule),
            v.rule,
        )
        for v in failure.violations
    ]
    return TaktError(found)


def step_of(batch: Batch, order: Order, wish: Wish, bound: int) -> Found:
    """The step of an order; raises :class:`InvalidProblem` where there is none."""

    def listen(engine: str, pattern: int) -> None:
        report(engine, pattern, bound, order)

    if order == "own":
        return own_step(batch, wish, listen)
    return known_step(batch, KNOWN_ORDERS[order], wish, listen)


@dataclass(frozen=True)
class ScheduleStepPass(ModulePass):
    """Schedule a step of a finite batch: level moldable to scheduled.

    The forward operators are cut into chunks, contiguous in program order; every rank, a block of accelerators, has one
    or more of them, and works through the forwards (F) and backwards (I and W, or both as B) of its chunks in the order
    of a known schedule, or in our own. Operators of a cell run one after the other, and everything starts as early as
    what is before it allows; transfers are reserved on the links. The steps of the optimizer follow on every rank. The
    step is as short as the best of the numbers of stages and of the allotments tried, and fits in memory, or is
    refused. A graph without backward operators has a step of forwards only.

    The bound written down holds for every step of the graph, with any cut and any order.

    options:
      microbatches: micro-batches of the step
      order: "own", the shortest found; or a known schedule: "gpipe", "1f1b", "1f1b*", "interleaved", "zb-h1", "zb-h2",
        "zb-v", "dualpipe-v" (docs/training.md)
      stages: ranks (default: the best of the numbers that divide the platform)
      chunks: chunks on every rank, where the order leaves it free (default: 2 for "interleaved")
      cut: "balanced", so that the longest chunk is short; or "equal", the uniform plan: as many layers of the model in
        each chunk, every operator on all accelerators of its rank, or as many as it can use
      width: accelerators of a rank (default: all, shared evenly)
      staggered: let steps overlap, so that no rank waits for all others before it begins the next step; zb-h2 and zb-v
        always do
      max-memory: most bytes on an accelerator, where that is less than the platform has
      effort: work for our own orders, in units of about one second of one core
      time-limit: seconds after which the best of our own found so far is taken
      seed: seed of every random choice

    rewrite:
      takt.graph @m moldable training ... {      takt.graph @m scheduled training ... <90 step of 2, ...> {
        %a = takt.op(...) cost <...>       ->      %a = takt.op(...) cost <...> stage 0 slot <1 on [0:1] at [0, 10]>
    """

    name = "schedule-step"

    microbatches: int = 1
    order: Order = "own"
    stages: int | None = None
    chunks: int | None = None
    cut: Cut = "balanced"
    width: int | None = None
    staggered: bool = False
    max_memory: int | None = None
    effort: float | int = 3
    time_limit: float | int = 300
    seed: int = 0

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        instance, batch = read_batch(op, self.microbatches, self.max_memory)
        for name in ("stages", "chunks", "width", "max_memory"):
            given: int | None = getattr(self, name)
            if given is not None and given < 1:
                raise TaktError(at(instance.graph, f"{name.replace('_', '-')} must be at least 1, got {given}"))
        bound = graph_bound(batch)
        end = time.monotonic() + self.time_limit
        wish = Wish(
            *(self.stages, self.chunks, self.cut, self.width, self.staggered, self.effort, self.seed),
            spent=lambda: time.monotonic() >= end,
        )
        try:
            found = step_of(batch, self.order, wish, bound.value)
        except InvalidProblem as failure:
            raise refusal(instance, failure) from None
        write_step(instance, found, bound, self.seed, LimitsAttr.make({"memory": self.max_memory}))
