"""Covers of an order by stages of at most a trial period: with the fewest accelerators, or a given number of stages."""

from __future__ import annotations

import numpy as np

from passes.scheduling.profiles import Positions, Profile, Stage

# --- any number of stages ----------------------------------------------------------------------


def cover(profile: Profile, period: int) -> list[Stage] | None:
    """Contiguous stages of at most ``period`` that cover everything, or None when there are none."""
    reach, choice = furthest(profile, period)
    return _trace(profile, reach, choice, len(reach) - 1) if reach[-1] == profile.n else None


def furthest(profile: Profile, period: int) -> tuple[list[int], list[int]]:
    """How far each number of accelerators reaches, up to the first that reaches the end, and its last stage's width."""
    reach, choice = [0] * (profile.accelerators + 1), [-1] * (profile.accelerators + 1)
    last = [(-1, 0)] * len(profile.widths)
    for q in range(1, profile.accelerators + 1):
        best, chosen = reach[q - 1], -1
        for number, width in enumerate(profile.widths):
            if width > q:
                break
            begin = reach[q - width]
            if last[number][0] != begin:
                last[number] = (begin, profile.extend(number, begin, period))
            if last[number][1] > best:
                best, chosen = last[number][1], number
        reach[q], choice[q] = best, chosen
        if best == profile.n:
            return reach[: q + 1], choice
    return reach, choice


def _trace(profile: Profile, reach: list[int], choice: list[int], q: int) -> list[Stage]:
    stages: list[Stage] = []
    end = reach[q]
    while end > 0:
        number = choice[q]
        if number < 0:
            q -= 1
            continue
        q -= profile.widths[number]
        stages.append(_stage(profile, number, reach[q], end))
        end = reach[q]
    return stages[::-1]


def _stage(profile: Profile, number: int, begin: int, end: int) -> Stage:
    time = profile.time[number]
    return Stage(begin, end, profile.widths[number], time[end] - time[begin])


def fewest(profile: Profile, period: int, most: int) -> list[Stage] | None:
    """Like :func:`cover` with the fewest stages, then the fewest accelerators; None if over ``most`` stages."""
    count = profile.accelerators
    widths = [w for w in profile.widths if w <= count]
    ends = [profile.extend_all(i, period) for i in range(len(widths))]
    reach = [np.zeros(count + 1, dtype=np.int64)]
    choices: list[Positions] = []
    while reach[-1][count] < profile.n:
        if len(choices) == most:
            return None
        before, now = reach[-1], reach[-1].copy()
        choice = np.full(count + 1, -1, dtype=np.int64)
        for number, width in enumerate(widths):
            candidate = ends[number][before[: count + 1 - width]]
            better = candidate > now[width:]
            now[width:][better] = candidate[better]
            choice[width:][better] = number
        if now[count] == before[count]:
            return None
        reach.append(now)
        choices.append(choice)
    q = int(np.searchsorted(reach[-1], profile.n))
    stages: list[Stage] = []
    for step in range(len(choices) - 1, -1, -1):
        number = int(choices[step][q])
        end = int(reach[step + 1][q])
        if number < 0:
            continue
        q -= profile.widths[number]
        stages.append(_stage(profile, number, int(reach[step][q]), end))
    return stages[::-1]


# --- a given number of stages ------------------------------------------------------------------


def exactly(profile: Profile, period: int, count: int) -> list[Stage] | None:
    """Exactly ``count`` non-empty stages on the fewest accelerators, or None when there are none.

    ``cost[s][j]`` is the least number of accelerators that cover the first ``j`` operations with ``s``
    stages; a stage of width ``w`` that ends at ``j`` may begin anywhere in a window that moves with
    ``j``, so each step is a sliding minimum.
    """
    n, never = profile.n, profile.accelerators + 1
    begins = [earliest(profile.extend_all(i, period)) for i in range(len(profile.widths))]
    cost = [np.full(n + 1, never, dtype=np.int64)]
    cost[0][0] = 0
    for _ in range(count):
        lowest = _Minima(cost[-1])
        now = np.full(n + 1, never, dtype=np.int64)
        for number, width in enumerate(profile.widths):
            now[1:] = np.minimum(now[1:], lowest.over(begins[number][1:], np.arange(n)) + width)
        cost.append(np.minimum(now, never))
    if cost[count][n] >= never:
        return None
    stages: list[Stage] = []
    end = n
    for step in range(count, 0, -1):
        end = _last_stage(profile, cost[step - 1], int(cost[step][end]), begins, end, stages)
    return stages[::-1]


def _last_stage(
    profile: Profile, before: Positions, need: int, begins: list[Positions], end: int, stages: list[Stage]
) -> int:
    for number, width in enumerate(profile.widths):
        first = int(begins[number][end])
        window = before[first:end]
        if len(window) and int(window.min()) + width == need:
            begin = first + int(window.argmin())
            stages.append(_stage(profile, number, begin, end))
            return begin
    raise AssertionError("a cost without a stage that explains it")


def earliest(ends: Positions) -> Positions:
    """For each end the earliest beginning whose stage reaches it (the end itself when there is none)."""
    n = len(ends) - 1
    positions = np.arange(n + 1)
    return np.minimum(np.searchsorted(ends, positions, side="left"), positions)


class _Minima:
    """Minimum of any window of an array by windows of powers of two."""

    def __init__(self, numbers: Positions):
        self.levels: list[Positions] = [numbers]
        span = 1
        while 2 * span <= len(numbers):
            below = self.levels[-1]
            self.levels.append(np.minimum(below[:-span], below[span:]))
            span *= 2
        self.none = int(numbers.max()) + 1

    def over(self, first: Positions, last: Positions) -> Positions:
        """Minimum of each ``numbers[first..last]``, both included; a large number where ``first > last``."""
        length = last - first + 1
        level = np.frexp(np.maximum(length, 1))[1] - 1
        result = np.full(len(first), self.none, dtype=np.int64)
        for depth in np.unique(level[length > 0]):
            at = (level == depth) & (length > 0)
            span = 1 << int(depth)
            numbers: Positions = self.levels[int(depth)]
            result[at] = np.minimum(numbers[first[at]], numbers[last[at] + 1 - span])
        return result
