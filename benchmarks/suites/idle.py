"""Where the time of a step goes on its busiest rank, read from a scheduled module."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from compiler.view import Edge, Move, ScheduleView


@dataclass(frozen=True)
class Shape:
    """How a step lies on the platform: ranks, accelerators of each, and chunks of the model on each."""

    ranks: int
    width: int
    chunks: int

    def __str__(self) -> str:
        return f"{self.ranks} x {self.width}" + (f", {self.chunks} chunks" if self.chunks > 1 else "")


def shape(view: ScheduleView) -> Shape:
    """The shape of a training step of ``schedule-step``, whose chunks have a stage forward and one backward each."""
    blocks = {stage.granted for stage in view.stages}
    return Shape(len(blocks), max(map(len, blocks)), len(view.stages) // 2 // len(blocks))


@dataclass(frozen=True)
class Split:
    """The time of a step on one accelerator, in ns: the parts add up to the step."""

    work: int
    optimizer: int
    ends: int
    """Before its first start and after its last end: the pipeline fills and drains."""
    messages: int
    """In between, while what it waits for is on its way."""
    others: int
    """In between, while it waits for other ranks to work."""


def busiest(view: ScheduleView) -> int:
    """The accelerator that works longest; of several, the first."""
    return max(view.load, key=lambda p: (view.load[p], -p))


def imbalance(view: ScheduleView) -> float:
    """Work of the busiest accelerator, by the mean of all."""
    return float(max(view.load.values()) * len(view.load) / sum(view.load.values(), Fraction(0)))


def price_of_width(view: ScheduleView) -> float:
    """Accelerator time of all operators as they run, by the least that they could take: what wide sets cost."""
    taken = sum(task.time * task.allotment for task in view.tasks)
    least = sum(min(k * time for k, time in task.times) for task in view.tasks)
    return taken / least


def split(view: ScheduleView, accelerator: int) -> Split:
    """The parts of a step on an accelerator, by the gaps between what it runs."""
    feeding: list[list[Edge]] = [[] for _ in view.tasks]
    for edge in view.edges:
        feeding[edge.consumer].append(edge)
    runs = [
        (start, start + task.time, task.index, i)
        for task in view.tasks
        if accelerator in task.copies[0]
        for i, start in enumerate(task.starts)
        if task.time
    ]
    updates = [(u.start, u.start + u.time) for u in view.updates if accelerator in u.place and u.start is not None]
    found = sorted(runs)
    until, messages, others = found[0][0], 0, 0
    for start, end, number, i in found:
        if start > until:
            left = max((_left(view, edge, i) for edge in feeding[number]), default=until)
            waited = start - max(until, min(left, start))
            messages += waited
            others += start - until - waited
        until = max(until, end)
    optimizer = sum(end - start for start, end in updates)
    last = max([until, *(end for _, end in updates)])
    others += last - until - optimizer
    work = sum(end - start for start, end, _, _ in found)
    return Split(work, optimizer, view.pattern - (last - found[0][0]), messages, others)


def _left(view: ScheduleView, edge: Edge, i: int) -> int:
    """When the last of what an edge hands on was made, or has left for the reader."""
    moves: list[Move] = list(view.carriers[edge].values())
    producer = view.tasks[edge.producer]
    return max([producer.starts[i] + producer.time, *(move.starts[i] for move in moves)])
