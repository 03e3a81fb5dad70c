"""Where the operations of a step are: chunks on ranks, ranks on blocks of accelerators, operations on sets in them.

A *rank* has one block; every operation runs on the first accelerators of the block of its rank, a group on as many for
all its operations. So a rank does one thing at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Literal

from passes.scheduling.blocks import pack_blocks
from passes.scheduling.data import InvalidProblem, Violation
from passes.scheduling.steps.batch import Batch, Update
from passes.scheduling.steps.cells import Cell, Kind, Line, Stage
from passes.scheduling.steps.cuts import Bounds, balanced, cheapest, crossings, equal, places_to_cut
from passes.scheduling.steps.held import Held
from passes.scheduling.steps.known import Placement

Cut = Literal["balanced", "equal"]
Members = tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """``ranks`` blocks of ``width`` accelerators with ``chunks`` each, placed by ``placement``; how they are cut.

    With ``filled`` groups run on all accelerators of their block, or, where they cannot, on as many as they can.
    """

    ranks: int
    width: int
    chunks: int
    placement: Placement
    cut: Cut = "balanced"
    filled: bool = True
    slack: float = 0.0
    """By how much, a fraction, a chunk may be longer than it need be, where that makes less move between ranks."""


@dataclass(frozen=True)
class Layout:
    """A batch laid out: block of each rank, rank of each chunk, chunk and set of each operation."""

    batch: Batch
    shape: Shape
    blocks: tuple[Members, ...]
    ranks: tuple[int, ...]
    chunks: tuple[int, ...]
    sets: tuple[Members, ...]

    def rank(self, v: int) -> int:
        """The rank of an operation."""
        return self.ranks[self.chunks[v]]

    def time(self, v: int) -> int:
        """How long an operation takes."""
        return self.batch.problem.operations[v].table[len(self.sets[v])].time

    def update_time(self, update: Update) -> int:
        """How long a step of the optimizer takes, with the gradients that come from copies of its parameters."""
        mine, network = self.sets[update.member], self.batch.problem.network
        time = update.times[len(mine)]
        if network is not None:
            item = self.batch.item_of[update.member]
            away = {self.sets[w]: None for w in update.reads if self.batch.item_of[w] != item}
            time += sum(network.price_of(update.bytes, True, there, mine).time for there in away)
        return time

    @cached_property
    def cells(self) -> dict[tuple[Kind, int], list[int]]:
        """The operations of each kind of cell of each chunk, in program order; those of ``B``: of ``I`` and ``W``."""
        found: dict[tuple[Kind, int], list[int]] = {}
        for v, kind in enumerate(self.batch.kinds):
            found.setdefault((kind, self.chunks[v]), []).append(v)
            if kind != "F":
                found.setdefault(("B", self.chunks[v]), []).append(v)
        return found

    def of(self, cell: Cell) -> list[int]:
        """The operations of a cell."""
        return self.cells.get((cell.kind, cell.stage), [])

    @cached_property
    def line(self) -> Line:
        """The chunks as stages of a line: what cells take, and what they hold on the first accelerator of a block."""
        held = self.held
        stages: list[Stage] = []
        for chunk, rank in enumerate(self.ranks):
            forward, inputs, weights = (self._time(kind, chunk) for kind in ("F", "I", "W"))
            stages.append(Stage(rank, forward, inputs, weights, *held.of(chunk)))
        return Line(tuple(stages), delays=self._delays())

    @cached_property
    def held(self) -> Held:
        """What chunks hold of a micro-batch, on the first accelerator of their block."""
        return Held(self.batch, self.chunks, self.sets)

    def room(self) -> list[int] | None:
        """Bytes that values between cells may take on each rank; None where memory is not looked at."""
        memory = self.batch.problem.memory
        if not memory:
            return None
        inside = [0] * len(self.blocks)
        for chunk, rank in enumerate(self.ranks):
            most = max(self.held.inside(kind, chunk, self.of(Cell(kind, chunk, 0))) for kind in ("F", "I", "W", "B"))
            inside[rank] = max(inside[rank], most)
        return [memory - params - extra for params, extra in zip(self.parameters(), inside, strict=True)]

    def _time(self, kind: Kind, chunk: int) -> int:
        return sum(self.time(v) + self._inside(v) for v in self.cells.get((kind, chunk), []))

    def _inside(self, v: int) -> int:
        """How long an operation waits for what another one of its cell makes on other accelerators of the block."""
        network, kinds = self.batch.problem.network, self.batch.kinds
        if network is None:
            return 0
        waits = [
            network.price(d, self.sets[d.producer], self.sets[v]).time
            for d in self.batch.reads[v]
            if d.producer == v - 1 and self.chunks[d.producer] == self.chunks[v] and kinds[d.producer] == kinds[v]
        ]
        return max(waits, default=0)

    def _delays(self) -> tuple[int, ...]:
        """How long what one micro-batch moves takes from each chunk to the next, or back, one after the other."""
        network = self.batch.problem.network
        there = [[0, 0] for _ in self.ranks[1:]]
        if network is None:
            return tuple(map(max, there))
        moved = {(d.producer, d.result, self.sets[d.consumer]): d for d in self.batch.problem.dependences}
        for d in moved.values():
            a, b = self.chunks[d.producer], self.chunks[d.consumer]
            if abs(a - b) == 1:
                there[min(a, b)][a > b] += network.price(d, self.sets[d.producer], self.sets[d.consumer]).time
        return tuple(map(max, there))

    def parameters(self) -> list[int]:
        """Bytes of parameters, and what lies beside them, on the first accelerator of each block."""
        problem, held = self.batch.problem, [0] * len(self.blocks)
        for item in problem.items:
            k = len(self.sets[item[0]])
            held[self.rank(item[0])] += max(problem.operations[v].table[k].params for v in item)
        return held


# --- making one ---------------------------------------------------------------------------------


def laid_out(batch: Batch, shape: Shape) -> Layout:
    """``batch`` in that shape. Raises :class:`InvalidProblem` where it cannot be."""
    problem = batch.problem
    blocks = pack_blocks([shape.width] * shape.ranks, problem.accelerators, problem.group)
    if blocks is None:
        message = f"{problem.accelerators} accelerators have no {shape.ranks} blocks of {shape.width}"
        raise InvalidProblem([Violation("stages", message)])
    allotments = allotments_of(batch, shape)
    ranks = shape.placement(shape.ranks, shape.chunks)
    bounds = _bounds(batch, shape, allotments, [blocks[rank] for rank in ranks])
    chunks = chunks_of(batch, bounds)
    _check_groups(batch, chunks, ranks)
    sets = tuple(blocks[ranks[chunk]][: allotments[item]] for chunk, item in zip(chunks, batch.item_of, strict=True))
    return Layout(batch, shape, tuple(blocks), ranks, chunks, sets)


def allotments_of(batch: Batch, shape: Shape) -> list[int]:
    """The allotment of each item in blocks of the width of ``shape``: the greatest, or the fastest."""
    known: dict[int, int] = {}
    found: list[int] = []
    for number, table in enumerate(batch.tables):
        if id(table) not in known:
            able = [k for k in table if k <= shape.width]
            if not able:
                item = batch.problem.items[number]
                least = f"needs {min(table)} accelerators" if table else "has no allotment in common with its optimizer"
                message = f"{batch.names(item[:1])} {least}, and a stage has {shape.width}"
                raise InvalidProblem([Violation("stages", message, item[:1])])
            known[id(table)] = max(able) if shape.filled else min(able, key=lambda k: (table[k].time, -k))
        found.append(known[id(table)])
    return found


def _bounds(batch: Batch, shape: Shape, allotments: Sequence[int], blocks: Sequence[Members]) -> Bounds:
    count = shape.ranks * shape.chunks
    if shape.cut == "equal":
        return equal(batch, count)
    works, seen = [0] * len(batch.forward), set[int]()
    for position, v in enumerate(batch.forward):
        item = batch.item_of[v]
        if item not in seen:
            seen.add(item)
            works[position] = batch.tables[item][allotments[item]].time
    places = places_to_cut(batch)
    if len(places) <= count and shape.chunks > 1:
        places = places_to_cut(batch, ties=True)
    network = batch.problem.network
    if network is None or not shape.slack:
        return balanced(works, places, count)
    sizes = crossings(batch)
    levels = [network.level_of((*a, *b)) for a, b in pairwise(blocks)]

    @cache
    def time(level: int, size: int) -> int:
        chunk = next(c for c, of in enumerate(levels) if of == level and blocks[c] != blocks[c + 1])
        return network.price_of(size, False, blocks[chunk], blocks[chunk + 1]).time

    def price(chunk: int, place: int) -> int:
        """Of moving what crosses there, and its gradient back."""
        return 0 if blocks[chunk] == blocks[chunk + 1] else 2 * time(levels[chunk], sizes[place])

    return cheapest(works, places, count, shape.slack, price)


def chunks_of(batch: Batch, bounds: Bounds) -> tuple[int, ...]:
    """The chunk of every operation; backward operations are in that of their group.

    What is in no group is where it is read. Where a group is in several chunks, backward operations are in the last
    that backward operations have reached.
    """
    last = len(bounds) - 2
    chunks = [-1] * len(batch.kinds)
    of_item: dict[int, set[int]] = {}
    for chunk in range(last + 1):
        for v in batch.forward[bounds[chunk] : bounds[chunk + 1]]:
            chunks[v] = chunk
            of_item.setdefault(batch.item_of[v], set()).add(chunk)
    backward = [v for v in range(len(chunks)) if batch.kinds[v] != "F"]
    for v in backward:
        home = of_item.get(batch.item_of[v])
        if home:
            made = (chunks[d.producer] for d in batch.reads[v] if batch.kinds[d.producer] != "F")
            reached = min((chunk for chunk in made if chunk >= 0), default=last)
            chunks[v] = max((chunk for chunk in home if chunk <= reached), default=min(home))
    for v in reversed(backward):
        if chunks[v] < 0:
            chunks[v] = max((chunks[d.consumer] for d in batch.readers[v]), default=0)
    for d in batch.problem.dependences:
        kinds, (a, b) = (batch.kinds[d.producer], batch.kinds[d.consumer]), (chunks[d.producer], chunks[d.consumer])
        if (kinds[0] == "F") == (kinds[1] == "F") and (a > b if kinds[0] == "F" else a < b):
            message = f"{batch.names((d.consumer,))} of chunk {b} reads {batch.names((d.producer,))} of chunk {a}"
            raise InvalidProblem([Violation("chunks", f"{message}, against the order of the chunks", (d.consumer,))])
    return tuple(chunks)


def _check_groups(batch: Batch, chunks: Sequence[int], ranks: Sequence[int]) -> None:
    for item in batch.problem.items:
        apart = next((v for v in item if ranks[chunks[v]] != ranks[chunks[item[0]]]), None)
        if apart is not None:
            both = batch.names((item[0], apart))
            places = f"ranks {ranks[chunks[item[0]]]} and {ranks[chunks[apart]]}"
            raise InvalidProblem([Violation("tied", f"{both} share parameters, but are on {places}", (apart, item[0]))])
