"""Orders by list scheduling: a rank that is free takes the most urgent cell that has arrived and fits its memory.

``I`` goes before ``F`` before ``W``: gradients of inputs keep the ranks before busy, those of weights wait for gaps.
Micro-batches are alike, so that every stage takes them in turn. Only a few decisions are open, and those are the
:class:`Policy`: list scheduling is far from optimal for some of them and close to it for others.

Memory cannot block: a rank that holds several stages keeps back what the oldest micro-batch that is not yet at the last
stage still has to fill on it. Whatever is wholly forward can be worked off without more memory, and then the next
micro-batch, which is ahead of all others at every stage, finds at least what the one before needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from passes.scheduling.steps.cells import Cell, Kind, Line, Spans

NEVER = 1 << 62


@dataclass(frozen=True)
class Policy:
    """What list scheduling leaves open."""

    patience: float = 0.0
    """Part of a ``W`` by which it must not make an ``I`` or ``F`` late that is on its way: from 0, whatever is ready
    begins, to 1, nothing is made late."""
    waiting: float = 0.0
    """The same for ``F`` and an ``I`` on its way."""
    allowance: int | None = None
    """How long a rank may have been idle in all, ns, when it waits for the sake of either; None: for ever."""
    leads: Sequence[int] | None = None
    """By stage, the most micro-batches that are forward and not back; None: what fits."""
    backlog: int | None = None
    """``W`` goes first when more than so many wait on a rank; None: any number waits."""
    deep: bool = True
    """Of several stages on a rank, ``F`` of the last goes first; else ``F`` of the oldest arrival."""


@dataclass(frozen=True)
class Listed(Spans):
    """Orders of ``F``, ``I`` and ``W``, with the spans of the ranks."""

    orders: tuple[tuple[Cell, ...], ...]


class _List:
    """List scheduling at work: what has arrived at each stage, what each rank holds, and what happens when."""

    def __init__(self, line: Line, microbatches: int, limits: Sequence[int] | None, policy: Policy):
        stages, ranks = line.stages, line.ranks
        self.line, self.microbatches, self.policy = line, microbatches, policy
        self.on = [[s for s, stage in enumerate(stages) if stage.rank == rank] for rank in range(ranks)]
        self.limits = [NEVER] * ranks if limits is None else list(limits)
        self.forwards: list[list[int]] = [[] for _ in stages]
        """When what ``F`` of a stage reads arrives, a micro-batch after the other."""
        self.forwards[0] = [0] * microbatches
        self.backwards: list[list[int]] = [[] for _ in stages]
        self.f, self.i, self.w = [0] * len(stages), [0] * len(stages), [0] * len(stages)
        """Cells begun, by stage."""
        self.begun: dict[Kind, list[int]] = {"F": self.f, "I": self.i, "W": self.w}
        self.times = {kind: [stage.time(kind) for stage in stages] for kind in self.begun}
        self.changes = {kind: [stage.change(kind) for stage in stages] for kind in self.begun}
        self.held, self.waiting = [0] * ranks, [0] * ranks
        """Bytes, and ``I`` without their ``W``."""
        self.free = [0] * ranks
        self.orders: list[list[Cell]] = [[] for _ in range(ranks)]
        self.first = [NEVER] * ranks
        self.worked = [0] * ranks
        self.events: list[tuple[int, int]] = [(0, rank) for rank in range(ranks)]

    def work(self) -> Listed:
        events, free = self.events, self.free
        while events:
            now, rank = heappop(events)
            if free[rank] <= now:
                self._decide(rank, now)
        return Listed(tuple(self.first), tuple(self.free), tuple(map(tuple, self.orders)))

    def _decide(self, rank: int, now: int) -> None:
        """Begin what is most urgent, or wait for what is on its way."""
        policy, stages = self.policy, self.line.stages
        if policy.backlog is not None and self.waiting[rank] > policy.backlog:
            return self._begin("W", self._oldest(rank), now)
        back, coming = self._backward(rank, now)
        if back >= 0:
            return self._begin("I", back, now)
        ahead, later = self._forward(rank, now)
        until = coming if ahead >= 0 else min(coming, later)
        if policy.allowance is not None and until - self.first[rank] - self.worked[rank] > policy.allowance:
            until = NEVER
        if ahead >= 0 and now + policy.waiting * stages[ahead].forward <= until:
            return self._begin("F", ahead, now)
        if self.waiting[rank]:
            s = self._oldest(rank)
            if now + policy.patience * stages[s].weights <= until:
                self._begin("W", s, now)

    def _backward(self, rank: int, now: int) -> tuple[int, int]:
        """The stage whose ``I`` can begin, or -1, and when the next one arrives, as far as that is known."""
        coming = NEVER
        for s in reversed(self.on[rank]):
            arrivals = self.backwards[s]
            if self.i[s] < len(arrivals):
                if arrivals[self.i[s]] <= now:
                    return s, now
                coming = min(coming, arrivals[self.i[s]])
        return -1, coming

    def _forward(self, rank: int, now: int) -> tuple[int, int]:
        """The stage whose ``F`` can begin, or -1, and when the next one that has room arrives."""
        chosen, best, later = -1, NEVER, NEVER
        for s in reversed(self.on[rank]):
            arrivals, i = self.forwards[s], self.f[s]
            if i == len(arrivals) or not self._admits(rank, s, i):
                continue
            if arrivals[i] > now:
                later = min(later, arrivals[i])
            elif self.policy.deep:
                return s, now
            elif arrivals[i] < best:
                chosen, best = s, arrivals[i]
        return chosen, later

    def _admits(self, rank: int, s: int, i: int) -> bool:
        """Whether there is room for ``F`` of micro-batch ``i``."""
        if self.policy.leads is not None and i - self.i[s] >= self.policy.leads[s]:
            return False
        stages = self.line.stages
        if self.held[rank] + stages[s].activation > self.limits[rank]:
            return False
        oldest = self.f[-1]
        if i == oldest or len(self.on[rank]) == 1:
            return True
        reserved = sum(stages[t].activation * max(1, self.f[t] - oldest) for t in self.on[rank])
        return reserved + stages[s].activation <= self.limits[rank]

    def _oldest(self, rank: int) -> int:
        """The stage whose ``W`` has waited longest."""
        return min((s for s in self.on[rank] if self.w[s] < self.i[s]), key=lambda s: (self.w[s], -s))

    def _begin(self, kind: Kind, s: int, now: int) -> None:
        stages = self.line.stages
        rank = stages[s].rank
        end = now + self.times[kind][s]
        begun = self.begun[kind]
        self.orders[rank].append(Cell(kind, s, begun[s]))
        begun[s] += 1
        self.held[rank] += self.changes[kind][s]
        self.first[rank] = min(self.first[rank], now)
        self.free[rank] = end
        self.worked[rank] += end - now
        heappush(self.events, (end, rank))
        if kind == "W":
            self.waiting[rank] -= 1
            return
        if kind == "I":
            self.waiting[rank] += 1
            if s:
                self._arrive(self.backwards[s - 1], s, s - 1, end)
        elif s + 1 < len(stages):
            self._arrive(self.forwards[s + 1], s, s + 1, end)
        else:
            self.backwards[s].append(end)

    def _arrive(self, arrivals: list[int], source: int, target: int, end: int) -> None:
        at = end + self.line.lag(source, target)
        arrivals.append(at)
        heappush(self.events, (at, self.line.stages[target].rank))


def listed(line: Line, microbatches: int, limits: Sequence[int] | None, policy: Policy) -> Listed:
    """Orders of a step by list scheduling."""
    return _List(line, microbatches, limits, policy).work()
