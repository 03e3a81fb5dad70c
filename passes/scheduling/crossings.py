"""What a schedule must move between sets of accelerators, and the rules that its transfers keep.

A value that is read on another set than its producer's moves once to each *destination*: the sets of its readers in
the turns of their copies, as the micro-batch of the producer sees them. What a transfer occupies in a turn is the
:class:`~passes.scheduling.network.Price` of that turn; nothing is occupied modulo the pattern beyond its capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush
from math import lcm

from passes.scheduling.copies import unrolled
from passes.scheduling.data import Dependence, Operation, Solution, Violation
from passes.scheduling.network import COMPUTE, NOTHING, PORT, RECEIVE, SEND, WIRE, Members, Network, Price, Resource

Destination = tuple[int, int, tuple[Members, ...], int | None]
"""Producer, result, sets in turn, and the only reader it is for (None: all there)."""


@dataclass(frozen=True)
class Need:
    """A transfer that a schedule must have: where to, for which dependences, and what each of its turns takes."""

    producer: int
    result: int
    targets: tuple[Members, ...]
    consumer: int | None
    dependences: tuple[Dependence, ...]
    prices: tuple[Price, ...]
    """Of micro-batches 0, 1, ..., until they repeat."""

    @property
    def destination(self) -> Destination:
        """What identifies the transfer among those of a solution."""
        return (self.producer, self.result, self.targets, self.consumer)

    @cached_property
    def time(self) -> int:
        """Nanoseconds of its longest turn."""
        return max(p.time for p in self.prices)

    def price_of(self, instance: int) -> Price:
        """The price of micro-batch ``instance``."""
        return self.prices[instance % len(self.prices)]


def targets_of(s: Solution, d: Dependence) -> tuple[Members, ...]:
    """The sets on which micro-batches 0, 1, ... of the producer's value are read, until they repeat."""
    copies = s.copies(d.consumer)
    turn = d.distance % len(copies)
    return copies[turn:] + copies[:turn]


def destination_of(network: Network, d: Dependence, targets: tuple[Members, ...]) -> Destination:
    """The transfer that would serve ``d``."""
    alone = type(network).key is not Network.key and _per_reader(network, d, targets)
    return (d.producer, d.result, targets, d.consumer if alone else None)


def _per_reader(network: Network, d: Dependence, targets: tuple[Members, ...]) -> bool:
    return network.key(d, targets) != network.key(replace(d, consumer=-1), targets)


def needs_of(network: Network | None, dependences: Sequence[Dependence], s: Solution) -> list[Need]:
    """The transfers that ``s`` must have, in the order of their first dependences."""
    if network is None or not network.levels:
        return []
    groups: dict[Hashable, tuple[tuple[Members, ...], list[Dependence]]] = {}
    for d in dependences:
        if not d.bytes or (s.sets[d.producer] == s.sets[d.consumer] and not s.more):
            continue
        targets = targets_of(s, d)
        groups.setdefault(network.key(d, targets), (targets, []))[1].append(d)
    found: list[Need] = []
    for targets, served in groups.values():
        u, result, _, consumer = destination_of(network, served[0], targets)
        sources = s.copies(u)
        kinds = list({(d.bytes, d.split): d for d in served}.values())
        prices = tuple(
            _greatest([network.price(d, sources[i % len(sources)], targets[i % len(targets)]) for d in kinds])
            for i in range(lcm(len(sources), len(targets)))
        )
        if any(p != NOTHING for p in prices):
            found.append(Need(u, result, targets, consumer, tuple(served), prices))
    return found


def _greatest(prices: Sequence[Price]) -> Price:
    """The price of moving for all readers what some of them need more of than others."""
    first, *others = prices
    for p in others:
        level, gathered = max(first.level, p.level), first.gathered or p.gathered
        first = Price(level, max(first.time, p.time), first.send | p.send, first.receive | p.receive, gathered)
    return first


Name = Callable[[int, Sequence[Members]], str]
"""How a message calls the transfer of an operation to its targets."""


# --- rules -----------------------------------------------------------------------------------------


