"""From the IR to the work of a step, and back: what the pass that schedules steps reads and writes."""

from __future__ import annotations

from dataclasses import replace

from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr
from xdsl.ir import Operation, OpResult
from xdsl.rewriter import InsertPoint, Rewriter

from dialects.attributes import LimitsAttr, ScheduleAttr, SlotAttr
from dialects.communication import ReserveOp
from dialects.diagnostics import TaktError, at
from dialects.gradients import GradientOp, OptimizerStepOp, RecomputeOp, WeightGradientOp
from dialects.operators import OperatorOp
from passes.instance import Instance, read_instance
from passes.partition_stages import grant
from passes.scheduling.elementary import Bound
from passes.scheduling.steps.batch import Batch, Update
from passes.scheduling.steps.cells import Kind
from passes.scheduling.steps.fitting import Found
from passes.scheduling.steps.place import Move

MOST_STARTS = 2**24
"""Runs of operators in a step: each has its start in the IR."""


def read_batch(
    module: ModuleOp, microbatches: int, memory: int | None = None, *, level: str = "moldable"
) -> tuple[Instance, Batch]:
    """The graph of ``module``, at ``level`` or, where that is ``scheduled``, later, as the work of ``microbatches``.

    ``memory`` is the most bytes on an accelerator, where that is less than it has. Raises :class:`TaktError` for graphs
    that have no step.
    """
    instance = read_instance(module, level, or_later=level == "scheduled")
    graph = instance.graph
    if microbatches < 1:
        raise TaktError(at(graph, f"a step of {microbatches} micro-batches: there must be at least 1"))
    if microbatches * len(instance.operators) > MOST_STARTS:
        message = f"a step of {microbatches} micro-batches of {len(instance.operators)} operators lists too many starts"
        raise TaktError(at(graph, message, f"at most {MOST_STARTS} are; schedule the period, which goes on for ever"))
    if graph.training is not None and graph.training.asynchronous.data:
        message = f"@{graph.sym_name.data} is asynchronous, and all micro-batches of a step see the same parameters"
        raise TaktError(at(graph, message, "leave out --asynchronous, or schedule the period"))
    if (state := next(graph.states(), None)) is not None:
        message = f"state '{state.state.data}' hands values to later micro-batches, and a step schedules each by itself"
        raise TaktError(at(state, message, "schedule the period instead, or leave the state out"))
    problem = instance.problem
    if memory is not None:
        problem = replace(problem, memory=min(memory, problem.memory) if problem.memory else memory)
    number = {op: v for v, op in enumerate(instance.operators)}
    updates = tuple(_update(op, number, instance) for op in graph.updates())
    batch = Batch(problem, _kinds(instance.operators), updates, microbatches)
    for item, table in zip(problem.items, batch.tables, strict=True):
        if not any(k <= problem.accelerators for k in table):
            message = (
                f"the operators of the group of {batch.names(item[:1])} and its optimizer have no allotment in common"
            )
            raise TaktError(at(instance.operators[item[0]], message, "restrict-allotments leaves all of them one"))
    return replace(instance, problem=problem), batch


def _kinds(operators: tuple[OperatorOp, ...]) -> tuple[Kind, ...]:
    """What of a cell each operator belongs to: backward operators come after those of the forward pass."""
    kinds: list[Kind] = []
    backward = False
    for op in operators:
        backward = backward or isinstance(op, GradientOp | RecomputeOp)
        kinds.append(("W" if isinstance(op, WeightGradientOp) else "I") if backward else "F")
    return tuple(kinds)


def _update(op: OptimizerStepOp, number: dict[OperatorOp, int], instance: Instance) -> Update:
    name = op.outputs[0].name_hint or "the step of the optimizer"
    members = [v for other, v in number.items() if other.group is not None and other.group == op.group]
    if op.cost is None:
        raise TaktError(at(op, f"'{name}' has no cost table", "run annotate-costs first"))
    if not members:
        raise TaktError(at(op, f"'{name}' is in no group of an operator", "expand-training writes groups"))
    table = op.cost.table()
    reads = tuple(number[v.op] for v in op.inputs if isinstance(v, OpResult) and v.op in number)  # pyright: ignore
    times = {k: entry.time for k, entry in table.items()}
    return Update(name, members[0], reads, times, op.params.value.data)


def write_step(instance: Instance, found: Found, bound: Bound, seed: int, limits: LimitsAttr) -> None:
    """Write stages, slots, transfers and the schedule of a step into the graph, which is then ``scheduled``.

    The forward operators of chunk ``c`` of ``n`` are stage ``c``, its backward operators stage ``2n - 1 - c``.
    """
    step, layout = found.step, found.step.layout
    count, kinds = len(layout.ranks), layout.batch.kinds
    homes = [c if kind == "F" else 2 * count - 1 - c for c, kind in zip(layout.chunks, kinds, strict=True)]
    blocks = [layout.blocks[rank] for rank in layout.ranks]
    grant(instance, blocks + blocks[::-1] if layout.batch.trains else blocks, homes)
    for v, op in enumerate(instance.operators):
        op.slot = SlotAttr.make([layout.sets[v]], step.starts[v])
    for op, (update, start) in zip(instance.graph.updates(), step.updates, strict=True):
        op.slot = SlotAttr.make([layout.sets[update.member]], start)
    _write_moves(instance, step.moves)
    instance.graph.schedule = ScheduleAttr(
        IntAttr(found.pattern),
        IntAttr(layout.batch.microbatches),
        IntAttr(bound.value),
        StringAttr(bound.name),
        StringAttr(found.plan),
        StringAttr(found.engine),
        IntAttr(seed),
        limits,
        step=True,
    )
    instance.graph.level = StringAttr("scheduled")


def _write_moves(instance: Instance, moves: list[Move]) -> None:
    """Reserve every transfer right behind the operator that makes the value, earliest first."""
    names = [link.group.data for link in instance.platform.links.data]
    made: dict[int, list[Operation]] = {}
    for move in sorted(moves, key=lambda m: (m.producer, m.starts[0], m.result, m.target)):
        value = instance.operators[move.producer].results[move.result]
        landings = None if move.landings == move.starts else move.landings
        reserve = ReserveOp.make(value, [move.target], names[move.level], move.starts, move.time, landings)
        made.setdefault(move.producer, []).append(reserve)
    for v, reserves in made.items():
        Rewriter.insert_op(reserves, InsertPoint.after(instance.operators[v]))
