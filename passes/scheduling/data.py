"""Plain data of scheduling problems and their solutions.

Times are integer nanoseconds, sizes integer bytes; operations and accelerators are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import lcm


@dataclass(frozen=True)
class Cost:
    """What an operation costs at one allotment: time, and bytes on each accelerator of its set."""

    time: int
    params: int = 0
    output: int = 0
    workspace: int = 0
    version: int = 0
    """One more version of the parameters, where several are kept."""


Table = Mapping[int, Cost]
"""Allotment (number of accelerators) → cost. Neither monotone nor complete in general."""


@dataclass(frozen=True)
class Operation:
    """One operation of the repeated graph. Identical operations should share one ``table`` object."""

    name: str
    table: Table
    block: str = ""
    """The block of the model that it was expanded from: equal and not empty for operations of one block."""


@dataclass(frozen=True)
class Dependence:
    """``consumer`` of micro-batch ``i + distance`` reads result ``result`` (``bytes``) of ``producer`` of ``i``."""

    producer: int
    consumer: int
    bytes: int = 0
    distance: int = 0
    result: int = 0
    split: bool = False
    """Whether each accelerator of a set holds its share of the value; else each holds all of it."""


@dataclass(frozen=True)
class Input:
    """A value of ``bytes`` that arrives with every micro-batch."""

    name: str
    bytes: int
    consumers: tuple[int, ...]


@dataclass(frozen=True)
class Transfer:
    """A result on its way to a set that reads it: of micro-batch ``i`` during ``time`` ns from ``start + i*period``.

    It goes from the producer's set to ``targets[i % len(targets)]``. It arrives from ``landing`` on, for as long:
    at once, or later where a buffer lies in between.
    """

    producer: int
    result: int
    targets: tuple[tuple[int, ...], ...]
    start: int
    time: int
    landing: int
    consumer: int | None = None
    """The only reader it serves, where the network moves a value anew for each reader."""

    @property
    def ready(self) -> int:
        """When the value of micro-batch 0 may be read."""
        return self.landing + self.time

    def target_of(self, instance: int) -> tuple[int, ...]:
        """Where the value of micro-batch ``instance`` goes."""
        return self.targets[instance % len(self.targets)]


@dataclass(frozen=True)
class Solution:
    """A periodic schedule: instance ``i`` of operation ``v`` runs on its set from ``starts[v] + i*period``.

    The set is ``sets[v]``; an operation with further sets in ``more`` has copies, which take turns:
    instance ``i`` runs on ``copies(v)[i % len(copies(v))]``.
    """

    period: int
    allotments: tuple[int, ...]
    sets: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    more: Mapping[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict[int, tuple[tuple[int, ...], ...]])
    """Operation → the sets of its other copies, for those that have some."""
    transfers: tuple[Transfer, ...] = ()
    """What moves between sets, on a platform whose links are known."""

    @cached_property
    def arrivals(self) -> dict[tuple[int, int, tuple[tuple[int, ...], ...], int | None], Transfer]:
        """The transfers, by producer, result, targets and the only reader they are for."""
        return {(t.producer, t.result, t.targets, t.consumer): t for t in self.transfers}

    def copies(self, v: int) -> tuple[tuple[int, ...], ...]:
        """The set of every copy of operation ``v``."""
        return (self.sets[v], *self.more.get(v, ()))

    def set_of(self, v: int, instance: int) -> tuple[int, ...]:
        """The set on which operation ``v`` of micro-batch ``instance`` runs."""
        others = self.more.get(v)
        turn = instance % (1 + len(others)) if others else 0
        return others[turn - 1] if others and turn else self.sets[v]

    @property
    def repetition(self) -> int:
        """Micro-batches after which all copies are used as before: the least common multiple of their numbers."""
        return lcm(*{1 + len(others) for others in self.more.values()})


@dataclass(frozen=True)
class Violation:
    """A broken rule: its name, a message for a person, and the operations concerned."""

    rule: str
    message: str
    operations: tuple[int, ...] = ()
    missing: int = 0
    """Rule ``memory``: bytes that are missing on the worst accelerator."""


class InvalidProblem(ValueError):
    """The input of a problem, or a solution of it, breaks a rule."""

    def __init__(self, violations: Sequence[Violation]):
        self.violations = tuple(violations)
        super().__init__("; ".join(v.message for v in self.violations[:5]))
