"""Works through the program of one accelerator: decides when, and writes down when everything happened.

Instructions run in their order, but for messages. A receive is posted ahead of its place and waited for where what it
brings is first needed; a send leaves when its value is there, even if its place comes later; the members of a set
complete a gathered value where the first of its readers begins. None of this can close a circle of waiting that the
order of the programs does not have: everything that waits has come to its place, or the program has passed it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compiler.runtime.backend import Backend
from compiler.runtime.board import NOBODY, SET, Board, Phase
from compiler.runtime.clock import now, sleep_until
from compiler.runtime.job import EVENT, Events, Job, Operator, Rows
from compiler.runtime.messages import Given, Incoming, Key, Outgoing, Posted, Transport, key_of
from dialects.programs import Instruction


class Engine:
    """Runs a program from a common start on."""

    def __init__(self, job: Job, accelerator: int, rows: Rows, backend: Backend, transport: Transport, board: Board):
        self.job, self.backend, self.transport, self.board = job, backend, transport, board
        self.rank = job.rank_of[accelerator]
        self.program = [Instruction._make(row) for row in rows.tolist()]
        self.incoming = Incoming(self.program, job.settings.ahead)
        self.outgoing = Outgoing(self.program, max(1, job.settings.ahead))
        self.gathers: dict[Key, int] = {}
        self.read = {} if backend.sums else _given_by(job, accelerator)
        """Weight gradient → the optimizer steps elsewhere that it is for."""
        self.left: dict[tuple[int, int], int] = {}
        """Weight gradient and last micro-batch of its step → micro-batches of the step that are still to come."""
        self.given: set[Given] = set()
        self.events: Events = np.zeros(len(rows), EVENT)
        self.events["index"] = np.arange(len(rows))
        self.start = 0
        self.at = -1
        """Index of the instruction."""
        self.groups = job.groups[accelerator]
        self.factor = job.settings.scale if job.settings.emulate else 1.0
        self.steps = (
            *(self.compute, self.send_in_turn, self.receive, self.copy, self.all_gather, self.free),
            self.update,
        )

    def run(self, start: int) -> Events:
        """Everything, from the common start on; returns when each instruction came, began and was done."""
        self.start = start
        for at, x in enumerate(self.program):
            self.at = at
            self.post()
            if at == 0:
                sleep_until(start)
            self.tell(Phase.WORKING)
            self.steps[x.kind](x)
        for peer, opened in self.outgoing.open.items():
            for _, handle in opened:
                self.tell(Phase.WAITING, peer)
                handle.wait()
        return self.events

    def tell(self, phase: Phase, peer: int = NOBODY) -> None:
        self.board.write(self.rank, self.at, phase, peer)

    def record(self, index: int, arrive: int, start: int, end: int | None = None) -> None:
        times = (t - self.start for t in (arrive, start, now() if end is None else end))
        self.events[index] = (index, *times)

    def post(self) -> None:
        for index in self.incoming.due(self.at):
            x = self.program[index]
            tensor = self.backend.landing(x)
            posted = Posted(index, now(), tensor, self.transport.receive(tensor, x.peer))
            self.incoming.add(key_of(x), posted)

    def need(self, keys: Iterator[Key] | tuple[Key, ...]) -> None:
        """Wait until buffers are filled, as far as anything is still to come."""
        gathers: list[int] = []
        for key in keys:
            for posted in self.incoming.take(key, self.at):
                self.hold(self.arrival(posted))
            if key in self.gathers:
                gathers.append(self.gathers.pop(key))
        for index in sorted(gathers):
            self.gather(index)

    def hold(self, moment: int) -> None:
        """Nothing begins before this moment."""
        self.backend.floor = max(self.backend.floor, moment)

    def arrival(self, posted: Posted) -> int:
        """Wait for a message; returns from when on it may be used."""
        x = self.program[posted.index]
        self.tell(Phase.WAITING, x.peer)
        posted.handle.wait()
        self.tell(Phase.WORKING)
        ready = self.backend.arrived(x, posted.tensor)
        there = max(posted.time, ready)
        self.record(posted.index, posted.time, there, there)
        return ready

    def gather(self, index: int) -> None:
        arrive = now()
        x = self.program[index]
        self.tell(Phase.WAITING, SET)
        self.backend.all_gather(x, self.groups[x.peer])
        self.record(index, arrive, arrive)

    # --- what the kinds of instructions do -----------------------------------------------------

    def compute(self, x: Instruction) -> None:
        arrive = now()
        operator = self.job.operators[x.subject]
        self.need(_read(operator, x.microbatch))
        if self.job.settings.paced and operator.source:
            self.hold(self.start + round(self.job.begin(operator, x.microbatch) * self.factor))
        start = self.begin(operator.on(x.microbatch))
        self.backend.compute(x)
        self.record(self.at, arrive, start)
        self.give(x)
        while self.backend.eager and (index := self.outgoing.early(self.at)) is not None:
            self.send(index)

    def begin(self, among: tuple[int, ...]) -> int:
        """Wait until all of these have come to this place, and begin with them."""
        if len(among) > 1:
            self.tell(Phase.WAITING, SET)
            self.hold(self.transport.meet(among, self.backend.begin()))
        self.tell(Phase.WORKING)
        sleep_until(self.backend.begin())
        return now()

    def update(self, x: Instruction) -> None:
        arrive = now()
        if not self.backend.sums:
            self.take(x)
        start = self.begin(self.job.updates[x.subject].on)
        self.backend.update(x.subject)
        self.record(self.at, arrive, start)

    def take(self, x: Instruction) -> None:
        """Wait for the gradients that are computed elsewhere."""
        for v, giver in self.job.givers(x.subject).items():
            while (what := Given(x.subject, v, x.microbatch)) not in self.given:
                self.tell(Phase.WAITING, giver)
                self.given.add(self.transport.taken(giver))
            self.given.remove(what)

    def give(self, x: Instruction) -> None:
        """Once the gradient of the last micro-batch of a step is there, tell those who wait for it elsewhere."""
        if (updates := self.read.get(x.subject)) is None:
            return
        last = (x.microbatch // self.job.per_pattern + 1) * self.job.per_pattern - 1
        self.left[x.subject, last] = self.left.get((x.subject, last), self.job.per_pattern) - 1
        if self.left[x.subject, last]:
            return
        home = self.job.operators[x.subject].on(0)
        for n in updates:
            for p in self.job.updates[n].on:
                if p not in home:
                    self.transport.give(Given(n, x.subject, last), p)

    def send_in_turn(self, x: Instruction) -> None:
        if not self.outgoing.is_sent(self.at, x.peer):
            self.send(self.at)

    def send(self, index: int) -> None:
        x, arrive = self.program[index], now()
        if (handle := self.outgoing.full(x.peer)) is not None:
            self.tell(Phase.WAITING, x.peer)
            handle.wait()
            self.tell(Phase.WORKING)
        start = now()
        self.outgoing.sent(x.peer, self.transport.send(self.backend.message(x), x.peer))
        self.record(index, arrive, start)

    def receive(self, x: Instruction) -> None:
        if not self.backend.lazy:
            self.hold(now())
            self.need((key_of(x),))
            sleep_until(self.backend.floor)

    def copy(self, x: Instruction) -> None:
        start = now()
        self.backend.copy(x)
        self.record(self.at, start, start)

    def all_gather(self, x: Instruction) -> None:
        self.gathers[key_of(x)] = self.at
        if not self.backend.lazy:
            self.need((key_of(x),))

    def free(self, x: Instruction) -> None:
        arrive = now()
        self.need((key_of(x),))
        start = now()
        self.backend.free(x)
        self.record(self.at, arrive, start)


def _given_by(job: Job, accelerator: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for n in range(len(job.updates)) if job.step else ():
        for v, giver in job.givers(n).items():
            if giver == accelerator:
                found.setdefault(v, []).append(n)
    return found


def _read(operator: Operator, microbatch: int) -> Iterator[Key]:
    """The buffers that an operator reads; inputs and initial values of states are simply there."""
    for read in operator.reads:
        if read.subject >= 0 and microbatch >= read.distance:
            yield Key(read.subject, read.result, read.destination, microbatch - read.distance)
