"""What both modes of the simulator share: an integer clock, and accelerators that always act alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from compiler.simulate.errors import SimulationError
from compiler.view import Accelerators, ScheduleView
from dialects.units import show_time

MOST_RUNS = 10**8
"""Runs of operators and transfers that are simulated at once: each takes some tens of bytes."""

LONGEST = 2**62
"""No simulated time may reach this many clock units, so that sums fit in 64 bits."""


@dataclass(frozen=True)
class Clock:
    """Integer time in units of ``1 / scale`` ns, so that a rational period is a whole number of units."""

    scale: int
    period: int

    @staticmethod
    def of(view: ScheduleView) -> Clock:
        """The coarsest clock on which the period and all times are integers."""
        return Clock(view.period.denominator, view.period.numerator)

    def ns(self, units: int) -> Fraction:
        """Clock units in nanoseconds."""
        return Fraction(units, self.scale)

    def show(self, units: int) -> str:
        """A time for messages."""
        return show_time(self.ns(units))


@dataclass(frozen=True)
class Machine:
    """The accelerators in use, grouped into classes whose members belong to exactly the same sets.

    Sets are those of operators and updates, targets of transfers, and senders that stand still while one leaves.

    ``sets`` numbers the distinct sets; ``classes`` lists the accelerators of each class; ``inside[s]`` the classes that
    make up set ``s``; ``over[c]`` the sets that class ``c`` belongs to. The members of a class always act alike.
    """

    sets: dict[Accelerators, int]
    classes: tuple[Accelerators, ...]
    inside: tuple[tuple[int, ...], ...]
    over: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(view: ScheduleView) -> Machine:
        """Group the accelerators of a schedule; raises :class:`SimulationError` for one the platform lacks."""
        sets: dict[Accelerators, int] = {}
        for name, what, members in _places(view):
            sets.setdefault(members, len(sets))
            if members[-1] >= view.platform.accelerators:
                raise SimulationError(
                    "machine",
                    f"{what} accelerator {members[-1]}, but the platform has {view.platform.accelerators}",
                    operator=name,
                    accelerator=members[-1],
                )
        belongs: dict[int, list[int]] = {}
        for members, s in sets.items():
            for p in members:
                belongs.setdefault(p, []).append(s)
        alike: dict[tuple[int, ...], list[int]] = {}
        for p, owners in sorted(belongs.items()):
            alike.setdefault(tuple(owners), []).append(p)
        inside: list[list[int]] = [[] for _ in sets]
        for c, owners in enumerate(alike):
            for s in owners:
                inside[s].append(c)
        return Machine(
            sets,
            tuple(tuple(members) for members in alike.values()),
            tuple(tuple(classes) for classes in inside),
            tuple(alike),
        )


def _places(view: ScheduleView) -> Iterator[tuple[str, str, Accelerators]]:
    """Operator, what happens, and the set on which it does."""
    for task in view.tasks:
        for members in task.copies:
            yield task.name, f"'{task.name}' runs on", members
    for update in view.updates:
        yield update.name, f"'{update.name}' runs on", update.place
    for move in view.moves:
        name = view.tasks[move.producer].name
        for members in move.targets:
            yield name, f"the transfer of '{name}' goes to", members
    for move, ways in zip(view.moves, view.ways, strict=True):
        for way in ways:
            if members := tuple(sorted(r.at for r in way.sender if r.kind == "accelerator")):
                name = view.tasks[move.producer].name
                yield name, f"the transfer of '{name}' leaves", members


def least_microbatches(view: ScheduleView) -> int:
    """Micro-batches to simulate as scheduled until the completions of one whole pattern lie in the steady state."""
    return whole_steps(view, max(0, ceil(view.span[1] / view.period)) + view.reach + view.rounds + 1)


def whole_steps(view: ScheduleView, microbatches: int) -> int:
    """So many micro-batches, in steps as many more as the last one has."""
    return -(-microbatches // view.rounds) * view.rounds if view.step else microbatches


def steps_at_once(view: ScheduleView) -> int:
    """Steps of which something is in progress at one moment in the schedule, at most."""
    return max(1, -(-view.makespan // view.pattern))


def check_length(view: ScheduleView, clock: Clock, microbatches: int) -> None:
    """Raise :class:`SimulationError` when the simulated time does not fit in 64 bits, or all that happens in memory."""
    if (runs := (len(view.tasks) + len(view.moves) + len(view.updates)) * microbatches) > MOST_RUNS:
        raise SimulationError("size", f"{microbatches:,} micro-batches do {runs:,} things, more than {MOST_RUNS:,}")
    total = sum(t.time for t in view.tasks) + sum(2 * m.time for m in view.moves) + sum(u.time for u in view.updates)
    total += max(abs(moment) for moment in view.span)
    if total * clock.scale + clock.period * microbatches >= LONGEST:
        raise SimulationError("size", "the schedule is too long: its times do not fit in 64 bits")
