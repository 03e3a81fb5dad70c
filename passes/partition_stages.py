"""Cut the model into pipeline stages and grant each a block of accelerators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, StringAttr, i64

from dialects.diagnostics import TaktError, at
from dialects.structure import StageOp
from passes.choices import Granularity, Plan
from passes.instance import Instance, read_instance, with_copies
from passes.requests import SchedulerPass, bound_of, incumbents, near
from passes.scheduling.blocks import pack_blocks
from passes.scheduling.chunked import Shape, chunk_stages
from passes.scheduling.data import InvalidProblem
from passes.scheduling.elementary import area_bound
from passes.scheduling.fitting import Misfit
from passes.scheduling.linked_stages import partition_linked
from passes.scheduling.portfolio import OPERATOR_PLANS, Request, fittable, fitted, gathered, solve
from passes.scheduling.replicated import replicate_stages
from passes.scheduling.shared import share_boundaries
from passes.shortage import shortage


def grant(
    instance: Instance,
    blocks: Sequence[Sequence[int]],
    homes: Sequence[int],
    shared: Mapping[int, int] = MappingProxyType({}),
) -> None:
    """Write the stages into the graph."""
    body = instance.graph.body.block
    stages = [StageOp.make(index, block) for index, block in enumerate(blocks)]
    if body.first_op is not None:
        body.insert_ops_before(stages, body.first_op)
    attributes = [IntegerAttr(index, i64) for index in range(len(blocks))]
    for op, home in zip(instance.operators, homes, strict=True):
        op.stage = attributes[home]
    for v, other in shared.items():
        instance.operators[v].shared = attributes[other]
    instance.graph.level = StringAttr("staged")


def one_stage(instance: Instance) -> None:
    """One stage of all accelerators, for plans that map single operators."""
    grant(instance, [range(instance.platform.count)], [0] * len(instance.operators))


CHUNKED = ("interleaved", "v")
"""The plans that run several chunks on every block."""


def check_options(instance: Instance, options: PartitionStagesPass) -> None:
    """Refuse options that the plan cannot follow."""
    if options.granularity == "block" and options.plan not in ("auto", "stages", *CHUNKED):
        message = f"plan '{options.plan}' cannot keep the blocks of the model whole; 'stages', 'interleaved', 'v' can"
        raise TaktError(at(instance.graph, message))
    if options.chunks < 1:
        raise TaktError(at(instance.graph, f"there cannot be {options.chunks} chunks on a block"))
    if options.stages is not None and options.plan in (*CHUNKED, "replicated"):
        message = f"plan '{options.plan}' chooses the number of its stages itself"
        raise TaktError(at(instance.graph, message, 'leave out the number of stages, or use plan "stages"'))


def chunks_on_blocks(instance: Instance, options: PartitionStagesPass, shape: Shape) -> None:
    """Several chunks on each of some blocks, passed again and again, or there and back."""
    plan = chunk_stages(
        instance.problem,
        shape=shape,
        chunks=options.chunks,
        reserve=options.memory_reserve,
        tolerance=options.tolerance,
        granularity=options.granularity,
        budget=options.budget(incumbents(area_bound(instance.problem).value, "partition")),
    )
    grant(instance, plan.blocks, plan.homes)


def copies_on_blocks(instance: Instance, options: PartitionStagesPass) -> None:
    """Contiguous stages of least period, each granted the accelerators of all its copies."""
    problem = with_copies(instance.problem, options.copies)
    plan = replicate_stages(
        problem,
        reserve=options.memory_reserve,
        tolerance=options.tolerance,
        budget=options.budget(incumbents(area_bound(problem).value, "partition")),
    )
    grant(instance, plan.blocks, plan.homes)


def stages_on_blocks(instance: Instance, options: PartitionStagesPass) -> None:
    """The contiguous partition of least period, or a plan that shares boundaries when that is clearly shorter."""
    problem = instance.problem
    budget = options.budget(incumbents(area_bound(problem).value, "partition"))
    rest: dict[str, Any] = {"reserve": options.memory_reserve, "tolerance": options.tolerance, "budget": budget}
    plan = partition_linked(problem, stages=options.stages, granularity=options.granularity, **rest)
    if options.plan in ("shared", "pushed"):
        laps = options.laps if options.laps is not None else problem.accelerators * 3 // 8
        sharing = share_boundaries(problem, laps=laps if options.plan == "pushed" else 0, **rest)
        if sharing is not None and sharing.period * (1 + options.tolerance) < plan.period:
            grant(instance, sharing.blocks, sharing.homes, sharing.shared)
            return
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None, "the widths were chosen so that they can be packed"
    grant(instance, plan.granted(blocks), plan.homes())


def best_blocks(instance: Instance, options: PartitionStagesPass, request: Request) -> None:
    """The blocks of the best schedule by objective and limits, of the plan asked for or of every plan."""
    cheap = replace(options.budget(incumbents(0)), work=None)
    bound = bound_of(request.allowing(instance.problem), cheap, request)
    request = replace(request, bound=bound.value)
    budget = options.budget(incumbents(bound.value, "partition"))
    enough = near(bound, options.gap)
    try:
        best = solve(instance.problem, request, budget, enough)
    except InvalidProblem:
        if options.plan not in ("shared", "pushed"):
            raise
        best = solve(instance.problem, replace(request, plan="stages"), budget, enough)
    grant(instance, best.staged.blocks, best.staged.homes, best.staged.shared)


def fitting_blocks(instance: Instance, options: PartitionStagesPass, request: Request) -> None:
    """The stages of the best schedule that fits in memory."""
    problem = request.limits.bounded(instance.problem)
    problem.check()
    budget = options.budget(incumbents(area_bound(problem).value, "partition"))
    best = request.objective.best(gathered(fitted(problem, request, budget), budget), lambda c: c.figures)
    assert best is not None, "at least one schedule fits"
    grant(instance, best.staged.blocks, best.staged.homes)


@dataclass(frozen=True)
class PartitionStagesPass(SchedulerPass):
    """Cut the model into contiguous stages of least period: level moldable to staged.

    A stage is a run of operators in a topological order; it is granted a block of accelerators, and
    each of its operators will run at its fastest allotment that fits the block. The period is the
    longest stage. Within `tolerance` of the least period the fewest stages are taken, since fewer
    stages hold fewer micro-batches at once. Operators of one group are granted one block, on which
    stages far apart may take turns. With the plan "auto", another objective or a limit, whole
    schedules are made of several partitions, and the blocks of the best one are granted. With `fit` (plan
    "stages", no limit but of memory), stages are chosen by what they hold while micro-batches are in flight, scheduled,
    and corrected until they fit.

    With `allotments` "stage" every operator is weighed on all accelerators of its stage, and stages are as wide
    as some allotment that all of their operators have; the plans with chunks take widths only that every operator
    of the model has. The bound that the search is told of stays that of any allotments.

    options:
      stages: number of stages (default: as many as the period asks for)
      plan: "auto", the best of all that follow; "stages", each on a block of its own; "shared", where
        neighbouring blocks may run operators at their boundary together; "pushed", where blocks may also
        run a few operators of later stages, each at the price of about one more micro-batch in flight;
        "interleaved" and "v", where every block runs several chunks of the order, and a micro-batch passes
        the blocks again and again, or there and back; "replicated", where copies of a stage serve micro-batches
        in turn, at the price of its parameters on every copy; "operators", or the plans that map single
        operators, "list", "laminar", "assigned" and "free", for one stage of all accelerators. Sharing that does
        not shorten the period by more than the tolerance, or breaks a limit, is not taken
      granularity: "operator" to cut anywhere, or "block" to keep all operators of a block of the model in one stage
        (plans "auto", "stages", "interleaved" and "v")
      chunks: chunks on every block in the plans "interleaved" and "v"
      laps: how many ranges of operators the plan "pushed" may move (default: three for eight accelerators)
      memory-reserve: bytes of each accelerator kept free of parameters, for live values

    rewrite:
      takt.graph @m moldable {                   takt.graph @m staged {
                                                   takt.stage 0 on [0:1]
                                           ->      takt.stage 1 on [1:2]
        %a = takt.op(...) cost <...>               %a = takt.op(...) cost <...> stage 0
        %b = takt.op(%a) cost <...>                %b = takt.op(%a) cost <...> stage 1
    """

    name = "partition-stages"

    stages: int | None = None
    plan: Literal[Plan, "operators"] = "stages"
    granularity: Granularity = "operator"
    chunks: int = 2
    laps: int | None = None
    memory_reserve: int = 0

    def asked(self) -> Request:
        """What the options ask of the scheduler."""
        return replace(
            self.request(self.plan),
            stages=self.stages,
            laps=self.laps,
            chunks=self.chunks,
            granularity=self.granularity,
            reserve=self.memory_reserve,
        )

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        request = self.asked()
        fit = self.fit and self.plan == "stages" and fittable(request)
        instance = read_instance(op, "moldable", filled=self.fills(op, self.plan), memory=not fit)
        check_options(instance, self)
        try:
            if self.plan in ("operators", *OPERATOR_PLANS):
                one_stage(instance)
            elif fit and not request.beyond_memory:
                fitting_blocks(instance, self, request)
            elif self.plan == "auto" or request.several:
                best_blocks(instance, self, request)
            elif self.plan == "interleaved" or self.plan == "v":
                chunks_on_blocks(instance, self, self.plan)
            elif self.plan == "replicated":
                copies_on_blocks(instance, self)
            else:
                stages_on_blocks(instance, self)
        except InvalidProblem as failure:
            short = fit or isinstance(failure, Misfit)
            raise (shortage(instance, request, failure) if short else instance.error(failure)) from None
