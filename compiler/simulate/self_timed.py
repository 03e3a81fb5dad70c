"""Self-timed execution: the order on each accelerator and link is kept, everything starts as soon as it can."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import lcm

import numpy as np

from compiler.simulate.errors import SimulationError
from compiler.simulate.jobs import Job, Jobs
from compiler.simulate.machine import Clock, Machine, check_length, least_microbatches, steps_at_once, whole_steps
from compiler.simulate.memory import Times
from compiler.simulate.report import Report, measure
from compiler.view import ScheduleView

MOST_DOUBLINGS = 4
"""How often a run that has not settled is repeated with twice the micro-batches."""


def self_timed(view: ScheduleView, microbatches: int = 0) -> Report:
    """Run at least ``microbatches`` micro-batches, and enough to see the starts repeat from one to the next.

    Micro-batch ``i`` may begin at ``i`` periods. An operator or transfer starts when what it reads is there and those
    before it in the cyclic order of each of its accelerators, ports and wires are done: all of them, or on a resource
    that carries ``n`` at once all but ``n - 1``. In a valid schedule nothing then starts later than scheduled
    and the measured period is at most the scheduled one. Raises :class:`SimulationError` when nothing can start.

    All micro-batches of a step may begin with it: the order alone says what runs in it at once. A step may begin when
    no more than in the schedule are in progress: one where it takes its makespan.
    """
    clock, machine = Clock.of(view), Machine.of(view)
    jobs = Jobs.of(view, machine)
    # Behind the last micro-batch the accelerators have less to do: so many more are run and not measured.
    drain = least_microbatches(view)
    count = max(whole_steps(view, microbatches), 2 * drain)
    for _ in range(MOST_DOUBLINGS):
        check_length(view, clock, count + drain)
        starts = earliest(view, clock, jobs, count + drain)
        report, _ = measure(view, machine, jobs, starts[:count], "self-timed")
        if report.steady:
            return report
        count *= 2
    return report  # pyright: ignore[reportPossiblyUnboundVariable]


def earliest(view: ScheduleView, clock: Clock, jobs: Jobs, microbatches: int) -> Times:
    """When each job begins in such a run, ``[microbatch, job]``, in clock units; a step has all its micro-batches."""
    return _Run(view, clock, jobs, microbatches).run()


def _consumers(jobs: tuple[Job, ...]) -> list[list[list[tuple[int, int]]]]:
    """For each job, what waits for it in micro-batches 0, 1, ... in turn, and how many micro-batches later."""
    turns = [1] * len(jobs)
    for job in jobs:
        for u in {u for waits in job.waits for u, _ in waits}:
            turns[u] = lcm(turns[u], len(job.waits))
    found: list[list[list[tuple[int, int]]]] = [[[] for _ in range(count)] for count in turns]
    for v, job in enumerate(jobs):
        count = len(job.waits)
        for residue, waits in enumerate(job.waits):
            for u, distance in waits:
                for turn in range((residue - distance) % count, turns[u], count):
                    found[u][turn].append((v, distance))
    return found


class _Run:
    """One run: instances are numbered ``microbatch * jobs + job``."""

    def __init__(self, view: ScheduleView, clock: Clock, jobs: Jobs, count: int):
        self.view, self.rounds, self.clock, self.jobs, self.count = view, view.rounds, clock, jobs.jobs, count
        self.width = len(jobs.jobs)
        self.times = [[time * clock.scale for time in job.times] for job in jobs.jobs]
        self.consumers = _consumers(self.jobs)
        self.held = [job.held for job in jobs.jobs]
        # An instance waits for its operands, its turn on each resource, and for injection when it reads nothing of
        # its own micro-batch. The initial values of states are there from the beginning.
        injected = [[all(distance for _, distance in waits) for waits in job.waits] for job in jobs.jobs]
        self.waiting: list[int] = []
        for i in range(count):
            for v, job in enumerate(jobs.jobs):
                turn, held = i % len(job.waits), self.held[v]
                needed = sum(distance <= i for _, distance in job.waits[turn])
                self.waiting.append(injected[v][turn] + needed + len(held[i % len(held)]))
        every = lcm(*(len(job.waits) for job in jobs.jobs))
        self.sources = [[v for v, own in enumerate(injected) if own[turn % len(own)]] for turn in range(every)]
        self.capacity = jobs.capacity
        self.turns = [self.turns_of(order) for order in self.orders()]
        self.together = steps_at_once(view)
        self.missing = [view.microbatches * self.width] * (count // view.microbatches) if view.step else []
        """For each step, what has not ended."""
        self.starts = [-1] * (count * self.width)
        self.running: list[tuple[int, int]] = []

    def orders(self) -> list[list[tuple[int, int, int, int]]]:
        """For each resource, one turn of its cyclic order: (phase, job, residue, lap)."""
        lap = self.clock.period * self.rounds
        orders: list[list[tuple[int, int, int, int]]] = [[] for _ in self.capacity]
        for v, job in enumerate(self.jobs):
            for residue in range(self.rounds):
                turn = residue % len(job.starts)
                begin = job.starts[turn] * self.clock.scale + (residue - turn) * self.clock.period
                for c in job.held[residue % len(job.held)]:
                    orders[c].append((begin % lap, v, residue, begin // lap))
        for order in orders:
            order.sort()
        return orders

    def turns_of(self, order: list[tuple[int, int, int, int]]) -> Iterator[int]:
        """The instances that hold a resource, in their scheduled order."""
        laps = [lap for _, _, _, lap in order]
        for turn in range(min(laps, default=0), max(laps, default=0) + self.count // self.rounds + 1):
            for _, v, residue, lap in order:
                i = residue + self.rounds * (turn - lap)
                if 0 <= i < self.count:
                    yield i * self.width + v

    def run(self) -> Times:
        """Process injections and completions in order of time; returns the starts, ``[microbatch, job]``."""
        for c, most in enumerate(self.capacity):
            for _ in range(most):
                self.next_turn(c, 0)
        if self.view.step:
            for step in range(self.together):
                self.begin_step(step, 0)
        else:
            self.running = [(i * self.clock.period, i - self.count) for i in range(self.count)]
        while self.running:
            now, instance = heapq.heappop(self.running)
            if instance < 0:
                self.inject(instance + self.count, now)
            else:
                self.complete(instance, now)
        if -1 in self.starts:
            self.report_deadlock(self.starts.index(-1))
        return np.array(self.starts, dtype=np.int64).reshape(self.count, self.width)

    def begin_step(self, step: int, now: int) -> None:
        """Let all micro-batches of a step begin, if it is one of the run."""
        first = step * self.view.microbatches
        for i in range(first, min(first + self.view.microbatches, self.count)):
            self.inject(i, now)

    def inject(self, microbatch: int, now: int) -> None:
        """Release what reads nothing of its own micro-batch."""
        for v in self.sources[microbatch % len(self.sources)]:
            self.release(microbatch * self.width + v, now)

    def release(self, instance: int, now: int) -> None:
        """One thing that an instance waited for has come; the last one starts it."""
        self.waiting[instance] -= 1
        if not self.waiting[instance]:
            microbatch, v = divmod(instance, self.width)
            self.starts[instance] = now
            heapq.heappush(self.running, (now + self.times[v][microbatch % len(self.times[v])], instance))

    def next_turn(self, c: int, now: int) -> None:
        instance = next(self.turns[c], None)
        if instance is not None:
            self.release(instance, now)

    def complete(self, instance: int, now: int) -> None:
        microbatch, v = divmod(instance, self.width)
        consumers = self.consumers[v]
        for w, distance in consumers[microbatch % len(consumers)]:
            if microbatch + distance < self.count:
                self.release((microbatch + distance) * self.width + w, now)
        held = self.held[v]
        for c in held[microbatch % len(held)]:
            self.next_turn(c, now)
        if self.missing:
            step = microbatch // self.view.microbatches
            self.missing[step] -= 1
            if not self.missing[step]:
                self.begin_step(step + self.together, now)

    def report_deadlock(self, instance: int) -> None:
        microbatch, v = divmod(instance, self.width)
        job = self.jobs[v]
        place = job.place(microbatch)[0]
        raise SimulationError(
            "deadlock",
            f"{job.what} of micro-batch {microbatch} never starts on accelerator {place}: "
            f"in the order given, what it waits for comes after it",
            operator=job.operator,
            microbatch=microbatch,
            accelerator=place,
        )
