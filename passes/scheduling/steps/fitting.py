"""What orders on a layout take, first by their line, then laid out in time; and whether that fits in memory."""

from __future__ import annotations

from dataclasses import dataclass

from passes.scheduling.data import Violation
from passes.scheduling.steps.batch import Batch
from passes.scheduling.steps.cells import Orders
from passes.scheduling.steps.layout import Layout, Members
from passes.scheduling.steps.memory import peaks
from passes.scheduling.steps.overlap import least_pattern
from passes.scheduling.steps.place import Step, place
from passes.scheduling.steps.run import run


@dataclass(frozen=True)
class Found:
    """A step that fits, how soon the next one follows, and what made it."""

    step: Step
    pattern: int
    plan: str
    engine: str


def forward(batch: Batch, orders: Orders) -> Orders:
    """The cells that a batch has work for."""
    return orders if batch.trains else [[cell for cell in cells if cell.kind == "F"] for cells in orders]


@dataclass(frozen=True)
class Weighed:
    """Orders on a layout, and what they take by the line: ns, and the bytes that are missing on a rank."""

    layout: Layout
    orders: Orders
    time: int
    missing: int
    plan: str
    engine: str


def weigh(layout: Layout, orders: Orders, staggered: bool, plan: str, engine: str) -> Weighed:
    """What a step takes by its line: until the last rank has done its steps of the optimizer."""
    taken = run(layout.line, orders)
    tails = [0] * len(layout.blocks)
    for update in layout.batch.updates:
        tails[layout.rank(update.member)] += layout.update_time(update)
    firsts = taken.first if staggered else [0] * len(tails)
    time = max(last - first + tail for first, last, tail in zip(firsts, taken.last, tails, strict=True))
    limits = layout.room() or taken.peaks
    missing = max(peak - limit for peak, limit in zip(taken.peaks, limits, strict=True))
    return Weighed(layout, orders, time, max(0, missing), plan, engine)


def timed(step: Step, staggered: bool) -> int:
    """How soon the next step follows: no sooner than memory allows."""
    pattern = max(1, step.makespan)
    if staggered:
        tight = max(1, least_pattern(step))
        return tight if shortage(step, tight) is None else pattern
    return pattern


def shortage(step: Step, pattern: int) -> Violation | None:
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


def in_time(tried: Weighed, staggered: bool) -> Found | Violation:
    """The step in time, with its transfers; or what it lacks."""
    step = place(tried.layout, tried.orders)
    pattern = timed(step, staggered)
    return shortage(step, pattern) or Found(step, pattern, tried.plan, tried.engine)
