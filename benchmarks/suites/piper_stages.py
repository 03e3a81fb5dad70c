"""Contiguous stages under Piper's own rules of time and memory: its plans, to compare with and to begin from.

The stages that follow a stage decide how much it must keep, so the dynamic program goes from the last stage to the
first: the fewest accelerators that hold what comes from a position on, in a given number of stages. Each stage has
one degree of tensor parallelism; which of its operations recompute is a knapsack, solved by the pairs of time and
bytes that no other pair beats in both. With ``per_edge`` this is Piper's model without copies, over given orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.elementary import least
from passes.scheduling.network import NS
from passes.scheduling.orders import topological_orders
from suites.piper_model import Model, PiperLinks, Variant
from suites.piper_search import Placed

NEVER = 2**60
Costs = NDArray[np.int64]


def contiguous(model: Model) -> Placed | None:
    """The contiguous stages of least period over the usual topological orders; None where none fit in memory."""
    best: Placed | None = None
    for order in topological_orders(model.problem):
        found = _Line(model, order).best()
        if found is not None and (best is None or found.period < best.period):
            best = found
    return best


class _Line:
    def __init__(self, model: Model, order: Sequence[int]):
        self.model, self.order, self.n = model, order, len(order)
        self.count = model.problem.accelerators
        self.widths = sorted(k for k in {k for table in model.variants for k in table} if k <= self.count)
        self.depth = self.count if model.memory else 1
        copies = [self._copies(width) for width in self.widths]
        self.costs: list[list[Costs]] = []  # by stages from this one to the last, and width
        for y in range(1, self.depth + 1):
            self.costs.append([self._times(k, y) + c for k, c in zip(self.widths, copies, strict=True)])

    def _copies(self, width: int) -> Costs:
        """Time of the copies that enter and leave each stage, both ends at this width."""
        network = self.model.problem.network
        assert isinstance(network, PiperLinks)
        position = {v: i for i, v in enumerate(self.order)}
        found = np.zeros((self.n + 1, self.n + 1), dtype=np.int64)
        values: dict[object, list[tuple[int, int, tuple[int, int]]]] = {}
        for d in self.model.problem.dependences:
            edge = (position[d.producer], position[d.consumer], network.ends(d, width, width))
            values.setdefault(network.key(d, ()), []).append(edge)
        for i in range(self.n):
            for j in range(i + 1, self.n + 1):
                for edges in values.values():
                    out = [s for u, v, (s, _) in edges if i <= u < j <= v]
                    into = [r for u, v, (_, r) in edges if u < i <= v < j]
                    found[i, j] += max(out, default=0) + max(into, default=0)
        return found

    def _times(self, width: int, y: int) -> Costs:
        found = np.full((self.n + 1, self.n + 1), NEVER, dtype=np.int64)
        for i in range(self.n):
            pairs: list[tuple[int, int]] = [(0, 0)]
            for j in range(i, self.n):
                pairs = self._pareto(pairs, self.model.variants[self.order[j]][width], y)
                if not pairs:
                    break
                found[i, j + 1] = pairs[0][0]
        return found

    def _pareto(self, pairs: Sequence[tuple[int, int]], variants: Sequence[Variant], y: int) -> list[tuple[int, int]]:
        """The pairs of time and bytes of one operation more that fit and that no other beats, shortest first."""
        room = self.model.memory or NEVER
        grown = sorted((t + x.time, b + x.live * y + x.fixed) for t, b in pairs for x in variants)
        kept: list[tuple[int, int]] = []
        for t, b in grown:
            if b <= room and (not kept or b < kept[-1][1]):
                kept.append((t, b))
        return kept if self.model.memory else kept[:1]

    def _layers(self, period: int) -> list[Costs]:
        """By number of stages: fewest accelerators from each position to the end."""
        never = self.count + 1
        layers = [np.full(self.n + 1, never, dtype=np.int64)]
        layers[0][self.n] = 0
        for y in range(1, min(self.n, self.count) + 1):
            now = np.full(self.n + 1, never, dtype=np.int64)
            for width, costs in zip(self.widths, self.costs[min(y, self.depth) - 1], strict=True):
                need = np.where(costs <= period, layers[-1][None, :] + width, never)
                now = np.minimum(now, need.min(axis=1))
            layers.append(now)
            if now[0] <= self.count:
                break
        return layers

    def best(self) -> Placed | None:
        """The plan of least period."""
        high = int(max(c[c < NEVER // 2].max(initial=0) for of in self.costs for c in of))
        if self._layers(high)[-1][0] > self.count:
            return None
        period = least(1, high, lambda t: bool(self._layers(t)[-1][0] <= self.count))
        layers = self._layers(period)
        stages: list[tuple[int, int, int, list[Variant]]] = []
        begin, longest = 0, 0
        for y in range(len(layers) - 1, 0, -1):
            width, end = self._stage(layers, y, begin, period)
            costs = self.costs[min(y, self.depth) - 1][self.widths.index(width)]
            longest = max(longest, int(costs[begin, end]))
            stages.append((width, begin, end, self._variants(begin, end, width, y)))
            begin = end
        return self._placed(stages, longest)

    def _placed(self, stages: Sequence[tuple[int, int, int, list[Variant]]], period: int) -> Placed:
        """Stages of given widths, operations and variants on aligned blocks: widest first."""
        sets: dict[int, tuple[int, ...]] = {}
        chosen: dict[int, Variant] = {}
        place = 0
        for width, begin, end, variants in sorted(stages, key=lambda stage: -stage[0]):
            for v, variant in zip(self.order[begin:end], variants, strict=True):
                sets[v], chosen[v] = tuple(range(place, place + width)), variant
            place += width
        return Placed(tuple(sets[v] for v in range(self.n)), tuple(chosen[v] for v in range(self.n)), period)

    def _stage(self, layers: Sequence[Costs], y: int, begin: int, period: int) -> tuple[int, int]:
        need = int(layers[y][begin])
        for width, costs in zip(self.widths, self.costs[min(y, self.depth) - 1], strict=True):
            ends: Any = np.flatnonzero((costs[begin] <= period) & (layers[y - 1] + width == need))
            if len(ends):
                return width, int(ends[0])
        raise AssertionError("a number of accelerators without a stage that explains it")

    def _variants(self, begin: int, end: int, width: int, y: int) -> list[Variant]:
        """The fastest variants that fit together."""
        found: list[tuple[int, int, tuple[Variant, ...]]] = [(0, 0, ())]
        room = self.model.memory or NEVER
        for v in self.order[begin:end]:
            grown = sorted(
                ((t + x.time, b + x.live * y + x.fixed, (*of, x)) for t, b, of in found for x in self._of(v, width)),
                key=lambda entry: entry[:2],
            )
            found = []
            for entry in grown:
                if entry[1] <= room and (not found or entry[1] < found[-1][1]):
                    found.append(entry)
        return list(found[0][2])

    def _of(self, v: int, width: int) -> Sequence[Variant]:
        return self.model.variants[v][width]


# --- copies --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copied:
    """The copies of each stage, and the period, ns."""

    copies: tuple[int, ...]
    period: int


def replicated(model: Model, bandwidth: int, batch: int) -> Copied | None:
    """Contiguous stages in copies by Piper's rules, of least period; None where none fit in memory.

    With ``d`` copies a stage takes the ``d``-th part of its time, and ``4·(d-1)/d`` of its parameters pass its links
    (``bandwidth`` bytes/s) once in a ``batch`` of micro-batches. It keeps what ``ceil(Y/d)`` micro-batches leave, where
    ``Y`` are the copies of all stages from it to the last.
    """
    best: Copied | None = None
    for order in topological_orders(model.problem):
        found = _Copies(model, order, bandwidth, batch).shortest(NEVER if best is None else best.period - 1)
        best = best if found is None else found
    return best


class _Copies(_Line):
    """A line whose stages have copies; :attr:`depth` counts those of all stages from one to the last."""

    def __init__(self, model: Model, order: Sequence[int], bandwidth: int, batch: int):
        super().__init__(model, order)
        self.known: dict[tuple[int, int, int], Costs] = {}
        self.sync: list[Costs] = []
        for width in self.widths:
            sums = np.array([0, *accumulate(model.params[v][width] for v in order)], dtype=object)
            self.sync.append((4 * NS * (sums[None, :] - sums[:, None]) // (batch * bandwidth)).astype(np.int64))

    def _time(self, number: int, copies: int, total: int) -> Costs:
        """What each stage of so many copies takes when it and those after it have ``total`` copies."""
        key = (number, copies, -(-total // copies) if self.model.memory else 1)
        if key not in self.known:
            one = self.costs[key[2] - 1][number]
            self.known[key] = -(-one // copies) + self.sync[number] * (copies - 1) // copies
        return self.known[key]

    def _shapes(self, total: int) -> Iterator[tuple[int, int, int]]:
        """Numbers of a width and of copies that a stage may have, and the accelerators that those take."""
        for copies in range(1, total + 1):
            for number, width in enumerate(self.widths):
                if copies * width <= self.count:
                    yield number, copies, copies * width

    def _by_copies(self, period: int) -> list[Costs]:
        """By number of copies in all: fewest accelerators from each position to the end."""
        never = self.count + 1
        layers = [np.full(self.n + 1, never, dtype=np.int64)]
        layers[0][self.n] = 0
        for total in range(1, self.count + 1):
            now = np.full(self.n + 1, never, dtype=np.int64)
            for number, copies, wide in self._shapes(total):
                before = layers[total - copies]
                good = (self._time(number, copies, total) <= period) & (before <= self.count - wide)[None, :]
                now = np.minimum(now, np.where(good, before[None, :] + wide, never).min(axis=1))
            layers.append(now)
            if now[0] <= self.count:
                break
        return layers

    def shortest(self, limit: int) -> Copied | None:
        """The plan of least period, at most ``limit``."""
        high = min(limit, int(max(c[c < NEVER // 2].max(initial=0) for of in self.costs for c in of)))
        if self._by_copies(high)[-1][0] > self.count:
            return None
        period = least(1, high, lambda t: bool(self._by_copies(t)[-1][0] <= self.count))
        layers = self._by_copies(period)
        found: list[int] = []
        begin, total = 0, len(layers) - 1
        while total:
            begin, copies = self._next(layers, begin, total, period)
            found.append(copies)
            total -= copies
        return Copied(tuple(found), period)

    def _next(self, layers: Sequence[Costs], begin: int, total: int, period: int) -> tuple[int, int]:
        for number, copies, wide in self._shapes(total):
            good = self._time(number, copies, total)[begin] <= period
            ends: Any = np.flatnonzero(good & (layers[total - copies] + wide == layers[total][begin]))
            if len(ends):
                return int(ends[0]), copies
        raise AssertionError("a number of accelerators without a stage that explains it")
