"""Plans that people use, computed on the same tables, to compare with. They are no part of the product.

Each takes a problem and gives a verified schedule: the stages are decided here, the starts by the same
code as for our own plans.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from passes.scheduling.budget import Budget
from passes.scheduling.data import Solution
from passes.scheduling.elementary import area_bound, least
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.problem import MemoryProblem
from suites.plans import Plan

NEVER = 1 << 60


def fastest(problem: MemoryProblem, width: int) -> list[int] | None:
    """Time of each operation at its fastest allotment of at most ``width``; None when one has none."""
    known: dict[int, int] = {}
    for table in (o.table for o in problem.operations):
        if id(table) not in known:
            known[id(table)] = min((c.time for k, c in table.items() if k <= width), default=NEVER)
    times = [known[id(o.table)] for o in problem.operations]
    return None if NEVER in times else times


def widths_of(problem: MemoryProblem) -> list[int]:
    """The allotments that occur and whose multiples fill the platform."""
    allotments = {k for o in problem.operations for k in o.table}
    return sorted(k for k in allotments if problem.accelerators % k == 0)


def equal_blocks(count: int, width: int) -> list[tuple[int, ...]]:
    """``count`` blocks of ``width`` neighbours."""
    return [tuple(range(i * width, (i + 1) * width)) for i in range(count)]


def layer_of(names: Sequence[str]) -> list[int]:
    """The number of the layer of each operation: the first number in its name; what has none joins its neighbour.

    What comes before the first layer belongs to it, and what comes after the last to that.
    """
    layers: list[int] = []
    for name in names:
        found = re.search(r"\d+(?=\.)", name)
        layers.append(int(found.group()) if found else (layers[-1] if layers else 0))
    return layers


def equal_layers(problem: MemoryProblem, budget: Budget) -> Solution | None:
    """As many layers on each stage, one tensor-parallel degree for all: Megatron's rule, at its best degree."""
    layers = layer_of([o.name for o in problem.operations])
    count = len(set(layers))
    rank = {layer: i for i, layer in enumerate(sorted(set(layers)))}
    best: tuple[int, int, list[int]] | None = None
    for width in widths_of(problem):
        times = fastest(problem, width)
        if times is None:
            continue
        depth = min(problem.accelerators // width, count)
        homes = [rank[layer] * depth // count for layer in layers]
        load = [0] * depth
        for home, time in zip(homes, times, strict=True):
            load[home] += time
        if best is None or max(load) < best[0]:
            best = (max(load), width, homes)
    if best is None:
        return None
    _, width, homes = best
    return schedule_blocks(problem.staged(equal_blocks(max(homes) + 1, width), homes))[0]


def _cut(prefix: Sequence[int], stages: int, period: int) -> list[int] | None:
    """Ends of the fewest ranges of load at most ``period``, when ``stages`` are enough."""
    ends: list[int] = []
    at = 0
    while at < len(prefix) - 1:
        if len(ends) == stages:
            return None
        to = bisect_right(prefix, prefix[at] + period) - 1
        if to == at:
            return None
        ends.append(to)
        at = to
    return ends


def uniform(problem: MemoryProblem, budget: Budget) -> Solution | None:
    """Contiguous stages of equal width, cut anywhere, at the best width (1F1B* where the width is one)."""
    order = problem.topological
    best: tuple[int, int, list[int]] | None = None
    for width in widths_of(problem):
        times = fastest(problem, width)
        if times is None:
            continue
        depth = problem.accelerators // width
        prefix = list(accumulate((times[v] for v in order), initial=0))
        period = least(1, prefix[-1], lambda t, p=prefix, d=depth: _cut(p, d, t) is not None)
        if best is None or period < best[0]:
            best = (period, width, _cut(prefix, depth, period) or [])
    if best is None:
        return None
    _, width, ends = best
    homes = [0] * len(order)
    for position, v in enumerate(order):
        homes[v] = bisect_right(ends, position)
    return schedule_blocks(problem.staged(equal_blocks(len(ends), width), homes))[0]


Ranges = list[tuple[int, int, bool]]
"""Begin, end, and whether the special accelerator runs it."""


def _special(prefix: Sequence[int], normal: int, period: int) -> Ranges | None:
    """Ranges for ``normal`` accelerators with one each and a special one with the rest; None when too much is left.

    ``rest[i]`` is the least load of the special accelerator when the first i operations are covered.
    """
    n = len(prefix) - 1
    first = [bisect_left(prefix, prefix[i] - period) for i in range(n + 1)]
    rest = list(prefix)
    taken: list[list[bool]] = []
    for _ in range(normal):
        before, rest, here = rest, [0] * (n + 1), [False] * (n + 1)
        for i in range(1, n + 1):
            by_special = rest[i - 1] + prefix[i] - prefix[i - 1]
            here[i] = before[first[i]] < by_special
            rest[i] = before[first[i]] if here[i] else by_special
        taken.append(here)
    if rest[n] > period:
        return None
    ranges: Ranges = []
    i, level = n, normal
    while i:
        if level and taken[level - 1][i]:
            ranges.append((first[i], i, False))
            i, level = first[i], level - 1
        elif ranges and ranges[-1][2] and ranges[-1][0] == i:
            ranges[-1] = (i - 1, ranges[-1][1], True)
            i -= 1
        else:
            ranges.append((i - 1, i, True))
            i -= 1
    return ranges[::-1]


def one_special(problem: MemoryProblem, budget: Budget) -> Solution | None:
    """Contiguous stages of equal width but one block that may have several ranges, after MadPipe.

    Beaumont, Eyraud-Dubois and Shilova, "MadPipe: memory aware dynamic programming algorithm for pipelined
    model parallelism" (2022); memory and communication are left out. Least period for the best width.
    """
    order = problem.topological
    best: tuple[int, int, Ranges] | None = None
    for width in widths_of(problem):
        times = fastest(problem, width)
        depth = problem.accelerators // width
        if times is None or (best is not None and budget.spent()):
            continue
        prefix = list(accumulate((times[v] for v in order), initial=0))
        low, high = max(max(times, default=1), prefix[-1] // depth, 1), prefix[-1]
        if best is not None and low >= best[0]:
            continue
        while high - low > low // 2000:
            middle = (low + high) // 2
            low, high = (low, middle) if _special(prefix, depth - 1, middle) is not None else (middle + 1, high)
        found = _special(prefix, depth - 1, high)
        if found is not None and (best is None or high < best[0]):
            best = (high, width, found)
    if best is None:
        return None
    _, width, ranges = best
    blocks: list[tuple[int, ...]] = []
    homes = [0] * len(order)
    plain = equal_blocks(problem.accelerators // width, width)
    others = iter(plain[1:])
    for number, (begin, end, special) in enumerate(ranges):
        blocks.append(plain[0] if special else next(others))
        for position in range(begin, end):
            homes[order[position]] = number
    return schedule_blocks(problem.staged(blocks, homes))[0]


class Reservations:
    """What each accelerator runs in one period: sorted begins and ends, none of them wrapping."""

    def __init__(self, accelerators: int, period: int):
        self.period = period
        self.busy: list[list[tuple[int, int]]] = [[] for _ in range(accelerators)]

    def earliest(self, members: Sequence[int], ready: int, time: int) -> int | None:
        """The earliest start from ``ready`` on where all ``members`` are free for ``time``."""
        start = ready
        while start < ready + self.period:
            clash = max((self._clash(p, start % self.period, time) for p in members), default=0)
            if not clash:
                return start
            start += clash
        return None

    def _clash(self, p: int, at: int, time: int) -> int:
        """How much later a run of ``time`` must at least start that would start at ``at``; 0 when it is free."""
        for begin, end in self.busy[p]:
            if begin < at + time and at < end:
                return end - at
            if begin + self.period < at + time:
                return end + self.period - at
        return 0

    def take(self, members: Sequence[int], start: int, time: int) -> None:
        """Reserve a run."""
        at = start % self.period
        for p in members:
            runs = [(at, min(at + time, self.period))]
            if at + time > self.period:
                runs.append((0, at + time - self.period))
            self.busy[p] = sorted([*self.busy[p], *runs])


def _list_schedule(problem: MemoryProblem, period: int) -> Solution | None:
    """Operations in topological order at their cheapest allotment, each where it can start first."""
    n = len(problem.operations)
    table = Reservations(problem.accelerators, period)
    allotments, starts = [0] * n, [0] * n
    sets: list[tuple[int, ...]] = [()] * n
    for v in problem.topological:
        columns = problem.operations[v].table
        usable = [k for k, c in columns.items() if c.time <= period and k <= problem.accelerators]
        if not usable:
            return None
        k = min(usable, key=lambda k: (k * columns[k].time, k))
        time = columns[k].time
        ready = max(
            (starts[u] + problem.operations[u].table[allotments[u]].time for u in problem.predecessors[v]), default=0
        )
        best: tuple[int, tuple[int, ...]] | None = None
        for block in equal_blocks(problem.accelerators // k, k):
            start = table.earliest(block, ready, time)
            if start is not None and (best is None or start < best[0]):
                best = (start, block)
                if start == ready:
                    break
        if best is None:
            return None
        starts[v], sets[v], allotments[v] = best[0], best[1], k
        if time:
            table.take(best[1], best[0], time)
    origin = min(starts, default=0)
    return Solution(period, tuple(allotments), tuple(sets), tuple(s - origin for s in starts))


def list_schedule(problem: MemoryProblem, budget: Budget) -> Solution | None:
    """List scheduling on a reservation table of one period; the period grows by 2 % until everything fits."""
    period = area_bound(problem).value
    for _ in range(200):
        found = _list_schedule(problem, period)
        if found is not None or budget.spent():
            return found
        period += max(1, period // 50)
    return None


BASELINES: dict[str, Plan] = {
    "equal layers, one degree (Megatron)": equal_layers,
    "equal widths, cut anywhere": uniform,
    "equal widths and one special (MadPipe)": one_special,
    "list scheduling, modulo the period": list_schedule,
}
