"""Transfers beside computing: the accelerators keep their rounds, parts of them are turned against each other.

Accelerators that share operations form a *part* of the pattern, in which operations keep their order on the circle. A
part that waits for no later one begins as soon as its values have arrived: least starts under the differences that
its rounds and its values ask for. Parts that wait for each other in turn are rotated so that their first operation
waits for nothing; an operation whose value arrives too late for its place on the circle runs one round later, which
costs latency and never the period (``docs/mathematics.md``). Each transfer takes the earliest time at which its links
are free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from passes.scheduling.circles import earliest, occupy
from passes.scheduling.traffic import Traffic

PASSES = 60
"""How often starts are delayed by what comes later in a round, at most."""

ROUNDS = 12
"""How often values of earlier micro-batches may delay their readers."""

ROTATIONS = 1_000_000
"""Operations looked at, at most, to turn parts that wait for each other."""

PATIENCE = 8
"""Rounds of turning parts without a gain after which no more are tried."""


class NoPlace(Exception):
    """A transfer finds no time at which its links are free."""


class Rotation:
    """The rounds of a schedule; ``possible`` unless operations of an accelerator take turns in different ways."""

    def __init__(self, traffic: Traffic):
        self.traffic = traffic
        solution, parts = traffic.solution, traffic.parts
        self.periods = [1] * traffic.operations
        """Periods after which each operation runs at the same place again."""
        self.possible = True
        self.rounds: dict[int, dict[tuple[int, int], int]] = {}
        """Part → operations that follow each other, and how many periods more than in a line lie between them."""
        self.turns: dict[int, int] = {}
        """By how much parts were turned last, in ns: where the next search begins."""
        self.known: dict[tuple[int, int], list[int]] = {}
        """Period and first operation of parts that wait for each other → places of all operations on the circle."""
        copies: dict[int, int] = {}
        for v, part in enumerate(parts):
            count = len(solution.copies(v))
            self.possible &= copies.setdefault(part, count) == count or not traffic.times[v]
            self.periods[v] = count
        for line, members in enumerate(traffic.members):
            nodes = [node for node, _, _ in members if node < traffic.operations]
            if len(nodes) == len(members):
                self.possible &= len({(count, *at) for _, at, count in members}) == 1
                self._round(nodes, traffic.cycles[line])

    def _round(self, nodes: list[int], copies: int) -> None:
        starts, period = self.traffic.solution.starts, copies * self.traffic.solution.period
        nodes.sort(key=lambda v: starts[v] % period)
        edges = self.rounds.setdefault(self.traffic.parts[nodes[0]], {})
        laps = [starts[v] // period for v in nodes]
        for (u, lap), (v, other) in pairwise(zip(nodes, laps, strict=True)):
            edges[u, v] = max(edges.get((u, v), (other - lap) * copies), (other - lap) * copies)
        if len(nodes) > 1:
            last = (laps[0] - laps[-1] - 1) * copies
            edges[nodes[-1], nodes[0]] = max(edges.get((nodes[-1], nodes[0]), last), last)

    # --- starts -------------------------------------------------------------------------------

    def starts(self, period: int) -> list[int] | None:
        """Starts of all nodes; None when values of earlier micro-batches would come too late, or links are not free."""
        try:
            return self._in_time(period, lambda: _First(self.traffic, period), None)
        except NoPlace:
            pass
        if max(self.traffic.solution.repetition, *self.periods) > 1:
            return None
        try:
            alone = self._in_time(period, lambda: _Free(self.traffic), None)
            if alone is None:
                return None
            delays = self._longest_first(period, alone)
            return self._in_time(period, lambda: _Delayed(self.traffic, delays), [s % period for s in alone])
        except NoPlace:
            return None

    def _longest_first(self, period: int, starts: Sequence[int]) -> dict[int, int]:
        """How long each transfer waits when the longest ones choose their times first."""
        times, operations = self.traffic.times, self.traffic.operations
        place = _First(self.traffic, period)
        delays: dict[int, int] = {}
        for node in sorted(range(operations, len(times)), key=lambda node: (-times[node], node)):
            u = self.traffic.before[node][0]
            delays[node] = place(node, starts[u] + times[u]) - starts[u] - times[u]
        return delays

    def _in_time(self, period: int, places: Callable[[], _Places], offsets: Sequence[int] | None) -> list[int] | None:
        """Starts after which values of earlier micro-batches are there in time."""
        lower: dict[int, int] = {}
        times = self.traffic.times
        for _ in range(ROUNDS if self.traffic.back else 1):
            starts = _Pass(self, period, lower, places(), offsets).starts()
            late = False
            for u, v, distance in self.traffic.back:
                need = starts[u] + times[u] - distance * period
                if need > starts[v]:
                    lower[v], late = max(lower.get(v, 0), need), True
            if not late:
                return starts
        return None


class _Places:
    """Where transfers go."""

    def __init__(self, traffic: Traffic):
        self.traffic = traffic

    def __call__(self, node: int, ready: int) -> int:
        """The start of a transfer that may start from ``ready`` on; raises :class:`NoPlace` when there is none."""
        return ready


class _Free(_Places):
    """As if no transfer kept another one waiting."""


class _First(_Places):
    """At the earliest time at which all of its links are free."""

    def __init__(self, traffic: Traffic, period: int):
        super().__init__(traffic)
        self._footprints = traffic.footprints(period, range(traffic.operations, len(traffic.times)))

    def __call__(self, node: int, ready: int) -> int:
        start = earliest(self._footprints[node], ready)
        if start is None:
            raise NoPlace
        occupy(self._footprints[node], start)
        return start


class _Delayed(_Places):
    """After delays that are known."""

    def __init__(self, traffic: Traffic, delays: dict[int, int]):
        super().__init__(traffic)
        self._delays = delays

    def __call__(self, node: int, ready: int) -> int:
        return ready + self._delays[node]


class _Pass:
    """One way through all groups of parts, at one period."""

    def __init__(
        self, rotation: Rotation, period: int, lower: dict[int, int], place: _Places, offsets: Sequence[int] | None
    ):
        self.rotation, self.traffic, self.period = rotation, rotation.traffic, period
        self.lower, self.place, self.offsets = lower, place, offsets
        self.times = self.traffic.times
        self.at: list[int] = [-1] * len(self.times)

    def starts(self) -> list[int]:
        """The starts of all nodes."""
        for group in self.traffic.groups():
            if self.offsets is not None:
                self._walk(group, self.offsets)
            elif not self._begin(group):
                self._walk(group, self._rotate(group))
        return self.at

    def _ready(self, v: int) -> int:
        return max([self.lower.get(v, 0), *(self.at[u] + self.times[u] for u in self.traffic.before[v])])

    def _send(self, v: int) -> None:
        end = self.at[v] + self.times[v]
        for node in self.traffic.after[v]:
            self.at[node] = self.place(node, end)

    # --- one part that waits for no later one ---------------------------------------------------

    def _begin(self, group: Sequence[int]) -> bool:
        """Give the operations of a part their least starts; false when parts wait for each other, or none are found."""
        parts, before, n = self.traffic.parts, self.traffic.before, self.traffic.operations
        if len({parts[v] for v in group}) > 1:
            return False
        inside = set(group)
        edges: list[list[tuple[int, int]]] = [[] for _ in group]
        number = {v: i for i, v in enumerate(group)}
        starts: list[int] = []
        for i, v in enumerate(group):
            starts.append(self.lower.get(v, 0))
            for u in before[v]:
                if u >= n and before[u][0] in inside:
                    return False  # a transfer inside: its round may have to be a later one
                if u in inside:
                    edges[number[u]].append((i, self.times[u]))
                else:
                    starts[i] = max(starts[i], self.at[u] + self.times[u])
        for (u, v), laps in self.rotation.rounds.get(parts[group[0]], {}).items():
            edges[number[u]].append((number[v], self.times[u] + laps * self.period))
        for u, v, distance in self.traffic.back:
            if u in inside and v in inside:
                edges[number[u]].append((number[v], self.times[u] - distance * self.period))
        if not _relax(starts, edges):
            return False
        for i, v in enumerate(group):
            self.at[v] = starts[i]
        for v in sorted(group, key=lambda v: (self.at[v] + self.times[v], number[v])):
            self._send(v)
        return True

    # --- parts that wait for each other ---------------------------------------------------------

    def _walk(self, group: Sequence[int], offsets: Sequence[int]) -> None:
        """Start each operation at its place on the circle once its values are there."""
        for v in group:
            self.at[v] = self._next(v, self._ready(v), offsets[v])
            self._send(v)

    def _next(self, v: int, ready: int, offset: int) -> int:
        if not self.times[v] and self.offsets is None:
            return ready
        return ready + (offset - ready) % (self.rotation.periods[v] * self.period)

    def _rotate(self, group: Sequence[int]) -> list[int]:
        """Places on the circle that keep values waiting little, as if transfers did not keep each other waiting."""
        traffic, times, parts = self.traffic, self.times, self.traffic.parts
        known, periods = traffic.solution, self.rotation.periods
        offsets = [s % (p * known.period) for s, p in zip(known.starts, periods, strict=True)]
        key = (self.period, group[0])
        if key in self.rotation.known and not self.lower:
            return self.rotation.known[key]
        turns = {parts[v]: self.rotation.turns[parts[v]] for v in group if parts[v] in self.rotation.turns}
        best: tuple[int, dict[int, int]] | None = None
        at = list(self.at)
        reads = {v: [(u, parts[traffic.producer(u)] != parts[v]) for u in traffic.before[v]] for v in group}
        patience = PATIENCE
        for _ in range(max(2, min(200, ROTATIONS // max(1, len(group))))):
            spare: dict[int, int] = {}
            for v in group:
                lower, part = self.lower.get(v, 0), parts[v]
                elsewhere, ready = -1, lower
                for u, far in reads[v]:
                    end = at[u] + times[u]
                    ready = max(ready, end)
                    if far:
                        elsewhere = max(elsewhere, end)
                turn = turns.setdefault(part, ready - offsets[v]) if times[v] else 0
                at[v] = self._next(v, ready, offsets[v] + turn)
                if elsewhere >= 0 and times[v]:
                    spare[part] = min(spare.get(part, at[v]), at[v] - max(elsewhere, lower))
                for node in traffic.after[v]:
                    at[node] = at[traffic.before[node][0]] + times[traffic.before[node][0]]
            last = max(at[v] + times[v] for v in group)
            patience -= 1
            if best is None or last < best[0]:
                best, patience = (last, dict(turns)), PATIENCE
            if not patience or not any(spare.values()):
                break
            for part, earlier in spare.items():
                turns[part] -= earlier
        assert best is not None, "at least one round was made"
        self.rotation.turns.update(best[1])
        turned = [offset + best[1].get(part, 0) for offset, part in zip(offsets, parts, strict=True)]
        if not self.lower:
            self.rotation.known[key] = turned
        return turned


def _relax(starts: list[int], edges: Sequence[Sequence[tuple[int, int]]]) -> bool:
    """Delay starts until each is as long after the others as ``edges`` say; false when that takes too many passes."""
    changed = set(range(len(starts)))
    for _ in range(PASSES):
        later: set[int] = set()
        for i, after in enumerate(edges):
            if i not in changed:
                continue
            for j, gap in after:
                if starts[i] + gap > starts[j]:
                    starts[j] = starts[i] + gap
                    if j > i:
                        changed.add(j)
                    else:
                        later.add(j)
        if not later:
            return True
        changed = later
    return False
