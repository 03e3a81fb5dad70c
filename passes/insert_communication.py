"""Make reserved transfers explicit operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import lcm

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr, TensorType
from xdsl.ir import Operation, OpResult, SSAValue
from xdsl.passes import ModulePass

from dialects.communication import (
    BroadcastOp,
    GatherOp,
    ReserveOp,
    ReshardOp,
    ScatterOp,
    SendRecvOp,
    TransferOp,
)
from dialects.diagnostics import TaktError, at
from dialects.operators import OperatorOp
from dialects.structure import GraphOp, NextOp, StateOp, find_graph

Sets = tuple[tuple[int, ...], ...]
"""Accelerators for micro-batch 0, 1, ... in turn."""


def kind_of(sharded: bool, senders: int, receivers: int) -> type[TransferOp]:
    """The operation that moves a value between sets of so many accelerators.

    A value that is whole on its set leaves from one accelerator for each receiver; of one that is sharded every
    accelerator sends its share.
    """
    if receivers == 1:
        return GatherOp if sharded and senders > 1 else SendRecvOp
    if not sharded:
        return BroadcastOp
    return ScatterOp if senders == 1 else ReshardOp


def same_turns(a: Sets, b: Sets, later: int = 0) -> bool:
    """Whether ``a`` of micro-batch ``i`` is ``b`` of micro-batch ``i + later``, for every ``i``."""
    return all(a[i % len(a)] == b[(i + later) % len(b)] for i in range(lcm(len(a), len(b))))


class _Names:
    """Names of values that no other value of the graph has."""

    def __init__(self, graph: GraphOp):
        self.taken = {r.name_hint for op in graph.body.block.ops for r in op.results if r.name_hint is not None}
        self.taken |= {state.state.data for state in graph.states()}

    def derive(self, base: str, place: int) -> str:
        """``base.to.place``, which does not end with the ``_<digits>`` that xDSL drops from names."""
        name = f"{base}.to.{place}"
        unique = next(n for n in (name if i == 1 else f"{name}.v{i}" for i in count(1)) if n not in self.taken)
        self.taken.add(unique)
        return unique


class _Insertion:
    """The graph while its reservations turn into operations."""

    def __init__(self, graph: GraphOp):
        self.graph = graph
        self.names = _Names(graph)
        self.carried = graph.carried()
        self.moved: dict[OpResult, list[TransferOp]] = {}
        self.states: dict[tuple[TransferOp, int], SSAValue] = {}
        self.nexts = {op.state.data: op for op in graph.nexts()}

    def run(self) -> None:
        for reserve in list(self.graph.transfers()):
            if isinstance(reserve, ReserveOp):
                self.materialise(reserve)
        for op in self.graph.operators():
            assert op.slot is not None
            for number, read in enumerate(op.inputs):
                origin, distance = self.carried.get(read, (read, 0))
                for transfer in self.moved.get(origin, ()) if isinstance(origin, OpResult) else ():
                    if same_turns(transfer.sets(), op.slot.copies(), distance):
                        op.operands[number] = self.arrived(transfer, read, distance)

    def materialise(self, reserve: ReserveOp) -> None:
        """The transfer stands behind the operator, so that everything that reads the value comes after it."""
        value = reserve.moved
        if not isinstance(value, OpResult) or not isinstance(value.op, OperatorOp) or value.op.slot is None:
            raise TaktError(at(reserve, "what is moved is no result of a scheduled operator"))
        sets = reserve.sets()
        kind = kind_of(value.op.is_sharded(value.index), len(value.op.slot.copies()[0]), len(sets[0]))
        time = reserve.time.value.data
        made = kind.make(value, sets, reserve.link.data, reserve.starts, time, reserve.landings)
        made.location = reserve.location
        made.attributes.update(reserve.attributes)
        made.arrived.name_hint = self.names.derive(value.name_hint or f"value.{value.index}", sets[0][0])
        after: Operation = self.moved[value][-1] if value in self.moved else value.op
        self.graph.body.block.insert_op_after(made, after)
        self.moved.setdefault(value, []).append(made)
        reserve.detach()
        reserve.erase()

    def arrived(self, transfer: TransferOp, read: SSAValue, distance: int) -> SSAValue:
        """What a consumer on the target set reads: the arrived value, or the state in which it is left."""
        if not isinstance(read.owner, StateOp):
            return transfer.arrived
        key = (transfer, distance)
        if key not in self.states:
            before, left = read.owner, self.nexts[read.owner.state.data]
            name = self.names.derive(before.state.data, transfer.sets()[0][0])
            assert isinstance(read.type, TensorType)
            state, leave = StateOp.make(name, distance, read.type), NextOp.make(name, transfer.arrived)
            state.output.name_hint = name if SSAValue.is_valid_name(name) else None
            state.location, leave.location = before.location, left.location
            self.graph.body.block.insert_op_after(state, before)
            self.graph.body.block.insert_op_after(leave, left)
            self.states[key] = state.output
        return self.states[key]


def insert_communication(graph: GraphOp) -> None:
    """Turn the reservations of a scheduled graph into transfers that its operators read; level ``communicating``."""
    _Insertion(graph).run()
    graph.level = StringAttr("communicating")


@dataclass(frozen=True)
class InsertCommunicationPass(ModulePass):
    """Make reserved transfers explicit operations: level scheduled to communicating.

    Every reservation becomes an operation with the same targets, link, starts, time and landings, so nothing moves in
    time; the operators on its targets read its result. Whole values go by send_recv to one accelerator and by
    broadcast to several; sharded ones by scatter from one, gather to one, reshard otherwise. A value that is read
    from a state elsewhere arrives in a state of its own there; the state it came from stays. A graph without
    reservations changes its level only.

    rewrite:
      %h = takt.op(%x) ... slot <1 on [0:1] at 0>
      takt.reserve %h to [1:2] over "node" at 100 for 20
      %y = takt.op(%h) ... slot <1 on [1:2] at 120>
        ->
      %h = takt.op(%x) ... slot <1 on [0:1] at 0>
      %h.to.1 = takt.send_recv %h to [1:2] over "node" at 100 for 20
      %y = takt.op(%h.to.1) ... slot <1 on [1:2] at 120>
    """

    name = "insert-communication"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        insert_communication(scheduled_graph(op, ("scheduled",)))


def scheduled_graph(module: ModuleOp, levels: tuple[str, ...]) -> GraphOp:
    """The graph of ``module``; raises :class:`TaktError` unless it is at one of ``levels`` and wholly scheduled."""
    graph = find_graph(module)
    if graph is None:
        raise TaktError("there is no model: the module has no takt.graph")
    if graph.level.data not in levels:
        wanted = " or ".join(f"'{level}'" for level in levels)
        message = f"this pass takes a graph at level {wanted}, this one is at level '{graph.level.data}'"
        raise TaktError(at(graph, message, "schedule-periodic makes a scheduled graph"))
    if graph.schedule is None:
        raise TaktError(at(graph, "the graph has no schedule"))
    if missing := list(_unplaced(graph)):
        raise TaktError([at(op, f"'{op.kind()}' has no slot", "run schedule-periodic first") for op in missing])
    return graph


def _unplaced(graph: GraphOp) -> Iterator[OperatorOp]:
    return (op for op in graph.operators() if op.slot is None)
