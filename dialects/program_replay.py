"""Run programs as strictly as a runtime may: in order, one instruction at a time, both ends of a message together.

A send ends only when its receive has begun, and the other way round; an all-gather, an operator on several
accelerators, which exchange data meanwhile, and an optimizer step when all members have come to it. An optimizer step
also waits until the weight gradients that it reads are computed, wherever that is.
Among the operators that could run, the one that the schedule starts first runs first, so that micro-batches begin and
end as scheduled as far as the programs allow.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dialects.attributes import show_set
from dialects.program_reading import Expected, Listing, together_in_flight
from dialects.programs import ALL_GATHER, COMPUTE, COPY, FREE, KINDS, RECV, SEND, UPDATE, Instruction

Fault = tuple[int, str]


@dataclass
class Replay:
    """How a run ended: accelerators that stand at an instruction, and the most micro-batches in flight at once."""

    stuck: dict[int, Instruction] = field(default_factory=dict[int, Instruction])
    most: int = 0
    computed: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    """Operators that have run, with their micro-batches."""


class _Run:
    def __init__(self, expected: Expected, listings: Sequence[Listing]):
        self.expected = expected
        self.lists = {
            listing.accelerator: [x for part in listing.parts for x in part if x.kind not in (FREE, COPY)]
            for listing in listings
        }
        self.groups = {listing.accelerator: listing.groups for listing in listings}
        self.at = dict.fromkeys(self.lists, 0)
        self.computes: list[tuple[int, int, int, tuple[int, ...]]] = []
        """Operators that wait for their turn: start, micro-batch, operator, the accelerators that stand at it."""
        self.ready: set[int] = set()
        """All these accelerators."""
        left = Counter(x.microbatch for found in self.lists.values() for x in found if x.kind == COMPUTE)
        self.left: dict[int, int] = dict(left)
        self.begun: set[int] = set()
        self.done = 0
        self.replay = Replay()

    def run(self) -> Replay:
        moved = list(self.lists)
        while moved or self.computes:
            while moved:
                moved += self.look(moved.pop())
            if self.computes:
                moved += self.compute()
        self.replay.stuck = {p: x for p in self.lists if (x := self.head(p)) is not None}
        return self.replay

    @cached_property
    def updating(self) -> dict[int, set[int]]:
        """Weight gradient → the accelerators that may stand at an optimizer step that reads it."""
        found: dict[int, set[int]] = {}
        for update in self.expected.updates:
            for v in update.gradients:
                found.setdefault(v, set()).update(p for p in update.on if p in self.lists)
        return found

    def head(self, p: int) -> Instruction | None:
        found, at = self.lists[p], self.at[p]
        return found[at] if at < len(found) else None

    def look(self, p: int) -> Sequence[int]:
        """Do what accelerator ``p`` stands at if all who take part stand at it too; returns who went on."""
        x = self.head(p)
        if x is None:
            return ()
        if x.kind == COMPUTE:
            together = _gang(self.expected, p, x)
            if p not in self.ready and all(self.runs(q, x) for q in together):
                self.ready.update(together)
                start = self.expected.begin(x.subject, x.microbatch)
                heapq.heappush(self.computes, (start, x.microbatch, x.subject, together))
            return ()
        if x.kind == ALL_GATHER:
            group = self.groups[p][x.peer]
            together = all(self.gathers(q, group) for q in group) and p in group
            part = group if together else ()
        elif x.kind == UPDATE:
            group = self.expected.updates[x.subject].on
            together = p in group and all(self.runs(q, x) for q in group)
            part = group if together and not missing(self.expected, self.replay, x) else ()
        else:
            y, wanted = self.head(x.peer), RECV if x.kind == SEND else SEND
            part = (p, x.peer) if y is not None and y.kind == wanted and y.peer == p else ()
        for q in part:
            self.at[q] += 1
        return part

    def gathers(self, p: int, group: tuple[int, ...]) -> bool:
        x = self.head(p)
        return x is not None and x.kind == ALL_GATHER and self.groups[p][x.peer] == group

    def runs(self, p: int, x: Instruction) -> bool:
        y = self.head(p) if p in self.lists else None
        return y is not None and y[:5] == x[:5]

    def compute(self) -> Sequence[int]:
        _, i, v, together = heapq.heappop(self.computes)
        self.replay.computed.add((v, i))
        self.ready.difference_update(together)
        for p in together:
            self.at[p] += 1
        self.begun.add(i)
        self.replay.most = max(self.replay.most, len(self.begun) - self.done)
        self.left[i] -= len(together)
        self.done += not self.left[i]
        return (*together, *self.updating.get(v, ()))


def _gang(expected: Expected, p: int, x: Instruction) -> tuple[int, ...]:
    """The accelerators that run an operator together; one that should not run it runs it alone."""
    members = expected.tasks[x.subject].on(x.microbatch)
    return members if p in members else (p,)


def missing(expected: Expected, found: Replay, x: Instruction) -> list[int]:
    """The weight gradients that an optimizer step reads and that have not run for all micro-batches of its step."""
    step = range(x.microbatch + 1 - expected.together, x.microbatch + 1)
    return [v for v in expected.updates[x.subject].gradients if any((v, i) not in found.computed for i in step)]


def replay(expected: Expected, listings: Sequence[Listing]) -> Replay:
    """Run programs of a sound form, for as many trips as stand for all."""
    return _Run(expected, listings).run()


def check_progress(expected: Expected, listings: Sequence[Listing], found: Replay) -> Iterator[Fault]:
    """Programs that wait for ever: the circle of waiting instructions, or the wait for a program that has ended."""
    if not found.stuck:
        return
    by = {listing.accelerator: listing for listing in listings}
    path: list[int] = []
    p = min(found.stuck)
    while p in found.stuck and p not in path:
        path.append(p)
        p = _waits_for(expected, by[p], found.stuck[p], found, by)
    if p in path:
        path = path[path.index(p) :]
        words = ", ".join(_waiting(by[q], found.stuck[q]) for q in path)
        yield path[0], f"deadlock: {words}, and so on in a circle"
    else:
        yield path[-1], f"deadlock: {_waiting(by[path[-1]], found.stuck[path[-1]])}, which has ended"


def _waits_for(expected: Expected, listing: Listing, x: Instruction, found: Replay, by: dict[int, Listing]) -> int:
    """An accelerator that does not stand where ``x`` needs it."""
    if x.kind in (SEND, RECV):
        return x.peer
    if x.kind == UPDATE:
        group = expected.updates[x.subject].on
        if listing.accelerator in group and (left := missing(expected, found, x)):
            return expected.tasks[left[0]].turns[0][0]
    else:
        group = listing.groups[x.peer] if x.kind == ALL_GATHER else _gang(expected, listing.accelerator, x)

    def there(q: int) -> bool:
        y = found.stuck.get(q)
        if y is None or y.kind != x.kind:
            return False
        return by[q].groups[y.peer] == group if x.kind == ALL_GATHER else y[:5] == x[:5]

    return next((q for q in group if not there(q)), group[0])


def _waiting(listing: Listing, x: Instruction) -> str:
    if x.kind == UPDATE:
        what = f"'{x.subject} {listing.updates.get(x.subject, '?')}' after micro-batch {x.microbatch}"
        return f"accelerator {listing.accelerator} waits in update {what}"
    what = f"{listing.show(x.buffer)} of micro-batch {x.microbatch}"
    if x.kind == COMPUTE:
        return f"accelerator {listing.accelerator} waits in compute {what}"
    if x.kind == ALL_GATHER:
        return f"accelerator {listing.accelerator} waits in all_gather {what} among {show_set(listing.groups[x.peer])}"
    way = "to" if x.kind == SEND else "from"
    return f"accelerator {listing.accelerator} waits in {KINDS[x.kind]} {what} {way} {x.peer}"


def check_in_flight(expected: Expected, listings: Sequence[Listing], found: Replay) -> Iterator[Fault]:
    """Programs that begin more micro-batches before they finish one than the schedule does."""
    for listing in listings:
        p = listing.accelerator
        bound = _bound(expected, p)
        computes = [x for part in listing.parts for x in part if x.kind == COMPUTE]
        left = Counter(x.microbatch for x in computes)
        begun: set[int] = set()
        for x in computes:
            begun.add(x.microbatch)
            if len(begun) > bound:
                what = f"with '{expected.tasks[x.subject].name}' of micro-batch {x.microbatch}"
                begun_here = f"{len(begun)} micro-batches are begun and not finished there"
                yield p, f"{what}, {begun_here}, the schedule has at most {bound}"
                break
            left[x.microbatch] -= 1
            if not left[x.microbatch]:
                begun.discard(x.microbatch)
    if found.most > expected.in_flight:
        what = f"in all, {found.most} micro-batches are begun and not finished at once"
        yield listings[0].accelerator, f"{what}, the schedule has {expected.in_flight} in flight"


def _bound(expected: Expected, p: int) -> int:
    """The most micro-batches that the schedule has begun and not finished on an accelerator."""
    tasks = [task for task in expected.tasks if any(p in members for members in task.turns)]
    if not tasks:
        return 1
    if expected.together > 1:
        return together_in_flight(tasks, expected.pattern)
    starts = [task.starts[0] for task in tasks]
    return max(1, -(-(max(starts) - min(starts)) // expected.pattern))
