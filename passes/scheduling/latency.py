"""Contiguous stages for a finite batch: ``(m - 1)·T + latency`` least, for ``m`` micro-batches.

For a given ``T`` let ``cost[q][j]`` be the least time in which a micro-batch passes the first ``j``
operations on at most ``q`` accelerators, all stages at most ``T`` long. The last stage, of width ``w``, begins
in a window that moves with ``j``, and its time is a difference of prefix sums, so

    cost[q][j] = time_w[j] + min over i in the window of (cost[q - w][i] - time_w[i])

is a sliding minimum. The search over ``T`` is exact too: least latency falls with ``T``, so all plans with a
period in ``(a, b]`` cost at least ``(m - 1)·(a + 1)`` plus the least latency for ``b``, and intervals are split
where that is least until nothing below the best plan is left. (Alpa minimises the same objective over all
values of ``T`` in turn: Zheng et al., OSDI 2022.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from math import isqrt

import numpy as np

from passes.scheduling.blocks import width_families
from passes.scheduling.budget import Budget
from passes.scheduling.covers import cover, earliest, fewest
from passes.scheduling.data import InvalidProblem
from passes.scheduling.elementary import area_bound, least
from passes.scheduling.grains import Granularity, cuttable_orders
from passes.scheduling.problem import PeriodicProblem
from passes.scheduling.profiles import Choices, Positions, Profile, Stage
from passes.scheduling.recurrence import recurrence_bound
from passes.scheduling.stages import StagePlan, no_partition

WORK = 4.0
"""Units of work that a search takes at most when the budget does not say."""

FINE = 10_000_000
"""Accelerators times widths times positions up to which every position and every width is looked at."""

FEWEST_WIDTHS, FEWEST_POSITIONS = 8, 1000
"""What is kept at least of widths and positions of larger problems."""


def latency_of(stages: Sequence[Stage]) -> int:
    """Time of one micro-batch through all stages, one after another, in ns."""
    return sum(s.load for s in stages)


def least_latency(profile: Profile, period: int) -> list[Stage] | None:
    """The contiguous stages of least total time among those of at most ``period`` ns each; None: there are none."""
    times = [np.array(t, dtype=np.int64 if t[-1] < 2**61 else object) for t in profile.time]
    never = max(2**62, 2 * max(t[-1] for t in profile.time))
    windows = [_Window(earliest(profile.extend_all(i, period)), never) for i in range(len(times))]
    kind = np.result_type(*times)
    cost = np.full((profile.accelerators + 1, profile.n + 1), never, dtype=kind)
    cost[:, 0] = 0
    for q in range(1, profile.accelerators + 1):
        now = cost[q]
        now[:] = cost[q - 1]
        for width, time, window in zip(profile.widths, times, windows, strict=True):
            if width <= q:
                np.minimum(now[1:], window.least(cost[q - width] - time) + time[1:], out=now[1:])
    if cost[-1][-1] >= never:
        return None
    return _trace(profile, cost, windows)


class _Window:
    """The least number of a window ``begins[j]..j - 1``, for every ``j`` from 1, by windows of powers of two."""

    def __init__(self, begins: Positions, never: int):
        n = len(begins) - 1
        ends = np.arange(1, n + 1)
        self.begins, self.never, self.size = begins, never, n + 1
        length = ends - begins[1:]
        level = np.frexp(np.maximum(length, 1))[1].astype(np.int64) - 1
        self.depth = int(level.max()) + 1
        none = self.depth * self.size
        self.left = np.where(length > 0, level * self.size + begins[1:], none)
        self.right = np.where(length > 0, level * self.size + ends - (1 << level), none)

    def least(self, numbers: Positions) -> Positions:
        """The minima over ``numbers``; ``never`` for empty windows."""
        table = np.full(self.depth * self.size + 1, self.never, dtype=numbers.dtype)
        table[: self.size] = numbers
        for depth in range(1, self.depth):
            span, length = 1 << (depth - 1), self.size - (1 << depth) + 1
            below = table[(depth - 1) * self.size :]
            np.minimum(below[:length], below[span : span + length], out=table[depth * self.size :][:length])
        return np.minimum(table[self.left], table[self.right])


def _trace(profile: Profile, cost: Positions, windows: Sequence[_Window]) -> list[Stage]:
    stages: list[Stage] = []
    q, end = profile.accelerators, profile.n
    while end > 0:
        while cost[q - 1][end] == cost[q][end]:
            q -= 1
        for number, width in enumerate(profile.widths):
            first, time = int(windows[number].begins[end]), profile.time[number]
            if width > q or first == end:
                continue
            inside = [int(c) - t for c, t in zip(cost[q - width][first:end], time[first:end], strict=True)]
            if min(inside) + time[end] == cost[q][end]:
                begin = first + inside.index(min(inside))
                stages.append(Stage(begin, end, width, time[end] - time[begin]))
                q, end = q - width, begin
                break
        else:
            raise AssertionError("a cost without a stage that explains it")
    return stages[::-1]


# --- the search over periods -------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """One order of the operations with one family of widths, and the positions and widths that are looked at."""

    order: tuple[int, ...]
    profile: Profile
    low: int
    """Least period of its stages (or what carried values ask)."""

    @property
    def work(self) -> float:
        """Units of work of :func:`least_latency`."""
        steps = self.profile.accelerators * len(self.profile.widths)
        return steps * (25e-6 + 13e-9 * self.profile.n)


class _Search:
    """The best plan so far, and what a plan costs."""

    def __init__(self, problem: PeriodicProblem, microbatches: int, floor: int, budget: Budget):
        self.microbatches, self.floor, self.budget = microbatches, floor, budget
        self.accelerators = problem.accelerators
        self.best: tuple[tuple[int, int], StagePlan] | None = None
        self.work = WORK

    def period(self, stages: Sequence[Stage]) -> int:
        return max(self.floor, *(s.load for s in stages))

    def offer(self, case: _Case, stages: Sequence[Stage]) -> None:
        """Keep the plan when it is better than the best so far; of equal ones the shorter period."""
        if self.best is None or self._rank(stages) < self.best[0]:
            self.keep(case, stages)

    def keep(self, case: _Case, stages: Sequence[Stage]) -> None:
        """Take the plan as the best."""
        longest = max(1, *(s.load for s in stages))
        idle = self.accelerators - sum(s.width for s in stages)
        self.best = (self._rank(stages), StagePlan(case.order, case.profile.in_order(stages), longest, idle))
        self.budget.report("step", longest)

    def _rank(self, stages: Sequence[Stage]) -> tuple[int, int]:
        period = self.period(stages)
        return ((self.microbatches - 1) * period + latency_of(stages), period)

    def spend(self, case: _Case) -> None:
        """Count one :func:`least_latency`."""
        self.work -= case.work
        self.budget.spend(case.work)

    def solve(self, case: _Case, period: int) -> tuple[int, int] | None:
        """Period and latency of the stages of least latency within ``period``; they are offered."""
        self.spend(case)
        found = least_latency(case.profile, period)
        if found is None:
            return None
        self.offer(case, found)
        return self.period(found), latency_of(found)

    def over(self) -> bool:
        return self.best is not None and (self.work <= 0 or self.budget.spent())


def stages_for_step(
    problem: PeriodicProblem,
    microbatches: int,
    *,
    reserve: int = 0,
    tolerance: float = 0.001,
    budget: Budget | None = None,
    granularity: Granularity = "operator",
) -> StagePlan:
    """The contiguous stages with the least time of a step of ``microbatches``, within ``tolerance``.

    Of one micro-batch the time is its latency, whatever the period; then it is the plan of least period
    with a latency within ``tolerance`` of the least. Latency counts stages one after another: branches that
    run side by side only make it shorter. Large problems are looked at coarsely, and the search stops after
    a few units of work; then the plan is good, not the best. Raises :class:`InvalidProblem` when no
    partition fits.
    """
    budget = budget or Budget()
    if not problem.operations:
        return StagePlan((), (), 1, problem.accelerators)
    recurrence = recurrence_bound(problem)
    search = _Search(problem, microbatches, max(1, recurrence.value if recurrence else 0), budget)
    cases = list(_cases(problem, reserve, granularity, search))
    if search.best is None and not cases:
        raise InvalidProblem([no_partition(problem, None, reserve, granularity)])
    try:
        _split(cases, search, tolerance)
        if microbatches == 1:
            _shorten(cases, search, tolerance)
    except KeyboardInterrupt:
        if search.best is None:
            raise
        budget.stop()
    assert search.best is not None
    return search.best[1]


def _cases(problem: PeriodicProblem, reserve: int, granularity: Granularity, search: _Search) -> Iterator[_Case]:
    """Every order with every family of widths that has a partition, coarse where the problem is large."""
    area = area_bound(problem).value
    families = [Choices(problem, widths) for widths in width_families(problem)]
    for order, cuts in cuttable_orders(problem, granularity):
        for choices in families:
            if search.over():
                return
            fine = Profile(choices, order, reserve, cuts)
            case = _case(order, fine, area, search.floor)
            if case is None:
                continue
            if fine.accelerators * len(fine.widths) * fine.n <= FINE:
                yield case
                continue
            _by_fewest(case, search)
            widths = _some_widths(choices.widths)
            positions = _some_positions(fine, max(FEWEST_POSITIONS, FINE // (fine.accelerators * len(widths))))
            rough = Profile(Choices(problem, widths), order, reserve, [cuts[at] for at in positions])
            found = _case(order, rough, area, search.floor)
            if found is not None:
                yield found


def _case(order: tuple[int, ...], profile: Profile, area: int, floor: int) -> _Case | None:
    found = cover(profile, profile.most)
    if found is None:
        return None
    high = max(area, *(s.load for s in found))
    low = least(min(area, high), high, lambda period: cover(profile, period) is not None)
    return _Case(order, profile, max(low, floor))


def _by_fewest(case: _Case, search: _Search) -> None:
    """Offer the fewest stages for a few periods: full stages, so few of them, take little time together."""
    profile = case.profile
    for step in range(8):
        found = fewest(profile, min(profile.most, int(case.low * 1.25**step)), profile.n)
        if found is not None:
            search.offer(case, found)
        search.budget.spend(0.05)
        if search.budget.spent():
            return


def _some_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """About a geometric progression of ``widths``, the least and the greatest included."""
    kept = [widths[0]]
    ratio = max(2.0, (widths[-1] / widths[0]) ** (1 / FEWEST_WIDTHS)) if len(widths) > FEWEST_WIDTHS else 1.0
    for width in widths[1:]:
        if width >= kept[-1] * ratio or width == widths[-1]:
            kept.append(width)
    return tuple(kept)


def _some_positions(profile: Profile, count: int) -> list[int]:
    """At most about ``count`` positions, evenly spread over time, each operation at its fastest."""
    if profile.n <= count:
        return list(range(profile.n + 1))
    steps = zip(*(pairwise(t) for t in profile.time), strict=True)
    fast = list(accumulate((min(b - a for a, b in step) for step in steps), initial=0))
    return sorted({0, profile.n, *(bisect_left(fast, fast[-1] * i // count) for i in range(1, count))})


def _split(cases: Sequence[_Case], search: _Search, tolerance: float) -> None:
    """Look at the interval of periods that may hold the best plan, halve it, until nothing better is left.

    An interval is (least value, case, period below it, greatest period, least latency).
    """
    repeats = search.microbatches - 1
    waiting: list[tuple[int, int, int, int, int]] = []
    for number, case in enumerate(cases):
        if search.over():
            return
        widest = search.solve(case, max(case.profile.most, case.low))
        if widest is None or search.over():
            continue
        period, latency = widest
        tightest = search.solve(case, case.low) if period > case.low else None
        below = case.low if tightest is not None else case.low - 1
        waiting.append((repeats * (below + 1) + latency, number, below, period - 1, latency))
    heapify(waiting)
    while waiting and not search.over():
        least_value, number, below, top, latency = heappop(waiting)
        assert search.best is not None
        if least_value * (1 + tolerance) >= search.best[0][0]:
            return
        if below >= top:
            continue
        middle = min(top, max(below + 1, isqrt((below + 1) * top)))
        found = search.solve(cases[number], middle)
        if middle < top:
            heappush(waiting, (repeats * (middle + 1) + latency, number, middle, top, latency))
        if found is not None and found[0] - 1 > below:
            heappush(waiting, (repeats * (below + 1) + found[1], number, below, found[0] - 1, found[1]))


def _shorten(cases: Sequence[_Case], search: _Search, tolerance: float) -> None:
    """For one micro-batch: the least period of any plan whose latency is about the least."""
    assert search.best is not None
    limit = int(search.best[0][0] * (1 + tolerance))
    period = max(search.floor, search.best[1].period)
    for case in cases:
        low = case.low
        while low < period and not search.over():
            middle = (low + period - 1) // 2
            search.spend(case)
            found = least_latency(case.profile, middle)
            if found is not None and latency_of(found) <= limit:
                period = search.period(found)
                search.keep(case, found)
            else:
                low = middle + 1
