"""Bytes that contiguous stages hold where a micro-batch comes back to them, as it does in training.

The order is cut after it was *gathered*: operations of a group stand at the first of them, so a stage runs part of the
way there and the same part of the way back. Its blocks are numbered from the end, where a micro-batch turns. A value
read after the turn and made before it is *held*: by the block that made it if that reads it again, and by every block
that receives it for that. While it is held ``n`` micro-batches pass (:func:`in_flight`), so a block of the operations
``[i, j)`` holds ::

    params(i, j) + n·(made(i, j) - left(j) + received(i)) + passing

``made`` counts the results read after the turn, ``left(j)`` those of them that are read beyond ``j`` only, and
``received(i)`` what comes from before ``i``. ``passing`` is a little for all other values, which live shortly. Sums
are over prefixes, but for the last two, which belong to the ends; so the bytes grow with the stage, nearly.
It is an estimate: a schedule shows what it holds exactly, and is looked at (``fitting.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.scheduling.crossings import share
from passes.scheduling.data import Dependence
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.profiles import Choices, Profile
from passes.scheduling.together import gathered

Numbers = NDArray[Any]

PASSING = 2
"""How many times the largest output and workspace of an operation count for values that pass."""


@dataclass(frozen=True)
class Bytes:
    """Of one width, at every cut: prefix sums of parameters and of what is made, and what belongs to ends."""

    params: Numbers
    made: Numbers
    left: Numbers
    received: Numbers
    passing: int


class HeldProfile:
    """An order, gathered, with what its stages take and hold on each width of ``choices``."""

    def __init__(self, problem: MemoryProblem, choices: Choices, order: Sequence[int]):
        self.order, self.line = tuple(order), gathered(order, problem.items)
        self.choices = choices
        self.profile = Profile(choices, self.line)
        self.widths, self.n, self.accelerators = self.profile.widths, self.profile.n, self.profile.accelerators
        self._place = _positions(self.line)
        self.turn = self._turn(problem)
        self.there = self._there(choices)
        readers = self._held_readers(problem)
        allotments = {
            v: choices.allotments[id(table)]
            for item, table in zip(problem.items, problem.item_tables, strict=True)
            for v in item
        }
        self.time = [_exact(sums) for sums in self.profile.time]
        self.bytes = [self._bytes(problem, number, readers, allotments) for number in range(len(self.widths))]

    def _turn(self, problem: MemoryProblem) -> int:
        """Position in the order of the first operation of what ends the line: there a micro-batch turns."""
        last = next((item for item in problem.items if self.line and self.line[-1] in item), ())
        position = _positions(self.order)
        return min((position[v] for v in last), default=0)

    def _there(self, choices: Choices) -> float:
        """What part of the time is on the way there, on the narrowest width."""
        times = [choices.rows[choices.keys[v]][0][0] for v in self.order]
        return sum(times[: self.turn]) / max(1, sum(times))

    def _held_readers(self, problem: MemoryProblem) -> dict[int, list[Dependence]]:
        """The dependences on each operation before the turn that are read after it."""
        position = _positions(self.order)
        found: dict[int, list[Dependence]] = {}
        for d in problem.dependences:
            if d.distance == 0 and position[d.producer] < self.turn <= position[d.consumer]:
                found.setdefault(d.producer, []).append(d)
        return found

    def _bytes(
        self,
        problem: MemoryProblem,
        number: int,
        readers: dict[int, list[Dependence]],
        allotments: dict[int, list[int | None]],
    ) -> Bytes:
        n, members = len(self.line), tuple(range(self.widths[number]))
        made, left, received, passing = [0] * n, [0] * (n + 2), [0] * (n + 2), 0
        for v in range(n):
            k = allotments[v][number]
            if k is None:
                continue  # never on this width: its time forbids it
            cost, at = problem.operations[v].table[k], self._place[v]
            passing = max(passing, cost.output + cost.workspace)
            if v not in readers:
                continue
            made[at] = cost.output
            nearest = min(self._place[d.consumer] for d in readers[v])
            _between(left, at, nearest, cost.output)
            furthest: dict[int, tuple[int, Dependence]] = {}
            for d in readers[v]:
                furthest[d.result] = max(furthest.get(d.result, (at, d)), (self._place[d.consumer], d), key=_first)
            for until, d in furthest.values():
                _between(received, at, until, share(d, members))
        cuts = list(self.profile.cuts)
        sums = [list(accumulate(made, initial=0)), *(list(accumulate(ends))[: n + 1] for ends in (left, received))]
        made_sums, left_at, received_at = (_exact([line[at] for at in cuts]) for line in sums)
        return Bytes(_exact(self.profile.params[number]), made_sums, left_at, received_at, PASSING * passing)

    def bytes_of(self, begin: int, end: int, number: int, held: int) -> int:
        """What a block of the width of this number holds of the stage ``[begin, end)``, in cuts, and ``held`` times."""
        b = self.bytes[number]
        kept = b.made[end] - b.made[begin] - b.left[end] + b.received[begin]
        return int(b.params[end] - b.params[begin] + held * kept) + b.passing


def _first(pair: tuple[int, Dependence]) -> int:
    return pair[0]


def _positions(order: Sequence[int]) -> list[int]:
    place = [0] * len(order)
    for position, v in enumerate(order):
        place[v] = position
    return place


def _between(changes: list[int], made: int, read: int, size: int) -> None:
    """Count ``size`` at all cuts after position ``made`` up to position ``read``."""
    if read > made:
        changes[made + 1] += size
        changes[read + 1] -= size


def _exact(numbers: Sequence[int]) -> Numbers:
    """64-bit integers where products with numbers of micro-batches stay below 2^62, Python integers otherwise."""
    return np.array(numbers, dtype=np.int64 if max(numbers, default=0) < 2**48 else object)


def in_flight(loads: int, period: int, there: float, blocks: int) -> list[int]:
    """Micro-batches that each of ``blocks`` blocks holds, from the end, when each is busy ``loads`` ns a period.

    A block is busy the part ``there`` of that on the way there. It takes the micro-batch up again as soon as that
    comes back and its accelerators are free on the circle: with full blocks each holds one more than the next, with
    half of a period to spare two in a row hold as many (as 1F1B*: Beaumont, Eyraud-Dubois, Shilova, "Pipelined model
    parallelism: complexity results and memory considerations", Euro-Par 2021).
    """
    ahead = int(there * loads)
    back = loads - ahead
    away = ahead
    found: list[int] = []
    for number in range(blocks):
        if number:
            away += loads
            phase = away % period
            if not ahead <= phase <= period - back:
                away += (ahead - phase) % period
        found.append(-(-(away + back) // period))
    return found
