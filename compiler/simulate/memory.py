"""Bytes in use on each accelerator over a simulated run.

The lifetimes are those of the contract of level 4: workspace during the run; what an operator produces from its start
until its last consumer on the same set ends and its last transfer has left; what another set receives from its landing
(without links, from the end of the producer) to the end of the last consumer there; an input from the start of its
first to the end of its last consumer on each set. What is read from a state ends with the micro-batch that reads it;
initial values of states are not counted. In a step, updates have their workspace too, while they run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.simulate.machine import Machine
from compiler.simulate.versions import parameters
from compiler.view import Accelerators, Edge, Move, ScheduleView, Task, arrivals_of

Times = NDArray[np.int64]


@dataclass(frozen=True)
class Lifetimes:
    """``size`` bytes on each member of set ``place`` in ``[begin[j], end[j])``, for micro-batch ``first + j*step``."""

    place: int
    size: int
    begin: Times
    end: Times
    owner: str
    what: str
    first: int
    step: int


@dataclass(frozen=True)
class Overflow:
    """The first moment at which an accelerator holds more than it has."""

    time: int
    accelerator: int
    needed: int
    owner: str
    what: str
    microbatch: int


def moments(view: ScheduleView, listed: Sequence[tuple[int, ...]], microbatches: int) -> Times:
    """When the schedule says that each micro-batch begins each of several things, ``[microbatch, thing]``, clock units.

    ``listed`` are the starts of each, in ns: of all micro-batches of a step, else of micro-batch 0.
    """
    scale, period = view.period.denominator, view.period.numerator
    begun: Times = np.empty((microbatches, len(listed)), dtype=np.int64)
    for v, starts in enumerate(listed):
        for turn, start in enumerate(starts):
            rows = begun[turn :: len(starts), v]
            rows[:] = start * scale + np.arange(len(rows), dtype=np.int64) * (len(starts) * period)
    return begun


def lifetimes(
    view: ScheduleView,
    machine: Machine,
    starts: Times,
    moves: tuple[Times, Times] | None = None,
    updates: Times | None = None,
) -> Iterator[Lifetimes]:
    """All lifetimes of a run; ``starts[i, v]`` is when micro-batch ``i`` began operator ``v``, in clock units.

    ``moves`` says in the same way when each move had left and when it landed, and ``updates[s, u]`` when step ``s``
    began update ``u``; without them they keep to the schedule.
    """
    scale = view.period.denominator
    ends = starts + np.array([t.time * scale for t in view.tasks], dtype=np.int64)
    later = _continued(ends, view)
    left, landed = moves or _as_scheduled(view, len(starts))
    for residue in range(min(view.turns, len(starts))):
        rows = slice(residue, None, view.turns)
        yield from _of_residue(
            view, machine, starts[rows], ends[rows], later[residue:], (left[rows], landed[rows]), residue
        )
    if view.step:
        yield from _of_updates(view, machine, -(-len(starts) // view.microbatches), updates)


def _as_scheduled(view: ScheduleView, count: int) -> tuple[Times, Times]:
    lasting = np.array([m.time * view.period.denominator for m in view.moves], dtype=np.int64)
    left = moments(view, [m.starts for m in view.moves], count) + lasting
    return left, moments(view, [m.landings for m in view.moves], count)


def _of_updates(view: ScheduleView, machine: Machine, steps: int, begun: Times | None) -> Iterator[Lifetimes]:
    """The workspaces of updates, which belong to the last micro-batch of each step."""
    scale, last, count = view.period.denominator, view.microbatches - 1, view.microbatches
    for number, update in enumerate(view.updates):
        assert update.start is not None
        planned = (update.start + np.arange(steps, dtype=np.int64) * view.pattern) * scale
        begin = planned if begun is None else begun[:, number]
        end, place = begin + update.time * scale, machine.sets[update.place]
        if update.workspace:
            yield Lifetimes(place, update.workspace, begin, end, update.name, "workspace", last, count)


def _continued(ends: Times, view: ScheduleView) -> Times:
    """The ends of the run, and of as many micro-batches after it as states reach, in the rhythm of the last ones."""
    if not view.reach:
        return ends
    rounds, count = min(view.rounds, len(ends)), len(ends)
    beyond = np.arange(count, count + view.reach)
    laps = (beyond - count) // rounds + 1
    return np.concatenate((ends, ends[beyond - laps * rounds] + (laps * rounds * view.period.numerator)[:, None]))


def _of_residue(
    view: ScheduleView,
    machine: Machine,
    starts: Times,
    ends: Times,
    later: Times,
    moves: tuple[Times, Times],
    residue: int,
) -> Iterator[Lifetimes]:
    left, landed = moves

    def lifetime(place: Accelerators, size: int, begin: Times, end: Times, owner: str, what: str) -> Lifetimes:
        return Lifetimes(machine.sets[place], size, begin, end, owner, what, residue, view.turns)

    def last(consumers: list[tuple[int, int]]) -> Times:
        """The last end among consumers (operator, distance), for each micro-batch of the residue."""
        each = [later[d : d + len(ends) * view.turns : view.turns, v][: len(ends)] for v, d in consumers]
        return np.maximum.reduce(each)

    for task, edges in zip(view.tasks, view.readers, strict=True):
        home, begin, end = task.set_of(residue), starts[:, task.index], ends[:, task.index]
        if task.workspace and task.time:
            yield lifetime(home, task.workspace, begin, end, task.name, "workspace")
        there = _by_set(view.tasks, [(e.consumer, e.distance) for e in edges], residue)
        arrivals = _landings(view, task, edges, residue)
        if task.output:
            held = last([(task.index, 0), *there.get(home, [])])
            for column in {m.index for found in arrivals.values() for m in found}:
                held = np.maximum(held, left[:, column])
            yield lifetime(home, task.output, begin, held, task.name, "output")
        for place, read in arrivals_of(view.tasks, edges, residue).items():
            if place != home:
                came = [landed[:, move.index] for move in arrivals.get(place, [])] or [end]
                size = task.bytes_on(place, read)
                yield lifetime(place, size, np.minimum.reduce(came), last(there[place]), task.name, "received value")
    for value in view.inputs:
        for place, consumers in _by_set(view.tasks, [(v, 0) for v in value.consumers], residue).items():
            first = starts[:, [v for v, _ in consumers]].min(axis=1)
            yield lifetime(place, value.size, first, last(consumers), value.name, "input")


def _landings(view: ScheduleView, task: Task, edges: Iterable[Edge], residue: int) -> dict[Accelerators, list[Move]]:
    """The moves that bring results of ``task`` to each set but its own."""
    found: dict[Accelerators, list[Move]] = {}
    for edge in edges:
        place = view.tasks[edge.consumer].set_of(residue + edge.distance)
        if place != task.set_of(residue):
            found.setdefault(place, []).extend(view.carriers[edge].values())
    return found


def _by_set(
    tasks: tuple[Task, ...], consumers: list[tuple[int, int]], residue: int
) -> dict[Accelerators, list[tuple[int, int]]]:
    """The consumers (operator, distance) on each set of accelerators."""
    found: dict[Accelerators, list[tuple[int, int]]] = {}
    for consumer, distance in consumers:
        found.setdefault(tasks[consumer].set_of(residue + distance), []).append((consumer, distance))
    return found


def _net(times: Times, change: Times) -> tuple[Times, Times]:
    """Distinct times in increasing order and the sum of the changes at each."""
    if not len(times):
        return times, change
    order = np.argsort(times, kind="stable")
    times, change = times[order], change[order]
    firsts = np.flatnonzero(np.concatenate(([True], times[1:] != times[:-1])))
    return times[firsts], np.add.reduceat(change, firsts)


def _join(parts: list[tuple[Times, Times]]) -> tuple[Times, Times]:
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty
    return _net(np.concatenate([t for t, _ in parts]), np.concatenate([c for _, c in parts]))


def usage(view: ScheduleView, machine: Machine, found: list[Lifetimes]) -> list[tuple[Times, Times]]:
    """For each class of accelerators, the times at which its memory changes and the bytes held from then on.

    Parameters are included. Intervals are half-open: what ends at a moment makes room for what begins then, so only
    the net change at each moment counts.
    """
    params = parameters(view)
    changes: list[list[tuple[Times, Times]]] = [[] for _ in machine.sets]
    for life in found:
        filled = life.begin < life.end
        begin, end = life.begin[filled], life.end[filled]
        size = np.full(len(begin), life.size, dtype=np.int64)
        changes[life.place].append((np.concatenate((begin, end)), np.concatenate((size, -size))))
    on_set = [_join(parts) for parts in changes]
    used: list[tuple[Times, Times]] = []
    for members, owners in zip(machine.classes, machine.over, strict=True):
        times, change = _join([on_set[s] for s in owners])
        used.append((times, np.cumsum(change) + params[members[0]]))
    return used


def peak_memory(
    view: ScheduleView, machine: Machine, found: list[Lifetimes]
) -> tuple[Mapping[int, int], Overflow | None]:
    """Accelerator → most bytes held at once, parameters included; and the first overflow, if there is one."""
    stored = parameters(view)
    peak = dict(stored)
    overflow: Overflow | None = None
    every = zip(machine.classes, machine.over, usage(view, machine, found), strict=True)
    for members, owners, (times, held) in every:
        params = stored[members[0]]
        most = max(params, int(held.max(initial=0)))
        peak.update(dict.fromkeys(members, most))
        if most > view.platform.memory:
            above = np.flatnonzero(held > view.platform.memory)
            when = int(times[above[0]]) if params <= view.platform.memory else 0
            if overflow is None or when < overflow.time:
                needed = int(held[above[0]]) if len(above) else params
                overflow = _blame(found, owners, when, members[0], needed)
    return peak, overflow


def _blame(found: list[Lifetimes], places: tuple[int, ...], when: int, accelerator: int, needed: int) -> Overflow:
    """The largest thing that begins at the moment of the overflow."""
    candidates = [life for life in found if life.place in places and bool((life.begin == when).any())]
    life = max(candidates, key=lambda life: life.size, default=None)
    if life is None:
        return Overflow(when, accelerator, needed, "", "parameters", 0)
    row = int(np.flatnonzero(life.begin == when)[0])
    return Overflow(when, accelerator, needed, life.owner, life.what, life.first + row * life.step)
