"""What the programs of a module must do, read from its graph, and what they do, read from their instructions.

All of it is plain data, so that the checks of :mod:`dialects.program_checks` run on programs from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
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
    """An operator: where its micro-batches run in turn, what it reads, and when it starts, in ticks.

    ``starts`` has a start for each micro-batch of a step; else that of micro-batch 0, which others follow by a period.
    """

    name: str
    turns: Turns
    starts: tuple[int, ...]
    reads: tuple[Need, ...]
    results: int
    group: str | None = None

    def on(self, microbatch: int) -> tuple[int, ...]:
        return self.turns[microbatch % len(self.turns)]


@dataclass(frozen=True)
class Update:
    """An optimizer step: where it is done, and the numbers of the weight gradients that it reads.

    Those of copies of its parameters are computed on other accelerators.
    """

    name: str
    group: str | None
    on: tuple[int, ...]
    gradients: tuple[int, ...]


@dataclass(frozen=True)
class Content:
    """A value: its bytes, whether each accelerator of a set holds its share only, whether it leaves the graph."""

    size: int
    sharded: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Expected:
    """What programs must do. ``contents`` and ``destinations`` go by number of operator and of result.

    ``destinations`` holds, for each, the turns of destination 1, 2, ... Everything repeats after ``pattern`` ticks and
    ``together`` micro-batches: those of a step, else one.
    """

    pattern: int
    together: int
    in_flight: int
    tasks: tuple[Task, ...]
    inputs: int
    contents: Mapping[tuple[int, int], Content]
    destinations: Mapping[tuple[int, int], Sequence[Turns]]
    updates: tuple[Update, ...] = ()

    def begin(self, subject: int, microbatch: int) -> int:
        """When a micro-batch starts an operator, ticks."""
        lap, turn = divmod(microbatch, self.together)
        return self.tasks[subject].starts[turn] + lap * self.pattern

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
    updates: Mapping[int, str] = field(default_factory=dict[int, str])
    """Names of optimizer steps."""

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
        starts, group = placed.starts or (placed.start,), None if op.group is None else op.group.data
        tasks.append(Task(placed.name, turns[op], starts, tuple(reads), len(op.outputs), group))
    together = placement.ticks if placement.step else 1
    pattern = placement.period * together
    in_flight = together_in_flight(tasks, pattern) if placement.step else placement.in_flight
    updates = _updates(graph, number, turns) if placement.step else ()
    sizes = (pattern, together, max(1, in_flight))
    return Expected(*sizes, tuple(tasks), len(inputs), contents, destinations, updates)


def _updates(graph: GraphOp, number: Mapping[OperatorOp, int], turns: Mapping[OperatorOp, Turns]) -> tuple[Update, ...]:
    """The optimizer steps of a step; one without a slot, which other rules report, is where its gradients are."""
    found: list[Update] = []
    for n, op in enumerate(graph.updates()):
        read = [v.op for v in op.inputs if isinstance(v, OpResult)]
        gradients = [gradient for gradient in read if isinstance(gradient, OperatorOp) and gradient in turns]
        on = op.slot.copies()[0] if op.slot is not None else turns[gradients[0]][0] if gradients else ()
        name = op.results[0].name_hint or f"optimizer_step.{n}"
        group = None if op.group is None else op.group.data
        found.append(Update(name, group, on, tuple(number[gradient] for gradient in gradients)))
    return tuple(found)


def together_in_flight(tasks: Sequence[Task], pattern: int) -> int:
    """The most micro-batches of a step that have begun one of these operators and not their last, all at once.

    Operators begin by their starts, those of one moment by micro-batch and then in the order of the graph.
    """
    count = len(tasks[0].starts)
    spans: list[tuple[tuple[int, int, int], tuple[int, int, int]]] = []
    for i in range(count):
        begun = [(task.starts[i], i, v) for v, task in enumerate(tasks)]
        spans.append((min(begun), max(begun)))
    laps = 1 + max(last[0] for _, last in spans) // pattern
    changes: list[tuple[tuple[int, int, int, int], int]] = []
    for lap in range(laps):
        for first, last in spans:
            for (time, i, v), behind, change in ((first, 0, 1), (last, 1, -1)):
                changes.append(((time + lap * pattern, i + lap * count, v, behind), change))
    return max(accumulate(change for _, change in sorted(changes)))


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
        program.update_names(),
    )
