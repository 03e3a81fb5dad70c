"""Steps of a batch: by a known schedule, or by our own orders, on the shape that makes them shortest.

What comes of a shape is estimated on its line first; the shapes that look best are laid out in time, with all transfers
and the exact memory, and the shortest that fits is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from passes.scheduling.blocks import pack_blocks
from passes.scheduling.data import InvalidProblem, Violation
from passes.scheduling.steps.batch import Batch
from passes.scheduling.steps.cells import Cell, Line, Orders
from passes.scheduling.steps.known import KNOWN, in_turn, there_and_back
from passes.scheduling.steps.layout import Cut, Layout, Members, Shape, laid_out
from passes.scheduling.steps.memory import peaks
from passes.scheduling.steps.overlap import least_pattern
from passes.scheduling.steps.place import Step, place
from passes.scheduling.steps.run import run
from passes.scheduling.steps.search import DoesNotFit, schedule_step

CELLS = 1_000_000
"""Cells that a unit of effort puts into orders: about a second of one core."""

SCREENED = 0.3
"""Part of the effort for a first look at every shape."""

LAID_OUT = 3
"""Shapes that are laid out in time, the best by their lines."""

ROUNDS = 6
"""How often our own orders are looked for with less memory, until what they hold in full fits."""


@dataclass(frozen=True)
class Wish:
    """What is asked of a step; None leaves a choice open. ``width`` is the accelerators of a stage."""

    stages: int | None = None
    chunks: int | None = None
    cut: Cut = "balanced"
    width: int | None = None
    staggered: bool = False
    """Whether steps may overlap; the known schedules whose papers count spans always do."""
    effort: float = 3
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """A step that fits, how soon the next one follows, and what made it."""

    step: Step
    pattern: int
    plan: str
    engine: str


Listener = Callable[[str, int], None]
"""Told of an engine and the pattern of the best step so far."""


# --- shapes -------------------------------------------------------------------------------------


def shapes(batch: Batch, wish: Wish, kinds: Iterable[tuple[int, str]]) -> Iterator[Shape]:
    """The shapes that a wish leaves open, for numbers of chunks and the way they are placed (``turn`` or ``back``)."""
    count, group = batch.problem.accelerators, batch.problem.group
    numbers = [wish.stages] if wish.stages is not None else [p for p in range(1, count + 1) if count % p == 0]
    kinds = list(kinds)
    for ranks in numbers:
        width = wish.width or count // ranks
        while width > 1 and pack_blocks([width] * ranks, count, group) is None and wish.width is None:
            width -= 1
        if not width:
            message = f"{ranks} stages need as many accelerators, and there are {count}"
            raise InvalidProblem([Violation("stages", message)])
        for chunks, way in kinds:
            if chunks > 1 and ranks == 1:
                continue
            placement = there_and_back if way == "back" else in_turn
            shape = Shape(ranks, width, chunks, placement, wish.cut)
            yield shape
            if wish.cut == "balanced" and width > 1:
                yield replace(shape, filled=False)


def _layouts(batch: Batch, found: Iterable[Shape]) -> list[Layout]:
    """What can be laid out; raises :class:`InvalidProblem` with the first reason where nothing can."""
    reason: InvalidProblem | None = None
    layouts: list[Layout] = []
    for shape in found:
        try:
            layout = laid_out(batch, shape)
        except InvalidProblem as failure:
            reason = reason or failure
            continue
        if all(layout.sets != other.sets or layout.chunks != other.chunks for other in layouts):
            layouts.append(layout)
    if not layouts:
        raise reason or InvalidProblem([Violation("stages", "there is no such number of stages")])
    return layouts


# --- what a step takes, and whether it fits -----------------------------------------------------


def _forward(batch: Batch, orders: Orders) -> Orders:
    """The cells that a batch has work for."""
    return orders if batch.trains else [[cell for cell in cells if cell.kind == "F"] for cells in orders]


def _estimate(layout: Layout, orders: Orders, staggered: bool) -> int:
    """What a step takes by its line: until the last rank has done its steps of the optimizer."""
    taken = run(layout.line, orders)
    tails = [0] * len(layout.blocks)
    for update in layout.batch.updates:
        tails[layout.rank(update.member)] += layout.update_time(update)
    firsts = taken.first if staggered else [0] * len(tails)
    return max(last - first + tail for first, last, tail in zip(firsts, taken.last, tails, strict=True))


def _timed(step: Step, staggered: bool) -> int:
    """How soon the next step follows: no sooner than memory allows."""
    pattern = max(1, step.makespan)
    if staggered:
        tight = max(1, least_pattern(step))
        return tight if _lacking(step, tight) is None else pattern
    return pattern


def _lacking(step: Step, pattern: int) -> Violation | None:
    """The accelerators that lack most bytes, and what they hold."""
    memory = step.layout.batch.problem.memory
    if not memory:
        return None
    held = peaks(step, pattern)
    worst: Members = max(held, key=lambda members: sum(held[members]))
    params, live = held[worst]
    missing = params + live - memory
    if missing <= 0:
        return None
    who = f"accelerator {worst[0]} lacks" if len(worst) == 1 else f"accelerators {_ranges(worst)} each lack"
    message = (
        f"{who} {missing} bytes of {memory}: {params} are for parameters and what lies beside them,"
        f" {live} for values of micro-batches; {params + live} bytes would do"
    )
    return Violation("memory", message, (), missing)


def _ranges(members: Members) -> str:
    """Sorted accelerators as half-open ranges."""
    found: list[list[int]] = []
    for p in members:
        if found and found[-1][1] == p:
            found[-1][1] = p + 1
        else:
            found.append([p, p + 1])
    return "[" + ", ".join(f"{low}:{high}" for low, high in found) + "]"


# --- known schedules ----------------------------------------------------------------------------


def known_step(batch: Batch, name: str, wish: Wish, listen: Listener = lambda *_: None) -> Found:
    """The shortest step of a known schedule, over the shapes that ``wish`` leaves open.

    Raises :class:`InvalidProblem` where none can be made, or fits in memory: with the least bytes that are missing.
    """
    schedule = KNOWN[name]
    if wish.chunks is not None and schedule.chunks not in (None, wish.chunks):
        message = f"{name} has {schedule.chunks} chunk{'s' * (schedule.chunks != 1)} on a rank, not {wish.chunks}"
        raise InvalidProblem([Violation("chunks", message)])
    way = "back" if schedule.placement is there_and_back else "turn"
    kinds = [(schedule.chunks or wish.chunks or 2, way)]
    staggered = schedule.staggered or wish.staggered
    tried: list[tuple[int, Layout, Orders]] = []
    for layout in _layouts(batch, shapes(batch, wish, kinds)):
        orders = _forward(batch, schedule.generate(layout.line, batch.microbatches))
        tried.append((_estimate(layout, orders, staggered), layout, orders))
    return _best(tried, staggered, name, "known", listen)


def _best(
    tried: Sequence[tuple[int, Layout, Orders]], staggered: bool, plan: str, engine: str, listen: Listener
) -> Found:
    """The shortest step of the most promising ones that fit; where none fits, the one that lacks least is named."""
    best: Found | None = None
    lacking: list[Violation] = []
    laid_out = 0
    for _, layout, orders in sorted(tried, key=lambda each: each[0]):
        if best is not None and laid_out >= LAID_OUT:
            break
        laid_out += 1
        step = place(layout, orders)
        pattern = _timed(step, staggered)
        missing = _lacking(step, pattern)
        if missing is not None:
            lacking.append(missing)
        elif best is None or pattern < best.pattern:
            best = Found(step, pattern, plan, engine)
            listen(engine, pattern)
    if best is None:
        raise InvalidProblem([min(lacking, key=lambda violation: violation.missing)])
    return best


# --- our own ------------------------------------------------------------------------------------


def own_step(batch: Batch, wish: Wish, listen: Listener = lambda *_: None) -> Found:
    """The shortest step found by our own orders, over the shapes that ``wish`` leaves open, within the memory.

    Raises :class:`InvalidProblem` where nothing can be laid out, or fits in memory.
    """
    if wish.chunks is None:
        kinds = [(1, "turn"), (2, "back"), (2, "turn")] if batch.trains else [(1, "turn")]
    else:
        kinds = [(wish.chunks, "turn"), *([(wish.chunks, "back")] if wish.chunks > 1 else [])]
    layouts = _layouts(batch, shapes(batch, wish, kinds))
    effort = round(wish.effort * CELLS)
    looked: list[tuple[int, int, Layout]] = []
    refused: list[Violation] = []
    for number, layout in enumerate(layouts):
        share = round(effort * SCREENED) // len(layouts)
        try:
            orders = _orders(layout, wish, _limits(layout), share)
        except DoesNotFit as failure:
            refused.append(_too_much(layout, failure))
            continue
        looked.append((_estimate(layout, orders, wish.staggered), number, layout))
    if not looked:
        raise InvalidProblem([min(refused, key=lambda violation: violation.missing)])
    best: Found | None = None
    done = 0
    for _, _, layout in sorted(looked, key=lambda each: each[:2]):
        if best is not None and done >= LAID_OUT:
            break
        done += 1
        found = _fitting(layout, wish, round(effort * (1 - SCREENED)) // LAID_OUT)
        if isinstance(found, Violation):
            refused.append(found)
        elif best is None or found.pattern < best.pattern:
            best = found
            listen(found.engine, found.pattern)
    if best is None:
        raise InvalidProblem([min(refused, key=lambda violation: violation.missing)])
    return best


def _limits(layout: Layout) -> list[int] | None:
    """Bytes that values may take on each rank."""
    memory = layout.batch.problem.memory
    return [memory - params for params in layout.parameters()] if memory else None


def _orders(layout: Layout, wish: Wish, limits: Sequence[int] | None, effort: int) -> Orders:
    line, batch = layout.line, layout.batch
    if not batch.trains:
        cells = [[Cell("F", s, i) for i in range(batch.microbatches)] for s in range(len(line.stages))]
        return [sum((cells[s] for s in _on(line, rank)), []) for rank in range(line.ranks)]
    objective = "span" if wish.staggered else "makespan"
    return schedule_step(line, batch.microbatches, limits, objective=objective, effort=effort, seed=wish.seed)


def _on(line: Line, rank: int) -> list[int]:
    return [s for s, stage in enumerate(line.stages) if stage.rank == rank]


def _fitting(layout: Layout, wish: Wish, effort: int) -> Found | Violation:
    """Our own step on a layout. What a rank holds beside the values its line knows of is taken off, until it fits."""
    limits = _limits(layout)
    lacking: Violation | None = None
    for _ in range(ROUNDS):
        try:
            step = place(layout, _orders(layout, wish, limits, effort))
        except DoesNotFit as failure:
            return lacking or _too_much(layout, failure)
        pattern = _timed(step, wish.staggered)
        missing = _lacking(step, pattern)
        if missing is None:
            return Found(step, pattern, "own", "orders")
        if lacking is None or missing.missing < lacking.missing:
            lacking = missing
        if limits is None:
            return missing
        held = peaks(step, pattern)
        for rank, block in enumerate(layout.blocks):
            need = max(sum(sizes) for members, sizes in held.items() if set(members) & set(block))
            limits[rank] -= max(0, need - layout.batch.problem.memory)
    assert lacking is not None
    return lacking


def _too_much(layout: Layout, failure: DoesNotFit) -> Violation:
    block, memory = layout.blocks[failure.rank], layout.batch.problem.memory
    need, params = failure.needed + memory - failure.limit, memory - failure.limit
    message = (
        f"accelerator {block[0]} lacks {need - memory} bytes of {memory} for a single micro-batch: {params} are for"
        f" parameters and what lies beside them, {failure.needed} for its values"
    )
    return Violation("memory", message, (), need - memory)
