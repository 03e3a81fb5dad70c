"""Write one instruction list per accelerator."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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
from passes.programs.data import MOST_INSTRUCTIONS, Move, Operator, Pipeline, Read, TooLong, Update, Value
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
    """A scheduled graph as a :class:`Pipeline`; times in ticks, of which a period, or a step, has a whole number."""

    def __init__(self, graph: GraphOp, network: Network):
        schedule = graph.schedule
        assert schedule is not None
        self.graph, self.network = graph, network
        self.together = schedule.microbatches.data if schedule.is_step else 1
        self.ticks = 1 if schedule.is_step else schedule.microbatches.data
        """Ticks in a nanosecond."""
        self.window = schedule.pattern.data
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
        reads, operators = self.reads(), tuple(self.operator(op) for op in self.operators)
        values, moves, updates = tuple(self.values), tuple(self.moves), tuple(self.updates())
        return Pipeline(self.window, operators, values, reads, moves, self.together, updates)

    def add(self, value: SSAValue, found: Value) -> None:
        self.index[value] = len(self.values)
        self.values.append(found)

    def operator(self, op: OperatorOp) -> Operator:
        return Operator(_copies(op), self.moments(op, tuple(start for start, _ in self.spans(op))))

    def spans(self, op: OperatorOp) -> tuple[tuple[int, int], ...]:
        """When an operator starts and ends, ns."""
        assert op.slot is not None
        entry = None if op.cost is None else op.cost.table().get(op.slot.allotment.data)
        if entry is None:
            raise TaktError(at(op, f"'{op.kind()}' has no time on {op.slot.allotment.data} accelerators"))
        return tuple((start, start + entry.time) for start in op.slot.starts)

    def moments(self, op: OperatorOp | MoveOp, listed: tuple[int, ...]) -> tuple[int, ...]:
        """Times in ns as ticks, one for each micro-batch that begins in a window."""
        if len(listed) != self.together:
            message = f"{len(listed)} moments are listed, and {self.together} micro-batches repeat together"
            raise TaktError(at(op, message, "in a step there is one for each micro-batch, elsewhere one"))
        return tuple(time * self.ticks for time in listed)

    def updates(self) -> Iterator[Update]:
        """The optimizer steps of a step."""
        for op in self.graph.updates() if self.graph.schedule is not None and self.graph.schedule.is_step else ():
            if op.slot is None:
                raise TaktError(at(op, "an optimizer step of a step has no slot", "schedule-step gives it one"))
            yield Update(_copies(op)[0], op.slot.start.data * self.ticks)

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
        producer = cast(OperatorOp, value.op)
        if transfer is None:
            moments = self.moments(producer, tuple(end for _, end in self.spans(producer)))
        else:
            moments = self.moments(transfer, transfer.landings)
        data = self.values[self.index[value]]
        pairs = [(home[i % len(home)], target[i % len(target)]) for i in range(lcm(len(home), len(target)))]
        gathered = tuple(self.network.price_of(data.size, data.sharded, a, b).gathered for a, b in pairs)
        self.moves.append(Move(self.index[value], number, target, moments, gathered))
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
    return {n: _plain(name) for n, name in names.items()}


def update_names(graph: GraphOp) -> list[str]:
    """The names of optimizer steps, as programs show them."""
    return [_plain(op.results[0].name_hint or f"optimizer_step.{n}") for n, op in enumerate(graph.updates())]


def _plain(name: str) -> str:
    """Letters beyond ASCII may stand in names of values, but xDSL reads no strings with them."""
    return re.sub(r"[^A-Za-z0-9_.$'-]", "_", name)


@dataclass(frozen=True)
class LowerToProgramsPass(ModulePass):
    """Write one instruction list per accelerator: level scheduled or communicating to programs.

    Reservations are made explicit first (``insert-communication``). Every accelerator that runs an operator gets a
    program of three sections: a prologue, a kernel that is repeated, and an epilogue, each a list of computes, sends,
    receives, copies, all-gathers and frees. All of them keep one common order, so they cannot wait for each other in
    a circle, however long anything takes. In a step the kernel is a whole step, at the end of which each accelerator
    does the optimizer steps of its groups; where micro-batches outlast their step, a step overlaps the next. Values
    that cross without a reservation, on a platform without links or of no bytes, are sent when they are computed.

    options:
      microbatches: how many to run, in whole steps (default: as many as wanted, the kernel has no end)

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


def check_whole_steps(graph: GraphOp, step: int, microbatches: int) -> None:
    """Raise TaktError where so many micro-batches are no whole steps."""
    if microbatches % step:
        low = microbatches // step * step
        counts = f"{low} or {low + step}" if low else str(step)
        message = f"{microbatches} micro-batches are no whole steps: the schedule is a step of {step}"
        raise TaktError(at(graph, message, f"run a multiple of {step} micro-batches, such as {counts}"))


def lower_to_programs(module: ModuleOp, microbatches: int | None = None) -> None:
    """Add the programs of all accelerators to a scheduled module; raises :class:`TaktError` where that is no module."""
    graph, platform = scheduled_graph(module, ("scheduled", "communicating")), find_platform(module)
    if platform is None:
        raise TaktError(at(graph, "there is no platform", "give one with --platform, or write it beside the model"))
    if microbatches is not None and microbatches < 1:
        raise TaktError(f"{microbatches} micro-batches: there must be at least 1")
    if graph.schedule is not None and graph.schedule.is_step and microbatches is not None:
        check_whole_steps(graph, graph.schedule.microbatches.data, microbatches)
    if graph.level.data == "scheduled":
        insert_communication(graph)
    try:
        programs = build(_Reading(graph, network_of(platform) or no_network()).pipeline(), microbatches)
    except TooLong as failure:
        message = f"the programs would have {failure.instructions:,} instructions, more than {MOST_INSTRUCTIONS:,}"
        hint = "fewer micro-batches in flight make them shorter: --max-in-flight, or another plan"
        raise TaktError(at(graph, message, hint)) from None
    names, updates = subject_names(graph), update_names(graph)
    for accelerator, program in programs.of.items():
        sections = (program.prologue, program.kernel, program.epilogue)
        counts = (programs.base, programs.step, programs.trips)
        op = ProgramOp.make(accelerator, *counts, sections, program.groups, names, updates)
        op.location = graph.location
        module.body.block.add_op(op)
    graph.level = StringAttr("programs")
