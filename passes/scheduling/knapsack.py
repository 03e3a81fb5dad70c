"""The heaviest set of pieces that fits on one accelerator, exactly.

A class offers at most ``count`` pieces, each at one of several sizes and weights. States (size, weight) that
another one beats in both are dropped, and so are those that cannot get above the best known weight even if
the rest of the room were filled with the most weight per size still to come. What remains is the exact
maximum: sizes and weights are integers, and the estimate, in floating point, is rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from passes.scheduling.budget import Budget

MOST_STATES = 200_000
"""States beyond which the search gives up."""

STATES_A_UNIT = 4_000_000
"""States looked at that count as one unit of work."""

WORK_A_STEP = 2e-5
"""Work of a step of few states."""


@dataclass(frozen=True)
class Group:
    """At most ``count`` pieces; each is one of (column, size, weight), in order of size and of weight."""

    index: int
    count: int
    choices: tuple[tuple[int, int, int], ...]

    @property
    def density(self) -> float:
        """Greatest weight per size."""
        return max(weight / size for _, size, weight in self.choices)


@dataclass(frozen=True)
class Filling:
    """What fits on an accelerator: its weight, and its pieces as (group, column, how many)."""

    weight: int
    pieces: tuple[tuple[int, int, int], ...]


def useful(index: int, count: int, sizes: Sequence[int], weights: Sequence[int], capacity: int) -> Group | None:
    """The group of the choices worth taking: with weight, and no smaller one as heavy; None without any."""
    kept: list[tuple[int, int, int]] = []
    for size, lightness, column in sorted((s, -w, j) for j, (s, w) in enumerate(zip(sizes, weights, strict=True))):
        if size <= capacity and -lightness > (kept[-1][2] if kept else 0):
            if size == 0:
                raise ValueError("a piece of size 0 has a weight: there is no heaviest filling")
            kept.append((column, size, -lightness))
    return Group(index, count, tuple(kept)) if kept else None


def heaviest(groups: Sequence[Group], capacity: int, floor: int, budget: Budget) -> Filling | None:
    """The heaviest filling if it weighs more than ``floor``, else one of weight ``floor`` without pieces.

    Sizes and weights below 2**50. None when there are too many states or the budget is over.
    """
    ordered = sorted(groups, key=lambda g: (-g.density, g.index))
    after = list(accumulate((g.density for g in reversed(ordered)), max, initial=0.0))[::-1]
    sweep = _Sweep(capacity, floor)
    for position, group in enumerate(ordered):
        for repeat in range(group.count):
            grown = sweep.step(group, after[position if repeat + 1 < group.count else position + 1])
            budget.spend(sweep.looked / STATES_A_UNIT + WORK_A_STEP)
            if len(sweep.sizes) > MOST_STATES or budget.spent():
                return None
            if not grown:
                break
        if not len(sweep.sizes):
            break
    return sweep.result()


class _Sweep:
    """The states after some steps, and for each step what its states came from."""

    def __init__(self, capacity: int, floor: int):
        self.capacity = capacity
        self.best = floor
        self.best_at = -1
        """State of the best filling, counted after the last of ``steps`` at that time."""
        self.best_steps = 0
        self.sizes: Any = np.zeros(1, np.int64)
        self.weights: Any = np.zeros(1, np.int64)
        self.steps: list[tuple[Group, int, Any]] = []
        """Of each step: its group, the number of states before, and which of the states made were kept."""
        self.looked = 0

    def step(self, group: Group, rest: float) -> bool:
        """Add at most one piece of ``group`` to each state; whether a state that took one was kept.

        ``rest`` is the greatest weight per size of what comes after this step.
        """
        before = len(self.sizes)
        sizes = np.concatenate([self.sizes, *(self.sizes + size for _, size, _ in group.choices)])
        weights = np.concatenate([self.weights, *(self.weights + weight for _, _, weight in group.choices)])
        self.looked = len(sizes)
        kept = np.flatnonzero(sizes <= self.capacity)
        kept = kept[np.lexsort((-weights[kept], sizes[kept]))]
        undominated = np.ones(len(kept), bool)
        undominated[1:] = weights[kept][1:] > np.maximum.accumulate(weights[kept])[:-1]
        kept = kept[undominated]
        if weights[kept[-1]] > self.best:
            self.best, self.best_at = int(weights[kept[-1]]), int(kept[-1])
            self.best_steps = len(self.steps) + 1
        reach = weights[kept] + (self.capacity - sizes[kept]) * (rest * (1 + 1e-9)) + 1
        kept = kept[reach > self.best]
        self.steps.append((group, before, kept))
        self.sizes, self.weights = sizes[kept], weights[kept]
        return bool((kept >= before).any())

    def result(self) -> Filling:
        """The best filling found, read back step by step."""
        taken: dict[tuple[int, int], int] = {}
        state = self.best_at
        for step in range(self.best_steps - 1, -1, -1):
            group, before, _ = self.steps[step]
            choice, state = divmod(state, before)
            if choice:
                key = (group.index, group.choices[choice - 1][0])
                taken[key] = taken.get(key, 0) + 1
            if step:
                state = int(self.steps[step - 1][2][state])
        return Filling(self.best, tuple((g, c, n) for (g, c), n in sorted(taken.items())))
