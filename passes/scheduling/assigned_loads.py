"""What a choice of sets loads: running times, and the transfers that the choice makes necessary.

Units (items, or clusters of items that stay together) pick one of their *options*, a set of accelerators with its
time. A value that is read on another set than its producer's loads what the network says it occupies:

- ``buffered``: the senders once, however many sets read it (the longest of its copies), and each target once;
- ``blocking``: both ends once for each set that reads it;
- ``overlapped``: the same, on links beside the accelerators; a link that carries several at once counts a share.

The heaviest load is a lower bound on the period of such a choice. Nothing here knows of starts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from passes.scheduling.data import Dependence, Table
from passes.scheduling.elementary import usable
from passes.scheduling.network import COMPUTE, NS, Members, Network, Resource, no_network
from passes.scheduling.problem import MemoryProblem, Problem
from passes.scheduling.together import merged

Parts = tuple[tuple[int, int], ...]
"""Number of a resource, and by how much it is loaded."""

PRICES = 200_000
"""Prices looked at, at most, to find out whether all pairs of accelerators are alike."""

PAIRS = 5_000
"""Pairs of sets looked at, at most, to find the least price of a value."""


class Option(NamedTuple):
    """A set, the aligned block that it keeps busy, and what that takes: ns, parameter bytes on each of the set."""

    members: Members
    block: Members
    time: int
    params: int
    place: int
    """A number of the set."""


@dataclass(frozen=True)
class Value:
    """What ``producer`` makes and other units read; the dependences price it, one for each thing that is moved."""

    producer: int
    readers: tuple[int, ...]
    moved: tuple[Dependence, ...]


@dataclass(frozen=True)
class Choices:
    """Units with their options, and the values between them."""

    units: tuple[tuple[int, ...], ...]
    """Operations of each unit."""
    tables: tuple[Table, ...]
    options: tuple[tuple[Option, ...], ...]
    values: tuple[Value, ...]
    network: Network
    accelerators: int
    room: int
    """Most parameter bytes on an accelerator."""
    widths: tuple[int, ...]
    order: tuple[int, ...]
    """Position of each operation in a topological order."""
    _least: dict[Hashable, int] = field(default_factory=dict[Hashable, int], compare=False, repr=False)
    _numbers: dict[Resource, int] = field(default_factory=dict[Resource, int], compare=False, repr=False)

    @cached_property
    def touching(self) -> tuple[tuple[int, ...], ...]:
        """Values that each unit makes or reads."""
        found: list[list[int]] = [[] for _ in self.units]
        for number, value in enumerate(self.values):
            for unit in (value.producer, *value.readers):
                found[unit].append(number)
        return tuple(map(tuple, found))

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """Units that each unit reads from or writes to."""
        found: list[dict[int, None]] = [{} for _ in self.units]
        for value in self.values:
            for reader in value.readers:
                found[reader][value.producer] = found[value.producer][reader] = None
        return tuple(map(tuple, found))

    def rank(self, unit: int) -> int:
        """The position of the first operation of ``unit``."""
        return min(self.order[v] for v in self.units[unit])

    def number(self, resource: Resource) -> int:
        """The number of a resource: accelerators first, links as they are met."""
        if resource[0] == COMPUTE:
            return resource[2]
        return self._numbers.setdefault(resource, self.accelerators + len(self._numbers))

    @cached_property
    def roomy(self) -> bool:
        """Whether the parameters of all units fit on every accelerator."""
        return sum(max((o.params for o in options), default=0) for options in self.options) <= self.room

    @cached_property
    def places(self) -> dict[int, Members]:
        """The set of each number."""
        return {option.place: option.members for options in self.options for option in options}

    def parts(self, value: Value, source: Members, targets: Iterable[Members]) -> Parts:
        """What ``value`` loads when it is made on ``source`` and read on ``targets``, all different."""
        load: defaultdict[int, int] = defaultdict(int)
        for d in value.moved:
            sending: dict[Resource, int] = {}
            for target in targets:
                price = self.network.price(d, source, target)
                if self.network.mode == "buffered":
                    for r in price.send:
                        sending[r] = max(sending.get(r, 0), price.time)
                    for r in price.receive:
                        load[self.number(r)] += price.time
                else:
                    for r in price.both:
                        load[self.number(r)] += -(-price.time // self.network.capacity(r))
            for r, time in sending.items():
                load[self.number(r)] += time
        return tuple(sorted(load.items()))

    @cached_property
    def uniform(self) -> tuple[int, ...] | None:
        """Time of each value, the same between any two accelerators; None if it is not so, or sets may be wider.

        Only where transfers are ``buffered``: then what a set of units loads depends on nothing but the set.
        """
        network, count = self.network, self.accelerators
        narrow = all(len(option.block) == 1 for options in self.options for option in options)
        if not narrow or (network.levels and network.mode != "buffered"):
            return None
        pairs = [((a,), (b,)) for a in range(count) for b in range(count) if a != b]
        if count > 1 and self._plain and network.level_of((0, 1)) == network.level_of((0, count - 1)):
            pairs = pairs[:1]  # one level joins them all
        if len(pairs) * sum(len(v.moved) for v in self.values) > PRICES:
            return None
        times: list[int] = []
        for value in self.values:
            found = {sum(network.price(d, a, b).time for d in value.moved) for a, b in pairs}
            if len(found) > 1:
                return None
            times.append(max(found, default=0))
        return tuple(times)

    @property
    def _plain(self) -> bool:
        """Whether a price depends on nothing but bytes, layout and sets."""
        return type(self.network).price is Network.price

    @cached_property
    def least_times(self) -> tuple[int, ...]:
        """A lower bound on the time of each value between any two different sets that its units may take."""
        if self.uniform is not None:
            return self.uniform
        return tuple(sum(map(self.least_of, value.moved)) for value in self.values)

    def least_of(self, d: Dependence) -> int:
        """A lower bound on the time of what ``d`` moves, between any two different sets of options."""
        key: Hashable = (d.bytes, d.split) if self._plain else d
        if (known := self._least.get(key)) is None:
            known = self._least[key] = self._least_of(d)
        return known

    def _least_of(self, d: Dependence) -> int:
        sets = sorted({option.members for options in self.options for option in options})
        if len(sets) ** 2 <= PAIRS:
            return min((self.network.price(d, a, b).time for a in sets for b in sets if a != b), default=0)
        if not self._plain:
            return 0
        piece = -(-d.bytes // max(map(len, sets)))  # what the busiest end carries, at least
        return min((level.latency - (-NS * piece // level.rate) for level in self.network.levels), default=0)

    def joined(self, clusters: Sequence[Sequence[int]]) -> Choices | None:
        """The same with units of each cluster made one; None when some cluster has no common option that fits."""
        of = {unit: number for number, cluster in enumerate(clusters) for unit in cluster}
        units = [tuple(sorted(v for u in cluster for v in self.units[u])) for cluster in clusters]
        tables: list[Table] = []
        for cluster in clusters:
            rows = [self.tables[u] for u in cluster]
            tables.append(rows[0] if len(rows) == 1 else _added(rows))
        options = _options(tables, self.widths, self.accelerators, self.room)
        if not all(options):
            return None
        values = _joined_values((of[v.producer], [of[r] for r in v.readers], v.moved) for v in self.values)
        return replace(self, units=tuple(units), tables=tuple(tables), options=options, values=values)


def choices_of(problem: MemoryProblem, widths: Sequence[int] = (1,), reserve: int = 0) -> Choices:
    """The units, options and values of ``problem`` on aligned blocks of ``widths``; ``reserve`` bytes stay free."""
    network = problem.network or no_network()
    item_of = {v: number for number, item in enumerate(problem.items) for v in item}
    found: dict[Hashable, tuple[int, list[int], Dependence]] = {}
    for d in problem.dependences:
        key = network.key(d, ())
        if d.bytes and network.levels:
            found.setdefault(key, (item_of[d.producer], [], d))[1].append(item_of[d.consumer])
    values = _joined_values((producer, readers, (d,)) for producer, readers, d in found.values())
    room = max(0, problem.memory - reserve) if problem.memory else 1 << 62
    tables: list[Table] = []
    possible: dict[int, Table] = {}
    for table in problem.item_tables:
        if id(table) not in possible:
            fit = usable(table, problem.accelerators, problem.memory) or usable(table, problem.accelerators)
            possible[id(table)] = {k: table[k] for k in fit}
        tables.append(possible[id(table)])
    options = _options(tables, widths, problem.accelerators, room)
    return Choices(
        problem.items,
        tuple(tables),
        options,
        values,
        network,
        problem.accelerators,
        room,
        tuple(widths),
        _positions(problem),
    )


def _positions(problem: Problem) -> tuple[int, ...]:
    """The position of each operation in a topological order in which what has few predecessors comes late.

    Depth first from what nobody reads, the longest path to the beginning first: weights come next to their reader.
    """
    depth = [0] * len(problem.operations)
    for v in problem.topological:
        depth[v] = max((1 + depth[u] for u in problem.predecessors[v]), default=0)
    position: dict[int, int] = {}
    for sink in problem.topological:
        stack = [] if problem.successors[sink] else [sink]
        while stack:
            v = stack[-1]
            missing = [u for u in problem.predecessors[v] if u not in position]
            if missing:
                stack.append(max(missing, key=lambda u: (depth[u], -u)))
            else:
                position.setdefault(stack.pop(), len(position))
    return tuple(position[v] for v in range(len(depth)))


def _joined_values(
    given: Iterable[tuple[int, Sequence[int], tuple[Dependence, ...]]],
) -> tuple[Value, ...]:
    """Values between different units; those of one producer and the same readers are one."""
    found: dict[tuple[int, tuple[int, ...]], tuple[Dependence, ...]] = {}
    for producer, readers, moved in given:
        others = tuple(sorted(set(readers) - {producer}))
        if others:
            found[producer, others] = (*found.get((producer, others), ()), *moved)
    return tuple(Value(producer, readers, moved) for (producer, readers), moved in found.items())


def _added(rows: Sequence[Table]) -> Table:
    """The table of units that stay together: times and parameters both add up."""
    both = merged(rows)
    return {k: type(c)(c.time, sum(row[k].params for row in rows), c.output, c.workspace) for k, c in both.items()}


def _options(
    tables: Sequence[Table], widths: Sequence[int], accelerators: int, room: int
) -> tuple[tuple[Option, ...], ...]:
    """The options of each table: for every block the fastest allotments that keep it busy, of one width and bytes."""
    known: dict[int, tuple[Option, ...]] = {}
    for table in tables:
        if id(table) in known:
            continue
        best: dict[tuple[int, int], tuple[int, int]] = {}
        for k, cost in sorted(table.items()):
            width = next((w for w in widths if w >= k), None)
            if width is not None and cost.params <= room:
                mine = (cost.time, -k)
                best[width, cost.params] = min(best.get((width, cost.params), mine), mine)
        known[id(table)] = tuple(
            Option(
                tuple(range(first, first - minus)),
                tuple(range(first, first + width)),
                time,
                params,
                first - minus * accelerators,
            )
            for (width, params), (time, minus) in sorted(best.items())
            for first in range(0, accelerators - width + 1, width)
        )
    return tuple(known[id(table)] for table in tables)


class Loads:
    """The loads of one choice, kept up to date while units move: try a shift, then keep it or not.

    ``penalty`` is the sum of squares of what loads exceed ``target`` by, in ns: small where all are near it.
    """

    def __init__(self, choices: Choices, at: Sequence[int], target: int = 0):
        self.choices = choices
        self.at = list(at)
        self.target = target
        self.load: defaultdict[int, int] = defaultdict(int)
        self.held = [0] * choices.accelerators
        self._now: list[Parts] = []
        self._known: list[dict[Hashable, Parts]] = [{} for _ in choices.values]
        self._undo: tuple[list[tuple[int, int]], list[tuple[int, Parts]], list[tuple[int, int]], int] = ([], [], [], 0)
        for unit, option in enumerate(at):
            self._own(self.load, unit, option, 1)
            self._store(unit, option, 1)
        for number in range(len(choices.values)):
            self._now.append(self._parts(number))
            for r, time in self._now[-1]:
                self.load[r] += time
        self.penalty = sum((x - target) ** 2 for x in self.load.values() if x > target)

    @property
    def heaviest(self) -> int:
        """The greatest load, in ns."""
        return max(self.load.values(), default=0)

    @property
    def overfull(self) -> int:
        """Parameter bytes that do not fit, on all accelerators together."""
        return sum(held - self.choices.room for held in self.held if held > self.choices.room)

    def place_of(self, unit: int) -> int:
        """The number of the set of ``unit``."""
        return self.choices.options[unit][self.at[unit]].place

    def shift(self, moves: Iterable[tuple[int, int]]) -> int:
        """Give units these options; the penalty that results. :meth:`back` takes the last shift back."""
        choices, at, now = self.choices, self.at, self._now
        change: defaultdict[int, int] = defaultdict(int)
        before: list[tuple[int, int]] = []
        touched: set[int] = set()
        for unit, option in moves:
            old = at[unit]
            before.append((unit, old))
            self._own(change, unit, old, -1)
            self._own(change, unit, option, 1)
            at[unit] = option
            touched.update(choices.touching[unit])
        parts_before: list[tuple[int, Parts]] = []
        for number in touched:
            old_parts, new_parts = now[number], self._parts(number)
            if old_parts is not new_parts:
                parts_before.append((number, old_parts))
                now[number] = new_parts
                for r, time in old_parts:
                    change[r] -= time
                for r, time in new_parts:
                    change[r] += time
        load, target, penalty = self.load, self.target, self.penalty
        loads_before: list[tuple[int, int]] = []
        for r, difference in change.items():
            if difference:
                old_load = load[r]
                new_load = load[r] = old_load + difference
                loads_before.append((r, old_load))
                if old_load > target:
                    penalty -= (old_load - target) ** 2
                if new_load > target:
                    penalty += (new_load - target) ** 2
        self._undo = (before, parts_before, loads_before, self.penalty)
        self.penalty = penalty
        return penalty

    def back(self) -> None:
        """Take the last :meth:`shift` back."""
        before, parts_before, loads_before, self.penalty = self._undo
        for unit, option in before:
            self.at[unit] = option
        for number, parts in parts_before:
            self._now[number] = parts
        for r, load in loads_before:
            self.load[r] = load

    def fits(self) -> bool:
        """Count the parameters of the last :meth:`shift`; false, and nothing is counted, when more are too many."""
        before = self._undo[0]
        full = self.overfull
        for unit, old in before:
            self._store(unit, old, -1)
            self._store(unit, self.at[unit], 1)
        if self.overfull <= full:
            return True
        for unit, old in before:
            self._store(unit, self.at[unit], -1)
            self._store(unit, old, 1)
        return False

    def _own(self, load: defaultdict[int, int], unit: int, option: int, sign: int) -> None:
        _, block, time, _, _ = self.choices.options[unit][option]
        for p in block:
            load[p] += sign * time

    def _store(self, unit: int, option: int, sign: int) -> None:
        members, _, _, params, _ = self.choices.options[unit][option]
        if params:
            for p in members:
                self.held[p] += sign * params

    def _parts(self, number: int) -> Parts:
        """What value ``number`` loads now."""
        choices, at = self.choices, self.at
        value, options = choices.values[number], choices.options
        source = options[value.producer][at[value.producer]].place
        readers = value.readers
        key: Hashable
        if len(readers) == 1:
            target = options[readers[0]][at[readers[0]]].place
            if source == target:
                return ()
            targets = (target,)
            key = (source, target)
        else:
            targets = frozenset([options[r][at[r]].place for r in readers])
            key = (source, targets)
        known = self._known[number]
        if (found := known.get(key)) is None:
            places = choices.places
            found = known[key] = choices.parts(value, places[source], [places[p] for p in sorted(targets)])
        return found
