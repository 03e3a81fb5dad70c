"""The rules of the level ``communicating``: what explicit transfers move, and who reads what arrives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import lcm

from xdsl.ir import OpResult, SSAValue

from dialects.attributes import show_set
from dialects.communication import (
    BroadcastOp,
    GatherOp,
    ReserveOp,
    ReshardOp,
    ScatterOp,
    SendRecvOp,
    TransferOp,
)
from dialects.operators import OperatorOp, tensor_bytes
from dialects.rules import Finding, Rule, Subject
from dialects.structure import NextOp, StateOp

Sets = Sequence[tuple[int, ...]]
"""Accelerators for micro-batch 0, 1, ... in turn."""

_WORDS: Mapping[type[TransferOp], str] = {
    SendRecvOp: "a value that one accelerator sends to one",
    BroadcastOp: "a whole value for several accelerators",
    ScatterOp: "a sharded value from one accelerator to several",
    GatherOp: "a sharded value from several accelerators to one",
    ReshardOp: "a sharded value from several accelerators to several",
}


def _no_reservation(subject: Subject) -> Iterator[Finding]:
    for op in subject.graph.transfers():
        if isinstance(op, ReserveOp):
            yield Finding(op, "a transfer is reserved only", "insert-communication makes it an operation")


def _transfer_kind(subject: Subject) -> Iterator[Finding]:
    for op in subject.graph.transfers():
        if isinstance(op, ReserveOp):
            continue
        value = op.moved
        if not isinstance(value, OpResult) or not isinstance(value.op, OperatorOp):
            yield Finding(op, f"{op.name} moves '{value.name_hint or 'a value'}', which no operator computes")
        elif value.op.slot is not None:
            sharded = value.op.is_sharded(value.index)
            senders, receivers = len(value.op.slot.copies()[0]), len(op.sets()[0])
            if not _fits(op, sharded, senders, receivers):
                what = f"'{value.name_hint or subject.names[value.op]}' is {'sharded' if sharded else 'whole'}"
                where = f"on {_count(senders)} and goes to {receivers}"
                yield Finding(op, f"{op.name} is for {_WORDS[type(op)]}, but {what} {where}")


def _fits(op: TransferOp, sharded: bool, senders: int, receivers: int) -> bool:
    match op:
        case SendRecvOp():
            return receivers == 1 and (senders == 1 or not sharded)
        case BroadcastOp():
            return receivers > 1 and not sharded
        case ScatterOp():
            return receivers > 1 and sharded and senders == 1
        case GatherOp():
            return receivers == 1 and sharded and senders > 1
        case _:
            return receivers > 1 and sharded and senders > 1


def _count(accelerators: int) -> str:
    return f"{accelerators} accelerator{'s' * (accelerators != 1)}"


def _own_set(subject: Subject) -> Iterator[Finding]:
    if subject.platform is None or not subject.platform.links.data:
        return
    carried = subject.graph.carried()
    left = {op.state.data: op.left for op in subject.graph.nexts()}
    for op in subject.operators:
        for read in dict.fromkeys(op.inputs):
            origin, distance = carried.get(read, (read, 0))
            if op.slot is None or not isinstance(origin, OpResult) or not isinstance(origin.op, OperatorOp):
                continue
            if origin.op.slot is None or not tensor_bytes(origin.type):  # pyright: ignore[reportArgumentType]
                continue
            there = _sets_of(read, origin.op, left)
            wrong = _first_difference(there, op.slot.copies(), distance)
            if wrong is not None:
                found, wanted = show_set(there[wrong % len(there)]), op.slot.copies()
                where = show_set(wanted[(wrong + distance) % len(wanted)])
                yield Finding(
                    op,
                    f"'{subject.names[op]}' reads '{read.name_hint or subject.names[origin.op]}' of micro-batch {wrong}"
                    f" on {where}, but it is on {found}",
                    "a transfer brings it there: schedule-periodic reserves it, insert-communication inserts it",
                )


def _sets_of(read: SSAValue, producer: OperatorOp, left: dict[str, SSAValue]) -> Sets:
    """Where a value is, for each micro-batch of its producer in turn."""
    value = left[read.owner.state.data] if isinstance(read.owner, StateOp) else read
    if isinstance(value.owner, TransferOp):
        return value.owner.sets()
    assert producer.slot is not None
    return producer.slot.copies()


def _first_difference(there: Sets, reads: Sets, later: int) -> int | None:
    for i in range(lcm(len(there), len(reads))):
        if there[i % len(there)] != reads[(i + later) % len(reads)]:
            return i
    return None


def _read_by_operator(value: SSAValue) -> bool:
    return any(isinstance(use.operation, OperatorOp) for use in value.uses)


def _arrival_read(subject: Subject) -> Iterator[Finding]:
    states = [state for state in subject.graph.states() if _read_by_operator(state.output)]
    read = {state.state.data for state in states}
    for op in subject.graph.transfers():
        if isinstance(op, TransferOp):
            users = [use.operation for use in op.arrived.uses]
            if not any(isinstance(u, OperatorOp) or (isinstance(u, NextOp) and u.state.data in read) for u in users):
                yield Finding(op, f"no operator reads '{op.arrived.name_hint or 'what arrives'}'")


COMMUNICATION_RULES = (
    Rule("no-reservation", "No transfer is reserved only: every one is an operation.", _no_reservation),
    Rule(
        "transfer-kind",
        "A transfer moves the result of an operator. A send_recv has one accelerator that sends and one that receives; "
        "a whole value for several goes by broadcast; a sharded one by scatter from one accelerator, by gather to one, "
        "by reshard between several.",
        _transfer_kind,
    ),
    Rule(
        "own-set",
        "Where the platform has links, every operator reads each result (of more than 0 bytes) from its own set: in "
        "every turn of copies the value, or the transfer read instead, is on the set of the operator.",
        _own_set,
    ),
    Rule("arrival-read", "An operator reads what a transfer brings, itself or through a state.", _arrival_read),
)
"""The rules of the level ``communicating``, in the order in which they are checked."""
