"""Memory of a periodic schedule: lifetimes of values, and the peak on every accelerator.

What lives when is defined in ``docs/ir.md`` ("memory"): parameters always, of a group once, in as many versions as
:mod:`dialects.versions` says; a workspace during a run; a result on its producer's set from the producer's start until
the last consumer there ends and the last transfer has left; a copy, or a share, on each other set that reads it, from
its landing (the producer's end without links) to the last consumer there; a graph input on each set that reads it, from
the first to the last consumer. What is read from a state ``distance`` micro-batches later is read with that
micro-batch, on its set. In a step, which repeats like a pattern, the workspace of an optimizer step lives while it
runs. Intervals are half-open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dialects.operators import tensor_bytes
from dialects.placement import Placed, Placement
from dialects.structure import InputOp
from dialects.versions import versions

Bytes = NDArray[Any]
"""64-bit or exact Python integers, one a group of accelerators."""

Content = Literal["workspace", "result", "received value", "input"]


@dataclass(frozen=True)
class Lifetime:
    """``size`` bytes on each accelerator of a set during ``[begin, begin + length)``, ticks, every repetition."""

    index: int
    """Index of the set in :attr:`Placement.sets`."""
    begin: int
    length: int
    size: int
    content: Content
    name: str
    """Operator or input it belongs to."""


@dataclass
class _Received:
    """What a set holds of the results of one operator: bytes by result, from the first landing to the last reader."""

    sizes: dict[int, int] = field(default_factory=dict[int, int])
    begin: int | None = None
    until: int = 0

    def add(self, result: int, size: int, begin: int, end: int) -> None:
        self.sizes[result] = size
        if size:
            self.begin = begin if self.begin is None else min(self.begin, begin)
        self.until = max(self.until, end)


class Memory:
    """Bytes on every accelerator in the steady state of a placement."""

    def __init__(self, placement: Placement):
        self.placement = placement
        self.cycle = placement.cycle
        """The state of the memory repeats after so many ticks."""

    # --- what lives when ---------------------------------------------------------------------

    @cached_property
    def lifetimes(self) -> list[Lifetime]:
        """Every non-empty lifetime that begins with one of the first ``repetition`` instances."""
        found: list[Lifetime] = []
        for instance in range(self.placement.repetition):
            for placed in self.placement.placed.values():
                found.extend(self._of_operator(placed, instance))
            for source in self.placement.inputs():
                found.extend(self._of_input(source, instance))
        for update in self.placement.updates.values():
            workspace = update.cost.workspace
            found.append(Lifetime(update.sets[0], update.start, update.time, workspace, "workspace", update.name))
        return [life for life in found if life.length > 0 and life.size > 0]

    def _of_operator(self, placed: Placed, instance: int) -> Iterator[Lifetime]:
        placement = self.placement
        home, start = placed.sets[instance % placed.copies], placement.begin(placed, instance)
        yield Lifetime(home, start, placed.time, placed.cost.workspace, "workspace", placed.name)
        last = end = start + placed.time
        received: dict[int, _Received] = {}
        for result in placed.op.outputs:
            size, sharded = tensor_bytes(result.type), placed.op.is_sharded(result.index)
            for consumer, distance in placement.consumers(result):
                there = consumer.sets[(instance + distance) % consumer.copies]
                read = placement.begin(consumer, instance + distance) + consumer.time
                if there == home:
                    last = max(last, read)
                    continue
                moves = placement.arrivals(result, consumer, distance)
                last = max([last, *(placement.begin(move, instance) + move.time for move in moves)])
                begin = min((placement.landing(move, instance) for move in moves), default=end)
                share = -(-size // len(placement.sets[there])) if sharded else size
                received.setdefault(there, _Received()).add(result.index, share, begin, read)
        yield Lifetime(home, start, last - start, placed.cost.output, "result", placed.name)
        for there, of in received.items():
            begin = end if of.begin is None else of.begin
            size = sum(of.sizes.values())
            yield Lifetime(there, begin, of.until - begin, size, "received value", placed.name)

    def _of_input(self, source: InputOp, instance: int) -> Iterator[Lifetime]:
        spans: dict[int, tuple[int, int]] = {}
        for consumer, _ in self.placement.consumers(source.output):
            there, start = consumer.sets[instance % consumer.copies], self.placement.begin(consumer, instance)
            end = start + consumer.time
            first, last = spans.get(there, (start, end))
            spans[there] = (min(first, start), max(last, end))
        size, name = tensor_bytes(source.output.type), source.output.name_hint or "input"
        for there, (begin, end) in spans.items():
            yield Lifetime(there, begin, end - begin, size, "input", name)

    # --- accelerators that cannot be told apart ----------------------------------------------

    @cached_property
    def groups(self) -> list[tuple[int, ...]]:
        """Used accelerators, those that lie in exactly the same sets together."""
        signature: dict[int, list[int]] = {}
        for index, members in enumerate(self.placement.sets):
            for accelerator in members:
                signature.setdefault(accelerator, []).append(index)
        together: dict[tuple[int, ...], list[int]] = {}
        for accelerator in sorted(signature):
            together.setdefault(tuple(signature[accelerator]), []).append(accelerator)
        return [tuple(group) for group in together.values()]

    @cached_property
    def groups_of_set(self) -> list[NDArray[np.intp]]:
        """For each set of the placement, the groups that make it up."""
        group_of = {accelerator: g for g, group in enumerate(self.groups) for accelerator in group}
        return [
            np.array(sorted({group_of[accelerator] for accelerator in members}), dtype=np.intp)
            for members in self.placement.sets
        ]

    # --- sums --------------------------------------------------------------------------------

    @cached_property
    def _dtype(self) -> np.dtype[Any]:
        # 64 bits where no sum can overflow them, else exact Python integers.
        total = sum(life.size * (life.length // max(1, self.cycle) + 1) for life in self.lifetimes)
        most = max(self._versions.values(), default=1)
        for placed in self.placement.placed.values():
            total += (placed.cost.params + most * placed.cost.version) * placed.copies
        return np.dtype(np.int64 if total < 2**62 else object)

    @cached_property
    def _versions(self) -> Mapping[str, int]:
        return versions(self.placement)

    @cached_property
    def parameters(self) -> list[int]:
        """Parameter bytes of each group of accelerators; operators of one group store the greatest of theirs there.

        So do they with each further version of their parameters.
        """
        held: Bytes = np.zeros(len(self.groups), dtype=self._dtype)
        common: dict[str, Bytes] = {}
        further: dict[str, Bytes] = {}
        for placed in self.placement.placed.values():
            name = None if placed.op.group is None else placed.op.group.data
            for index in set(placed.sets):
                where = self.groups_of_set[index]
                if name is None:
                    held[where] += placed.cost.params
                    continue
                if name not in common:
                    common[name] = np.zeros(len(self.groups), dtype=self._dtype)
                    further[name] = np.zeros(len(self.groups), dtype=self._dtype)
                common[name][where] = np.maximum(common[name][where], placed.cost.params)
                more = (self._versions.get(name, 1) - 1) * placed.cost.version
                further[name][where] = np.maximum(further[name][where], more)
        return [int(v) for v in sum((*common.values(), *further.values()), held)]

    @cached_property
    def _sweep(self) -> tuple[list[int], list[int]]:
        """Peak of everything but parameters for each group, and the tick of the cycle at which it is reached."""
        usage: Bytes = np.zeros(len(self.groups), dtype=self._dtype)
        changes: dict[tuple[int, int], int] = {}
        for life in self.lifetimes:
            begin = life.begin % self.cycle
            rounds, rest = divmod(life.length, self.cycle)
            members = self.groups_of_set[life.index]
            if rounds:
                usage[members] += rounds * life.size
            if not rest:
                continue
            end = begin + rest
            changes[begin, life.index] = changes.get((begin, life.index), 0) + life.size
            if end > self.cycle:
                usage[members] += life.size
                end -= self.cycle
            if end < self.cycle:
                changes[end, life.index] = changes.get((end, life.index), 0) - life.size
        return self._peaks(usage, changes)

    def _peaks(self, usage: Bytes, changes: dict[tuple[int, int], int]) -> tuple[list[int], list[int]]:
        """Replay ``changes`` (tick, set) → bytes from ``usage`` at tick 0 and keep the maximum of each group."""
        peak = usage.copy()
        when: Bytes = np.zeros(len(usage), dtype=np.int64 if self.cycle < 2**62 else object)
        tick = -1
        touched: list[NDArray[np.intp]] = []

        def settle() -> None:
            # Only after all changes of one instant: what ends there has left before what begins arrives.
            for members in touched:
                higher = members[usage[members] > peak[members]]
                peak[higher] = usage[higher]
                when[higher] = tick
            touched.clear()

        for (moment, index), change in sorted(changes.items()):
            if moment != tick:
                settle()
                tick = moment
            members = self.groups_of_set[index]
            usage[members] += change
            if change > 0:
                touched.append(members)
        settle()
        return [int(v) for v in peak], [int(v) for v in when]

    @property
    def peaks(self) -> list[int]:
        """Greatest number of bytes beside the parameters, for each group."""
        return self._sweep[0]

    @property
    def moments(self) -> list[int]:
        """A tick of the cycle at which that number is reached, for each group."""
        return self._sweep[1]

    def alive(self, group: int, moment: int) -> dict[tuple[Content, str], int]:
        """Bytes alive on a group at a tick of the cycle, by what they are and whose."""
        found: dict[tuple[Content, str], int] = {}
        member = self.groups[group][0]
        for life in self.lifetimes:
            if self.placement.masks[life.index] >> member & 1:
                rounds, rest = divmod(life.length, self.cycle)
                times = rounds + ((moment - life.begin) % self.cycle < rest)
                if times:
                    key = (life.content, life.name)
                    found[key] = found.get(key, 0) + times * life.size
        return found
