"""Search for sets of small heaviest load: contiguous splits to begin with, then simulated annealing.

The annealing (Kirkpatrick, Gelatt, Vecchi, "Optimization by simulated annealing", Science 220, 1983) makes the loads
above a target small. It moves single units, what hangs together on one accelerator by values that take long to move,
and the sides of minimum cuts, which are cheap to separate from everything else.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, isqrt

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.assigned_clusters import Cuts
from passes.scheduling.assigned_loads import Choices, Loads
from passes.scheduling.budget import Budget

STEP_WORK = 4e-6
"""Work units of one step of the annealing, for each unit that moves."""

COLD = 0.02
"""The temperature at the end, as a fraction of that at the beginning."""

SIDES = 400
"""Minimum cuts whose sides are moved as one."""

IDEALS = 1500
"""Sets that splits are made of, at most."""

SPLIT_SIZE = 80_000_000
"""Pairs of such sets times values, at most."""

SPLIT_WORK = 6e-9
"""Work units for each of these."""


# --- contiguous splits -------------------------------------------------------------------------------


def _before(choices: Choices) -> list[set[int]]:
    """Units that come before each unit, when values that lead back to an earlier unit do not count."""
    before: list[set[int]] = [set() for _ in choices.units]
    for value in choices.values:
        for reader in value.readers:
            if choices.rank(value.producer) < choices.rank(reader):
                before[reader].add(value.producer)
    return before


def _orders(choices: Choices, before: Sequence[set[int]]) -> Iterator[list[int]]:
    """Orders of units that respect ``before``: by rank, and depth first."""
    after: list[list[int]] = [[] for _ in before]
    for unit, producers in enumerate(before):
        for producer in producers:
            after[producer].append(unit)
    for depth_first in (False, True):
        missing = [len(b) for b in before]
        ready = sorted((u for u, m in enumerate(missing) if not m), key=choices.rank, reverse=True)
        order: list[int] = []
        while ready:
            unit = ready.pop()
            order.append(unit)
            for reader in sorted(after[unit], key=choices.rank, reverse=True):
                missing[reader] -= 1
                if not missing[reader]:
                    ready.append(reader)
            if not depth_first:
                ready.sort(key=choices.rank, reverse=True)
        yield order


def _ideals(choices: Choices) -> NDArray[np.bool_]:
    """Sets of units with all units before their own, smallest first: all of them where they are few.

    Else those in which what nobody reads comes with the last that it reads; else those that begin two orders.
    """
    n = len(choices.units)
    most = min(IDEALS, 2 + isqrt(SPLIT_SIZE // (1 + len(choices.values))))
    before = _before(choices)
    masks = [sum(1 << p for p in b) for b in before]
    read = {p for b in before for p in b}
    last = [u for u in range(n) if before[u] and u not in read]
    found = _closed(masks, [], most) or _closed(masks, last, most)
    if found is None:
        found = {0: None}
        step = max(1, -(-2 * n // most))
        for order in _orders(choices, before):
            for size in range(step, n, step):
                found[sum(1 << u for u in order[:size])] = None
        found[(1 << n) - 1] = None
    rows = sorted(found, key=lambda ideal: (ideal.bit_count(), ideal))
    return np.array([[ideal >> u & 1 for u in range(n)] for ideal in rows], dtype=np.bool_)


def _closed(masks: Sequence[int], last: Sequence[int], most: int) -> dict[int, None] | None:
    """Sets (as bits) that hold the mask of each unit, units in ``last`` once they can; None beyond ``most``."""
    late = sum(1 << u for u in last)
    found = {0: None}
    queue = [0]
    for ideal in queue:  # grows while it is walked
        for unit, mask in enumerate(masks):
            if not (ideal | late) >> unit & 1 and mask & ~ideal == 0:
                larger = ideal | 1 << unit
                for other in last:
                    if masks[other] & ~larger == 0:
                        larger |= 1 << other
                if larger not in found:
                    found[larger] = None
                    queue.append(larger)
        if len(found) > most:
            return None
    return found


def split(choices: Choices, width: int, budget: Budget) -> list[int] | None:
    """Options of a contiguous split over blocks of ``width`` whose heaviest load is small; None where there is none.

    Exact over the sets of :func:`_ideals`, with the least price of each value: where all accelerators are alike and
    there are few such sets, no contiguous split is better.
    """
    blocks = choices.accelerators // width
    best: list[dict[int, int]] = []
    for options in choices.options:
        mine: dict[int, int] = {}
        for number, option in enumerate(options):
            first = option.block[0] // width
            if len(option.block) <= width and (first not in mine or option.time < options[mine[first]].time):
                mine[first] = number
        if len(mine) < blocks:
            return None
        best.append(mine)
    times = np.array([options[mine[0]].time for options, mine in zip(choices.options, best, strict=True)], float)
    params = np.array([options[mine[0]].params for options, mine in zip(choices.options, best, strict=True)], float)
    ideals = _ideals(choices)
    budget.spend(SPLIT_WORK * len(ideals) ** 2 * (1 + len(choices.values)))
    last = _least_splits(choices, ideals, times, params, blocks)
    if last is None:
        return None
    at = [0] * len(choices.units)
    end = len(ideals) - 1
    for number in range(blocks, 0, -1):
        begin = last[number, end]
        for unit in np.flatnonzero(ideals[end] & ~ideals[begin]):
            at[unit] = best[unit][number - 1]
        end = begin
    return at


def _least_splits(
    choices: Choices, ideals: NDArray[np.bool_], times: NDArray[np.float64], params: NDArray[np.float64], blocks: int
) -> NDArray[np.intp] | None:
    """Where the last of the first so many parts of each ideal begins; None when nothing fits in memory."""
    prices = np.array(choices.least_times, float)
    made = ideals[:, [v.producer for v in choices.values]]
    readers = np.array([len(v.readers) for v in choices.values])
    read = np.stack([ideals[:, list(v.readers)].sum(axis=1) for v in choices.values], 1) if choices.values else made
    overlapped = choices.network.mode == "overlapped"
    size, room = ideals @ times, ideals @ params
    load = np.full((blocks + 1, len(ideals)), np.inf)
    load[0, 0] = 0
    last = np.zeros((blocks + 1, len(ideals)), dtype=np.intp)
    for i in range(len(ideals)):
        larger = i + np.flatnonzero(~(ideals[i] & ~ideals[i:]).any(axis=1))
        inside = made[larger] & ~made[i]
        here = read[larger] - read[i] if choices.values else read[larger]
        sent, received = (inside & (here < readers)) @ prices, (~inside & (here > 0)) @ prices
        time = size[larger] - size[i]
        cost = np.maximum(time, np.maximum(sent, received)) if overlapped else time + sent + received
        cost[room[larger] - room[i] > choices.room] = np.inf
        for number in range(blocks):
            total = np.maximum(load[number, i], cost)
            better = total < load[number + 1, larger]
            load[number + 1, larger[better]] = total[better]
            last[number + 1, larger[better]] = i
    return last if np.isfinite(load[blocks, -1]) else None


# --- annealing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbourhoods:
    """What moves as one: neighbours with the time of what lies between, and sides of minimum cuts."""

    choices: Choices
    seed: int = 0

    @cached_property
    def near(self) -> list[list[tuple[int, int]]]:
        """Neighbours of each unit, and how long the values between take, longest first."""
        found: list[defaultdict[int, int]] = [defaultdict(int) for _ in self.choices.units]
        for value, price in zip(self.choices.values, self.choices.least_times, strict=True):
            for reader in value.readers:
                found[value.producer][reader] += price
                found[reader][value.producer] += price
        return [sorted(f.items(), key=lambda pair: (-pair[1], pair[0])) for f in found]

    @cached_property
    def prices(self) -> list[int]:
        """The times of :attr:`near`, of each pair twice."""
        return [price for each in self.near for _, price in each] or [0]

    @cached_property
    def option_at(self) -> list[dict[int, int]]:
        """Place → the first option of each unit there."""
        known: dict[int, dict[int, int]] = {}
        for options in self.choices.options:
            if id(options) not in known:
                mine = known[id(options)] = {}
                for number, option in enumerate(options):
                    mine.setdefault(option.place, number)
        return [known[id(options)] for options in self.choices.options]

    @cached_property
    def sides(self) -> list[list[tuple[int, ...]]]:
        """For each unit the sides of minimum cuts that it is on."""
        rng = random.Random(self.seed)
        n = len(self.choices.units)
        found: list[list[tuple[int, ...]]] = [[] for _ in range(n)]
        if n < 3 or self.choices.network.mode == "overlapped" or not self.choices.values:
            return found
        cuts = Cuts(self.choices)
        known: dict[tuple[int, ...], None] = {}
        for _ in range(SIDES):
            unit, other = rng.sample(range(n), 2)
            known.update(dict.fromkeys(cuts.sides(unit, other, rng.choice((0, 2, 5, 10, 20, 50)))))
        for side in known:
            if 1 < len(side) < n:
                for unit in side:
                    found[unit].append(side)
        return found


def anneal(
    near: Neighbourhoods, at: Sequence[int], target: int, steps: int, heat: float, rng: random.Random, budget: Budget
) -> tuple[int, list[int]]:
    """The least heaviest load met within about ``steps`` moves of single units from ``at``, and its options.

    Loads above ``target`` ns are made small; it begins at a temperature of ``heat`` times the target. Choices that
    do not fit in memory are left, and not entered.
    """
    choices = near.choices
    loads = Loads(choices, at, target)
    best = (loads.overfull, loads.heaviest, list(at))
    level, done = loads.penalty**0.5, 0
    watched = any(option.params for options in choices.options for option in options)
    hot = heat * max(1, target)
    while done < steps:
        temperature = hot * COLD ** (done / steps)
        for _ in range(64):
            moves = _moves(near, loads, rng)
            done += max(1, len(moves))
            if not moves:
                continue
            new = loads.shift(moves) ** 0.5
            keep = new <= level or rng.random() < exp((level - new) / temperature)
            if not keep or (watched and not loads.fits()):
                loads.back()
                continue
            lower, level = new < level, new
            if lower and (mine := (loads.overfull, loads.heaviest)) < best[:2]:
                best = (*mine, list(loads.at))
        if budget.spent():
            break
    budget.spend(STEP_WORK * done)
    return best[1], best[2]


def _moves(near: Neighbourhoods, loads: Loads, rng: random.Random) -> list[tuple[int, int]]:
    """Some units, and the options that they are to take: most often one, of a neighbour's place."""
    choices, at = near.choices, loads.at
    unit = rng.randrange(len(at))
    beside = near.near[unit]
    if beside and rng.random() < 0.8:
        goal = loads.place_of(beside[int(rng.random() * len(beside))][0])
    else:
        options = choices.options[unit]
        goal = options[int(rng.random() * len(options))].place
    here, kind = loads.place_of(unit), rng.random()
    if kind < 0.01 and near.sides[unit]:
        side = rng.choice(near.sides[unit])
        if rng.random() < 0.5:
            side = tuple(u for u in side if loads.place_of(u) == here)
        moving: Sequence[int] = [u for u in side if loads.place_of(u) != goal]
    elif goal == here:
        return _other_option(near, loads, unit, rng)
    elif kind < 0.07:
        moving = _hanging(near, loads, unit, rng)
    else:
        moving = (unit,)
    moves = [(u, near.option_at[u][goal]) for u in moving if goal in near.option_at[u]]
    if moves and rng.random() < 0.3:  # something back in exchange
        taken = set(moving)
        for _ in range(4):
            other = int(rng.random() * len(at))
            if loads.place_of(other) == goal and other not in taken and here in near.option_at[other]:
                moves.append((other, near.option_at[other][here]))
                break
    return moves


def _other_option(near: Neighbourhoods, loads: Loads, unit: int, rng: random.Random) -> list[tuple[int, int]]:
    """Another option on the same set, where there are some: nothing most often."""
    options = near.choices.options[unit]
    if len(near.option_at[unit]) == len(options):
        return []
    here = loads.place_of(unit)
    return [(unit, rng.choice([n for n, o in enumerate(options) if o.place == here]))]


def _hanging(near: Neighbourhoods, loads: Loads, unit: int, rng: random.Random) -> list[int]:
    """What hangs together with ``unit`` on its set by values that take at least some time."""
    least, here = rng.choice(near.prices), loads.place_of(unit)
    found, seen = [unit], {unit}
    for u in found:  # grows while it is walked
        for other, price in near.near[u]:
            if price < least:
                break
            if other not in seen and loads.place_of(other) == here:
                seen.add(other)
                found.append(other)
    return found
