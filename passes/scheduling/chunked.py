"""Blocks of accelerators that each run several short runs of the order instead of one stage.

With ``B`` blocks and ``c`` chunks on each, the order is cut into ``c·B`` chunks. *Interleaved*: chunk ``j`` runs on
block ``j mod B`` (Narayanan et al., "Efficient large-scale language model training on GPU clusters", SC 2021). *V*:
the blocks are passed there and back, so a block's first chunk is far from the end where its last is near.
The period is the heaviest block, the sum of its chunks: more boundaries can be moved, so less is lost
because the next operation does not fit, at the price of more micro-batches in flight.

Two neighbouring rounds, one chunk of each on every block, are cut exactly, up to windows: for a trial period let
``far[b][i]`` be the furthest position that the second round reaches when the first has come to ``i`` after ``b``
blocks. Furthest is best, so a block adds ``far[b+1][i'] = max over i of extend(far[b][i], T - time(i..i'))``.
In shape V the second round comes from the other end, and both must meet. More rounds are improved two by
two, the others fixed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.blocks import pack_blocks, width_families
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem
from passes.scheduling.elementary import area_bound, least
from passes.scheduling.filled import not_on_every_block
from passes.scheduling.grains import Granularity, cuttable_orders
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.profiles import Choices, Profile
from passes.scheduling.shared import SharedPlan
from passes.scheduling.stages import no_partition, partition_stages

Shape = Literal["interleaved", "v"]

Numbers = NDArray[Any]

WINDOW = 48
"""Positions looked at around where the first of two rounds should be after each block."""

MIDDLES = 6
"""Beginnings of the second round tried (interleaved)."""

STEPS = 12
"""Halvings of the gap between the least load of a layout and the best known."""

WORK = 4.0
"""Units of work that a search takes at most when the budget does not say."""


def round_trip(shape: Shape, chunks: int, blocks: int) -> list[int]:
    """Block of each chunk."""
    there, back = list(range(blocks)), list(reversed(range(blocks)))
    return [b for r in range(chunks) for b in (back if shape == "v" and r % 2 else there)]


@dataclass(frozen=True)
class Layout:
    """Widths of the blocks, in the order in which they are passed, and what each position costs on them."""

    shape: Shape
    chunks: int
    widths: tuple[int, ...]
    time: tuple[Numbers, ...]
    """For each block the prefix sums of time over the positions."""
    held: tuple[Numbers, ...]
    room: int
    """Parameter bytes that fit on an accelerator."""

    @property
    def homes(self) -> list[int]:
        """Block of each chunk."""
        return round_trip(self.shape, self.chunks, len(self.widths))

    def loads(self, cuts: Sequence[int], sums: tuple[Numbers, ...] | None = None) -> list[int]:
        """Time of each block with chunks between these ``cuts`` (or another sum)."""
        sums = self.time if sums is None else sums
        load = [0] * len(self.widths)
        for chunk, block in enumerate(self.homes):
            load[block] += int(sums[block][cuts[chunk + 1]] - sums[block][cuts[chunk]])
        return load

    def period(self, cuts: Sequence[int]) -> int:
        """The heaviest load; longer than any when parameters do not fit."""
        if not self.fits(cuts):
            return int(max(t[-1] for t in self.time)) + 2
        return max(1, *self.loads(cuts))

    def fits(self, cuts: Sequence[int]) -> bool:
        """Whether the parameters of every block are within its room."""
        return max(self.loads(cuts, self.held)) <= self.room


# --- cuts ------------------------------------------------------------------------------------


def even_cuts(layout: Layout) -> list[int]:
    """Chunks of about the same time each, rounded to the nearest position."""
    homes = layout.homes
    n = len(layout.time[0]) - 1

    def fill(length: int) -> list[int]:
        cuts, owed = [0], 0
        for block in homes:
            time = layout.time[block]
            want = int(time[cuts[-1]]) + length + owed
            at = min(n, max(cuts[-1], bisect_right(time, want) - 1))
            if at < n and int(time[at + 1]) - want < want - int(time[at]):
                at += 1
            owed = want - int(time[at])
            cuts.append(at)
        return cuts

    high = int(max(t[-1] for t in layout.time)) + 1
    length = least(0, high, lambda length: fill(length)[-1] == n)
    cuts = fill(length)
    cuts[-1] = n
    return cuts


class _Pair:
    """Two neighbouring rounds of a layout, all other chunks as they are."""

    def __init__(self, layout: Layout, cuts: Sequence[int], first: int, window: int):
        count = len(layout.widths)
        self.layout, self.cuts, self.window = layout, list(cuts), window
        self.begin, self.middle, self.end = first * count, (first + 1) * count, (first + 2) * count
        self.order = layout.homes[self.begin : self.middle]
        self.turn = layout.shape == "v"
        self.busy = self._others(layout.time)
        self.full = self._others(layout.held)

    def _others(self, sums: tuple[Numbers, ...]) -> list[int]:
        load = [0] * len(self.layout.widths)
        for chunk, block in enumerate(self.layout.homes):
            if not self.begin <= chunk < self.end:
                load[block] += int(sums[block][self.cuts[chunk + 1]] - sums[block][self.cuts[chunk]])
        return load

    def within(self, period: int, middle: int) -> list[int] | None:
        """Cuts with no load above ``period``, the second round beginning at ``middle`` (no matter for V)."""
        low, high = self.cuts[self.begin], self.cuts[self.end]
        start = high if self.turn else middle
        spans: list[Numbers] = [np.array([low])]
        far: list[Numbers] = [np.array([start])]
        links: list[Numbers] = []
        for step, block in enumerate(self.order):
            span = self._span(step, low, high if self.turn else middle, fixed=middle)
            reach = self._step(block, period, spans[-1], span, far[-1])
            best = reach.argmin(axis=0) if self.turn else reach.argmax(axis=0)
            links.append(best)
            spans.append(span)
            far.append(np.take_along_axis(reach, best[None], axis=0)[0])
        done = far[-1] <= spans[-1] if self.turn else (far[-1] >= high) & (spans[-1] == middle)
        if not done.any():
            return None
        return self._trace(int(done.argmax()), spans, far, links)

    def _span(self, step: int, low: int, high: int, fixed: int) -> Numbers:
        """Positions of the first round after ``step + 1`` blocks: around where it is now."""
        if step == len(self.order) - 1 and not self.turn:
            return np.array([fixed])
        centre = min(high, max(low, self.cuts[self.begin + step + 1]))
        return np.arange(max(low, centre - self.window // 2), min(high, centre + self.window // 2) + 1)

    def _step(self, block: int, period: int, before: Numbers, after: Numbers, far: Numbers) -> Numbers:
        """How far the second round comes for each pair of positions of the first; out of range when it cannot be."""
        time, held = self.layout.time[block], self.layout.held[block]
        left = period - self.busy[block] - (time[after][None] - time[before][:, None])
        bytes_left = self.layout.room - self.full[block] - (held[after][None] - held[before][:, None])
        wrong = (left < 0) | (bytes_left < 0) | (after[None] < before[:, None])
        low, high = self.cuts[self.begin], self.cuts[self.end]
        if self.turn:
            lost = far > high
            at = np.where(lost, high, far)[:, None]
            reach = np.searchsorted(time, time[at] - left, side="left")
            reach = np.maximum(reach, np.searchsorted(held, held[at] - bytes_left, side="left"))
            reach = np.clip(np.minimum(reach, at), low, high)
            return np.where(wrong | lost[:, None], high + 1, reach)
        lost = far < 0
        at = np.where(lost, low, far)[:, None]
        reach = np.searchsorted(time, time[at] + left, side="right") - 1
        reach = np.minimum(reach, np.searchsorted(held, held[at] + bytes_left, side="right") - 1)
        reach = np.clip(np.maximum(reach, at), low, high)
        return np.where(wrong | lost[:, None], -1, reach)

    def _trace(self, at: int, spans: list[Numbers], far: list[Numbers], links: list[Numbers]) -> list[int]:
        cuts = list(self.cuts)
        turn = int(spans[-1][at])
        for step in range(len(self.order), 0, -1):
            cuts[self.begin + step] = int(spans[step][at])
            if self.turn and step < len(self.order):
                cuts[self.end - step] = max(turn, int(far[step][at]))
            elif not self.turn:
                cuts[self.middle + step] = int(far[step][at])
            at = int(links[step - 1][at])
        cuts[self.end] = self.cuts[self.end]
        return cuts


def improve(layout: Layout, cuts: list[int], low: int, tolerance: float, window: int, budget: Budget) -> list[int]:
    """Cuts with a smaller period: pairs of rounds cut anew, until none gains; at best ``low`` is reached."""
    best, period = cuts, layout.period(cuts)
    gained = True
    while gained:
        gained = False
        for first in range(layout.chunks - 1):
            pair = _Pair(layout, best, first, window)
            centre = best[pair.middle]
            middles = (
                [centre]
                if pair.turn
                else sorted(
                    range(max(best[pair.begin], centre - MIDDLES // 2), min(best[pair.end], centre + MIDDLES // 2) + 1),
                    key=lambda m: abs(m - centre),
                )
            )
            below = low - 1
            for _ in range(STEPS):
                if period - below <= max(1, int(tolerance * period)) or budget.spent():
                    break
                trial = (below + period) // 2
                found = next((f for f in (pair.within(trial, m) for m in middles) if f is not None), None)
                budget.spend(2e-8 * len(middles) * len(layout.widths) * window * window + 1e-5)
                if found is None:
                    below = trial
                elif layout.period(found) < period:
                    best, period, gained = found, layout.period(found), True
        gained = gained and layout.chunks > 2 and not budget.spent()
    return best


# --- the plan --------------------------------------------------------------------------------


def chunk_stages(
    problem: MemoryProblem,
    *,
    shape: Shape = "interleaved",
    chunks: int = 2,
    reserve: int = 0,
    tolerance: float = 0.005,
    granularity: Granularity = "operator",
    budget: Budget | None = None,
) -> SharedPlan:
    """The plan of small period with ``chunks`` chunks on every block; within ``tolerance`` of it fewest in flight.

    Tried are blocks of one width, of every width, and blocks as wide as the best stages of their own are, for
    several topological orders. Where blocks are to be filled, only widths are that every operation can run on.
    ``laps`` of the plan counts the further rounds. Raises
    :class:`InvalidProblem` when no such plan fits.
    """
    budget = budget or Budget()
    if not problem.operations:
        return SharedPlan((), (), {}, 1, 0, 0)
    allowance = Budget(budget.left(), None, min(WORK, budget.work_left() or WORK), budget.seed)
    area = area_bound(problem).value
    found: list[tuple[int, SharedPlan]] = []
    known: int | None = None
    for order, cuts, layout in _layouts(problem, shape, chunks, reserve, granularity, budget):
        low = max(area, _least_load(layout))
        if known is not None and (low >= known * (1 + tolerance) or allowance.spent()):
            continue
        window = min(WINDOW, 2 + 3 * len(layout.time[0]) // (chunks * len(layout.widths)))
        try:
            at = improve(layout, even_cuts(layout), low, tolerance / 5, window, allowance)
        except KeyboardInterrupt:
            if not found:
                raise
            budget.stop()
            break
        if layout.fits(at) and (known is None or layout.period(at) <= known * (1 + tolerance)):
            plan = _plan(problem, layout, order, [cuts[position] for position in at])
            if plan is not None:
                found.append((plan.period, plan))
                known = plan.period if known is None else min(known, plan.period)
                budget.report(shape, plan.period)
    budget.spend(allowance.used)
    if not found:
        raise InvalidProblem([no_partition(problem, None, reserve, granularity)])
    near = [plan for period, plan in found if period <= min(p for p, _ in found) * (1 + tolerance)]
    return min(near, key=lambda plan: (plan.in_flight, plan.period))


def _layouts(
    problem: MemoryProblem, shape: Shape, chunks: int, reserve: int, granularity: Granularity, budget: Budget
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Layout]]:
    """Orders, their cuts, and widths of blocks worth trying, promising ones first; no cut tears a group apart."""
    staged = _stage_widths(problem, reserve, granularity, budget)
    rows: list[tuple[int, int, tuple[int, ...], tuple[int, ...], Layout]] = []
    for rank, (order, cuts) in enumerate(cuttable_orders(problem, granularity)):
        for family in width_families(problem):
            profile = Profile(Choices(problem, family), order, reserve, cuts)
            room = 2**62 if profile.room is None else profile.room
            time = [np.array(t, dtype=np.int64 if t[-1] < 2**60 else object) for t in profile.time]
            held = [np.array(p, dtype=np.int64 if p[-1] < 2**60 else object) for p in profile.params]
            for widths in _block_widths(problem, family, staged):
                numbers = [family.index(w) for w in widths]
                sums = tuple(time[i] for i in numbers), tuple(held[i] for i in numbers)
                if any(t[-1] > profile.most for t in sums[0]):
                    continue
                layout = Layout(shape, chunks, widths, *sums, room)
                rows.append((_least_load(layout), rank, order, profile.cuts, layout))
    if problem.filled and not rows:
        raise InvalidProblem([not_on_every_block(problem)])
    rows.sort(key=lambda row: (row[0], row[1], len(row[4].widths)))
    return ((order, cuts, layout) for _, _, order, cuts, layout in rows)


def _stage_widths(
    problem: MemoryProblem, reserve: int, granularity: Granularity, budget: Budget
) -> list[tuple[int, ...]]:
    """Widths of the best stages of their own, many short ones and fewer."""
    found: list[tuple[int, ...]] = []
    for tolerance in (0.0, 0.02):
        part = budget.part(0.2)
        try:
            plan = partition_stages(problem, reserve=reserve, tolerance=tolerance, granularity=granularity, budget=part)
        except InvalidProblem:
            return found
        found.append(tuple(plan.widths))
    return found


def _block_widths(
    problem: MemoryProblem, family: Sequence[int], staged: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Equal blocks of every width, and those of the best stages."""
    count, group = problem.accelerators, problem.group
    found: dict[tuple[int, ...], None] = {}
    for width in family:
        number = count // width
        while number and pack_blocks([width] * number, count, group) is None:
            number -= 1
        if number:
            found[(width,) * number] = None
    found.update((widths, None) for widths in staged if set(widths) <= set(family))
    return list(found)


