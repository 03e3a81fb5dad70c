"""What the programs of a module must do, read from its graph, and what they do, read from their instructions.

All of it is plain data, so that the checks of :mod:`dialects.program_checks` run on programs from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from xdsl.ir import OpResult, SSAValue

from dialects.attributes import members
from dialects.operators import OperatorOp, tensor_bytes
from dialects.placement import Placement
from dialects.programs import SECTIONS, Buffer, Instruction, ProgramOp
from dialects.structure import GraphOp, InputOp

Turns = tuple[tuple[int, ...], ...]
"""Accelerators for micro-batch 0, 1, ... in turn."""


class Need(NamedTuple):
    """A value that an operator reads, ``distance`` micro-batches old, as it arrived at ``destination``."""

    subject: int
    result: int
    destination: int
    distance: int


@dataclass(frozen=True)
class Task:
    """An operator: where its micro-batches run in turn, the start of the first (ticks), what it reads."""

    name: str
    turns: Turns
    start: int
    reads: tuple[Need, ...]
    results: int

    def on(self, microbatch: int) -> tuple[int, ...]:
        return self.turns[microbatch % len(self.turns)]


@dataclass(frozen=True)
class Content:
    """A value: its bytes, whether each accelerator of a set holds its share only, whether it leaves the graph."""

    size: int
    sharded: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Expected:
    """What programs must do. ``contents`` and ``destinations`` go by number of operator and of result.

    ``destinations`` holds, for each, the turns of destination 1, 2, ...
    """

    period: int
    in_flight: int
    tasks: tuple[Task, ...]
    inputs: int
    contents: Mapping[tuple[int, int], Content]
    destinations: Mapping[tuple[int, int], Sequence[Turns]]

    def arrival(self, buffer: Buffer, microbatch: int) -> tuple[int, ...]:
        """The accelerators that a destination stands for in the turn of a micro-batch."""
        turns = self.destinations[buffer.subject, buffer.result][buffer.destination - 1]
        return turns[microbatch % len(turns)]

    def part(self, buffer: Buffer, microbatch: int, accelerator: int) -> tuple[int, int]:
        """The bytes of a value that an accelerator of its set or of a destination holds in the end."""
        content = self.contents[buffer.subject, buffer.result]
        if not content.sharded:
            return 0, content.size
        task = self.tasks[buffer.subject]
        there = self.arrival(buffer, microbatch) if buffer.destination else task.on(microbatch)
        place, count = there.index(accelerator), len(there)
        return content.size * place // count, content.size * (place + 1) // count

    def held_as(self, need: Need, microbatch: int) -> Buffer:
        """The buffer that a reader reads, of a micro-batch of the value: in a turn without a move the value itself."""
        buffer = Buffer(need.subject, need.result, need.destination)
        if buffer.destination and self.arrival(buffer, microbatch) == self.tasks[need.subject].on(microbatch):
            return buffer._replace(destination=0)
        return buffer


@dataclass(frozen=True)
class Listing:
    """The program of an accelerator."""

    accelerator: int
    base: int
    step: int
    trips: int | None
    sections: Mapping[str, Sequence[Instruction]]
    groups: Sequence[tuple[int, ...]] = ()
    names: Mapping[int, str] = field(default_factory=dict[int, str])

    @property
    def tried(self) -> int:
        """Trips that stand for all: two, or fewer where the kernel is not repeated as often."""
        return 2 if self.trips is None else min(self.trips, 2)

    def section(self, name: str, trips: int, trip: int = 0) -> list[Instruction]:
        """A section, with micro-batches as they are in a run of ``trips`` trips."""
        found = self.sections[name]
        if name == "prologue":
            return list(found)
        if name == "kernel":
            return [x._replace(microbatch=x.microbatch + trip * self.step) for x in found]
        last = self.base + trips * self.step - 1
        return [x._replace(microbatch=last - x.microbatch) for x in found]

    def run(self, trips: int) -> list[list[Instruction]]:
        """All instructions of a run of ``trips`` trips: prologue, each trip, epilogue."""
        middle = [self.section("kernel", trips, trip) for trip in range(trips)]
        return [self.section("prologue", trips), *middle, self.section("epilogue", trips)]

    @cached_property
    def parts(self) -> list[list[Instruction]]:
        """The run of as many trips as stand for all."""
        return self.run(self.tried)

    def show(self, buffer: Buffer) -> str:
        """A buffer as the text of a program writes it."""
        text = f"{buffer.subject}" if buffer.subject >= 0 else f"in{-1 - buffer.subject}"
        text += f":{buffer.result}" if buffer.result else ""
        text += f"->{buffer.destination}" if buffer.destination else ""
        return f"'{text} {self.names.get(buffer.subject, '?')}'"


def expected_of(graph: GraphOp, placement: Placement) -> Expected:
    """What the programs of a scheduled graph must do; operators without a slot are left out by ``placement``."""
    number = {op: v for v, op in enumerate(graph.operators())}
    inputs: dict[SSAValue, int] = {op.output: -1 - n for n, op in enumerate(graph.inputs())}
    carried, kept = graph.carried(), set(graph.outputs.operands)
    destinations: dict[tuple[int, int], list[Turns]] = {}
    contents: dict[tuple[int, int], Content] = {}
    tasks: list[Task] = []
    turns = {op: tuple(placement.sets[s] for s in placed.sets) for op, placed in placement.placed.items()}

    def need(value: SSAValue, reader: OperatorOp) -> Need | None:
        origin, distance = carried.get(value, (value, 0))
        if isinstance(origin.owner, InputOp):
            return Need(inputs[origin], 0, 0, 0)
        if not isinstance(origin, OpResult) or not isinstance(origin.op, OperatorOp):
            return None
        source, count = number[origin.op], len(turns[reader])
        # As seen from the value: its micro-batch i is read where the reader runs micro-batch i + distance.
        seen = tuple(turns[reader][(i + distance) % count] for i in range(count))
        if seen == turns[origin.op]:
            return Need(source, origin.index, 0, distance)
        known = destinations.setdefault((source, origin.index), [])
        if seen not in known:
            known.append(seen)
        return Need(source, origin.index, 1 + known.index(seen), distance)

    for op, placed in placement.placed.items():
        for result in op.outputs:
            size = tensor_bytes(result.type)
            contents[number[op], result.index] = Content(size, op.is_sharded(result.index), result in kept)
        reads = dict.fromkeys(found for value in op.inputs if (found := need(value, op)) is not None)
        tasks.append(Task(placed.name, turns[op], placed.start, tuple(reads), len(op.outputs)))
    return Expected(placement.period, max(1, placement.in_flight), tuple(tasks), len(inputs), contents, destinations)


def listing_of(program: ProgramOp) -> Listing:
    """The program of an accelerator as plain data."""
    return Listing(
        program.accelerator.value.data,
        program.base.value.data,
        program.step.value.data,
        None if program.trips is None else program.trips.value.data,
        {section: list(program.instructions(section)) for section in SECTIONS},
        [members(group) for group in program.groups.data],
        program.name_of(),
    )
