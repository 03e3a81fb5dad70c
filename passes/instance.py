"""From the IR to a scheduling problem: what the passes that schedule read from a module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar, cast

from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import OpResult

from dialects.attributes import CostAttr
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.operators import OperatorOp, operator_names, tensor_bytes
from dialects.structure import GraphOp, InputOp, PlatformOp, find_graph, find_platform, reaches
from dialects.units import show_bytes, show_time
from dialects.updates import gradients
from passes.scheduling.data import Cost, Dependence, Input, InvalidProblem, Operation, Table, Violation
from passes.scheduling.network import Level, Mode, Network
from passes.scheduling.objective import Excess
from passes.scheduling.problem import MemoryProblem, StagedProblem
from passes.scheduling.versions import Updated


class DoesNotFit(TaktError):
    """The model needs ``missing`` more bytes on some accelerator; a larger ``memory-reserve`` may help."""

    def __init__(self, diagnostics: list[Diagnostic], missing: int):
        super().__init__(diagnostics)
        self.missing = missing


@dataclass(frozen=True)
class Instance:
    """A graph as a scheduling problem; operation ``v`` of the problem is ``operators[v]``."""

    graph: GraphOp
    platform: PlatformOp
    operators: tuple[OperatorOp, ...]
    problem: MemoryProblem

    def error(self, failure: InvalidProblem) -> TaktError:
        """The violations as diagnostics, each at the first operator it is about."""
        diagnostics = [self._diagnostic(v) for v in failure.violations]
        missing = max(v.missing for v in failure.violations)
        return DoesNotFit(diagnostics, missing) if missing else TaktError(diagnostics)

    def _diagnostic(self, violation: Violation) -> Diagnostic:
        where = self.operators[violation.operations[0]] if violation.operations else self.graph
        if isinstance(violation, Excess):
            return at(where, *_exceeded(violation), rule=violation.rule)
        hint = None
        if violation.rule == "allotments":
            hint = "with --allotments any operators may run on part of their stage"
        if violation.rule == "together":
            hint = "operators that share parameters, and gradients, run on the same accelerators: try another plan"
        if violation.missing:
            hint = "use more accelerators, accelerators with more memory, a smaller model, or another plan"
        return at(where, violation.message, hint, rule=violation.rule)


def _exceeded(excess: Excess) -> tuple[str, str]:
    """What to say of a limit that the nearest schedule exceeds, and what to change."""
    found, allowed = excess.found, excess.allowed
    hint = "allow more, or take fewer and wider stages: --plan auto tries all plans, --stages sets their number"
    if excess.rule == "in-flight":
        return f"the nearest schedule has {found} micro-batches in flight, more than the {allowed} allowed", hint
    if excess.rule == "latency":
        times = f"a latency of {show_time(found)}, more than the {show_time(allowed)}"
        message = f"the nearest schedule has {times} allowed"
        return message, "allow a longer one; --objective latency finds how short it can be made"
    if excess.rule == "memory":
        message = (
            f"the nearest schedule needs {show_bytes(found)} on an accelerator, more than the {show_bytes(allowed)}"
            f" allowed: {show_bytes(excess.missing)} are missing"
        )
        return message, "allow more, use more accelerators, or allow fewer micro-batches in flight"
    message = (
        f"in the nearest schedule {show_bytes(found)} of a micro-batch cross between accelerator sets,"
        f" more than the {show_bytes(allowed)} allowed"
    )
    return message, hint


def read_instance(
    module: ModuleOp, level: str, *, or_later: bool = False, filled: bool = False, memory: bool = True
) -> Instance:
    """The problem in ``module``, whose graph must be at ``level``; raises :class:`TaktError` when it is not.

    With ``or_later`` the graph may be at a later level as well; with ``filled`` operators must run on all accelerators
    of their stages. Without ``memory`` it is not checked whether the parameters fit at all.
    """
    graph, platform = find_graph(module), find_platform(module)
    if graph is None:
        raise TaktError("there is no model: the module has no takt.graph")
    if platform is None:
        raise TaktError(at(graph, "there is no platform", "give one with --platform, or write it beside the model"))
    if graph.level.data != level and not (or_later and reaches(graph.level.data, level)):
        raise TaktError(
            at(
                graph,
                f"this pass takes a graph at level '{level}', this one is at level '{graph.level.data}'",
                "run annotate-costs, then partition-stages and schedule-periodic, or schedule-step",
            )
        )
    operators = tuple(graph.operators())
    missing = [op for op in operators if op.cost is None]
    if missing:
        raise TaktError([at(op, f"'{op.kind()}' has no cost table", "run annotate-costs first") for op in missing])
    problem = replace(_problem(graph, platform, operators), filled=filled)
    instance = Instance(graph, platform, operators, problem)
    try:
        (instance.problem if memory else replace(instance.problem, memory=0)).check()
    except InvalidProblem as failure:
        raise instance.error(failure) from None
    return instance


def _problem(graph: GraphOp, platform: PlatformOp, operators: tuple[OperatorOp, ...]) -> MemoryProblem:
    names = operator_names(graph)
    tables: dict[CostAttr, Table] = {}

    def table(op: OperatorOp) -> Table:
        assert op.cost is not None
        if op.cost not in tables:
            columns = op.cost.table().items()
            tables[op.cost] = {k: Cost(e.time, e.params, e.output, e.workspace, e.version) for k, e in columns}
        return tables[op.cost]

    number = {op: v for v, op in enumerate(operators)}
    carried = graph.carried()
    dependences: dict[Dependence, None] = {}
    for v, op in enumerate(operators):
        for read in op.inputs:
            value, distance = carried.get(read, (read, 0))
            if isinstance(value, OpResult) and isinstance(value.op, OperatorOp):
                size = tensor_bytes(value.type)  # pyright: ignore
                sharded = value.op.is_sharded(value.index)
                found = Dependence(number[value.op], v, size, distance, value.index, sharded)
                dependences[found] = None
    groups: dict[str, list[int]] = {}
    for v, op in enumerate(operators):
        if op.group is not None:
            groups.setdefault(op.group.data, []).append(v)
    inputs = [_input(op, number) for op in graph.inputs()]
    return MemoryProblem(
        tuple(Operation(names[op], table(op), _block(op)) for op in operators),
        tuple(dependences),
        tuple(inputs),
        platform.count,
        platform.group_size,
        platform.memory.value.data,
        together=tuple(tuple(members) for members in groups.values() if len(members) > 1),
        copies=max((len(op.slot.copies()) for op in operators if op.slot is not None), default=1),
        network=network_of(platform),
        updated=_updated(graph, number),
        asynchronous=0 if graph.training is None else graph.training.asynchronous.data,
    )


def _updated(graph: GraphOp, number: dict[OperatorOp, int]) -> tuple[Updated, ...]:
    """What asynchronous training updates: the operations of each group, and the gradients of its parameters."""
    if graph.training is None or not graph.training.asynchronous.data:
        return ()
    groups: dict[StringAttr, list[int]] = {}
    for op, v in number.items():
        if op.group is not None:
            groups.setdefault(op.group, []).append(v)
    updates = [(step, tuple(number[g] for g in gradients(step))) for step in graph.updates()]
    return tuple(Updated(tuple(groups[step.group]), read) for step, read in updates if step.group in groups)


def network_of(platform: PlatformOp) -> Network | None:
    """The links of ``platform``; None when it describes none, and values move for free."""
    levels = tuple(Level(*link.plain()) for link in platform.links.data)
    return Network(levels, cast(Mode, platform.mode)) if levels else None


def _block(op: OperatorOp) -> str:
    """Name and number of the block that ``op`` was expanded from; empty when it stands in the model itself."""
    return "" if op.block is None else f"{op.block.block.data}.{op.block.index.data}"


def _input(op: InputOp, number: dict[OperatorOp, int]) -> Input:
    readers = {number[use.operation]: None for use in op.output.uses if isinstance(use.operation, OperatorOp)}
    return Input(op.output.name_hint or "input", tensor_bytes(op.output.type), tuple(sorted(readers)))  # pyright: ignore


Scheduled = TypeVar("Scheduled", bound=MemoryProblem)


def with_copies(problem: Scheduled, copies: int | None) -> Scheduled:
    """``problem`` with at most ``copies`` copies of an operation; None: as many as there are accelerators."""
    if copies is not None and copies < 1:
        raise TaktError(f"{copies} copies of an operation: there must be at least 1")
    return replace(problem, copies=problem.accelerators if copies is None else copies)


def read_staged(module: ModuleOp, *, filled: bool = False) -> tuple[Instance, StagedProblem]:
    """The instance of a graph at level ``staged``, and the problem with its granted blocks.

    With ``filled`` every operator must run on all accelerators of its block; TaktError at those that cannot.
    """
    instance = read_instance(module, "staged", filled=filled)
    stages = sorted(instance.graph.stages(), key=lambda s: s.index.value.data)
    if [s.index.value.data for s in stages] != list(range(len(stages))):
        raise TaktError(at(instance.graph, "stages must be numbered 0, 1, 2, ... without gaps"))
    for op in instance.operators:
        if op.stage is None:
            raise TaktError(at(op, f"'{op.kind()}' has no stage", "run partition-stages first"))
    shared = {v: op.shared.value.data for v, op in enumerate(instance.operators) if op.shared is not None}
    for v, other in shared.items():
        if not 0 <= other < len(stages):
            raise TaktError(at(instance.operators[v], f"stage {other} does not exist"))
    homes = tuple(op.stage.value.data for op in instance.operators if op.stage is not None)
    blocks = tuple(s.accelerators() for s in stages)
    staged = instance.problem.staged(blocks, homes, shared)
    try:
        staged.check()
    except InvalidProblem as failure:
        raise instance.error(failure) from None
    return instance, staged
