"""What a run shows: period, latency and load from the events of its processes. Numbers only, no IR and no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, lcm
from statistics import median

import numpy as np

from compiler.runtime.job import Events, Job
from compiler.runtime.recorded import Ints, Run
from dialects.programs import ALL_GATHER, COMPUTE, COPY, KINDS, RECV, SEND, UPDATE

MOST_DISTANCES = 500
"""Distances between micro-batches over which slopes are taken, of a long run."""


@dataclass(frozen=True)
class Figures:
    """What a run does in the steady state; times in ns, ``load`` is accelerator → share of the period it computes.

    ``latency`` is that of the middle micro-batch, from the start of its first operator to the end of its last, and
    ``latency_max`` that of the slowest one.
    """

    period: float
    latency: float
    latency_max: float
    load: Mapping[int, float]

    @property
    def highest_load(self) -> float:
        """The load of the critical accelerator."""
        return max(self.load.values(), default=0.0)

    @property
    def mean_load(self) -> float:
        """The load of the accelerators in use on average."""
        return sum(self.load.values()) / len(self.load) if self.load else 0.0

    @property
    def critical(self) -> int | None:
        """The accelerator of the highest load, the first of those that come within a hundredth of it."""
        return next((p for p in self.load if self.load[p] >= 0.99 * self.highest_load), None)


@dataclass(frozen=True)
class Measured(Figures):
    """What was measured: also the shares of the period in which an accelerator waits, and in which it moves values.

    ``steady`` tells whether the run was long enough to leave out how it fills and drains.
    """

    microbatches: int
    steady: bool
    waiting: Mapping[int, float]
    moving: Mapping[int, float]


# --- prediction ------------------------------------------------------------------------------


def scheduled_spans(job: Job) -> list[tuple[float, float]]:
    """First start and last end in the schedule of each micro-batch of a step, else of micro-batch 0, ns."""
    if not job.operators:
        return []
    found: list[tuple[float, float]] = []
    for i in range(job.per_pattern if job.step else 1):
        begun = [(job.begin(x, i), x.time) for x in job.operators]
        found.append((min(start for start, _ in begun), max(start + time for start, time in begun)))
    return found


def predicted(job: Job) -> Figures:
    """What the schedule promises, in the time of an emulated run (``settings.scale``)."""
    busy = dict.fromkeys(job.accelerators, 0.0)
    for operator in job.operators:
        for p in (p for turn in operator.turns for p in turn):
            busy[p] += operator.time / len(operator.turns)
    for update in job.updates if job.step else ():
        for p in update.on:
            busy[p] += update.time / job.per_pattern
    scale = job.settings.scale if job.settings.emulate else 1.0
    latencies = [(end - begin) * scale for begin, end in scheduled_spans(job)] or [0.0]
    load = {p: time / job.period for p, time in busy.items()}
    return Figures(job.period * scale, median(latencies), max(latencies), load)


# --- measurement -----------------------------------------------------------------------------


def rounds_of(job: Job) -> int:
    """Micro-batches after which the use of all copies repeats, or all of a step."""
    return lcm(job.per_pattern if job.step else 1, *(len(x.turns) for x in job.operators))


@dataclass(frozen=True)
class Window:
    """Micro-batches ``[first, last)`` in which figures are taken, and whether fill and drain lie outside."""

    first: int
    last: int
    steady: bool

    @staticmethod
    def of(job: Job) -> Window:
        """All but as many at both ends as the schedule has in flight; of a run too short for that, the later half.

        Of steps, all but as many steps at both ends as go on at once.
        """
        count, rounds, flight = job.microbatches, rounds_of(job), _in_flight(job)
        if count - 2 * flight > rounds:
            return Window(flight, count - flight, True)
        return Window(max(0, min(count // 2, count - 1 - rounds)), count, False)


def _in_flight(job: Job) -> int:
    """Micro-batches in flight, in a step whole steps of them."""
    spans = scheduled_spans(job)
    if not spans or not job.pattern:
        return 0
    if not job.step:
        return ceil((spans[0][1] - spans[0][0]) / job.period)
    ends = [*(end for _, end in spans), *(update.start + update.time for update in job.updates)]
    return ceil((max(ends) - min(begin for begin, _ in spans)) / job.pattern) * job.per_pattern


def slope(completed: Ints, rounds: int) -> float | None:
    """The median of ``(completed[j] - completed[i]) / (j - i)`` over all ``j - i`` that are multiples of ``rounds``.

    That is the estimator of Theil and Sen: up to nearly a third of the completions may be far off. None of fewer than
    ``rounds + 1`` completions. Of very many, not all multiples are taken.
    """
    count = len(completed)
    step = rounds * max(1, count // (rounds * MOST_DISTANCES))
    slopes = [(completed[d:] - completed[:-d]) / d for d in range(rounds, count, step)]
    return float(np.median(np.concatenate(slopes))) if slopes else None


def measured(run: Run) -> Measured:
    """The figures of a run, over the micro-batches of its steady state (:class:`Window`).

    ``period`` is the :func:`slope` of the times at which micro-batches finish their last operator; of a run of less
    than two patterns of copies, or two steps, its whole time over its micro-batches. Shares of the period are, of each
    accelerator, the median over whole patterns of the time that it computes, waits (from coming to an instruction to
    its beginning) or moves values for the micro-batches of a pattern.
    """
    job, rounds, window = run.job, rounds_of(run.job), Window.of(run.job)
    begun, completed = run.spans
    period = slope(completed[window.first : window.last], rounds)
    if period is None:
        period = float(run.ended - begun.min()) / job.microbatches
    latencies = completed - begun

    def shares(kinds: Sequence[int], lasts: Callable[[Events], Ints]) -> dict[int, float]:
        return {p: _per_pattern(run, p, window, kinds, lasts) / (rounds * period or 1.0) for p in job.accelerators}

    return Measured(
        period=period,
        latency=float(np.median(latencies)),
        latency_max=float(latencies.max()),
        load=shares([COMPUTE, UPDATE], lambda e: e["end"] - e["start"]),
        microbatches=job.microbatches,
        steady=window.steady,
        waiting=shares(range(len(KINDS)), lambda e: e["start"] - e["arrive"]),
        moving=shares([SEND, RECV, COPY, ALL_GATHER], lambda e: e["end"] - e["start"]),
    )


def _per_pattern(run: Run, p: int, window: Window, kinds: Sequence[int], lasts: Callable[[Events], Ints]) -> float:
    """The median time that accelerator ``p`` spends on these instructions for a whole pattern of copies."""
    rounds = rounds_of(run.job)
    rows, events = run.of(p)
    chosen = np.isin(rows[:, 0], kinds)
    spent = np.zeros(run.job.microbatches, dtype=np.int64)
    np.add.at(spent, rows[chosen, 4], lasts(events)[chosen])
    patterns = (window.last - window.first) // rounds
    if not patterns:
        return float(spent.mean()) * rounds
    whole = spent[window.first : window.first + patterns * rounds].reshape(patterns, rounds)
    return float(np.median(whole.sum(axis=1)))
