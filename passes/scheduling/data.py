"""Plain data of scheduling problems and their solutions.

Times are integer nanoseconds, sizes integer bytes; operations and accelerators are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What an operation costs at one allotment: time, and bytes on each accelerator of its set."""

    time: int
    params: int = 0
    output: int = 0
    workspace: int = 0


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


@dataclass(frozen=True)
class Input:
    """A value of ``bytes`` that arrives with every micro-batch."""

    name: str
    bytes: int
    consumers: tuple[int, ...]


@dataclass(frozen=True)
class Solution:
    """A periodic schedule: instance ``i`` of operation ``v`` runs on ``sets[v]`` from ``starts[v] + i*period``."""

    period: int
    allotments: tuple[int, ...]
    sets: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]


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
