"""What a simulated run measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from compiler.simulate.jobs import Jobs
from compiler.simulate.machine import Clock, Machine
from compiler.simulate.memory import Lifetimes, Overflow, Times, lifetimes, peak_memory
from compiler.view import ScheduleView

Mode = Literal["time-triggered", "self-timed"]


@dataclass(frozen=True)
class Report:
    """Measurements of a run of ``microbatches`` micro-batches. Times are ns, sizes bytes on each accelerator.

    ``warm_up`` is the number of periods before the steady state, in which ``period`` (completion to completion) and
    ``load`` (accelerator → busy fraction) were measured over whole patterns; ``steady`` tells whether it was reached.
    ``peak_memory`` includes parameters and covers the whole run. Latency counts from the injection of a micro-batch.
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


def measure(
    view: ScheduleView, machine: Machine, jobs: Jobs, begun: Times, mode: Mode
) -> tuple[Report, Overflow | None]:
    """Measure a run; ``begun[i, j]`` is when micro-batch ``i`` began job ``j``, in clock units."""
    clock = Clock.of(view)
    count, rounds = len(begun), view.rounds
    starts = begun[:, : len(view.tasks)]
    if not view.tasks:
        return _idle(view, count, mode), None
    durations = np.array([t.time * clock.scale for t in view.tasks], dtype=np.int64)
    injected = np.arange(count, dtype=np.int64) * clock.period
    injected += min(0, int(starts.min()))
    completed = (starts + durations).max(axis=1)
    settled, steady = _settled(begun - np.arange(count)[:, None] * clock.period, rounds)
    longest = int((completed - injected)[settled:].max())
    warm_up = settled + -(-longest // clock.period)
    steady = steady and warm_up + rounds < count
    if not steady:
        warm_up = count // 2
    found: list[Lifetimes] = list(lifetimes(view, machine, starts, jobs.moved(begun, clock.scale)))
    peak, overflow = peak_memory(view, machine, found)
    first = starts.min(axis=1)
    report = Report(
        mode=mode,
        microbatches=count,
        warm_up=warm_up,
        steady=steady,
        period=_period(completed, warm_up, rounds, clock),
        latency_min=clock.ns(int((completed - injected).min())),
        latency_max=clock.ns(int((completed - injected).max())),
        in_flight=_most_at_once(first, completed),
        peak_memory=peak,
        load=_load(view, machine, starts, durations, warm_up, clock),
    )
    return report, overflow


def _idle(view: ScheduleView, count: int, mode: Mode) -> Report:
    zero = Fraction(0)
    idle = dict.fromkeys(range(view.platform.accelerators), zero)
    return Report(mode, count, 0, True, view.period, zero, zero, 0, dict(view.parameters), idle)


def _settled(offsets: Times, rounds: int) -> tuple[int, bool]:
    """First micro-batch from which starts repeat relative to injection, and whether that is long enough to be final.

    What a micro-batch does depends on those before it that are still in flight; once starts have repeated for as many
    micro-batches as are in flight, they repeat for ever. The caller checks that by the length of the warm-up.
    """
    count = len(offsets)
    if count <= rounds:
        return 0, False
    moved = np.flatnonzero((offsets[rounds:] != offsets[:-rounds]).any(axis=1))
    first = int(moved[-1]) + 1 if len(moved) else 0
    return first, True


def _period(completed: Times, warm_up: int, rounds: int, clock: Clock) -> Fraction:
    """Mean time between completions over whole patterns at the end of the run."""
    count = len(completed)
    span = max(rounds, (count - 1 - warm_up) // rounds * rounds)
    span = min(span, count - 1)
    if span < 1:
        return clock.ns(clock.period)
    return clock.ns(int(completed[-1] - completed[-1 - span])) / span


def _most_at_once(begun: Times, completed: Times) -> int:
    """The most micro-batches begun and not completed at one moment."""
    begun, completed = np.sort(begun), np.sort(completed)
    running = np.arange(1, len(begun) + 1) - np.searchsorted(completed, begun, side="right")
    return max(int(running.max()), 0)


def _load(
    view: ScheduleView, machine: Machine, starts: Times, durations: Times, warm_up: int, clock: Clock
) -> dict[int, Fraction]:
    """Busy fraction of each accelerator over the whole patterns of the steady state."""
    patterns = max(1, (len(starts) - warm_up) // view.rounds)
    low = warm_up * clock.period
    high = low + patterns * view.rounds * clock.period
    busy = [0] * len(machine.sets)
    within = np.maximum(0, np.minimum(starts + durations, high) - np.maximum(starts, low))
    for residue in range(min(view.rounds, len(starts))):
        total = within[residue :: view.rounds].sum(axis=0)
        for task in view.tasks:
            busy[machine.sets[task.set_of(residue)]] += int(total[task.index])
    load = dict.fromkeys(range(view.platform.accelerators), Fraction(0))
    for members, owners in zip(machine.classes, machine.over, strict=True):
        load.update(dict.fromkeys(members, Fraction(sum(busy[s] for s in owners), high - low)))
    return load
