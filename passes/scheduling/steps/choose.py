"""Steps of a batch by a known schedule, on the shape that makes them shortest.

What comes of a shape is estimated on its line first; those that look best are laid out in time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from passes.scheduling.data import InvalidProblem, Violation
from passes.scheduling.steps.batch import Batch
from passes.scheduling.steps.cuts import layers
from passes.scheduling.steps.fitting import Found, Weighed, forward, in_time, weigh
from passes.scheduling.steps.known import KNOWN, in_turn, there_and_back
from passes.scheduling.steps.layout import Shape, laid_out
from passes.scheduling.steps.shapes import Wish, lay_out, shapes

LAID_OUT = 3
"""Shapes that are laid out in time, the best by their lines."""

CHUNKS = 4
"""Most chunks on a rank of a uniform plan."""

Listener = Callable[[str, int], None]
"""Told of an engine and the pattern of the best step so far."""


def silent(engine: str, pattern: int) -> None:
    """Tell nobody."""


def known_step(batch: Batch, name: str, wish: Wish, listen: Listener = silent) -> Found:
    """The shortest step of a known schedule, over the shapes that ``wish`` leaves open.

    Raises :class:`InvalidProblem` where none can be made, or fits in memory: with the least bytes that are missing.
    """
    schedule = KNOWN[name]
    if wish.chunks is not None and schedule.chunks not in (None, wish.chunks):
        message = f"{name} has {schedule.chunks} chunk{'s' * (schedule.chunks != 1)} on a rank, not {wish.chunks}"
        raise InvalidProblem([Violation("fixed", message)])
    way = "back" if schedule.placement is there_and_back else "turn"
    kinds = [(schedule.chunks or wish.chunks or 2, way)]
    staggered = schedule.staggered or wish.staggered
    engine = "known" if wish.cut == "balanced" else "uniform"
    tried: list[Weighed] = []
    for layout in lay_out(batch, shapes(batch, wish, kinds)):
        orders = forward(batch, schedule.generate(layout.line, batch.microbatches))
        tried.append(weigh(layout, orders, staggered, name, engine))
    return _best(tried, staggered, listen)


def _best(tried: Sequence[Weighed], staggered: bool, listen: Listener) -> Found:
    """The shortest step of the most promising ones that fit; where none fits, the one that lacks least is named."""
    best: Found | None = None
    lacking: list[Violation] = []
    for number, one in enumerate(sorted(tried, key=lambda each: (each.missing, each.time))):
        if (best is not None and number >= LAID_OUT) or (one.missing and (best is not None or lacking)):
            break
        found = in_time(one, staggered)
        if isinstance(found, Violation):
            lacking.append(found)
        elif best is None or found.pattern < best.pattern:
            best = found
            listen(found.engine, found.pattern)
    if best is None:
        raise InvalidProblem([min(lacking, key=lambda violation: violation.missing)])
    return best


def uniform_step(batch: Batch, wish: Wish, listen: Listener = silent) -> Found:
    """The uniform plan of runtimes: equal layers, one tensor-parallel degree, 1F1B or interleaved 1F1B.

    The fastest of the numbers of stages, chunks and accelerators that fit (Narayanan et al., SC 2021). Raises
    :class:`InvalidProblem` as :func:`known_step` does.
    """
    count = batch.problem.accelerators
    depth = len(layers(batch))
    numbers = [wish.stages] if wish.stages is not None else [p for p in range(1, count + 1) if depth % p == 0]
    tried: list[Weighed] = []
    reason: InvalidProblem | None = None
    for ranks, halved in product((p for p in numbers if p <= count), (1, 2)):
        width = count // ranks // halved
        for chunks in (v for v in range(1, CHUNKS + 1) if depth % (ranks * v) == 0 and (v == 1 or ranks > 1)):
            name = "1F1B" if chunks == 1 else "interleaved 1F1B"
            try:
                layout = laid_out(batch, Shape(ranks, width, chunks, in_turn, "equal"))
            except InvalidProblem as failure:
                reason = reason or failure
                continue
            orders = forward(batch, KNOWN[name].generate(layout.line, batch.microbatches))
            tried.append(weigh(layout, orders, wish.staggered, name, "uniform"))
    if not tried:
        raise reason or InvalidProblem([Violation("equal", f"{depth} layers cannot be cut into equal stages")])
    return _best(tried, wish.staggered, listen)
