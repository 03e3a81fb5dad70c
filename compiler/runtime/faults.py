"""Names the cause when a run fails: rank, accelerator and instruction, from the board and what the ranks left.

A rank that is gone without a word comes before one that reports its own error, and that before those that only saw a
connection close. Of ranks that wait for each other it is the one at the end, which waits for none.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.runtime.board import SET, Phase, States
from compiler.runtime.job import Job, Rows, failure_file
from dialects.diagnostics import Diagnostic, TaktError
from dialects.programs import COMPUTE, KINDS, RECV, SEND, UPDATE, Instruction

START_UP = 120.0
"""Seconds that processes may take to come to their first instruction."""


@dataclass(frozen=True)
class Failure:
    """What a rank left: ``lost`` if it only saw that another is gone."""

    rank: int
    time: float
    message: str
    index: int | None
    lost: bool


def failures(folder: Path, ranks: int) -> list[Failure]:
    """What ranks have reported, the likeliest cause first."""
    found: list[Failure] = []
    for rank in range(ranks):
        if (path := failure_file(folder, rank)).exists():
            found.append(Failure(rank, **json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda f: (f.lost, f.time))


class Faults:
    """Judges the run of a job with these programs."""

    def __init__(self, job: Job, programs: Mapping[int, Rows]):
        self.job, self.programs = job, programs
        self.rank_of = job.rank_of
        asleep = job.pattern + max(max((op.start, *op.later)) + op.time for op in job.operators)
        asleep += max((update.time for update in job.updates), default=0)
        asleep += max((move.time for move in job.moves), default=0)
        sleeps = job.settings.emulate or job.settings.paced
        self.timeout = job.settings.timeout + (asleep * max(1.0, job.settings.scale) / 1e9 if sleeps else 0)

    # --- what is wrong -------------------------------------------------------------------------

    def died(self, states: States, exits: Mapping[int, int], reported: list[Failure]) -> TaktError | None:
        """The error for ranks that ended with these exit codes, and for what others reported."""
        silent = [rank for rank in sorted(exits) if all(f.rank != rank for f in reported)]
        if silent:
            rank = silent[0]
            end = how(exits[rank])
            place = self.place(rank, int(states[rank]["index"]))
            hint = "the system may have run out of memory" if end == "SIGKILL" else None
            return _error(f"{self.name(rank)} died {place} ({end})", hint)
        if not reported:
            return None
        first = reported[0]
        index = -1 if first.index is None else first.index
        return _error(f"{self.name(first.rank)} failed {self.place(first.rank, index)}: {first.message}")

    def hangs(self, states: States, now: int) -> TaktError | None:
        """The error for a run that makes no progress, if it makes none."""
        age = (now - states["time"]) / 1e9
        running = states["phase"] != Phase.FINISHED
        if not running.any():  # they only have to leave
            running = ~running
        starting = states["phase"] == Phase.STARTING
        stale = running & (age > self.timeout + starting * START_UP)
        busy = stale & (states["phase"] == Phase.WORKING)
        if not (busy.any() or stale[running].all()):
            return None
        rank = self.cause(states, busy if busy.any() else stale)
        place = self.place(rank, int(states[rank]["index"]))
        return _error(
            f"{self.name(rank)} makes no progress since {age[rank]:.0f} s {place}",
            "if it only needs longer, allow a longer time without progress",
        )

    def cause(self, states: States, suspects: States) -> int:
        """The rank that others wait for, among those that make no progress."""
        ranks = [rank for rank in range(len(states)) if suspects[rank]]
        for rank in ranks:
            if _stopped(int(states[rank]["pid"])):
                return rank
        rank, seen = min(ranks, key=lambda r: (states[r]["pid"] != 0, states[r]["time"])), set[int]()
        while rank not in seen and (other := self.awaited(states, rank)) is not None:
            seen.add(rank)
            rank = other
        return rank

    def awaited(self, states: States, rank: int) -> int | None:
        """Whom a rank waits for, as long as that one has not finished."""
        phase, peer = int(states[rank]["phase"]), int(states[rank]["peer"])
        if phase != Phase.WAITING:
            return None
        if peer != SET:
            others = [self.rank_of[peer]] if peer in self.rank_of else []
        else:
            x = self.instruction(rank, int(states[rank]["index"]))
            members = [self.rank_of[p] for p in self.together(x)] if x else []
            others = [r for r in members if r != rank and not self.is_at(states, r, x)]
        return next((r for r in others if states[r]["phase"] != Phase.FINISHED), None)

    def together(self, x: Instruction) -> tuple[int, ...]:
        """Who does an instruction together."""
        if x.kind == UPDATE:
            return self.job.updates[x.subject].on
        return self.job.operators[x.subject].on(x.microbatch)

    def is_at(self, states: States, rank: int, x: Instruction | None) -> bool:
        """Whether a rank waits for the set of an operator too."""
        there = self.instruction(rank, int(states[rank]["index"]))
        return states[rank]["phase"] == Phase.WAITING and states[rank]["peer"] == SET and there == x

    # --- how it is said ------------------------------------------------------------------------

    def instruction(self, rank: int, index: int) -> Instruction | None:
        rows = self.programs[self.job.accelerators[rank]]
        return Instruction._make(rows[index].tolist()) if 0 <= index < len(rows) else None

    def name(self, rank: int) -> str:
        return f"rank {rank} (accelerator {self.job.accelerators[rank]})"

    def place(self, rank: int, index: int) -> str:
        x = self.instruction(rank, index)
        if x is None:
            return "before its first instruction" if index < 0 else "after its last instruction"
        count = len(self.programs[self.job.accelerators[rank]])
        return f"at '{self.line(x)}', instruction {index + 1} of {count}"

    def line(self, x: Instruction) -> str:
        """An instruction in words."""
        if x.kind == UPDATE:
            return f"{KINDS[x.kind]} {self.job.updates[x.subject].name} after micro-batch {x.microbatch}"
        if x.subject < 0:
            name = self.job.inputs[-1 - x.subject].name
        elif x.kind == COMPUTE:
            name = self.job.operators[x.subject].name
        else:
            name = self.job.operators[x.subject].results[x.result].name
        way = {SEND: f" to {x.peer}", RECV: f" from {x.peer}"}.get(x.kind, "")
        return f"{KINDS[x.kind]} {name} of micro-batch {x.microbatch}{way}"


def _error(message: str, hint: str | None = None) -> TaktError:
    return TaktError(Diagnostic(message, hint=hint))


def how(code: int) -> str:
    """What an exit code says, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _stopped(pid: int) -> bool:
    """Whether a process is stopped; not known everywhere."""
    try:
        return pid > 0 and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False
