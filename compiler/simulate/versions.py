"""Versions of parameters that are alive at once where training is asynchronous, counted one by one."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import count, takewhile

from compiler.view import ScheduleView, Update


def parameters(view: ScheduleView) -> Mapping[int, int]:
    """Accelerator → bytes of parameters, with those of all versions that the schedule needs at once."""
    held = dict(view.parameters)
    for update in view.updates if view.asynchronous else ():
        further: dict[int, int] = {}
        for task in view.tasks:
            if task.group == update.group:
                for p in (p for copy in task.copies for p in copy):
                    further[p] = max(further.get(p, 0), task.version)
        more = alive(view, update) - 1
        for p, size in further.items():
            held[p] += more * size
    return held


def alive(view: ScheduleView, update: Update) -> int:
    """How many versions of the parameters that ``update`` makes are alive when one more is complete.

    A version is seen by micro-batches that begin when it is complete and the next is not, but never by one whose
    gradient it needs. It is alive until the last of these has ended, and until the next is complete.
    """
    every = view.asynchronous
    members = [task for task in view.tasks if task.group == update.group]

    def complete(version: int) -> Fraction:
        last = version * every - 1
        return max(view.begin(view.tasks[g], last) + view.tasks[g].time for g in update.gradients)

    def sees_second(microbatch: int) -> bool:
        return complete(2) <= min(view.begin(task, microbatch) for task in members)

    last = next(i for i in count(2 * every) if sees_second(i)) - 1
    until = max(complete(2), *(view.begin(task, last) + task.time for task in members))
    return sum(1 for _ in takewhile(lambda version: complete(version) < until, count(1)))
