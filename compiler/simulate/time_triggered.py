"""Time-triggered execution: operators and transfers start exactly when the schedule says, or the run fails."""

from __future__ import annotations

import heapq

import numpy as np

from compiler.simulate.errors import SimulationError
from compiler.simulate.jobs import Jobs
from compiler.simulate.machine import Clock, Machine, check_length, least_microbatches, whole_steps
from compiler.simulate.memory import Overflow, Times, moments
from compiler.simulate.report import Report, measure
from compiler.view import ScheduleView
from dialects.units import show_bytes


def time_triggered(view: ScheduleView, microbatches: int = 0) -> Report:
    """Run at least ``microbatches`` micro-batches, and enough to measure one pattern in the steady state.

    Raises :class:`SimulationError` on the first value that is late, accelerator or link that is busy, or memory that is
    full.
    """
    clock, machine = Clock.of(view), Machine.of(view)
    jobs = Jobs.of(view, machine)
    count = max(whole_steps(view, microbatches), least_microbatches(view))
    check_length(view, clock, count)
    starts = moments(view, [job.starts for job in jobs.jobs], count)
    _Run(clock, machine, jobs, starts).run()
    report, overflow = measure(view, machine, jobs, starts, "time-triggered")
    if overflow is not None:
        raise _memory_error(view, clock, overflow)
    return report


class _Run:
    """One run: instances are numbered ``microbatch * jobs + job``."""

    def __init__(self, clock: Clock, machine: Machine, jobs: Jobs, starts: Times):
        self.clock, self.jobs, self.list = clock, jobs, jobs.jobs
        self.classes = len(machine.classes)
        self.members = [members[0] for members in machine.classes]
        self.width = len(jobs.jobs)
        self.starts = starts
        self.times = [[time * clock.scale for time in job.times] for job in jobs.jobs]
        self.holders: list[list[int]] = [[] for _ in jobs.capacity]
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
            self.check_data(instance, now)
            if time := self.time(instance):
                self.occupy(instance, now)
                heapq.heappush(running, (now + time, instance))
            else:
                self.done[instance] = 1

    def time(self, instance: int) -> int:
        microbatch, v = divmod(instance, self.width)
        times = self.times[v]
        return times[microbatch % len(times)]

    def held(self, instance: int) -> tuple[int, ...]:
        microbatch, v = divmod(instance, self.width)
        held = self.list[v].held
        return held[microbatch % len(held)]

    def until(self, instance: int) -> str:
        return self.clock.show(int(self.starts.flat[instance]) + self.time(instance))

    def finish(self, instance: int) -> None:
        self.done[instance] = 1
        for c in self.held(instance):
            self.holders[c].remove(instance)

    def check_data(self, instance: int, now: int) -> None:
        microbatch, v = divmod(instance, self.width)
        job = self.list[v]
        if job.moves and not self.time(instance):
            return
        for u, distance in job.waits[microbatch % len(job.waits)]:
            source = instance - v - distance * self.width + u
            if distance > microbatch or self.done[source]:
                continue  # before the first micro-batch, the initial value of a state
            producer = self.list[u]
            if producer.moves and not self.time(source):
                continue  # it was produced where it is read
            earlier = f" of micro-batch {microbatch - distance}" if distance else ""
            place = job.place(microbatch)[0]
            where = "" if job.moves else f" on accelerator {place}"
            raise SimulationError(
                "data",
                f"{job.what} of micro-batch {microbatch} starts at {self.clock.show(now)}{where}, but its "
                f"{producer.gives} from {producer.what}{earlier} is ready at {self.until(source)}",
                operator=job.operator,
                microbatch=microbatch,
                accelerator=place,
            )

    def occupy(self, instance: int, now: int) -> None:
        microbatch, v = divmod(instance, self.width)
        for c in self.held(instance):
            if len(self.holders[c]) >= self.jobs.capacity[c]:
                holder = self.holders[c][0]
                other, u = divmod(holder, self.width)
                raise SimulationError(
                    "busy" if c < self.classes else "link",
                    f"{self.list[v].what} of micro-batch {microbatch} starts at {self.clock.show(now)} on "
                    f"{self.jobs.names[c]}, which is busy with {self.list[u].what} of micro-batch {other} until "
                    f"{self.until(holder)}",
                    operator=self.list[v].operator,
                    microbatch=microbatch,
                    accelerator=self.accelerator(c, instance),
                )
            self.holders[c].append(instance)

    def accelerator(self, resource: int, instance: int) -> int:
        microbatch, v = divmod(instance, self.width)
        if resource < self.classes:
            return self.members[resource]
        return self.list[v].place(microbatch)[0]


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
