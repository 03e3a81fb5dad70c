"""What a Gantt chart shows of transfers, before it has a size: lanes beside the rows, or pieces of rows; arrows.

Where transfers run beside computing, each group of rows has a lane for what arrives, above it, and one for what leaves,
below it. Where they stop accelerators, they stand in the rows themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import TypeVar

from compiler.links import Instance, instances, leaving, occupied
from compiler.targets.gantt import Chart, runs_of
from compiler.view import Accelerators, ScheduleView

K = TypeVar("K")

MOST_DEEP = 3
"""Transfers beside each other in a lane; where more meet, the lane says only how busy it is."""

PIECE = 6
"""Shortest visible times in a piece of a lane that says how busy it is."""

MOST_BARS = 1500
"""Bars in all; beyond that lanes say only how busy they are, and rows when they stand still."""

MOST_ARROWS = 250
"""Beyond that a chart has none."""


@dataclass(frozen=True)
class Bar:
    """One end of a transfer in ``[begin, end)`` ns, cut at the window; of several where they are too many to tell.

    In a lane, ``depth`` is its place from the top.
    """

    transfers: tuple[Instance, ...]
    arrives: bool
    begin: Fraction
    end: Fraction
    depth: int = 0


@dataclass(frozen=True)
class Lane:
    """What arrives at, or leaves, a group of rows: bars, ``depth`` of them beside each other, or how many at once."""

    depth: int
    bars: tuple[Bar, ...]
    busy: tuple[Busy, ...] = ()


@dataclass(frozen=True)
class Busy:
    """``mean`` transfers at once, on average, in ``[begin, end)`` ns."""

    begin: Fraction
    end: Fraction
    mean: Fraction


def ends_of(view: ScheduleView, x: Instance) -> tuple[Accelerators, Accelerators]:
    """The accelerators that send, and those that receive."""
    sets = view.tasks[x.move.producer].set_of(x.microbatch), x.move.target_of(x.microbatch)
    send, receive = (
        tuple(sorted({r.first for r in resources if r.kind != "wire"})) or whole
        for resources, whole in zip(occupied(view, x.move, x.microbatch), sets, strict=True)
    )
    return send, receive


def lanes(chart: Chart, least: Fraction) -> dict[tuple[int, bool], Lane]:
    """The lanes that something runs on, by group and by whether it arrives; ``least`` ns is too short to see."""
    group_of = {p: g for g, group in enumerate(chart.groups) for p in group.accelerators}
    on: dict[tuple[int, bool], list[Bar]] = {}
    for bar, members in _bars(chart):
        for g in {group_of[p] for p in members if p in group_of}:
            on.setdefault((g, bar.arrives), []).append(bar)
    many = sum(map(len, on.values())) > MOST_BARS
    return {key: _busy_lane(chart, bars, least) if many else _lane(chart, bars, least) for key, bars in on.items()}


def stops(chart: Chart, least: Fraction) -> Iterator[tuple[tuple[int, int], Bar]]:
    """The rows ``[top, bottom)`` that stand still for transfers; the copy out of a value is there once."""
    row_of = {p: row for row, p in enumerate(chart.rows)}
    on: dict[tuple[int, int], list[Bar]] = {}
    for bar, members in _bars(chart):
        for rows in runs_of(row_of[p] for p in members if p in row_of):
            on.setdefault(rows, []).append(bar)
    for rows, bars in (_fewer(on, least, chart.view.period) or on).items():
        yield from ((rows, bar) for bar in bars)


def arrows(chart: Chart) -> list[Instance]:
    """The transfers that lie whole in the window; none where they are too many to follow."""
    every = instances(chart.view, chart.low, chart.high)
    found = [x for x in every if x.sent >= chart.low and x.landed + x.move.time <= chart.high]
    return found if len(found) <= MOST_ARROWS else []


def _bars(chart: Chart) -> Iterator[tuple[Bar, Accelerators]]:
    """Both ends of every transfer in the window, with the accelerators there; what leaves for several is there once."""
    found = instances(chart.view, chart.low, chart.high)
    leader = leaving(chart.view, found)
    shown: dict[Instance, set[int]] = {}
    for x in found:
        senders, receivers = ends_of(chart.view, x)
        before = shown.setdefault(leader[x], set())
        fresh = tuple(p for p in senders if p not in before)
        before.update(fresh)
        for arrives, first, begin, members in ((False, leader[x], x.sent, fresh), (True, x, x.landed, receivers)):
            low, high = max(chart.low, begin), min(chart.high, begin + first.move.time)
            if low < high and members:
                yield Bar((first,), arrives, low, high), members


def _lane(chart: Chart, bars: list[Bar], least: Fraction) -> Lane:
    placed: list[Bar] = []
    ends: list[Fraction] = []
    for bar in sorted(bars, key=_order):
        depth = next((d for d, end in enumerate(ends) if end <= bar.begin), len(ends))
        ends[depth : depth + 1] = [bar.end]
        placed.append(replace(bar, depth=depth))
    return Lane(len(ends), tuple(placed)) if len(ends) <= MOST_DEEP else _busy_lane(chart, bars, least)


def _busy_lane(chart: Chart, bars: list[Bar], least: Fraction) -> Lane:
    """Transfers at once, averaged over pieces of time of equal length."""
    count = max(1, int((chart.high - chart.low) / (PIECE * least)))
    length = (chart.high - chart.low) / count
    time = [Fraction(0)] * count
    for bar in bars:
        for i in range(int((bar.begin - chart.low) // length), min(count, ceil((bar.end - chart.low) / length))):
            begin = chart.low + i * length
            time[i] += min(bar.end, begin + length) - max(bar.begin, begin)
    pieces = (Busy(chart.low + i * length, chart.low + (i + 1) * length, t / length) for i, t in enumerate(time) if t)
    return Lane(1, (), tuple(pieces))


def _order(bar: Bar) -> tuple[Fraction, Fraction, int]:
    return bar.begin, bar.end, bar.transfers[0].move.index


def _fewer(on: dict[K, list[Bar]], least: Fraction, period: Fraction) -> dict[K, list[Bar]] | None:
    """Bars joined until they are not too many; None where they are few as they stand."""
    if sum(map(len, on.values())) <= MOST_BARS:
        return None
    while True:
        found = {key: list(_joined(bars, least)) for key, bars in on.items()}
        if sum(map(len, found.values())) <= MOST_BARS or least >= period:
            return found
        least = max(Fraction(1), 2 * least)


def _joined(bars: Iterable[Bar], least: Fraction) -> Iterator[Bar]:
    """Join what overlaps or stands closer than ``least``."""
    held: Bar | None = None
    for bar in sorted(bars, key=_order):
        if held is not None and bar.begin < held.end + least:
            held = replace(held, transfers=held.transfers + bar.transfers, end=max(held.end, bar.end))
            continue
        if held is not None:
            yield held
        held = bar
    if held is not None:
        yield held
