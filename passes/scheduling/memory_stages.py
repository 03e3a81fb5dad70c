"""Contiguous stages of least period among those that hold no more than the memory, by what ``held.py`` tells.

From the end of the order: let ``reach[d][q]`` be the furthest beginning that ``d`` blocks of ``q`` accelerators in all
reach. How many micro-batches a block holds depends on ``d`` alone, so ::

    reach[d+1][q] = min over widths w of back_w(reach[d][q - w])

with ``back_w(j)`` the first beginning of a stage that ends at ``j``, takes at most the load, and fits. Furthest is
best, since a shorter rest takes and holds no more. A load that is only part of the period leaves blocks idle; fewer
micro-batches are in flight then. The least period over several such parts (*paces*) is found by bisection each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from passes.scheduling.budget import Budget
from passes.scheduling.held import HeldProfile, Numbers, in_flight
from passes.scheduling.profiles import Stage
from passes.scheduling.stages import StagePlan, in_turns

PACES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 13.0, 20.0, 30.0, 45.0, 64.0)
"""Periods as multiples of the load of a block."""

LOOK = 16
"""Beginnings looked at behind the first that sums allow: what is received changes from cut to cut."""

FINE = 4000
"""What part of the period the bisection may be off."""

PRECISE = 12
"""Halvings of the memory that one micro-batch at a time might need."""

WORK = 3e-8
"""Work of one beginning that is looked at."""


Room = Callable[[int], int]
"""Bytes for the ``d``-th block from the end."""


@dataclass(frozen=True)
class Piece:
    """The cuts between which a stage lies, the number of its width, and how many micro-batches it holds."""

    begin: int
    end: int
    number: int
    held: int


@dataclass(frozen=True)
class Fit:
    """Stages that should fit, with the period at which they hold what is said of them."""

    profile: HeldProfile
    pieces: tuple[Piece, ...]
    period: int
    pace: float

    @property
    def needs(self) -> list[int]:
        """Bytes on each block, as estimated."""
        return [self.profile.bytes_of(p.begin, p.end, p.number, p.held) for p in self.pieces]

    @property
    def plan(self) -> StagePlan:
        """The stages in the order itself, which take turns on their blocks."""
        held = self.profile
        cuts = held.profile.cuts
        stages = tuple(
            Stage(cuts[p.begin], cuts[p.end], held.widths[p.number], _load(held, p.begin, p.end, p.number))
            for p in self.pieces
        )
        idle = held.profile.accelerators + held.profile.unusable - sum(s.width for s in stages)
        plan = StagePlan(held.line, stages, max(1, *(s.load for s in stages)), idle)
        return plan if held.line == held.order else in_turns(plan, held.choices, held.order)


def _load(profile: HeldProfile, begin: int, end: int, number: int) -> int:
    return int(profile.time[number][end] - profile.time[number][begin])


def cover_within(
    profile: HeldProfile, load: int, room: Room, held: Sequence[int], budget: Budget, blocks: int | None = None
) -> list[Piece] | None:
    """Blocks of at most ``load`` ns, the ``d``-th from the end in its room when it holds ``held[d]``; None: none.

    As few blocks as can be, or exactly ``blocks``, on the fewest accelerators.
    """
    count, never = profile.accelerators, profile.n + 1
    reach: Numbers = np.full(count + 1, profile.n, dtype=np.int64)
    layers: list[tuple[Numbers, Numbers]] = []
    for depth, many in enumerate(held[:blocks]):
        now = reach.copy() if blocks is None else np.full(count + 1, never, dtype=np.int64)
        choice = np.full(count + 1, -1, dtype=np.int64)
        for number, width in enumerate(profile.widths):
            if width > count:
                break
            ends = np.minimum(reach[: count + 1 - width], profile.n)
            begins = _back(profile, number, ends, load, room(depth), many)
            if blocks is not None:  # each block that is still to come needs something to run
                begins = np.maximum(begins, blocks - depth - 1)
            better = (begins < now[width:]) & (begins < ends) & (reach[: count + 1 - width] < never)
            now[width:][better] = begins[better]
            choice[width:][better] = number
            budget.spend(WORK * len(begins) * LOOK)
        if (now >= reach).all():
            return None
        layers.append((reach, choice))
        reach = now
        if reach.min() == 0 and blocks in (None, len(layers)):
            return _trace(profile, layers, reach, held)
    return None


def _trace(
    profile: HeldProfile, layers: Sequence[tuple[Numbers, Numbers]], reach: Numbers, held: Sequence[int]
) -> list[Piece]:
    q, begin = int(np.flatnonzero(reach == 0)[0]), 0
    pieces: list[Piece] = []
    for depth in range(len(layers) - 1, -1, -1):
        before, choice = layers[depth]
        number = int(choice[q])
        if number < 0:
            continue
        q -= profile.widths[number]
        pieces.append(Piece(begin, int(before[q]), number, held[depth]))
        begin = pieces[-1].end
    return pieces


def _back(profile: HeldProfile, number: int, ends: Numbers, load: int, memory: int, held: int) -> Numbers:
    """The first beginning of a stage for each of ``ends``, the end itself where there is none."""
    time, b = profile.time[number], profile.bytes[number]
    sums = b.params + held * b.made
    room = memory - b.passing + held * b.left[ends] - sums[ends]
    first = np.maximum(np.searchsorted(time, time[ends] - load), np.searchsorted(sums, -room))
    tried = np.minimum(np.minimum(first, ends)[:, None] + np.arange(LOOK), ends[:, None])
    fits = (held * b.received[tried] - sums[tried] <= room[:, None]) | (tried == ends[:, None])
    found = tried[np.arange(len(ends)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1), found, ends)


def least_period(
    profile: HeldProfile, pace: float, room: Room, known: int, low: int, blocks: int | None, budget: Budget
) -> Fit | None:
    """The stages of about the least period at this pace; None when that is more than ``known``."""

    def pieces(period: int) -> list[Piece] | None:
        load = min(profile.profile.most, max(1, int(period / pace)))  # beyond that, what cannot run at all would do
        counts = in_flight(load, period, profile.there, profile.accelerators)
        return cover_within(profile, load, room, counts, budget, blocks)

    high = known
    found = pieces(high)
    if found is None:
        return None
    while high - low > max(1, low // FINE) and not budget.spent():
        middle = (low + high) // 2
        trial = pieces(middle)
        if trial is None:
            low = middle + 1
        else:
            found, high = trial, middle
    return Fit(profile, tuple(found), high, pace)


def proposed(profile: HeldProfile, room: Room, low: int, blocks: int | None, budget: Budget) -> Fit | None:
    """Stages that should fit of about the least period, at whatever pace; None when there are none."""
    limit = int(profile.profile.most * max(PACES)) + 1
    best: Fit | None = None
    for pace in PACES:
        found = least_period(profile, pace, room, limit, low, blocks, budget)
        if found is not None:
            best, limit = found, found.period - 1
    return best


def one_at_a_time(profile: HeldProfile, room: Room, blocks: int | None, budget: Budget) -> Fit | None:
    """Stages that should fit with one micro-batch at a time, whatever the period; None when there are none."""
    longest = profile.profile.most
    found = cover_within(profile, longest, room, [1] * profile.accelerators, budget, blocks)
    if found is None:
        return None
    return Fit(profile, tuple(found), sum(_load(profile, p.begin, p.end, p.number) for p in found), 0.0)


def leanest(profile: HeldProfile, blocks: int | None, budget: Budget) -> Fit | None:
    """Stages that should hold about the least with one micro-batch at a time; None when there are none at all."""
    most = max(int(b.params[-1] + b.made[-1] + max(b.received)) + b.passing for b in profile.bytes)

    def within(memory: int) -> Fit | None:
        return one_at_a_time(profile, lambda _: memory, blocks, budget)

    low, high, best = 0, most, within(most)
    while best is not None and high - low > max(1, high >> PRECISE):
        middle = (low + high) // 2
        found = within(middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best
