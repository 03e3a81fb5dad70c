"""Replay of programs with durations: what runs when, if every accelerator just works through its list.

Self-timed and blocking, as strict as a runtime may be: an accelerator does one instruction at a time, in order. A send
and its receive begin together, when both ends have come to them, and so do all members of an all-gather. An operator
begins when all accelerators of its set have come to it, and so does an optimizer step, but not before the gradients
that it reads are there, those of copies of its parameters on other accelerators too. Computing never overlaps with
moving on an accelerator, so the measured period may exceed that of a schedule whose transfers overlap.

It reads the view of the schedule and the instructions, and shares no code with the verifier of the programs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from xdsl.dialects.builtin import ModuleOp

from compiler.simulate.errors import SimulationError
from compiler.view import Accelerators, ScheduleView, view_of
from dialects.programs import ALL_GATHER, COMPUTE, RECV, SEND, UPDATE, Instruction, ProgramOp

Durations = Callable[[Instruction, Accelerators], int]
"""How long something takes on these accelerators, ns: an operator or an optimizer step runs on them, or
``instruction.end - instruction.begin`` bytes move among them."""


@dataclass(frozen=True)
class ReplayReport:
    """A run of ``microbatches`` micro-batches; times in ns.

    ``begun`` and ``completed`` are when each micro-batch began its first operator and finished its last, ``period`` the
    mean time between completions over the later half of the run, in whole patterns of copies, or whole steps; ``busy``
    how long each accelerator computed, optimizer steps included.
    """

    microbatches: int
    makespan: int
    begun: tuple[int, ...]
    completed: tuple[int, ...]
    period: Fraction
    busy: Mapping[int, int]


def free_moves(instruction: Instruction, among: Accelerators) -> int:
    """Moving takes no time."""
    return 0


def scheduled_times(view: ScheduleView) -> Durations:
    """The times of operators and optimizer steps that the schedule counts with."""

    def time(instruction: Instruction, among: Accelerators) -> int:
        timed = view.updates if instruction.kind == UPDATE else view.tasks
        return timed[instruction.subject].time

    return time


def link_times(view: ScheduleView) -> Durations:
    """Latency and bytes over the rate of the innermost level of the network that joins all; nothing without links.

    The members of an all-gather pass on all pieces but their own.
    """
    levels = view.platform.links

    def time(instruction: Instruction, among: Accelerators) -> int:
        if not levels:
            return 0
        low, high = min(among), max(among)
        level = next((x for x in levels if low // x.size == high // x.size), levels[-1])
        size = instruction.end - instruction.begin
        if instruction.kind == ALL_GATHER:
            size -= size // len(among)
        rate = level.bandwidth * (1 if level.shared else level.links)
        return level.latency + -(-(10**9) * size // rate) if size else 0

    return time


def replay(
    module: ModuleOp, trips: int = 0, durations: Durations | None = None, operators: Durations | None = None
) -> ReplayReport:
    """Run the programs of a module; a kernel without end runs ``trips`` trips.

    ``durations`` of messages and all-gathers are those of :func:`link_times` where none are given, and those of
    ``operators`` those of :func:`scheduled_times`. Raises :class:`SimulationError` when the programs wait for each
    other for ever.
    """
    view = view_of(module)
    programs = [op for op in module.body.ops if isinstance(op, ProgramOp)]
    if not programs:
        raise SimulationError("machine", "the module holds no programs: run lower-to-programs first")
    run = _Run(view, programs, trips, durations or link_times(view), operators or scheduled_times(view))
    return run.report(run.run())


@dataclass
class _Gradients:
    """What an optimizer step of a step reads: how much is ``left`` to compute, when all else is ``there``."""

    left: int
    there: int = 0
    waits: bool = False
    """Whether the accelerators of the optimizer step have come to it."""


class _Run:
    """Events in order of time; every accelerator has come to one instruction and waits for others or is busy."""

    def __init__(
        self, view: ScheduleView, programs: Sequence[ProgramOp], trips: int, moves: Durations, operators: Durations
    ):
        self.view, self.moves, self.operators = view, moves, operators
        first = programs[0]
        trips = trips if first.trips is None else first.trips.value.data
        self.microbatches = first.base.value.data + trips * first.step.value.data
        self.lists = {op.accelerator.value.data: self.unrolled(op, trips) for op in programs}
        self.groups = {op.accelerator.value.data: [tuple(g.get_values()) for g in op.groups.data] for op in programs}
        updates = view.updates if view.step else ()
        last = range(view.microbatches - 1, self.microbatches, view.microbatches)
        self.gradients = {(u.index, i): _Gradients(len(u.gradients) * view.microbatches) for u in updates for i in last}
        self.readers: dict[int, list[int]] = {}
        """Weight gradient → the optimizer steps that read it."""
        for update in updates:
            for v in update.gradients:
                self.readers.setdefault(v, []).append(update.index)
        self.at = dict.fromkeys(self.lists, 0)
        self.busy = dict.fromkeys(self.lists, 0)
        self.arrived: dict[tuple[object, ...], set[int]] = {}
        """What accelerators have come to and what needs others too → those that have."""
        self.begun: list[int | None] = [None] * self.microbatches
        self.completed = [0] * self.microbatches

    def unrolled(self, op: ProgramOp, trips: int) -> list[Instruction]:
        """All instructions that take time or wait, with micro-batches from 0."""
        step, last = op.step.value.data, self.microbatches - 1
        found = list(op.instructions("prologue"))
        for trip in range(trips):
            found += [x._replace(microbatch=x.microbatch + trip * step) for x in op.instructions("kernel")]
        found += [x._replace(microbatch=last - x.microbatch) for x in op.instructions("epilogue")]
        return [x for x in found if x.kind in (COMPUTE, SEND, RECV, ALL_GATHER, UPDATE)]

    def run(self) -> int:
        """Returns when the last instruction ends."""
        events: list[tuple[int, int]] = [(0, p) for p in self.lists]
        now = 0
        while events:
            now, p = heapq.heappop(events)
            if self.at[p] == len(self.lists[p]):
                continue
            x = self.lists[p][self.at[p]]
            what, among = self.meeting(p, x)
            here = self.arrived.setdefault(what, set())
            here.add(p)
            if len(here) == len(among):
                del self.arrived[what]
                self.begin(x, among, now, events)
        for p, at in self.at.items():
            if at < len(self.lists[p]):
                x = self.lists[p][at]
                subject = self.view.updates[x.subject] if x.kind == UPDATE else self.view.tasks[x.subject]
                name, i = subject.name, x.microbatch
                message = f"accelerator {p} waits for ever at instruction {at}, '{name}' of micro-batch {i}"
                raise SimulationError("deadlock", message, operator=name, microbatch=i, accelerator=p)
        return now

    def begin(self, x: Instruction, among: Accelerators, now: int, events: list[tuple[int, int]]) -> None:
        """Do what all who take part have come to, unless it still waits for gradients."""
        if x.kind == UPDATE:
            gradients = self.gradients[x.subject, x.microbatch]
            if gradients.left:
                gradients.waits = True
                return
            now = max(now, gradients.there)
        end = now + self.time(x, among)
        for q in among:
            self.at[q] += 1
            self.busy[q] += end - now if x.kind in (COMPUTE, UPDATE) else 0
            heapq.heappush(events, (end, q))
        if x.kind == COMPUTE:
            if self.begun[x.microbatch] is None:
                self.begun[x.microbatch] = now
            self.completed[x.microbatch] = max(self.completed[x.microbatch], end)
            self.computed(x, end, events)

    def computed(self, x: Instruction, end: int, events: list[tuple[int, int]]) -> None:
        """Count a weight gradient for the optimizer steps that read it, and begin those that only waited for it."""
        count = self.view.microbatches
        last = x.microbatch // count * count + count - 1
        for n in self.readers.get(x.subject, ()):
            gradients = self.gradients[n, last]
            gradients.left -= 1
            gradients.there = max(gradients.there, end)
            if gradients.waits and not gradients.left:
                self.begin(Instruction(UPDATE, n, 0, 0, last), self.view.updates[n].place, end, events)

    def meeting(self, p: int, x: Instruction) -> tuple[tuple[object, ...], Accelerators]:
        """A name for what accelerator ``p`` has come to, the same on all that take part, and who these are."""
        if x.kind == COMPUTE:
            return (COMPUTE, x.subject, x.microbatch), self.view.tasks[x.subject].set_of(x.microbatch)
        if x.kind == ALL_GATHER:
            group = self.groups[p][x.peer]
            return (ALL_GATHER, group), group
        if x.kind == UPDATE:
            return (UPDATE, x.subject, x.microbatch), self.view.updates[x.subject].place
        ends = (p, x.peer) if x.kind == SEND else (x.peer, p)
        return (SEND, *ends), ends

    def time(self, x: Instruction, among: Accelerators) -> int:
        return (self.operators if x.kind in (COMPUTE, UPDATE) else self.moves)(x, among)

    def report(self, makespan: int) -> ReplayReport:
        rounds = lcm(self.view.rounds, self.view.microbatches if self.view.step else 1)
        done = sorted(self.completed)
        last = len(done) - 1
        span = max(1, (last // 2) // rounds * rounds) if last > 0 else 0
        period = Fraction(done[last] - done[last - span], span) if span else Fraction(makespan)
        begun = tuple(at or 0 for at in self.begun)
        return ReplayReport(self.microbatches, makespan, begun, tuple(self.completed), period, self.busy)
