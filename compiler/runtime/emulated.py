"""Emulated accelerators: operators sleep their time, and messages are tokens that say when the value may be used.

Sleeping needs no processor, so that any number of accelerators runs on a small machine, at their real pace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compiler.runtime.backend import Backend, Place
from compiler.runtime.clock import sleep_until, wall_offset
from dialects.programs import Instruction

if TYPE_CHECKING:
    from compiler.runtime.job import Transfer


class EmulatedBackend(Backend):
    """An accelerator that sleeps.

    A transfer begins when the sender comes to its first message and its port has finished what it carried before, as
    far as it carries one thing at a time. All messages of one transfer of a micro-batch move in parallel, and an
    all-gather at their end is part of their time. Where transfers are ``blocking``, the sender sleeps meanwhile, and
    the receiver from when both ends are there on; where they are ``buffered``, the sender sleeps once for all that
    read a value, and then each receiver. Ports of receivers, and wires, are not watched.
    """

    def __init__(self, place: Place):
        super().__init__(place)
        job = place.job
        self.factor, self.mode = job.settings.scale, job.transfers
        self.eager, self.lazy = self.mode != "blocking", self.mode == "overlapped"
        self.moves = {(t.subject, t.result, t.destination): t for t in job.moves}
        self.offset = wall_offset()
        self.ports: dict[str, list[int]] = {t.link: [0] * t.lanes for t in job.moves if t.lanes}
        """Link → until when each of its lanes carries what this accelerator sent before."""
        self.left: dict[tuple[int, ...], tuple[int, int]] = {}
        """What leaves as one → its micro-batch and when that may be used."""
        self.came: dict[tuple[int, ...], tuple[int, int]] = {}

    def message(self, x: Instruction) -> torch.Tensor:
        what = (x.subject, x.result) if self.mode == "buffered" else (x.subject, x.result, x.destination)
        microbatch, ready = self.left.get(what, (-1, 0))
        if microbatch != x.microbatch:
            ready = self.leave(x)
            self.left[what] = (x.microbatch, ready)
        return torch.tensor([ready + self.offset])

    def leave(self, x: Instruction) -> int:
        """Begin a transfer; returns when its value may be used, or has reached the buffer."""
        move = self.moves.get(x[1:4])
        if move is None:
            return self.begin()
        if self.mode != "overlapped":
            return self.rest(self.time(move))
        lanes = self.ports.get(move.link, [0])
        ready = max(self.begin(), min(lanes)) + self.time(move)
        lanes[lanes.index(min(lanes))] = ready
        return ready

    def landing(self, x: Instruction) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int64)

    def arrived(self, x: Instruction, tensor: torch.Tensor) -> int:
        ready = int(tensor.item()) - self.offset
        if self.mode == "overlapped" or (move := self.moves.get(x[1:4])) is None:
            return ready
        microbatch, end = self.came.get(x[1:4], (-1, 0))
        if microbatch != x.microbatch:
            time = self.time(move)
            # The sender sent this at the end of its transfer, which this accelerator came to at its floor.
            end = max(ready, self.floor + time) if self.mode == "blocking" else max(ready, self.begin()) + time
            self.came[x[1:4]] = (x.microbatch, end)
        return end

    def compute(self, x: Instruction) -> None:
        self.rest(round(self.place.job.operators[x.subject].time * self.factor))

    def update(self, number: int) -> None:
        self.rest(round(self.place.job.updates[number].time * self.factor))

    def copy(self, x: Instruction) -> None:
        """Takes no time."""

    def all_gather(self, x: Instruction, among: tuple[int, ...]) -> None:
        """Part of the time of the transfer."""

    def free(self, x: Instruction) -> None:
        """There is no buffer."""

    def time(self, move: Transfer) -> int:
        return round(move.time * self.factor)

    def rest(self, time: int) -> int:
        """Work for some time from now on; returns when that ends.

        It never begins in the past: what waking up and messages cost the host is part of what is measured.
        """
        end = self.begin() + time
        sleep_until(end)
        return end
