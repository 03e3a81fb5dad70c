"""Checks of programs on plain data: what must hold for them to compute the graph, and to come to an end.

They know the graph and the instructions, not how those were made. Each yields the accelerator and what is wrong.

Sections are matched one by one, and a trip of the kernel leaves an accelerator with the buffers it found, ``step``
micro-batches later; then what holds for two trips holds for any number. In such programs no circle of instructions
that wait for each other spans two sections or two trips, because each waits for instructions of its own or an earlier
one only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import lcm
from typing import NamedTuple

from dialects.attributes import show_set
from dialects.program_reading import Expected, Listing
from dialects.programs import (
    ALL_GATHER,
    COMPUTE,
    COPY,
    FREE,
    KINDS,
    RECV,
    SECTIONS,
    SEND,
    UPDATE,
    Buffer,
    Instruction,
)

Fault = tuple[int, str]
"""An accelerator, and what is wrong with its program."""

Moment = tuple[Buffer, int]
"""A buffer of a micro-batch."""


def check_form(expected: Expected, listings: Sequence[Listing]) -> Iterator[Fault]:
    """Numbers that name nothing, and programs that do not belong together."""
    first, known = listings[0], {listing.accelerator for listing in listings}
    repeats = lcm(expected.together, *(len(task.turns) for task in expected.tasks))
    for listing in listings:
        shape = (listing.base, listing.step, listing.trips)
        if shape != (first.base, first.step, first.trips):
            other = f"those of accelerator {first.accelerator} {_shape(first)}"
            yield listing.accelerator, f"its micro-batches are {_shape(listing)}, {other}"
            continue
        if listing.step % repeats:
            what = f"a step has {repeats}" if expected.together > 1 else f"copies repeat after {repeats}"
            yield listing.accelerator, f"a trip begins {listing.step} micro-batches, but {what}"
        elif listing.base % expected.together:
            what = f"{listing.base} micro-batches are begun outside of the kernel"
            yield listing.accelerator, f"{what}, but a step has {expected.together}"
        for section in SECTIONS:
            most = listing.base + listing.step * (1 if section == "kernel" else listing.tried)
            for place, x in enumerate(listing.sections[section]):
                if (wrong := _wrong(x, expected, listing, known)) or x.microbatch >= most:
                    what = wrong or f"micro-batch {x.microbatch}, but there are only {most}"
                    yield listing.accelerator, f"instruction {place} of the {section} ({KINDS[x.kind]}) names {what}"


def _shape(listing: Listing) -> str:
    return f"{listing.base} + {listing.step} * {'any' if listing.trips is None else listing.trips}"


def _wrong(x: Instruction, expected: Expected, listing: Listing, known: set[int]) -> str | None:
    """What an instruction names and does not exist."""
    if x.kind == UPDATE:
        return None if x.subject < len(expected.updates) else f"optimizer step {x.subject}"
    if x.subject < 0:
        return None if x.kind == FREE and -x.subject <= expected.inputs else f"input {-1 - x.subject}"
    if x.subject >= len(expected.tasks):
        return f"operator {x.subject}"
    if x.result >= expected.tasks[x.subject].results:
        return f"result {x.result} of operator {x.subject}"
    if x.destination > len(expected.destinations.get((x.subject, x.result), ())):
        return f"destination {x.destination} of operator {x.subject}"
    if x.kind in (SEND, RECV) and (x.peer not in known or x.peer == listing.accelerator):
        return f"accelerator {x.peer}"
    if x.kind == ALL_GATHER and not known.issuperset(listing.groups[x.peer]):
        return f"accelerators {show_set(listing.groups[x.peer])}"
    if COMPUTE < x.kind < FREE and x.end > expected.contents[x.subject, x.result].size:
        return f"byte {x.end} of {expected.contents[x.subject, x.result].size}"
    return None


def check_runs(expected: Expected, listings: Sequence[Listing]) -> Iterator[Fault]:
    """Operators that do not run exactly once for each micro-batch on each accelerator of the set whose turn it is.

    What is right for one trip and for two is right for any number: each further one adds the same micro-batches.
    """
    for listing in listings:
        p = listing.accelerator
        for trips in range(min(1, listing.tried), listing.tried + 1):
            parts = listing.parts if trips == listing.tried else listing.run(trips)
            found = Counter((x.subject, x.microbatch) for part in parts for x in part if x.kind == COMPUTE)
            total = listing.base + trips * listing.step
            wanted = {
                (v, i)
                for v, task in enumerate(expected.tasks)
                for turn, members in enumerate(task.turns)
                if p in members
                for i in range(turn, total, len(task.turns))
            }
            faults = [(v, i) for (v, i), times in found.items() if times != 1 or (v, i) not in wanted]
            faults += [pair for pair in wanted if pair not in found]
            for v, i in sorted(faults, key=lambda pair: (pair[1], pair[0])):
                what = f"'{expected.tasks[v].name}' of micro-batch {i} runs {found[v, i]} times, not"
                yield p, f"{what} {'once' if (v, i) in wanted else 'at all'} (in a run of {total} micro-batches)"
            if faults:
                break


def check_updates(expected: Expected, listings: Sequence[Listing]) -> Iterator[Fault]:
    """Optimizer steps that are not done exactly once a step, or among operators of another step.

    On each accelerator of its set, an optimizer step stands behind all operators of its group of its step, and before
    those of the next.
    """
    watched = _watched(expected)
    for listing in listings:
        p = listing.accelerator
        for trips in range(min(1, listing.tried), listing.tried + 1):
            run = [x for part in listing.run(trips) for x in part if x.kind in (COMPUTE, UPDATE)]
            total = listing.base + trips * listing.step
            faults = [*_miscounted(expected, run, p, total), *_misplaced(expected, run, watched)]
            yield from ((p, fault) for fault in faults)
            if faults:
                break


def _miscounted(expected: Expected, run: Sequence[Instruction], p: int, total: int) -> Iterator[str]:
    found = Counter((x.microbatch, x.subject) for x in run if x.kind == UPDATE)
    last = range(expected.together - 1, total, expected.together)
    wanted = {(i, n) for n, update in enumerate(expected.updates) if p in update.on for i in last}
    for i, n in sorted(found.keys() | wanted):
        if found[i, n] != 1 or (i, n) not in wanted:
            what = f"'{expected.updates[n].name}' after micro-batch {i} is done {found[i, n]} times, not"
            yield f"{what} {'once' if (i, n) in wanted else 'at all'} (in a run of {total} micro-batches)"


class _Watched(NamedTuple):
    """Numbers of the optimizer steps that come ``after`` an operator, and of those ``own`` of its group."""

    after: list[int]
    own: list[int]


def _watched(expected: Expected) -> list[_Watched]:
    """For each operator."""
    found = [_Watched([], []) for _ in expected.tasks]
    numbers: dict[str, list[int]] = {}
    for n, update in enumerate(expected.updates):
        for v in update.gradients:
            found[v].after.append(n)
        if update.group is not None:
            numbers.setdefault(update.group, []).append(n)
    for task, watched in zip(expected.tasks, found, strict=True):
        watched.own.extend(numbers.get(task.group or "", ()))
        watched.after.extend(n for n in watched.own if n not in watched.after)
    return found


def _misplaced(expected: Expected, run: Sequence[Instruction], watched: Sequence[_Watched]) -> Iterator[str]:
    place = {(x.subject, x.microbatch // expected.together): k for k, x in enumerate(run) if x.kind == UPDATE}
    for k, x in enumerate(run):
        if x.kind != COMPUTE:
            continue
        step, what = x.microbatch // expected.together, f"'{expected.tasks[x.subject].name}' of micro-batch"
        for n in watched[x.subject].after:
            if place.get((n, step), k) < k:
                why = "which it reads" if x.subject in expected.updates[n].gradients else "of the same step"
                yield f"'{expected.updates[n].name}' of step {step} stands before {what} {x.microbatch}, {why}"
        for n in watched[x.subject].own:
            if place.get((n, step - 1), k) > k:
                said = f"stands behind {what} {x.microbatch}, which is of the next"
                yield f"'{expected.updates[n].name}' of step {step - 1} {said}"


def check_messages(expected: Expected, listings: Sequence[Listing]) -> Iterator[Fault]:
    """Sends without their receive, section by section, pair by pair, in order."""
    for section in SECTIONS:
        sent: dict[tuple[int, int], list[Instruction]] = {}
        received: dict[tuple[int, int], list[Instruction]] = {}
        by = {listing.accelerator: listing for listing in listings}
        for listing in listings:
            for x in listing.section(section, listing.tried):
                if x.kind == SEND:
                    sent.setdefault((listing.accelerator, x.peer), []).append(x)
                elif x.kind == RECV:
                    received.setdefault((x.peer, listing.accelerator), []).append(x)
        for a, b in sorted({*sent, *received}):
            out, into = sent.get((a, b), []), received.get((a, b), [])
            for place in range(max(len(out), len(into))):
                s, r = (each[place] if place < len(each) else None for each in (out, into))
                if s is None or r is None or s[1:5] != r[1:5] or s[6:] != r[6:]:
                    left = "nothing" if s is None else _moved(by[a], s)
                    right = "nothing" if r is None else _moved(by[b], r)
                    what = f"message {place} to accelerator {b} in the {section}"
                    yield a, f"{what}: {left} is sent, {right} is received there"
                    break


def _moved(listing: Listing, x: Instruction) -> str:
    return f"{listing.show(x.buffer)} of micro-batch {x.microbatch}, bytes [{x.begin}:{x.end}]"


def check_collectives(expected: Expected, listings: Sequence[Listing]) -> Iterator[Fault]:
    """All-gathers whose members do not take part alike, section by section."""
    for section in SECTIONS:
        calls: dict[tuple[int, ...], dict[int, list[Instruction]]] = {}
        by = {listing.accelerator: listing for listing in listings}
        for listing in listings:
            for x in listing.section(section, listing.tried):
                if x.kind == ALL_GATHER:
                    calls.setdefault(listing.groups[x.peer], {}).setdefault(listing.accelerator, []).append(x)
        for group, of in sorted(calls.items()):
            for stranger in sorted(of.keys() - set(group)):
                yield stranger, f"it gathers among {show_set(group)} in the {section}, but is none of them"
            first, *others = group
            for other in others:
                mine, theirs = of.get(first, []), of.get(other, [])
                for place in range(max(len(mine), len(theirs))):
                    a, b = (each[place] if place < len(each) else None for each in (mine, theirs))
                    if a is None or b is None or a[1:5] != b[1:5] or a[6:] != b[6:]:
                        left = "nothing" if a is None else _moved(by[first], a)
                        right = "nothing" if b is None else _moved(by[other], b)
                        what = f"all-gather {place} among {show_set(group)} in the {section}"
                        yield other, f"{what}: {right}, but {left} on accelerator {first}"
                        break


def check_buffers(expected: Expected, listings: Sequence[Listing]) -> Iterator[Fault]:
    """Buffers read before they are written or after they are freed, written or freed twice, incomplete, or left."""
    gathers: dict[tuple[tuple[int, ...], Moment], list[tuple[int, int]]] = {}
    claims: dict[tuple[tuple[int, ...], Moment], tuple[int, int, int]] = {}
    for listing in listings:
        walk = _Walk(expected, listing)
        yield from walk.run()
        for key, pieces in walk.gathers.items():
            gathers.setdefault(key, []).extend(pieces)
        claims |= walk.claims
    for key, (p, begin, end) in claims.items():
        if not _covers(gathers[key], begin, end):
            (_, ((subject, _, _), i)) = key
            name = expected.tasks[subject].name
            yield p, f"the pieces of '{name}' of micro-batch {i} that are gathered do not make up [{begin}:{end}]"


def _covers(pieces: Sequence[tuple[int, int]], begin: int, end: int) -> bool:
    """Whether pieces together hold every byte of ``[begin, end)``."""
    at = begin
    for low, high in sorted(pieces):
        if low > at:
            break
        at = max(at, high)
    return at >= end


class _Walk:
    """The buffers of one accelerator, instruction by instruction."""

    def __init__(self, expected: Expected, listing: Listing):
        self.expected, self.listing = expected, listing
        self.p = listing.accelerator
        self.held: dict[Moment, list[tuple[int, int]]] = {}
        """Buffer → the bytes of it that are there."""
        self.inputs: set[Moment] = set()
        """Inputs that were read."""
        self.freed: set[Moment] = set()
        """Inputs that were freed."""
        self.gathers: dict[tuple[tuple[int, ...], Moment], list[tuple[int, int]]] = {}
        self.claims: dict[tuple[tuple[int, ...], Moment], tuple[int, int, int]] = {}
        self.initial = False
        """Whether an initial value of a state was read since the section began."""

    def run(self) -> Iterator[Fault]:
        parts = self.listing.parts
        before: set[Moment] = set()
        for number, part in enumerate(parts):
            self.initial = False
            for x in part:
                yield from ((self.p, fault) for fault in self.do(x))
            middle = 0 < number < len(parts) - 1
            if middle:
                yield from self.same_as(before)
            if middle and self.initial:
                yield self.p, "a trip of the kernel reads the initial value of a state, which later trips do not find"
            before = self.live()
        for buffer, i in sorted(self.live()):
            yield self.p, f"{self.listing.show(buffer)} of micro-batch {i} is left at the end"
        for buffer, i in sorted(self.inputs - self.freed):
            yield self.p, f"{self.listing.show(buffer)} of micro-batch {i} is never freed"

    def live(self) -> set[Moment]:
        """What is held, but for outputs, which were handed over."""
        kept = self.expected.contents
        return {(b, i) for b, i in self.held if b.destination or not kept[b.subject, b.result].kept}

    def same_as(self, before: set[Moment]) -> Iterator[Fault]:
        """A trip must leave what it found, ``step`` micro-batches later."""
        wanted = {(buffer, i + self.listing.step) for buffer, i in before}
        now = self.live()
        for buffer, i in sorted(now - wanted):
            yield self.p, f"a trip of the kernel leaves {self.of(buffer, i)} behind"
        for buffer, i in sorted(wanted - now):
            yield (
                self.p,
                f"a trip of the kernel does not leave {self.listing.show(buffer)} of micro-batch {i} to the next",
            )

    def do(self, x: Instruction) -> Iterator[str]:
        i = x.microbatch
        if x.kind == COMPUTE:
            yield from self.compute(x.subject, i)
        elif x.kind == FREE:
            yield from self.free(x.buffer, i)
        elif x.kind == ALL_GATHER:
            yield from self.gather(x)
        else:
            if x.kind in (SEND, COPY):
                yield from self.send(x)
            if x.kind in (RECV, COPY):
                yield from self.write(x.buffer, i, x.begin, x.end)

    def compute(self, v: int, i: int) -> Iterator[str]:
        task = self.expected.tasks[v]
        for need in task.reads:
            j = i - need.distance
            if j < 0:
                self.initial = True
                continue
            if need.subject < 0:
                moment = Buffer(need.subject, 0, 0), j
                self.inputs.add(moment)
                if moment in self.freed:
                    yield f"'{task.name}' of micro-batch {i} reads {self.listing.show(moment[0])}, freed before"
                continue
            buffer = self.expected.held_as(need, j)
            pieces = self.held.get((buffer, j))
            if pieces is None:
                yield f"'{task.name}' of micro-batch {i} reads {self.of(buffer, j)}, which is not there"
            elif buffer.destination and not self.complete(buffer, j, pieces):
                yield f"'{task.name}' of micro-batch {i} reads {self.of(buffer, j)}, of which a part is missing"
        for result in range(task.results):
            buffer = Buffer(v, result, 0)
            size = self.expected.contents[v, result].size
            if (buffer, i) in self.held:
                yield f"'{task.name}' of micro-batch {i} writes {self.listing.show(buffer)}, which is there already"
            self.held[buffer, i] = [(0, size)]

    def complete(self, buffer: Buffer, i: int, pieces: Sequence[tuple[int, int]]) -> bool:
        if self.p not in self.expected.arrival(buffer, i):
            return False
        return _covers(pieces, *self.expected.part(buffer, i, self.p))

    def of(self, buffer: Buffer, i: int) -> str:
        return f"{self.listing.show(buffer)} of micro-batch {i}"

    def send(self, x: Instruction) -> Iterator[str]:
        own = x.buffer._replace(destination=0)
        verb = "sent" if x.kind == SEND else "copied"
        if (own, x.microbatch) not in self.held:
            yield f"{self.of(own, x.microbatch)} is {verb}, but is not there"
        elif self.p in self.expected.tasks[x.subject].on(x.microbatch):
            low, high = self.expected.part(own, x.microbatch, self.p)
            if x.begin < x.end and not (low <= x.begin and x.end <= high):
                what = f"bytes [{x.begin}:{x.end}] of {self.of(own, x.microbatch)}"
                yield f"{what} are {verb}, but it holds [{low}:{high}]"

    def write(self, buffer: Buffer, i: int, begin: int, end: int) -> Iterator[str]:
        if self.p not in self.expected.arrival(buffer, i):
            yield f"{self.of(buffer, i)} arrives, but accelerator {self.p} is none of that destination"
        elif begin < end:
            low, high = self.expected.part(buffer, i, self.p)
            if begin < low or end > high:
                yield f"bytes [{begin}:{end}] of {self.of(buffer, i)} arrive, but [{low}:{high}] are wanted"
        pieces = self.held.setdefault((buffer, i), [])
        # Of a piece without bytes nothing but its coming matters, and it comes once.
        if any((low < end and begin < high) or (low, high) == (begin, end) for low, high in pieces):
            yield f"bytes [{begin}:{end}] of {self.of(buffer, i)} arrive twice"
        pieces.append((begin, end))

    def gather(self, x: Instruction) -> Iterator[str]:
        moment = x.buffer, x.microbatch
        key = self.listing.groups[x.peer], moment
        pieces = self.held.get(moment)
        if pieces is None:
            yield f"{self.of(*moment)} is gathered, but no piece of it is there"
            pieces = self.held[moment] = []
        elif key in self.gathers:
            yield f"{self.of(*moment)} is gathered twice"
        self.gathers[key] = list(pieces)
        self.claims[key] = (self.p, x.begin, x.end)
        pieces.append((x.begin, x.end))

    def free(self, buffer: Buffer, i: int) -> Iterator[str]:
        if buffer.subject < 0:
            if (buffer, i) in self.freed:
                yield f"{self.of(buffer, i)} is freed twice"
            elif (buffer, i) not in self.inputs:
                yield f"{self.of(buffer, i)} is freed, but nothing has read it"
            self.freed.add((buffer, i))
        elif self.held.pop((buffer, i), None) is None:
            yield f"{self.of(buffer, i)} is freed, but is not there"
        elif not buffer.destination and self.expected.contents[buffer.subject, buffer.result].kept:
            yield f"{self.of(buffer, i)} is an output of the graph, but is freed"
