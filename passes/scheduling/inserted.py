"""Transfers that keep accelerators from computing: operations and transfers are laid out together on the circle.

Operations are taken in runs of one part of the pattern, each run followed by its transfers, and everything takes the
earliest time at which all that it occupies is free modulo the pattern. A run begins so late that it need not wait in
between for what it reads: in a chain of stages that gives receive, compute and send without a gap.
"""

from __future__ import annotations

from collections.abc import Sequence

from passes.scheduling.circles import Footprint, earliest, occupy
from passes.scheduling.traffic import Traffic

ROUNDS = 12
"""How often values of earlier micro-batches may delay their readers."""


def insert(traffic: Traffic, period: int, runs: Sequence[Sequence[int]]) -> list[int] | None:
    """Starts of all nodes, taken in the order of ``runs``; None when something is never free, or comes too late."""
    lower: dict[int, int] = {}
    for _ in range(ROUNDS if traffic.back else 1):
        starts = _lay(traffic, period, runs, lower)
        if starts is None:
            return None
        late = False
        for u, v, distance in traffic.back:
            need = starts[u] + traffic.times[u] - distance * period
            if need > starts[v]:
                lower[v], late = max(lower.get(v, 0), need), True
        if not late:
            return starts
    return None


def _lay(traffic: Traffic, period: int, runs: Sequence[Sequence[int]], lower: dict[int, int]) -> list[int] | None:
    times, before = traffic.times, traffic.before
    footprints = traffic.footprints(period, range(len(times)))
    starts = [-1] * len(times)
    for run in runs:
        base = _base(traffic, run, starts, lower) if run[0] < traffic.operations else 0
        for node in run:
            ready = max([base, lower.get(node, 0), *(starts[u] + times[u] for u in before[node])])
            start = _place(footprints[node], ready)
            if start is None:
                return None
            starts[node] = start
    return starts


def _place(footprint: Footprint, ready: int) -> int | None:
    start = earliest(footprint, ready)
    if start is not None:
        occupy(footprint, start)
    return start


def _base(traffic: Traffic, run: Sequence[int], starts: Sequence[int], lower: dict[int, int]) -> int:
    """When a run may begin so that its operations, one after another, find what they read."""
    base = 0
    clocks: dict[int, int] = {}
    for v in run:
        lines = {line for turn in traffic.turns[v] for line in turn}
        clock = max((clocks.get(line, 0) for line in lines), default=0)
        ready = max([lower.get(v, 0), *(starts[u] + traffic.times[u] for u in traffic.before[v] if starts[u] >= 0)])
        base = max(base, ready - clock)
        clocks.update(dict.fromkeys(lines, clock + traffic.times[v]))
    return base