def _least_load(layout: Layout) -> int:
    """No cuts have a smaller period: all work, shared out as the widths like it."""
    spread: dict[int, int] = {}
    for block, width in enumerate(layout.widths):
        spread.setdefault(width, block)
    if len(spread) == 1:
        return max(1, -(-int(layout.time[0][-1]) // len(layout.widths)))
    area = np.minimum.reduce([width * np.diff(layout.time[block]) for width, block in spread.items()])
    return max(1, -(-int(area.sum()) // sum(layout.widths)))


def _plan(problem: MemoryProblem, layout: Layout, order: Sequence[int], cuts: Sequence[int]) -> SharedPlan | None:
    """Stages of the chunks that are not empty; chunks of one block that follow each other are one stage.

    None when the blocks cannot be packed.
    """
    blocks = pack_blocks(layout.widths, problem.accelerators, problem.group)
    if blocks is None:
        return None
    granted: list[int] = []
    homes = [0] * len(order)
    for chunk, block in enumerate(layout.homes):
        if cuts[chunk] == cuts[chunk + 1]:
            continue
        if not granted or granted[-1] != block:
            granted.append(block)
        for v in order[cuts[chunk] : cuts[chunk + 1]]:
            homes[v] = len(granted) - 1
    given = tuple(blocks[block] for block in granted)
    staged = problem.staged(given, homes)
    solution, _ = schedule_blocks(staged)
    laps = len(granted) - len(set(granted))
    return SharedPlan(given, tuple(homes), {}, solution.period, problem.in_flight(solution), laps)
