"""Build the programs of a schedule.

**Order.** Every instruction has a key: its time, then its micro-batch, then its place in the graph (an operator, the
messages that leave it one by one, the all-gather behind its messages). Both ends of a message, all members of an
all-gather, and all accelerators of an operator have one key, and every program is sorted by keys. Keys are a total
order in which everything an instruction waits for comes earlier: what an operator reads was computed, and moved, at
an earlier time, or at the same time for an earlier micro-batch or earlier in the graph. Of a transfer through a buffer
both ends have the time at which it lands. An optimizer step has the key of its time and of the last micro-batch of its
step, behind all operators: the gradients it waits for, here and on accelerators that hold copies of the parameters,
have ended by then, and what waits for it is of a later micro-batch.

**No deadlock.** Suppose that a send ends only when its receive has begun, and the other way round, that all members
of an all-gather, of the set of an operator or of an optimizer step wait for each other, and that nothing moves. Take
the waiting instruction of least key. All instructions before it on its accelerators have smaller keys and are done, on
those it waits for too, so all of them stand at it, and gradients that it reads are there: it is not waiting. That is so
for any durations, and in whatever moments the micro-batches of a step come: the schedule gives the order, not the pace.

**Sections.** Time is cut into windows of one period; an instruction of micro-batch ``i`` that lies ``lag`` periods
after the start of that micro-batch falls into window ``i + lag``, whatever ``i`` is, so all full windows look alike
(with copies: all runs of ``step`` windows, the least common multiple of their numbers). Windows before the first full
one are the prologue, as many full ones as make whole trips the kernel, the rest the epilogue. This is software
pipelining with prologue and epilogue written out (Lam, "Software pipelining", PLDI 1988). Both ends of a message fall
into one window, so sections match by themselves.

A window of a step is as long as the step and has all its micro-batches: each is a residue with moments of its own, and
micro-batch ``i`` of ``m`` falls into window ``i div m + lag``. A step that nothing of its micro-batches outlasts has no
prologue and no epilogue.

**Lifetimes.** An accelerator frees a buffer right behind its last use there. Inputs appear by themselves and are
freed like all others; outputs of the graph are handed over and not freed by the accelerators that computed them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm

import numpy as np

from passes.programs.data import (
    ALL_GATHER,
    COMPUTE,
    COPY,
    FREE,
    MICROBATCH,
    MOST_INSTRUCTIONS,
    RECV,
    SEND,
    UPDATE,
    Key,
    Move,
    Pipeline,
    Program,
    Programs,
    Read,
    Rows,
    TooLong,
)
from passes.programs.messages import Members, messages

Row = tuple[int, ...]

_FREES = 1
"""Last part of the key of a free, which stands behind the instruction of its last use; that of all others is 0."""


class _Pattern:
    """What each accelerator does for the micro-batches of one residue modulo the step, in no order yet."""

    def __init__(self, pipeline: Pipeline, residue: int):
        self.pipeline, self.residue = pipeline, residue
        self.first = residue % pipeline.together
        """A micro-batch with the moments of this residue, in the first window."""
        self.found: dict[int, list[tuple[Key, Row]]] = {}
        """Accelerator → instructions with their keys, for micro-batch ``first`` as if its residue were this one."""
        self.groups: dict[int, dict[Members, int]] = {}
        self.last: dict[tuple[int, int, int], Key] = {}
        """Accelerator, value and destination → key of the last use."""
        self.reads: dict[int, list[tuple[int, int, int]]] = {}
        for reader, value, destination, distance in pipeline.reads:
            self.reads.setdefault(value, []).append((reader, destination, distance))
        self.moves: dict[int, list[Move]] = {}
        for move in pipeline.moves:
            self.moves.setdefault(move.value, []).append(move)

    def build(self) -> None:
        for v, operator in enumerate(self.pipeline.operators):
            start = self.moment(operator.starts)
            for p in self.on(v):
                self.add(p, (start, 0, v, 0, 0, 0), (COMPUTE, v, 0, 0, 0, 0, 0, 0))
        for number, value in enumerate(self.pipeline.values):
            home: Members = ()
            if value.producer >= 0:
                home = self.on(value.producer)
                start = self.moment(self.pipeline.operators[value.producer].starts)
                for p in home:
                    self.use(p, number, 0, (start, 0, value.producer, 0, 0, 0))
            arrives = {0: home}
            for move in self.moves.get(number, ()):
                target = move.targets[self.residue % len(move.targets)]
                arrives[move.destination] = target
                if target != home:
                    self.transfer(number, move, home, target)
            self.read(number, arrives)
        for (p, number, destination), key in self.last.items():
            value = self.pipeline.values[number]
            if destination or not value.kept:
                after = (*key[:-1], _FREES, value.producer, value.result, destination)
                self.add(p, after, (FREE, value.producer, value.result, destination, 0, 0, 0, 0))
        if self.residue == self.pipeline.together - 1:
            for n, update in enumerate(self.pipeline.updates):
                key = (update.start, 0, len(self.pipeline.operators) + n, 0, 0, 0)
                for p in update.on:
                    self.add(p, key, (UPDATE, n, 0, 0, 0, 0, 0, 0))

    def moment(self, moments: tuple[int, ...], later: int = 0) -> int:
        """The moment of the micro-batch ``later`` ones after :attr:`first`."""
        return self.pipeline.moment(moments, self.first + later)

    def on(self, v: int, distance: int = 0) -> Members:
        """Where operator ``v`` runs, ``distance`` micro-batches later."""
        sets = self.pipeline.operators[v].sets
        return sets[(self.residue + distance) % len(sets)]

    def add(self, p: int, key: Key, row: Row) -> None:
        self.found.setdefault(p, []).append((key, row))

    def use(self, p: int, number: int, destination: int, key: Key) -> None:
        slot = (p, number, destination)
        before = self.last.get(slot)
        if before is None or before < key:
            self.last[slot] = key

    def read(self, number: int, arrives: dict[int, Members]) -> None:
        """Note when operators use a value; in a turn in which it need not move they read the value itself."""
        for reader, destination, distance in self.reads.get(number, ()):
            there = destination if arrives[destination] != arrives[0] else 0
            start = self.moment(self.pipeline.operators[reader].starts, distance)
            for p in self.on(reader, distance):
                self.use(p, number, there, (start, distance, reader, 0, 0, 0))

    def transfer(self, number: int, move: Move, home: Members, target: Members) -> None:
        value = self.pipeline.values[number]
        gathered, moment = move.gathered[self.residue % len(move.gathered)], self.moment(move.moments)
        what = (value.producer, value.result, move.destination, 0)
        sent = messages(home, target, value.size, sharded=value.sharded, gathered=gathered)
        for place, (a, b, begin, end) in enumerate(sent):
            key = (moment, 0, value.producer, 1 + self._place(number, move), place, 0)
            if a == b:
                self.add(a, key, (COPY, *what, 0, begin, end))
            else:
                self.add(a, key, (SEND, *what, b, begin, end))
                self.add(b, key, (RECV, *what, a, begin, end))
            self.use(a, number, 0, key)
            self.use(b, number, move.destination, key)
        if gathered:
            key = (moment, 0, value.producer, 1 + self._place(number, move), len(sent), 0)
            for p in target:
                groups = self.groups.setdefault(p, {})
                group = groups.setdefault(target, len(groups))
                self.add(p, key, (ALL_GATHER, *what, group, 0, value.size))
                self.use(p, number, move.destination, key)

    def _place(self, number: int, move: Move) -> int:
        """A number that no other move of the same producer has."""
        return number * (1 + len(self.pipeline.moves)) + move.destination


def build(pipeline: Pipeline, microbatches: int | None = None) -> Programs:
    """The programs of all accelerators that do anything; for as many micro-batches as wanted if None are given.

    Of a step these are whole steps. Raises :class:`TooLong` instead of filling the memory.
    """
    together = pipeline.together
    step = lcm(together, *(len(o.sets) for o in pipeline.operators))
    patterns = [_Pattern(pipeline, residue) for residue in range(step)]
    for pattern in patterns:
        pattern.build()
    lags = [key[0] // pipeline.window for pattern in patterns for kept in pattern.found.values() for key, _ in kept]
    # What is read from a state in the kernel was computed, and is no initial value.
    starts = [lag for r in pipeline.reads for lag in _windows_of(pipeline, r)]
    ahead = max(*lags, *starts, 0)
    instructions = len(lags) * (1 + -(-2 * ahead * together // step))
    if instructions > MOST_INSTRUCTIONS:
        raise TooLong(instructions)
    trips = None if microbatches is None else max(0, (microbatches - ahead * together) // step)
    base = ahead * together if microbatches is None else microbatches - (trips or 0) * step
    accelerators = sorted({p for pattern in patterns for p in pattern.found})
    sections = _Sections(pipeline, patterns, ahead, base, trips)
    return Programs(base, step, trips, {p: sections.of(p) for p in accelerators})


def _windows_of(pipeline: Pipeline, read: Read) -> Iterator[int]:
    """The windows in which what the micro-batches of the first window leave is read."""
    for i in range(pipeline.together):
        yield pipeline.moment(pipeline.operators[read.reader].starts, i + read.distance) // pipeline.window


class _Sections:
    """Spreads the pattern of an accelerator over the windows of each section."""

    def __init__(self, pipeline: Pipeline, patterns: list[_Pattern], ahead: int, base: int, trips: int | None):
        self.window, self.together = pipeline.window, pipeline.together
        self.patterns, self.ahead, self.base, self.trips = patterns, ahead, base, trips
        self.step = len(patterns)

    def of(self, p: int) -> Program:
        groups: dict[Members, int] = {}
        keyed = sorted(self._keyed(p, groups))
        rows = np.array([row for _, _, _, row in keyed], dtype=np.int64).reshape(-1, MICROBATCH + 4)
        lags = np.array([lag for _, lag, _, _ in keyed], dtype=np.int64)
        residues = np.array([residue for _, _, residue, _ in keyed], dtype=np.int64)

        def spread(first: int, windows: int, most: int) -> Rows:
            """All windows of a section; micro-batches ``[0, most)`` only."""
            begun = (np.arange(first, first + windows, dtype=np.int64)[:, None] - lags) * self.together
            microbatches = begun + residues % self.together
            wanted = (begun >= 0) & (microbatches < most) & ((microbatches - residues) % self.step == 0)
            window, place = np.nonzero(wanted)
            found = rows[place]
            found[:, MICROBATCH] = microbatches[window, place]
            return found

        ahead, base, step = self.ahead, self.base, self.step
        every = 2**62
        prologue = spread(0, ahead, every if self.trips is None else base + step * self.trips)
        kernel = spread(ahead, 0 if self.trips == 0 else step // self.together, every)
        # The epilogue is that of no trips: another number moves it by whole trips.
        epilogue = spread(ahead, base // self.together, base)
        epilogue[:, MICROBATCH] = base - 1 - epilogue[:, MICROBATCH]
        return Program(prologue, kernel, epilogue, tuple(groups))

    def _keyed(self, p: int, groups: dict[Members, int]) -> Iterator[tuple[Key, int, int, Row]]:
        """The pattern of an accelerator: place in a window, lag, residue, row."""
        for residue, pattern in enumerate(self.patterns):
            of_number = {number: members for members, number in pattern.groups.get(p, {}).items()}
            for (time, later, *place), row in pattern.found.get(p, ()):
                lag, phase = divmod(time, self.window)
                if row[0] == ALL_GATHER:
                    group = groups.setdefault(of_number[row[5]], len(groups))
                    row = (*row[:5], group, *row[6:])
                # In one window the micro-batch that an instruction acts for is the greater, the smaller its lag.
                microbatch = residue % self.together + later - lag * self.together
                yield (phase, microbatch, *place), lag, residue, row