def broken_transfers(
    operations: Sequence[Operation], network: Network | None, needs: Sequence[Need], s: Solution
) -> Iterator[Violation]:
    """Exactly the transfers that are needed, each long enough, after its producer, and landing as the mode says."""

    def name(u: int, targets: Sequence[Members]) -> str:
        producer = f"'{operations[u].name}'" if 0 <= u < len(operations) else f"the unknown operation {u}"
        return f"transfer of {producer} to {', '.join(str(list(t)) for t in targets)}"

    wanted = {need.destination: need for need in needs}
    seen: set[Destination] = set()
    for t in s.transfers:
        key = (t.producer, t.result, t.targets, t.consumer)
        what, need = name(t.producer, t.targets), wanted.get(key)
        if need is None or network is None:
            yield Violation("transfers", f"the {what} serves nobody", (t.producer,))
        elif key in seen:
            yield Violation("transfers", f"the {what} is there twice", (t.producer,))
        else:
            end = s.starts[t.producer] + operations[t.producer].table[s.allotments[t.producer]].time
            if t.time < need.time:
                yield Violation("transfers", f"the {what} has {t.time} ns and needs {need.time} ns", (t.producer,))
            if t.start < end:
                message = f"the {what} starts at {t.start} ns, before the value is there at {end} ns"
                yield Violation("transfers", message, (t.producer,))
            if network.mode == "buffered" and t.landing < t.start + t.time:
                message = f"the {what} lands at {t.landing} ns, but is in the buffer at {t.start + t.time} ns"
                yield Violation("transfers", message, (t.producer,))
            if network.mode != "buffered" and t.landing != t.start:
                message = f"the {what} starts at {t.start} ns and lands at {t.landing} ns: there is no buffer"
                yield Violation("transfers", message, (t.producer,))
        seen.add(key)
    for key, need in wanted.items():
        if key not in seen:
            reader = need.dependences[0].consumer
            message = f"the {name(need.producer, need.targets)}, for '{operations[reader].name}', is missing"
            yield Violation("transfers", message, (need.producer, reader))
    if network is not None and network.mode == "buffered":
        yield from _several_copies(s, name)


def _several_copies(s: Solution, name: Name) -> Iterator[Violation]:
    """In a buffer there is one copy of a value: all transfers of it leave together."""
    leaves: dict[tuple[int, int], tuple[int, int]] = {}
    for t in s.transfers:
        first = leaves.setdefault((t.producer, t.result), (t.start, t.time))
        if first != (t.start, t.time):
            message = (
                f"the {name(t.producer, t.targets)} leaves at {t.start} ns for {t.time} ns, another of the"
                f" same value at {first[0]} ns for {first[1]} ns"
            )
            yield Violation("transfers", message, (t.producer,))


@dataclass(frozen=True)
class Use:
    """What occupies resources: ``time`` ns from ``begin``, of an operation or of a transfer."""

    begin: int
    time: int
    name: str
    operation: int
    moves: bool


def overbooked(
    operations: Sequence[Operation], network: Network, needs: Sequence[Need], s: Solution
) -> Iterator[Violation]:
    """Resources that carry more at once, modulo the pattern, than they can: transfers, and operations beside them."""
    uses: list[Use] = []
    held: dict[Resource, list[int]] = {}
    for use, resources in _uses(operations, network, needs, s):
        for resource in resources:
            held.setdefault(resource, []).append(len(uses))
        uses.append(use)
    _add_operations(operations, s, uses, held)
    cycle = s.repetition * s.period
    alike: dict[tuple[int, tuple[int, ...]], Resource] = {}
    for resource in sorted(held):
        alike.setdefault((network.capacity(resource), tuple(held[resource])), resource)
    reported: set[tuple[str, ...]] = set()
    for (capacity, mine), resource in alike.items():
        at_once = crowd([uses[j] for j in mine], cycle, capacity)
        names = tuple(sorted({use.name for use in at_once}))
        if at_once and any(use.moves for use in at_once) and names not in reported:
            reported.add(names)
            yield _crowded(network, resource, capacity, at_once, cycle)


