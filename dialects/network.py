"""What moving a value between two sets of accelerators takes and occupies, from the definitions in ``docs/ir.md``.

The checker, the simulator and the views of a schedule read this; solvers have their own. Times are ns, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Literal, NamedTuple

from dialects.links import LinkAttr
from dialects.structure import PlatformOp

SECOND = 1_000_000_000

Accelerators = tuple[int, ...]
"""A set, sorted."""


class Resource(NamedTuple):
    """What a transfer occupies: an accelerator, one of its ports at a level, or a wire from one place to another."""

    kind: Literal["accelerator", "send port", "receive port", "port", "wire"]
    level: int
    """Number of the level of a port or wire; -1 for an accelerator."""
    at: int
    to: int
    """Where a wire leads; ``at`` for everything else."""


@dataclass(frozen=True)
class Link:
    """A level of the network, fields as in :class:`dialects.attributes.LinkAttr`; latency ns, bandwidth bytes/s."""

    name: str
    size: int
    latency: int
    bandwidth: int
    links: int = 1
    topology: str = "switch"
    shape: tuple[int, ...] = ()
    duplex: bool = True
    shared: bool = False

    @staticmethod
    def of(attr: LinkAttr) -> Link:
        """The level that an attribute of the platform describes."""
        return Link(*attr.plain())

    @property
    def capacity(self) -> int:
        """How many transfers a port or wire carries at once."""
        return self.links if self.shared else 1

    def ns(self, size: int) -> int:
        """Latency, and ``size`` bytes through the port or wire of one transfer, rounded up."""
        together = 1 if self.shared else self.links
        return self.latency + -(-size * SECOND // (self.bandwidth * together))


class Way(NamedTuple):
    """How a value gets from one set to another: on which level, in how many ns, and what it occupies meanwhile.

    ``sender`` is occupied while the value leaves and ``receiver`` while it arrives; without a buffer that is one time.
    """

    level: int
    time: int
    sender: frozenset[Resource]
    receiver: frozenset[Resource]

    @property
    def moves(self) -> bool:
        """Whether there is anything to do."""
        return self.level >= 0


STAYS = Way(-1, 0, frozenset(), frozenset())
"""Between equal sets, or for no bytes."""


@dataclass(frozen=True)
class Network:
    """The levels of a platform, innermost first, and its mode: ``overlapped``, ``blocking`` or ``buffered``."""

    links: tuple[Link, ...]
    mode: str = "overlapped"
    _known: dict[tuple[int, bool, Accelerators, Accelerators], Way] = field(
        default_factory=dict[tuple[int, bool, Accelerators, Accelerators], Way], compare=False, repr=False
    )

    @staticmethod
    def of(platform: PlatformOp) -> Network:
        """The network of a platform."""
        return Network(tuple(Link.of(attr) for attr in platform.links.data), platform.mode)

    def capacity(self, resource: Resource) -> int:
        """How much a resource carries at once: one thing, or as many transfers as a shared level has links."""
        return self.links[resource.level].capacity if resource.level >= 0 else 1

    def name(self, resource: Resource) -> str:
        """A resource for messages: ``the send port of accelerator 3 (node)``."""
        if resource.kind == "accelerator":
            return f"accelerator {resource.at}"
        place = f"({self.links[resource.level].name})"
        if resource.kind == "wire":
            return f"the wire from {resource.at} to {resource.to} {place}"
        return f"the {resource.kind} of accelerator {resource.at} {place}"

    def level(self, accelerators: Iterable[int]) -> int:
        """Number of the innermost level that has all of them in one group."""
        members = tuple(accelerators)
        first, last = min(members), max(members)
        fits = (number for number, link in enumerate(self.links) if first // link.size == last // link.size)
        return next(fits, len(self.links) - 1)

    def way(self, size: int, sharded: bool, source: Accelerators, target: Accelerators) -> Way:
        """How ``size`` bytes get from ``source`` to ``target``; :data:`STAYS` where nothing has to move."""
        if source == target or not size or not self.links:
            return STAYS
        key = (size, sharded, source, target)
        if key not in self._known:
            self._known[key] = self._way(*key)
        return self._known[key]

    def _way(self, size: int, sharded: bool, source: Accelerators, target: Accelerators) -> Way:
        level = self.level((*source, *target))
        link, least = self.links[level], min(len(source), len(target))
        senders = source if sharded else source[:least]
        gathers = False
        if sharded:
            time = link.ns(-(-size // least))
        else:
            turns = -(-len(target) // len(source))  # targets that the busiest sender serves
            time = link.ns(turns * size)
            if len(target) > 1:
                inside = self.links[self.level(target)]
                piece, others = -(-size // len(target)), size - size // len(target)
                cut = link.ns(turns * piece) + inside.ns(others)
                gathers, time = cut < time, min(cut, time)
        sender: set[Resource] = set()
        receiver: set[Resource] = set()
        if self.mode != "buffered":  # else the way leads through the buffer
            messages = list(_shares(senders, target) if sharded else _round_robin(senders, target))
            passed = [self._occupied(level, a, b) for a, b in messages]
            for out, into, _ in passed:
                sender |= out
                receiver |= into
            time += (max(1, *(hops for _, _, hops in passed)) - 1) * link.latency
            if gathers:
                for a, b in pairwise(target + target[:1]):
                    out, into, _ = self._occupied(self.level(target), a, b)
                    receiver |= out | into
        if self.mode != "overlapped":
            sender |= {Resource("accelerator", -1, p, p) for p in senders}
            receiver |= {Resource("accelerator", -1, p, p) for p in target}
        return Way(level, time, frozenset(sender), frozenset(receiver))

    def _occupied(self, level: int, a: int, b: int) -> tuple[set[Resource], set[Resource], int]:
        """What a message from ``a`` to ``b`` occupies at the sender and at the receiver, and over how many wires."""
        link = self.links[level]
        if a == b:
            return set(), set(), 0
        if link.topology == "switch":
            if link.duplex:
                return {Resource("send port", level, a, a)}, {Resource("receive port", level, b, b)}, 1
            return {Resource("port", level, a, a)}, {Resource("port", level, b, b)}, 1
        stops = self._stops(level, a, b)
        pairs = [pair if link.duplex else (min(pair), max(pair)) for pair in pairwise(stops)]
        wires = {Resource("wire", level, u, v) for u, v in pairs}
        return wires, wires, len(pairs)

    def _stops(self, level: int, a: int, b: int) -> list[int]:
        """The accelerators that a message passes, ends included; it keeps its place inside the members of the level.

        The members of a level are the groups of the level inside it. Where the last one is incomplete, places are
        counted as if it were not.
        """
        link, inner = self.links[level], self.links[level - 1].size if level else 1
        base = a - a % link.size
        here, goal = (a - base) // inner, (b - base) // inner
        members = [here]
        if link.topology == "full" and here != goal:
            members.append(goal)
        elif link.topology != "full":
            members += _around(link.shape or (-(-link.size // inner),), here, goal)
        return [base + member * inner + (a - base) % inner for member in members]


def _round_robin(senders: Accelerators, target: Accelerators) -> Iterator[tuple[int, int]]:
    """Who sends to whom what is whole on each: the senders take turns."""
    for turn, b in enumerate(target):
        yield senders[turn % len(senders)], b


def _shares(senders: Accelerators, target: Accelerators) -> Iterator[tuple[int, int]]:
    """Who sends to whom what is cut evenly over both sets: those whose shares overlap."""
    s, d = len(senders), len(target)
    for i, a in enumerate(senders):
        for j, b in enumerate(target):
            if i * d < (j + 1) * s and j * s < (i + 1) * d:
                yield a, b


def _around(sides: tuple[int, ...], here: int, goal: int) -> Iterator[int]:
    """The members after ``here`` on the way to ``goal`` in a torus: along one side after the other, the shorter way.

    Both ways equally long, it goes up. A ring is a torus of one side.
    """
    strides = [prod(sides[axis + 1 :]) for axis in range(len(sides))]
    at = [here // stride % side for stride, side in zip(strides, sides, strict=True)]
    for axis, (stride, side) in enumerate(zip(strides, sides, strict=True)):
        up = (goal // stride - at[axis]) % side
        step, hops = (1, up) if up <= side - up else (-1, side - up)
        for _ in range(hops):
            at[axis] = (at[axis] + step) % side
            yield sum(place * stride for place, stride in zip(at, strides, strict=True))
