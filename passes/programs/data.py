"""A schedule with its transfers as plain data, and the programs made of it. Times are integer ticks.

Everything repeats after a window: a period, or all micro-batches of a step. Whatever is done for a micro-batch has one
moment in a periodic schedule, that of micro-batch 0, and in a step one for each of its micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from passes.programs.messages import Members

Rows = NDArray[np.int64]

COMPUTE, SEND, RECV, COPY, ALL_GATHER, FREE, UPDATE = range(7)
"""Kinds of instructions."""

MICROBATCH = 4
"""Column of the micro-batch in a row: kind, subject, result, destination, micro-batch, peer, begin, end."""

MOST_INSTRUCTIONS = 4_000_000
"""No more are made: thousands of micro-batches in flight on thousands of accelerators would fill the memory."""


class TooLong(Exception):
    """The programs would have ``instructions`` instructions, more than :data:`MOST_INSTRUCTIONS`."""

    def __init__(self, instructions: int):
        super().__init__(f"{instructions} instructions")
        self.instructions = instructions


@dataclass(frozen=True)
class Operator:
    """An operator: micro-batch ``i`` runs on set ``i mod copies``, from the moment that ``starts`` gives it on."""

    sets: tuple[Members, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """Result ``result`` of operator ``producer``, or, with ``producer`` ``-1 - n``, input ``n``; ``size`` in bytes.

    A value that is ``kept`` leaves the graph: its producer does not free it.
    """

    producer: int
    result: int
    size: int
    sharded: bool = False
    kept: bool = False


class Read(NamedTuple):
    """Operator ``reader`` reads a value that micro-batches ``distance`` before its own left, as it arrived.

    ``destination`` is 0 where the value itself is read, else that of one of its moves.
    """

    reader: int
    value: int
    destination: int
    distance: int


@dataclass(frozen=True)
class Move:
    """A value on its way to destination ``destination`` (from 1): micro-batch ``i`` to target ``i mod targets``.

    ``moments`` are when both ends take part. In the turns of ``gathered`` the targets get pieces and gather the whole.
    """

    value: int
    destination: int
    targets: tuple[Members, ...]
    moments: tuple[int, ...]
    gathered: tuple[bool, ...] = (False,)


class Update(NamedTuple):
    """An optimizer step, once a window from ``start`` on, on the accelerators ``on``."""

    on: Members
    start: int


@dataclass(frozen=True)
class Pipeline:
    """A schedule: operators in an order in which each stands behind those of its micro-batch it reads.

    ``together`` micro-batches begin in a window of ``window`` ticks. ``updates`` are in the order of the graph.
    """

    window: int
    operators: tuple[Operator, ...]
    values: tuple[Value, ...]
    reads: tuple[Read, ...]
    moves: tuple[Move, ...]
    together: int = 1
    updates: tuple[Update, ...] = ()

    def moment(self, moments: tuple[int, ...], microbatch: int) -> int:
        """The moment of a micro-batch."""
        lap, turn = divmod(microbatch, self.together)
        return moments[turn] + lap * self.window


@dataclass(frozen=True)
class Program:
    """The instructions of one accelerator; an all-gather names its accelerators by their number in ``groups``."""

    prologue: Rows
    kernel: Rows
    epilogue: Rows
    groups: tuple[Members, ...]


@dataclass(frozen=True)
class Programs:
    """The programs by accelerator: ``base + step * trips`` micro-batches; with ``trips`` None there is no end."""

    base: int
    step: int
    trips: int | None
    of: Mapping[int, Program]


Key = tuple[Any, ...]
"""A place in the common order of all instructions."""
