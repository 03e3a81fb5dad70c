"""A lower bound on the period from bytes that wait for their readers: fast operations take area, slow ones memory.

Let result ``r`` of ``u`` be read by ``v`` in the same micro-batch. From the start of ``u`` to the end of ``v`` at least
``m_u = min(bytes of r, min_k k·output_u(k))`` bytes of it lie on all accelerators together. On one set: ``u`` holds its
``output`` on its ``k`` accelerators until its last reader there has ended. On two sets: the set of ``u`` holds as much
until the transfer has left, and the set of ``v`` the value, or on each accelerator its share of it, from the landing
on, which is no later (mode ``buffered``, where a value may lie in a buffer in between, is left out). What ``u`` holds
it holds once in each micro-batch, of which one begins in each period. So over one period (Little's law) ::

    Σ_items k·params(k)·T  +  Σ_u m_u·(end_v - start_u)  +  Σ_ops k·c(k)·t(k)  ≤  P·M·T                   (bytes)
    Σ_ops k·t(k)  ≤  P·T                                                                                  (area)

where ``c`` is what an operation holds only while it runs: its workspace, and its results where it is no ``u``.

``end_v - start_u`` is no less than the times along any path of dependences from ``u`` to ``v``. All paths here run
along one long path of the graph, from the first of its operations that waits for ``u`` to the last that ``v`` waits
for; let ``n_w`` be the sum of ``m_u`` over the paths through ``w``. Both inequalities, weighed with ``b`` and ``a``,
hold for the allotments of any schedule, so they hold for those that make the left side least ::

    Σ_items min_k { Σ_{w in the item} (b·k + a·n_w + a·k·c_w(k))·t_w(k) + a·T·k·params(k) }  ≤  T·P·(b + a·M)

with ``t_w(k) ≤ T``.

Where that fails for some ``a/b`` there is no schedule of period ``T``, nor of a shorter one, as any can be stretched by
idle time in which nothing changes. Bytes are counted in a larger unit, rounded in favour of the schedule; all else is
exact. The multiplier comes from a search: any proves what it proves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import exp, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.budget import Budget
from passes.scheduling.data import Table
from passes.scheduling.elementary import Bound, area_bound, possible
from passes.scheduling.problem import MemoryProblem, PeriodicProblem

NAME = "activation area"

UNITS = 2**20
"""Into how many units the bytes of an accelerator are divided."""

PARTS = 2**48
"""The multiplier of bytes is a whole number of one part in this many."""

STEPS, NEAR_STEPS, NEAR = 60, 24, 1.5
"""Trials of multipliers for a first period; for further ones, within this factor (as a power of e) of the last."""

FINE = 20_000
"""What part of the period the search may be off."""

LEAVES_OUT = "how operations pack, how bytes are spread over accelerators, and what waits on other paths"

Floats = NDArray[Any]


def activation_bound(problem: PeriodicProblem, budget: Budget | None = None) -> Bound | None:
    """About the least period that the inequality allows; None where memory is not limited or area gives as much."""
    proof = _proof(problem)
    if proof is None:
        return None
    low = max(1, area_bound(problem).value)
    if not proof.excludes(low):
        return None
    step = max(1, low // 16)
    while proof.excludes(low + step):
        low, step = low + step, 2 * step
        if step > 2**60:
            return None  # no period at all: what does not fit is said elsewhere
    high = low + step
    while high - low > max(1, low // FINE):
        middle = (low + high) // 2
        if proof.excludes(middle):
            low = middle
        else:
            high = middle
    return Bound(NAME, low + 1, LEAVES_OUT)


def activation_excludes(problem: PeriodicProblem, period: int) -> bool:
    """Whether the inequality proves that no schedule has a period of at most ``period``."""
    proof = _proof(problem)
    return proof is not None and period > 0 and proof.excludes(period)


def _proof(problem: PeriodicProblem) -> Proof | None:
    if not isinstance(problem, MemoryProblem) or not problem.memory or not problem.operations:
        return None
    if problem.network is not None and problem.network.mode == "buffered":
        return None
    proof = Proof(problem)
    return None if proof.impossible or not proof.tight() else proof


@dataclass(frozen=True)
class Row:
    """An allotment of an item: its area, units of bytes times ns that wait for it, units of parameters, its time."""

    area: int
    waiting: int
    params: int
    time: int


class Proof:
    """The two inequalities of a problem."""

    def __init__(self, problem: MemoryProblem):
        self.problem = problem
        self.accelerators = problem.accelerators
        self.unit = max(1, problem.memory // UNITS)
        self.room = problem.accelerators * -(-problem.memory // self.unit)
        self.tables = [possible(table, problem.accelerators, problem.memory) for table in problem.item_tables]
        self.impossible = not all(self.tables)
        """Whether some item fits nowhere."""
        self._last: float | None = None
        if self.impossible:
            return
        self.waiting, self.alone = self._waiting()
        pairs = zip(problem.items, problem.item_tables, self.tables, strict=True)
        self.rows = [[self._row(item, merged, k) for k in sorted(table)] for item, merged, table in pairs]
        flat = [row for rows in self.rows for row in rows]
        self._begins = np.cumsum([0, *(len(rows) for rows in self.rows[:-1])])
        self._area, self._bytes, self._params, self._time = (
            np.array([float(getattr(row, name)) for row in flat]) for name in ("area", "waiting", "params", "time")
        )

    # --- paths --------------------------------------------------------------------------------

    def _cheapest(self) -> list[int]:
        """The time of each operation at the allotment of its item that takes the least area."""
        times = [0] * len(self.problem.operations)
        for item, table in zip(self.problem.items, self.tables, strict=True):
            k = min(table, key=lambda k: (k * table[k], table[k]))
            for v in item:
                times[v] = self.problem.operations[v].table[k].time
        return times

    def _long_path(self, times: list[int]) -> list[int]:
        end, before = [0] * len(times), [-1] * len(times)
        for v in self.problem.topological:
            for u in self.problem.predecessors[v]:
                if before[v] < 0 or end[u] > end[before[v]]:
                    before[v] = u
            end[v] = times[v] + (end[before[v]] if before[v] >= 0 else 0)
        path: list[int] = []
        v = max(range(len(times)), key=end.__getitem__)
        while v >= 0:
            path.append(v)
            v = before[v]
        return path[::-1]

    def _waiting(self) -> tuple[list[int], list[bool]]:
        """Units of bytes that wait on the path through each operation, rounded down; and which ones nothing reads."""
        problem, times = self.problem, self._cheapest()
        path = self._long_path(times)
        n, place = len(path), {v: i for i, v in enumerate(path)}
        joins, leaves = [n] * len(times), [-1] * len(times)
        for v in reversed(problem.topological):
            joins[v] = place.get(v, min((joins[w] for w in problem.successors[v]), default=n))
        for v in problem.topological:
            leaves[v] = place.get(v, max((leaves[u] for u in problem.predecessors[v]), default=-1))
        along = list(accumulate((times[v] for v in path), initial=0))
        best: dict[int, tuple[int, int, int]] = {}
        for d in problem.dependences:
            u, v = d.producer, d.consumer
            if d.distance or u == v:
                continue
            held = min(d.bytes, self._output(u)) // self.unit
            length = max(0, along[leaves[v] + 1] - along[joins[u]]) + sum(times[w] for w in (u, v) if w not in place)
            best[u] = max(best.get(u, (0, 0, u)), (held * length, held, v))
        waiting, changes = [0] * len(times), [0] * (n + 1)
        for u, (_, held, v) in best.items():
            for w in {u, v} - place.keys():
                waiting[w] += held
            first, last = joins[u], leaves[v]
            if first <= last:
                changes[first] += held
                changes[last + 1] -= held
            else:  # the ends follow each other at once; on the path they would count above
                for w in {u, v} & place.keys():
                    waiting[w] += held
        for v, more in zip(path, accumulate(changes), strict=False):
            waiting[v] += more
        return waiting, [v not in best for v in range(len(times))]

    def _output(self, v: int) -> int:
        """The least bytes of the results of ``v`` on all of its accelerators together."""
        return min(k * c.output for k, c in self.problem.operations[v].table.items())

    # --- the inequality -----------------------------------------------------------------------

    def _row(self, item: tuple[int, ...], merged: Table, k: int) -> Row:
        area = waiting = time = 0
        for v in item:
            cost = self.problem.operations[v].table[k]
            held = k * (cost.workspace + (cost.output if self.alone[v] else 0)) // self.unit
            area += k * cost.time
            waiting += (self.waiting[v] + held) * cost.time
            time = max(time, cost.time) if self.problem.copies > 1 else time + cost.time
        return Row(area, waiting, k * merged[k].params // self.unit, time)

    def tight(self) -> bool:
        """Whether memory may matter: what waits, at the slowest allotments, and the most parameters do not fit."""
        low = max(1, area_bound(self.problem).value)
        most = sum(max(r.waiting for r in rows) + low * max(r.params for r in rows) for rows in self.rows)
        return most > low * self.room

    def excludes(self, period: int) -> bool:
        """Whether some multiplier shows that no schedule has this period; one that seems to is tried exactly."""
        longest = period * self.problem.copies
        if any(all(row.time > longest for row in rows) for rows in self.rows):
            return True
        bytes_ = self._bytes + float(period) * self._params
        area = np.where(self._time <= longest, self._area, np.inf)

        def lacking(power: float) -> float:
            """By how much the least left side exceeds the right one, as a part of it."""
            weight = exp(power)
            right = float(period) * (self.accelerators + weight * self.room)
            return float(np.minimum.reduceat(area + weight * bytes_, self._begins).sum()) / right

        low, high = log(1e-9 / self.unit), log(1e9)
        steps = STEPS
        if self._last is not None:
            low, high, steps = self._last - NEAR, self._last + NEAR, NEAR_STEPS
        power = _greatest(lacking, low, high, steps)
        self._last = power
        return self._proves(period, max(1, round(exp(power) * PARTS)))

    def _proves(self, period: int, weight: int) -> bool:
        """Whether the inequality fails with a multiplier of ``weight`` parts, in whole numbers."""
        longest = period * self.problem.copies
        left = sum(
            min(PARTS * r.area + weight * (r.waiting + period * r.params) for r in rows if r.time <= longest)
            for rows in self.rows
        )
        return left > period * (PARTS * self.accelerators + weight * self.room)


def _greatest(function: Callable[[float], float], low: float, high: float, steps: int) -> float:
    """Where a function with one peak is about greatest: golden section."""
    ratio = (5**0.5 - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(steps):
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
    return (low + high) / 2
