"""The schedules of the literature, by the names that their papers give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from passes.scheduling.steps.cells import Line, Orders, Run, Stage
from passes.scheduling.steps.one_forward_one_backward import (
    gpipe,
    interleaved,
    one_forward_one_backward,
    one_forward_one_backward_star,
)
from passes.scheduling.steps.zero_bubble import dualpipe_v, zb_h1, zb_h2, zb_v

Generator = Callable[[Line, int], Orders]
"""Orders of the stages of a line for so many micro-batches."""

Placement = Callable[[int, int], tuple[int, ...]]
"""The rank of every stage, for so many ranks and chunks on each."""


def in_turn(ranks: int, chunks: int) -> tuple[int, ...]:
    """Stage s is on rank s mod p."""
    return tuple(range(ranks)) * chunks


def there_and_back(ranks: int, chunks: int) -> tuple[int, ...]:
    """Chunks go from the first rank to the last and from the last to the first in turn."""
    there = tuple(range(ranks))
    return tuple(rank for chunk in range(chunks) for rank in (there[::-1] if chunk % 2 else there))


@dataclass(frozen=True)
class Known:
    """A schedule of the literature.

    ``chunks`` is how many stages a rank has, None where that is free. ``generate`` gives the orders for a line whose
    stages are placed as ``placement`` says. ``staggered`` steps are measured by the span of a rank, as in their paper:
    ranks that begin later also end later, and no rank waits for all others before it begins the next step.
    """

    chunks: int | None
    generate: Generator
    placement: Placement = in_turn
    staggered: bool = False

    def cost(self, taken: Run) -> int:
        """What a step takes, as the paper of the schedule counts it."""
        return taken.span if self.staggered else taken.makespan

    def line(self, ranks: int, stage: Stage, delay: int = 0, chunks: int = 1) -> Line:
        """Stages that all take what ``stage`` does; ``chunks`` counts where the schedule leaves it free."""
        places = self.placement(ranks, self.chunks or chunks)
        parts = (stage.forward, stage.inputs, stage.weights, stage.activation, stage.kept)
        return Line(tuple(Stage(rank, *parts) for rank in places), delay)


KNOWN: Mapping[str, Known] = {
    "GPipe": Known(1, lambda line, m: gpipe(line.ranks, m)),
    "1F1B": Known(1, lambda line, m: one_forward_one_backward(line.ranks, m)),
    "1F1B*": Known(1, one_forward_one_backward_star),
    "interleaved 1F1B": Known(None, lambda line, m: interleaved(line.ranks, m, len(line.stages) // line.ranks)),
    "ZB-H1": Known(1, lambda line, m: zb_h1(line.ranks, m)),
    "ZB-H2": Known(1, lambda line, m: zb_h2(line.ranks, m), staggered=True),
    "ZB-V": Known(2, lambda line, m: zb_v(line.ranks, m), there_and_back, staggered=True),
    "DualPipe-V": Known(2, lambda line, m: dualpipe_v(line.ranks, m), there_and_back),
}
