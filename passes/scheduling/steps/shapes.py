"""The shapes that a step may have: numbers of ranks, and how their chunks are placed and cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from passes.scheduling.blocks import pack_blocks
from passes.scheduling.data import InvalidProblem, Violation
from passes.scheduling.steps.batch import Batch
from passes.scheduling.steps.known import in_turn, there_and_back
from passes.scheduling.steps.layout import Cut, Layout, Shape, laid_out

SLACK = 0.03
"""By how much chunks may be longer than they need be, in shapes that are tried beside the balanced ones."""


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
            filled = (True, False) if width > 1 else (True,)
            for each in product(filled, (0.0, SLACK)) if wish.cut == "balanced" else ((True, 0.0),):
                yield replace(shape, filled=each[0], slack=each[1])


def lay_out(batch: Batch, found: Iterable[Shape]) -> list[Layout]:
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
        raise reason or InvalidProblem([Violation("one", "several chunks on a rank take two ranks or more")])
    return layouts
