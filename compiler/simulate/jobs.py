"""What both modes of the simulator run: operators, updates and transfers as jobs that wait and hold resources.

Resources are the classes of accelerators of :class:`Machine`, then the ports and wires of the network, those that are
always held together as one. A transfer is one job; through a buffer it is two, one that leaves, shared by all transfers
of a result, and one that arrives. An update is a job that does something in the last micro-batch of each step alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from compiler.simulate.errors import SimulationError
from compiler.simulate.machine import Machine
from compiler.simulate.memory import Times
from compiler.view import Accelerators, Edge, Move, ScheduleView, Task
from dialects.attributes import show_set
from dialects.network import Resource, Way
from dialects.units import show_time


@dataclass(frozen=True)
class Job:
    """What each micro-batch does: all but the names are those of micro-batches 0, 1, ... in turn.

    ``starts`` and ``times`` are ns. Where they repeat, starts are as many periods later as micro-batches have passed.
    """

    what: str
    """What it is called in messages."""
    operator: str
    """The operator or update, or the producer of what is moved."""
    starts: tuple[int, ...]
    times: tuple[int, ...]
    held: tuple[tuple[int, ...], ...]
    """Resources."""
    places: tuple[Accelerators, ...]
    waits: tuple[tuple[tuple[int, int], ...], ...]
    """Jobs, and how many micro-batches earlier."""
    moves: bool = False
    """Whether it is a transfer; it does nothing in a turn of no time."""
    gives: str = "operand"
    """What others wait for, in messages."""

    def time(self, microbatch: int) -> int:
        """Its time for a micro-batch, ns."""
        return self.times[microbatch % len(self.times)]

    def place(self, microbatch: int) -> Accelerators:
        """Where a micro-batch runs or goes."""
        return self.places[microbatch % len(self.places)]


@dataclass(frozen=True)
class Jobs:
    """All jobs, those of the operators first, in program order, then the updates; and what they hold."""

    jobs: tuple[Job, ...]
    capacity: tuple[int, ...]
    """How many jobs hold each resource at once."""
    names: tuple[str, ...]
    leaving: tuple[int, ...]
    """For each move, the job in which it leaves."""
    landing: tuple[int, ...]
    """For each move, the job in which it arrives."""

    def moved(self, begun: Times, scale: int) -> tuple[Times, Times]:
        """When each move had left and when it landed, ``[microbatch, move]``, from when jobs began, in clock units."""
        lasting = np.array([max(self.jobs[j].times) * scale for j in self.leaving], dtype=np.int64)
        leaving, landing = (np.array(numbers, dtype=np.intp) for numbers in (self.leaving, self.landing))
        return begun[:, leaving] + lasting, begun[:, landing]

    @staticmethod
    def of(view: ScheduleView, machine: Machine) -> Jobs:
        """The jobs of a schedule; raises :class:`SimulationError` for what is never moved, or not in that time."""
        return _Builder(view, machine).build()


class _Builder:
    def __init__(self, view: ScheduleView, machine: Machine):
        self.view, self.machine = view, machine
        self.network = view.platform.network
        self.buffered = view.platform.transfers == "buffered"
        self.leaving: list[int] = []
        self.landing: list[int] = []
        self.ports: dict[Resource, int] = {}
        self.capacity = [1] * len(machine.classes)
        self.names = [f"accelerator {members[0]}" for members in machine.classes]

    def build(self) -> Jobs:
        updates = self._updates()
        moves = self._moves(len(self.view.tasks) + len(updates))
        tasks: list[Job] = []
        for task, waits in zip(self.view.tasks, self._waits(), strict=True):
            held = tuple(self.machine.inside[self.machine.sets[c]] if task.time else () for c in task.copies)
            every = self._after_updates(task, waits)
            tasks.append(Job(f"'{task.name}'", task.name, task.starts, (task.time,), held, task.copies, every))
        lists = tuple(self.capacity), tuple(self.names), tuple(self.leaving), tuple(self.landing)
        return Jobs((*tasks, *updates, *moves), *lists)

    # --- updates ---------------------------------------------------------------------------------

    def _updates(self) -> list[Job]:
        """The jobs of all updates, in a step: behind the gradients and their own group, for all its micro-batches."""
        if not self.view.step:
            return []
        count = self.view.microbatches
        jobs: list[Job] = []
        for update in self.view.updates:
            assert update.start is not None
            held = self.machine.inside[self.machine.sets[update.place]] if update.time else ()
            own = (task.index for task in self.view.tasks if task.group == update.group)
            before = dict.fromkeys([*update.gradients, *own])
            waits = tuple((task, distance) for task in before for distance in range(count))
            what, idle = f"the optimizer step '{update.name}'", count - 1
            jobs.append(
                Job(
                    what,
                    update.name,
                    (update.start,) * count,
                    (0,) * idle + (update.time,),
                    ((),) * idle + (held,),
                    (update.place,),
                    ((),) * idle + (waits,),
                    gives="parameters",
                )
            )
        return jobs

    def _after_updates(self, task: Task, waits: tuple[tuple[int, int], ...]) -> tuple[tuple[tuple[int, int], ...], ...]:
        """What each micro-batch waits for: also for the update of the parameters in the step before."""
        first = len(self.view.tasks)
        mine = [first + u.index for u in self.view.updates if task.group is not None and u.group == task.group]
        if not self.view.step or not mine:
            return (waits,)
        return tuple((*waits, *((u, turn + 1) for u in mine)) for turn in range(self.view.microbatches))

    # --- what waits for what ---------------------------------------------------------------------

    def _waits(self) -> list[tuple[tuple[int, int], ...]]:
        """For each operator, the producers of its operands and the arrivals of those that are moved."""
        waits: list[dict[tuple[int, int], None]] = [{} for _ in self.view.tasks]
        for edge in self.view.edges:
            waits[edge.consumer][edge.producer, edge.distance] = None
            carriers = self.view.carriers[edge]
            for move in carriers.values():
                waits[edge.consumer][self.landing[move.index], edge.distance] = None
            if self.view.platform.links:
                self._check_moved(edge, carriers)
        return [tuple(found) for found in waits]

    def _check_moved(self, edge: Edge, moved: Iterable[int]) -> None:
        producer, consumer = self.view.tasks[edge.producer], self.view.tasks[edge.consumer]
        if not {r for r in edge.results if producer.results[r]} - set(moved):
            return
        for i in range(self.view.turns):
            there = consumer.set_of(i + edge.distance)
            if there != producer.set_of(i):
                raise SimulationError(
                    "data",
                    f"'{consumer.name}' of micro-batch {i + edge.distance} reads '{producer.name}' on accelerator "
                    f"{there[0]}, but nothing moves it there",
                    operator=consumer.name,
                    microbatch=i + edge.distance,
                    accelerator=there[0],
                )

    # --- transfers -------------------------------------------------------------------------------

    def _moves(self, first: int) -> list[Job]:
        """The jobs of all moves, numbered from ``first``."""
        jobs: list[Job] = []
        holds = self._holds()
        copies: dict[tuple[int, int, tuple[int, ...], int], int] = {}
        for move, ways in zip(self.view.moves, self.view.ways, strict=True):
            self._check(move, ways)
            times = tuple(move.time if way.moves else 0 for way in ways)
            name = self.view.tasks[move.producer].name
            to = f"the transfer of '{name}' to {', '.join(show_set(t) for t in move.targets)}"
            waits = (((move.producer, 0),),)
            leaving = first + len(jobs)
            if self.buffered:
                leaving = copies.setdefault((move.producer, move.result, move.starts, move.time), leaving)
                if leaving == first + len(jobs):
                    jobs.append(self._copy(move, holds))
                waits = (((leaving, 0),),)
            self.leaving.append(leaving)
            self.landing.append(first + len(jobs))
            starts = move.landings if self.buffered else move.starts
            held = tuple(holds(way.receiver if self.buffered else way.sender | way.receiver) for way in ways)
            jobs.append(Job(to, name, starts, times, held, move.targets, waits, True))
        return jobs

    def _copy(self, move: Move, holds: Callable[[frozenset[Resource]], tuple[int, ...]]) -> Job:
        """The job in which a result leaves for the buffer, for all moves that leave together."""
        task = self.view.tasks[move.producer]
        senders: list[frozenset[Resource]] = [frozenset()] * self.view.turns
        for other, ways in zip(self.view.moves, self.view.ways, strict=True):
            if all(getattr(other, f) == getattr(move, f) for f in ("producer", "result", "starts", "time")):
                senders = [s | ways[i % len(ways)].sender for i, s in enumerate(senders)]
        times = tuple(move.time if s else 0 for s in senders)
        what = f"the copy of '{task.name}' into its buffer"
        held = tuple(holds(s) for s in senders)
        return Job(what, task.name, move.starts, times, held, task.copies, (((task.index, 0),),), True)

    def _holds(self) -> Callable[[frozenset[Resource]], tuple[int, ...]]:
        """A function from what a way occupies to resources; ports and wires that go together become one."""
        users: dict[Resource, list[tuple[int, int]]] = {}
        for number, ways in enumerate(self.view.ways):
            for turn, way in enumerate(ways):
                for resource in way.sender | way.receiver:
                    users.setdefault(resource, []).append((number, turn))
        number_of: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {}
        for resource in sorted(r for r in users if r.level >= 0):
            key = (self.network.capacity(resource), tuple(users[resource]))
            if key not in number_of:
                number_of[key] = len(self.names)
                self.names.append(self.network.name(resource))
                self.capacity.append(key[0])
            self.ports[resource] = number_of[key]
        class_of = {p: c for c, members in enumerate(self.machine.classes) for p in members}

        def holds(resources: frozenset[Resource]) -> tuple[int, ...]:
            return tuple(sorted({class_of[r.at] if r.level < 0 else self.ports[r] for r in resources}))

        return holds

    def _check(self, move: Move, ways: tuple[Way, ...]) -> None:
        """Raise an error for a move that cannot be done in the time reserved, or needs a buffer that is not there."""
        name = self.view.tasks[move.producer].name
        for turn in range(self.view.rounds):
            way, fault = ways[turn % len(ways)], ""
            start, landing = (listed[turn % len(listed)] for listed in (move.starts, move.landings))
            if way.time > move.time:
                fault = f"takes {show_time(way.time)}, but {show_time(move.time)} are reserved"
            elif way.moves and not self.buffered and landing != start:
                fault = f"leaves at {show_time(start)} and lands at {show_time(landing)} without a buffer"
            if fault:
                place = move.target_of(turn)
                message = f"the transfer of '{name}' of micro-batch {turn} to {show_set(place)} {fault}"
                raise SimulationError("link", message, operator=name, microbatch=turn, accelerator=place[0])
