"""Links between accelerators: what moving a value from one set of accelerators to another occupies, and for how long.

A *level* of the network joins the accelerators of a group; a transfer runs on the innermost level whose group holds
both of its ends. Its time is latency plus bytes through the busiest accelerator over bandwidth (the alpha-beta model:
Hockney, "The communication challenge for MPP", Parallel Computing 20, 1994). Between sets of ``s`` and ``d``
accelerators a value of ``b`` bytes that is split over its set sends ``b / min(s, d)`` through the busiest end. One that
is whole on each accelerator is either sent whole to each target, or cut into ``d`` pieces that the targets gather
among themselves, whichever is faster (the scatter/gather optimisation of Narayanan et al., "Efficient large-scale
language model training on GPU clusters using Megatron-LM", SC 2021, section 4.1).

Transfers are *overlapped* with computing, on links of their own; or *blocking*: both ends stand still meanwhile; or
*buffered*: the sender stands still while the value leaves for a buffer, once for all readers, and each reader while it
arrives, at a later time. ``docs/ir.md`` defines the same for the IR.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import prod
from typing import Literal

from passes.scheduling.data import Dependence

NS = 1_000_000_000

Mode = Literal["overlapped", "blocking", "buffered"]
Topology = Literal["switch", "ring", "torus", "full"]

COMPUTE, SEND, RECEIVE, PORT, WIRE = range(5)
"""Kinds of resources. Integers, since sets of strings come in another order in each process."""

Resource = tuple[int, int, int, int]
"""What transfers occupy: kind, number of the level, and one or two accelerators.

