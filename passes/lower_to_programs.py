"""Write one instruction list per accelerator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import cast

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import OpResult, SSAValue
from xdsl.passes import ModulePass

from dialects.communication import MoveOp
from dialects.diagnostics import TaktError, at
from dialects.operators import OperatorOp, Tensor, operator_names, tensor_bytes
from dialects.programs import ProgramOp
from dialects.structure import GraphOp, InputOp, find_platform
from passes.insert_communication import insert_communication, scheduled_graph
from passes.instance import network_of
from passes.programs.build import build
from passes.programs.data import MOST_INSTRUCTIONS, Move, Operator, Pipeline, Read, TooLong, Value
from passes.scheduling.network import Network, no_network

Sets = tuple[tuple[int, ...], ...]


def turns(sets: Sequence[tuple[int, ...]], later: int = 0) -> Sets:
    """``sets`` of the micro-batch ``later`` ones after 0, 1, ..., as few of them as repeat."""
    count = len(sets)
    shortest = next(
        n for n in range(1, count + 1) if not count % n and all(sets[i] == sets[i % n] for i in range(count))
    )
    return tuple(sets[(i + later) % shortest] for i in range(shortest))


class _Reading:
    """A scheduled graph as a :class:`Pipeline`; times in ticks of one micro-batch of the pattern."""

    def __init__(self, graph: GraphOp, network: Network):
        assert graph.schedule is not None
        self.graph, self.network = graph, network
        self.ticks, self.period = graph.schedule.microbatches.data, graph.schedule.pattern.data
        self.operators = tuple(graph.operators())
        self.number = {op: v for v, op in enumerate(self.operators)}
        self.values: list[Value] = []
        self.index: dict[SSAValue, int] = {}
        self.transfers: dict[tuple[SSAValue, Sets], MoveOp] = {}
        self.destinations: dict[tuple[SSAValue, Sets], int] = {}
        self.moves: list[Move] = []

    def pipeline(self) -> Pipeline:
        kept = set(self.graph.outputs.operands)
        for n, source in enumerate(self.graph.inputs()):
            self.add(source.output, Value(-1 - n, 0, _bytes(source.output)))
        for v, op in enumerate(self.operators):
            for result in op.outputs:
                self.add(result, Value(v, result.index, _bytes(result), op.is_sharded(result.index), result in kept))
        for transfer in self.graph.transfers():
            self.transfers.setdefault((transfer.moved, turns(transfer.sets())), transfer)
        reads = self.reads()
        return Pipeline(
            self.period, tuple(self.operator(op) for op in self.operators), tuple(self.values), reads, tuple(self.moves)
        )

    def add(self, value: SSAValue, found: Value) -> None:
        self.index[value] = len(self.values)
        self.values.append(found)

    def operator(self, op: OperatorOp) -> Operator:
        start, end = self.span(op)
        return Operator(_copies(op), start, end)

    def span(self, op: OperatorOp) -> tuple[int, int]:
        """Start and end of micro-batch 0, in ticks."""
        assert op.slot is not None
        entry = None if op.cost is None else op.cost.table().get(op.slot.allotment.data)
        if entry is None:
            raise TaktError(at(op, f"'{op.kind()}' has no time on {op.slot.allotment.data} accelerators"))
        return op.slot.start.data * self.ticks, (op.slot.start.data + entry.time) * self.ticks

    def reads(self) -> tuple[Read, ...]:
        carried = self.graph.carried()
        found: dict[Read, None] = {}
        for v, op in enumerate(self.operators):
            for operand in op.inputs:
                origin, distance = carried.get(operand, (operand, 0))
                if isinstance(origin, OpResult) and isinstance(origin.op, OperatorOp):
                    destination = self.destination(origin, _copies(origin.op), turns(_copies(op), distance))
                    found[Read(v, self.index[origin], destination, distance)] = None
                elif isinstance(operand.owner, InputOp):
                    found[Read(v, self.index[operand], 0, 0)] = None
        return tuple(found)

    def destination(self, value: OpResult, home: Sets, target: Sets) -> int:
        """The number of a destination of ``value``; the first reader there adds the move."""
        if turns(home) == target:
            return 0
        before = self.destinations.get((value, target))
        if before is not None:
            return before
        number = self.destinations[value, target] = 1 + sum(v is value for v, _ in self.destinations)
        transfer = self.transfers.get((value, target))
        moment = self.span(cast(OperatorOp, value.op))[1] if transfer is None else transfer.lands * self.ticks
        data = self.values[self.index[value]]
        pairs = [(home[i % len(home)], target[i % len(target)]) for i in range(lcm(len(home), len(target)))]
        gathered = tuple(self.network.price_of(data.size, data.sharded, a, b).gathered for a, b in pairs)
        self.moves.append(Move(self.index[value], number, target, moment, gathered))
        return number


def _copies(op: OperatorOp) -> Sets:
    assert op.slot is not None
    return op.slot.copies()


def _bytes(value: SSAValue) -> int:
    return tensor_bytes(cast(Tensor, value.type))


def subject_names(graph: GraphOp) -> Mapping[int, str]:
    """The names of operators by number, and of input ``n`` by ``-1 - n``, as programs show them."""
    names = {v: name for v, name in enumerate(operator_names(graph).values())}
    names |= {-1 - n: op.output.name_hint or f"input.{n}" for n, op in enumerate(graph.inputs())}
    # Letters beyond ASCII may stand in names of values, but xDSL reads no strings with them.
    return {n: re.sub(r"[^A-Za-z0-9_.$'-]", "_", name) for n, name in names.items()}


@dataclass(frozen=True)
class LowerToProgramsPass(ModulePass):
    """Write one instruction list per accelerator: level scheduled or communicating to programs.

    Reservations are made explicit first (``insert-communication``). Every accelerator that runs an operator gets a
    program of three sections: a prologue, a kernel that is repeated, and an epilogue, each a list of computes, sends,
    receives, copies, all-gathers and frees. All of them keep one common order, so they cannot wait for each other in
    a circle, however long anything takes. Values that cross without a reservation, on a platform without links or of
    no bytes, are sent when they are computed.

    options:
      microbatches: how many to run (default: as many as wanted, the kernel has no end)

    rewrite:
      %h = takt.op(%x) ... slot <1 on [0:1] at 0>
      %h.to.1 = takt.send_recv %h to [1:2] over "node" at 100 for 20
      %y = takt.op(%h.to.1) ... slot <1 on [1:2] at 120>
        ->
      (the same, and)
      takt.program 0 microbatches 1 + 1 * any {
        prologue {
          compute 0 h of 0
          ...
    """

    name = "lower-to-programs"

    microbatches: int | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        lower_to_programs(op, self.microbatches)


def lower_to_programs(module: ModuleOp, microbatches: int | None = None) -> None:
    """Add the programs of all accelerators to a scheduled module; raises :class:`TaktError` where that is no module."""
    graph, platform = scheduled_graph(module, ("scheduled", "communicating")), find_platform(module)
    if platform is None:
        raise TaktError(at(graph, "there is no platform", "give one with --platform, or write it beside the model"))
    if microbatches is not None and microbatches < 1:
        raise TaktError(f"{microbatches} micro-batches: there must be at least 1")
    if graph.level.data == "scheduled":
        insert_communication(graph)
    try:
        programs = build(_Reading(graph, network_of(platform) or no_network()).pipeline(), microbatches)
    except TooLong as failure:
        message = f"the programs would have {failure.instructions:,} instructions, more than {MOST_INSTRUCTIONS:,}"
        hint = "fewer micro-batches in flight make them shorter: --max-in-flight, or another plan"
        raise TaktError(at(graph, message, hint)) from None
    names = subject_names(graph)
    for accelerator, program in programs.of.items():
        sections = (program.prologue, program.kernel, program.epilogue)
        op = ProgramOp.make(accelerator, programs.base, programs.step, programs.trips, sections, program.groups, names)
        op.location = graph.location
        module.body.block.add_op(op)
    graph.level = StringAttr("programs")
