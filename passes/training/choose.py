"""What every block computes again, so that enough bytes need not be kept and least time is added: a knapsack.

Each block has a few ways (bytes saved, time added), of which one is taken: the multiple-choice knapsack (Kellerer,
Pferschy, Pisinger, *Knapsack Problems*, 2004, chapter 11), by dynamic programming over bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

STEPS = 4000
"""Steps in which bytes are counted, rounded down: so every block may save a step too much."""

Way = tuple[int, int]
"""Bytes saved and time added."""

Trace = tuple[int, "Trace"] | None
"""The way of the last block, and that of those before."""


def cheapest(ways: Sequence[Sequence[Way]], save: int) -> list[int] | None:
    """For each block the number of its way, so that all save ``save`` bytes at least in about the least time.

    None when no choice saves so much.
    """
    if sum(max(saved for saved, _ in some) for some in ways) < save:
        return None
    step = max(1, save // STEPS)
    goal = -(-save // step)
    best: dict[int, tuple[int, Trace]] = {0: (0, None)}
    for some in ways:
        found: dict[int, tuple[int, Trace]] = {}
        for units, (time, trace) in best.items():
            for number, (saved, more) in enumerate(some):
                reached = min(goal, units + saved // step)
                if reached not in found or time + more < found[reached][0]:
                    found[reached] = time + more, (number, trace)
        best = found
    if goal not in best:  # only by rounding
        return [max(range(len(some)), key=[saved for saved, _ in some].__getitem__) for some in ways]
    taken: list[int] = []
    trace = best[goal][1]
    while trace is not None:
        number, trace = trace
        taken.append(number)
    return taken[::-1]
