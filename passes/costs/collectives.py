"""What collective communication among k neighbouring accelerators costs: alpha-beta formulas by topology.

A collective starts once in each of its phases, alpha, and then sends at the rate of the links, beta. A phase is the
whole collective on one level of the network, or one dimension of a torus. One alpha for it, not one for each of its
steps, is what measured tables show (``docs/costs.md``): software start-up dominates the hops.

Volumes: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication operations in MPICH",
Int. J. High Performance Computing Applications 19(1), 2005, section 4; E. Chan, M. Heimlich, A. Purkayastha, R. van de
Geijn, "Collective communication: theory, practice, and experience", Concurrency and Computation 19(13), 2007.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from passes.costs.machine import NS_PER_S, Link, Machine

Pattern = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"]


@dataclass(frozen=True)
class Collective:
    """``size`` is the bytes of the whole tensor; ``group`` accelerators take part."""

    pattern: Pattern
    size: int
    group: int


def volume(pattern: Pattern, size: float, k: int) -> float:
    """Bytes that each of k accelerators sends, and receives.

    all_reduce 2(k-1)/k S; all_gather and reduce_scatter (k-1)/k S, half of it each;
    all_to_all (k-1)/k of the S/k bytes it holds; broadcast S, passed on piece by piece (pipelined).
    """
    share = size * (k - 1) / k
    match pattern:
        case "all_reduce":
            return 2 * share
        case "all_gather" | "reduce_scatter":
            return share
        case "all_to_all":
            return share / k
        case "broadcast":
            return size


def collective_ns(machine: Machine, collective: Collective) -> float:
    """Time of ``collective``; nothing on one accelerator, for no bytes, or where no links are described.

    A measured table for the pattern and just this number of accelerators stands in the place of the formulas. On more
    accelerators than an inner group holds it is the faster of the flat and the hierarchical algorithm.
    """
    pattern, size, k = collective.pattern, collective.size, collective.group
    if k == 1 or size == 0:
        return 0.0
    table = machine.measured.get((pattern, k))
    if table is not None:
        return interpolated(table, size)
    number = machine.level(k)
    if number is None:
        return 0.0
    if machine.inside(number) == 1:
        return _level_ns(machine, number, pattern, size, k)
    if pattern == "all_to_all":
        return machine.links[number].latency + _exchange_ns(machine, number, size, k)
    flat = _flat_ns(machine, number, pattern, size, k)
    return flat if k % machine.inside(number) else min(flat, _hierarchical_ns(machine, number, pattern, size, k))


def interpolated(table: Sequence[tuple[int, int]], size: float) -> float:
    """ns for ``size`` bytes: linear between measured points; below the first its time; beyond the last its slope.

    Measured times may fall, by noise; beyond the last point they stay level then.
    """
    first, time = table[0]
    if size <= first:
        return time
    for (low, before), (high, after) in pairwise(table):
        if size <= high:
            return before + (after - before) * (size - low) / (high - low)
    (low, before), (high, after) = table[-2:]
    return after + max(0, after - before) * (size - high) / (high - low)


# --- one level ------------------------------------------------------------------------------------


def _level_ns(machine: Machine, number: int, pattern: Pattern, size: float, k: int) -> float:
    """Time among k neighbouring members of one level, one accelerator of each."""
    link = machine.links[number]
    match link.topology:
        case "switch":
            return link.latency + _ns(_both_ways(link, pattern, k) * volume(pattern, size, k), link.rate)
        case "full":
            return link.latency + _ns(_full(link, pattern, size, k), link.rate)
        case "ring" | "torus":
            members = -(-link.size // machine.inside(number))
            return _torus_ns(link, pattern, size, _extents(k, link.shape or (members,)))


def _ns(size: float, rate: float) -> float:
    return NS_PER_S * size / rate


def _both_ways(link: Link, pattern: Pattern, k: int) -> int:
    """How many times as long it takes because sending waits for receiving: 2 on half-duplex links.

    Not for a broadcast to a single other accelerator: nobody both sends and receives.
    """
    return 1 if link.duplex or (pattern == "broadcast" and k == 2) else 2


def _full(link: Link, pattern: Pattern, size: float, k: int) -> float:
    """Bytes through each of an accelerator's k-1 links to the others, all of which it uses at once.

    Each part goes straight to its place. A broadcast sends another part to each of the others, who exchange them in
    the meantime (a scatter and an all-gather, as in Chan et al. 2007, pipelined).
    """
    return _both_ways(link, pattern, k) * volume(pattern, size, k) / (k - 1)


def _extents(k: int, sides: Sequence[int]) -> list[tuple[int, bool]]:
    """The sides of k neighbours in a torus: how many members, and whether they close to a ring.

    Members are numbered along the last side first. Two neighbours have one connection, not two. A number that fills
    no box of the torus is taken for a line through it.
    """
    left = k
    found: list[tuple[int, bool]] = []
    for side in reversed(sides):
        if left % side == 0:
            found.append((side, side > 2))
            left //= side
        else:
            if left < side:
                found.append((left, False))
            elif left > 1:
                return [(k, False)]
            left = 1
    return [extent for extent in found if extent[0] > 1] if left == 1 else [(k, False)]


def _torus_ns(link: Link, pattern: Pattern, size: float, extents: Sequence[tuple[int, bool]]) -> float:
    """One dimension after the other, in each of them around the ring both ways, or along a line.

    all_gather, reduce_scatter, all_reduce: the bucket algorithm (Chan et al. 2007; N. Jain, Y. Sabharwal, "Optimal
    bucket algorithms for large MPI collectives on torus interconnects", ICS 2010, who also use all dimensions at
    once, which is not done here). Lines come first, while each accelerator holds little.
    all_to_all: what must cross the middle of the worst side (bisection: W. Dally, B. Towles, "Principles and
    Practices of Interconnection Networks", 2004), messages of all dimensions at once.
    broadcast: pipelined through all dimensions, half of it each way around a ring.
    """
    k = 1
    for side, _ in extents:
        k *= side
    waiting = 1 if link.duplex else 2
    rates = {closed: link.rate * (2 if closed else 1) / waiting for closed in (False, True)}
    if pattern == "all_to_all":
        crossing = (((side * side // 4) * size / (side * k), closed) for side, closed in extents)
        return link.latency + max(_ns(load, rates[closed]) for load, closed in crossing)
    if pattern == "broadcast":  # along a line it runs one way only, so half duplex does not matter
        slowest = min(rates[True] if closed else link.rate for _, closed in extents)
        return len(extents) * link.latency + _ns(size, slowest)
    time, held = 0.0, size / k
    for side, closed in sorted(extents, key=lambda extent: extent[1]):
        time += link.latency + (2 if pattern == "all_reduce" else 1) * _ns((side - 1) * held, rates[closed])
        held *= side
    return time


# --- several levels -------------------------------------------------------------------------------


def _flat_ns(machine: Machine, number: int, pattern: Pattern, size: float, k: int) -> float:
    """One ring through all accelerators, at the speed of its slowest connection (Thakur et al. 2005)."""
    links = machine.links[: number + 1]
    sent = volume(pattern, size, k)
    return links[-1].latency + max(_ns(_both_ways(link, pattern, k) * sent, link.rate) for link in links)


def _exchange_ns(machine: Machine, number: int, size: float, k: int) -> float:
    """all_to_all without its start, each part straight to its place: the level that is busy longest.

    Across, the accelerators of each place in the groups exchange 1/g of everything; groups count as equal. Parts come
    out at the right accelerator from a switch; otherwise at that of the sender's place, and are passed on inside.
    """
    inside, link = machine.inside(number), machine.links[number]
    groups = -(-k // inside)
    across = _level_ns(machine, number, "all_to_all", size * groups / k, groups) - link.latency
    if inside == 1:
        return across
    within = size / groups**2 if link.topology == "switch" else size / groups
    return max(across, _exchange_ns(machine, number - 1, within, inside))


HIERARCHY: Mapping[Pattern, tuple[Pattern | None, Pattern | None]] = {
    "all_reduce": ("reduce_scatter", "all_gather"),
    "broadcast": ("reduce_scatter", "all_gather"),  # a scatter, which sends as much as a reduce-scatter
    "all_gather": (None, "all_gather"),
    "reduce_scatter": ("reduce_scatter", None),
}
"""What the accelerators of an inner group do before and after the same pattern runs across the groups."""


def _hierarchical_ns(machine: Machine, number: int, pattern: Pattern, size: int, k: int) -> float:
    """Inside the groups, then across them, the accelerators of each place among themselves, then inside again.

    Across runs 1/g of the tensor, g the size of a group (M. Cho, U. Finkler, M. Serrano, D. Kung, H. Hunter,
    "BlueConnect: decomposing all-reduce for deep learning on heterogeneous network hierarchy", SysML 2019).
    """
    inside = machine.inside(number)
    before, after = HIERARCHY[pattern]
    time = _level_ns(machine, number, pattern, size / inside, k // inside)
    for inner in (before, after):
        if inner is not None:
            time += collective_ns(machine, Collective(inner, size, inside))
    return time
