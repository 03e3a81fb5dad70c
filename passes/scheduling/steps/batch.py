"""A graph as the work of a step: what each of its operations is to a cell, and what the optimizer does at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from passes.scheduling.data import Dependence, Table
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.steps.cells import Kind


@dataclass(frozen=True)
class Update:
    """The step of the optimizer for a group: once a batch, on the accelerators of the group."""

    name: str
    member: int
    """An operation of the group."""
    reads: tuple[int, ...]
    """The gradients of weights that must have ended for all micro-batches, and come here from other groups."""
    times: Mapping[int, int]
    """Allotment → ns, without what gradients take that come from other accelerators."""
    bytes: int = 0
    """Of such a gradient."""


@dataclass(frozen=True)
class Batch:
    """``microbatches`` of the graph of ``problem``; ``kinds`` says of each operation whether it is of ``F``, ``I`` or
    ``W``. Without backward operations all are ``F``."""

    problem: MemoryProblem
    kinds: tuple[Kind, ...]
    updates: tuple[Update, ...]
    microbatches: int

    @cached_property
    def forward(self) -> tuple[int, ...]:
        """The operations of ``F`` in program order."""
        return tuple(v for v, kind in enumerate(self.kinds) if kind == "F")

    @property
    def trains(self) -> bool:
        """Whether there are backward operations."""
        return len(self.forward) < len(self.kinds)

    @cached_property
    def item_of(self) -> tuple[int, ...]:
        """Number of the item (group, or single operation) of each operation."""
        found = [0] * len(self.kinds)
        for number, item in enumerate(self.problem.items):
            for v in item:
                found[v] = number
        return tuple(found)

    @cached_property
    def updates_of(self) -> Mapping[int, list[Update]]:
        """Item → the steps of the optimizer for it."""
        found: dict[int, list[Update]] = {}
        for update in self.updates:
            found.setdefault(self.item_of[update.member], []).append(update)
        return found

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """The table of each item, at the allotments that its operations and its steps of the optimizer all have."""
        tables: list[Table] = []
        for number, table in enumerate(self.problem.item_tables):
            steps = self.updates_of.get(number, [])
            common = [k for k in table if all(k in step.times for step in steps)]
            tables.append(table if len(common) == len(table) else {k: table[k] for k in common})
        return tuple(tables)

    @cached_property
    def reads(self) -> tuple[tuple[Dependence, ...], ...]:
        """What each operation reads."""
        found: list[list[Dependence]] = [[] for _ in self.kinds]
        for d in self.problem.dependences:
            found[d.consumer].append(d)
        return tuple(map(tuple, found))

    @cached_property
    def readers(self) -> tuple[tuple[Dependence, ...], ...]:
        """Who reads what each operation makes."""
        found: list[list[Dependence]] = [[] for _ in self.kinds]
        for d in self.problem.dependences:
            found[d.producer].append(d)
        return tuple(map(tuple, found))

    def names(self, operations: Sequence[int]) -> str:
        """Names for a message."""
        return " and ".join(f"'{self.problem.operations[v].name}'" for v in operations[:2])
