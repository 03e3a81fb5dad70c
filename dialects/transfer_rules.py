"""The rules of level 4 on transfers: which there are, how long they take, and what they occupy.

Written from ``docs/ir.md`` ("transfers"), like :mod:`dialects.schedule_rules`. They hold on from level 4: there
transfers are reserved, later they are operations of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm

from xdsl.ir import Operation, OpResult

from dialects.attributes import show_set
from dialects.network import Network, Resource, Way
from dialects.operators import OperatorOp
from dialects.placement import Moved, Placement, bytes_of
from dialects.rules import Finding, Rule, Subject, timed
from dialects.units import show_time


def _name(placement: Placement, move: Moved) -> str:
    to = ", ".join(show_set(placement.sets[t]) for t in move.targets)
    number = f" (result {move.result.index})" if len(move.producer.op.results) > 1 else ""
    return f"the transfer of '{move.producer.name}'{number} to {to}"


def _time(placement: Placement, ticks: int) -> str:
    return show_time(placement.nanoseconds(ticks))


def _ways(subject: Subject, move: Moved) -> list[Way]:
    """How the value gets to its target in each turn, until the turns repeat."""
    sets, sources, targets = subject.placement.sets, move.producer.sets, move.targets
    size, sharded = bytes_of(move.result), move.producer.op.is_sharded(move.result.index)
    return [
        subject.network.way(size, sharded, sets[sources[i % len(sources)]], sets[targets[i % len(targets)]])
        for i in range(lcm(len(sources), len(targets)))
    ]


# --- which there are -------------------------------------------------------------------------


def _transfers_needed(subject: Subject) -> Iterator[Finding]:
    placement = subject.placement
    needed: set[tuple[OpResult, tuple[int, ...]]] = set()
    for consumer in placement.placed.values() if subject.network.links else ():
        for result, producer, distance in placement.reads(consumer):
            targets = placement.destination(producer, consumer, distance)
            if targets is None or not bytes_of(result) or (result, targets) in needed:
                continue
            needed.add((result, targets))
            if (result, targets) not in placement.moves_to:
                home, there = (", ".join(show_set(placement.sets[s]) for s in w) for w in (producer.sets, targets))
                value = f"'{producer.name}'" + (f" (result {result.index})" if len(producer.op.results) > 1 else "")
                yield Finding(
                    consumer.op,
                    f"'{consumer.name}' reads {value} on {there}, but no transfer moves it there from {home}",
                    "run the pass 'schedule-periodic' again",
                )
    for op in subject.graph.transfers():
        if not isinstance(op.moved, OpResult) or not isinstance(op.moved.op, OperatorOp):
            yield Finding(op, "what a transfer moves is the result of an operator")
    for (result, targets), moves in placement.moves_to.items():
        for number, move in enumerate(moves):
            if not subject.network.links:
                yield Finding(move.op, f"{_name(placement, move)} has no way to go: the platform has no links")
            elif (result, targets) not in needed:
                yield Finding(move.op, f"{_name(placement, move)} serves no operator")
            elif number:
                yield Finding(move.op, f"{_name(placement, move)} is there twice")


def _transfer_link(subject: Subject) -> Iterator[Finding]:
    names = [link.name for link in subject.network.links]
    for move in subject.placement.moves:
        levels = [way.level for way in _ways(subject, move) if way.moves]
        if levels and move.op.link.data != names[max(levels)]:
            yield Finding(
                move.op,
                f'{_name(subject.placement, move)} is over "{move.op.link.data}", but the innermost level that joins '
                f'its ends is "{names[max(levels)]}"',
            )


def _transfer_time(subject: Subject) -> Iterator[Finding]:
    placement = subject.placement
    for move in placement.moves:
        least = max(way.time for way in _ways(subject, move))
        if move.time < least * placement.ticks:
            yield Finding(
                move.op,
                f"{_name(placement, move)} takes {_time(placement, move.time)}, but its way takes {show_time(least)}",
            )


def _transfer_start(subject: Subject) -> Iterator[Finding]:
    placement, buffered = subject.placement, subject.network.mode == "buffered"
    copies: dict[OpResult, Moved] = {}
    for move in placement.moves if placement.listed else ():
        first = copies.setdefault(move.result, move)
        for instance in placement.unlike:
            found = list(_misplaced(placement, move, first, instance, buffered))
            yield from found
            if found:
                break


def _misplaced(placement: Placement, move: Moved, first: Moved, instance: int, buffered: bool) -> Iterator[Finding]:
    """What is wrong with when a micro-batch leaves and lands; ``first`` is the first transfer of the same result."""
    begin, lands = placement.begin(move, instance), placement.landing(move, instance)
    ended = placement.begin(move.producer, instance) + move.producer.time
    name, start, landing = _name(placement, move), _time(placement, begin), _time(placement, lands)
    name += f" of micro-batch {instance}" if placement.step else ""
    if begin < ended:
        yield Finding(
            move.op, f"{name} starts at {start}, before '{move.producer.name}' ends at {_time(placement, ended)}"
        )
    if not buffered and lands != begin:
        yield Finding(move.op, f"{name} starts at {start} but lands at {landing}: there is no buffer between")
    if buffered and lands < begin + move.time:
        left = _time(placement, begin + move.time)
        yield Finding(move.op, f"{name} lands at {landing}, before it has left at {left}")
    together = placement.begin(first, instance)
    if buffered and (begin, move.time) != (together, first.time):
        yield Finding(
            move.op,
            f"{name} leaves at {start} for {_time(placement, move.time)}, {_name(placement, first)} at "
            f"{_time(placement, together)} for {_time(placement, first.time)}: one copy leaves for all",
        )


# --- what they occupy ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Use:
    """An operator or a transfer that occupies something in ``[begin, begin + time)`` of some of its turns, ticks."""

    op: Operation
    name: str
    begin: int
    time: int
    turns: int
    moves: bool = True
    starts: tuple[int, ...] = ()
    """In a step, where each micro-batch begins."""

    def at(self, instance: int, period: int) -> int:
        return self.starts[instance] if self.starts else self.begin + instance * period


_Held = Mapping[Resource, Mapping[_Use, Iterable[int]]]
"""Resource → what occupies it, in which of its turns."""


def _held(placement: Placement, subject: Subject) -> _Held:
    """Everything that transfers occupy."""
    held: dict[Resource, dict[_Use, dict[int, None]]] = {}

    def hold(use: _Use, turn: int, resources: Iterable[Resource]) -> None:
        for resource in sorted(resources):  # sets have no order of their own
            held.setdefault(resource, {}).setdefault(use, {})[turn] = None

    copies: dict[tuple[OpResult, int, int, tuple[int, ...]], _Use] = {}
    for move in placement.moves:
        ways = _ways(subject, move)
        if placement.turns % len(ways):
            continue  # its targets take turns as nothing else does: it serves no operator
        name = _name(placement, move)
        arrival = departure = _Use(move.op, name, move.start, move.time, len(ways), starts=move.starts)
        if subject.network.mode == "buffered":
            arrival = replace(arrival, begin=move.landing, starts=move.landings)
            name = f"the copy of '{move.producer.name}' into its buffer"
            fresh = _Use(move.op, name, move.start, move.time, placement.turns, starts=move.starts)
            departure = copies.setdefault((move.result, move.start, move.time, move.starts), fresh)
        for turn in range(departure.turns):
            hold(departure, turn, ways[turn % len(ways)].sender)
        for turn, way in enumerate(ways):
            hold(arrival, turn, way.receiver)
    return held


def _with_operators(placement: Placement, held: _Held) -> _Held:
    """The accelerators among what is held, with the operators that run there."""
    found: dict[int, dict[_Use, Iterable[int]]] = {r.at: dict(uses) for r, uses in held.items() if r.level < 0}
    for placed in placement.placed.values():
        if 0 < placed.time <= placed.copies * placement.period:
            name, copies = f"'{placed.name}'", placed.copies
            use = _Use(placed.op, name, placed.start, placed.time, copies, moves=False, starts=placed.starts)
            for turn, index in enumerate(placed.sets):
                for accelerator in placement.sets[index]:
                    if accelerator in found:
                        found[accelerator][use] = [turn]
    for update in placement.updates.values():
        if 0 < update.time <= placement.cycle:
            use = _Use(update.op, f"'{update.name}'", update.start, update.time, placement.ticks, moves=False)
            for accelerator in found.keys() & placement.sets[update.sets[0]]:
                found[accelerator][use] = [0]
    return {Resource("accelerator", -1, at, at): uses for at, uses in found.items()}


def _overbooked(placement: Placement, network: Network, held: _Held) -> Iterator[Finding]:
    """Sweep every resource over the turns after which its uses repeat; those that are used alike only once."""
    alike: dict[tuple[int, tuple[tuple[_Use, tuple[int, ...]], ...]], list[Resource]] = {}
    for resource, uses in held.items():
        key = (network.capacity(resource), tuple((use, tuple(turns)) for use, turns in uses.items()))
        alike.setdefault(key, []).append(resource)
    reported: set[frozenset[_Use]] = set()
    for (capacity, uses), resources in alike.items():
        cycle = placement.cycle if placement.step else placement.period * lcm(*(use.turns for use, _ in uses))
        for crowd in _crowds(uses, cycle, placement.period, capacity):
            together = frozenset(use for use, _ in crowd)
            if together not in reported and any(use.moves for use in together):
                reported.add(together)
                mover = next(use for use, _ in crowd if use.moves)
                more = f" and {len(resources) - 1} more" if len(resources) > 1 else ""
                where = network.name(resources[0]) + more
                yield Finding(mover.op, _clash(placement, crowd, cycle, capacity, where))


_Crowd = list[tuple[_Use, int]]
"""Uses at one time, each with its instance."""


def _crowds(uses: Iterable[tuple[_Use, Iterable[int]]], cycle: int, period: int, capacity: int) -> Iterator[_Crowd]:
    """Uses that are more at one time of the cycle than ``capacity``: pairs where that is 1, else all of them."""
    events: list[tuple[int, bool, int, _Use, int]] = []
    for use, turns in uses:
        instances = (i for turn in turns for i in range(turn, cycle // period, use.turns))
        for instance in instances:
            for a, b in _pieces(use.at(instance, period) % cycle, use.time, cycle, capacity + 1):
                key = len(events)
                events += [(a, True, key, use, instance), (b, False, key, use, instance)]
    events.sort(key=lambda event: event[:3])
    running: dict[int, tuple[_Use, int]] = {}
    for _, opens, key, use, instance in events:
        if not opens:
            del running[key]
            continue
        if len(running) >= capacity:
            if capacity > 1:
                yield [(use, instance), *running.values()]
            else:
                yield from ([(use, instance), other] for other in running.values())
        running[key] = (use, instance)


def _pieces(begin: int, time: int, cycle: int, most: int) -> Iterator[tuple[int, int]]:
    """The intervals of one cycle that a run covers, which may take longer than that; at most ``most`` whole cycles."""
    whole, rest = divmod(time, cycle)
    yield from [(0, cycle)] * min(whole, most)
    if rest:
        yield begin, min(begin + rest, cycle)
        if begin + rest > cycle:
            yield 0, begin + rest - cycle


def _clash(placement: Placement, crowd: _Crowd, cycle: int, capacity: int, where: str) -> str:
    def run(use: _Use, instance: int) -> str:
        start = use.at(instance, placement.period)
        begin = start % cycle
        end = begin + use.time
        until = _time(placement, end) if end <= cycle else f"{_time(placement, end % cycle)} of the next"
        name = f"{use.name} of micro-batch {instance}" if use.starts else use.name
        shown = start if use.starts else use.begin
        return f"{name} (start {_time(placement, shown)}, that is {_time(placement, begin)} to {until})"

    runs = list(dict.fromkeys(run(use, instance) for use, instance in crowd))
    modulo = f"modulo the {'step' if placement.step else 'pattern'} of {_time(placement, cycle)}"
    if len({use for use, _ in crowd}) == 1 and (len(runs) == 1 or not placement.step):
        return f"{runs[0]} meets its own next run on {where} {modulo}"
    limit = f", which carries {capacity} at once," if capacity > 1 else ""
    return f"{', '.join(runs[:-1])} and {runs[-1]} overlap on {where}{limit} {modulo}"


@timed
def _links(placement: Placement, subject: Subject) -> Iterator[Finding]:
    held = {resource: uses for resource, uses in _held(placement, subject).items() if resource.level >= 0}
    yield from _overbooked(placement, subject.network, held)


@timed
def _transfer_exclusive(placement: Placement, subject: Subject) -> Iterator[Finding]:
    if subject.network.mode != "overlapped":
        held = _with_operators(placement, _held(placement, subject))
        yield from _overbooked(placement, subject.network, held)


TRANSFER_RULES = (
    Rule(
        "transfers-needed",
        "On a platform with links, every result that is read on another set than its producer's is moved there by one "
        "transfer, shared by all that read it there, turn by turn; nothing else is moved.",
        _transfers_needed,
    ),
    Rule(
        "transfer-link",
        "A transfer is over the innermost level that has both of its ends in one group, in every turn.",
        _transfer_link,
    ),
    Rule(
        "transfer-time",
        "A transfer takes at least the time that its bytes need on their way, in every turn.",
        _transfer_time,
    ),
    Rule(
        "transfer-start",
        "A transfer starts no earlier than its producer ends, and lands when it starts; where transfers are buffered, "
        "it lands no earlier than it has left, and all transfers of a result leave as one.",
        _transfer_start,
    ),
    Rule(
        "links",
        "No port and no wire carries more transfers at a time than it may, modulo the pattern.",
        _links,
    ),
    Rule(
        "transfer-exclusive",
        "Where transfers are blocking or buffered, an accelerator that takes part in one does nothing else at the "
        "time, modulo the pattern.",
        _transfer_exclusive,
    ),
)
"""The rules of level 4 on transfers, in the order in which they are checked."""
