"""Cut the model into pipeline stages and grant each a block of accelerators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, StringAttr, i64
from xdsl.passes import ModulePass

from dialects.diagnostics import TaktError, at
from dialects.structure import StageOp
from passes.instance import Instance, read_instance, with_copies
from passes.progress import report
from passes.scheduling.blocks import pack_blocks
from passes.scheduling.budget import Budget
from passes.scheduling.chunked import Shape, chunk_stages
from passes.scheduling.data import InvalidProblem
from passes.scheduling.elementary import area_bound
from passes.scheduling.grains import Granularity
from passes.scheduling.replicated import replicate_stages
from passes.scheduling.shared import share_boundaries
from passes.scheduling.stages import partition_stages


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
    if options.granularity == "block" and options.plan not in ("stages", *CHUNKED):
        message = f"plan '{options.plan}' cannot keep the blocks of the model whole; 'stages', 'interleaved', 'v' can"
        raise TaktError(at(instance.graph, message))
    if options.chunks < 1:
        raise TaktError(at(instance.graph, f"there cannot be {options.chunks} chunks on a block"))
    if options.stages is not None and options.plan in CHUNKED:
        message = f"plan '{options.plan}' chooses the number of its blocks itself"
        raise TaktError(at(instance.graph, message, 'leave out the number of stages, or use plan "stages"'))


def chunks_on_blocks(instance: Instance, options: PartitionStagesPass, shape: Shape) -> None:
    """Several chunks on each of some blocks, passed again and again, or there and back."""
    problem = instance.problem
    bound = area_bound(problem).value
    budget = Budget(options.time_limit, lambda engine, period: report(engine, period, bound, "partition"))
    try:
        plan = chunk_stages(
            problem,
            shape=shape,
            chunks=options.chunks,
            reserve=options.memory_reserve,
            tolerance=options.tolerance,
            granularity=options.granularity,
            budget=budget,
        )
    except InvalidProblem as failure:
        raise instance.error(failure) from None
    grant(instance, plan.blocks, plan.homes)


def copies_on_blocks(instance: Instance, options: PartitionStagesPass) -> None:
    """Contiguous stages of least period, each granted the accelerators of all its copies."""
    if options.stages is not None:
        message = "the plan 'replicated' chooses the number of stages itself: leave out 'stages', or take another plan"
        raise TaktError(message)
    problem = with_copies(instance.problem, options.copies)
    bound = area_bound(problem).value
    budget = Budget(options.time_limit, lambda engine, period: report(engine, period, bound, "partition"))
    try:
        plan = replicate_stages(problem, reserve=options.memory_reserve, tolerance=options.tolerance, budget=budget)
    except InvalidProblem as failure:
        raise instance.error(failure) from None
    grant(instance, plan.blocks, plan.homes)


def stages_on_blocks(instance: Instance, options: PartitionStagesPass) -> None:
    """The contiguous partition of least period, or a plan that shares boundaries when that is clearly shorter."""
    problem = instance.problem
    bound = area_bound(problem).value
    budget = Budget(options.time_limit, lambda engine, period: report(engine, period, bound, "partition"))
    rest: dict[str, Any] = {"reserve": options.memory_reserve, "tolerance": options.tolerance, "budget": budget}
    try:
        plan = partition_stages(problem, stages=options.stages, granularity=options.granularity, **rest)
    except InvalidProblem as failure:
        raise instance.error(failure) from None
    if options.plan in ("shared", "pushed"):
        laps = options.laps if options.laps is not None else problem.accelerators * 3 // 8
        rest["max_in_flight"] = options.max_in_flight
        sharing = share_boundaries(problem, laps=laps if options.plan == "pushed" else 0, **rest)
        if sharing is not None and sharing.period * (1 + options.tolerance) < plan.period:
            grant(instance, sharing.blocks, sharing.homes, sharing.shared)
            return
    blocks = pack_blocks(plan.widths, problem.accelerators, problem.group)
    assert blocks is not None, "the widths were chosen so that they can be packed"
    grant(instance, plan.granted(blocks), plan.homes())


@dataclass(frozen=True)
class PartitionStagesPass(ModulePass):
    """Cut the model into contiguous stages of least period: level moldable to staged.

    A stage is a run of operators in a topological order; it is granted a block of accelerators, and
    each of its operators will run at its fastest allotment that fits the block. The period is the
    longest stage. Within `tolerance` of the least period the fewest stages are taken, since fewer
    stages hold fewer micro-batches at once. Operators of one group are granted one block, on which
    stages far apart may take turns.

    options:
      stages: number of stages (default: as many as the period asks for)
      plan: "stages", each on a block of its own; "shared", where neighbouring blocks may run operators at their
        boundary together; "pushed", where blocks may also run a few operators of later stages, each at
        the price of about one more micro-batch in flight; "interleaved" and "v", where every block runs several
        chunks of the order, and a micro-batch passes the blocks again and again, or there and back;
        "replicated", where copies of a stage serve micro-batches in turn, at the price of its parameters on every
        copy; "operators" for one stage of all accelerators (for schedule-periodic{plan="laminar"}). "shared" and
        "pushed" are not taken where they are not shorter than stages of their own by more than the tolerance
      granularity: "operator" to cut anywhere, or "block" to keep all operators of a block of the model in one stage
        (plans "stages", "interleaved" and "v")
      chunks: chunks on every block in the plans "interleaved" and "v"
      copies: most copies of a stage in the plan "replicated" (default: as many as there are accelerators)
      laps: how many ranges of operators the plan "pushed" may move (default: three for eight accelerators)
      max-in-flight: the plans "shared" and "pushed" move no more than leaves this many micro-batches in flight
      memory-reserve: bytes of each accelerator kept free of parameters, for live values
      tolerance: periods within this fraction of the least count as equal
      time-limit: seconds after which the best partition found so far is taken

    rewrite:
      takt.graph @m moldable {                   takt.graph @m staged {
                                                   takt.stage 0 on [0:1]
                                           ->      takt.stage 1 on [1:2]
        %a = takt.op(...) cost <...>               %a = takt.op(...) cost <...> stage 0
        %b = takt.op(%a) cost <...>                %b = takt.op(%a) cost <...> stage 1
    """

    name = "partition-stages"

    stages: int | None = None
    plan: Literal["stages", "shared", "pushed", "interleaved", "v", "replicated", "operators"] = "stages"
    granularity: Granularity = "operator"
    chunks: int = 2
    copies: int | None = None
    laps: int | None = None
    max_in_flight: int | None = None
    memory_reserve: int = 0
    tolerance: float | int = 0.005
    time_limit: float | int = 60

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        instance = read_instance(op, "moldable")
        check_options(instance, self)
        if self.plan == "operators":
            one_stage(instance)
        elif self.plan in CHUNKED:
            chunks_on_blocks(instance, self, self.plan)
        elif self.plan == "replicated":
            copies_on_blocks(instance, self)
        else:
            stages_on_blocks(instance, self)
