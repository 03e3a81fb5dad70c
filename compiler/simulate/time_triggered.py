"""Time-triggered execution: every operator starts exactly when the schedule says, or the run fails."""

from __future__ import annotations

import heapq

import numpy as np

from compiler.simulate.errors import SimulationError
from compiler.simulate.machine import Clock, Machine, check_length, least_microbatches
from compiler.simulate.memory import Overflow, Times
from compiler.simulate.report import Report, measure
from compiler.view import ScheduleView
from dialects.units import show_bytes


def time_triggered(view: ScheduleView, microbatches: int = 0) -> Report:
    """Run at least ``microbatches`` micro-batches, and enough to measure one pattern in the steady state.

    Raises :class:`SimulationError` on the first operand that is late, accelerator that is busy, or memory that is full.
    """
    clock, machine = Clock.of(view), Machine.of(view)
    count = max(microbatches, least_microbatches(view))
    check_length(view, clock, count)
    first = np.array([t.start * clock.scale for t in view.tasks], dtype=np.int64)
    starts: Times = np.arange(count, dtype=np.int64)[:, None] * clock.period + first
    _Run(view, clock, machine, starts).run()
    report, overflow = measure(view, machine, starts, "time-triggered")
    if overflow is not None:
        raise _memory_error(view, clock, overflow)
    return report


class _Run:
    """One run: instances are numbered ``microbatch * operators + operator``."""

    def __init__(self, view: ScheduleView, clock: Clock, machine: Machine, starts: Times):
        self.view, self.clock = view, clock
        self.width = len(view.tasks)
        self.classes = machine.classes
        self.starts = starts
        self.time = [t.time * clock.scale for t in view.tasks]
        self.producers: list[list[tuple[int, int]]] = [[] for _ in view.tasks]
        for edge in view.edges:
            self.producers[edge.consumer].append((edge.producer, edge.distance))
        self.held = [[machine.inside[machine.sets[c]] for c in t.copies] for t in view.tasks]
        self.holder = [-1] * len(machine.classes)
        self.done = bytearray(starts.size)

    def run(self) -> None:
        """Process all starts in order of time; at one moment what ends makes room and data for what starts."""
        flat = self.starts.ravel()
        # Ties by micro-batch, then in program order, so that an operator without duration feeds one that starts at
        # the same moment.
        order = np.argsort(flat, kind="stable")
        running: list[tuple[int, int]] = []
        for now, instance in zip(flat[order].tolist(), order.tolist(), strict=True):
            while running and running[0][0] <= now:
                self.finish(heapq.heappop(running)[1])
            v = instance % self.width
            self.check_data(instance, now)
            if self.time[v]:
                self.occupy(instance, now)
                heapq.heappush(running, (now + self.time[v], instance))
            else:
                self.done[instance] = 1

    def sets(self, instance: int) -> tuple[int, ...]:
        microbatch, v = divmod(instance, self.width)
        copies = self.held[v]
        return copies[microbatch % len(copies)]

    def finish(self, instance: int) -> None:
        self.done[instance] = 1
        for c in self.sets(instance):
            self.holder[c] = -1

    def check_data(self, instance: int, now: int) -> None:
        microbatch, v = divmod(instance, self.width)
        base = instance - v
        for u, distance in self.producers[v]:
            if distance > microbatch:
                continue  # the initial value of a state
            if not self.done[base - distance * self.width + u]:
                task, producer = self.view.tasks[v], self.view.tasks[u]
                ready = int(self.starts[microbatch - distance, u]) + self.time[u]
                name = f"'{producer.name}'" + (f" of micro-batch {microbatch - distance}" if distance else "")
                raise SimulationError(
                    "data",
                    f"'{task.name}' of micro-batch {microbatch} starts at {self.clock.show(now)} on accelerator "
                    f"{task.set_of(microbatch)[0]}, but its operand from {name} is ready at "
                    f"{self.clock.show(ready)}",
                    operator=task.name,
                    microbatch=microbatch,
                    accelerator=task.set_of(microbatch)[0],
                )

    def occupy(self, instance: int, now: int) -> None:
        microbatch, v = divmod(instance, self.width)
        for c in self.sets(instance):
            if self.holder[c] >= 0:
                other_microbatch, u = divmod(self.holder[c], self.width)
                until = int(self.starts[other_microbatch, u]) + self.time[u]
                name, other = self.view.tasks[v].name, self.view.tasks[u].name
                raise SimulationError(
                    "busy",
                    f"'{name}' of micro-batch {microbatch} starts at {self.clock.show(now)} on accelerator "
                    f"{self.classes[c][0]}, which is busy with '{other}' of micro-batch {other_microbatch} until "
                    f"{self.clock.show(until)}",
                    operator=name,
                    microbatch=microbatch,
                    accelerator=self.classes[c][0],
                )
            self.holder[c] = instance


def _memory_error(view: ScheduleView, clock: Clock, overflow: Overflow) -> SimulationError:
    cause = f"the {overflow.what} of '{overflow.owner}' of micro-batch {overflow.microbatch}"
    return SimulationError(
        "memory",
        f"accelerator {overflow.accelerator} needs {show_bytes(overflow.needed)} at {clock.show(overflow.time)} "
        f"but has {show_bytes(view.platform.memory)}; it overflows with "
        + (cause if overflow.owner else "its parameters"),
        operator=overflow.owner,
        microbatch=overflow.microbatch,
        accelerator=overflow.accelerator,
    )
