"""From the orders of cells to starts of operations and transfers: all as early as what is before them allows.

Cells are worked through in the order in which they begin on the line. An operation starts when the one before it on
its rank has ended and what it reads has arrived; what it makes leaves at once for every set that reads it, in the first
gap of all that the transfer occupies. Only of a backward in one piece (``B``) nothing leaves before its end. The
optimizer's steps of a rank follow its last operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from passes.scheduling.data import Dependence, InvalidProblem, Violation
from passes.scheduling.network import COMPUTE, Resource
from passes.scheduling.steps.batch import Update
from passes.scheduling.steps.cells import Cell, Orders
from passes.scheduling.steps.layout import Layout, Members
from passes.scheduling.steps.run import run
from passes.scheduling.steps.timeline import Lanes, Timeline, add_all, fit_all
from passes.scheduling.steps.timeline import Line as Busy

LONGEST = 2**63
"""Times in the IR are integers of 64 bits."""


@dataclass(frozen=True)
class Move:
    """A result on its way to another set: when each micro-batch leaves, and when it lands, for ``time`` ns each."""

    producer: int
    result: int
    target: Members
    level: int
    time: int
    starts: list[int]
    landings: list[int]


@dataclass(frozen=True)
class Step:
    """A step laid out in time: starts of every operation and transfer by micro-batch, and of the optimizer's steps."""

    layout: Layout
    starts: list[list[int]]
    moves: list[Move]
    updates: list[tuple[Update, int]]

    def end(self, v: int, i: int) -> int:
        """When an operation of a micro-batch ends."""
        return self.starts[v][i] + self.layout.time(v)

    @cached_property
    def makespan(self) -> int:
        """From 0 to the last end, of transfers and the optimizer too."""
        ends = [max(starts) + self.layout.time(v) for v, starts in enumerate(self.starts)]
        ends += [start + self.layout.update_time(update) for update, start in self.updates]
        ends += [max(move.landings) + move.time for move in self.moves]
        return max(ends)

    @cached_property
    def busy(self) -> dict[Resource, list[tuple[int, int]]]:
        """What every accelerator, port and wire is occupied for: start and time."""
        layout, network = self.layout, self.layout.batch.problem.network
        found: dict[Resource, list[tuple[int, int]]] = {}

        def occupy(resource: Resource, starts: list[int], time: int) -> None:
            if time:
                found.setdefault(resource, []).extend((start, time) for start in starts)

        for v, starts in enumerate(self.starts):
            for p in layout.sets[v]:
                occupy((COMPUTE, -1, p, p), starts, layout.time(v))
        for update, start in self.updates:
            for p in layout.sets[update.member]:
                occupy((COMPUTE, -1, p, p), [start], self.layout.update_time(update))
        left: set[tuple[int, int]] = set()
        for move in self.moves:
            assert network is not None
            price = network.price(_dependence(layout, move), layout.sets[move.producer], move.target)
            if network.mode != "buffered":
                for resource in price.both:
                    occupy(resource, move.starts, move.time)
                continue
            for resource in price.send if (move.producer, move.result) not in left else ():
                occupy(resource, move.starts, move.time)
            left.add((move.producer, move.result))
            for resource in price.receive:
                occupy(resource, move.landings, move.time)
        return found


