"""The messages of one program: receives that are posted ahead, and sends that leave as soon as they can.

On the way from one accelerator to another messages keep the order that the program has for both of them; that is all
that matches a send with its receive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dialects.programs import COMPUTE, RECV, SEND, Instruction

if TYPE_CHECKING:
    import torch


class Handle(Protocol):
    """A message on its way; ``wait`` returns when it has left or is there. ConnectionError if the other end is gone."""

    def wait(self) -> object: ...


class Given(NamedTuple):
    """A weight gradient that is complete, of the step that ends with ``microbatch``, for an optimizer step."""

    update: int
    gradient: int
    microbatch: int


class Transport(Protocol):
    """Carries messages between accelerators, in order from one to another, and brings sets of them together."""

    def send(self, tensor: torch.Tensor, accelerator: int) -> Handle: ...

    def receive(self, tensor: torch.Tensor, accelerator: int) -> Handle: ...

    def meet(self, among: tuple[int, ...], moment: int) -> int:
        """Returns the latest of their moments when all of them have called it."""
        ...

    def give(self, what: Given, accelerator: int) -> None:
        """Tell an accelerator that a gradient is there, and go on."""
        ...

    def taken(self, accelerator: int) -> Given:
        """The next that an accelerator gives, when it does."""
        ...


class Key(NamedTuple):
    """A buffer of a micro-batch."""

    subject: int
    result: int
    destination: int
    microbatch: int


def key_of(x: Instruction) -> Key:
    """The buffer that an instruction is about."""
    return Key(x.subject, x.result, x.destination, x.microbatch)


@dataclass(frozen=True)
class Posted:
    """Receive ``index`` of a program, posted at ``time`` to fill ``tensor``."""

    index: int
    time: int
    tensor: torch.Tensor
    handle: Handle


class Incoming:
    """Which receives are to be posted, and which have been and are not waited for yet."""

    def __init__(self, program: Sequence[Instruction], ahead: int):
        self.order = [i for i, x in enumerate(program) if x.kind == RECV]
        self.ahead = ahead
        self.passed = self.posted = 0
        self.pending: dict[Key, list[Posted]] = {}

    def due(self, at: int) -> list[int]:
        """Receives to post now that the program is at ``at``: those up to there, and ``ahead`` beyond."""
        while self.passed < len(self.order) and self.order[self.passed] <= at:
            self.passed += 1
        first, self.posted = self.posted, max(self.posted, min(self.passed + self.ahead, len(self.order)))
        return self.order[first : self.posted]

    def add(self, key: Key, posted: Posted) -> None:
        self.pending.setdefault(key, []).append(posted)

    def take(self, key: Key, at: int) -> list[Posted]:
        """What has been posted for a buffer up to ``at``; whoever asks for it waits for it."""
        found = self.pending.pop(key, [])
        if later := [p for p in found if p.index > at]:
            self.pending[key] = later
        return [p for p in found if p.index <= at]


class Outgoing:
    """Which sends are to be made, and which were and may not have left yet: at most ``window`` to an accelerator."""

    def __init__(self, program: Sequence[Instruction], window: int):
        self.window = window
        self.unsent: dict[int, deque[tuple[int, int]]] = {}
        """Accelerator → its sends, and where their values are computed."""
        self.open: dict[int, deque[tuple[int, Handle]]] = {}
        made: dict[tuple[int, int], int] = {}
        for i, x in enumerate(program):
            if x.kind == COMPUTE:
                made[x.subject, x.microbatch] = i
            elif x.kind == SEND:
                self.unsent.setdefault(x.peer, deque()).append((i, made[x.subject, x.microbatch]))
                self.open.setdefault(x.peer, deque())

    def early(self, at: int) -> int | None:
        """The first send to any accelerator whose value is there after instruction ``at``, and that may leave ahead.

        What has to leave before it must have its place up to ``at``: there the program itself may wait for it, so that
        waiting can close no circle.
        """
        ready = [queue[0][0] for peer, queue in self.unsent.items() if queue and self._may_leave(peer, at)]
        return min(ready, default=None)

    def _may_leave(self, peer: int, at: int) -> bool:
        opened = self.open[peer]
        return self.unsent[peer][0][1] <= at and (len(opened) < self.window or opened[0][0] <= at)

    def is_sent(self, index: int, peer: int) -> bool:
        queue = self.unsent[peer]
        return not queue or queue[0][0] > index

    def full(self, peer: int) -> Handle | None:
        """What has to leave before the next send to an accelerator."""
        opened = self.open[peer]
        return opened.popleft()[1] if len(opened) >= self.window else None

    def sent(self, peer: int, handle: Handle) -> None:
        """The next send to an accelerator was made."""
        self.open[peer].append((self.unsent[peer].popleft()[0], handle))
