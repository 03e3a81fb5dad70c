"""Orders made shorter by moving cells that are late: a local search on what the rank that ends last has waited for.

Simulated annealing (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983) on orders. Only an order in which a cell of the
longest path changes its place can be shorter (Van Laarhoven, Aarts, Lenstra, Operations Research 40, 1992), so a move
takes two neighbours on that path, and puts the first some places later or the second some places earlier.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from passes.scheduling.steps.numbered import Numbered, Numbers

WARM, COLD = 0.2, 0.01
"""Part of a mean cell's time by which a move may make things worse, in the beginning and in the end."""

FAR = 6
"""How many places a cell moves at most."""


def improve(
    problem: Numbered, numbers: Numbers, limits: Sequence[int] | None, tries: int, goal: int, seed: int = 0
) -> Numbers:
    """The best orders found in so many tries, from ``numbers`` on, which fit; it ends early at a cost of ``goal``."""
    rng = random.Random(seed)
    orders = [list(cells) for cells in numbers]
    ends = problem.ends(orders)
    assert ends is not None
    current = _cost(problem.costs(orders, ends))
    best, found = current, [list(cells) for cells in orders]
    mean = sum(problem.times) / len(problem.times)
    path: list[tuple[int, int]] | None = None
    for step in range(tries):
        if best[0] <= goal:
            break
        if path is None:
            path = _late(problem, orders, ends)
        if not path:
            break
        rank, position = rng.choice(path)
        before = orders[rank]
        after = _moved(problem, before, position, rng)
        if after is None or (limits is not None and not problem.fits(after, limits[rank])):
            continue
        orders[rank] = after
        trial = problem.ends(orders)
        if trial is not None:
            cost = _cost(problem.costs(orders, trial))
            heat = mean * WARM * (COLD / WARM) ** (step / tries)
            worse = cost[0] - current[0]
            if cost <= current or rng.random() < math.exp(-worse / heat) * (1 if worse else 0.5):
                current, ends, path = cost, trial, None
                if cost < best:
                    best, found = cost, [list(cells) for cells in orders]
                continue
        orders[rank] = before
    return found


def _cost(costs: Sequence[int]) -> tuple[int, int]:
    """The objective, and what prefers orders in which fewer ranks are late."""
    return max(costs), sum(costs)


def _late(problem: Numbered, orders: Numbers, ends: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours on the path that makes the worst rank late: rank and place of the first of them."""
    times, needs, lags = problem.times, problem.needs, problem.lags
    places = {cell: (rank, k) for rank, cells in enumerate(orders) for k, cell in enumerate(cells)}
    costs = problem.costs(orders, ends)
    rank = costs.index(max(costs))
    k = len(orders[rank]) - 1
    path: list[tuple[int, int]] = []
    while True:
        cell = orders[rank][k]
        begun, need = ends[cell] - times[cell], needs[cell]
        if need >= 0 and ends[need] + lags[cell] == begun:
            rank, k = places[need]
        elif k and ends[orders[rank][k - 1]] == begun:
            k -= 1
            path.append((rank, k))
        else:
            return path


def _moved(problem: Numbered, cells: Sequence[int], k: int, rng: random.Random) -> list[int] | None:
    """Cell ``k`` put later or the one behind it put earlier; None where one of them needs the other."""
    m = problem.microbatches
    places = 1 if rng.random() < 0.5 else rng.randint(2, FAR)
    after = list(cells)
    if rng.random() < 0.5:
        cell = after.pop(k)
        passed = after[k : k + places]
        blocked = any(problem.needs[other] == cell or other // m == cell // m for other in passed)
        after.insert(k + places, cell)
    else:
        cell = after.pop(k + 1)
        start = max(0, k + 1 - places)
        passed = after[start : k + 1]
        blocked = any(problem.needs[cell] == other or other // m == cell // m for other in passed)
        after.insert(start, cell)
    return None if blocked else after
