"""Self-timed execution: the order on each accelerator is kept, everything starts as soon as it can."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from compiler.simulate.errors import SimulationError
from compiler.simulate.machine import Clock, Machine, check_length, least_microbatches
from compiler.simulate.memory import Times
from compiler.simulate.report import Report, measure
from compiler.view import ScheduleView

MOST_DOUBLINGS = 4
"""How often a run that has not settled is repeated with twice the micro-batches."""


def self_timed(view: ScheduleView, microbatches: int = 0) -> Report:
    """Run at least ``microbatches`` micro-batches, and enough to see the starts repeat from one to the next.

    Micro-batch ``i`` may begin at ``i`` periods. An operator starts when its operands are there and those before it in
    the cyclic order of each of its accelerators are done. In a valid schedule nothing then starts later than scheduled
    and the measured period is at most the scheduled one. Raises :class:`SimulationError` when nothing can start.
    """
    clock, machine = Clock.of(view), Machine.of(view)
    # Behind the last micro-batch the accelerators have less to do: so many more are run and not measured.
    drain = least_microbatches(view)
    count = max(microbatches, 2 * drain)
    for _ in range(MOST_DOUBLINGS):
        check_length(view, clock, count + drain)
        starts = _Run(view, clock, machine, count + drain).run()
        report, _ = measure(view, machine, starts[:count], "self-timed")
        if report.steady:
            return report
        count *= 2
    return report  # pyright: ignore[reportPossiblyUnboundVariable]


class _Run:
    """One run: instances are numbered ``microbatch * operators + operator``."""

    def __init__(self, view: ScheduleView, clock: Clock, machine: Machine, count: int):
        self.view, self.clock, self.count = view, clock, count
        self.width = len(view.tasks)
        self.time = [t.time * clock.scale for t in view.tasks]
        self.consumers = [[(e.consumer, e.distance) for e in edges] for edges in view.readers]
        self.held = [[machine.inside[machine.sets[c]] if t.time else () for c in t.copies] for t in view.tasks]
        producers = [0] * self.width
        carried: list[list[int]] = [[] for _ in view.tasks]
        for edge in view.edges:
            if edge.distance:
                carried[edge.consumer].append(edge.distance)
            else:
                producers[edge.consumer] += 1
        self.sources = [v for v, n in enumerate(producers) if not n]
        # An instance waits for its operands, its turn on each class of accelerators, and for injection when it reads
        # nothing of its own micro-batch. The initial values of states are there from the beginning.
        self.waiting: list[int] = []
        for i in range(count):
            for v in range(self.width):
                held = self.held[v]
                earlier = sum(distance <= i for distance in carried[v])
                self.waiting.append((producers[v] or 1) + earlier + len(held[i % len(held)]))
        self.turns = [self.turns_of(c, order) for c, order in enumerate(self.orders(machine))]
        self.starts = [-1] * (count * self.width)
        self.running: list[tuple[int, int]] = []

    def orders(self, machine: Machine) -> list[list[tuple[int, int, int, int]]]:
        """For each class of accelerators, one turn of its cyclic order: (phase, operator, residue, lap)."""
        lap = self.clock.period * self.view.rounds
        orders: list[list[tuple[int, int, int, int]]] = [[] for _ in machine.classes]
        for v, task in enumerate(self.view.tasks):
            for residue in range(self.view.rounds):
                begin = task.start * self.clock.scale + residue * self.clock.period
                for c in self.held[v][residue % len(task.copies)]:
                    orders[c].append((begin % lap, v, residue, begin // lap))
        for order in orders:
            order.sort()
        return orders

    def turns_of(self, c: int, order: list[tuple[int, int, int, int]]) -> Iterator[int]:
        """The instances that run on class ``c``, in their scheduled order."""
        laps = [lap for _, _, _, lap in order]
        for turn in range(min(laps, default=0), max(laps, default=0) + self.count // self.view.rounds + 1):
            for _, v, residue, lap in order:
                i = residue + self.view.rounds * (turn - lap)
                if 0 <= i < self.count:
                    yield i * self.width + v

    def run(self) -> Times:
        """Process injections and completions in order of time; returns the starts, ``[microbatch, operator]``."""
        for c in range(len(self.turns)):
            self.next_turn(c, 0)
        injected = 0
        while injected < self.count or self.running:
            now = injected * self.clock.period
            if injected < self.count and (not self.running or now <= self.running[0][0]):
                for v in self.sources:
                    self.release(injected * self.width + v, now)
                injected += 1
            else:
                now, instance = heapq.heappop(self.running)
                self.complete(instance, now)
        if -1 in self.starts:
            self.report_deadlock(self.starts.index(-1))
        return np.array(self.starts, dtype=np.int64).reshape(self.count, self.width)

    def release(self, instance: int, now: int) -> None:
        """One thing that an instance waited for has come; the last one starts it."""
        self.waiting[instance] -= 1
        if not self.waiting[instance]:
            self.starts[instance] = now
            heapq.heappush(self.running, (now + self.time[instance % self.width], instance))

    def next_turn(self, c: int, now: int) -> None:
        instance = next(self.turns[c], None)
        if instance is not None:
            self.release(instance, now)

    def complete(self, instance: int, now: int) -> None:
        microbatch, v = divmod(instance, self.width)
        for w, distance in self.consumers[v]:
            if microbatch + distance < self.count:
                self.release((microbatch + distance) * self.width + w, now)
        copies = self.held[v]
        for c in copies[microbatch % len(copies)]:
            self.next_turn(c, now)

    def report_deadlock(self, instance: int) -> None:
        microbatch, v = divmod(instance, self.width)
        task = self.view.tasks[v]
        raise SimulationError(
            "deadlock",
            f"'{task.name}' of micro-batch {microbatch} never starts on accelerator {task.set_of(microbatch)[0]}: "
            f"in the order given, what it waits for comes after it",
            operator=task.name,
            microbatch=microbatch,
            accelerator=task.set_of(microbatch)[0],
        )
