"""What the transfers of a schedule occupy, and how much of the time, from the plain data of :mod:`compiler.view`.

What a transfer occupies is the checker's definition (:mod:`dialects.network`). Times are ns, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor, lcm

from compiler.view import Accelerators, Edge, LinkView, Move, ScheduleView, Task
from dialects import network


@dataclass(frozen=True, order=True)
class Resource:
    """Something that a transfer occupies.

    ``kind`` is ``send``, ``receive`` or ``port`` (one direction at a time) of the accelerator ``first == last``, or
    ``wire`` between two, all of the level ``link``; or the ``accelerator`` itself, which then stands still, without a
    level.
    """

    link: str
    kind: str
    first: int
    last: int

    @property
    def members(self) -> Accelerators:
        """The accelerators it belongs to."""
        return (self.first,) if self.first == self.last else (self.first, self.last)


@dataclass(frozen=True)
class Instance:
    """A transfer for one micro-batch; ``sent`` and ``landed`` are when its two ends begin, ns."""

    move: Move
    microbatch: int
    sent: Fraction
    landed: Fraction


Resources = frozenset[Resource]


@dataclass(frozen=True)
class Level:
    """What is moved over one level of the network: ``transfers`` reserved on it, ``size`` bytes per micro-batch.

    ``busiest`` is its most loaded resource and ``load`` that one's busy share of the period; None where transfers
    occupy no links.
    """

    name: str
    transfers: int
    size: Fraction
    busiest: Resource | None
    load: Fraction


# --- what a transfer occupies ----------------------------------------------------------------


def occupied(view: ScheduleView, move: Move, microbatch: int) -> tuple[Resources, Resources]:
    """What the two ends of a transfer occupy for a micro-batch, sender first; nothing where the sets are equal."""
    ways = view.ways[move.index]
    way = ways[microbatch % len(ways)]

    def shown(r: network.Resource) -> Resource:
        link = view.platform.links[r.level].name if r.level >= 0 else ""
        return Resource(link, r.kind.removesuffix(" port"), r.at, r.to)

    return frozenset(map(shown, way.sender)), frozenset(map(shown, way.receiver))


def link_named(view: ScheduleView, name: str) -> LinkView | None:
    """The level of the network of that name."""
    return next((link for link in view.platform.links if link.name == name), None)


def capacity(view: ScheduleView, resource: Resource) -> int:
    """Transfers that a resource carries at once."""
    link = link_named(view, resource.link)
    return link.links if link is not None and link.shared else 1


# --- turns and readers ------------------------------------------------------------------


def turns(view: ScheduleView, move: Move) -> int:
    """Micro-batches after which the sets of a transfer repeat."""
    return lcm(len(view.tasks[move.producer].copies), len(move.targets))


def moves_in(view: ScheduleView, move: Move, microbatch: int) -> bool:
    """Whether anything moves for a micro-batch: the sets differ."""
    return view.tasks[move.producer].set_of(microbatch) != move.target_of(microbatch)


def numbers(view: ScheduleView, what: Task | Move, low: Fraction, high: Fraction) -> range:
    """The micro-batches of which an operator or a transfer may have a part in ``[low, high)``."""
    each, length = (view.microbatches, Fraction(view.pattern)) if view.step else (1, view.period)
    last = max(what.landings if isinstance(what, Move) else what.starts) + what.time
    return range(floor((low - last) / length) * each, (floor((high - min(what.starts)) / length) + 1) * each)


def instances(view: ScheduleView, low: Fraction, high: Fraction, first: int | None = None) -> list[Instance]:
    """The transfers of which a part lies in ``[low, high)``, where something moves and takes time.

    Of micro-batches from ``first`` on, or also of those before 0.
    """
    found: list[Instance] = []
    for move in (m for m in view.moves if m.time):
        for i in numbers(view, move, low, high):
            sent, landed = view.begin(move, i), view.landing(move, i)
            if (first is None or i >= first) and sent < high and landed + move.time > low and moves_in(view, move, i):
                found.append(Instance(move, i, sent, landed))
    return found


def leaving(view: ScheduleView, found: list[Instance]) -> dict[Instance, Instance]:
    """Each transfer → the one that stands for it where it leaves: through a buffer, the longest of one copy out."""
    first: dict[tuple[int, int, int, Fraction], Instance] = {}
    for x in sorted(found, key=lambda x: -x.move.time):
        first.setdefault(_copy_out(x), x)
    return {x: first[_copy_out(x)] if view.platform.transfers == "buffered" else x for x in found}


def _copy_out(x: Instance) -> tuple[int, int, int, Fraction]:
    return x.move.producer, x.move.result, x.microbatch, x.sent


def readers_of(view: ScheduleView, move: Move) -> tuple[Edge, ...]:
    """The dependences that a transfer serves: of its value, and on its target in every turn."""
    return tuple(
        edge for edge in view.readers[move.producer] if move.result in edge.results and _serves(view, move, edge)
    )


def _serves(view: ScheduleView, move: Move, edge: Edge) -> bool:
    consumer = view.tasks[edge.consumer]
    count = lcm(turns(view, move), len(consumer.copies))
    return all(move.target_of(i) == consumer.set_of(i + edge.distance) for i in range(count))


# --- load ------------------------------------------------------------------------------------


def loads(view: ScheduleView) -> dict[Resource, Fraction]:
    """Resource → busy share of the period, by transfers alone, of as many as it carries at once.

    Through a buffer, the copy out of a value counts once, however many sets it is for.
    """
    busy: dict[Resource, Fraction] = {}
    buffered = view.platform.transfers == "buffered"
    values: dict[tuple[int, ...], list[Move]] = {}
    for move in view.moves:
        values.setdefault((move.producer, move.result) if buffered else (move.index,), []).append(move)
    for moves in values.values():
        count = lcm(*(turns(view, m) for m in moves))
        for microbatch in range(count):
            for resource, time in _times(view, moves, microbatch):
                busy[resource] = busy.get(resource, Fraction(0)) + Fraction(time, count)
    return {r: total / (view.period * capacity(view, r)) for r, total in sorted(busy.items())}


def _times(view: ScheduleView, moves: list[Move], microbatch: int) -> Iterator[tuple[Resource, int]]:
    """What the transfers of a value occupy for one micro-batch, and for how long."""
    out: dict[Resource, int] = {}
    for move in moves:
        send, receive = occupied(view, move, microbatch)
        if view.platform.transfers == "buffered":
            out |= {r: max(out.get(r, 0), move.time) for r in send}
        else:
            receive |= send  # at the same time: what takes part in both ends is busy once
        yield from ((r, move.time) for r in receive)
    yield from out.items()


def levels(view: ScheduleView) -> list[Level]:
    """The levels that transfers use, innermost first."""
    busy = loads(view)
    order = [link.name for link in view.platform.links]
    names = {m.link for m in view.moves} | {r.link for r in busy if r.link}
    used = sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))
    found: list[Level] = []
    for name in used:
        moves = [m for m in view.moves if m.link == name]
        size = sum((m.size * _share_of_turns(view, m) for m in moves), Fraction(0))
        here = [r for r in busy if r.link == name]
        busiest = max(here, key=lambda r: busy[r], default=None)
        found.append(Level(name, len(moves), size, busiest, busy[busiest] if busiest else Fraction(0)))
    return found


def _share_of_turns(view: ScheduleView, move: Move) -> Fraction:
    count = turns(view, move)
    return Fraction(sum(moves_in(view, move, i) for i in range(count)), count)


def standstill(view: ScheduleView) -> dict[int, Fraction]:
    """Accelerator → share of the period in which it stands still for transfers; those that never do are left out."""
    return {r.first: load for r, load in loads(view).items() if r.kind == "accelerator"}
