"""Steps of a batch by our own orders, on the shape that makes them shortest, within the memory.

What comes of a shape is estimated on its line first, with little effort; those that look best get the rest of it, and
are laid out in time. Known schedules of the same shape that are shorter stand in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from passes.scheduling.data import InvalidProblem, Violation
from passes.scheduling.steps.batch import Batch
from passes.scheduling.steps.cells import Cell, Line, Orders
from passes.scheduling.steps.choose import LAID_OUT as OF_EACH
from passes.scheduling.steps.choose import Listener, silent
from passes.scheduling.steps.fitting import Found, Weighed, forward, in_time, shortage, timed, weigh
from passes.scheduling.steps.known import KNOWN
from passes.scheduling.steps.layout import Layout
from passes.scheduling.steps.memory import peaks
from passes.scheduling.steps.place import delays_of, place
from passes.scheduling.steps.search import DoesNotFit, schedule_step
from passes.scheduling.steps.shapes import Wish, lay_out, shapes

KINDS = ((1, "turn"), (2, "back"), (2, "turn"), (4, "turn"))
"""Chunks of a rank, and how they are placed, where that is left open."""

CELLS = 1_000_000
"""Cells that a unit of effort puts into orders: about a second of one core."""

LAID_OUT = 4
"""Shapes that are laid out in time."""

SCREENED = 0.3
"""Part of the effort for a first look at every shape."""

MORE = 10
"""Orders found with little effort, and known ones, that are laid out too, the best by their lines."""

ROUNDS = 6
"""How often our own orders are looked for with less memory, until what they hold in full fits."""


def own_step(batch: Batch, wish: Wish, listen: Listener = silent) -> Found:
    """The shortest step found by our own orders, over the shapes that ``wish`` leaves open, within the memory.

    Raises :class:`InvalidProblem` where nothing can be laid out, or fits in memory.
    """
    best = _Best(listen)
    looked = sorted(_looked(batch, wish, best), key=lambda one: one.time)
    for number, layout in enumerate(_varied(looked)):
        if best.found is not None and number >= LAID_OUT:
            break
        best.take(_fitting(layout, wish, round(wish.effort * CELLS * (1 - SCREENED)) // LAID_OUT))
    for one in _promising(looked):
        best.take(in_time(one, wish.staggered))
    if best.found is None:
        raise InvalidProblem([min(best.refused, key=lambda violation: violation.missing)])
    return best.found


class _Best:
    """The shortest step so far, and why others are none."""

    def __init__(self, listen: Listener):
        self.listen = listen
        self.found: Found | None = None
        self.refused: list[Violation] = []

    def take(self, found: Found | Violation) -> None:
        """Keep a step if it is shorter."""
        if isinstance(found, Violation):
            self.refused.append(found)
        elif self.found is None or found.pattern < self.found.pattern:
            self.found = found
            self.listen(found.engine, found.pattern)


def _looked(batch: Batch, wish: Wish, best: _Best) -> Iterator[Weighed]:
    """Our own orders, found with little effort, and the known ones that fit, of every shape."""
    if wish.chunks is None:
        kinds = KINDS
    else:
        kinds = [(wish.chunks, "turn"), *([(wish.chunks, "back")] if wish.chunks > 1 else [])]
    layouts = lay_out(batch, shapes(batch, wish, kinds))
    for layout in layouts:
        effort = round(wish.effort * CELLS * SCREENED) // len(layouts)
        try:
            orders = _orders(layout, layout.line, wish, layout.room(), effort)
        except DoesNotFit as failure:
            best.take(_too_much(layout, failure))
            continue
        yield weigh(layout, orders, wish.staggered, "own", "orders")
        yield from _rivals(layout, wish.staggered)


def _promising(looked: Sequence[Weighed]) -> Iterator[Weighed]:
    """The shortest by their lines, and of each known schedule as many as are laid out where it is asked for."""
    seen: Counter[str] = Counter()
    for number, one in enumerate(looked):
        seen[one.engine] += 1
        if number < MORE or seen[one.engine] <= OF_EACH:
            yield one


def _varied(looked: Sequence[Weighed]) -> list[Layout]:
    """The best layouts first, but the best of each placement of chunks before all others: lines know no busy links."""
    layouts = list({id(one.layout): one.layout for one in looked}.values())
    best: dict[tuple[int, ...], Layout] = {}
    for layout in layouts:
        chunks = layout.shape.chunks
        best.setdefault((chunks, *layout.shape.placement(2, chunks)), layout)
    return sorted(layouts, key=lambda layout: all(layout is not other for other in best.values()))


def _rivals(layout: Layout, staggered: bool) -> Iterator[Weighed]:
    """The known schedules for the placement of a layout that fit by its line."""
    ranks, chunks = len(layout.blocks), layout.shape.chunks
    for name, schedule in KNOWN.items():
        if schedule.chunks in (None, chunks) and schedule.placement(ranks, chunks) == layout.ranks:
            orders = forward(layout.batch, schedule.generate(layout.line, layout.batch.microbatches))
            weighed = weigh(layout, orders, staggered, "own", name)
            if not weighed.missing:
                yield weighed


def _orders(layout: Layout, line: Line, wish: Wish, room: Sequence[int] | None, effort: int) -> Orders:
    batch = layout.batch
    if not batch.trains:
        stages = [[s for s, stage in enumerate(line.stages) if stage.rank == rank] for rank in range(line.ranks)]
        return [[Cell("F", s, i) for s in on for i in range(batch.microbatches)] for on in stages]
    objective = "span" if wish.staggered else "makespan"
    return schedule_step(line, batch.microbatches, room, objective=objective, effort=effort, seed=wish.seed)


def _fitting(layout: Layout, wish: Wish, effort: int) -> Found | Violation:
    """Our own step on a layout: with the delays of its line, then with those that transfers turned out to have."""
    first = _within(layout, layout.line, wish, effort // 2)
    if isinstance(first, Violation) or not first.step.moves:
        return first
    again = _within(layout, replace(layout.line, delays=delays_of(first.step)), wish, effort // 2)
    return first if isinstance(again, Violation) or first.pattern <= again.pattern else again


def _within(layout: Layout, line: Line, wish: Wish, effort: int) -> Found | Violation:
    """A step within the memory: what a rank holds beside the values its line knows of is taken off, until it fits."""
    room = layout.room()
    least: Violation | None = None
    for _ in range(ROUNDS):
        try:
            step = place(layout, _orders(layout, line, wish, room, effort))
        except DoesNotFit as failure:
            return least or _too_much(layout, failure)
        pattern = timed(step, wish.staggered)
        missing = shortage(step, pattern)
        if missing is None:
            return Found(step, pattern, "own", "orders")
        if least is None or missing.missing < least.missing:
            least = missing
        if room is None:
            return missing
        held = peaks(step, pattern)
        for rank, block in enumerate(layout.blocks):
            need = max(sum(sizes) for members, sizes in held.items() if set(members) & set(block))
            room[rank] -= max(0, need - layout.batch.problem.memory)
    assert least is not None
    return least


def _too_much(layout: Layout, failure: DoesNotFit) -> Violation:
    block, memory = layout.blocks[failure.rank], layout.batch.problem.memory
    need, params = failure.needed + memory - failure.limit, layout.parameters()[failure.rank]
    message = (
        f"accelerator {block[0]} lacks {need - memory} bytes of {memory} for a single micro-batch: {params} are for"
        f" parameters and what lies beside them, {need - params} for its values"
    )
    return Violation("memory", message, (), need - memory)
