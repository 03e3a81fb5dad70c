"""What a simulated run measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from compiler.simulate.jobs import Jobs
from compiler.simulate.machine import Clock, Machine, steps_at_once
from compiler.simulate.memory import Lifetimes, Overflow, Times, lifetimes, peak_memory
from compiler.simulate.rhythm import Rhythm, of_periods, of_steps
from compiler.view import ScheduleView

Mode = Literal["time-triggered", "self-timed"]


@dataclass(frozen=True)
class Report:
    """Measurements of a run of ``microbatches`` micro-batches. Times are ns, sizes bytes on each accelerator.

    ``warm_up`` is the number of periods before the steady state, in which ``period`` (completion to completion) and
    ``load`` (accelerator → busy fraction) were measured over whole patterns; ``steady`` tells whether it was reached.
    ``peak_memory`` includes parameters and covers the whole run. Latency counts from the injection of a micro-batch,
    in a step from its first start. ``step`` is the time from step to step, ``period`` that for each micro-batch of it;
    None where the schedule is no step.
    """

    mode: Mode
    microbatches: int
    warm_up: int
    steady: bool
    period: Fraction
    latency_min: Fraction
    latency_max: Fraction
    in_flight: int
    peak_memory: Mapping[int, int]
    load: Mapping[int, Fraction]
    step: Fraction | None = None


def measure(
    view: ScheduleView, machine: Machine, jobs: Jobs, begun: Times, mode: Mode
) -> tuple[Report, Overflow | None]:
    """Measure a run; ``begun[i, j]`` is when micro-batch ``i`` began job ``j``, in clock units."""
    clock, count, operators = Clock.of(view), len(begun), len(view.tasks)
    if not view.tasks:
        return _idle(view, count, mode), None
    starts, updates = begun[:, :operators], _updates(view, begun)
    durations = np.array([t.time * clock.scale for t in view.tasks], dtype=np.int64)
    first, completed = starts.min(axis=1), (starts + durations).max(axis=1)
    if view.step:
        injected = first
        ends = np.maximum(completed.reshape(len(updates), -1).max(axis=1), _updated(view, updates, clock))
        rhythm = of_steps(view, begun, ends, steps_at_once(view), clock)
    else:
        injected = np.arange(count, dtype=np.int64) * clock.period
        injected += min(0, int(starts.min()))
        rhythm = of_periods(view, begun, injected, completed, clock)
    found: list[Lifetimes] = list(lifetimes(view, machine, starts, jobs.moved(begun, clock.scale), updates))
    peak, overflow = peak_memory(view, machine, found)
    report = Report(
        mode=mode,
        microbatches=count,
        warm_up=-(-rhythm.low // clock.period),
        steady=rhythm.steady,
        period=rhythm.period,
        latency_min=clock.ns(int((completed - injected).min())),
        latency_max=clock.ns(int((completed - injected).max())),
        in_flight=_most_at_once(first, completed),
        peak_memory=peak,
        load=_load(view, machine, starts, updates, rhythm, clock),
        step=rhythm.step,
    )
    return report, overflow


def _updates(view: ScheduleView, begun: Times) -> Times:
    """When each step began each update, ``[step, update]``; nothing outside of steps."""
    first = len(view.tasks)
    rows = slice(view.microbatches - 1, None, view.microbatches) if view.step else slice(0)
    return begun[rows, first : first + len(view.updates)]


def _updated(view: ScheduleView, updates: Times, clock: Clock) -> Times:
    """When the last update of each step had ended."""
    lasting = np.array([u.time * clock.scale for u in view.updates], dtype=np.int64)
    return (updates + lasting).max(axis=1, initial=0)


def _idle(view: ScheduleView, count: int, mode: Mode) -> Report:
    zero, step = Fraction(0), Fraction(view.pattern) if view.step else None
    idle = dict.fromkeys(range(view.platform.accelerators), zero)
    return Report(mode, count, 0, True, view.period, zero, zero, 0, dict(view.parameters), idle, step)


def _most_at_once(begun: Times, completed: Times) -> int:
    """The most micro-batches begun and not completed at one moment."""
    begun, completed = np.sort(begun), np.sort(completed)
    running = np.arange(1, len(begun) + 1) - np.searchsorted(completed, begun, side="right")
    return max(int(running.max()), 0)


def _load(
    view: ScheduleView, machine: Machine, starts: Times, updates: Times, rhythm: Rhythm, clock: Clock
) -> dict[int, Fraction]:
    """Busy fraction of each accelerator over the whole patterns of the steady state."""

    def within(begun: Times, time: int) -> int:
        end = begun + time * clock.scale
        return int(np.maximum(0, np.minimum(end, rhythm.high) - np.maximum(begun, rhythm.low)).sum())

    busy = [0] * len(machine.sets)
    for task in view.tasks:
        for turn, place in enumerate(task.copies):
            busy[machine.sets[place]] += within(starts[turn :: len(task.copies), task.index], task.time)
    if view.step:
        for update in view.updates:
            busy[machine.sets[update.place]] += within(updates[:, update.index], update.time)
    load = dict.fromkeys(range(view.platform.accelerators), Fraction(0))
    for members, owners in zip(machine.classes, machine.over, strict=True):
        load.update(dict.fromkeys(members, Fraction(sum(busy[s] for s in owners), rhythm.high - rhythm.low)))
    return load
