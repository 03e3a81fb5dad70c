"""How long a training step takes at least, whatever the order, within the memory of the ranks.

Micro-batches are alike, and so are counted: let *the i-th* ``F`` of a stage be the one that begins as the i-th, of
whatever micro-batch. It cannot begin before the i-th of the stage before has ended, and so on through the line. Where
``k`` micro-batches fit, the i-th ``F`` cannot begin before the ``I`` number ``i - k`` has ended. So every cell gets a
*head*, before which it cannot begin, and a *tail*, time that must follow its end. On each rank, the preemptive
schedule of its cells with these (J. R. Jackson, 1955; Carlier, EJOR 11, 1982) is never longer than the true one.

For the span of a rank heads count from its own first start and tails to its own last end. The ranks before have
their place in that, since they let go of memory, and hand on the next micro-batch, only after the rank's own ``I``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Literal

from passes.scheduling.steps.cells import Line

Objective = Literal["span", "makespan"]

NO = -(1 << 60)
"""A head or tail of which nothing is known."""

Times = list[list[int]]
"""By stage and number."""


def step_bound(line: Line, microbatches: int, limits: Sequence[int] | None, objective: Objective = "makespan") -> int:
    """A time, ns, below which no orders of the step come with at most ``limits`` bytes on the ranks."""
    return max(rank_bounds(line, microbatches, limits, objective, range(line.ranks)))


def rank_bounds(
    line: Line, microbatches: int, limits: Sequence[int] | None, objective: Objective, ranks: Iterable[int]
) -> list[int]:
    """The bounds that some of the ranks give: each on the end of all, or on its own span."""
    room = _Room(line, microbatches, limits)
    if objective == "makespan":
        heads, tails = room.heads(None), room.tails(None)
        return [preemptive(room.cells(rank, heads, tails)) for rank in ranks]
    return [preemptive(room.cells(rank, room.heads(rank), room.tails(rank))) for rank in ranks]


def preemptive(cells: Iterable[tuple[int, int, int]]) -> int:
    """The least end, tails included, of cells ``(head, time, tail)`` on a rank that may interrupt them."""
    coming = sorted(cells)
    waiting: list[tuple[int, int]] = []
    now = end = at = 0
    while waiting or at < len(coming):
        if not waiting:
            now = max(now, coming[at][0])
        while at < len(coming) and coming[at][0] <= now:
            _, time, tail = coming[at]
            heappush(waiting, (-tail, time))
            at += 1
        tail, time = heappop(waiting)
        until = coming[at][0] if at < len(coming) else now + time
        if now + time <= until:
            now += time
            end = max(end, now - tail)
        else:
            heappush(waiting, (tail, time - (until - now)))
            now = until
    return end


class _Room:
    """A line with the memory of its ranks counted in micro-batches."""

    def __init__(self, line: Line, microbatches: int, limits: Sequence[int] | None):
        self.line, self.m = line, microbatches
        self.on: list[list[int]] = [[] for _ in range(line.ranks)]
        for s, stage in enumerate(line.stages):
            self.on[stage.rank].append(s)
        self.limits = limits
        self.fits = [{t: self._fit(s, t) for t in self.on[stage.rank] if t <= s} for s, stage in enumerate(line.stages)]
        """How many micro-batches can be forward at a stage and not back at one of its rank up to it."""
        numbers = range(len(line.stages))
        self.delays = [0] + [line.lag(s - 1, s) for s in numbers[1:]]
        self.worked = [[self._worked(s, i) for i in range(self.m)] for s in numbers]
        self.releases = [[self._releases(s, i) for i in range(self.m)] for s in numbers]

    def _fit(self, s: int, t: int) -> int:
        """One that fills all stages of the rank up to ``s``, and others that fill those up to ``t``."""
        stages = self.line.stages
        on = self.on[stages[s].rank]
        one, other = (sum(stages[u].activation for u in on if u <= to) for to in (s, t))
        if self.limits is None or not other:
            return self.m
        return max(0, 1 + (self.limits[stages[s].rank] - one) // other)

    def _weights(self, s: int, forwards: int, back: int) -> int:
        """How many ``W`` must have ended when so many ``F`` have begun and ``I`` ended; -1: no number will do."""
        stage = self.line.stages[s]
        if self.limits is None or len(self.on[stage.rank]) > 1:
            return 0
        kept = min(stage.kept, stage.activation)
        need = forwards * stage.activation - back * (stage.activation - kept) - self.limits[stage.rank]
        if need <= 0:
            return 0
        return -(-need // kept) if kept and need <= back * kept else -1

    def heads(self, origin: int | None) -> tuple[Times, Times]:
        """When the i-th ``F`` and ``I`` of each stage can begin, from 0, or from the first start of rank ``origin``."""
        stages, last = self.line.stages, len(self.line.stages) - 1
        forwards: Times = [[NO] * self.m for _ in stages]
        backwards: Times = [[NO] * self.m for _ in stages]
        source = 0 if origin is None else self.on[origin][0]
        for i in range(self.m):
            for s, stage in enumerate(stages):
                head = 0 if s == source else NO
                if s:
                    head = max(head, forwards[s - 1][i] + stages[s - 1].forward + self.delays[s])
                if i:
                    head = max(head, forwards[s][i - 1] + stage.forward)
                for t, fit in self.fits[s].items():
                    if i >= fit:
                        ended = backwards[t][i - fit] + stages[t].inputs
                        head = max(head, ended if t < s else self._released(s, i, forwards, backwards))
                forwards[s][i] = head
            for s in range(last, -1, -1):
                if s < last:
                    head = backwards[s + 1][i] + stages[s + 1].inputs + self.delays[s + 1]
                else:
                    head = forwards[s][i] + stages[s].forward
                if i:
                    head = max(head, backwards[s][i - 1] + stages[s].inputs)
                backwards[s][i] = max(head, forwards[self.on[stages[s].rank][0]][0] + self.worked[s][i])
        return forwards, backwards

    def _released(self, s: int, i: int, forwards: Times, backwards: Times) -> int:
        """When memory allows the i-th ``F`` of a stage: the more ``I`` have ended, the fewer ``W`` must have."""
        stages = self.line.stages
        on, starts, best = self.on[stages[s].rank], backwards[s], -NO
        time, begun = stages[s].inputs, forwards[on[0]][0]
        for back, weights, then, work in self.releases[s][i]:
            ended = starts[back - 1] + time
            if ended >= best:
                break
            if weights:
                ended = max(ended, starts[weights - 1] + then)
            best = min(best, max(ended, begun + work))
        return best

    def _releases(self, s: int, i: int) -> list[tuple[int, int, int, int]]:
        """How many ``I`` and ``W`` may have ended before the i-th ``F``, and work up to then.

        Where ``w`` of ``W`` have ended, the last of them began after ``w`` of ``I``. Third comes what the rank works
        from the start of that ``I`` on, fourth what it works in all.
        """
        stage = self.line.stages[s]
        releases: list[tuple[int, int, int, int]] = []
        for back in range(max(1, i + 1 - self.fits[s][s]), i + 1):
            weights = self._weights(s, i + 1, back)
            if weights >= 0:
                then = (back - weights + 1) * stage.inputs + stage.weights
                work = i * stage.forward + back * stage.inputs + weights * stage.weights
                releases.append((back, weights, then, work))
                if weights == 0:
                    break
        return releases

    def _worked(self, s: int, i: int) -> int:
        """What a rank must have worked before the i-th ``I`` of a stage."""
        stages = self.line.stages
        work = i * stages[s].inputs + max(0, self._weights(s, i + 1, i)) * stages[s].weights
        for t in self.on[stages[s].rank]:
            work += (i + 1) * (stages[t].forward + (stages[t].inputs if t > s else 0))
        return work

    def tails(self, origin: int | None) -> tuple[Times, Times]:
        """What must follow the end of the i-th ``F`` and ``I``, to the end of all or to that of rank ``origin``."""
        stages, m = self.line.stages, self.m
        forwards: Times = [[NO] * m for _ in stages]
        backwards: Times = [[NO] * m for _ in stages]
        for i in range(m - 1, -1, -1):
            left = m - 1 - i
            for s, stage in enumerate(stages):
                counts = origin is None or stage.rank == origin
                tail = left * stage.inputs + (left + 1) * stage.weights if counts else NO
                if s:
                    tail = max(tail, backwards[s - 1][i] + stages[s - 1].inputs + self.delays[s])
                if left:
                    tail = max(tail, backwards[s][i + 1] + stage.inputs)
                for t in self.on[stage.rank]:
                    if t >= s and i + self.fits[t][s] < m:
                        tail = max(tail, forwards[t][i + self.fits[t][s]] + stages[t].forward)
                backwards[s][i] = tail
            for s in range(len(stages) - 1, -1, -1):
                stage = stages[s]
                counts = origin is None or stage.rank == origin
                tail = left * stage.forward + (left + 1) * (stage.inputs + stage.weights) if counts else NO
                if s + 1 < len(stages):
                    tail = max(tail, forwards[s + 1][i] + stages[s + 1].forward + self.delays[s + 1])
                else:
                    tail = max(tail, backwards[s][i] + stage.inputs)
                if left:
                    tail = max(tail, forwards[s][i + 1] + stage.forward)
                forwards[s][i] = tail
        return forwards, backwards

    def cells(self, rank: int, heads: tuple[Times, Times], tails: tuple[Times, Times]) -> list[tuple[int, int, int]]:
        """Head, time and tail of all cells of a rank."""
        cells: list[tuple[int, int, int]] = []
        for s in self.on[rank]:
            stage = self.line.stages[s]
            for i in range(self.m):
                cells.append((heads[0][s][i], stage.forward, tails[0][s][i]))
                cells.append((heads[1][s][i], stage.inputs, tails[1][s][i]))
                cells.append((heads[1][s][i] + stage.inputs, stage.weights, 0))
        return cells