def delays_of(step: Step) -> tuple[int, ...]:
    """How long after the end of a cell its values were at the next chunk, or back, in the mean of the micro-batches."""
    layout = step.layout
    kinds, m = layout.batch.kinds, layout.batch.microbatches
    delays = [0] * (len(layout.ranks) - 1)
    for move in step.moves:
        a = layout.chunks[move.producer]
        last = layout.cells["F" if kinds[move.producer] == "F" else "I", a][-1]
        after = sum(move.landings) - sum(step.starts[last]) + m * (move.time - layout.time(last))
        for d in layout.batch.readers[move.producer]:
            b = layout.chunks[d.consumer]
            if abs(a - b) == 1 and d.result == move.result and layout.sets[d.consumer] == move.target:
                delays[min(a, b)] = max(delays[min(a, b)], after // m)
    return tuple(delays)


def _dependence(layout: Layout, move: Move) -> Dependence:
    readers = layout.batch.readers[move.producer]
    return next(d for d in readers if d.result == move.result and layout.sets[d.consumer] == move.target)


@dataclass
class _Need:
    """A transfer to make for every micro-batch: what it occupies, and when it arrives."""

    move: Move
    send: list[Busy]
    receive: list[Busy]


class _Placing:
    def __init__(self, layout: Layout):
        self.layout, self.batch = layout, layout.batch
        self.network, m = self.batch.problem.network, self.batch.microbatches
        self.lines: dict[Resource, Busy] = {}
        self.free = [0] * len(layout.blocks)
        self.times = [layout.time(v) for v in range(len(layout.sets))]
        self.starts: list[list[int]] = [[-1] * m for _ in self.times]
        self.made: list[list[int]] = [[-1] * m for _ in self.times]
        """When what an operation makes may be read, or sent."""
        self.needs: list[list[list[_Need]]] = [self._needs(v) for v in range(len(self.times))]
        """Of each operation, the transfers of each of its results."""
        self.arrivals = [self._arrivals(v) for v in range(len(self.times))]
        self.alone = self.network is None or self.network.mode == "overlapped"
        """Whether transfers leave accelerators alone."""
        self.buffered = self.network is not None and self.network.mode == "buffered"
        self.computes = [] if self.alone else [[self._line((COMPUTE, -1, p, p)) for p in s] for s in layout.sets]

    def _line(self, resource: Resource) -> Busy:
        assert self.network is not None
        if resource not in self.lines:
            capacity = self.network.capacity(resource)
            self.lines[resource] = Timeline() if capacity == 1 else Lanes(capacity)
        return self.lines[resource]

    def _needs(self, v: int) -> list[list[_Need]]:
        if self.network is None:
            return []
        mine, m = self.layout.sets[v], self.batch.microbatches
        found: dict[tuple[int, Members], _Need] = {}
        for d in self.batch.readers[v]:
            there = self.layout.sets[d.consumer]
            price = self.network.price(d, mine, there)
            if price.level >= 0 and (d.result, there) not in found:
                send, receive = sorted(price.send), sorted(price.receive)
                if self.network.mode != "buffered":
                    send, receive = sorted(price.both), []
                move = Move(v, d.result, there, price.level, price.time, [-1] * m, [-1] * m)
                found[d.result, there] = _Need(move, list(map(self._line, send)), list(map(self._line, receive)))
        results: dict[int, list[_Need]] = {}
        for (result, _), need in found.items():
            results.setdefault(result, []).append(need)
        return [self._as_one(needs) for needs in results.values()]

    def _as_one(self, needs: list[_Need]) -> list[_Need]:
        """Through a buffer, the transfers of a result leave as one, which takes as long as the longest."""
        assert self.network is not None
        if self.network.mode != "buffered":
            return needs
        most = max(need.move.time for need in needs)
        out = list({id(line): line for need in needs for line in need.send}.values())
        moves = [need.move for need in needs]
        return [
            _Need(Move(m.producer, m.result, m.target, m.level, most, m.starts, m.landings), out, need.receive)
            for m, need in zip(moves, needs, strict=True)
        ]

    def _arrivals(self, v: int) -> list[tuple[list[int], int]]:
        """What must have happened before an operation starts: moments by micro-batch, and the time that follows."""
        found: list[tuple[list[int], int]] = []
        for d in self.batch.reads[v]:
            key = (d.result, self.layout.sets[v])
            moves = (need.move for needs in self.needs[d.producer] for need in needs)
            move = next((move for move in moves if (move.result, move.target) == key), None)
            if move is not None:
                found.append((move.landings, move.time))
            else:
                found.append((self.made[d.producer], 0))
        return found

    def cell(self, cell: Cell) -> None:
        """Start the operations of a cell one after the other, and send what they make."""
        operations, i = self.layout.of(cell), cell.microbatch
        whole = cell.kind == "B" and not self.buffered
        inside: set[Members] = {self.layout.sets[v] for v in operations} if whole else set()
        for v in operations:
            self._start(v, i)
            for needs in self.needs[v]:
                self._send([n for n in needs if not whole or n.move.target in inside], i, self.made[v][i])
        if cell.kind == "B" and operations:
            end = self.made[operations[-1]][i]
            for v in operations:
                self.made[v][i] = end
                for needs in self.needs[v]:
                    self._send([n for n in needs if whole and n.move.target not in inside], i, end)

    def _start(self, v: int, i: int) -> None:
        rank, time = self.layout.rank(v), self.times[v]
        at = self.free[rank]
        for moments, after in self.arrivals[v]:
            assert moments[i] >= 0, "orders keep what operations read before them"
            at = max(at, moments[i] + after)
        if not self.alone and time:
            at = fit_all(self.computes[v], at, time)
            add_all(self.computes[v], at, time)
        self.starts[v][i] = at
        self.free[rank] = self.made[v][i] = at + time

    def _send(self, needs: list[_Need], i: int, at: int) -> None:
        for number, need in enumerate(needs):
            move = need.move
            if self.buffered and number:
                left = needs[0].move.starts[i]
            else:
                left = fit_all(need.send, at, move.time)
                add_all(need.send, left, move.time)
            move.starts[i] = move.landings[i] = left
            if self.buffered:
                move.landings[i] = fit_all(need.receive, left + move.time, move.time)
                add_all(need.receive, move.landings[i], move.time)

    def updates(self) -> list[tuple[Update, int]]:
        """The optimizer's steps, on every rank as soon as its gradients are complete."""
        m = self.batch.microbatches
        waiting: list[tuple[int, int, Update]] = []
        for number, update in enumerate(self.batch.updates):
            ready = max(self.starts[w][i] + self.times[w] for w in (*update.reads, update.member) for i in range(m))
            waiting.append((ready, number, update))
        found: list[tuple[int, Update, int]] = []
        for ready, number, update in sorted(waiting, key=lambda each: each[:2]):
            rank, time = self.layout.rank(update.member), self.layout.update_time(update)
            at = max(self.free[rank], ready)
            if not self.alone and time:
                at = fit_all(self.computes[update.member], at, time)
                add_all(self.computes[update.member], at, time)
            self.free[rank] = at + time
            found.append((number, update, at))
        return [(update, at) for _, update, at in sorted(found, key=lambda each: each[0])]


def place(layout: Layout, orders: Orders) -> Step:
    """The step of ``layout`` whose ranks work through ``orders``.

    Raises :class:`passes.scheduling.steps.cells.Stuck` for orders that wait in a circle, and :class:`InvalidProblem`
    where times do not fit in 64 bits.
    """
    placing = _Placing(layout)
    begun = run(layout.line, orders).starts
    for cell in sorted(begun, key=begun.__getitem__):
        placing.cell(cell)
    moves = [need.move for results in placing.needs for needs in results for need in needs]
    step = Step(layout, placing.starts, moves, placing.updates())
    if step.makespan >= LONGEST:
        raise InvalidProblem([Violation("time", "the step takes 2^63 ns or more")])
    return step
