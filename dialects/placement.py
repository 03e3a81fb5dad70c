"""A schedule read from the IR as plain numbers, for the rules of level 4.

Times are counted in *ticks* of ``1 / microbatches`` ns, so that the period is an integer even when
a pattern of several micro-batches makes it a fraction of nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
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
        self.listed = True
        """Whether a step has one start for each micro-batch, and one set, everywhere; nothing else can be timed."""
        names = operator_names(graph.operators()) if names is None else names
        self.placed: dict[OperatorOp, Placed] = {}
        for op in graph.operators():
            placed = self._place(op, names[op])
            if placed is not None:
                self.placed[op] = placed
        self.updates: dict[OptimizerStepOp, Placed] = {}
        """In a step, what the optimizer does once for all of its micro-batches, with one start."""
        for op in graph.updates() if self.step else ():
            placed = self._place(op, update_name(op))
            if placed is not None and op.slot is not None and len(op.slot.starts) == placed.copies == 1:
                time = self.update_time(op)
                self.updates[op] = placed if time is None else replace(placed, time=time)
        self.moves: list[Moved] = []
        """The transfers of results of placed operators, in program order."""
        for op in graph.transfers():
            source = op.moved
            if isinstance(source, OpResult) and isinstance(source.op, OperatorOp) and source.op in self.placed:
                targets = _repeated(tuple(self._intern(s) for s in op.targets.data))
                start, landing, time = (t * self.ticks for t in (op.start.value.data, op.lands, op.time.value.data))
                listed = self._listed(op.starts, len(targets)), self._listed(op.landings, len(targets))
                self.moves.append(Moved(op, source, self.placed[source.op], targets, start, landing, time, *listed))

    def _place(self, op: OperatorOp, name: str) -> Placed | None:
        slot, cost = op.slot, op.cost
        if slot is None or cost is None:
            return None
        entry = cost.table().get(slot.allotment.data)
        if entry is None:
            return None
        sets = tuple(self._intern(s) for s in slot.sets.data)
        starts = () if isinstance(op, OptimizerStepOp) else self._listed(slot.starts, len(sets))
        return Placed(op, name, sets, slot.start.data * self.ticks, entry.time * self.ticks, entry, starts)

    def _listed(self, starts: Sequence[int], sets: int) -> tuple[int, ...]:
        """Starts of the micro-batches of a step in ticks; none where it is no step, or where others are listed."""
        fits = len(starts) == (self.ticks if self.step else 1) and (sets == 1 or not self.step)
        self.listed = self.listed and fits
        return tuple(t * self.ticks for t in starts) if self.step and fits else ()

    # --- moments -----------------------------------------------------------------------------

    @property
    def cycle(self) -> int:
        """Ticks after which everything on every accelerator repeats."""
        return self.period * self.repetition

    @property
    def unlike(self) -> range:
        """The micro-batches whose moments, relative to each other, may differ: all of a step, else the first."""
        return range(self.ticks if self.step else 1)

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

    @cached_property
    def _consumers(self) -> dict[SSAValue, list[tuple[Placed, int]]]:
        return {}

    def consumers(self, value: SSAValue) -> list[tuple[Placed, int]]:
        """The placed operators that read ``value``, and how many micro-batches later; each pair once."""
        if value not in self._consumers:
            self._consumers[value] = self._find_consumers(value)
        return self._consumers[value]

    def _find_consumers(self, value: SSAValue) -> list[tuple[Placed, int]]:
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
    def turns(self) -> int:
        """Micro-batches after which the sets that operators run on repeat: the lcm of the numbers of copies."""
        return lcm(*{p.copies for p in self.placed.values()}) if self.placed else 1

    @property
    def repetition(self) -> int:
        """Periods after which the pattern on every accelerator repeats; in a step the number of its micro-batches."""
        return self.ticks if self.step else self.turns

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

    def run_name(self, placed: Placed, instance: int) -> str:
        """A run as messages name it: in a step with its micro-batch, where the operator runs in each."""
        of = f" of micro-batch {instance % self.ticks}" if self.step and placed.op not in self.updates else ""
        return f"'{placed.name}'{of}"

    # --- figures -----------------------------------------------------------------------------

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        """First start and last end of each of the micro-batches that are unlike, ticks."""
        placed = self.placed.values()
        if not placed:
            return []
        begins = ([(begin, begin + p.time) for p in placed for begin in (self.begin(p, i),)] for i in self.unlike)
        return [(min(b for b, _ in runs), max(e for _, e in runs)) for runs in begins]

    @property
    def latency(self) -> int:
        """From the first start of a micro-batch to its last end, of the one that takes longest; ticks."""
        return max((end - begin for begin, end in self._spans), default=0)

    @property
    def in_flight(self) -> int:
        """Micro-batches begun and not ended at once, at most; latency over period, rounded up, where it is no step."""
        if not self.period:
            return 0
        if not self.step:
            return -(-self.latency // self.period)
        changes: list[tuple[int, int]] = []
        always = 0
        for begin, end in self._spans:
            rounds, rest = divmod(end - begin, self.cycle)
            always += rounds
            first = begin % self.cycle
            for low, high in ((first, first + rest), (first - self.cycle, first + rest - self.cycle)):
                changes += [(max(low, 0), 1), (high, -1)] if high > max(low, 0) else []
        # Sorted, an end comes before a start at the same time: spans are half-open.
        return always + max(accumulate((change for _, change in sorted(changes)), initial=0))

    @property
    def loads(self) -> dict[int, Fraction]:
        """Fraction of the time that each accelerator works, by accelerator; those without operators are left out."""
        per_set: dict[int, Fraction] = {}
        for placed in (*self.placed.values(), *self.updates.values()) if self.period else ():
            every = self.cycle if placed.op in self.updates else placed.copies * self.period
            for index in placed.sets:
                per_set[index] = per_set.get(index, Fraction(0)) + Fraction(placed.time, every)
        found: dict[int, Fraction] = {}
        for index, load in per_set.items():
            for accelerator in self.sets[index]:
                found[accelerator] = found.get(accelerator, Fraction(0)) + load
        return found


def bytes_of(result: OpResult) -> int:
    """Bytes of a result, whole."""
    return tensor_bytes(cast(Tensor, result.type))


def _repeated(sets: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest beginning of ``sets`` that, repeated, gives all of them."""
    count = len(sets)
    return next(sets[:n] for n in range(1, count + 1) if not count % n and sets[:n] * (count // n) == sets)


def update_name(op: OptimizerStepOp) -> str:
    """What an optimizer step is called: by the name of its result, or else by its kind and group."""
    return op.results[0].name_hint or f"{op.kind()} of {'no group' if op.group is None else op.group.data}"


def latency(graph: GraphOp) -> int:
    """Time of one micro-batch from its first start to its last end, ns; in a step, of the one that takes longest."""
    placement = Placement(graph)
    return placement.latency // placement.ticks


def in_flight(graph: GraphOp) -> int:
    """Micro-batches in the pipeline at a time, at most."""
    return Placement(graph).in_flight


def loads(graph: GraphOp) -> dict[int, Fraction]:
    """Fraction of the time that each accelerator works, by accelerator; those without operators are left out."""
    return Placement(graph).loads
