"""Phase 2: starts, once allotments and accelerator sets are known.

Two ways. *In order*: every accelerator runs its operations in one linear order inside a window no
longer than the period; the starts are the least solution of a system of difference constraints.
*From offsets*: each operation has an offset modulo the period; the starts are the least ones that
respect the offsets and the dependences (a longest path), which minimises latency for those offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

from passes.scheduling.data import InvalidProblem, Solution, Violation
from passes.scheduling.lifetimes import held_sets
from passes.scheduling.problem import PeriodicProblem, StagedProblem
from passes.scheduling.recurrence import back_edges, least_starts


def from_offsets(
    problem: PeriodicProblem, times: Sequence[int], offsets: Sequence[int], period: int, *, carried: bool = True
) -> tuple[int, ...]:
    """Least starts with ``start ≡ offset (mod period)`` that respect every dependence; the least start is 0.

    Without ``carried``, only those inside one micro-batch. Raises :class:`CycleTooLong` when
    values of earlier micro-batches cannot be there in time with these offsets.
    """
    back = back_edges(problem) if carried else []
    starts = least_starts(problem.topological, problem.predecessors, times, back, period, offsets)
    if starts is None:
        message = f"with these offsets a cycle of carried values takes longer than a period of {period} ns allows"
        raise CycleTooLong([Violation("recurrence", message)])
    first = min(starts, default=0)
    return tuple(s - first for s in starts)


class CycleTooLong(InvalidProblem):
    """The offsets leave a cycle of carried values too little time; another order or a longer period may not."""


class OrderedStarts:
    """Least starts for a fixed linear order of the operations of each accelerator, for any period.

    Operations with copies are given by the set of their first one: the others run the same line, some periods later.
    """

    def __init__(
        self,
        problem: PeriodicProblem,
        times: Sequence[int],
        sets: Sequence[tuple[int, ...]],
        order: Sequence[int],
        more: Mapping[int, Sequence[tuple[int, ...]]] = MappingProxyType({}),
    ):
        self.times, self.order = times, order
        position = {v: i for i, v in enumerate(order)}
        before: list[set[int]] = [set(p) for p in problem.predecessors]
        ends: dict[tuple[int, int, int], None] = {}
        self.load = 0
        for _, sharing in held_sets(sets):
            line = sorted(sharing, key=position.__getitem__)
            for u, v in pairwise(line):
                before[v].add(u)
            copies = 1 + len(more.get(line[0], ()))
            ends[line[-1], line[0], copies] = None
            self.load = max(self.load, -(-sum(times[v] for v in line) // copies))
        self.before = [tuple(b) for b in before]
        self.back = [*ends, *back_edges(problem)]

    def starts(self, period: int) -> list[int] | None:
        """The least starts, or None when this order needs a longer period.

        A window, from the first start of an accelerator to its last end, is a back edge of distance 1, or of
        as many periods as its operations have copies.
        """
        return least_starts(self.order, self.before, self.times, self.back, period)

    def least_period(self, high: int) -> tuple[int, list[int]] | None:
        """The least period of this order, at most ``high``, with its starts; None when ``high`` is too short."""
        low = max(1, self.load)
        best = self.starts(max(low, high))
        if best is None:
            return None
        high = max(low, high)
        while low < high:
            middle = (low + high) // 2
            try:
                trial = self.starts(middle)
            except KeyboardInterrupt:
                break  # what is known is a schedule
            if trial is None:
                low = middle + 1
            else:
                best, high = trial, middle
        return high, best


def windows(
    problem: PeriodicProblem,
    allotments: Sequence[int],
    sets: Sequence[tuple[int, ...]],
    order: Sequence[int],
    limit: int | None = None,
    more: Mapping[int, tuple[tuple[int, ...], ...]] = MappingProxyType({}),
) -> Solution | None:
    """The schedule of least period in which each accelerator runs its operations in ``order``, once a window.

    ``order`` is a topological order. ``more`` holds the sets of further copies: operations that meet on an
    accelerator have equally many, and meet in each. None when the period would be longer than ``limit``;
    without a limit there always is one, all operations one after another.
    """
    times = [o.table[k].time for o, k in zip(problem.operations, allotments, strict=True)]
    ordered = OrderedStarts(problem, times, sets, order, more)
    found = ordered.least_period(max(1, sum(times)) if limit is None else limit)
    if found is None or (limit is not None and found[0] > limit):
        return None
    period, starts = found
    first = min(starts, default=0)
    return Solution(period, tuple(allotments), tuple(sets), tuple(s - first for s in starts), dict(more))


Blocks = tuple[tuple[int, ...], ...]
"""The block that some operations use, or the two that they use together."""


def aligned(
    problem: StagedProblem, allotments: Sequence[int], sets: Sequence[tuple[int, ...]], order: Sequence[int]
) -> Solution | None:
    """A schedule whose period is the greatest block load, for any number of stages on each block.

    Operations of one block follow each other, and those shared by two blocks occupy both at the same
    offsets. With blocks as nodes and pairs that share operations as edges, a forest can always be
    aligned: rotate each block so that its part shared with its parent meets the parent's. None on a cycle,
    or when carried values would come too late.
    """
    times = [o.table[k].time for o, k in zip(problem.operations, allotments, strict=True)]
    segments: dict[tuple[Blocks, int], list[int]] = {}
    for v in order:
        uses = _uses(problem, v, sets[v])
        segments.setdefault((uses, problem.homes[v] if len(uses) == 1 else -1), []).append(v)
    lines: dict[tuple[int, ...], list[tuple[Blocks, list[int]]]] = {}
    for (uses, _), members in segments.items():
        for block in uses:
            lines.setdefault(block, []).append((uses, members))
    load = [sum(times[v] for _, members in line for v in members) for line in lines.values()]
    period = max(1, max(load, default=0))
    offsets: list[int] = [0] * len(times)
    tree: dict[tuple[int, ...], int] = {}
    for root in lines:
        if root not in tree and not _align(root, lines, times, offsets, tree):
            return None
    part = [0] * len(times)
    for (uses, _), members in segments.items():
        for v in members:
            part[v] = tree[uses[0]]
    try:
        starts = rotated(problem, times, offsets, part, period)
    except CycleTooLong:
        return None
    return Solution(period, tuple(allotments), tuple(sets), starts)


def _uses(problem: StagedProblem, v: int, members: tuple[int, ...]) -> Blocks:
    """The blocks that hold the accelerators of operation ``v``, in increasing order."""
    home = problem.blocks[problem.homes[v]]
    if v not in problem.shared or set(members) <= set(home):
        return (home,)
    other = problem.blocks[problem.shared[v]]
    return (other,) if set(members) <= set(other) else (min(home, other), max(home, other))


def _align(
    root: tuple[int, ...],
    lines: Mapping[tuple[int, ...], list[tuple[Blocks, list[int]]]],
    times: Sequence[int],
    offsets: list[int],
    tree: dict[tuple[int, ...], int],
) -> bool:
    """Give offsets to the tree of blocks that hangs on ``root``, and it a number; false when it is no tree.

    A block runs what it shares with its parent first, then the rest as ordered; ``clock`` is its time.
    """
    number = len(tree)
    queue: list[tuple[tuple[int, ...], tuple[int, ...] | None, int]] = [(root, None, 0)]
    for block, parent, clock in queue:  # grows while it is walked
        if block in tree:
            return False
        tree[block] = number
        clock += sum(times[v] for uses, members in lines[block] if parent in uses for v in members)
        for uses, members in lines[block]:
            if parent in uses:
                continue
            queue += [(other, block, clock) for other in uses if other != block]
            for v in members:
                offsets[v] = clock
                clock += times[v]
    return True


ROTATIONS = 200
"""Most rounds of :func:`rotated`; each settles at least one more part of a pipeline."""


def rotated(
    problem: PeriodicProblem, times: Sequence[int], offsets: list[int], part: Sequence[int], period: int
) -> tuple[int, ...]:
    """Rotate independent parts of the pattern so that they wait less for each other; the starts that result.

    Moving a whole part earlier keeps everything inside it; how far it may move is what its most urgent
    operation waits beyond the values it reads from other parts (or beyond 0, when it reads none).
    """
    for _ in range(max(10, min(ROTATIONS, 10**6 // max(1, len(times))))):
        starts = from_offsets(problem, times, offsets, period, carried=False)
        spare: dict[int, int] = {}
        for v, start in enumerate(starts):
            waits = [start - starts[u] - times[u] for u in problem.predecessors[v] if part[u] != part[v]]
            if not problem.predecessors[v]:
                waits.append(start)
            for wait in waits:
                spare[part[v]] = min(spare.get(part[v], wait), wait)
        if not any(spare.values()):
            break
        for v, own in enumerate(part):
            offsets[v] = (offsets[v] - spare.get(own, 0)) % period
    return from_offsets(problem, times, offsets, period)