``(COMPUTE, -1, p, p)`` is accelerator ``p`` itself; ``SEND``, ``RECEIVE`` and ``PORT`` (both, where a link carries
one direction at a time) belong to an accelerator; ``WIRE`` leads from one accelerator to another.
"""

Members = tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """One level of the network: groups of ``size`` accelerators, ``bandwidth`` bytes/s on a link in one direction."""

    name: str
    size: int
    latency: int
    bandwidth: int
    links: int = 1
    """Links of an accelerator (switch), or between two neighbours (otherwise)."""
    topology: Topology = "switch"
    shape: tuple[int, ...] = ()
    """Sides of a torus, in members; () for one ring of all."""
    duplex: bool = True
    """Whether both directions run at once at full rate."""
    shared: bool = False
    """Whether up to ``links`` transfers run at once, each on one link; else one on all of them."""

    @property
    def capacity(self) -> int:
        """Transfers that a resource of this level carries at once."""
        return self.links if self.shared else 1

    @property
    def rate(self) -> int:
        """Bytes per second of one transfer through one resource."""
        return self.bandwidth if self.shared else self.bandwidth * self.links


@dataclass(frozen=True)
class Price:
    """A transfer between two sets: ns, what the sender occupies, and what the receiver does (``both``: at once)."""

    level: int
    time: int
    send: frozenset[Resource]
    receive: frozenset[Resource]
    gathered: bool = False
    """Whether the targets gather pieces among themselves."""

    @cached_property
    def both(self) -> frozenset[Resource]:
        """Everything occupied when both ends take part at the same time."""
        return self.send | self.receive


NOTHING = Price(-1, 0, frozenset(), frozenset())
"""The price of what does not move."""


@dataclass(frozen=True)
class Network:
    """The links of a platform, innermost level first; ``mode`` says what a transfer keeps its ends from doing."""

    levels: tuple[Level, ...]
    mode: Mode = "overlapped"
    _known: dict[Hashable, Price] = field(default_factory=dict[Hashable, Price], init=False, compare=False, repr=False)

    # --- what moves ---------------------------------------------------------------------------

    def key(self, d: Dependence, targets: tuple[Members, ...]) -> Hashable:
        """Dependences of one key are served by one transfer: a value moves once to each set that reads it."""
        return (d.producer, d.result, targets)

    def price(self, d: Dependence, source: Members, target: Members) -> Price:
        """What it takes to move the value of ``d`` from ``source`` to ``target``; nothing where they are equal."""
        return self.price_of(d.bytes, d.split, source, target)

    def price_of(self, size: int, split: bool, source: Members, target: Members) -> Price:
        """What it takes to move ``size`` bytes that are split over the sets, or whole on each accelerator."""
        if source == target or not size or not self.levels:
            return NOTHING
        key = (size, split, source, target)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._price(size, split, source, target)
        return found

    def _price(self, size: int, split: bool, source: Members, target: Members) -> Price:
        number = self.level_of((*source, *target))
        level, s, d = self.levels[number], len(source), len(target)
        pieces = -(-d // s)  # targets served by the busiest source
        senders = source if split else source[: min(s, d)]
        direct = -(-size // min(s, d)) if split else pieces * size
        time = self._ns(level, direct)
        gathered = False
        if not split and d > 1:
            inner = self.levels[self.level_of(target)]
            scattered = self._ns(level, pieces * -(-size // d)) + self._ns(inner, size - size // d)
            gathered = scattered < time
            time = min(time, scattered)
        out: set[Resource] = set()
        into: set[Resource] = set()
        routes = list(self._messages(split, senders, target))
        hops = 1
        if self.mode != "buffered":
            for a, b in routes:
                hops = max(hops, self._occupy(number, a, b, out, into))
            if gathered:
                inside = self.level_of(target)
                for a, b in zip(target, (*target[1:], target[0]), strict=True):
                    self._occupy(inside, a, b, into, into)
        if self.mode != "overlapped":
            out |= {(COMPUTE, -1, p, p) for p in senders}
            into |= {(COMPUTE, -1, p, p) for p in target}
        return Price(number, time + (hops - 1) * level.latency, frozenset(out), frozenset(into), gathered)

    @staticmethod
    def _ns(level: Level, size: int) -> int:
        return level.latency + -(-NS * size // level.rate)

    @staticmethod
    def _messages(split: bool, senders: Members, target: Members) -> Iterator[tuple[int, int]]:
        """Pairs between which something is sent: whole values round robin, pieces to where their places are."""
        s, d = len(senders), len(target)
        if not split:
            yield from ((senders[t % s], b) for t, b in enumerate(target))
            return
        for t, b in enumerate(target):  # target t holds [t/d, (t+1)/d) of the value
            yield from ((senders[i], b) for i in range(t * s // d, -(-(t + 1) * s // d)))

    # --- where ----------------------------------------------------------------------------------

    def level_of(self, members: Sequence[int]) -> int:
        """Number of the innermost level whose group holds all of ``members``."""
        low, high = min(members), max(members)
        for number, level in enumerate(self.levels):
            if low // level.size == high // level.size:
                return number
        return len(self.levels) - 1

    def capacity(self, resource: Resource) -> int:
        """Transfers (or operations) that ``resource`` carries at once."""
        return 1 if resource[1] < 0 else self.levels[resource[1]].capacity

    def _occupy(self, number: int, a: int, b: int, out: set[Resource], into: set[Resource]) -> int:
        """Add what a message from accelerator ``a`` to ``b`` occupies; the links it passes on its way."""
        if a == b:
            return 1
        level = self.levels[number]
        if level.topology == "switch":
            out.add((SEND if level.duplex else PORT, number, a, a))
            into.add((RECEIVE if level.duplex else PORT, number, b, b))
            return 1
        hops = list(self._route(number, a, b))
        for u, v in hops:
            wire = (u, v) if level.duplex else (min(u, v), max(u, v))
            out.add((WIRE, number, *wire))
            into.add((WIRE, number, *wire))
        return max(1, len(hops))

    def _route(self, number: int, a: int, b: int) -> Iterator[tuple[int, int]]:
        """The neighbours that a message passes, one side of the torus after the other, each the shorter way round.

        The members of an outer level are the groups inside it: a message keeps its place in its group.
        """
        level = self.levels[number]
        inner = self.levels[number - 1].size if number else 1
        base = a // level.size * level.size
        place, at, goal = (a - base) % inner, (a - base) // inner, (b - base) // inner
        if level.topology == "full":
            if at != goal:
                yield base + at * inner + place, base + goal * inner + place
            return
        sides = level.shape or (-(-level.size // inner),)
        for number_of_side, side in enumerate(sides):
            stride = prod(sides[number_of_side + 1 :])
            here, there = at // stride % side, goal // stride % side
            step = 1 if (there - here) % side <= (here - there) % side else -1
            while here != there:
                here = (here + step) % side
                after = at + (here - at // stride % side) * stride
                yield base + at * inner + place, base + after * inner + place
                at = after


@cache
def no_network() -> Network:
    """A network without links, on which everything moves for free."""
    return Network(())
