"""What a training step is made of, and what an order of it takes: time, idle time, memory. Times are integer ns.

A *cell* is a stage at work for one micro-batch: ``F`` forward, ``I`` the gradient of its inputs, ``W`` that of its
weights, ``B`` both in one. A rank works through its cells one after the other. ``F`` of a stage needs that of the
stage before, ``I`` or ``B`` that of the stage behind (of the last stage, its own ``F``), ``W`` its own ``I``. What
changes ranks arrives a delay later and occupies nobody (the model of Qi, Wan, Huang, Lin, "Zero Bubble Pipeline
Parallelism", ICLR 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["F", "B", "I", "W"]


class Cell(NamedTuple):
    """A stage at work for one micro-batch."""

    kind: Kind
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


Orders = Sequence[Sequence[Cell]]
"""The cells of every rank, in order."""


@dataclass(frozen=True)
class Stage:
    """A stage on a rank; ``forward``, ``inputs`` and ``weights`` are the times of ``F``, ``I`` and ``W``.

    ``F`` fills ``activation`` bytes. ``I`` leaves ``kept`` of them, and what ``W`` needs beside them, for ``W``, which
    frees them; ``B`` frees all. What a cell fills it holds from its start, what it frees until its end.
    """

    rank: int
    forward: int
    inputs: int
    weights: int
    activation: int = 1
    kept: int = 0

    def time(self, kind: Kind) -> int:
        """How long a cell takes."""
        return {"F": self.forward, "I": self.inputs, "W": self.weights, "B": self.inputs + self.weights}[kind]

    def change(self, kind: Kind) -> int:
        """Bytes that are held after a cell and were not before."""
        changes = {"F": self.activation, "I": self.kept - self.activation, "W": -self.kept, "B": -self.activation}
        return changes[kind]

    @property
    def work(self) -> int:
        """What one micro-batch takes in all."""
        return self.forward + self.inputs + self.weights


@dataclass(frozen=True)
class Line:
    """Stages in the order in which a micro-batch passes them, on ranks ``0 .. ranks - 1``; ``delay`` between ranks.

    ``delays`` are those between each stage and the next, both ways, where they differ.
    """

    stages: tuple[Stage, ...]
    delay: int = 0
    delays: tuple[int, ...] = ()

    def lag(self, s: int, t: int) -> int:
        """How long it takes from a stage to a neighbour, ns; what stays on a rank is there at once."""
        if self.stages[s].rank == self.stages[t].rank:
            return 0
        return self.delays[min(s, t)] if self.delays else self.delay

    @property
    def ranks(self) -> int:
        return 1 + max(stage.rank for stage in self.stages)

    def work(self, rank: int) -> int:
        """What one micro-batch takes on a rank."""
        return sum(stage.work for stage in self.stages if stage.rank == rank)

    def needs(self, cell: Cell, whole: bool) -> Iterator[Cell]:
        """The cells that one reads from; ``whole`` stages have ``B`` and no ``I``."""
        kind, s, i = cell
        back: Kind = "B" if whole else "I"
        if kind == "F":
            if s:
                yield Cell("F", s - 1, i)
        elif kind == "W":
            yield Cell("I", s, i)
        elif s + 1 < len(self.stages):
            yield Cell(back, s + 1, i)
        else:
            yield Cell("F", s, i)


class Stuck(ValueError):
    """Orders in which ranks wait for each other in a circle, or for a cell that none has."""


@dataclass(frozen=True)
class Spans:
    """When each rank begins its first cell and ends its last one."""

    first: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def makespan(self) -> int:
        """From 0 to the end of the last cell."""
        return max(self.last)

    @property
    def span(self) -> int:
        """The longest time from the first start to the last end on one rank."""
        return max(end - start for start, end in zip(self.first, self.last, strict=True))


@dataclass(frozen=True)
class Run(Spans):
    """What orders take: the start of each cell, and of each rank its busy time and the most bytes it holds."""

    starts: Mapping[Cell, int]
    ends: Mapping[Cell, int]
    busy: tuple[int, ...]
    peaks: tuple[int, ...]

    def bubble(self, cost: int) -> float:
        """The share of ``cost`` (the makespan, or the span) in which the busiest rank is idle."""
        return 1 - max(self.busy) / cost
