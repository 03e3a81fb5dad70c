"""A schedule read from the IR as plain numbers, for the rules of level 4.

Times are counted in *ticks* of ``1 / microbatches`` ns, so that the period is an integer even when
a pattern of several micro-batches makes it a fraction of nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import cast

from xdsl.dialects.builtin import BytesAttr, ModuleOp
from xdsl.ir import OpResult, SSAValue

from dialects.attributes import CostEntry, Ints, values
from dialects.communication import MoveOp
from dialects.gradients import OptimizerStepOp
from dialects.network import Network
from dialects.operators import OperatorOp, Tensor, operator_names, tensor_bytes
from dialects.structure import GraphOp, InputOp, find_platform
from dialects.updates import update_time

MOST_COPIES = 1024
"""Greatest least common multiple of the numbers of copies: the schedule is unrolled that often."""


@dataclass(frozen=True, eq=False)
class Placed:
    """An operator with a slot whose allotment is in its cost table."""

    op: OperatorOp
    name: str
    sets: tuple[int, ...]
    """Index into :attr:`Placement.sets` for each copy."""
    start: int
    """Start of instance 0, ticks."""
    time: int
    """Duration, ticks."""
    cost: CostEntry
    starts: tuple[int, ...] = ()
    """In a step, start of every instance, ticks."""

    @property
    def end(self) -> int:
        return self.start + self.time

    @property
    def copies(self) -> int:
        return len(self.sets)


@dataclass(frozen=True, eq=False)
class Moved:
    """A transfer of a placed operator's result; times of instance 0 in ticks."""

    op: MoveOp
    result: OpResult
    producer: Placed
    targets: tuple[int, ...]
    """Index into :attr:`Placement.sets` for each turn, until they repeat."""
    start: int
    landing: int
    time: int
    starts: tuple[int, ...] = ()
    """In a step, start of every instance, ticks."""
    landings: tuple[int, ...] = ()

    @property
    def left(self) -> int:
        """When the sender is rid of it."""
        return self.start + self.time

    @property
    def ready(self) -> int:
        """When it has arrived."""
        return self.landing + self.time


