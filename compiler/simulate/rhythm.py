"""When a run has settled into what it repeats, how long that takes, and a stretch of time over which to measure."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from compiler.simulate.machine import Clock
from compiler.simulate.memory import Times
from compiler.view import ScheduleView


@dataclass(frozen=True)
class Rhythm:
    """``period`` is the mean time between micro-batches in ns, ``step`` that between steps, where there are any.

    In ``[low, high)``, clock units, a whole number of repetitions is seen, if the run is ``steady``.
    """

    steady: bool
    period: Fraction
    low: int
    high: int
    step: Fraction | None = None


def of_periods(view: ScheduleView, begun: Times, injected: Times, completed: Times, clock: Clock) -> Rhythm:
    """The rhythm of micro-batches that are injected one period apart; ``begun`` is ``[microbatch, job]``."""
    count, rounds = len(begun), view.rounds
    settled, steady = _settled(begun - np.arange(count)[:, None] * clock.period, rounds)
    longest = int((completed - injected)[settled:].max())
    warm_up = settled + -(-longest // clock.period)
    steady = steady and warm_up + rounds < count
    if not steady:
        warm_up = count // 2
    low, patterns = warm_up * clock.period, max(1, (count - warm_up) // rounds)
    return Rhythm(steady, _period(completed, warm_up, rounds, clock), low, low + patterns * rounds * clock.period)


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


def of_steps(view: ScheduleView, begun: Times, completed: Times, together: int, clock: Clock) -> Rhythm:
    """The rhythm of steps that follow each other by their order alone.

    ``completed`` is when each step was; as many as ``together`` may be in progress at once, and what they do repeats
    after no more than so many.
    """
    for lag in range(1, together + 1):
        found = _repeating(view, begun, completed, lag, clock)
        if found is not None:
            return found
    half = len(completed) // 2
    passed, steps = int(completed[-1] - completed[half]), len(completed) - 1 - half
    step = clock.ns(passed) / steps if steps else clock.ns(int(completed[-1]))
    low = int(completed[half])
    return Rhythm(False, step / view.microbatches, low, low + max(1, passed), step)


def _repeating(view: ScheduleView, begun: Times, completed: Times, lag: int, clock: Clock) -> Rhythm | None:
    """The rhythm, if all starts are those of ``lag`` steps before, by one and the same time later, in the end."""
    steps = len(completed)
    if steps < 2 * lag:
        return None
    each = begun.reshape(steps, -1)
    later = each[lag:] - each[:-lag]
    lap = int(later[-1, 0])
    differs = np.flatnonzero((later != lap).any(axis=1))
    settled = int(differs[-1]) + 1 if len(differs) else 0
    # What a step does depends on those in progress, and on the values it reads from earlier ones.
    if len(later) - settled < lag + -(-view.reach // view.microbatches):
        return None
    # Steps that follow the run begin a lap after the last.
    low, horizon = int(completed[: settled + 1].max()), int(each[-lag:].min()) + lap
    laps = (horizon - low) // lap if lap else 1
    if laps < 1:
        return None
    step = clock.ns(lap) / lag
    return Rhythm(True, step / view.microbatches, low, low + laps * max(1, lap), step)
