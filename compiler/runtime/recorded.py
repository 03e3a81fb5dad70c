"""What the processes of a run reported, instruction by instruction, and how their accelerators spent the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.runtime.job import Events, Job, Rows, events_file, read_job, read_program
from dialects.programs import ALL_GATHER, COMPUTE, FREE, RECV, UPDATE, Instruction

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Line:
    """An instruction of a program and what happened to it; times in ns since the common start (:data:`EVENT`)."""

    what: Instruction
    arrive: int
    start: int
    end: int


@dataclass(frozen=True)
class Run:
    """A run that came to its end: accelerator → its instructions, and its events in their order."""

    job: Job
    programs: Mapping[int, Rows]
    events: Mapping[int, Events]

    @staticmethod
    def read(folder: Path) -> Run:
        """What the processes left in the folder of a run."""
        job = read_job(folder)
        programs = {p: read_program(folder, p) for p in job.accelerators}
        return Run(job, programs, {p: np.load(events_file(folder, r)) for p, r in job.rank_of.items()})

    def reported(self, p: int) -> tuple[Rows, Events]:
        """Instructions of an accelerator and what it reported of them, in the order of the program."""
        events = np.sort(self.events[p], order="index")
        return self.programs[p][events["index"]], events

    def of(self, p: int) -> tuple[Rows, Events]:
        """The same, as an accelerator spends its time: between ``arrive`` and ``start`` it waits, until ``end`` works.

        A receive keeps it only where the transfer does so and only from when it came there; else it takes no time.
        What is gathered when an operator needs it lies before that: the operator waits from then on.
        """
        return self._spent[p]

    @cached_property
    def _spent(self) -> dict[int, tuple[Rows, Events]]:
        job = self.job
        scale = job.settings.scale if job.settings.emulate else 1.0
        blocked = job.transfers != "overlapped"
        times = {(t.subject, t.result, t.destination): round(t.time * scale) for t in job.moves if blocked}
        return {p: _spent(*self.reported(p), times) for p in job.accelerators}

    def lines(self, p: int) -> Iterator[Line]:
        """The same, one by one."""
        return lines_of(*self.of(p))

    @cached_property
    def spans(self) -> tuple[Ints, Ints]:
        """When each micro-batch began its first operator and finished its last, ns; optimizer steps are none."""
        begun = np.full(self.job.microbatches, np.iinfo(np.int64).max)
        completed = np.zeros(self.job.microbatches, dtype=np.int64)
        for p in self.job.accelerators:
            rows, events = self.of(p)
            computes = rows[:, 0] == COMPUTE
            np.minimum.at(begun, rows[computes, 4], events["start"][computes])
            np.maximum.at(completed, rows[computes, 4], events["end"][computes])
        return np.minimum(begun, completed), completed

    @property
    def ended(self) -> int:
        """When the last operator or optimizer step was done, ns."""
        ends = [0]
        for p in self.job.accelerators:
            rows, events = self.of(p)
            ends += events["end"][np.isin(rows[:, 0], (COMPUTE, UPDATE))].tolist()
        return max(ends)


def lines_of(rows: Rows, events: Events) -> Iterator[Line]:
    times = (events[name].tolist() for name in ("arrive", "start", "end"))
    for row, arrive, start, end in zip(rows.tolist(), *times, strict=True):
        yield Line(Instruction._make(row), arrive, start, end)


def _spent(rows: Rows, reported: Events, times: Mapping[tuple[int, int, int], int]) -> tuple[Rows, Events]:
    events = reported.copy()
    _stand(rows, events, times)
    _gather(rows, events)
    return rows, events


def _stand(rows: Rows, events: Events, times: Mapping[tuple[int, int, int], int]) -> None:
    """Let an accelerator stand still for the receives that it stood still for, at last for ``times`` of transfers.

    It did where nothing in the program after a receive began before that was there, and something before it had ended.
    """
    following = [np.iinfo(np.int64).max] * len(rows)
    for k in range(len(rows) - 2, -1, -1):
        placed = rows[k + 1, 0] in (COMPUTE, FREE, UPDATE)
        following[k] = int(events["arrive"][k + 1]) if placed else following[k + 1]
    now = 0
    for k, line in enumerate(lines_of(rows, events)):
        if line.what.kind == RECV:
            stood = now < line.end <= following[k]
            came = now if stood else line.end
            moved = max(came, line.end - times.get(line.what.buffer, 0)) if stood else line.end
            events[k] = (events["index"][k], came, moved, line.end)
            now = max(now, line.end) if stood else now
        elif line.what.kind in (COMPUTE, FREE, UPDATE):
            now = max(now, line.end)


def _gather(rows: Rows, events: Events) -> None:
    """Put all-gathers that were done when an instruction had come and needed the value before that instruction."""
    placed = np.flatnonzero(np.isin(rows[:, 0], (COMPUTE, FREE)))
    for k in np.flatnonzero(rows[:, 0] == ALL_GATHER).tolist():
        needed = placed[np.searchsorted(placed, k) :]
        within = (events["arrive"][needed] <= events["start"][k]) & (events["end"][k] <= events["start"][needed])
        for n in needed[within][:1].tolist():
            events["arrive"][k] = events["arrive"][n]
            events["arrive"][n] = events["end"][k]
