"""What the instructions of a program do on one accelerator: asleep or with real tensors.

The engine decides when: it posts receives ahead, waits for what an instruction needs, for the other accelerators of an
operator and for the turn of a micro-batch, and writes down when everything happened. A backend decides what.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.runtime.clock import now
from compiler.runtime.job import Job
from dialects.programs import Instruction

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist


@dataclass(frozen=True)
class Place:
    """Where a backend works: rank and accelerator of its process, and a process group for every set of the job.

    ``groups`` has one for each set of several accelerators that run an operator together or gather a value, the ranks
    in the order of the accelerators. ``ties`` has one for each tie of ``job.tied`` whose copies are on several.
    ``device`` is where tensors are, by its name in torch.
    """

    job: Job
    accelerator: int
    groups: Mapping[tuple[int, ...], dist.ProcessGroup]
    device: str = "cpu"
    ties: Mapping[str, dist.ProcessGroup] = field(default_factory=dict[str, "dist.ProcessGroup"])

    @property
    def rank(self) -> int:
        return self.job.accelerators.index(self.accelerator)


class Backend(ABC):
    """The buffers of one accelerator and what instructions do to them."""

    eager = True
    """Whether a message leaves as soon as its value is there, which may be ahead of its place."""

    lazy = True
    """Whether the accelerator goes on until what arrives is read; else it waits at the place of the receive."""

    sums = False
    """Whether an optimizer step waits by itself for gradients of other accelerators, which it sums."""

    floor = 0
    """Nothing that comes next may begin before this moment on the clock of the run; the engine raises it."""

    def __init__(self, place: Place):
        self.place = place

    def begin(self) -> int:
        """When the next operator of this accelerator begins if it waits for no other accelerator."""
        return max(now(), self.floor)

    @abstractmethod
    def message(self, x: Instruction) -> torch.Tensor:
        """What a send sends: a tensor that is not written any more. Called when the value is there."""

    @abstractmethod
    def landing(self, x: Instruction) -> torch.Tensor:
        """A tensor for a receive to fill; called when it is posted, which may be long before its turn."""

    @abstractmethod
    def arrived(self, x: Instruction, tensor: torch.Tensor) -> int:
        """Take what a receive brought; returns from when on it may be used, on the clock ``time.monotonic_ns``."""

    @abstractmethod
    def compute(self, x: Instruction) -> None:
        """Run this accelerator's part of an operator, to its end; all accelerators of its set do so at once."""

    @abstractmethod
    def update(self, number: int) -> None:
        """Do what the optimizer does to this accelerator's parameters in ``job.updates[number]``, to its end.

        Every accelerator that holds a copy of them does so in its own step, whenever that comes; gradients begin anew.
        """

    @abstractmethod
    def copy(self, x: Instruction) -> None:
        """Copy bytes of a value into a buffer of a destination; other parts of it may be on their way."""

    @abstractmethod
    def all_gather(self, x: Instruction, among: tuple[int, ...]) -> None:
        """Complete the buffer of a destination with the pieces of the other accelerators ``among``.

        Called where the first of its readers begins, on all of them, when the own piece is there.
        """

    @abstractmethod
    def free(self, x: Instruction) -> None:
        """Give up a buffer. Messages sent from it may not have left yet: they keep what :meth:`message` returned."""

    def finish(self, folder: Path) -> None:  # noqa: B027  (most leave nothing)
        """After the last instruction: leave what the run is to report."""
