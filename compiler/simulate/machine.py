"""What both modes of the simulator share: an integer clock, and accelerators that always act alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from compiler.simulate.errors import SimulationError
from compiler.view import Accelerators, ScheduleView
from dialects.units import show_time

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

    Sets are those of operators, targets of transfers, and senders that stand still while one leaves.

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
    last = max((*(t.end for t in view.tasks), *(m.ready for m in view.moves)), default=0)
    return max(0, ceil(last / view.period)) + view.reach + view.rounds + 1


def check_length(view: ScheduleView, clock: Clock, microbatches: int) -> None:
    """Raise :class:`SimulationError` when the simulated time does not fit in 64 bits."""
    starts = [*(t.start for t in view.tasks), *(m.start for m in view.moves), *(m.landing for m in view.moves)]
    total = sum(t.time for t in view.tasks) + sum(2 * m.time for m in view.moves)
    total += max((abs(start) for start in starts), default=0)
    if total * clock.scale + clock.period * microbatches >= LONGEST:
        raise SimulationError("size", "the schedule is too long: its times do not fit in 64 bits")
