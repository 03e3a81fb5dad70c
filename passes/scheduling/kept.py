"""Transfers beside computing: accelerators keep their order and their rounds, and wait for what arrives.

In the schedule that knew nothing of links, each operation of an accelerator follows another one, some periods later.
These differences, and those that values and their transfers ask for, have least starts as soon as the period leaves
room for the transfers: no operation runs a round later than before, so about as many micro-batches are in flight.
``rotated.py`` is its counterpart, which keeps the period and lets operations run rounds later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from passes.scheduling.circles import earliest, occupy
from passes.scheduling.rotated import Rotation

ROUNDS = 12
"""How often transfers that find their links busy may delay what waits for them."""

Edges = list[list[tuple[int, int]]]
"""For each node the nodes that start later, and by how much at least."""


def kept_starts(rotation: Rotation, period: int) -> list[int] | None:
    """Starts of all nodes; None when the rounds leave too little time, or links are not free."""
    traffic = rotation.traffic
    edges: Edges = [[] for _ in traffic.times]
    for node, waits in enumerate(traffic.before):
        for u in waits:
            edges[u].append((node, traffic.times[u]))
    for rounds in rotation.rounds.values():
        for (u, v), laps in rounds.items():
            edges[u].append((v, traffic.times[u] + laps * period))
    for u, v, distance in traffic.back:
        edges[u].append((v, traffic.times[u] - distance * period))
    starts = [0] * len(traffic.times)
    limit = _latest(rotation, period)
    if not _relax(starts, edges, range(len(starts)), limit):
        return None
    for _ in range(ROUNDS):
        settled = _place(rotation, period, starts, edges, limit)
        if settled is None:
            return None
        if settled:
            return starts
    return None


def _place(rotation: Rotation, period: int, starts: list[int], edges: Edges, limit: int) -> bool | None:
    """Delay transfers, earliest first, to where their links are free, and all that waits for them.

    Whether none that had its place was delayed by a later one; None when there is no place, or no starts any more.
    """
    traffic = rotation.traffic
    waiting = [(starts[node], node) for node in range(traffic.operations, len(starts))]
    heapify(waiting)
    footprints = traffic.footprints(period, range(traffic.operations, len(starts)))
    placed: dict[int, int] = {}
    while waiting:
        start, node = heappop(waiting)
        if start < starts[node]:
            heappush(waiting, (starts[node], node))
            continue
        free = earliest(footprints[node], start)
        if free is None:
            return None
        occupy(footprints[node], free)
        placed[node] = free
        if free > start:
            starts[node] = free
            if not _relax(starts, edges, [node], limit):
                return None
    return all(starts[node] == start for node, start in placed.items())


def _latest(rotation: Rotation, period: int) -> int:
    """No least start is later: the starts without links, stretched, and every transfer on the way twice.

    (Once for its time, and as much again for links that are busy.)
    """
    traffic = rotation.traffic
    known = traffic.solution
    last = max(known.starts, default=0) * period // known.period
    return last + 2 * sum(traffic.times[traffic.operations :]) + 2 * period


def _relax(starts: list[int], edges: Edges, late: Sequence[int], limit: int) -> bool:
    """Raise ``starts`` to the least that keep ``edges``; false when one would be later than ``limit``.

    Bellman-Ford with a queue: where differences contradict each other, a start grows by way of a path longer than
    there are nodes, long before it reaches the limit.
    """
    queue = deque(late)
    waiting = [False] * len(starts)
    steps = [0] * len(starts)
    """Differences on the path by which each start was raised."""
    for node in queue:
        waiting[node] = True
    while queue:
        u = queue.popleft()
        waiting[u] = False
        for v, length in edges[u]:
            if starts[u] + length > starts[v]:
                starts[v] = starts[u] + length
                steps[v] = steps[u] + 1
                if starts[v] > limit or steps[v] > len(starts):
                    return False
                if not waiting[v]:
                    waiting[v] = True
                    queue.append(v)
    return True