def _uses(
    operations: Sequence[Operation], network: Network, needs: Sequence[Need], s: Solution
) -> Iterator[tuple[Use, frozenset[Resource]]]:
    """What the transfers occupy in each turn of the pattern."""
    wanted = {need.destination: need for need in needs}
    leaving: dict[tuple[int, int, int], frozenset[Resource]] = {}
    for t in s.transfers:
        need = wanted[t.producer, t.result, t.targets, t.consumer]
        name = f"the transfer of '{operations[t.producer].name}' to {', '.join(str(list(x)) for x in t.targets)}"
        for i in range(s.repetition):
            price, shift = need.price_of(i), i * s.period
            if price == NOTHING:
                continue
            if network.mode != "buffered":
                yield Use(t.start + shift, t.time, name, t.producer, True), price.both
                continue
            yield Use(t.landing + shift, t.time, name, t.producer, True), price.receive
            key = (t.producer, t.result, i)
            fresh = price.send - leaving.get(key, frozenset())
            leaving[key] = leaving.get(key, frozenset()) | price.send
            copy = f"the copy of '{operations[t.producer].name}' into its buffer"
            yield Use(t.start + shift, t.time, copy, t.producer, True), fresh


def _add_operations(
    operations: Sequence[Operation], s: Solution, uses: list[Use], held: dict[Resource, list[int]]
) -> None:
    """Let operations occupy the accelerators that transfers occupy too."""
    shared = {resource[2] for resource in held if resource[0] == COMPUTE}
    if not shared:
        return
    runs, sets = unrolled(s)
    for (i, v), members in zip(runs, sets, strict=True):
        time = operations[v].table[s.allotments[v]].time
        if not time:
            continue
        for p in members:
            if p in shared:
                held[COMPUTE, -1, p, p].append(len(uses))
        uses.append(Use(s.starts[v] + i * s.period, time, f"'{operations[v].name}'", v, False))


def crowd(uses: Sequence[Use], cycle: int, capacity: int) -> list[Use]:
    """Uses of which more than ``capacity`` are on at one time modulo ``cycle``; [] when there is no such time."""
    always: list[Use] = []
    pieces: list[tuple[int, int, int]] = []
    for j, use in enumerate(uses):
        whole, rest = divmod(use.time, cycle)
        always += [use] * whole
        if rest:
            begin = use.begin % cycle
            pieces.append((begin, min(cycle, begin + rest), j))
            if begin + rest > cycle:
                pieces.append((0, begin + rest - cycle, j))
    if len(always) > capacity:
        return always
    pieces.sort()
    running: list[tuple[int, int]] = []
    for begin, end, j in pieces:
        while running and running[0][0] <= begin:
            heappop(running)
        heappush(running, (end, j))
        if len(running) + len(always) > capacity:
            return always + [uses[k] for _, k in running]
    return []


SIDES = {SEND: "send", RECEIVE: "receive", PORT: "port"}
"""What is said of the ports of an accelerator."""


def _crowded(network: Network, resource: Resource, capacity: int, uses: Sequence[Use], cycle: int) -> Violation:
    kind, number, a, b = resource
    if kind == COMPUTE:
        where = f"accelerator {a}"
    elif kind == WIRE:
        where = f"the wire from accelerator {a} to {b} of level '{network.levels[number].name}'"
    else:
        where = f"the {SIDES[kind]} side of accelerator {a} at level '{network.levels[number].name}'"
    runs = [f"{use.name} in [{use.begin}, {use.begin + use.time})" for use in uses]
    many = f", of which it carries {capacity} at once" if capacity > 1 else ""
    message = f"{where} is used by {' and '.join(dict.fromkeys(runs))} ns modulo {cycle}{many}"
    if len(set(runs)) == 1:
        message = f"{where} is used by {runs[0]} ns, which meets itself modulo {cycle}{many}"
    return Violation("links", message, tuple(dict.fromkeys(use.operation for use in uses)))


# --- memory ----------------------------------------------------------------------------------------


def share(d: Dependence, members: Members) -> int:
    """Bytes of the value of ``d`` on each accelerator of a set that reads it."""
    return -(-d.bytes // len(members)) if d.split else d.bytes


@dataclass
class Received:
    """What a set holds of the results of one producer: from when, until when, bytes of each result.

    What has no bytes does not arrive, but counts until it is read.
    """

    begin: int | None
    until: int
    sizes: dict[int, int]

    def add(self, begin: int, until: int, result: int, size: int) -> None:
        """Hold ``size`` bytes of ``result`` too."""
        if size:
            self.begin = begin if self.begin is None else min(self.begin, begin)
        self.until = max(self.until, until)
        self.sizes[result] = max(self.sizes.get(result, 0), size)