class Placement:
    """The schedule of a graph. Operators without a usable slot are left out: other rules report them."""

    def __init__(self, graph: GraphOp, names: Mapping[OperatorOp, str] | None = None):
        self.graph = graph
        schedule = graph.schedule
        self.ticks = 1 if schedule is None else schedule.microbatches.data
        """Ticks in a nanosecond."""
        self.period = 0 if schedule is None else schedule.pattern.data
        """Period in ticks; 0 when the graph has no schedule."""
        self.step = schedule is not None and schedule.is_step
        """Whether each of the micro-batches of a pattern has starts of its own."""
        self.sets: list[tuple[int, ...]] = []
        """The distinct accelerator sets, each sorted."""
        self._set_index: dict[BytesAttr, int] = {}
        names = operator_names(graph.operators()) if names is None else names
        self.placed: dict[OperatorOp, Placed] = {}
        for op in graph.operators():
            placed = self._place(op, names[op])
            if placed is not None:
                self.placed[op] = placed
        self.moves: list[Moved] = []
        """The transfers of results of placed operators, in program order."""
        for op in graph.transfers():
            source = op.moved
            if isinstance(source, OpResult) and isinstance(source.op, OperatorOp) and source.op in self.placed:
                targets = _repeated(tuple(self._intern(s) for s in op.targets.data))
                start, landing, time = (t * self.ticks for t in (op.start.value.data, op.lands, op.time.value.data))
                listed = self._listed(op.starts), self._listed(op.landings)
                self.moves.append(Moved(op, source, self.placed[source.op], targets, start, landing, time, *listed))

    def _place(self, op: OperatorOp, name: str) -> Placed | None:
        slot, cost = op.slot, op.cost
        if slot is None or cost is None:
            return None
        entry = cost.table().get(slot.allotment.data)
        if entry is None:
            return None
        sets = tuple(self._intern(s) for s in slot.sets.data)
        starts = self._listed(slot.starts)
        return Placed(op, name, sets, slot.start.data * self.ticks, entry.time * self.ticks, entry, starts)

    def _listed(self, starts: Sequence[int]) -> tuple[int, ...]:
        """Starts of the micro-batches of a step in ticks; none where it is no step, or where others are listed."""
        return tuple(t * self.ticks for t in starts) if self.step and len(starts) == self.ticks else ()

    # --- moments -----------------------------------------------------------------------------

    def begin(self, what: Placed | Moved, instance: int) -> int:
        """When an instance starts, or leaves, ticks."""
        return self._moment(what.start, what.starts, instance)

    def landing(self, move: Moved, instance: int) -> int:
        """When an instance begins to arrive, ticks."""
        return self._moment(move.landing, move.landings, instance)

    def update_time(self, step: OptimizerStepOp) -> int | None:
        """How long the optimizer's step takes, ticks; with the exchange between copies of its parameters.

        None where a slot is missing, or a time for so many accelerators.
        """
        time = update_time(step, self._network)
        return None if time is None else time * self.ticks

    @cached_property
    def _network(self) -> Network:
        module = self.graph.parent_op()
        platform = find_platform(module) if isinstance(module, ModuleOp) else None
        return Network(()) if platform is None else Network.of(platform)

    def _moment(self, first: int, listed: tuple[int, ...], instance: int) -> int:
        if not listed:
            return first + instance * self.period
        lap, turn = divmod(instance, len(listed))
        return listed[turn] + lap * len(listed) * self.period

    def _intern(self, members: Ints) -> int:
        index = self._set_index.setdefault(members.data, len(self.sets))
        if index == len(self.sets):
            self.sets.append(values(members))
        return index

    @cached_property
    def _carried(self) -> Mapping[SSAValue, tuple[OpResult, int]]:
        return self.graph.carried()

    @cached_property
    def _aliases(self) -> Mapping[SSAValue, list[tuple[SSAValue, int]]]:
        """Result → the values of the states it is left in and of its transfers, each with its distance."""
        found: dict[SSAValue, list[tuple[SSAValue, int]]] = {}
        for state, (left, distance) in self._carried.items():
            found.setdefault(left, []).append((state, distance))
        return found

    def consumers(self, value: SSAValue) -> list[tuple[Placed, int]]:
        """The placed operators that read ``value``, and how many micro-batches later; each pair once."""
        found: dict[tuple[Placed, int], None] = {}
        for source, distance in [(value, 0), *self._aliases.get(value, ())]:
            for use in source.uses:
                op = use.operation
                if isinstance(op, OperatorOp) and op in self.placed:
                    found[self.placed[op], distance] = None
        return list(found)

    def producers(self, consumer: Placed) -> list[tuple[Placed, int]]:
        """The placed operators whose results ``consumer`` reads, and how many micro-batches later; each pair once."""
        return list({(producer, distance): None for _, producer, distance in self.reads(consumer)})

    def reads(self, consumer: Placed) -> list[tuple[OpResult, Placed, int]]:
        """The results that ``consumer`` reads, of which placed operators, and how many micro-batches later."""
        found: dict[tuple[OpResult, Placed, int], None] = {}
        for operand in consumer.op.inputs:
            left, distance = self._carried.get(operand, (operand, 0))
            if isinstance(left, OpResult) and isinstance(left.op, OperatorOp) and left.op in self.placed:
                found[left, self.placed[left.op], distance] = None
        return list(found)

    # --- transfers ---------------------------------------------------------------------------

    def destination(self, producer: Placed, consumer: Placed, distance: int) -> tuple[int, ...] | None:
        """The sets on which instances 0, 1, ... of what ``producer`` makes are read, until they repeat.

        None where these are the producer's own sets, turn by turn.
        """
        turn = distance % consumer.copies
        targets = _repeated(consumer.sets[turn:] + consumer.sets[:turn])
        return None if targets == _repeated(producer.sets) else targets

    @cached_property
    def moves_to(self) -> Mapping[tuple[OpResult, tuple[int, ...]], list[Moved]]:
        """Result and destination → its transfers there; one in a valid schedule."""
        found: dict[tuple[OpResult, tuple[int, ...]], list[Moved]] = {}
        for move in self.moves:
            found.setdefault((move.result, move.targets), []).append(move)
        return found

    def arrivals(self, result: OpResult, consumer: Placed, distance: int) -> list[Moved]:
        """The transfers that bring ``result`` to ``consumer``: none where it is at hand, one in a valid schedule."""
        assert isinstance(result.op, OperatorOp)
        targets = self.destination(self.placed[result.op], consumer, distance)
        return [] if targets is None else self.moves_to.get((result, targets), [])

    def inputs(self) -> list[InputOp]:
        return list(self.graph.inputs())

    @cached_property
    def repetition(self) -> int:
        """Periods after which the pattern on every accelerator repeats: the lcm of the numbers of copies.

        In a step it is the number of its micro-batches.
        """
        if self.step:
            return self.ticks
        return lcm(*{p.copies for p in self.placed.values()}) if self.placed else 1

    @cached_property
    def masks(self) -> list[int]:
        """Each set of :attr:`sets` as a bit mask over accelerators."""
        masks: list[int] = []
        for members in self.sets:
            mask = 0
            low = 0
            # Neighbouring accelerators form one run of bits: sets are mostly ranges.
            for i, member in enumerate(members):
                if i + 1 == len(members) or members[i + 1] != member + 1:
                    mask |= ((1 << (i + 1 - low)) - 1) << members[low]
                    low = i + 1
            masks.append(mask)
        return masks

    def nanoseconds(self, ticks: int) -> Fraction:
        return Fraction(ticks, self.ticks)

    @property
    def latency(self) -> int:
        """From the first start of an instance to its last end, ticks."""
        ends = [p.end for p in self.placed.values()]
        return max(ends) - min(p.start for p in self.placed.values()) if ends else 0


def bytes_of(result: OpResult) -> int:
    """Bytes of a result, whole."""
    return tensor_bytes(cast(Tensor, result.type))


def _repeated(sets: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest beginning of ``sets`` that, repeated, gives all of them."""
    count = len(sets)
    return next(sets[:n] for n in range(1, count + 1) if not count % n and sets[:n] * (count // n) == sets)


def latency(graph: GraphOp) -> int:
    """Time of one micro-batch from its first start to its last end, ns."""
    placement = Placement(graph)
    return placement.latency // placement.ticks


def in_flight(graph: GraphOp) -> int:
    """Micro-batches in the pipeline at a time: latency over period, rounded up."""
    placement = Placement(graph)
    return -(-placement.latency // placement.period) if placement.period else 0


def loads(graph: GraphOp) -> dict[int, Fraction]:
    """Fraction of the time that each accelerator works, by accelerator; those without operators are left out."""
    placement = Placement(graph)
    if not placement.period:
        return {}
    per_set: dict[int, Fraction] = {}
    for placed in placement.placed.values():
        share = Fraction(placed.time, placed.copies * placement.period)
        for index in placed.sets:
            per_set[index] = per_set.get(index, Fraction(0)) + share
    found: dict[int, Fraction] = {}
    for index, load in per_set.items():
        for accelerator in placement.sets[index]:
            found[accelerator] = found.get(accelerator, Fraction(0)) + load
    return found
