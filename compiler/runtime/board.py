"""The board: one line a rank in a small file that is mapped into memory, which says what the rank is doing.

Every rank writes its own line, and the launcher reads all of them: to show progress, and to name the cause when a rank
dies or hangs. Nobody waits for anybody here.
"""

from __future__ import annotations

import os
import time
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.runtime.clock import now
from compiler.runtime.job import BOARD

STATE = np.dtype([(name, np.int64) for name in ("pid", "index", "phase", "time", "peer")])
"""A line: process, index of the instruction, :class:`Phase`, since when (``clock.now``), accelerator waited for."""

States = NDArray[np.void]


class Phase(IntEnum):
    """What a rank is doing at its instruction: it has not begun, works or sleeps, waits for others, is through."""

    STARTING = 0
    WORKING = 1
    WAITING = 2
    FINISHED = 3


NOBODY, SET = -1, -2
"""Instead of an accelerator to wait for: nobody, or all those that run the operator too."""


class Board:
    """The board in a folder of a run of ``ranks`` ranks; made where there is none."""

    def __init__(self, folder: Path, ranks: int):
        with (folder / BOARD).open("ab") as file:
            file.truncate(ranks * STATE.itemsize)
        self.states: States = np.memmap(folder / BOARD, STATE, "r+", shape=(ranks,))

    @classmethod
    def create(cls, folder: Path, ranks: int) -> Board:
        """A new board on which nobody has written; OSError where the disk is full, which mapped memory cannot say."""
        (folder / BOARD).unlink(missing_ok=True)
        (folder / BOARD).write_bytes(bytes(ranks * STATE.itemsize))
        return cls(folder, ranks)

    def begin(self, rank: int) -> None:
        """This process is a rank now."""
        self.write(rank, -1, Phase.STARTING)

    def gather(self) -> None:
        """Wait until every rank has begun."""
        while not self.states["pid"].all():
            time.sleep(0.005)

    def write(self, rank: int, index: int, phase: Phase, peer: int = NOBODY) -> None:
        """Say what a rank is doing from now on."""
        self.states[rank] = (os.getpid(), index, phase, now(), peer)

    def read(self) -> States:
        """All lines as they are now."""
        return self.states.copy()
